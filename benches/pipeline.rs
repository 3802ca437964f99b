//! Cycles per packet of each component, with rings as ports, at bursts of 1, 4, 8 and 32.
//!
//! One thread plays both outsides and times only the engine's turn, so the numbers are what a component adds to the
//! path: its share of two rings, look-up, VLAN operation and accounting. The packets go round, so their headers
//! are in the cache; `cold` lets 4096 packets go round, which the first-level cache can't hold.
//!
//!     cargo bench --bench pipeline

use std::collections::VecDeque;

use spp_drivers::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::ring_port::{RingRx, RingTx, packet_ring};
use spp_drivers::stats::{DropReason, QueueStats};
use spp_drivers::{Burst, MacAddr, tsc};
use spp_pipeline::engine::Engine;
use spp_pipeline::plan::*;
use spp_pipeline::stats::ComponentStats;
use spp_pipeline::table::{Dst, Table, TableBuilder};

/// Turns timed for each number printed. The median turn is shown: other work on the machine hits few of them, hard.
const TURNS: usize = 20_001;
const RING_SLOTS: usize = 8192;

const FULL: WhenFull = WhenFull::Drop(DropReason::RingFull);

fn mac(i: usize) -> MacAddr {
    MacAddr([0xfa, 0x16, 0x3e, (i >> 16) as u8, (i >> 8) as u8, i as u8])
}

fn rx(slot: u16, vlan: VlanOp) -> RxEdge {
    RxEdge { slot: RxSlot(slot), vlan, closed: false, from: Default::default(), stats: QueueStats::shared() }
}

fn tx(slot: u16, vlan: VlanOp) -> TxEdge {
    TxEdge { slot: TxSlot(slot), vlan, full: FULL, guest: None, stats: QueueStats::shared() }
}

/// `n_entries` addresses dealt to `n_tx` outputs, in VLANs 1 to `n_vlans`, or untagged with none.
fn table(n_entries: usize, n_tx: usize, n_vlans: usize) -> Table {
    let mut builder = TableBuilder::new();
    for i in 0..n_entries {
        let vid = (n_vlans > 0).then(|| vlan_of(i, n_vlans));
        builder.add(vid, Dst::Mac(mac(i)), i % n_tx).expect("VLAN ids below 4095");
    }
    builder.build()
}

fn vlan_of(i: usize, n_vlans: usize) -> u16 {
    1 + (i % n_vlans) as u16
}

struct Case {
    name: &'static str,
    work: fn() -> Work,
    /// Destinations in the frames, and the VLANs they are spread over.
    n_macs: usize,
    n_vlans: usize,
    /// Packets going round per burst size.
    in_flight: fn(usize) -> usize,
}

const CASES: &[Case] = &[
    Case {
        name: "forward",
        work: || Work::Forward { rx: rx(0, VlanOp::None), tx: tx(0, VlanOp::None) },
        n_macs: 1,
        n_vlans: 0,
        in_flight: |burst| burst,
    },
    Case {
        name: "forward, del tag, add tag",
        work: || Work::Forward { rx: rx(0, VlanOp::Del), tx: tx(0, VlanOp::Add { vid: 1, pcp: 0 }) },
        n_macs: 1,
        n_vlans: 1,
        in_flight: |burst| burst,
    },
    Case {
        name: "merge of 4",
        work: || Work::Merge {
            rx: (0..4).map(|slot| rx(slot, VlanOp::None)).collect(),
            tx: tx(0, VlanOp::None),
        },
        n_macs: 1,
        n_vlans: 0,
        in_flight: |burst| burst,
    },
    Case {
        name: "classifier, 8 outputs",
        work: || classify(table(8, 8, 0), 8),
        n_macs: 8,
        n_vlans: 0,
        in_flight: |burst| burst,
    },
    Case {
        name: "classifier, 8 outputs, cold",
        work: || classify(table(8, 8, 0), 8),
        n_macs: 8,
        n_vlans: 0,
        in_flight: |_| 4096,
    },
    Case {
        name: "classifier, 100000 entries, 4000 VLANs, cold",
        work: || classify(table(100_000, 8, 4000), 8),
        n_macs: 100_000,
        n_vlans: 4000,
        in_flight: |_| 4096,
    },
];

fn classify(table: Table, n_tx: u16) -> Work {
    Work::Classify {
        rx: vec![rx(0, VlanOp::None)],
        tx: (0..n_tx).map(|slot| tx(slot, VlanOp::None)).collect(),
        table,
    }
}

/// Both outsides of one component.
struct Loop {
    engine: Engine,
    inputs: Vec<RingTx>,
    outputs: Vec<RingRx>,
    /// Packets on their way from outputs back to inputs.
    store: VecDeque<PacketBuf>,
    cache: PoolCache,
}

impl Loop {
    fn new(case: &Case, burst: usize) -> Loop {
        let pool =
            Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 16_384 }).expect("memory for the pool");
        let (mut engine, mut cache) = (Engine::new(&pool), pool.cache());
        let work = (case.work)();
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
        let component = ComponentPlan { name: case.name.to_owned(), work, stats: ComponentStats::shared() };
        change.plan = CorePlan { generation: 1, components: vec![component] };
        engine.change(change);
        let mut store = VecDeque::with_capacity(RING_SLOTS);
        for i in 0..(case.in_flight)(burst) {
            let mut packet = cache.alloc().expect("the pool is larger");
            let n = i * 7919 % case.n_macs; // a prime: neighbours in the ring are not neighbours in the table
            packet.append(&mac(n).0).expect("room");
            packet.append(&[2, 0, 0, 0, 0, 1]).expect("room");
            if case.n_vlans > 0 {
                packet.append(&[0x81, 0]).expect("room");
                packet.append(&vlan_of(n, case.n_vlans).to_be_bytes()).expect("room");
            }
            packet.append(&[0; 46]).expect("room");
            store.push_back(packet);
        }
        Loop { engine, inputs, outputs, store, cache }
    }

    /// One turn over `burst` packets: ticks taken and packets moved.
    fn step(&mut self, burst: usize, turn: usize) -> (u64, usize) {
        let mut batch = Burst::new();
        let input = turn % self.inputs.len();
        for packet in self.store.drain(..burst) {
            batch.push(packet).expect("burst is at most 32");
        }
        self.inputs[input].tx_burst(&mut self.cache, &mut batch);
        let start = tsc::now();
        self.engine.turn();
        let ticks = tsc::now() - start;
        let mut moved = 0;
        for output in &mut self.outputs {
            let mut out = Burst::new();
            while output.rx_burst(&mut self.cache, &mut out) > 0 {
                moved += out.len();
                self.store.extend(out.take_all());
            }
        }
        (ticks, moved)
    }
}

fn cycles_per_packet(case: &Case, burst: usize) -> f64 {
    let mut bench = Loop::new(case, burst);
    let mut ticks: Vec<u64> = (0..TURNS)
        .map(|turn| {
            let (ticks, moved) = bench.step(burst, turn);
            assert_eq!(moved, burst, "{}: every packet comes out", case.name);
            ticks
        })
        .collect();
    ticks.sort_unstable();
    ticks[TURNS / 2] as f64 / burst as f64
}

fn main() {
    let stamp = (0..1000).map(|_| {
        let start = tsc::now();
        tsc::now() - start
    });
    println!("TSC: {} MHz, read: {} ticks", tsc::ticks_per_second() / 1_000_000, stamp.min().unwrap_or(0));
    println!("{:46} {:>7} {:>7} {:>7} {:>7}", "ticks per packet at a burst of", 1, 4, 8, 32);
    for case in CASES {
        let row = [1, 4, 8, 32].map(|burst| cycles_per_packet(case, burst));
        println!("{:46} {:7.1} {:7.1} {:7.1} {:7.1}", case.name, row[0], row[1], row[2], row[3]);
    }
}
