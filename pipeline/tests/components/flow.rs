//! What comes in goes out: order, tags, bursts.

use super::*;

#[test]
fn merge_with_one_input_and_classifier_with_one_output_work() {
    // Q20
    let mut m = Bench::new(merge(1, WAIT), 64);
    m.send_marks(0, 0..5);
    m.engine.turn();
    assert_eq!(m.marks(0), [0, 1, 2, 3, 4]);
    m.close();
    let mut c = Bench::new(classify(&[VlanOp::None], &[(None, A, 0)]), 64);
    c.send_marks(0, 0..5);
    c.engine.turn();
    assert_eq!(c.marks(0), [0, 1, 2, 3, 4]);
    c.close();
}

#[test]
fn order_is_kept_per_output_over_many_bursts() {
    let mut c = Bench::new(classify(&PLAIN, &[(None, A, 0), (None, B, 1), (None, "default", 2)]), 512);
    for mark in 0..200 {
        let dst = [A, B, "02:00:00:00:00:99", BROADCAST][mark as usize * 7 % 4];
        c.send(0, &frame(mac(dst), &[], 64, mark));
    }
    c.turns(7);
    for sink in 0..3 {
        let marks = c.marks(sink);
        assert!(marks.len() >= 100 && marks.is_sorted(), "{marks:?}");
    }
    c.close();
}

#[test]
fn each_vlan_operation_of_a_component_uses_its_own_parameters() {
    // Q11
    let add = |vid, pcp| VlanOp::Add { vid, pcp };
    let mut c = Bench::new(
        classify(
            &[add(300, 5), add(301, 2), VlanOp::Del],
            &[(None, A, 0), (None, B, 1), (None, "default", 2)],
        ),
        64,
    );
    c.send(0, &frame(mac(BROADCAST), &[], 64, 7));
    c.send(0, &frame(mac(BROADCAST), &[(0x8100, 0)], 64, 8));
    c.engine.turn();
    let tags = |bench: &mut Bench, sink: usize| -> Vec<Vec<Tag>> {
        bench.sinks[sink].drain(&mut bench.cache).iter().map(|frame| tags_and_mark(frame).0).collect()
    };
    assert_eq!(tags(&mut c, 0), vec![vec![(0x8100, 5 << 13 | 300)]; 2]);
    assert_eq!(tags(&mut c, 1), vec![vec![(0x8100, 2 << 13 | 301)]; 2]);
    assert_eq!(tags(&mut c, 2), vec![vec![]; 2]);
    c.close();
    let mut work = merge(2, WAIT);
    if let Work::Merge { rx, tx } = &mut work {
        (rx[0].vlan, rx[1].vlan, tx.vlan) = (add(10, 1), VlanOp::Del, VlanOp::None);
    }
    let mut m = Bench::new(work, 64);
    m.send(0, &frame(mac(A), &[], 64, 0));
    m.send(1, &frame(mac(A), &[tag(9)], 64, 1));
    m.engine.turn();
    assert_eq!(tags(&mut m, 0), [vec![(0x8100, 1 << 13 | 10)], vec![]]);
    m.close();
}

#[test]
fn burst_that_comes_in_goes_out_in_the_same_turn_as_one_burst() {
    // Q18: the policy is one burst per output and turn; no packet waits for others.
    let mut c = Bench::new(classify(&PLAIN, &[(None, A, 0)]), 64);
    c.send_marks(0, 0..20);
    assert_eq!(c.engine.turn(), Activity::Useful);
    assert_eq!((c.tx_stats[0].bursts.get(), c.tx_stats[0].packets.get()), (1, 20));
    assert_eq!(c.stats.snapshot().bursts, [0, 0, 0, 0, 1, 0]);
    assert_eq!(c.engine.turn(), Activity::Idle);
    c.close();
}

#[test]
fn merge_serves_every_input_though_its_output_takes_little() {
    let mut m = Bench::new(merge(4, WAIT), 32);
    (0..4).for_each(|source| m.send_marks(source, source as u32 * 1000..source as u32 * 1000 + 200));
    let mut marks = Vec::new();
    while marks.len() < 320 {
        m.engine.turn();
        marks.extend(m.marks(0));
    }
    for source in 0..4u32 {
        let mine: Vec<_> = marks.iter().filter(|&&mark| mark / 1000 == source).collect();
        assert!(mine.len() >= 64, "input {source} got {} of {}", mine.len(), marks.len());
        assert!(mine.is_sorted());
    }
    m.close();
}

#[test]
fn small_bursts_of_several_inputs_leave_as_one() {
    let mut m = Bench::new(merge(4, WAIT), 64);
    (0..4).for_each(|source| m.send_marks(source, 0..3));
    m.engine.turn();
    assert_eq!((m.tx_stats[0].bursts.get(), m.tx_stats[0].packets.get()), (1, 12));
    m.close();
}

#[test]
fn jumbo_frame_is_copied_whole() {
    let mut c = Bench::new(classify(&PLAIN, &[(None, A, 0), (None, B, 1)]), 64);
    let jumbo = frame(mac(BROADCAST), &[], 9000, 1);
    c.send(0, &jumbo);
    c.engine.turn();
    assert_eq!(c.sinks[0].drain(&mut c.cache), std::slice::from_ref(&jumbo));
    assert_eq!(c.sinks[1].drain(&mut c.cache), [jumbo]);
    c.close();
}

#[test]
fn classifier_of_many_addresses_treats_frames_like_one_of_few() {
    let entries = [(None, A, 0), (Some(7), B, 1), (None, "default", 2)];
    let many: Vec<String> =
        (0..10_000u32).map(|i| format!("06:00:00:00:{:02x}:{:02x}", i >> 8, i & 255)).collect();
    let far = entries.into_iter().chain(many.iter().map(|address| (Some(9), address.as_str(), 1)));
    let far = classify(&PLAIN, &far.collect::<Vec<_>>());
    assert!(matches!(&far, Work::Classify { table, .. } if table.is_far()));
    let run = |work| {
        let mut bench = Bench::new(work, 64);
        for (mark, (dst, tags)) in (0..).zip([
            (A, vec![]),
            (B, vec![tag(7)]),
            (B, vec![]),
            (BROADCAST, vec![tag(7)]),
            (BROADCAST, vec![tag(8)]),
            (A, vec![tag(4095)]),
            (A, vec![]),
        ]) {
            bench.send(0, &frame(mac(dst), &tags, 64, mark));
        }
        bench.send(0, &frame(mac(A), &[], 64, 7)[..13]);
        bench.turns(1);
        let marks = [0, 1, 2].map(|sink| bench.marks(sink));
        let drops = bench.stats.snapshot().drops;
        bench.close();
        (marks, drops)
    };
    let (marks, drops) = run(far);
    assert_eq!(marks, [vec![0, 6], vec![1, 3], vec![2, 3, 4]]);
    assert_eq!((drops["runt"], drops["reserved_vlan"]), (1, 1));
    assert_eq!((marks, drops), run(classify(&PLAIN, &entries)));
}
