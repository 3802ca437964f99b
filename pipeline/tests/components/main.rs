//! What each component does with frames, full outputs, gates and missing ports; the original's quirks by name.

mod change;
mod drops;
mod flow;
mod full;
mod local;
mod mirror;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spp_drivers::Burst;
use spp_drivers::dma::PoolCache;
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::stats::{DropReason, QueueStats, SharedStats};
use spp_pipeline::engine::{Activity, Engine};
use spp_pipeline::plan::*;
use support::*;

const A: &str = "02:00:00:00:00:0a";
const B: &str = "02:00:00:00:00:0b";
const C: &str = "02:00:00:00:00:0c";
const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";

/// An engine with one component, its outside and its counters.
struct Bench {
    pool: spp_drivers::dma::Pool,
    cache: PoolCache,
    engine: Engine,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
    rx_stats: Vec<SharedStats>,
    tx_stats: Vec<SharedStats>,
    stats: Arc<spp_pipeline::stats::ComponentStats>,
}

impl Bench {
    fn new(work: Work, ring_slots: usize) -> Bench {
        let pool = pool(2048);
        let mut change = Change::default();
        let (mut sources, mut sinks) = (Vec::new(), Vec::new());
        for edge in work.rx_edges() {
            let (outside, queue) = source(256);
            sources.push(outside);
            change.rx_in.push((edge.slot, queue));
        }
        for edge in work.tx_edges() {
            let (outside, queue) = sink(ring_slots);
            sinks.push(outside);
            change.tx_in.push((edge.slot, queue));
        }
        let rx_stats = work.rx_edges().iter().map(|edge| edge.stats.clone()).collect();
        let tx_stats = work.tx_edges().iter().map(|edge| edge.stats.clone()).collect();
        let component = component("c", work);
        let stats = component.stats.clone();
        change.plan = plan(1, vec![component]);
        let mut engine = Engine::new(&pool);
        engine.change(change);
        Bench { cache: pool.cache(), pool, engine, sources, sinks, rx_stats, tx_stats, stats }
    }

    fn send(&mut self, source: usize, frame: &[u8]) {
        assert!(self.sources[source].send(&mut self.cache, frame));
    }

    fn send_marks(&mut self, source: usize, marks: std::ops::Range<u32>) {
        marks.for_each(|mark| self.send(source, &frame(mac(A), &[], 64, mark)));
    }

    fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.engine.turn();
        }
    }

    fn marks(&mut self, sink: usize) -> Vec<u32> {
        self.sinks[sink].marks(&mut self.cache)
    }

    /// In = out + drops + held, and no buffer is lost.
    fn close(self) {
        let s = self.stats.snapshot();
        assert_eq!(s.rx_packets + s.copies, s.tx_packets + s.total_drops() + s.held, "{s:?}");
        drop((self.engine, self.sources, self.sinks, self.cache));
        assert_eq!(self.pool.counts().out, 0);
    }
}

fn forward(rx: VlanOp, tx: VlanOp, full: WhenFull) -> Work {
    Work::Forward { rx: rx_edge(0, rx), tx: tx_edge(0, tx, full) }
}

fn merge(n: u16, full: WhenFull) -> Work {
    Work::Merge { rx: (0..n).map(|i| rx_edge(i, VlanOp::None)).collect(), tx: tx_edge(0, VlanOp::None, full) }
}

fn classify(tx: &[VlanOp], entries: &[(Option<u16>, &str, usize)]) -> Work {
    let tx = (0..).zip(tx).map(|(slot, &vlan)| tx_edge(slot, vlan, DROP)).collect();
    Work::Classify { rx: vec![rx_edge(0, VlanOp::None)], tx, table: table(entries) }
}

fn mirror(original: VlanOp, copy: VlanOp) -> Work {
    let tx = [tx_edge(0, original, WAIT), tx_edge(1, copy, DROP)];
    Work::Mirror { rx: vec![rx_edge(0, VlanOp::None)], tx }
}

const PLAIN: [VlanOp; 3] = [VlanOp::None; 3];
