//! Worker threads: placing, handing over under traffic, stopping, and what happens when they don't answer.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use spp_drivers::Burst;
use spp_drivers::dma::PoolCache;
use spp_drivers::port::RxQueue;
use spp_drivers::stats::{QueueStats, SharedStats};
use spp_pipeline::plan::*;
use spp_pipeline::worker::{Worker, WorkerConfig, WorkerError};
use support::*;

const A: &str = "02:00:00:00:00:0a";

fn folded(core: usize) -> WorkerConfig {
    WorkerConfig { core, fold: true, idle: Default::default(), name: format!("spp-core-{core}") }
}

fn forward(rx: u16, tx: u16) -> Work {
    Work::Forward { rx: rx_edge(rx, VlanOp::None), tx: tx_edge(tx, VlanOp::None, WAIT) }
}

/// Sends marks as fast as the ring takes them, until `stop`, at least one; returns how many.
fn pump(
    mut source: Source,
    pool: spp_drivers::dma::Pool,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<u32> {
    std::thread::spawn(move || {
        let mut cache = pool.cache();
        let mut mark = 0;
        while mark == 0 || !stop.load(Ordering::Relaxed) {
            if source.send(&mut cache, &frame(mac(A), &[], 64, mark)) {
                mark += 1;
            } else {
                std::thread::yield_now();
            }
        }
        mark
    })
}

/// Collects marks and checks that none is missing, doubled or out of order.
fn collect(
    mut sink: Sink,
    pool: spp_drivers::dma::Pool,
    received: Arc<AtomicUsize>,
    total: Arc<AtomicUsize>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut cache = pool.cache();
        let (mut next, until) = (0u32, Instant::now() + DEADLINE);
        while (next as usize) < total.load(Ordering::Relaxed) {
            assert!(Instant::now() < until, "{next} of {} arrived", total.load(Ordering::Relaxed));
            for mark in sink.marks(&mut cache) {
                assert_eq!(mark, next, "a frame was lost, doubled or overtaken");
                next += 1;
            }
            received.store(next as usize, Ordering::Relaxed);
            std::thread::yield_now();
        }
        assert!(sink.marks(&mut cache).is_empty());
    })
}

#[test]
fn changes_under_traffic_lose_nothing_on_untouched_ports() {
    let pool = pool(8192);
    let mut worker = Worker::spawn(folded(2), &pool).unwrap();
    let (steady_in, steady_rx) = source(64);
    let (steady_out, steady_tx) = sink(64);
    let plan_with = |generation, steady_first: bool, other: bool| {
        let mut components = vec![component("steady", forward(0, 0))];
        if other {
            components.insert(usize::from(steady_first), component("other", forward(1, 1)));
        }
        plan(generation, components)
    };
    let change = Change {
        plan: plan_with(1, true, false),
        rx_in: vec![(RxSlot(0), steady_rx)],
        tx_in: vec![(TxSlot(0), steady_tx)],
        ..Change::default()
    };
    assert_eq!(worker.change(change, DEADLINE).unwrap().generation, 1);
    let stop = Arc::new(AtomicBool::new(false));
    let (received, total) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
    let pump = pump(steady_in, pool.clone(), stop.clone());
    let collector = collect(steady_out, pool.clone(), received.clone(), total.clone());
    for round in 0..60u64 {
        let seen = received.load(Ordering::Relaxed);
        let (mut other_in, rx) = source(64);
        let (mut other_out, tx) = sink(64);
        let change = Change {
            plan: plan_with(2 * round + 2, round % 2 == 0, true),
            rx_in: vec![(RxSlot(1), rx)],
            tx_in: vec![(TxSlot(1), tx)],
            ..Change::default()
        };
        worker.change(change, DEADLINE).unwrap();
        let mut cache = pool.cache();
        assert!(other_in.send(&mut cache, &frame(mac(A), &[], 64, 77)));
        let until = Instant::now() + DEADLINE;
        while other_out.marks(&mut cache) != [77] {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
        let change = Change {
            plan: plan_with(2 * round + 3, true, false),
            rx_out: vec![RxSlot(1)],
            tx_out: vec![TxSlot(1)],
            ..Change::default()
        };
        let done = worker.change(change, DEADLINE).unwrap();
        assert_eq!((done.rx_out.len(), done.tx_out.len(), done.old.components.len()), (1, 1, 2));
        while received.load(Ordering::Relaxed) == seen {
            assert!(Instant::now() < until, "traffic goes on");
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let sent = pump.join().unwrap();
    total.store(sent as usize, Ordering::Relaxed);
    collector.join().unwrap();
    let done = worker.stop(DEADLINE).unwrap();
    assert_eq!((done.rx_out.len(), done.tx_out.len()), (1, 1));
    drop(done);
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn stop_returns_every_half_and_every_buffer() {
    let pool = pool(512);
    let mut worker = Worker::spawn(folded(2), &pool).unwrap();
    let mut change = Change::default();
    let mut outsides = Vec::new();
    for slot in 0..5 {
        let ((source, rx), (sink, tx)) = (source(16), sink(16));
        outsides.push((source, sink));
        change.rx_in.push((RxSlot(slot * 3), rx));
        change.tx_in.push((TxSlot(slot * 7), tx));
    }
    change.plan = plan(1, (0..5).map(|i| component("f", forward(i * 3, i * 7))).collect());
    worker.change(change, DEADLINE).unwrap();
    let mut cache = pool.cache();
    for (source, _) in &mut outsides {
        assert!(source.send(&mut cache, &frame(mac(A), &[], 64, 1)));
    }
    let done = worker.stop(DEADLINE).unwrap();
    let mut slots: Vec<_> = done.tx_out.iter().map(|half| half.0.0).collect();
    slots.sort_unstable();
    assert_eq!((done.rx_out.len(), slots), (5, vec![0, 7, 14, 21, 28]));
    drop((done, outsides, cache));
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn pinned_worker_runs_on_its_core() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..rustix::thread::CpuSet::MAX_CPU).rfind(|&cpu| allowed.is_set(cpu)).unwrap();
    let pool = pool(64);
    let config =
        WorkerConfig { core, fold: false, idle: Default::default(), name: format!("spp-core-{core}") };
    let mut worker = Worker::spawn(config, &pool).unwrap();
    let seen = Arc::new(AtomicUsize::new(usize::MAX));
    let probe = Box::new(Probe { cpu: seen.clone(), stats: QueueStats::shared() });
    let (_sink, tx) = sink(16);
    let change = Change {
        plan: plan(1, vec![component("probe", forward(0, 0))]),
        rx_in: vec![(RxSlot(0), probe)],
        tx_in: vec![(TxSlot(0), tx)],
        ..Change::default()
    };
    worker.change(change, DEADLINE).unwrap();
    let until = Instant::now() + DEADLINE;
    while seen.load(Ordering::Relaxed) == usize::MAX {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(seen.load(Ordering::Relaxed), core);
    assert!(worker.busy().total() > 0);
    worker.stop(DEADLINE).unwrap();
}

/// Notes the CPU it is polled on.
struct Probe {
    cpu: Arc<AtomicUsize>,
    stats: SharedStats,
}

impl RxQueue for Probe {
    fn rx_burst(&mut self, _pool: &mut PoolCache, _out: &mut Burst) -> usize {
        self.cpu.store(rustix::thread::sched_getcpu(), Ordering::Relaxed);
        0
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

#[test]
fn core_that_is_not_there_is_refused_with_the_remedy() {
    let pool = pool(64);
    for core in [1000, 100_000] {
        let refused = Worker::spawn(
            WorkerConfig { core, fold: false, idle: Default::default(), name: "spp-core".into() },
            &pool,
        );
        let text = refused.err().expect("no machine has that core").to_string();
        assert!(text.contains(&format!("core {core}")) && text.contains("--fold-cores"), "{text}");
        assert!(Worker::spawn(folded(core), &pool).is_ok(), "folded workers run anywhere");
    }
}

/// Holds its worker up until told to go on, and counts services of its control side.
struct Stuck {
    go: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    stats: SharedStats,
}

impl RxQueue for Stuck {
    fn rx_burst(&mut self, _pool: &mut PoolCache, _out: &mut Burst) -> usize {
        let until = Instant::now() + DEADLINE;
        while !self.go.load(Ordering::Relaxed) && Instant::now() < until {
            std::thread::yield_now();
        }
        0
    }

    fn poll_control(&mut self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

#[test]
fn change_that_is_not_acknowledged_in_time_times_out_and_its_halves_come_late() {
    let pool = pool(64);
    let mut worker = Worker::spawn(folded(2), &pool).unwrap();
    let (go, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let stuck = Stuck { go: go.clone(), served: served.clone(), stats: QueueStats::shared() };
    let (_sink, tx) = sink(16);
    let change = Change {
        plan: plan(1, vec![component("stuck", forward(0, 0))]),
        rx_in: vec![(RxSlot(0), Box::new(stuck))],
        tx_in: vec![(TxSlot(0), tx)],
        ..Change::default()
    };
    worker.change(change, DEADLINE).unwrap();
    let out = Change { plan: plan(2, vec![]), rx_out: vec![RxSlot(0)], ..Change::default() };
    let refused = worker.change(out, Duration::from_millis(20));
    assert!(matches!(refused, Err(WorkerError::Timeout { core: 2, generation: 2, .. })));
    // More changes than the mailbox holds wait with us.
    for generation in 3..30 {
        let empty = Change { plan: plan(generation, vec![]), ..Change::default() };
        assert!(worker.change(empty, Duration::ZERO).is_err());
    }
    assert!(worker.late().is_empty());
    go.store(true, Ordering::Relaxed);
    let done = worker.change(Change { plan: plan(30, vec![]), ..Change::default() }, DEADLINE).unwrap();
    assert_eq!((done.generation, done.rx_out.len()), (30, 0));
    let late = worker.late();
    assert_eq!(late.iter().map(|done| done.generation).collect::<Vec<_>>(), (2..30).collect::<Vec<_>>());
    assert_eq!(late[0].rx_out.len(), 1);
    worker.stop(DEADLINE).unwrap();
}

#[test]
fn halves_no_component_polls_are_served_all_the_same() {
    let pool = pool(64);
    let mut worker = Worker::spawn(folded(2), &pool).unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let idle = Stuck { go: Arc::default(), served: served.clone(), stats: QueueStats::shared() };
    let change = Change { rx_in: vec![(RxSlot(4), Box::new(idle))], ..Change::default() };
    worker.change(change, DEADLINE).unwrap();
    let until = Instant::now() + DEADLINE;
    while served.load(Ordering::Relaxed) < 3 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
    worker.stop(DEADLINE).unwrap();
}

#[test]
#[should_panic(expected = "slot 0 already holds a queue half")]
fn half_on_top_of_another_is_a_bug_caught_in_set_up() {
    let pool = pool(64);
    let mut worker = Worker::spawn(folded(2), &pool).unwrap();
    for _ in 0..2 {
        let (_source, rx) = source(16);
        let _ = worker.change(Change { rx_in: vec![(RxSlot(0), rx)], ..Change::default() }, DEADLINE);
    }
}

#[test]
fn dropped_handle_ends_the_thread_and_frees_its_halves() {
    let pool = pool(64);
    let mut worker = Worker::spawn(folded(2), &pool).unwrap();
    let (source, rx) = source(16);
    worker.change(Change { rx_in: vec![(RxSlot(0), rx)], ..Change::default() }, DEADLINE).unwrap();
    drop((worker, source));
    let until = Instant::now() + DEADLINE;
    while pool.counts().out > 0 {
        assert!(Instant::now() < until, "the thread's buffer cache comes back with its end");
        std::thread::sleep(Duration::from_millis(1));
    }
}
