//! The driver's side of a virtio ring, split (virtio 1.2, 2.7) or packed (virtio 1.2, 2.8), good or bad.
//!
//! A chain is laid out and made available exactly as described; whatever else an attack wants to write, it
//! writes over it. Belongs to one thread; others may scribble in the same memory.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::memory::{At, SharedMemory};

/// The descriptor goes on in another one.
pub const NEXT: u16 = 1;
/// The device writes it.
pub const WRITE: u16 = 2;
/// It holds a table.
pub const INDIRECT: u16 = 4;
/// Packed: made available, with the driver's wrap counter.
pub const AVAIL: u16 = 1 << 7;
/// Packed: used, with the device's wrap counter.
pub const USED: u16 = 1 << 15;

/// Where the parts of ring `index` are: room for 1024 descriptors.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Descriptor table or packed ring.
    pub desc: At,
    /// Available ring, or the driver's event suppression.
    pub driver: At,
    /// Used ring, or the device's event suppression.
    pub device: At,
}

/// Bytes of the ring region given to each ring.
const PLACE_BYTES: u64 = 0x1_0000;

impl Place {
    /// The place of ring `index` (below 64).
    pub fn of(index: usize) -> Place {
        assert!(index < 64);
        let start = At(PLACE_BYTES * index as u64);
        Place { desc: start, driver: start.plus(0x8000), device: start.plus(0xa000) }
    }
}

/// How descriptors are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Table, available ring, used ring.
    Split,
    /// One ring.
    Packed,
}

impl Layout {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Split => "split",
            Layout::Packed => "packed",
        }
    }
}

/// One descriptor, as an attack describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desc {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// WRITE and INDIRECT; NEXT is added where a chain goes on.
    pub flags: u16,
    /// Split: the link written instead of the right one.
    pub next: Option<u16>,
}

impl Desc {
    /// One the device reads.
    pub fn read(addr: u64, len: u32) -> Desc {
        Desc { addr, len, flags: 0, next: None }
    }

    /// One the device writes.
    pub fn write(addr: u64, len: u32) -> Desc {
        Desc { flags: WRITE, ..Desc::read(addr, len) }
    }

    /// One that names a table of `n_bytes`.
    pub fn table(addr: u64, n_bytes: u32) -> Desc {
        Desc { flags: INDIRECT, ..Desc::read(addr, n_bytes) }
    }

    /// With more flags.
    pub fn with(self, flags: u16) -> Desc {
        Desc { flags: self.flags | flags, ..self }
    }

    /// With a link of its own.
    pub fn linked(self, next: u16) -> Desc {
        Desc { next: Some(next), ..self }.with(NEXT)
    }

    /// As in memory; `last` is `next` in split rings and `flags` in packed ones.
    fn bytes(addr: u64, len: u32, third: u16, last: u16) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&third.to_le_bytes());
        bytes[14..].copy_from_slice(&last.to_le_bytes());
        bytes
    }
}

/// What the device gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returned {
    /// Buffer id, or head.
    pub id: u16,
    /// Bytes it says it wrote.
    pub len: u32,
}

/// One ring.
pub struct Ring {
    /// Its arrangement.
    pub layout: Layout,
    /// Where it is.
    pub place: Place,
    /// Descriptors.
    pub size: u16,
    memory: Arc<SharedMemory>,
    /// Split: free-running available index. Packed: position.
    avail: u16,
    /// Split: free-running used index. Packed: position.
    used: u16,
    /// Packed: the driver's wrap counters, of `avail` and `used`.
    wrap: (bool, bool),
    /// Split: the descriptor that comes next.
    slot: u16,
    /// Descriptors with the device.
    out: u16,
    /// Chains with the device: id, descriptors.
    chains: VecDeque<(u16, u16)>,
}

impl Ring {
    /// A fresh ring a few descriptors before its index wraps.
    pub fn new(memory: Arc<SharedMemory>, index: usize, layout: Layout, size: u16) -> Ring {
        let place = Place::of(index);
        memory.fill(place.desc, PLACE_BYTES as usize, 0);
        let start = match layout {
            Layout::Split => 65_530,
            Layout::Packed => size.saturating_sub(6),
        };
        let ring = Ring {
            layout,
            place,
            size,
            memory,
            avail: start,
            used: start,
            wrap: (true, true),
            slot: 0,
            out: 0,
            chains: VecDeque::new(),
        };
        if layout == Layout::Split {
            ring.memory.store16(place.device.plus(2), start);
            ring.publish(start);
        }
        ring
    }

    /// What SET_VRING_BASE says: the next available and the next used entry, the latter for packed rings only.
    pub fn base(&self) -> u32 {
        match self.layout {
            Layout::Split => u32::from(self.avail),
            Layout::Packed => {
                let half = |at: u16, wrap: bool| u32::from(at) | u32::from(wrap) << 15;
                half(self.avail, self.wrap.0) | half(self.used, self.wrap.1) << 16
            }
        }
    }

    /// Free-running available index (split) or position (packed).
    pub fn avail(&self) -> u16 {
        self.avail
    }

    /// Descriptors free for chains.
    pub fn room(&self) -> u16 {
        self.size.saturating_sub(self.out)
    }

    /// Chains with the device.
    pub fn n_out(&self) -> usize {
        self.chains.len()
    }

    /// The id the next chain gets.
    pub fn next_id(&self) -> u16 {
        match self.layout {
            Layout::Split => self.slot,
            Layout::Packed => self.avail,
        }
    }

    /// Makes a chain available; returns its id, or `None` when there is no room.
    pub fn push(&mut self, chain: &[Desc]) -> Option<u16> {
        if chain.is_empty() || usize::from(self.room()) < chain.len() {
            return None;
        }
        let id = match self.layout {
            Layout::Split => self.push_split(chain),
            Layout::Packed => self.push_packed(chain),
        };
        self.out += chain.len() as u16;
        self.chains.push_back((id, chain.len() as u16));
        Some(id)
    }

    fn push_split(&mut self, chain: &[Desc]) -> u16 {
        let head = self.slot;
        for (i, desc) in chain.iter().enumerate() {
            let next = self.slot.wrapping_add(1) % self.size;
            let more = if i + 1 < chain.len() { NEXT } else { 0 };
            self.put(
                self.slot,
                Desc::bytes(desc.addr, desc.len, desc.flags | more, desc.next.unwrap_or(next)),
            );
            self.slot = next;
        }
        self.offer(head);
        head
    }

    fn push_packed(&mut self, chain: &[Desc]) -> u16 {
        // Ids are the position of a chain's first descriptor: unique among those with the device.
        let (first, first_wrap) = (self.avail, self.wrap.0);
        let first_flags = self.write_packed(chain, first);
        debug_assert_eq!(first_flags & AVAIL != 0, first_wrap);
        self.memory.store16(self.desc_at(first).plus(14), first_flags);
        first
    }

    /// Writes a chain's descriptors at the current position; the first one's flags come last and are returned.
    fn write_packed(&mut self, chain: &[Desc], id: u16) -> u16 {
        let mut first_flags = 0;
        for (i, desc) in chain.iter().enumerate() {
            let more = if i + 1 < chain.len() { NEXT } else { 0 };
            let phase = if self.wrap.0 { AVAIL } else { USED };
            let flags = desc.flags | more | phase;
            if i == 0 {
                // Everything but the flags, which make it available.
                let bytes = Desc::bytes(desc.addr, desc.len, id, 0);
                self.memory.write(self.desc_at(self.avail), &bytes[..14]);
                first_flags = flags;
            } else {
                self.put(self.avail, Desc::bytes(desc.addr, desc.len, id, flags));
            }
            self.avail += 1;
            if self.avail == self.size {
                (self.avail, self.wrap.0) = (0, !self.wrap.0);
            }
        }
        first_flags
    }

    /// Packed: makes a chain available under any id.
    pub fn push_as(&mut self, id: u16, chain: &[Desc]) {
        assert_eq!(self.layout, Layout::Packed);
        let first = self.avail;
        let flags = self.write_packed(chain, id);
        self.memory.store16(self.desc_at(first).plus(14), flags);
        self.out += chain.len() as u16;
        self.chains.push_back((id, chain.len() as u16));
    }

    /// Split: puts a head into the available ring and moves the index, whatever head says.
    pub fn offer(&mut self, head: u16) {
        let at = self.place.driver.plus(4 + 2 * u64::from(self.avail % self.size));
        self.memory.store16(at, head);
        self.avail = self.avail.wrapping_add(1);
        self.publish(self.avail);
    }

    /// Split: as [`offer`](Self::offer), for a chain laid out by hand that uses up no descriptor of ours.
    pub fn offer_crafted(&mut self, head: u16) {
        self.offer(head);
        self.chains.push_back((head, 0));
    }

    /// Split: writes the available index, true or not.
    pub fn publish(&self, index: u16) {
        self.memory.store16(self.place.driver.plus(2), index);
    }

    /// Where a descriptor of the table or the packed ring is.
    pub fn desc_at(&self, slot: u16) -> At {
        self.place.desc.plus(16 * u64::from(slot))
    }

    fn put(&self, slot: u16, bytes: [u8; 16]) {
        self.memory.write(self.desc_at(slot), &bytes);
    }

    /// Split: writes a descriptor of the table without offering it.
    pub fn craft(&self, slot: u16, desc: Desc) {
        self.put(slot, Desc::bytes(desc.addr, desc.len, desc.flags, desc.next.unwrap_or(0)));
    }

    /// The next thing the device gave back. With in-order rings one entry may stand for several chains.
    pub fn take(&mut self) -> Option<Returned> {
        let returned = match self.layout {
            Layout::Split => self.take_split(),
            Layout::Packed => self.take_packed(),
        }?;
        // Chains come back in order, or (in-order, batched) the last of a batch comes back for all.
        let position = self.chains.iter().position(|(id, _)| *id == returned.id);
        let n = position.map_or(1, |at| at + 1).min(self.chains.len());
        let freed: u16 = self.chains.drain(..n).map(|(_, n)| n).sum();
        self.out = self.out.saturating_sub(freed);
        Some(returned)
    }

    fn take_split(&mut self) -> Option<Returned> {
        if self.memory.load16(self.place.device.plus(2)) == self.used {
            return None;
        }
        let at = self.place.device.plus(4 + 8 * u64::from(self.used % self.size));
        self.used = self.used.wrapping_add(1);
        Some(Returned { id: self.memory.load32(at) as u16, len: self.memory.load32(at.plus(4)) })
    }

    fn take_packed(&mut self) -> Option<Returned> {
        let at = self.desc_at(self.used);
        let flags = self.memory.load16(at.plus(14));
        let expected = if self.wrap.1 { AVAIL | USED } else { 0 };
        if flags & (AVAIL | USED) != expected || self.chains.is_empty() {
            return None;
        }
        let returned = Returned { id: self.memory.load16(at.plus(12)), len: self.memory.load32(at.plus(8)) };
        let position = self.chains.iter().position(|(id, _)| *id == returned.id);
        let n = position.map_or(1, |at| at + 1).min(self.chains.len());
        let skipped: u16 = self.chains.iter().take(n).map(|(_, n)| *n).sum();
        self.used += skipped;
        if self.used >= self.size {
            (self.used, self.wrap.1) = (self.used - self.size, !self.wrap.1);
        }
        Some(returned)
    }

    /// Everything given back so far.
    pub fn take_all(&mut self) -> Vec<Returned> {
        let most = 2 * usize::from(self.size);
        std::iter::from_fn(|| self.take()).take(most).collect()
    }

    /// Says at which index calls are wanted (split, with EVENT_IDX), or writes the driver's suppression area.
    pub fn write_event(&self, value: u32) {
        match self.layout {
            Layout::Split => {
                let at = self.place.driver.plus(4 + 2 * u64::from(self.size));
                self.memory.store16(at, value as u16);
                self.memory.store16(self.place.driver, (value >> 16) as u16);
            }
            Layout::Packed => self.memory.store32(self.place.driver, value),
        }
    }
}

/// Writes an indirect table. Packed tables go from entry to entry without links.
pub fn write_table(memory: &SharedMemory, at: At, layout: Layout, entries: &[Desc]) {
    for (i, desc) in entries.iter().enumerate() {
        let more = if i + 1 < entries.len() { NEXT } else { 0 };
        let next = desc.next.unwrap_or(i as u16 + 1);
        let bytes = match layout {
            Layout::Split => Desc::bytes(desc.addr, desc.len, desc.flags | more, next),
            Layout::Packed => Desc::bytes(desc.addr, desc.len, 0, desc.flags),
        };
        memory.write(at.plus(16 * i as u64), &bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(layout: Layout) -> Ring {
        Ring::new(Arc::new(SharedMemory::new().unwrap()), 0, layout, 8)
    }

    #[test]
    fn split_chain_is_linked_and_offered_over_the_index_wrap() {
        let mut ring = ring(Layout::Split);
        for turn in 0..10u16 {
            let head = ring.push(&[Desc::read(0x1000, 12), Desc::write(0x2000, 60)]).unwrap();
            let memory = &ring.memory;
            assert_eq!(memory.load16(ring.desc_at(head).plus(12)), NEXT);
            assert_eq!(memory.load16(ring.desc_at(head).plus(14)), (head + 1) % 8);
            assert_eq!(memory.load16(ring.place.driver.plus(2)), 65_531u16.wrapping_add(turn));
            let used = ring.place.device.plus(4 + 8 * u64::from(65_530u16.wrapping_add(turn) % 8));
            memory.store32(used, u32::from(head));
            memory.store32(used.plus(4), 7);
            memory.store16(ring.place.device.plus(2), 65_531u16.wrapping_add(turn));
            assert_eq!(ring.take(), Some(Returned { id: head, len: 7 }));
            assert_eq!((ring.take(), ring.room()), (None, 8));
        }
    }

    #[test]
    fn packed_chain_flips_its_phase_at_the_wrap_and_comes_back() {
        let mut ring = ring(Layout::Packed);
        assert_eq!(ring.base(), 0x8002_8002);
        let mut wrap = true;
        for _ in 0..6 {
            let at = ring.avail;
            let id = ring.push(&[Desc::read(0x1000, 12), Desc::read(0x2000, 60)]).unwrap();
            let flags = ring.memory.load16(ring.desc_at(at).plus(14));
            assert_eq!(flags, NEXT | if wrap { AVAIL } else { USED });
            assert_eq!(ring.take(), None);
            // The device answers in the chain's first slot.
            ring.memory.store16(ring.desc_at(at).plus(12), id);
            ring.memory.store32(ring.desc_at(at).plus(8), 9);
            ring.memory.store16(ring.desc_at(at).plus(14), if wrap { AVAIL | USED } else { 0 });
            assert_eq!(ring.take(), Some(Returned { id, len: 9 }));
            wrap ^= ring.avail == 0;
            assert_eq!(ring.room(), 8);
        }
    }

    #[test]
    fn full_ring_takes_no_chain() {
        for layout in [Layout::Split, Layout::Packed] {
            let mut ring = ring(layout);
            assert!(ring.push(&[Desc::read(0, 1); 5]).is_some());
            assert!(ring.push(&[Desc::read(0, 1); 4]).is_none());
            assert!(ring.push(&[Desc::read(0, 1); 3]).is_some());
        }
    }
}
