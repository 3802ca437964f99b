// UNSAFETY: names memory that somebody else may write at any time.
//! Frames that are lent where they lie: whoever sends them copies them once, from there to where they go.
//!
//! A queue half whose frames lie in memory that another half can copy from lends them for one call of
//! [`RxQueue::rx_into`](crate::port::RxQueue::rx_into); both halves belong to the core that calls. The memory is a guest's: it may change at
//! any time, so nobody looks at a lent frame. What must be decided was decided from private copies before.

use std::marker::PhantomData;
use std::ptr::NonNull;

/// A frame in one piece of memory that is mapped for as long as `'m`.
#[derive(Debug, Clone, Copy)]
pub struct LentFrame<'m> {
    start: NonNull<u8>,
    len: u32,
    notes: Notes,
    memory: PhantomData<&'m ()>,
}

/// What is known of a frame beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notes(pub u32);

impl Notes {
    /// Somebody else may write its bytes.
    pub const FOREIGN: Notes = Notes(1);
    /// It has checksum or segmentation work with it, which only its packet buffer knows.
    pub const WORK: Notes = Notes(1 << 30);
    /// Hardware has found its checksums right.
    pub const VERIFIED: Notes = Notes(1 << 28);

    #[inline(always)]
    const fn contains(self, other: Notes) -> bool {
        self.0 & other.0 != 0
    }
}

impl<'m> LentFrame<'m> {
    /// The frame of `len_bytes` bytes at `start`, of which nothing is known: somebody else's.
    ///
    /// # Safety
    /// The bytes can be read for as long as `'m`. Others may write them meanwhile.
    #[inline(always)]
    pub unsafe fn new(start: NonNull<u8>, len_bytes: u32) -> Self {
        LentFrame { start, len: len_bytes, notes: Notes::FOREIGN, memory: PhantomData }
    }

    /// The same with what is known of it.
    #[inline(always)]
    pub(crate) fn noted(self, notes: Notes) -> Self {
        LentFrame { notes, ..self }
    }

    /// True when it goes with [work](crate::dma::PacketBuf::has_offload): its bytes are not all there is to it.
    #[inline(always)]
    pub fn has_offload(&self) -> bool {
        self.notes.contains(Notes::WORK)
    }

    /// As [`PacketBuf::is_verified`](crate::dma::PacketBuf::is_verified).
    #[inline(always)]
    pub fn is_verified(&self) -> bool {
        self.notes.contains(Notes::VERIFIED)
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True for bytes that somebody else may write, and may have chosen the place of.
    #[inline(always)]
    pub fn is_foreign(&self) -> bool {
        self.notes.contains(Notes::FOREIGN)
    }

    /// Asks the CPU to fetch its first line.
    #[inline(always)]
    pub fn prefetch(&self) {
        let line = self.start.as_ptr().cast::<i8>();
        // SAFETY: a prefetch has no effect but on caches, for any address.
        unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(line) }
    }

    /// Where it lies. To be copied from, never to be referenced.
    #[inline(always)]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}
