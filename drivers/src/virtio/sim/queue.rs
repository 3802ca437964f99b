//! The device side of a split ring, as the model walks it. Written apart from the driver's half, from the
//! specification, so that one checks the other.

use super::Fault;
use super::SimIommu;
use crate::virtio::desc::{DESC_F_NEXT, DESC_F_WRITE, Descriptor};

/// One queue: the registers the driver writes, and where the device is.
#[derive(Debug, Clone, Default)]
pub(super) struct SimQueue {
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) vector: u16,
    /// Descriptor table, avail ring, used ring.
    pub(super) at: [u64; 3],
    pub(super) doorbells: u64,
    avail_idx: u16,
    used_idx: u16,
}

/// A chain the device has taken.
pub(super) struct Chain {
    pub(super) head: u16,
    pub(super) pieces: Vec<Descriptor>,
}

impl Chain {
    /// Bytes of all pieces the device may read.
    pub(super) fn read(&self, memory: &SimIommu) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.pieces.iter().filter(|p| p.flags & DESC_F_WRITE == 0) {
            let old = bytes.len();
            bytes.resize(old + piece.len as usize, 0);
            memory.read(piece.addr, &mut bytes[old..]);
        }
        bytes
    }

    /// Room in the pieces the device may write.
    pub(super) fn room(&self) -> usize {
        self.pieces.iter().filter(|p| p.flags & DESC_F_WRITE != 0).map(|p| p.len as usize).sum()
    }

    /// Writes `bytes` to the writable pieces; returns how many fitted.
    pub(super) fn write(&self, memory: &SimIommu, mut bytes: &[u8]) -> u32 {
        let before = bytes.len();
        for piece in self.pieces.iter().filter(|p| p.flags & DESC_F_WRITE != 0) {
            let (now, rest) = bytes.split_at(bytes.len().min(piece.len as usize));
            memory.write(piece.addr, now);
            bytes = rest;
        }
        (before - bytes.len()) as u32
    }
}

impl SimQueue {
    pub(super) fn new(size: u16) -> Self {
        SimQueue { size, vector: 0xffff, ..SimQueue::default() }
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index % self.size)
    }

    /// Takes the next chain the driver has made available.
    pub(super) fn take(&mut self, memory: &SimIommu) -> Option<Chain> {
        if !self.enabled || memory.read16(self.at[1] + 2) == self.avail_idx {
            return None;
        }
        let head = memory.read16(self.at[1] + 4 + 2 * self.slot(self.avail_idx));
        self.avail_idx = self.avail_idx.wrapping_add(1);
        let (mut at, mut pieces) = (head, Vec::new());
        while pieces.len() < usize::from(self.size) {
            let mut bytes = [0; Descriptor::BYTES];
            memory.read(self.at[0] + 16 * self.slot(at), &mut bytes);
            let word = |i: usize| u64::from_ne_bytes(bytes[i..i + 8].try_into().expect("eight bytes"));
            let descriptor = Descriptor::from_words([word(0), word(8)]);
            pieces.push(descriptor);
            if descriptor.flags & DESC_F_NEXT == 0 {
                break;
            }
            at = descriptor.next;
        }
        Some(Chain { head, pieces })
    }

    /// Puts a chain back that can't be served yet.
    pub(super) fn untake(&mut self) {
        self.avail_idx = self.avail_idx.wrapping_sub(1);
    }

    /// Completes a chain, truthfully or as `fault` says.
    pub(super) fn complete(&mut self, memory: &SimIommu, head: u16, len: u32, fault: Option<Fault>) {
        let (mut id, mut len) = (u32::from(head), len);
        match fault {
            Some(Fault::Hang) => return,
            Some(Fault::GarbageLength(lie)) => len = lie,
            Some(Fault::ForeignId(lie)) => id = lie,
            _ => {}
        }
        if fault != Some(Fault::LateEntry) {
            let entry = self.at[2] + 4 + 8 * self.slot(self.used_idx);
            memory.write(entry, &(u64::from(id) | u64::from(len) << 32).to_le_bytes());
        }
        self.used_idx = self.used_idx.wrapping_add(match fault {
            Some(Fault::IndexJump(jump)) => jump,
            _ => 1,
        });
        memory.write(self.at[2] + 2, &self.used_idx.to_le_bytes());
    }

    /// Asks the driver to ring no doorbells, or to ring them again.
    pub(super) fn suppress_doorbells(&self, memory: &SimIommu, on: bool) {
        memory.write(self.at[2], &u16::from(on).to_le_bytes());
    }
}
