//! Random wirings, frames and changes: every buffer is somewhere, every packet is counted once.

mod support;

use proptest::prelude::*;
use spp_pipeline::engine::Engine;

use spp_pipeline::plan::*;
use spp_pipeline::stats::ComponentStats;
use std::sync::Arc;
use std::time::Duration;
use support::*;

const MACS: [&str; 4] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:01"];

fn any_vlan() -> impl Strategy<Value = VlanOp> {
    prop_oneof![
        Just(VlanOp::None),
        (0u16..4096, 0u8..8).prop_map(|(vid, pcp)| VlanOp::Add { vid, pcp }),
        Just(VlanOp::Del)
    ]
}

fn any_full() -> impl Strategy<Value = WhenFull> {
    prop_oneof![Just(DROP), Just(WAIT), Just(wait_for(Duration::ZERO))]
}

/// One step of the outside world.
#[derive(Debug, Clone)]
enum Step {
    /// Frames to an input: destination, tag, length.
    Send(usize, Vec<(usize, Option<u16>, usize)>),
    Turn,
    /// Empties an output.
    Drain(usize),
    /// A new plan: kind, gate of the first input, whether the last output leaves or comes.
    Change(u8, bool, bool),
}

fn any_step() -> impl Strategy<Value = Step> {
    let one = (0usize..4, prop::option::of(prop_oneof![0u16..4, Just(4095)]), 1usize..5000);
    prop_oneof![
        4 => (0usize..2, prop::collection::vec(one, 1..40)).prop_map(|(source, frames)| Step::Send(source, frames)),
        4 => Just(Step::Turn),
        2 => (0usize..3).prop_map(Step::Drain),
        1 => (0u8..5, any::<bool>(), any::<bool>()).prop_map(|(kind, gate, toggle)| Step::Change(kind, gate, toggle)),
    ]
}

/// Two inputs and three outputs; how they are wired is the plan's.
fn component_of(
    kind: u8,
    gate: bool,
    vlan: [VlanOp; 3],
    full: WhenFull,
    stats: &Arc<ComponentStats>,
) -> ComponentPlan {
    let rx = |slot: u16| RxEdge { closed: gate && slot == 0, ..rx_edge(slot, vlan[usize::from(slot)]) };
    let tx = |slot: u16| tx_edge(slot, vlan[usize::from(slot)], full);
    let work = match kind {
        0 => Work::Forward { rx: rx(0), tx: tx(2) },
        1 => Work::Merge { rx: vec![rx(0), rx(1)], tx: tx(0) },
        4 => Work::MergeLocal {
            rx: (0..2).map(|id| RxEdge { from: Origin::Guest { id, vid: 1 }, ..rx(id) }).collect(),
            tx: [tx(0), TxEdge { full: DROP, ..tx(1) }],
            guests: table(&[(Some(1), MACS[0], 0), (Some(1), MACS[1], 1)]),
        },
        3 => Work::Mirror { rx: vec![rx(1), rx(0)], tx: [tx(1), TxEdge { full: DROP, ..tx(2) }] },
        _ => {
            let entries = table(&[
                (None, MACS[0], 0),
                (Some(1), MACS[1], 1),
                (Some(1), "default", 2),
                (None, MACS[3], 2),
            ]);
            Work::Classify { rx: vec![rx(0)], tx: (0..3).map(tx).collect(), table: entries }
        }
    };
    ComponentPlan { name: "any".into(), work, stats: stats.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn in_is_out_plus_drops_plus_held_and_no_buffer_is_lost(
        steps in prop::collection::vec(any_step(), 1..60),
        vlan in [any_vlan(), any_vlan(), any_vlan()],
        full in any_full(),
    ) {
        let pool = pool(1024);
        let mut cache = pool.cache();
        let mut engine = Engine::new(&pool);
        let mut all_stats = vec![ComponentStats::shared()];
        let (mut sources, mut sinks, mut change) = (Vec::new(), Vec::new(), Change::default());
        for slot in 0..2 {
            let (outside, queue) = source(128);
            sources.push(outside);
            change.rx_in.push((RxSlot(slot), queue));
        }
        for slot in 0..3 {
            let (outside, queue) = sink(32);
            sinks.push(outside);
            change.tx_in.push((TxSlot(slot), queue));
        }
        change.plan = plan(1, vec![component_of(2, false, vlan, full, &all_stats[0])]);
        let mut away = Vec::new();
        engine.change(change);
        for step in steps {
            match step {
                Step::Send(source, frames) => for (mark, (dst, vid, len)) in (0..).zip(frames) {
                    let tags: Vec<Tag> = vid.into_iter().map(tag).collect();
                    let whole = frame(mac(MACS[dst]), &tags, len, mark);
                    // A quarter of the pool stays free, so that the outside itself never starves.
                    if pool.counts().free > 256 {
                        sources[source].send(&mut cache, &whole[..len.min(whole.len())]);
                    }
                },
                Step::Turn => { engine.turn(); }
                Step::Drain(sink) => drop(sinks[sink].drain(&mut cache)),
                Step::Change(kind, gate, toggle) => {
                    // Frames may pass from one component's counters to the next's at a change, so each
                    // new plan starts with an empty hand: outputs are drained and flushed first.
                    while all_stats.last().unwrap().held() > 0 {
                        sinks.iter_mut().for_each(|sink| drop(sink.drain(&mut cache)));
                        engine.turn();
                    }
                    all_stats.push(ComponentStats::shared());
                    let stats = all_stats.last().unwrap();
                    let mut change = Change { plan: plan(2, vec![component_of(kind, gate, vlan, full, stats)]), ..Change::default() };
                    match (toggle, away.pop()) {
                        (true, None) => change.tx_out.push(TxSlot(2)),
                        (_, Some(half)) => change.tx_in.push(half),
                        (false, None) => {}
                    }
                    away.extend(engine.change(change).tx_out);
                }
            }
            let s = all_stats.last().unwrap().snapshot();
            prop_assert_eq!(s.rx_packets + s.copies, s.tx_packets + s.total_drops() + s.held, "{:?}", s);
        }
        drop((engine, sources, sinks, away, cache));
        prop_assert_eq!(pool.counts().out, 0);
    }
}
