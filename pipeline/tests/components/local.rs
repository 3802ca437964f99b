//! From guest to guest inside the node.

use super::*;

/// Guests 0 (A) and 1 (B) of VLAN 7 and guest 2 (C, flat, alone) to the wire (sink 0) or inside (sink 1).
fn merge_local() -> Work {
    let guest = |slot: u16, vid: u16| {
        let vlan = if vid == 0 { VlanOp::None } else { VlanOp::Add { vid, pcp: 0 } };
        RxEdge { from: Origin::Guest { id: slot, vid }, ..rx_edge(slot, vlan) }
    };
    let inside = TxEdge { full: WhenFull::Drop(DropReason::LocalRingFull), ..tx_edge(1, VlanOp::None, DROP) };
    Work::MergeLocal {
        rx: vec![guest(0, 7), guest(1, 7), guest(2, 0)],
        tx: [tx_edge(0, VlanOp::None, WAIT), inside],
        guests: table(&[(Some(7), A, 0), (Some(7), B, 1), (None, C, 2)]),
    }
}

#[test]
fn guests_of_one_vlan_reach_each_other_inside_and_all_else_goes_to_the_wire() {
    let mut m = Bench::new(merge_local(), 64);
    let plain = |dst: &str, mark| frame(mac(dst), &[], 64, mark);
    // Who sends, the frame, and whether it comes out at the wire and inside.
    let cases = [
        (0, plain(B, 1), false, true),
        (0, plain(A, 2), true, false),                   // its own address
        (0, plain("02:00:00:00:00:99", 3), true, false), // nobody's here
        (0, plain(C, 4), true, false),                   // another network's
        (0, plain(BROADCAST, 5), true, true),
        (0, frame(mac(B), &[tag(9)], 64, 6), false, true), // its tag is overwritten
        (1, plain(A, 7), false, true),
        (2, plain(A, 8), true, false),
        (2, frame(mac(A), &[tag(7)], 64, 9), true, false), // a flat guest is in no VLAN
        (2, plain(BROADCAST, 10), true, false),            // alone in its network
        (0, frame(mac(B), &[], 64, 11)[..14].to_vec(), false, true),
    ];
    for (source, frame, to_wire, inside) in cases {
        m.send(source, &frame);
        m.turns(1);
        let seen = [0, 1].map(|sink| m.sinks[sink].drain(&mut m.cache));
        assert_eq!(
            [seen[0].len(), seen[1].len()],
            [usize::from(to_wire), usize::from(inside)],
            "{frame:02x?}"
        );
        if source < 2 {
            // As the wire would have it: tagged.
            assert!(seen.iter().flatten().all(|frame| frame[12..16] == [0x81, 0, 0, 7]));
        }
    }
    m.close();
}

#[test]
fn full_local_ring_drops_with_its_reason_and_never_holds_up_the_wire() {
    let mut m = Bench::new(merge_local(), 8);
    let mut at_wire = Vec::new();
    for mark in 0..40 {
        m.send(0, &frame(mac(B), &[], 64, mark));
        m.send(0, &frame(mac(BROADCAST), &[], 64, 100 + mark));
        m.send(1, &frame(mac("02:00:00:00:00:99"), &[], 64, 200 + mark));
        m.turns(1);
        at_wire.extend(m.marks(0));
    }
    assert_eq!(at_wire.len(), 80, "every group frame and every unknown one");
    let dropped = m.tx_stats[1].drops(DropReason::LocalRingFull);
    assert_eq!((dropped, m.stats.drops(DropReason::LocalRingFull)), (72, 72));
    assert_eq!(m.marks(1), [0, 100, 1, 101, 2, 102, 3, 103]);
    m.close();
}

#[test]
fn local_frames_keep_their_order_among_frames_to_the_wire() {
    let mut m = Bench::new(merge_local(), 256);
    for mark in 0..96 {
        let dst = [A, B, BROADCAST, "02:00:00:00:00:99"][mark as usize * 7 % 4];
        m.send(0, &frame(mac(dst), &[], 64, mark));
    }
    m.turns(3);
    let (wire, inside) = (m.marks(0), m.marks(1));
    assert!(wire.is_sorted() && inside.is_sorted());
    assert_eq!((wire.len(), inside.len()), (72, 48));
    m.close();
}

#[test]
fn checksum_work_goes_along_inside() {
    let mut m = Bench::new(merge_local(), 64);
    let offload =
        spp_drivers::dma::Offload { flags: 1, csum_start: 34, csum_offset: 16, ..Default::default() };
    for dst in [B, BROADCAST] {
        let mut p = packet(&mut m.cache, &frame(mac(dst), &[], 64, 1));
        p.set_offload(Some(offload));
        let mut burst = Burst::new();
        burst.push(p).unwrap();
        assert_eq!(m.sources[0].0.tx_burst(&mut m.cache, &mut burst), 1);
    }
    m.turns(1);
    let mut out = Burst::new();
    m.sinks[1].0.rx_burst(&mut m.cache, &mut out);
    let moved = spp_drivers::dma::Offload { csum_start: 38, ..offload };
    assert!(out.len() == 2 && out.iter().all(|packet| packet.offload() == Some(moved)));
    drop(out);
    m.close();
}

#[test]
fn classifier_sends_local_group_frames_to_all_but_their_sender() {
    let mut work = classify(&PLAIN, &[(Some(7), A, 0), (Some(7), B, 1), (Some(7), C, 2), (Some(8), B, 1)]);
    if let Work::Classify { rx, tx, .. } = &mut work {
        rx[0].from = Origin::Local;
        (0..).zip(tx).for_each(|(id, tx)| tx.guest = Some(id));
    }
    let mut c = Bench::new(work, 64);
    let local = |c: &mut Bench, frame: &[u8], origin: u16| {
        let mut p = packet(&mut c.cache, frame);
        p.set_origin(origin);
        let mut burst = Burst::new();
        burst.push(p).unwrap();
        assert_eq!(c.sources[0].0.tx_burst(&mut c.cache, &mut burst), 1);
        c.turns(1);
        [0, 1, 2].map(|sink| c.marks(sink).len())
    };
    let group = frame(mac(BROADCAST), &[tag(7)], 64, 1);
    assert_eq!(local(&mut c, &group, 0), [0, 1, 1]);
    assert_eq!(local(&mut c, &group, 2), [1, 1, 0]);
    assert_eq!(local(&mut c, &group, 77), [1, 1, 1]);
    // The only member of a VLAN gets nothing of its own back; unicast is not looked at for who sent it.
    assert_eq!(local(&mut c, &frame(mac(BROADCAST), &[tag(8)], 64, 1), 1), [0, 0, 0]);
    assert_eq!(local(&mut c, &frame(mac(A), &[tag(7)], 64, 1), 1), [1, 0, 0]);
    assert_eq!(c.stats.drops(DropReason::UnknownDestination), 1);
    c.close();
}
