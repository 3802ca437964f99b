//! The components of one VM fused on one core, between two guests that play the wire and the VM: what a packet costs from
//! ring to ring, one way at a time.

use spp_drivers::MacAddr;
use spp_drivers::ring_port::packet_ring;
use spp_pipeline::engine::Engine;
use spp_pipeline::plan::*;
use spp_pipeline::stats::ComponentStats;
use spp_pipeline::table::{Dst, TableBuilder};

use crate::components::{rx, tx};
use crate::guests::{Attached, Choose, attach};
use crate::ring::pool;
use crate::stage::{Row, Stage, frame};

const VM: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xaa]);
const RING_SLOTS: usize = 1024;

/// The rows of this module.
pub fn rows() -> Vec<Row> {
    const SPLIT: Choose = |guest| (guest.mrg_rxbuf, guest.event_idx) = (false, false);
    vec![
        Row::new("node, fused, wire to guest, 64 B", |_| Node::new(Way::ToVm, SPLIT)),
        Row::new("node, fused, guest to wire, 64 B", |_| Node::new(Way::ToWire, SPLIT)),
    ]
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    ToVm,
    ToWire,
}

struct Node {
    way: Way,
    frame: Vec<u8>,
    engine: Engine,
    wire: Attached,
    vm: Attached,
}

fn component(name: &str, work: Work) -> ComponentPlan {
    ComponentPlan { name: name.to_owned(), work, stats: ComponentStats::shared() }
}

impl Node {
    fn new(way: Way, choose: Choose) -> Node {
        let (pool, _) = pool(4096);
        let (wire, wire_out, wire_in) = attach(&pool, choose);
        let (vm, vm_out, vm_in) = attach(&pool, choose);
        let (to_vm, for_vm) = packet_ring(RING_SLOTS);
        let (to_wire, for_wire) = packet_ring(RING_SLOTS);
        let mut table = TableBuilder::new();
        table.add(None, Dst::Mac(VM), 0).expect("an untagged entry");
        let (edge_in, edge_out) = (|slot| rx(slot, VlanOp::None), |slot| tx(slot, VlanOp::None));
        let classify = Work::Classify { rx: vec![edge_in(0)], tx: vec![edge_out(0)], table: table.build() };
        let components = vec![
            component("classifier", classify),
            component("tx", Work::Forward { rx: edge_in(1), tx: edge_out(1) }),
            component("rx", Work::Forward { rx: edge_in(2), tx: edge_out(2) }),
            component("merger", Work::Merge { rx: vec![edge_in(3)], tx: edge_out(3) }),
        ];
        let fused = [(0, 1), (2, 3)].map(|(tx, rx)| Fused { tx: TxSlot(tx), rx: RxSlot(rx) }).to_vec();
        let mut plan = CorePlan { generation: 1, components, fused };
        plan.sort_by_flow();
        let mut engine = Engine::new(&pool);
        engine.change(Change {
            plan,
            rx_in: vec![
                (RxSlot(0), Box::new(wire_in)),
                (RxSlot(1), Box::new(for_vm)),
                (RxSlot(2), Box::new(vm_in)),
                (RxSlot(3), Box::new(for_wire)),
            ],
            tx_in: vec![
                (TxSlot(0), Box::new(to_vm)),
                (TxSlot(1), Box::new(vm_out)),
                (TxSlot(2), Box::new(to_wire)),
                (TxSlot(3), Box::new(wire_out)),
            ],
            ..Change::default()
        });
        Node { way, frame: frame(VM.0, None, 64), engine, wire, vm }
    }

    /// Where packets come from, and where they go.
    fn ends(&mut self) -> (&mut Attached, &mut Attached) {
        match self.way {
            Way::ToVm => (&mut self.wire, &mut self.vm),
            Way::ToWire => (&mut self.vm, &mut self.wire),
        }
    }
}

impl Stage for Node {
    fn feed(&mut self, burst: usize) {
        let frame = self.frame.clone();
        let sent = self.ends().0.guest.send_burst((0..burst).map(|_| &frame[..]));
        assert_eq!(sent, burst, "the ring was drained");
    }

    fn work(&mut self) {
        self.engine.turn();
    }

    fn drain(&mut self) -> usize {
        self.ends().1.guest.receive_burst(64, |_| ())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Node { wire, vm, engine, .. } = self;
        for end in [wire, vm] {
            end.guest.disconnect();
            if let Some(port) = end.port.take() {
                port.close_with(|| engine.poll_control());
            }
        }
    }
}
