//! Components between rings: what a component adds to the path is its share of two rings, look-up, VLAN
//! operation and accounting. The packets go round, so their headers are in the cache; with 4096 of them going
//! round ("cold") they are not in the first level.

use std::collections::VecDeque;

use spp_drivers::dma::{PacketBuf, PoolCache};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::ring_port::{RingRx, RingTx, packet_ring};
use spp_drivers::stats::{DropReason, QueueStats};
use spp_drivers::{Burst, MacAddr};
use spp_pipeline::engine::Engine;
use spp_pipeline::plan::*;
use spp_pipeline::stats::ComponentStats;
use spp_pipeline::table::{Dst, Table, TableBuilder};

use crate::ring::{packet, pool};
use crate::stage::{Row, Stage, frame};

const RING_SLOTS: usize = 8192;
const COLD: usize = 4096;
const FULL: WhenFull = WhenFull::Drop(DropReason::RingFull);

/// Destinations in the frames, and the VLANs they are spread over.
#[derive(Clone, Copy)]
struct Traffic {
    n_macs: usize,
    n_vlans: usize,
    /// Packets going round; none for one burst.
    in_flight: usize,
}

const ONE: Traffic = Traffic { n_macs: 1, n_vlans: 0, in_flight: 0 };

/// The rows of this module.
pub fn rows() -> Vec<Row> {
    let row = |name, traffic: Traffic, work: fn() -> Work| {
        Row::new(name, move |burst| Loop::new(work(), traffic, burst))
    };
    let eight = Traffic { n_macs: 8, ..ONE };
    let cloud = Traffic { n_macs: 1000, n_vlans: 100, in_flight: COLD };
    let huge = Traffic { n_macs: 100_000, n_vlans: 4000, in_flight: COLD };
    vec![
        row("forward", ONE, || forward(VlanOp::None, VlanOp::None)),
        row("forward, del tag, add tag", Traffic { n_vlans: 1, ..ONE }, || {
            forward(VlanOp::Del, VlanOp::Add { vid: 1, pcp: 0 })
        }),
        row("merge of 4", ONE, || Work::Merge {
            rx: (0..4).map(|slot| rx(slot, VlanOp::None)).collect(),
            tx: tx(0, VlanOp::None),
        }),
        row("merge of 4, local switching", eight, || Work::MergeLocal {
            rx: (0..4).map(|slot| rx(slot, VlanOp::None)).collect(),
            tx: [tx(0, VlanOp::None), tx(1, VlanOp::None)],
            guests: table(4, 4, 0),
        }),
        row("classifier, 2 entries", Traffic { n_macs: 2, ..ONE }, || classify(table(2, 2, 0), 2)),
        row("classifier, 8 outputs", eight, || classify(table(8, 8, 0), 8)),
        row("classifier, 1000 entries, 100 VLANs", cloud, || classify(table(1000, 8, 100), 8)),
        row("classifier, 2 entries, cold", Traffic { n_macs: 2, in_flight: COLD, ..ONE }, || {
            classify(table(2, 2, 0), 2)
        })
        .timed_only(),
        row("classifier, 8 outputs, cold", Traffic { in_flight: COLD, ..eight }, || {
            classify(table(8, 8, 0), 8)
        })
        .timed_only(),
        row("classifier, 100000 entries, cold", huge, || classify(table(100_000, 8, 4000), 8)).timed_only(),
    ]
}

fn mac(i: usize) -> MacAddr {
    MacAddr([0xfa, 0x16, 0x3e, (i >> 16) as u8, (i >> 8) as u8, i as u8])
}

pub fn rx(slot: u16, vlan: VlanOp) -> RxEdge {
    RxEdge { slot: RxSlot(slot), vlan, closed: false, from: Default::default(), stats: QueueStats::shared() }
}

pub fn tx(slot: u16, vlan: VlanOp) -> TxEdge {
    TxEdge { slot: TxSlot(slot), vlan, full: FULL, guest: None, sharing: None, stats: QueueStats::shared() }
}

fn forward(on_rx: VlanOp, on_tx: VlanOp) -> Work {
    Work::Forward { rx: rx(0, on_rx), tx: tx(0, on_tx) }
}

fn classify(table: Table, n_tx: u16) -> Work {
    Work::Classify {
        rx: vec![rx(0, VlanOp::None)],
        tx: (0..n_tx).map(|slot| tx(slot, VlanOp::None)).collect(),
        table,
    }
}

/// `n_entries` addresses dealt to `n_tx` outputs, in VLANs 1 to `n_vlans`, or untagged with none.
fn table(n_entries: usize, n_tx: usize, n_vlans: usize) -> Table {
    let mut builder = TableBuilder::new();
    for i in 0..n_entries {
        builder.add(vlan_of(i, n_vlans), Dst::Mac(mac(i)), i % n_tx).expect("VLAN ids below 4095");
    }
    builder.build()
}

fn vlan_of(i: usize, n_vlans: usize) -> Option<u16> {
    (n_vlans > 0).then(|| 1 + (i % n_vlans) as u16)
}

/// Both outsides of one component.
struct Loop {
    engine: Engine,
    inputs: Vec<RingTx>,
    outputs: Vec<RingRx>,
    /// Packets on their way from outputs back to inputs.
    store: VecDeque<PacketBuf>,
    cache: PoolCache,
    next_input: usize,
}

impl Loop {
    fn new(work: Work, traffic: Traffic, burst: usize) -> Loop {
        let (pool, mut cache) = pool(2 * COLD as u32);
        let mut engine = Engine::new(&pool);
        let (mut inputs, mut outputs, mut change) = (Vec::new(), Vec::new(), Change::default());
        for edge in work.rx_edges() {
            let (input, queue) = packet_ring(RING_SLOTS);
            inputs.push(input);
            change.rx_in.push((edge.slot, Box::new(queue)));
        }
        for edge in work.tx_edges() {
            let (queue, output) = packet_ring(RING_SLOTS);
            outputs.push(output);
            change.tx_in.push((edge.slot, Box::new(queue)));
        }
        let component = ComponentPlan { name: "measured".to_owned(), work, stats: ComponentStats::shared() };
        change.plan = CorePlan { generation: 1, components: vec![component], ..CorePlan::default() };
        engine.change(change);
        let store = (0..traffic.in_flight.max(burst)).map(|i| {
            let n = i * 7919 % traffic.n_macs; // a prime: neighbours in the ring are not neighbours in the table
            packet(&mut cache, &frame(mac(n).0, vlan_of(n, traffic.n_vlans), 64))
        });
        let store = store.collect();
        Loop { engine, inputs, outputs, store, cache, next_input: 0 }
    }
}

impl Stage for Loop {
    fn feed(&mut self, burst: usize) {
        let mut batch = Burst::new();
        for packet in self.store.drain(..burst) {
            batch.push(packet).expect("a burst is at most 32");
        }
        self.next_input = (self.next_input + 1) % self.inputs.len();
        self.inputs[self.next_input].tx_burst(&mut self.cache, &mut batch);
    }

    fn work(&mut self) {
        self.engine.turn();
    }

    fn drain(&mut self) -> usize {
        let mut moved = 0;
        for output in &mut self.outputs {
            let mut out = Burst::new();
            while output.rx_burst(&mut self.cache, &mut out) > 0 {
                moved += out.len();
                self.store.extend(out.take_all());
            }
        }
        moved
    }
}
