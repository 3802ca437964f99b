//! What each component does with frames, full outputs, gates and missing ports; the original's quirks by name.

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
fn mirror_sends_every_frame_to_both_outputs_without_a_copy_of_its_bytes() {
    let mut m = Bench::new(mirror(VlanOp::None, VlanOp::None), 128);
    let frames = [60, 1500, 4000, 9000].map(|len| frame(mac(BROADCAST), &[tag(7)], len, len as u32));
    for _ in 0..8 {
        frames.iter().for_each(|frame| m.send(0, frame));
    }
    let before = m.pool.counts().free;
    m.turns(2);
    assert_eq!(m.pool.counts().free, before, "no buffer was taken");
    let expected: Vec<_> = frames.iter().cycle().take(32).cloned().collect();
    for sink in [1, 0] {
        assert_eq!(m.sinks[sink].drain(&mut m.cache), expected);
    }
    let s = m.stats.snapshot();
    assert_eq!((s.rx_packets, s.copies, s.tx_packets), (32, 32, 64));
    m.close();
}

#[test]
fn mirror_drops_only_copies_when_the_copys_output_is_full() {
    // Q16: the original of SPP leaks a buffer for each of these.
    let mut m = Bench::new(mirror(VlanOp::None, VlanOp::None), 8);
    let mut originals = Vec::new();
    for mark in 0..100 {
        m.send_marks(0, mark..mark + 1);
        m.turns(1);
        originals.extend(m.marks(0));
    }
    assert_eq!(originals, (0..100).collect::<Vec<_>>());
    assert_eq!((m.tx_stats[1].drops(DropReason::RingFull), m.tx_stats[0].snapshot().total_drops()), (92, 0));
    assert_eq!(m.marks(1), (0..8).collect::<Vec<_>>());
    m.close();
}

#[test]
fn mirror_takes_nothing_while_the_originals_output_is_full_and_loses_nothing() {
    let mut m = Bench::new(mirror(VlanOp::None, VlanOp::None), 8);
    m.send_marks(0, 0..100);
    let (mut originals, mut copies) = (Vec::new(), Vec::new());
    m.turns(50);
    assert_eq!(m.stats.snapshot().rx_packets, 32, "one burst waits, the rest is in the input");
    for _ in 0..40 {
        originals.extend(m.marks(0));
        copies.extend(m.marks(1));
        m.turns(1);
    }
    assert_eq!(originals, (0..100).collect::<Vec<_>>());
    assert!(copies.is_sorted());
    assert_eq!(copies.len() as u64 + m.tx_stats[1].drops(DropReason::RingFull), 100);
    m.close();
}

#[test]
fn tag_put_on_one_output_of_a_mirror_is_not_seen_on_the_other() {
    let add = VlanOp::Add { vid: 300, pcp: 5 };
    for (original, copy) in [(add, VlanOp::None), (VlanOp::None, add), (add, VlanOp::Del), (VlanOp::Del, add)]
    {
        for len in [60, 1500, 5000] {
            let mut m = Bench::new(mirror(original, copy), 64);
            let plain = frame(mac(A), &[tag(7)], len, 1);
            (0..10).for_each(|_| m.send(0, &plain));
            m.turns(2);
            for (sink, op) in [(0, original), (1, copy)] {
                let tags = match op {
                    VlanOp::None => vec![tag(7)],
                    VlanOp::Del => vec![],
                    VlanOp::Add { .. } => vec![(0x8100, 5 << 13 | 300)],
                };
                let frames = m.sinks[sink].drain(&mut m.cache);
                assert_eq!(frames.len(), 10);
                for frame in frames {
                    assert_eq!(tags_and_mark(&frame), (tags.clone(), 1));
                    let payload = 12 + 4 * tags.len();
                    assert_eq!(frame[payload..], plain[16..], "{original:?} {copy:?} {len}");
                }
            }
            m.close();
        }
    }
}

#[test]
fn mirror_that_runs_out_of_buffers_for_a_tag_drops_that_handle_only() {
    let mut m = Bench::new(mirror(VlanOp::Add { vid: 1, pcp: 0 }, VlanOp::None), 64);
    m.send_marks(0, 0..10);
    let all: Vec<_> = std::iter::from_fn(|| m.cache.alloc()).collect();
    m.turns(2);
    drop(all);
    assert_eq!(m.marks(1), (0..10).collect::<Vec<_>>());
    let dropped = m.stats.drops(DropReason::NoBuffer);
    assert_eq!(m.marks(0).len() as u64 + dropped, 10);
    assert!(dropped > 0);
    m.close();
}

/// Guests 0 (A) and 1 (B) of VLAN 7 and guest 2 (C, flat, alone) to the wire (sink 0) or inside (sink 1).
fn merge_local() -> Work {
    let guest = |slot: u16, vid: u16| {
        let vlan = if vid == 0 { VlanOp::None } else { VlanOp::Add { vid, pcp: 0 } };
        RxEdge { from: Origin::Guest { id: slot, vid }, ..rx_edge(slot, vlan) }
    };
    let inside = TxEdge { full: WhenFull::Drop(DropReason::LocalRingFull), ..tx_edge(1, VlanOp::None, DROP) };
    Work::MergeLocal {
        rx: vec![guest(0, 7), guest(1, 7), guest(2, 0)],
        tx: [tx_edge(0, VlanOp::None, WAIT), inside],
        guests: table(&[(Some(7), A, 0), (Some(7), B, 1), (None, C, 2)]),
    }
}

#[test]
fn guests_of_one_vlan_reach_each_other_inside_and_all_else_goes_to_the_wire() {
    let mut m = Bench::new(merge_local(), 64);
    let plain = |dst: &str, mark| frame(mac(dst), &[], 64, mark);
    // Who sends, the frame, and whether it comes out at the wire and inside.
    let cases = [
        (0, plain(B, 1), false, true),
        (0, plain(A, 2), true, false),                   // its own address
        (0, plain("02:00:00:00:00:99", 3), true, false), // nobody's here
        (0, plain(C, 4), true, false),                   // another network's
        (0, plain(BROADCAST, 5), true, true),
        (0, frame(mac(B), &[tag(9)], 64, 6), false, true), // its tag is overwritten
        (1, plain(A, 7), false, true),
        (2, plain(A, 8), true, false),
        (2, frame(mac(A), &[tag(7)], 64, 9), true, false), // a flat guest is in no VLAN
        (2, plain(BROADCAST, 10), true, false),            // alone in its network
        (0, frame(mac(B), &[], 64, 11)[..14].to_vec(), false, true),
    ];
    for (source, frame, to_wire, inside) in cases {
        m.send(source, &frame);
        m.turns(1);
        let seen = [0, 1].map(|sink| m.sinks[sink].drain(&mut m.cache));
        assert_eq!(
            [seen[0].len(), seen[1].len()],
            [usize::from(to_wire), usize::from(inside)],
            "{frame:02x?}"
        );
        if source < 2 {
            // As the wire would have it: tagged.
            assert!(seen.iter().flatten().all(|frame| frame[12..16] == [0x81, 0, 0, 7]));
        }
    }
    m.close();
}

#[test]
fn full_local_ring_drops_with_its_reason_and_never_holds_up_the_wire() {
    let mut m = Bench::new(merge_local(), 8);
    let mut at_wire = Vec::new();
    for mark in 0..40 {
        m.send(0, &frame(mac(B), &[], 64, mark));
        m.send(0, &frame(mac(BROADCAST), &[], 64, 100 + mark));
        m.send(1, &frame(mac("02:00:00:00:00:99"), &[], 64, 200 + mark));
        m.turns(1);
        at_wire.extend(m.marks(0));
    }
    assert_eq!(at_wire.len(), 80, "every group frame and every unknown one");
    let dropped = m.tx_stats[1].drops(DropReason::LocalRingFull);
    assert_eq!((dropped, m.stats.drops(DropReason::LocalRingFull)), (72, 72));
    assert_eq!(m.marks(1), [0, 100, 1, 101, 2, 102, 3, 103]);
    m.close();
}

#[test]
fn local_frames_keep_their_order_among_frames_to_the_wire() {
    let mut m = Bench::new(merge_local(), 256);
    for mark in 0..96 {
        let dst = [A, B, BROADCAST, "02:00:00:00:00:99"][mark as usize * 7 % 4];
        m.send(0, &frame(mac(dst), &[], 64, mark));
    }
    m.turns(3);
    let (wire, inside) = (m.marks(0), m.marks(1));
    assert!(wire.is_sorted() && inside.is_sorted());
    assert_eq!((wire.len(), inside.len()), (72, 48));
    m.close();
}

#[test]
fn checksum_work_goes_along_inside() {
    let mut m = Bench::new(merge_local(), 64);
    let offload =
        spp_drivers::dma::Offload { flags: 1, csum_start: 34, csum_offset: 16, ..Default::default() };
    for dst in [B, BROADCAST] {
        let mut p = packet(&mut m.cache, &frame(mac(dst), &[], 64, 1));
        p.set_offload(Some(offload));
        let mut burst = Burst::new();
        burst.push(p).unwrap();
        assert_eq!(m.sources[0].0.tx_burst(&mut m.cache, &mut burst), 1);
    }
    m.turns(1);
    let mut out = Burst::new();
    m.sinks[1].0.rx_burst(&mut m.cache, &mut out);
    let moved = spp_drivers::dma::Offload { csum_start: 38, ..offload };
    assert!(out.len() == 2 && out.iter().all(|packet| packet.offload() == Some(moved)));
    drop(out);
    m.close();
}

#[test]
fn classifier_sends_local_group_frames_to_all_but_their_sender() {
    let mut work = classify(&PLAIN, &[(Some(7), A, 0), (Some(7), B, 1), (Some(7), C, 2), (Some(8), B, 1)]);
    if let Work::Classify { rx, tx, .. } = &mut work {
        rx[0].from = Origin::Local;
        (0..).zip(tx).for_each(|(id, tx)| tx.guest = Some(id));
    }
    let mut c = Bench::new(work, 64);
    let local = |c: &mut Bench, frame: &[u8], origin: u16| {
        let mut p = packet(&mut c.cache, frame);
        p.set_origin(origin);
        let mut burst = Burst::new();
        burst.push(p).unwrap();
        assert_eq!(c.sources[0].0.tx_burst(&mut c.cache, &mut burst), 1);
        c.turns(1);
        [0, 1, 2].map(|sink| c.marks(sink).len())
    };
    let group = frame(mac(BROADCAST), &[tag(7)], 64, 1);
    assert_eq!(local(&mut c, &group, 0), [0, 1, 1]);
    assert_eq!(local(&mut c, &group, 2), [1, 1, 0]);
    assert_eq!(local(&mut c, &group, 77), [1, 1, 1]);
    // The only member of a VLAN gets nothing of its own back; unicast is not looked at for who sent it.
    assert_eq!(local(&mut c, &frame(mac(BROADCAST), &[tag(8)], 64, 1), 1), [0, 0, 0]);
    assert_eq!(local(&mut c, &frame(mac(A), &[tag(7)], 64, 1), 1), [1, 0, 0]);
    assert_eq!(c.stats.drops(DropReason::UnknownDestination), 1);
    c.close();
}

#[test]
fn runt_frame_is_dropped_and_counted_by_every_component() {
    // Q12: 1 to 13 bytes.
    let works = || {
        [
            forward(VlanOp::None, VlanOp::None, WAIT),
            forward(VlanOp::Del, VlanOp::Add { vid: 1, pcp: 0 }, WAIT),
            merge(1, WAIT),
            classify(&PLAIN, &[(None, "default", 0)]),
            mirror(VlanOp::None, VlanOp::None),
        ]
    };
    for work in works() {
        let mut bench = Bench::new(work, 64);
        let whole = frame(mac(A), &[], 64, 5);
        for n in 1..14 {
            bench.send(0, &whole[..n]);
        }
        bench.send(0, &whole);
        bench.engine.turn();
        assert_eq!(bench.marks(0), [5], "the frame behind the runts passes");
        assert_eq!(bench.stats.drops(DropReason::Runt), 13);
        assert_eq!(bench.rx_stats[0].drops(DropReason::Runt), 13);
        bench.close();
    }
}

#[test]
fn tagged_frame_cut_within_its_tag_is_a_runt_where_tags_matter() {
    let cut = &frame(mac(A), &[tag(100)], 64, 0)[..16];
    for work in [classify(&PLAIN, &[(None, "default", 0)]), forward(VlanOp::None, VlanOp::Del, WAIT)] {
        let mut bench = Bench::new(work, 64);
        bench.send(0, cut);
        bench.engine.turn();
        assert_eq!(bench.stats.drops(DropReason::Runt), 1);
        bench.close();
    }
}

#[test]
fn reserved_vlan_and_unknown_destination_are_counted_at_component_and_edge() {
    // Q2, Q3, Q4: counters, no log lines.
    let mut c = Bench::new(classify(&PLAIN, &[(Some(7), A, 0)]), 64);
    c.send(0, &frame(mac(A), &[tag(4095)], 64, 0));
    c.send(0, &frame(mac(A), &[], 64, 1));
    c.send(0, &frame(mac(BROADCAST), &[], 64, 2));
    c.send(0, &frame(mac(A), &[tag(7)], 64, 3));
    c.engine.turn();
    assert_eq!(c.marks(0), [3]);
    let (edge, whole) = (c.rx_stats[0].snapshot().drops, c.stats.snapshot().drops);
    assert_eq!((edge["reserved_vlan"], edge["unknown_destination"]), (1, 2));
    assert_eq!((whole["reserved_vlan"], whole["unknown_destination"]), (1, 2));
    c.close();
}

#[test]
fn frame_without_room_for_a_tag_is_dropped_once_and_counted() {
    // The original frees such a frame twice.
    for (work, at_tx) in [
        (forward(VlanOp::Add { vid: 1, pcp: 0 }, VlanOp::None, WAIT), false),
        (forward(VlanOp::None, VlanOp::Add { vid: 1, pcp: 0 }, WAIT), true),
        (classify(&[VlanOp::Add { vid: 1, pcp: 0 }], &[(None, "default", 0)]), true),
    ] {
        let mut bench = Bench::new(work, 64);
        let mut tight = bench.cache.alloc().unwrap();
        tight.reserve(3).unwrap();
        tight.append(&frame(mac(A), &[], 64, 0)).unwrap();
        let mut burst = Burst::new();
        burst.push(tight).unwrap();
        assert_eq!(bench.sources[0].0.tx_burst(&mut bench.cache, &mut burst), 1);
        bench.send_marks(0, 1..2);
        bench.engine.turn();
        assert_eq!(bench.marks(0), [1]);
        let edge = if at_tx { &bench.tx_stats[0] } else { &bench.rx_stats[0] };
        assert_eq!(
            (edge.drops(DropReason::NoRoomForTag), bench.stats.drops(DropReason::NoRoomForTag)),
            (1, 1)
        );
        bench.close();
    }
}

#[test]
fn classifier_drops_at_a_full_output_and_serves_the_others() {
    // Q19: counted by port and reason.
    let mut c = Bench::new(classify(&PLAIN, &[(None, A, 0), (None, B, 1)]), 8);
    for mark in 0..10 {
        c.send(0, &frame(mac(A), &[], 64, mark));
        c.send(0, &frame(mac(B), &[], 64, 100 + mark));
        if mark % 5 == 4 {
            c.engine.turn();
            let marks = c.marks(1);
            assert_eq!(marks, (100 + mark - 4..=100 + mark).collect::<Vec<_>>());
        }
    }
    assert_eq!(c.marks(0), (0..8).collect::<Vec<_>>());
    assert_eq!((c.tx_stats[0].drops(DropReason::RingFull), c.tx_stats[1].snapshot().total_drops()), (2, 0));
    assert_eq!((c.stats.drops(DropReason::RingFull), c.stats.held()), (2, 0));
    c.close();
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
fn forward_stops_taking_while_its_output_is_full_and_loses_nothing() {
    let mut f = Bench::new(forward(VlanOp::None, VlanOp::None, WAIT), 16);
    f.send_marks(0, 0..100);
    f.turns(10);
    assert_eq!(f.engine.turn(), Activity::Blocked);
    assert_eq!(f.rx_stats[0].packets.get(), 32, "one burst was taken, the rest is still in the ring");
    assert_eq!(f.stats.held(), 16);
    let mut marks = f.marks(0);
    while marks.len() < 100 {
        f.engine.turn();
        marks.extend(f.marks(0));
    }
    assert_eq!(marks, (0..100).collect::<Vec<_>>());
    assert_eq!((f.stats.snapshot().total_drops(), f.stats.held()), (0, 0));
    f.close();
}

#[test]
fn wait_ends_at_its_limit_with_the_edges_reason() {
    for (work, sources) in [
        (forward(VlanOp::None, VlanOp::None, wait_for(std::time::Duration::ZERO)), 1),
        (merge(2, wait_for(std::time::Duration::ZERO)), 2),
    ] {
        let mut bench = Bench::new(work, 16);
        (0..sources).for_each(|source| bench.send_marks(source, 0..40));
        while bench.stats.rx_packets.get() < 40 * sources as u64 || bench.stats.held() > 0 {
            bench.engine.turn();
        }
        let expected = 40 * sources as u64 - 16;
        assert_eq!(bench.stats.drops(DropReason::GuestRingFull), expected);
        assert_eq!(bench.tx_stats[0].drops(DropReason::GuestRingFull), expected);
        bench.close();
    }
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

#[test]
fn copies_that_find_no_buffer_are_counted() {
    let entries = [(None, A, 0), (None, B, 1), (None, "default", 2)];
    // Outputs that change nothing share the frame; those that tag it need a buffer each, but for the last.
    let mut c = Bench::new(classify(&PLAIN, &entries), 64);
    c.send(0, &frame(mac(BROADCAST), &[], 64, 9));
    let hoard: Vec<_> = std::iter::from_fn(|| c.cache.alloc()).collect();
    c.engine.turn();
    assert_eq!([c.marks(0), c.marks(1), c.marks(2)], [[9], [9], [9]]);
    drop(hoard);
    c.close();
    let mut c = Bench::new(classify(&[VlanOp::Add { vid: 1, pcp: 0 }; 3], &entries), 64);
    c.send(0, &frame(mac(BROADCAST), &[], 64, 9));
    let hoard: Vec<_> = std::iter::from_fn(|| c.cache.alloc()).collect();
    c.engine.turn();
    assert_eq!((c.marks(0).len(), c.marks(1).len(), c.marks(2)), (0, 0, vec![9]));
    assert_eq!(c.stats.drops(DropReason::NoBuffer), 2);
    assert_eq!(
        (c.tx_stats[0].drops(DropReason::NoBuffer), c.tx_stats[1].drops(DropReason::NoBuffer)),
        (1, 1)
    );
    drop(hoard);
    c.close();
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
