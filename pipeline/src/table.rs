//! The classifier's table: (VLAN, destination) to outputs. Immutable, read by one core.
//!
//! Exact addresses are in one open-addressing hash of 16-byte slots, at most half full, so a look-up
//! touches one cache line nearly always. What a frame without an exact entry gets is worked
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

/// Where frames go. Built by [`TableBuilder`].
pub struct Table {
    slots: Box<[Slot]>,
    /// 64 - log2 of the number of slots.
    shift: u32,
    vlans: Box<[Vlan; N_VLANS]>,
    lists: Box<[u16]>,
    n_tx: u16,
    n_entries: usize,
}

#[inline(always)]
const fn key(vid: u16, mac: u64) -> u64 {
    (vid as u64) << 48 | mac
}

/// Folded multiplication: each bit of the key reaches the top bits, which choose the slot.
#[inline(always)]
const fn hash(key: u64) -> u64 {
    let product = key as u128 * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}

impl Table {
    /// Where a frame goes. `vid` is 0 for untagged and priority-tagged frames and below
    /// 4095; `dst` as in [`MacAddr::to_u64`].
    #[inline(always)]
    pub fn route(&self, vid: u16, dst: u64) -> Route<'_> {
        if let Some(tx) = self.exact(key(vid, dst)) {
            return Route::One(tx);
        }
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

    #[inline(always)]
    fn one(&self, tx: u16) -> Route<'_> {
        if tx == NONE { Route::Drop(DropReason::UnknownDestination) } else { Route::One(tx) }
    }

    #[inline(always)]
    fn exact(&self, key: u64) -> Option<u16> {
        let mask = self.slots.len() - 1;
        let mut index = (hash(key) >> self.shift) as usize & mask;
        // Ends: at least half of the slots are free.
        loop {
            let slot = self.slots[index & mask];
            if slot.key == key {
                return Some(slot.tx);
            }
            if slot.key == FREE {
                return None;
            }
            index += 1;
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
        let n_slots = (self.exact.len() * 2).next_power_of_two().max(2);
        let shift = 64 - n_slots.trailing_zeros();
        let mut slots = vec![Slot { key: FREE, tx: NONE }; n_slots].into_boxed_slice();
        for (&(vid, mac), &tx) in &self.exact {
            let key = key(vid, mac);
            let mut index = (hash(key) >> shift) as usize;
            while slots[index & (n_slots - 1)].key != FREE {
                index += 1;
            }
            slots[index & (n_slots - 1)] = Slot { key, tx };
        }
        let (vlans, lists) = self.build_vlans();
        Table { slots, shift, vlans, lists, n_tx: self.n_tx, n_entries: self.n_entries }
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0a]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0b]);
    const UNKNOWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x99]);
    const GROUP: MacAddr = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    const NOWHERE: Route = Route::Drop(DropReason::UnknownDestination);

    fn table(entries: &[(Option<u16>, Dst, usize)]) -> Table {
        let mut builder = TableBuilder::new();
        entries.iter().for_each(|&(vid, dst, tx)| builder.add(vid, dst, tx).unwrap());
        builder.build()
    }

    fn route(table: &Table, vid: u16, dst: MacAddr) -> Route<'_> {
        table.route(vid, dst.to_u64())
    }

    #[test]
    fn group_frames_go_to_every_output_of_the_vlan_and_to_the_general_default() {
        // Q1
        let t = table(&[
            (Some(100), Dst::Mac(A), 0),
            (Some(200), Dst::Mac(A), 1),
            (None, Dst::Mac(B), 2),
            (None, Dst::Default, 3),
        ]);
        assert_eq!(route(&t, 100, MacAddr::BROADCAST), Route::Each(&[0, 3]));
        assert_eq!(route(&t, 200, GROUP), Route::Each(&[1, 3]));
        assert_eq!(route(&t, 0, GROUP), Route::Each(&[2, 3]));
        assert_eq!(route(&t, 300, GROUP), Route::One(3), "an unregistered VLAN is not spread");
    }

    #[test]
    fn unknown_unicast_goes_to_its_vlans_default_then_to_the_general_one_then_nowhere() {
        // Q2
        let mut entries =
            vec![(Some(100), Dst::Default, 0), (Some(200), Dst::Mac(A), 1), (None, Dst::Mac(B), 2)];
        let without = table(&entries);
        assert_eq!(route(&without, 100, UNKNOWN), Route::One(0));
        assert_eq!(route(&without, 200, UNKNOWN), NOWHERE);
        assert_eq!(route(&without, 0, UNKNOWN), NOWHERE);
        assert_eq!(route(&without, 300, B), NOWHERE, "an untagged entry is not for tagged frames");
        entries.push((None, Dst::Default, 3));
        let with = table(&entries);
        assert_eq!(route(&with, 100, UNKNOWN), Route::One(0));
        assert_eq!(route(&with, 200, UNKNOWN), Route::One(3));
        assert_eq!(route(&with, 0, UNKNOWN), Route::One(3));
        assert_eq!(route(&with, 300, B), Route::One(3));
    }

    #[test]
    fn empty_table_drops_group_frames_too() {
        // Q3: a drop reason, and nothing is logged.
        let t = table(&[]);
        assert!(t.is_empty());
        assert_eq!((route(&t, 0, GROUP), route(&t, 1, GROUP), route(&t, 0, A)), (NOWHERE, NOWHERE, NOWHERE));
    }

    #[test]
    fn output_with_several_addresses_gets_each_of_them_and_one_copy_of_group_frames() {
        // Q7
        let t = table(&[
            (Some(100), Dst::Mac(A), 0),
            (Some(100), Dst::Mac(B), 0),
            (Some(101), Dst::Mac(A), 0),
            (Some(100), Dst::Mac(UNKNOWN), 1),
        ]);
        assert_eq!((route(&t, 100, A), route(&t, 100, B)), (Route::One(0), Route::One(0)));
        assert_eq!(route(&t, 100, GROUP), Route::Each(&[0, 1]));
        assert_eq!(route(&t, 101, GROUP), Route::One(0));
        assert_eq!((t.n_entries(), t.n_tx()), (4, 2));
    }

    #[test]
    fn address_00_00_00_00_00_01_is_an_address_like_any_other() {
        // Q8. It is no group address: the group bit is in the first byte.
        let one = MacAddr([0, 0, 0, 0, 0, 1]);
        let t = table(&[(None, Dst::Mac(one), 0), (None, Dst::Default, 1), (Some(5), Dst::Mac(one), 2)]);
        assert_eq!(route(&t, 0, one), Route::One(0));
        assert_eq!(route(&t, 0, UNKNOWN), Route::One(1));
        assert_eq!(route(&t, 5, one), Route::One(2));
        let zero = MacAddr([0; 6]);
        assert_eq!(route(&table(&[(None, Dst::Mac(zero), 0)]), 0, zero), Route::One(0));
    }

    #[test]
    fn registered_group_address_goes_only_to_its_output() {
        let t = table(&[(None, Dst::Mac(GROUP), 1), (None, Dst::Mac(A), 0), (None, Dst::Default, 2)]);
        assert_eq!(route(&t, 0, GROUP), Route::One(1));
        assert_eq!(route(&t, 0, MacAddr::BROADCAST), Route::Each(&[0, 1, 2]));
    }

    #[test]
    fn of_two_outputs_with_one_address_the_higher_gets_it_whatever_the_order() {
        for entries in [
            [(None, Dst::Mac(A), 0), (None, Dst::Mac(A), 1)],
            [(None, Dst::Mac(A), 1), (None, Dst::Mac(A), 0)],
        ] {
            let t = table(&entries);
            assert_eq!(route(&t, 0, A), Route::One(1));
            assert_eq!(route(&t, 0, GROUP), Route::Each(&[0, 1]));
        }
        let t = table(&[(None, Dst::Default, 4), (None, Dst::Default, 2)]);
        assert_eq!((route(&t, 0, A), route(&t, 0, GROUP)), (Route::One(4), Route::Each(&[2, 4])));
    }

    #[test]
    fn vlan_ids_beyond_4094_have_no_entries_and_no_route() {
        assert_eq!(TableBuilder::new().add(Some(4095), Dst::Default, 0), Err(TableError::BadVlan(4095)));
        assert_eq!(TableBuilder::new().add(None, Dst::Default, 70_000), Err(TableError::TooManyOutputs));
        let t = table(&[(None, Dst::Default, 0)]);
        assert_eq!(t.route(4095, A.to_u64()), Route::Drop(DropReason::ReservedVlan));
        assert_eq!(route(&t, 4094, A), Route::One(0));
    }

    #[test]
    fn hundred_thousand_entries_over_four_thousand_vlans_are_all_found() {
        // Q21, and the kind of addresses a cloud has: one prefix, consecutive.
        let mac = |i: u32| MacAddr([0xfa, 0x16, 0x3e, (i >> 16) as u8, (i >> 8) as u8, i as u8]);
        let vid = |i: u32| (1 + i % 4_000) as u16;
        let n = 100_000;
        let mut builder = TableBuilder::new();
        (0..n).for_each(|i| builder.add(Some(vid(i)), Dst::Mac(mac(i)), (i % 1_000) as usize).unwrap());
        let t = builder.build();
        assert!((0..n).all(|i| route(&t, vid(i), mac(i)) == Route::One((i % 1_000) as u16)));
        assert!((0..n).all(|i| route(&t, vid(i + 1), mac(i)) == NOWHERE));
        let longest = longest_run(&t);
        assert!(longest < 64, "{longest} slots in a row are taken");
    }

    /// The most slots any look-up can have to read.
    fn longest_run(table: &Table) -> usize {
        let taken = table.slots.iter().chain(&table.slots).map(|slot| slot.key != FREE);
        let run = |(longest, now): (usize, usize), taken| {
            let now = if taken { now + 1 } else { 0 };
            (longest.max(now), now)
        };
        taken.fold((0, 0), run).0
    }

    /// The rules as they are written down, one after the other, over a plain list.
    fn by_the_rules(entries: &[(Option<u16>, Dst, usize)], vid: u16, dst: MacAddr) -> Vec<u16> {
        let of = |vid: u16| entries.iter().filter(move |e| e.0.unwrap_or(0) == vid);
        let last = |vid: u16, dst: Dst| of(vid).filter(|e| e.1 == dst).map(|e| e.2 as u16).max();
        let general = last(0, Dst::Default);
        let tagged_general = if vid != 0 { general } else { None };
        if of(vid).next().is_none() {
            return general.into_iter().collect();
        }
        if let Some(exact) = last(vid, Dst::Mac(dst)) {
            return vec![exact];
        }
        if dst.is_group() {
            let all = of(vid).map(|e| e.2 as u16).chain(tagged_general);
            return all.collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        }
        last(vid, Dst::Default).or(tagged_general).into_iter().collect()
    }

    fn any_dst() -> impl Strategy<Value = Dst> {
        prop_oneof![2 => any_mac().prop_map(Dst::Mac), 1 => Just(Dst::Default)]
    }

    fn any_mac() -> impl Strategy<Value = MacAddr> {
        (0u8..2, 0u8..6).prop_map(|(group, last)| MacAddr([group, 0, 0, 0, 0, last]))
    }

    proptest! {
        #[test]
        fn any_table_routes_by_the_rules(
            entries in prop::collection::vec((prop::option::of(0u16..4), any_dst(), 0usize..5), 0..24),
            vid in 0u16..5,
            dst in any_mac(),
        ) {
            let table = table(&entries);
            let got = match route(&table, vid, dst) {
                Route::One(tx) => vec![tx],
                Route::Each(outputs) => outputs.to_vec(),
                Route::Drop(reason) => {
                    prop_assert_eq!(reason, DropReason::UnknownDestination);
                    vec![]
                }
            };
            prop_assert_eq!(got, by_the_rules(&entries, vid, dst));
        }
    }
}
