//! Plans that change, gates, ports that are not there, panics.

use super::*;

#[test]
fn closed_input_is_emptied_and_nothing_of_it_passes() {
    let mut work = merge(2, WAIT);
    if let Work::Merge { rx, .. } = &mut work {
        rx[0].closed = true;
    }
    let mut m = Bench::new(work, 16);
    m.send_marks(0, 0..40);
    m.send_marks(1, 100..140);
    m.turns(3);
    assert_eq!(m.marks(0), (100..116).collect::<Vec<_>>(), "the output is full, and the gate still drains");
    assert_eq!((m.rx_stats[0].drops(DropReason::Unplugged), m.stats.drops(DropReason::Unplugged)), (40, 40));
    m.close();
    for kind in 0..2 {
        let mut work = if kind == 0 {
            forward(VlanOp::None, VlanOp::None, WAIT)
        } else {
            classify(&PLAIN, &[(None, A, 0)])
        };
        match &mut work {
            Work::Forward { rx, .. } => rx.closed = true,
            Work::Classify { rx, .. } => rx[0].closed = true,
            _ => unreachable!("the two made above"),
        }
        let mut bench = Bench::new(work, 16);
        bench.send_marks(0, 0..40);
        bench.turns(2);
        assert!(bench.marks(0).is_empty());
        assert_eq!(bench.stats.drops(DropReason::Unplugged), 40);
        bench.close();
    }
}

#[test]
fn component_without_all_its_ports_does_not_poll() {
    let no_entries = classify(&PLAIN, &[]);
    let mut bench = Bench::new(no_entries, 16);
    bench.send_marks(0, 0..5);
    assert_eq!(bench.engine.turn(), Activity::Idle);
    assert_eq!(bench.stats.rx_packets.get(), 0);
    bench.close();
    // The output's half is away, as while a NIC restarts.
    for work in [forward(VlanOp::None, VlanOp::None, WAIT), merge(1, WAIT)] {
        let mut bench = Bench::new(work, 16);
        let again = |generation| {
            let work = forward(VlanOp::None, VlanOp::None, WAIT);
            Change { plan: plan(generation, vec![component("c", work)]), ..Change::default() }
        };
        let done = bench.engine.change(Change { tx_out: vec![TxSlot(0)], ..again(2) });
        assert_eq!((done.tx_out.len(), done.generation), (1, 2));
        bench.send_marks(0, 0..5);
        assert_eq!(bench.engine.turn(), Activity::Idle);
        bench.engine.change(Change { tx_in: done.tx_out, ..again(3) });
        bench.engine.turn();
        assert_eq!(bench.marks(0), [0, 1, 2, 3, 4], "nothing was lost meanwhile");
    }
}

/// Takes packets until told to panic.
struct Trap {
    armed: Arc<AtomicBool>,
    stats: SharedStats,
}

impl TxQueue for Trap {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        assert!(!self.armed.load(Ordering::Relaxed), "a planted fault");
        from.free_all(pool)
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

#[test]
fn panic_in_one_component_stops_only_it_until_the_next_plan() {
    let pool = pool(512);
    let mut cache = pool.cache();
    let mut engine = Engine::new(&pool);
    let armed = Arc::new(AtomicBool::new(false));
    let (mut bad_in, bad_rx) = source(64);
    let (mut good_in, good_rx) = source(64);
    let (mut good_out, good_tx) = sink(64);
    let bad = component(
        "bad",
        Work::Classify {
            rx: vec![rx_edge(0, VlanOp::None)],
            tx: vec![tx_edge(0, VlanOp::None, DROP), tx_edge(1, VlanOp::None, DROP)],
            table: table(&[(None, A, 0), (None, B, 1)]),
        },
    );
    let good =
        component("good", Work::Forward { rx: rx_edge(1, VlanOp::None), tx: tx_edge(2, VlanOp::None, WAIT) });
    let (bad_stats, good_stats) = (bad.stats.clone(), good.stats.clone());
    let trap = || Box::new(Trap { armed: armed.clone(), stats: QueueStats::shared() });
    engine.change(Change {
        plan: plan(1, vec![bad, good]),
        rx_in: vec![(RxSlot(0), bad_rx), (RxSlot(1), good_rx)],
        tx_in: vec![(TxSlot(0), trap()), (TxSlot(1), trap()), (TxSlot(2), good_tx)],
        ..Change::default()
    });
    armed.store(true, Ordering::Relaxed);
    for mark in 0..3 {
        assert!(bad_in.send(&mut cache, &frame(mac(BROADCAST), &[], 64, mark)));
        assert!(good_in.send(&mut cache, &frame(mac(A), &[], 64, mark)));
    }
    engine.turn();
    assert!(bad_stats.failed() && !good_stats.failed());
    assert_eq!(good_out.marks(&mut cache), [0, 1, 2]);
    let s = bad_stats.snapshot();
    assert_eq!((s.rx_packets, s.copies, s.tx_packets, s.drops["component_gone"]), (3, 3, 0, 6));
    assert!(bad_in.send(&mut cache, &frame(mac(A), &[], 64, 9)));
    engine.turn();
    assert_eq!(bad_stats.snapshot(), s, "skipped");

    armed.store(false, Ordering::Relaxed);
    let mut again = component("bad", forward(VlanOp::None, VlanOp::None, WAIT));
    again.stats = bad_stats.clone();
    engine.change(Change { plan: plan(2, vec![again]), ..Change::default() });
    engine.turn();
    let s = bad_stats.snapshot();
    assert_eq!((s.failed, s.rx_packets, s.tx_packets), (false, 4, 1), "the next plan runs it again");
    drop((engine, bad_in, good_in, good_out, cache));
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn frames_pending_on_a_removed_output_get_a_last_try_and_a_reason() {
    let mut f = Bench::new(forward(VlanOp::None, VlanOp::None, WAIT), 16);
    f.send_marks(0, 0..32);
    f.engine.turn();
    assert_eq!(f.stats.held(), 16);
    let mut got = Vec::new();
    let mut burst = Burst::new();
    (0..27).for_each(|_| burst.push(f.cache.alloc().unwrap()).unwrap());
    assert_eq!(spp_drivers::port::RxQueue::rx_burst(&mut f.sinks[0].0, &mut f.cache, &mut burst), 5);
    got.extend(burst.iter().skip(27).map(|packet| tags_and_mark(packet.data()).1));
    burst.free_all(&mut f.cache);
    let done = f.engine.change(Change { tx_out: vec![TxSlot(0)], ..Change::default() });
    assert_eq!((done.tx_out.len(), done.old.components.len()), (1, 1));
    got.extend(f.marks(0));
    assert_eq!(got, (0..21).collect::<Vec<_>>(), "five more found room");
    assert_eq!((f.stats.drops(DropReason::ComponentGone), f.stats.held()), (11, 0));
    assert_eq!(f.tx_stats[0].drops(DropReason::ComponentGone), 11);
    drop(done);
    f.close();
}

#[test]
fn pending_frames_stay_through_a_change_that_leaves_their_output_alone() {
    let mut f = Bench::new(forward(VlanOp::None, VlanOp::None, WAIT), 16);
    f.send_marks(0, 0..32);
    f.engine.turn();
    let mut next = component("c", forward(VlanOp::None, VlanOp::None, WAIT));
    next.stats = f.stats.clone();
    f.engine.change(Change { plan: plan(2, vec![next]), ..Change::default() });
    assert_eq!(f.stats.held(), 16);
    let mut marks = f.marks(0);
    f.engine.turn();
    marks.extend(f.marks(0));
    assert_eq!(marks, (0..32).collect::<Vec<_>>());
    f.close();
}
