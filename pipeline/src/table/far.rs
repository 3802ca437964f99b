//! The exact addresses of a large table, where each look-up reads one slot of 8 bytes and never a second one.
//!
//! Entries are few beside the look-ups and do not change, so that they are laid out without collisions ("perfect hashing"
//! with pilots, as CHD and PTHash do it). The upper bits of a key's hash name a group of some four entries. A byte per group, its
//! pilot, was chosen when the table was built such that each entry of the group has a slot of its own, at low bits XOR pilot. The
//! hash loses nothing of the key, so that a slot holds only the bits that its number does not tell, beside the output.
//! Nothing is left that a processor would have to guess, and what a whole burst needs is on its way before the
//! first slot is read.
//!
//! Built by the control thread, read by one core.

use spp_drivers::prefetch;

use super::NONE;

/// Bits of an output in a slot. A slot's number has at least as many, so that it and the slot's other bits are a whole hash.
const OUTPUT_BITS: u32 = u16::BITS;

/// From this bit of a hash on, its bits choose the group. All bits of the key have reached them.
const GROUP_SHIFT: u32 = 40;

/// What a free slot holds. Some key may match it, and gets no output.
const FREE: u64 = NONE as u64;

/// A look-up whose slot is on its way: the hash, with the slot's number in its low bits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place(u64);

/// Outputs by key.
#[derive(Default)]
pub(super) struct Far {
    /// A place's bits above the output. A power of two of them, or none.
    slots: Box<[u64]>,
    /// A power of two of them, or none.
    pilots: Box<[u8]>,
}

/// An entry and its hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hashed {
    hash: u64,
    key: u64,
    tx: u16,
}

/// A permutation of the keys. Each bit of the key reaches the low bits, which choose the slot, and those that choose the group. Bits
/// that follow each other in operators' tables (addresses counted up, or made of their VLAN's number) are not to meet before
/// the multiplication: this shift and its neighbours leave nearly no entry of such tables without a slot, many others do.
#[inline(always)]
const fn mix(key: u64) -> u64 {
    let key = key.rotate_right(8);
    let product = (key ^ key >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

impl Far {
    /// Lays out entries, no two with one key. Second: those few that found no slot, as two with equal hashes but for bits that
    /// choose neither slot nor group.
    pub(super) fn build(entries: impl ExactSizeIterator<Item = (u64, u16)>) -> (Far, Vec<(u64, u16)>) {
        // At most four fifths are taken, so that the last groups find free slots too.
        let n_slots = (entries.len() * 5 / 4).next_power_of_two().max(1 << OUTPUT_BITS);
        let slots = vec![FREE; n_slots].into_boxed_slice();
        let mut far = Far { slots, pilots: vec![0; n_slots / 4].into_boxed_slice() };
        let mut all: Vec<_> = entries.map(|(key, tx)| Hashed { hash: mix(key), key, tx }).collect();
        all.sort_unstable_by_key(|entry| (far.group(entry.hash), far.slot(entry.hash)));
        let mut groups: Vec<_> = all.chunk_by(|a, b| far.group(a.hash) == far.group(b.hash)).collect();
        // The large ones first: they are harder to place.
        groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
        let mut left = Vec::new();
        for group in groups {
            left.extend(far.place(group).iter().map(|entry| (entry.key, entry.tx)));
        }
        (far, left)
    }

    /// Gives a group, in the order of its slots, a pilot, and its entries their slots. All of them are left when no pilot will do,
    /// as when two want one slot whatever the pilot.
    fn place<'a>(&mut self, group: &'a [Hashed]) -> &'a [Hashed] {
        if group.windows(2).any(|pair| self.slot(pair[0].hash) == self.slot(pair[1].hash)) {
            return group;
        }
        let is_free = |pilot, entry: &Hashed| self.slots[self.slot(entry.hash ^ u64::from(pilot))] == FREE;
        let mut pilots = 0..=u8::MAX;
        let Some(pilot) = pilots.find(|&pilot| group.iter().all(|entry| is_free(pilot, entry))) else {
            return group;
        };
        for entry in group {
            let place = entry.hash ^ u64::from(pilot);
            self.slots[self.slot(place)] = place >> OUTPUT_BITS << OUTPUT_BITS | u64::from(entry.tx);
        }
        let group = self.group(group[0].hash);
        self.pilots[group] = pilot;
        &[]
    }

    /// True for the default, false for one that was built.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    #[inline(always)]
    fn group(&self, hash: u64) -> usize {
        (hash >> GROUP_SHIFT) as usize & (self.pilots.len() - 1)
    }

    #[inline(always)]
    fn slot(&self, place: u64) -> usize {
        place as usize & (self.slots.len() - 1)
    }

    /// Has the slot fetched that [`get`](Self::get) will read. Not for an empty one.
    #[inline(always)]
    pub(super) fn fetch(&self, key: u64) -> Place {
        let hash = mix(key);
        let place = hash ^ u64::from(self.pilots[self.group(hash)]);
        prefetch(&self.slots[self.slot(place)]);
        Place(place)
    }

    /// The output, or NONE. Without a branch.
    #[inline(always)]
    pub(super) fn get(&self, place: Place) -> u16 {
        let slot = self.slots[self.slot(place.0)];
        if (slot ^ place.0) >> OUTPUT_BITS == 0 { slot as u16 } else { NONE }
    }
}
