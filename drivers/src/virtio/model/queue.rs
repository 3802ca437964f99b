//! The device side of both rings, as the model walks them (virtio 1.2, 2.7 and 2.8).

use super::{Lie, Shown};
use crate::nic::model::{Card, Fault};
use crate::virtio::desc::{DESC_F_NEXT, DESC_F_WRITE, Descriptor};

const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;

/// A place in a ring: free-running (split), slot and lap (packed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Place {
    at: u16,
    wrap: bool,
}

/// One queue: the registers the driver writes, and where the device is.
#[derive(Debug, Clone, Default)]
pub(super) struct SimQueue {
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) vector: u16,
    /// Descriptors; avail ring or driver's event structure; used ring or device's event structure.
    pub(super) at: [u64; 3],
    packed: bool,
    avail: Place,
    used: Place,
    /// What shows the last completion, when that was put off: where, and what.
    late: Option<(u64, [u8; 2])>,
}

/// A chain the device has taken.
pub(super) struct Chain {
    id: u16,
    pub(super) pieces: Vec<Descriptor>,
    /// Where it began.
    from: Place,
}

impl Chain {
    /// Bytes of all pieces the device may read.
    pub(super) fn read(&self, card: &Card) -> Vec<u8> {
        let readable = self.pieces.iter().filter(|p| p.flags & DESC_F_WRITE == 0);
        readable.flat_map(|piece| card.read_bytes(piece.addr, piece.len as usize)).collect()
    }

    /// Room in the pieces the device may write.
    pub(super) fn room(&self) -> usize {
        self.pieces.iter().filter(|p| p.flags & DESC_F_WRITE != 0).map(|p| p.len as usize).sum()
    }

    /// Writes `bytes` to the writable pieces; returns how many fitted.
    pub(super) fn write(&self, card: &Card, mut bytes: &[u8]) -> u32 {
        let before = bytes.len();
        for piece in self.pieces.iter().filter(|p| p.flags & DESC_F_WRITE != 0) {
            let (now, rest) = bytes.split_at(bytes.len().min(piece.len as usize));
            card.write(piece.addr, now);
            bytes = rest;
        }
        (before - bytes.len()) as u32
    }
}

impl SimQueue {
    pub(super) fn new(size: u16) -> Self {
        SimQueue { size, vector: 0xffff, ..SimQueue::default() }
    }

    /// A packed ring starts in its first lap.
    pub(super) fn enable(&mut self, on: bool, packed: bool) {
        self.enabled = on;
        self.packed = packed;
        let start = Place { at: 0, wrap: true };
        (self.avail, self.used) = (start, start);
    }

    fn step(&self, place: Place, n: u16) -> Place {
        if !self.packed {
            return Place { at: place.at.wrapping_add(n), ..place };
        }
        match (place.at + n).checked_sub(self.size) {
            None => Place { at: place.at + n, ..place },
            Some(at) => Place { at, wrap: !place.wrap },
        }
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index % self.size)
    }

    /// Takes the next chain the driver has made available.
    pub(super) fn take(&mut self, card: &Card) -> Option<Chain> {
        if !self.enabled {
            return None;
        }
        if self.packed { self.take_packed(card) } else { self.take_split(card) }
    }

    fn descriptor(&self, card: &Card, at: u16) -> Descriptor {
        Descriptor::from_words(card.read_descriptor(self.at[0] + 16 * self.slot(at)))
    }

    fn take_split(&mut self, card: &Card) -> Option<Chain> {
        let from = self.avail;
        let idx = u16::from_le_bytes(card.read(self.at[1] + 2));
        if idx == from.at {
            return None;
        }
        let head = u16::from_le_bytes(card.read(self.at[1] + 4 + 2 * self.slot(from.at)));
        self.avail = self.step(from, 1);
        let (mut at, mut pieces) = (head, Vec::new());
        while pieces.len() < usize::from(self.size) {
            let descriptor = self.descriptor(card, at);
            pieces.push(descriptor);
            if descriptor.flags & DESC_F_NEXT == 0 {
                break;
            }
            at = descriptor.next;
        }
        Some(Chain { id: head, pieces, from })
    }

    /// The id is in the field that a split ring has its flags in, the flags where it has `next`; that of the last
    /// descriptor counts (2.8.6).
    fn take_packed(&mut self, card: &Card) -> Option<Chain> {
        let from = self.avail;
        let first = self.descriptor(card, from.at);
        if (first.next & F_AVAIL != 0) != from.wrap || (first.next & F_USED != 0) == from.wrap {
            return None;
        }
        let (mut pieces, mut at) = (Vec::new(), from);
        while pieces.len() < usize::from(self.size) {
            let Descriptor { addr, len, flags: id, next: flags } = self.descriptor(card, at.at);
            at = self.step(at, 1);
            pieces.push(Descriptor { addr, len, flags, next: 0 });
            if flags & DESC_F_NEXT == 0 {
                self.avail = at;
                return Some(Chain { id, pieces, from });
            }
        }
        panic!("the driver's chain never ends");
    }

    /// Puts chains back, from this one on, that can't be served yet.
    pub(super) fn untake(&mut self, first: &Chain) {
        self.avail = first.from;
    }

    /// Completes a chain, truthfully or not.
    pub(super) fn complete(&mut self, card: &Card, chain: &Chain, len: u32, shown: Shown) {
        self.complete_all(card, std::slice::from_ref(chain), len, shown);
    }

    /// One completion for chains that were taken one after the other, the last of which has `len` bytes.
    pub(super) fn complete_all(&mut self, card: &Card, chains: &[Chain], len: u32, shown: Shown) {
        let Some(last) = chains.last() else { return };
        if shown.fault == Some(Fault::Hang) {
            return;
        }
        let id = match shown.lie {
            Some(Lie::ForeignId(id)) => id,
            _ => last.id.into(),
        };
        let len = match shown.fault {
            Some(Fault::GarbageLength(len)) => len.into(),
            _ => len,
        };
        if self.packed {
            let n: usize = chains.iter().map(|chain| chain.pieces.len()).sum();
            self.show_packed(card, id as u16, len, n as u16, shown);
        } else {
            self.show_split(card, id, len, chains.len() as u16, shown);
        }
    }

    fn show_split(&mut self, card: &Card, id: u32, len: u32, n: u16, shown: Shown) {
        if shown.lie != Some(Lie::LateEntry) {
            let entry = self.at[2] + 4 + 8 * self.slot(self.used.at);
            card.write(entry, &(u64::from(id) | u64::from(len) << 32).to_le_bytes());
        }
        let jump = match shown.fault {
            Some(Fault::IndexJump(jump)) => jump,
            _ => n,
        };
        self.used = self.step(self.used, jump);
        self.show(card, self.at[2] + 2, self.used.at.to_le_bytes(), shown);
    }

    /// Length and id first, then the flags (2.8.3).
    fn show_packed(&mut self, card: &Card, id: u16, len: u32, n: u16, shown: Shown) {
        let place = match shown.fault {
            Some(Fault::IndexJump(jump)) => self.step(self.used, jump % self.size),
            _ => self.used,
        };
        let at = self.at[0] + 16 * self.slot(place.at);
        card.write(at + 8, &len.to_le_bytes());
        card.write(at + 12, &id.to_le_bytes());
        let flags = if place.wrap { F_AVAIL | F_USED } else { 0 };
        self.used = self.step(self.used, n);
        self.show(card, at + 14, flags.to_le_bytes(), shown);
    }

    fn show(&mut self, card: &Card, at: u64, bytes: [u8; 2], shown: Shown) {
        if shown.lie == Some(Lie::LateCompletion) {
            self.late = Some((at, bytes));
            return;
        }
        self.late = None;
        card.write(at, &bytes);
    }

    /// Shows what was put off.
    pub(super) fn show_late(&mut self, card: &Card) {
        if let Some((at, bytes)) = self.late.take() {
            card.write(at, &bytes);
        }
    }

    /// Asks the driver to ring no doorbells, or to ring them again.
    pub(super) fn suppress_doorbells(&self, card: &Card, on: bool) {
        let at = if self.packed { self.at[2] + 2 } else { self.at[2] };
        card.write(at, &u16::from(on).to_le_bytes());
    }
}
