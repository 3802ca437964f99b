//! Fused rings: random wirings and traffic run twice, with the rings between components fused and not, and agree after each
//! turn in frames, order and every counter.

mod support;

use std::time::Duration;

use proptest::prelude::*;
use spp_drivers::dma::{Pool, PoolCache};
use spp_drivers::ring_port::packet_ring;
use spp_drivers::stats::{SharedStats, StatsSnapshot};
use spp_pipeline::engine::{Activity, Engine};
use spp_pipeline::plan::*;
use spp_pipeline::stats::{ComponentSnapshot, Cycles};
use support::*;

const MACS: [&str; 4] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b", "ff:ff:ff:ff:ff:ff", "02:00:00:00:00:99"];

/// Inputs from outside have these slots, and rings inside the slots from here on: a wire and two guests.
const N_OUTSIDE: u16 = 3;
/// Rings between components: 0 and 1 to the guests, 2 and 3 from them, 4 the way inside, 5 and 6 of a mirror.
const N_RINGS: u16 = 7;
const RING_SLOTS: usize = 64;

/// What is drawn about a wiring.
#[derive(Debug, Clone)]
struct Shape {
    vlan: [VlanOp; 8],
    full: WhenFull,
    has_local: bool,
    has_mirror: bool,
    gate: bool,
    /// The order of the components on the core.
    turned: usize,
    slots_out: usize,
}

fn any_vlan() -> impl Strategy<Value = VlanOp> {
    prop_oneof![
        3 => Just(VlanOp::None),
        1 => (1u16..3, 0u8..8).prop_map(|(vid, pcp)| VlanOp::Add { vid, pcp }),
        1 => Just(VlanOp::Del)
    ]
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let full = prop_oneof![Just(DROP), Just(WAIT), Just(wait_for(Duration::ZERO))];
    let vlan = prop::array::uniform8(any_vlan());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (vlan, full, flags, 0usize..7, 4u32..7).prop_map(|(vlan, full, flags, turned, slots)| Shape {
        vlan,
        full,
        has_local: flags.0,
        has_mirror: flags.1,
        gate: flags.2,
        turned,
        slots_out: 1 << slots,
    })
}

/// One step of the outside world.
#[derive(Debug, Clone)]
enum Step {
    /// Frames to an input: destination, tag, length.
    Send(usize, Vec<(usize, Option<u16>, usize)>),
    Turn,
    /// Empties an output.
    Drain(usize),
    /// The same plan once more.
    Replay,
}

fn any_step() -> impl Strategy<Value = Step> {
    let one = (0usize..4, prop::option::of(0u16..3), prop_oneof![9 => 10usize..200, 1 => 2100usize..9000]);
    prop_oneof![
        4 => (0usize..3, prop::collection::vec(one, 1..60)).prop_map(|(source, frames)| Step::Send(source, frames)),
        8 => Just(Step::Turn),
        3 => (0usize..3).prop_map(Step::Drain),
        1 => Just(Step::Replay),
    ]
}

/// A node's components on one core, with its outside and all its counters.
struct World {
    pool: Pool,
    cache: PoolCache,
    engine: Engine,
    sources: Vec<Source>,
    sinks: Vec<Sink>,
    stats: Vec<SharedStats>,
    shape: Shape,
    components: Vec<std::sync::Arc<spp_pipeline::stats::ComponentStats>>,
    edges: [Vec<SharedStats>; 2],
    fused: bool,
}

fn outside(n: u16) -> u16 {
    n
}

fn ring(n: u16) -> u16 {
    N_OUTSIDE + n
}

impl World {
    fn new(shape: &Shape, fused: bool) -> World {
        let pool = pool(2048);
        let (mut sources, mut sinks, mut stats) = (Vec::new(), Vec::new(), Vec::new());
        let mut change = Change::default();
        for slot in 0..N_OUTSIDE {
            let (outside, queue) = source(128);
            stats.push(queue.stats());
            sources.push(outside);
            change.rx_in.push((RxSlot(slot), queue));
            let (outside, queue) = sink(shape.slots_out);
            stats.push(queue.stats());
            sinks.push(outside);
            change.tx_in.push((TxSlot(slot), queue));
        }
        for n in 0..N_RINGS {
            let (tx, rx) = packet_ring(RING_SLOTS);
            use spp_drivers::port::{RxQueue, TxQueue};
            stats.extend([tx.stats(), rx.stats()]);
            change.rx_in.push((RxSlot(ring(n)), Box::new(rx)));
            change.tx_in.push((TxSlot(ring(n)), Box::new(tx)));
        }
        let counters = |n| (0..n).map(|_| spp_drivers::stats::QueueStats::shared()).collect();
        let mut world = World {
            cache: pool.cache(),
            engine: Engine::new(&pool),
            pool,
            sources,
            sinks,
            stats,
            shape: shape.clone(),
            components: (0..7).map(|_| spp_pipeline::stats::ComponentStats::shared()).collect(),
            edges: [counters(N_OUTSIDE + N_RINGS), counters(N_OUTSIDE + N_RINGS)],
            fused,
        };
        change.plan = world.plan();
        world.engine.change(change);
        world
    }

    fn rx(&self, slot: u16, vlan: usize) -> RxEdge {
        RxEdge { stats: self.edges[0][usize::from(slot)].clone(), ..rx_edge(slot, self.shape.vlan[vlan]) }
    }

    fn tx(&self, slot: u16, vlan: usize, full: WhenFull) -> TxEdge {
        TxEdge {
            stats: self.edges[1][usize::from(slot)].clone(),
            ..tx_edge(slot, self.shape.vlan[vlan], full)
        }
    }

    /// Classifier, mirror of what goes to guest 0, two forwarders each way, merger; in the order drawn.
    fn plan(&self) -> CorePlan {
        let Shape { full, has_local, has_mirror, gate, turned, .. } = self.shape;
        let mut inputs = vec![self.rx(outside(0), 0)];
        if has_local {
            inputs.push(RxEdge { from: Origin::Local, ..self.rx(ring(4), 7) });
        }
        let to_first = if has_mirror { ring(5) } else { ring(0) };
        let entries = [(None, MACS[0], 0), (None, MACS[1], 1), (Some(1), MACS[0], 0), (Some(1), MACS[1], 1)];
        let classify = Work::Classify {
            rx: inputs,
            tx: vec![self.tx(to_first, 1, DROP), self.tx(ring(1), 2, DROP)],
            table: table(&entries),
        };
        let mirror = Work::Mirror {
            rx: if has_mirror { vec![self.rx(ring(5), 3)] } else { vec![] },
            tx: [self.tx(ring(0), 4, full), self.tx(ring(6), 5, DROP)],
        };
        let forward = |rx, tx| Work::Forward { rx, tx };
        let guest = |id: u16| {
            let input = self.rx(ring(2 + id), 6);
            RxEdge { from: Origin::Guest { id, vid: 1 }, closed: gate && id == 1, ..input }
        };
        let wire = self.tx(outside(0), 7, full);
        let merge = match has_local {
            true => Work::MergeLocal {
                rx: vec![guest(0), guest(1)],
                tx: [wire, self.tx(ring(4), 0, DROP)],
                guests: table(&[(Some(1), MACS[0], 0), (Some(1), MACS[1], 1)]),
            },
            false => Work::Merge { rx: vec![guest(0), guest(1)], tx: wire },
        };
        let works = [
            classify,
            mirror,
            forward(self.rx(ring(0), 5), self.tx(outside(1), 6, full)),
            forward(self.rx(ring(1), 4), self.tx(outside(2), 3, full)),
            forward(self.rx(outside(1), 2), self.tx(ring(2), 1, full)),
            forward(self.rx(outside(2), 0), self.tx(ring(3), 1, full)),
            merge,
        ];
        let plans = works.into_iter().zip(&self.components).map(|(work, stats)| ComponentPlan {
            name: "any".to_owned(),
            work,
            stats: stats.clone(),
        });
        let mut components: Vec<ComponentPlan> = plans.collect();
        components.rotate_left(turned);
        let all = (0..N_RINGS).map(|n| Fused { tx: TxSlot(ring(n)), rx: RxSlot(ring(n)) }).collect();
        CorePlan { generation: 1, components, fused: if self.fused { all } else { Vec::new() } }
    }

    /// What one step shows outside.
    fn step(&mut self, step: &Step) -> (Option<Activity>, Vec<Vec<u8>>) {
        match step {
            Step::Send(source, frames) => {
                for (mark, &(dst, vid, len)) in (0..).zip(frames) {
                    let tags: Vec<Tag> = vid.into_iter().map(tag).collect();
                    let whole = frame(mac(MACS[dst]), &tags, len, mark);
                    if self.pool.counts().free > 512 {
                        self.sources[*source].send(&mut self.cache, &whole[..len.min(whole.len())]);
                    }
                }
                (None, Vec::new())
            }
            Step::Turn => (Some(self.engine.turn()), Vec::new()),
            Step::Drain(sink) => (None, self.sinks[*sink].drain(&mut self.cache)),
            Step::Replay => {
                let plan = self.plan();
                self.engine.change(Change { plan, ..Change::default() });
                (None, Vec::new())
            }
        }
    }

    /// All counters but those of time.
    fn counters(&self) -> (Vec<ComponentSnapshot>, Vec<StatsSnapshot>) {
        let components = self.components.iter();
        let components =
            components.map(|stats| ComponentSnapshot { cycles: Cycles::default(), ..stats.snapshot() });
        let queues = self.stats.iter().chain(self.edges.iter().flatten());
        (components.collect(), queues.map(|stats| stats.snapshot()).collect())
    }

    fn end(self) -> Pool {
        drop((self.engine, self.sources, self.sinks, self.cache));
        self.pool
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn fused_components_do_to_every_frame_and_counter_what_rings_between_them_do(
        shape in any_shape(),
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        let mut worlds = [false, true].map(|fused| World::new(&shape, fused));
        for step in &steps {
            let [apart, fused] = worlds.each_mut().map(|world| world.step(step));
            prop_assert_eq!(apart, fused);
            if let Step::Turn | Step::Replay = step {
                let [apart, fused] = worlds.each_ref().map(World::counters);
                prop_assert_eq!(apart, fused);
            }
        }
        for world in worlds {
            prop_assert_eq!(world.end().counts().out, 0);
        }
    }
}

#[test]
fn packet_passes_classifier_and_forwarder_in_one_turn_when_who_sends_comes_first() {
    let shape = Shape {
        vlan: [VlanOp::None; 8],
        full: WAIT,
        has_local: true,
        has_mirror: true,
        gate: false,
        turned: 3,
        slots_out: 64,
    };
    let mut world = World::new(&shape, true);
    let mut plan = world.plan();
    plan.sort_by_flow();
    world.engine.change(Change { plan, ..Change::default() });
    // Rings are known to be empty once they were asked.
    world.engine.turn();
    world.step(&Step::Send(0, vec![(0, None, 64), (1, None, 64)]));
    world.step(&Step::Send(1, vec![(3, None, 64)]));
    world.engine.turn();
    let n: Vec<usize> = (0..3).map(|sink| world.step(&Step::Drain(sink)).1.len()).collect();
    assert_eq!(n, [1, 1, 1]);
    assert_eq!(world.end().counts().out, 0);
}

#[test]
fn circle_of_rings_is_sorted_too() {
    let forward = |from, to| {
        component("f", Work::Forward { rx: rx_edge(from, VlanOp::None), tx: tx_edge(to, VlanOp::None, WAIT) })
    };
    let mut plan = plan(1, vec![forward(1, 0), forward(0, 1), forward(1, 2)]);
    plan.fused = (0..3).map(|n| Fused { tx: TxSlot(n), rx: RxSlot(n) }).collect();
    plan.sort_by_flow();
    assert_eq!(plan.components.len(), 3);
}
