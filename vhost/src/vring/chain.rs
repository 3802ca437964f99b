//! Gathering a descriptor chain: each descriptor copied once, checked, then used.
//! Polling cores call this; it owns nothing.

use std::ops::Deref;

use spp_drivers::stats::DropReason;

use super::layout::{DESCRIPTOR_BYTES, Descriptor, F_INDIRECT, F_NEXT, F_WRITE, RingMemory};
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

    #[inline(always)]
    fn push(&mut self, slice: GuestSlice<'m>) -> Result<(), ChainError> {
        self.bytes += slice.len() as u64;
        self.slices.try_push(slice).map_err(|_| ChainError::TooLong)
    }

    /// Appends the buffers of the chain that starts at `head` (below the ring's size).
    pub fn gather(
        &mut self,
        ring: &RingMemory,
        memory: &mut Translator<'m>,
        head: u16,
        direction: Direction,
        indirect_allowed: bool,
    ) -> Result<(), ChainError> {
        let mut table = Table::Ring(ring);
        let mut index = head;
        // Counts every descriptor looked at, so that a loop ends; one more for the one that names a table.
        for _ in 0..=usize::from(ring.size()).min(MAX_CHAIN) {
            let descriptor = table.read(memory, index)?;
            if descriptor.flags & F_INDIRECT != 0 {
                if !indirect_allowed {
                    return Err(ChainError::Malformed);
                }
                table = table.indirect(ring, &descriptor)?;
                index = 0;
                continue;
            }
            if (descriptor.flags & F_WRITE != 0) != (direction == Direction::ToGuest) {
                return Err(ChainError::Malformed);
            }
            if descriptor.len > 0 {
                let slice = memory.slice(Gpa(descriptor.addr), descriptor.len);
                self.push(slice.ok_or(ChainError::Address)?)?;
            }
            if descriptor.flags & F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::Malformed)
    }
}

impl<'m> Deref for Chain<'m> {
    type Target = [GuestSlice<'m>];
    fn deref(&self) -> &[GuestSlice<'m>] {
        &self.slices
    }
}

/// Where descriptors are read from.
enum Table<'r> {
    Ring(&'r RingMemory),
    Indirect { gpa: u64, n: u16 },
}

impl<'r> Table<'r> {
    /// Descriptor `index`, which must lie in the table. An indirect table need not be contiguous in our
    /// address space: each descriptor is translated by itself.
    fn read(&self, memory: &mut Translator<'_>, index: u16) -> Result<Descriptor, ChainError> {
        match *self {
            Table::Ring(ring) if index < ring.size() => Ok(ring.descriptor(index)),
            Table::Indirect { gpa, n } if index < n => {
                let at = gpa.checked_add(u64::from(index) * u64::from(DESCRIPTOR_BYTES));
                let slice = at.and_then(|at| memory.slice(Gpa(at), DESCRIPTOR_BYTES));
                slice.ok_or(ChainError::Address).map(|s| s.read_descriptor())
            }
            _ => Err(ChainError::Malformed),
        }
    }

    /// The table an indirect descriptor names. Not nested, not together with F_NEXT, whole
    /// descriptors, no longer than the ring (virtio 1.2, 2.7.5.3.1).
    fn indirect(&self, ring: &RingMemory, descriptor: &Descriptor) -> Result<Table<'r>, ChainError> {
        let n = descriptor.len / DESCRIPTOR_BYTES;
        let whole = n > 0 && descriptor.len & (DESCRIPTOR_BYTES - 1) == 0 && n <= u32::from(ring.size());
        match self {
            Table::Ring(_) if whole && descriptor.flags & F_NEXT == 0 => {
                Ok(Table::Indirect { gpa: descriptor.addr, n: n as u16 })
            }
            _ => Err(ChainError::Malformed),
        }
    }
}
