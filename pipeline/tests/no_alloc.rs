//! A turn allocates and frees nothing, whatever it does; nor does putting a plan in force.
//! Calls are counted per thread.

#![forbid(unsafe_code)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use spp_counting::{heap_calls, heap_calls_so_far};
use spp_drivers::Burst;
use spp_drivers::dma::PoolCache;
use spp_drivers::offload::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, Offload};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::ring_port::packet_ring;
use spp_drivers::stats::{QueueStats, SharedStats};
use spp_pipeline::engine::Engine;
use spp_pipeline::plan::*;
use spp_pipeline::worker::{Worker, WorkerConfig};
use support::*;

#[test]
fn the_counter_counts() {
    assert_eq!(heap_calls(|| drop(std::hint::black_box(Box::new(7)))), ((), 2));
}

#[test]
fn turns_of_all_components_allocate_nothing() {
    let pool = pool(4096);
    let mut cache = pool.cache();
    let mut engine = Engine::new(&pool);
    let mut change = Change::default();
    let (mut sources, mut sinks) = (Vec::new(), Vec::new());
    for slot in 0..6 {
        let (outside, queue) = source(1024);
        sources.push(outside);
        change.rx_in.push((RxSlot(slot), queue));
    }
    for slot in 0..8 {
        let (outside, queue) = sink(16);
        sinks.push(outside);
        change.tx_in.push((TxSlot(slot), queue));
    }
    let add = VlanOp::Add { vid: 9, pcp: 0 };
    let entries =
        table(&[(None, "02:00:00:00:00:0a", 0), (Some(100), "02:00:00:00:00:0b", 1), (None, "default", 1)]);
    change.plan = plan(
        1,
        vec![
            component(
                "c",
                Work::Classify {
                    rx: vec![rx_edge(0, VlanOp::None)],
                    tx: vec![tx_edge(0, add, DROP), tx_edge(1, VlanOp::Del, DROP)],
                    table: entries,
                },
            ),
            component(
                "f",
                Work::Forward {
                    rx: rx_edge(1, VlanOp::Del),
                    tx: tx_edge(2, add, wait_for(std::time::Duration::ZERO)),
                },
            ),
            component(
                "m",
                Work::Merge {
                    rx: vec![rx_edge(2, VlanOp::None), RxEdge { closed: true, ..rx_edge(3, VlanOp::None) }],
                    tx: tx_edge(3, VlanOp::None, WAIT),
                },
            ),
            component(
                "l",
                Work::MergeLocal {
                    rx: vec![RxEdge { from: Origin::Guest { id: 1, vid: 0 }, ..rx_edge(5, VlanOp::None) }],
                    tx: [tx_edge(6, VlanOp::None, WAIT), tx_edge(7, VlanOp::None, DROP)],
                    guests: table(&[(None, "02:00:00:00:00:0a", 0), (None, "02:00:00:00:00:0b", 1)]),
                },
            ),
            component(
                "t",
                Work::Mirror {
                    rx: vec![rx_edge(4, VlanOp::None)],
                    tx: [tx_edge(4, add, WAIT), tx_edge(5, VlanOp::None, DROP)],
                },
            ),
        ],
    );
    engine.change(change);
    // Known, unknown, group, tagged, reserved, runt and jumbo frames to every input.
    let group = mac("ff:ff:ff:ff:ff:ff");
    let known = mac("02:00:00:00:00:0a");
    let frames = [
        frame(known, &[], 64, 0),
        frame(mac("02:00:00:00:00:77"), &[], 64, 1),
        frame(group, &[], 64, 2),
        frame(group, &[tag(100)], 64, 3),
        frame(known, &[tag(4095)], 64, 4),
        frame(known, &[], 64, 5)[..9].to_vec(),
        frame(group, &[], 5000, 6),
    ];
    for source in &mut sources {
        (0..100).for_each(|i| assert!(source.send(&mut cache, &frames[i % frames.len()])));
    }
    let mut out = Burst::new();
    let ((), n) = heap_calls(|| {
        for round in 0..300 {
            engine.turn();
            engine.poll_control();
            if round % 3 == 0 {
                for sink in &mut sinks {
                    sink.0.rx_burst(&mut cache, &mut out);
                    out.free_all(&mut cache);
                }
            }
        }
    });
    assert_eq!(n, 0);
    let moved: Vec<u64> = sinks.iter().map(|sink| sink.0.stats().packets.get()).collect();
    assert!(moved.iter().all(|&n| n > 20), "the turns had work: {moved:?}");
}

/// Tells how often its thread has called the allocator.
struct Probe {
    calls: Arc<AtomicU64>,
    stats: SharedStats,
}

impl RxQueue for Probe {
    fn rx_burst(&mut self, _pool: &mut PoolCache, _out: &mut Burst) -> usize {
        self.calls.store(heap_calls_so_far(), Ordering::Relaxed);
        0
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

#[test]
fn worker_allocates_and_frees_nothing_while_plans_and_halves_come_and_go() {
    let pool = pool(64);
    let mut worker = Worker::spawn(
        WorkerConfig { core: 0, fold: true, idle: Default::default(), name: "spp-core-0".into() },
        &pool,
    )
    .unwrap();
    let calls = Arc::new(AtomicU64::new(u64::MAX));
    let forward =
        |slot| Work::Forward { rx: rx_edge(slot, VlanOp::None), tx: tx_edge(slot, VlanOp::None, WAIT) };
    let (_probe_out, tx) = sink(16);
    let change = Change {
        plan: plan(1, vec![component("probe", forward(0))]),
        rx_in: vec![(RxSlot(0), Box::new(Probe { calls: calls.clone(), stats: QueueStats::shared() }))],
        tx_in: vec![(TxSlot(0), tx)],
        ..Change::default()
    };
    worker.change(change, DEADLINE).unwrap();
    let mut count_at = Vec::new();
    for generation in 2..40u16 {
        // Ever higher slots: the worker needs more of them again and again.
        let ((_source, rx), (_sink, tx)) = (source(16), sink(16));
        let come = Change {
            plan: plan(2, vec![component("probe", forward(0)), component("other", forward(generation))]),
            rx_in: vec![(RxSlot(generation), rx)],
            tx_in: vec![(TxSlot(generation), tx)],
            ..Change::default()
        };
        worker.change(come, DEADLINE).unwrap();
        let go = Change {
            plan: plan(3, vec![component("probe", forward(0))]),
            rx_out: vec![RxSlot(generation)],
            tx_out: vec![TxSlot(generation)],
            ..Change::default()
        };
        assert_eq!(worker.change(go, DEADLINE).unwrap().rx_out.len(), 1);
        calls.store(u64::MAX, Ordering::Relaxed);
        let until = Instant::now() + DEADLINE;
        while calls.load(Ordering::Relaxed) == u64::MAX {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
        count_at.push(calls.load(Ordering::Relaxed));
    }
    assert_eq!(count_at.first(), count_at.last());
    worker.stop(DEADLINE).unwrap();
}

/// An output whose receiver does no work.
struct Plain(spp_drivers::ring_port::RingTx);

impl TxQueue for Plain {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        self.0.tx_burst(pool, from)
    }

    fn stats(&self) -> SharedStats {
        self.0.stats()
    }
}

#[test]
fn checksums_and_segments_in_software_allocate_nothing() {
    let pool = pool(4096);
    let mut cache = pool.cache();
    let mut engine = Engine::new(&pool);
    // 60 frames of 20 buffers each: a ring counts buffers.
    let (mut tx, rx) = packet_ring(2048);
    let (out, mut sink) = packet_ring(64);
    let mut change = Change { rx_in: vec![(RxSlot(0), Box::new(rx))], ..Change::default() };
    change.tx_in.push((TxSlot(0), Box::new(Plain(out))));
    let work = Work::Forward { rx: rx_edge(0, VlanOp::None), tx: tx_edge(0, VlanOp::None, WAIT) };
    let component = component("f", work);
    let stats = component.stats.clone();
    change.plan = plan(1, vec![component]);
    engine.change(change);
    // An IPv4 header in front of TCP, and what follows from it; checksums are not looked at here.
    let mut tcp = frame(mac("02:00:00:00:00:0a"), &[], 40_000, 0);
    tcp[12..16].copy_from_slice(&[0x08, 0, 0x45, 0]);
    tcp[20..24].copy_from_slice(&[0x40, 0, 64, 6]);
    tcp[46] = 0x50;
    for i in 0..60 {
        let gso_type = if i % 2 == 0 { GSO_TCPV4 } else { GSO_NONE };
        let (csum_start, csum_offset, gso_size) = (34, 16, 1448);
        let work = Offload { flags: F_NEEDS_CSUM, gso_type, hdr_len: 54, gso_size, csum_start, csum_offset };
        let mut packet = packet(&mut cache, &tcp);
        packet.set_offload(Some(work));
        let mut burst = Burst::new();
        burst.push(packet).unwrap();
        assert_eq!(tx.tx_burst(&mut cache, &mut burst), 1);
    }
    let mut burst = Burst::new();
    let ((), n) = heap_calls(|| {
        for _ in 0..300 {
            engine.turn();
            sink.rx_burst(&mut cache, &mut burst);
            burst.free_all(&mut cache);
        }
    });
    assert_eq!(n, 0);
    assert_eq!((stats.segmented.get(), stats.checksummed.get()), (30, 30), "there was work");
}
