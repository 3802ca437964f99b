//! The buffers of a descriptor chain: each descriptor copied once, checked, then used.
//! Polling cores call this; it owns nothing.

use std::ops::Deref;

use spp_drivers::stats::DropReason;

use super::layout::{Descriptor, F_WRITE};
use crate::memory::{Gpa, GuestSlice, Translator};

/// Most descriptors in a chain, as in Linux (UIO_MAXIOV) and QEMU; a ring's size bounds it too.
pub const MAX_CHAIN: usize = 1024;

/// What is wrong with a chain. It goes back to the guest as used with length 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainError {
    /// Loop, bad link, wrong direction, bad indirect table (virtio 1.2, 2.7.5).
    Malformed,
    /// A buffer outside the guest's memory, or across the end of a region.
    Address,
    /// More descriptors than [`MAX_CHAIN`] in what is being gathered.
    TooLong,
}

impl ChainError {
    /// How the frame it carried is counted.
    pub fn reason(self) -> DropReason {
        match self {
            ChainError::Malformed | ChainError::TooLong => DropReason::BadChain,
            ChainError::Address => DropReason::BadAddress,
        }
    }
}

/// Who may write the buffers of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The guest filled them: we read.
    FromGuest,
    /// We fill them.
    ToGuest,
}

/// Buffers of one chain (or of several, for a mergeable frame), in order. On the stack; not initialised before use.
pub struct Chain<'m> {
    slices: arrayvec::ArrayVec<GuestSlice<'m>, MAX_CHAIN>,
    bytes: u64,
}

impl<'m> Chain<'m> {
    /// No buffers.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Chain { slices: arrayvec::ArrayVec::new(), bytes: 0 }
    }

    /// Bytes of all buffers.
    #[inline(always)]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends the buffer of one direct descriptor: checked for its direction, translated whole. Empty ones are
    /// passed over.
    #[inline(always)]
    pub(crate) fn add(
        &mut self,
        descriptor: &Descriptor,
        memory: &mut Translator<'m>,
        direction: Direction,
    ) -> Result<(), ChainError> {
        if (descriptor.flags & F_WRITE != 0) != (direction == Direction::ToGuest) {
            return Err(ChainError::Malformed);
        }
        if descriptor.len == 0 {
            return Ok(());
        }
        let slice = memory.slice(Gpa(descriptor.addr), descriptor.len).ok_or(ChainError::Address)?;
        self.bytes += slice.len() as u64;
        self.slices.try_push(slice).map_err(|_| ChainError::TooLong)
    }
}

impl<'m> Deref for Chain<'m> {
    type Target = [GuestSlice<'m>];
    fn deref(&self) -> &[GuestSlice<'m>] {
        &self.slices
    }
}
