//! Frames that end in a component, each with its reason.

use super::*;

#[test]
fn runt_frame_is_dropped_and_counted_by_every_component() {
    // Q12: 1 to 13 bytes.
    let works = || {
        [
            forward(VlanOp::None, VlanOp::None, WAIT),
            forward(VlanOp::Del, VlanOp::Add { vid: 1, pcp: 0 }, WAIT),
            merge(1, WAIT),
            classify(&PLAIN, &[(None, "default", 0)]),
            mirror(VlanOp::None, VlanOp::None),
        ]
    };
    for work in works() {
        let mut bench = Bench::new(work, 64);
        let whole = frame(mac(A), &[], 64, 5);
        for n in 1..14 {
            bench.send(0, &whole[..n]);
        }
        bench.send(0, &whole);
        bench.engine.turn();
        assert_eq!(bench.marks(0), [5], "the frame behind the runts passes");
        assert_eq!(bench.stats.drops(DropReason::Runt), 13);
        assert_eq!(bench.rx_stats[0].drops(DropReason::Runt), 13);
        bench.close();
    }
}

#[test]
fn tagged_frame_cut_within_its_tag_is_a_runt_where_tags_matter() {
    let cut = &frame(mac(A), &[tag(100)], 64, 0)[..16];
    for work in [classify(&PLAIN, &[(None, "default", 0)]), forward(VlanOp::None, VlanOp::Del, WAIT)] {
        let mut bench = Bench::new(work, 64);
        bench.send(0, cut);
        bench.engine.turn();
        assert_eq!(bench.stats.drops(DropReason::Runt), 1);
        bench.close();
    }
}

#[test]
fn reserved_vlan_and_unknown_destination_are_counted_at_component_and_edge() {
    // Q2, Q3, Q4: counters, no log lines.
    let mut c = Bench::new(classify(&PLAIN, &[(Some(7), A, 0)]), 64);
    c.send(0, &frame(mac(A), &[tag(4095)], 64, 0));
    c.send(0, &frame(mac(A), &[], 64, 1));
    c.send(0, &frame(mac(BROADCAST), &[], 64, 2));
    c.send(0, &frame(mac(A), &[tag(7)], 64, 3));
    c.engine.turn();
    assert_eq!(c.marks(0), [3]);
    let (edge, whole) = (c.rx_stats[0].snapshot().drops, c.stats.snapshot().drops);
    assert_eq!((edge["reserved_vlan"], edge["unknown_destination"]), (1, 2));
    assert_eq!((whole["reserved_vlan"], whole["unknown_destination"]), (1, 2));
    c.close();
}

#[test]
fn frame_without_room_for_a_tag_is_dropped_once_and_counted() {
    // The original frees such a frame twice.
    for (work, at_tx) in [
        (forward(VlanOp::Add { vid: 1, pcp: 0 }, VlanOp::None, WAIT), false),
        (forward(VlanOp::None, VlanOp::Add { vid: 1, pcp: 0 }, WAIT), true),
        (classify(&[VlanOp::Add { vid: 1, pcp: 0 }], &[(None, "default", 0)]), true),
    ] {
        let mut bench = Bench::new(work, 64);
        let mut tight = bench.cache.alloc().unwrap();
        tight.reserve(3).unwrap();
        tight.append(&frame(mac(A), &[], 64, 0)).unwrap();
        let mut burst = Burst::new();
        burst.push(tight).unwrap();
        assert_eq!(bench.sources[0].0.tx_burst(&mut bench.cache, &mut burst), 1);
        bench.send_marks(0, 1..2);
        bench.engine.turn();
        assert_eq!(bench.marks(0), [1]);
        let edge = if at_tx { &bench.tx_stats[0] } else { &bench.rx_stats[0] };
        assert_eq!(
            (edge.drops(DropReason::NoRoomForTag), bench.stats.drops(DropReason::NoRoomForTag)),
            (1, 1)
        );
        bench.close();
    }
}

#[test]
fn copies_that_find_no_buffer_are_counted() {
    let entries = [(None, A, 0), (None, B, 1), (None, "default", 2)];
    // Outputs that change nothing share the frame; those that tag it need a buffer each, but for the last.
    let mut c = Bench::new(classify(&PLAIN, &entries), 64);
    c.send(0, &frame(mac(BROADCAST), &[], 64, 9));
    let hoard: Vec<_> = std::iter::from_fn(|| c.cache.alloc()).collect();
    c.engine.turn();
    assert_eq!([c.marks(0), c.marks(1), c.marks(2)], [[9], [9], [9]]);
    drop(hoard);
    c.close();
    let mut c = Bench::new(classify(&[VlanOp::Add { vid: 1, pcp: 0 }; 3], &entries), 64);
    c.send(0, &frame(mac(BROADCAST), &[], 64, 9));
    let hoard: Vec<_> = std::iter::from_fn(|| c.cache.alloc()).collect();
    c.engine.turn();
    assert_eq!((c.marks(0).len(), c.marks(1).len(), c.marks(2)), (0, 0, vec![9]));
    assert_eq!(c.stats.drops(DropReason::NoBuffer), 2);
    assert_eq!(
        (c.tx_stats[0].drops(DropReason::NoBuffer), c.tx_stats[1].drops(DropReason::NoBuffer)),
        (1, 1)
    );
    drop(hoard);
    c.close();
}
