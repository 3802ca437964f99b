//! Outputs that are full.

use super::*;

#[test]
fn classifier_drops_at_a_full_output_and_serves_the_others() {
    // Q19: counted by port and reason.
    let mut c = Bench::new(classify(&PLAIN, &[(None, A, 0), (None, B, 1)]), 8);
    for mark in 0..10 {
        c.send(0, &frame(mac(A), &[], 64, mark));
        c.send(0, &frame(mac(B), &[], 64, 100 + mark));
        if mark % 5 == 4 {
            c.engine.turn();
            let marks = c.marks(1);
            assert_eq!(marks, (100 + mark - 4..=100 + mark).collect::<Vec<_>>());
        }
    }
    assert_eq!(c.marks(0), (0..8).collect::<Vec<_>>());
    assert_eq!((c.tx_stats[0].drops(DropReason::RingFull), c.tx_stats[1].snapshot().total_drops()), (2, 0));
    assert_eq!((c.stats.drops(DropReason::RingFull), c.stats.held()), (2, 0));
    c.close();
}

#[test]
fn forward_stops_taking_while_its_output_is_full_and_loses_nothing() {
    let mut f = Bench::new(forward(VlanOp::None, VlanOp::None, WAIT), 16);
    f.send_marks(0, 0..100);
    f.turns(10);
    assert_eq!(f.engine.turn(), Activity::Blocked);
    assert_eq!(f.rx_stats[0].packets.get(), 32, "one burst was taken, the rest is still in the ring");
    assert_eq!(f.stats.held(), 16);
    let mut marks = f.marks(0);
    while marks.len() < 100 {
        f.engine.turn();
        marks.extend(f.marks(0));
    }
    assert_eq!(marks, (0..100).collect::<Vec<_>>());
    assert_eq!((f.stats.snapshot().total_drops(), f.stats.held()), (0, 0));
    f.close();
}

#[test]
fn wait_ends_at_its_limit_with_the_edges_reason() {
    for (work, sources) in [
        (forward(VlanOp::None, VlanOp::None, wait_for(std::time::Duration::ZERO)), 1),
        (merge(2, wait_for(std::time::Duration::ZERO)), 2),
    ] {
        let mut bench = Bench::new(work, 16);
        (0..sources).for_each(|source| bench.send_marks(source, 0..40));
        while bench.stats.rx_packets.get() < 40 * sources as u64 || bench.stats.held() > 0 {
            bench.engine.turn();
        }
        let expected = 40 * sources as u64 - 16;
        assert_eq!(bench.stats.drops(DropReason::GuestRingFull), expected);
        assert_eq!(bench.tx_stats[0].drops(DropReason::GuestRingFull), expected);
        bench.close();
    }
}
