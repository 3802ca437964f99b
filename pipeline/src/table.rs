//! The classifier's table: (VLAN, destination) to outputs. Immutable, read by one core.
//!
//! Exact addresses are in one open-addressing hash of 16-byte slots, at most half full, so a look-up
//! touches one cache line nearly always. Too many for the core's near caches are in one of 8-byte slots, which is
//! asked for a whole burst at once ([`Table::is_far`]). What a frame without an exact entry gets is worked
//! out per VLAN when the table is built: its default with the general default folded in, and the
//! list of outputs a group frame is copied to. No allocation, no division, no chain of rules per packet.
//!
//! The hash needs no secret: entries come from the operator alone, and what guests and the
//! wire choose is only looked up. A look-up's length is bounded by the longest run of
//! operator entries, whatever is asked.

use std::collections::BTreeMap;

use spp_drivers::MacAddr;
use spp_drivers::stats::DropReason;

use crate::frame::VID_RESERVED;

mod far;

use far::Far;
pub use far::Place;

/// Destination of a classifier entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dst {
    /// One address, unicast or group. Any address is allowed.
    Mac(MacAddr),
    /// Whatever has no entry of its own.
    Default,
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// To one output.
    One(u16),
    /// To each of these outputs (two or more), in ascending order.
    Each(&'a [u16]),
    /// Nowhere.
    Drop(DropReason),
}

/// An entry that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// VLAN ids end at 4094.
    #[error("VLAN id {0} can't have classifier entries: use 1 to 4094 (4095 is reserved, 802.1Q 9.6)")]
    BadVlan(u16),
    /// More outputs than a table can number.
    #[error("a classifier has at most {max} outputs", max = NONE)]
    TooManyOutputs,
}

/// "No output" among output numbers.
const NONE: u16 = u16::MAX;

/// Among output numbers: not one output, but several or none, or not known yet.
pub const ELSEWHERE: u16 = NONE;

/// Key of a free slot: no VLAN id is 0xffff.
const FREE: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Slot {
    key: u64,
    tx: u16,
}

/// What one VLAN does with frames that match no address.
#[derive(Clone, Copy)]
struct Vlan {
    /// Output of unknown unicast, or NONE.
    default: u16,
    /// Outputs of group frames: a range of `Table::lists`.
    n_group: u16,
    group_start: u32,
}

/// VLAN ids a frame can be looked up with: 0 (untagged) to 4094.
const N_VLANS: usize = VID_RESERVED as usize;

/// More addresses than this are far: from here on look-ups one by one wait for caches, and for wrong guesses of which of two
/// slots it will be. Cycles per look-up on a Cascade Lake, one by one and far: 4,000 entries 9.6 and 9.3, 8,000 12 and 9.3,
/// 16,000 27 and 9.4, 100,000 27 and 10.
const N_NEAR_MAX: usize = 8192;

/// So many slots even for a few entries: it takes luck for two of them to want the same.
const N_SLOTS_MIN: usize = 256;

/// Where frames go. Built by [`TableBuilder`].
pub struct Table {
    /// All exact addresses, or those few that found no slot in `far`. A power of two of them.
    slots: Box<[Slot]>,
    /// Exact addresses when there are many.
    far: Far,
    vlans: Box<[Vlan; N_VLANS]>,
    lists: Box<[u16]>,
    n_tx: u16,
    n_entries: usize,
}

/// Bits of the VLAN id in a key.
const VID_BITS: u32 = u16::BITS;

#[inline(always)]
const fn key(vid: u16, mac: u64) -> u64 {
    mac << VID_BITS | vid as u64
}

/// Folded multiplication: each bit of the key reaches the low bits, which choose the slot.
#[inline(always)]
const fn hash(key: u64) -> u64 {
    let product = key as u128 * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}

fn build_near(entries: &[(u64, u16)]) -> Box<[Slot]> {
    let n_slots = (entries.len() * 2).next_power_of_two().max(N_SLOTS_MIN);
    let mut slots = vec![Slot { key: FREE, tx: NONE }; n_slots].into_boxed_slice();
    for &(key, tx) in entries {
        let mut index = hash(key) as usize;
        while slots[index & (n_slots - 1)].key != FREE {
            index = index.wrapping_add(1);
        }
        slots[index & (n_slots - 1)] = Slot { key, tx };
    }
    slots
}

impl Table {
    /// Where a frame goes. `vid` is 0 for untagged and priority-tagged frames and below
    /// 4095; `dst` as in [`MacAddr::to_u64`].
    #[inline(always)]
    pub fn route(&self, vid: u16, dst: u64) -> Route<'_> {
        let key = key(vid, dst);
        match self.exact(key) {
            Some(tx) => Route::One(tx),
            None => self.route_others(key),
        }
    }

    /// Of a frame that is not among the near entries.
    #[inline(never)]
    fn route_others(&self, key: u64) -> Route<'_> {
        if self.is_far() {
            let tx = self.far.get(self.far.fetch(key));
            if tx != NONE {
                return Route::One(tx);
            }
        }
        let (vid, dst) = (key as u16, key >> VID_BITS);
        let Some(vlan) = self.vlans.get(usize::from(vid)) else {
            return Route::Drop(DropReason::ReservedVlan);
        };
        // The group bit is the lowest bit of the first byte, which is the lowest of the word.
        if dst & 1 == 0 {
            return self.one(vlan.default);
        }
        if vlan.n_group <= 1 {
            let only = self.lists.get(vlan.group_start as usize).copied();
            return self.one(if vlan.n_group == 0 { NONE } else { only.unwrap_or(NONE) });
        }
        let start = vlan.group_start as usize;
        match self.lists.get(start..start + usize::from(vlan.n_group)) {
            Some(list) => Route::Each(list),
            None => Route::Drop(DropReason::UnknownDestination),
        }
    }

    /// True for a table of which a whole burst's slots are to be [fetched](Self::fetch) before the first is
    /// [read](Self::route_fetched).
    #[inline(always)]
    pub fn is_far(&self) -> bool {
        !self.far.is_empty()
    }

    /// Has the slot fetched that [`route_fetched`](Self::route_fetched) will read. Panics unless the table [is
    /// far](Self::is_far).
    #[inline(always)]
    pub fn fetch(&self, vid: u16, dst: u64) -> Place {
        self.far.fetch(key(vid, dst))
    }

    /// The one output of an address that has an entry. [`ELSEWHERE`] may be anything but that: [`route`](Self::route) knows.
    #[inline(always)]
    pub fn route_fetched(&self, place: Place) -> u16 {
        self.far.get(place)
    }

    #[inline(always)]
    fn one(&self, tx: u16) -> Route<'_> {
        if tx == NONE { Route::Drop(DropReason::UnknownDestination) } else { Route::One(tx) }
    }

    #[inline(always)]
    fn exact(&self, key: u64) -> Option<u16> {
        let index = hash(key) as usize;
        let slot = self.slots[index & (self.slots.len() - 1)];
        match slot.key {
            found if found == key => Some(slot.tx),
            FREE => None,
            _ => self.exact_behind(index, key),
        }
    }

    /// Out of the way of those that find their first slot free, or theirs: nearly all.
    #[inline(never)]
    fn exact_behind(&self, mut index: usize, key: u64) -> Option<u16> {
        // Ends: at least half of the slots are free.
        loop {
            index = index.wrapping_add(1);
            let slot = self.slots[index & (self.slots.len() - 1)];
            if slot.key == key {
                return Some(slot.tx);
            }
            if slot.key == FREE {
                return None;
            }
        }
    }

    /// Entries in it, defaults included.
    pub fn n_entries(&self) -> usize {
        self.n_entries
    }

    /// One more than the highest output that any entry names.
    pub fn n_tx(&self) -> usize {
        usize::from(self.n_tx)
    }

    /// True when every frame would be dropped.
    pub fn is_empty(&self) -> bool {
        self.n_entries == 0
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Table {{ entries: {}, slots: {}, outputs: {} }}",
            self.n_entries,
            self.slots.len(),
            self.n_tx
        )
    }
}

/// Gathers entries for a [`Table`]. Control thread only; it sorts and allocates.
#[derive(Debug, Clone, Default)]
pub struct TableBuilder {
    /// Output by (VLAN id or 0, address): the highest output that has it.
    exact: BTreeMap<(u16, u64), u16>,
    /// Per VLAN id or 0.
    vlans: BTreeMap<u16, VlanEntries>,
    n_entries: usize,
    n_tx: u16,
}

#[derive(Debug, Clone, Default)]
struct VlanEntries {
    default: Option<u16>,
    outputs: std::collections::BTreeSet<u16>,
}

impl TableBuilder {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry for output `tx_index`: any number of them per output. `vid` `None` is for untagged
    /// frames, as is VLAN id 0, which means "no VLAN" (802.1Q 9.6). Of two outputs with the
    /// same VLAN and destination the higher one gets the frames, and group frames go to both.
    pub fn add(&mut self, vid: Option<u16>, dst: Dst, tx_index: usize) -> Result<(), TableError> {
        let vid = vid.unwrap_or(0);
        if vid >= VID_RESERVED {
            return Err(TableError::BadVlan(vid));
        }
        let tx = u16::try_from(tx_index).ok().filter(|&tx| tx < NONE).ok_or(TableError::TooManyOutputs)?;
        let vlan = self.vlans.entry(vid).or_default();
        vlan.outputs.insert(tx);
        match dst {
            Dst::Default => vlan.default = vlan.default.max(Some(tx)),
            Dst::Mac(mac) => {
                let owner = self.exact.entry((vid, mac.to_u64())).or_insert(tx);
                *owner = tx.max(*owner);
            }
        }
        self.n_entries += 1;
        self.n_tx = self.n_tx.max(tx + 1);
        Ok(())
    }

    /// The table.
    pub fn build(&self) -> Table {
        let entries = self.exact.iter().map(|(&(vid, mac), &tx)| (key(vid, mac), tx));
        let (far, near) = if entries.len() > N_NEAR_MAX {
            Far::build(entries)
        } else {
            (Far::default(), entries.collect())
        };
        let slots = build_near(&near);
        let (vlans, lists) = self.build_vlans();
        Table { slots, far, vlans, lists, n_tx: self.n_tx, n_entries: self.n_entries }
    }

    /// Folds the general default (the default of untagged) into every VLAN.
    fn build_vlans(&self) -> (Box<[Vlan; N_VLANS]>, Box<[u16]>) {
        let general = self.vlans.get(&0).and_then(|untagged| untagged.default);
        let mut lists: Vec<u16> = general.into_iter().collect();
        let elsewhere =
            Vlan { default: general.unwrap_or(NONE), group_start: 0, n_group: u16::from(general.is_some()) };
        let mut vlans = Box::new([elsewhere; N_VLANS]);
        for (&vid, entries) in &self.vlans {
            let mut outputs = entries.outputs.clone();
            outputs.extend(general);
            let group_start = lists.len() as u32;
            lists.extend(&outputs);
            vlans[usize::from(vid)] = Vlan {
                default: entries.default.or(general).unwrap_or(NONE),
                group_start,
                n_group: outputs.len() as u16,
            };
        }
        (vlans, lists.into_boxed_slice())
    }
}

#[cfg(test)]
mod tests;
