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
    let mut entries = vec![(Some(100), Dst::Default, 0), (Some(200), Dst::Mac(A), 1), (None, Dst::Mac(B), 2)];
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
    for entries in
        [[(None, Dst::Mac(A), 0), (None, Dst::Mac(A), 1)], [(None, Dst::Mac(A), 1), (None, Dst::Mac(A), 0)]]
    {
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
    let n = if is_random { i.wrapping_mul(0x9e_3779) ^ i.wrapping_mul(0x9e_3779) >> 11 & 0x1fff } else { i };
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
            assert!(fetched == output || fetched == NONE, "entry {i} is not for {fetched}");
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
fn entries_find_slots_whatever_their_addresses_have_to_do_with_their_vlans() {
    // VLAN and address, this as a number that reads like the address.
    type Numbering = fn(u64) -> (u64, u64);
    let numberings: [(&str, Numbering); 7] = [
        ("the same addresses on each VLAN", |i| (1 + i % 4000, 0xfa16_3e00_0000 + i / 4000)),
        ("a VLAN after the other", |i| (1 + i / 25, 0xfa16_3e00_0000 + i % 25)),
        ("made of the VLAN's number", |i| (1 + i % 4000, 0xfa16_3e00_0000 + ((i % 4000) << 8) + i / 4000)),
        ("steps of 256", |i| (100, 0x0200_0000_0000 + (i << 8))),
        ("counted in the upper half", |i| (100, (i << 25) | 0x12_3456)),
        ("three parts alike", |i| (1 + i % 10, (i * 0x1_0001_0001) & ((1 << 48) - 1))),
        ("random", |i| (1 + i % 4000, i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16)),
    ];
    for (name, numbering) in numberings {
        for n in [9_000, 52_000, 100_000] {
            let entry = |i| {
                let (vid, number) = numbering(i);
                let bytes: [u8; 8] = number.to_be_bytes();
                let mac = MacAddr(*bytes.last_chunk().expect("8 are more than 6"));
                (key(vid as u16, mac.to_u64()), 5)
            };
            let entries: BTreeMap<u64, u16> = (0..n).map(entry).collect();
            let (n, (_, left)) = (entries.len(), Far::build(entries.into_iter()));
            assert!(left.len() * 500 < n, "{name}: {} of {n} found no slot", left.len());
        }
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
