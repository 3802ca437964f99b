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

/// Where frames go. Built by [`TableBuilder`].
pub struct Table {
    /// All exact addresses, or those few that found no slot in `far`.
    slots: Box<[Slot]>,
    /// 64 - log2 of the number of slots.
    shift: u32,
    /// Exact addresses when there are many.
    far: Far,
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

/// The slots, and 64 - log2 of their number.
fn build_near(entries: &[(u64, u16)]) -> (Box<[Slot]>, u32) {
    let n_slots = (entries.len() * 2).next_power_of_two().max(2);
    let shift = 64 - n_slots.trailing_zeros();
    let mut slots = vec![Slot { key: FREE, tx: NONE }; n_slots].into_boxed_slice();
    for &(key, tx) in entries {
        let mut index = (hash(key) >> shift) as usize;
        while slots[index & (n_slots - 1)].key != FREE {
            index += 1;
        }
        slots[index & (n_slots - 1)] = Slot { key, tx };
    }
    (slots, shift)
}

impl Table {
    /// Where a frame goes. `vid` is 0 for untagged and priority-tagged frames and below
    /// 4095; `dst` as in [`MacAddr::to_u64`].
    #[inline(always)]
    pub fn route(&self, vid: u16, dst: u64) -> Route<'_> {
        if let Some(tx) = self.exact(key(vid, dst)) {
            return Route::One(tx);
        }
        if self.is_far()
            && let Some(tx) = self.exact_far(vid, dst)
        {
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

    /// The one output of an address that has an entry. `None` may be anything but that: [`route`](Self::route) knows.
    #[inline(always)]
    pub fn route_fetched(&self, place: Place) -> Option<u16> {
        let tx = self.far.get(place);
        (tx != NONE).then_some(tx)
    }

    /// Out of the way of the look-ups in a near table.
    #[inline(never)]
    fn exact_far(&self, vid: u16, dst: u64) -> Option<u16> {
        self.route_fetched(self.fetch(vid, dst))
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
        let entries = self.exact.iter().map(|(&(vid, mac), &tx)| (key(vid, mac), tx));
        let (far, near) = if entries.len() > N_NEAR_MAX {
            Far::build(entries)
        } else {
            (Far::default(), entries.collect())
        };
        let (slots, shift) = build_near(&near);
        let (vlans, lists) = self.build_vlans();
        Table { slots, shift, far, vlans, lists, n_tx: self.n_tx, n_entries: self.n_entries }
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

    /// A cloud's addresses: one prefix, then consecutive numbers or (OpenStack) random ones. `i` below 2^24.
    fn cloud_mac(i: u32, is_random: bool) -> MacAddr {
        // An odd factor: a permutation of 24 bits.
        let n =
            if is_random { i.wrapping_mul(0x9e_3779) ^ i.wrapping_mul(0x9e_3779) >> 11 & 0x1fff } else { i };
        MacAddr([0xfa, 0x16, 0x3e, (n >> 16) as u8, (n >> 8) as u8, n as u8])
    }

    #[test]
    fn hundred_thousand_entries_over_any_number_of_vlans_are_all_found_and_no_others() {
        // Q21
        let n = 100_000;
        for (n_vlans, is_random) in [(1, false), (4_000, false), (1, true), (4_000, true)] {
            let vid = |i: u32| (1 + i % n_vlans) as u16;
            let mac = |i| cloud_mac(i, is_random);
            let mut builder = TableBuilder::new();
            builder.add(None, Dst::Default, 2_000).unwrap();
            (0..n).for_each(|i| builder.add(Some(vid(i)), Dst::Mac(mac(i)), (i % 1_000) as usize).unwrap());
            let t = builder.build();
            assert!(t.is_far());
            let general = Route::One(2_000);
            for i in 0..n {
                let output = (i % 1_000) as u16;
                assert_eq!(route(&t, vid(i), mac(i)), Route::One(output), "entry {i}");
                let fetched = t.route_fetched(t.fetch(vid(i), mac(i).to_u64()));
                assert!(fetched.is_none_or(|tx| tx == output), "entry {i} is not for {fetched:?}");
                assert_eq!(route(&t, vid(i) + 1, mac(i)), general, "entry {i} is for its VLAN alone");
                assert_eq!(route(&t, vid(i), mac(i + n)), general, "address {i} has no entry");
            }
            let n_left = t.slots.iter().filter(|slot| slot.key != FREE).count();
            assert!(n_left < 100, "{n_left} of {n} entries found no slot");
            let longest = longest_run(&t);
            assert!(longest < 64, "{longest} slots in a row are taken");
        }
    }

    #[test]
    fn table_of_eight_thousand_entries_is_asked_entry_by_entry() {
        for (n, is_far) in [(N_NEAR_MAX, false), (N_NEAR_MAX + 1, true)] {
            let mut builder = TableBuilder::new();
            let mac = |i| cloud_mac(i, true);
            (0..n as u32).for_each(|i| builder.add(None, Dst::Mac(mac(i)), (i % 7) as usize).unwrap());
            let t = builder.build();
            assert_eq!(t.is_far(), is_far);
            assert!((0..n as u32).all(|i| route(&t, 0, mac(i)) == Route::One((i % 7) as u16)));
            let longest = longest_run(&t);
            assert!(longest < 64, "{longest} slots in a row are taken");
        }
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
