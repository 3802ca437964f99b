// UNSAFETY: names memory that somebody else may write at any time.
//! Frames that are lent where they lie: whoever sends them copies them once, from there to where they go.
//!
//! A queue half whose frames lie in memory that another half can copy from lends them for one call of
//! [`RxQueue::rx_into`](crate::port::RxQueue::rx_into); both halves belong to the core that calls. The memory is a guest's: it may change at
//! any time, so nobody looks at a lent frame. What must be decided was decided from private copies before.

use std::marker::PhantomData;
use std::ptr::NonNull;

/// A frame without work left undone, in one piece of memory that is mapped for as long as `'m`.
#[derive(Debug, Clone, Copy)]
pub struct LentFrame<'m> {
    start: NonNull<u8>,
    len: u32,
    memory: PhantomData<&'m ()>,
}

impl<'m> LentFrame<'m> {
    /// The frame of `len_bytes` bytes at `start`.
    ///
    /// # Safety
    /// The bytes can be read for as long as `'m`. Others may write them meanwhile.
    #[inline(always)]
    pub unsafe fn new(start: NonNull<u8>, len_bytes: u32) -> Self {
        LentFrame { start, len: len_bytes, memory: PhantomData }
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Where it lies. To be copied from, never to be referenced.
    #[inline(always)]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}
