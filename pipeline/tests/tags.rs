//! Tag operations that a NIC's queue does in place of the edge: what leaves and what arrives is the same, also for frames that wait
//! at an output while plans change.
#![forbid(unsafe_code)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use spp_drivers::dma::{DmaSpace, Pool, PoolCache, PoolConfig};
use spp_drivers::e1000::model::{Chip, E1000Model};
use spp_drivers::nic::model::{self, Handle};
use spp_drivers::port::{Device, Queues, RxQueue, TxQueue};
use spp_drivers::stats::{QueueStats, SharedStats};
use spp_drivers::{Burst, MacAddr, e1000, vlan};
use spp_pipeline::engine::Engine;
use spp_pipeline::plan::*;
use support::*;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
const ADD: VlanOp = VlanOp::Add { vid: 5, pcp: 3 };

fn tagged(vid: u16) -> Vec<Tag> {
    vec![tag(3 << 13 | vid)]
}

/// A half that never strips nor inserts, whatever is behind it.
struct Plain<Q>(Q);

impl RxQueue for Plain<Box<dyn RxQueue>> {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        self.0.rx_burst(pool, out)
    }
    fn stats(&self) -> SharedStats {
        self.0.stats()
    }
}

impl TxQueue for Plain<Box<dyn TxQueue>> {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        self.0.tx_burst(pool, from)
    }
    fn stats(&self) -> SharedStats {
        self.0.stats()
    }
}

/// A core that forwards from a card to a ring without the tag, and from a ring to the card with one.
struct Core {
    nic: Box<dyn Device>,
    card: Handle<E1000Model>,
    pool: Pool,
    cache: PoolCache,
    engine: Engine,
    from_guest: Source,
    to_guest: Sink,
}

impl Core {
    fn new(by_card: bool) -> Core {
        let space = DmaSpace::new();
        let (function, card) = model::new(&space, |memory| E1000Model::new(memory, Chip::I82574, MAC));
        let mut nic: Box<dyn Device> = Box::new(e1000::open_82574(function, &space).unwrap());
        let pool = Pool::new(&space, PoolConfig { n_buffers: 2048 }).unwrap();
        let Queues { mut rx, mut tx } = nic.start(&pool, 1).unwrap();
        let (mut rx, mut tx) = (rx.remove(0), tx.remove(0));
        if !by_card {
            (rx, tx) = (Box::new(Plain(rx)), Box::new(Plain(tx)));
        }
        let ((from_guest, guest_rx), (to_guest, guest_tx)) = (source(64), sink(64));
        let mut engine = Engine::new(&pool);
        let up = Work::Forward { rx: rx_edge(0, VlanOp::Del), tx: tx_edge(0, VlanOp::None, WAIT) };
        let down = Work::Forward { rx: rx_edge(1, VlanOp::None), tx: tx_edge(1, ADD, WAIT) };
        engine.change(Change {
            plan: plan(1, vec![component("up", up), component("down", down)]),
            rx_in: vec![(RxSlot(0), rx), (RxSlot(1), guest_rx)],
            tx_in: vec![(TxSlot(0), guest_tx), (TxSlot(1), tx)],
            ..Change::default()
        });
        assert!(nic.link().is_up());
        Core { nic, card, cache: pool.cache(), pool, engine, from_guest, to_guest }
    }

    /// What comes out on both sides of frames that go in on both.
    fn pass(&mut self, frames: &[Vec<u8>]) -> [Vec<Vec<u8>>; 2] {
        for frame in frames {
            self.card.inject(frame);
            assert!(self.from_guest.send(&mut self.cache, frame));
        }
        for _ in 0..4 {
            self.card.step();
            self.engine.turn();
        }
        self.card.step();
        [self.to_guest.drain(&mut self.cache), self.card.transmitted()]
    }
}

#[test]
fn card_that_does_the_tags_of_a_forward_makes_the_same_frames() {
    let tags: [&[Tag]; 6] =
        [&[], &[tag(7)], &[tag(0)], &[(0x88a8, 7)], &[tag(7), tag(8)], &[(0x88a8, 7), tag(8)]];
    let frames: Vec<_> =
        (0u32..24).map(|n| frame(MAC, tags[n as usize % 6], 60 + 90 * n as usize, n)).collect();
    let [in_software, by_card] = [false, true].map(|by_card| {
        let mut core = Core::new(by_card);
        let passed = core.pass(&frames);
        let counts = core.card.lock().n_tags;
        // The first of two plans without operations takes the card's work back.
        let up = Work::Forward { rx: rx_edge(0, VlanOp::None), tx: tx_edge(0, VlanOp::None, WAIT) };
        let down = Work::Forward { rx: rx_edge(1, VlanOp::None), tx: tx_edge(1, VlanOp::None, WAIT) };
        let plan = plan(2, vec![component("up", up), component("down", down)]);
        core.engine.change(Change { plan, ..Change::default() });
        core.engine.poll_control();
        assert!(core.nic.link().is_up());
        assert_eq!(core.pass(&frames), [frames.clone(), frames.clone()]);
        assert_eq!(core.card.lock().n_tags, counts);
        let both = [0, 1];
        let out = Change {
            rx_out: both.map(RxSlot).to_vec(),
            tx_out: both.map(TxSlot).to_vec(),
            ..Change::default()
        };
        drop(core.engine.change(out));
        core.nic.stop(Queues::default());
        drop((core.engine, core.cache, core.from_guest, core.to_guest));
        assert_eq!(core.pool.counts().out, 0);
        (passed, counts)
    });
    assert_eq!(in_software.0[0].len(), frames.len());
    assert_eq!(in_software.0, by_card.0);
    assert_eq!((in_software.1, by_card.1), ([0, 0], [12, 12]), "of four kinds in six there and back");
}

/// A card's sending half: what it was asked, and what left.
#[derive(Default)]
struct Card {
    tag: Option<u16>,
    open: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Option<u16>>>>,
    left: Arc<Mutex<Vec<Vec<u8>>>>,
    stats: SharedStats,
}

impl TxQueue for Card {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        if !self.open.load(Ordering::Relaxed) {
            return 0;
        }
        let n = from.len();
        for mut packet in from.take_all() {
            if let Some(tag) = self.tag {
                vlan::add_tag(&mut packet, tag, pool).unwrap();
            }
            self.left.lock().unwrap().push(bytes(&packet));
            pool.free(packet);
        }
        n
    }
    fn insert_vlan(&mut self, tag: Option<u16>) -> bool {
        self.asked.lock().unwrap().push(tag);
        self.tag = tag;
        true
    }
    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

/// One frame comes under each of these operations while the card takes what is pending, or doesn't; what is asked of the card, and
/// the tags of the frames that leave.
fn under(steps: &[(VlanOp, bool)]) -> (Vec<Option<u16>>, Vec<Vec<Tag>>) {
    let pool = pool(64);
    let (mut cache, mut engine) = (pool.cache(), Engine::new(&pool));
    let (mut guest, guest_rx) = source(8);
    let card = Card { stats: QueueStats::shared(), ..Card::default() };
    let (open, asked, left) = (card.open.clone(), card.asked.clone(), card.left.clone());
    let tx: Box<dyn TxQueue> = Box::new(card);
    let (mut rx_in, mut tx_in) = (vec![(RxSlot(0), guest_rx)], vec![(TxSlot(0), tx)]);
    for (n, (op, is_open)) in (0u32..).zip(steps) {
        let work = Work::Forward { rx: rx_edge(0, VlanOp::None), tx: tx_edge(0, *op, WAIT) };
        let plan = plan(n.into(), vec![component("f", work)]);
        let (rx_in, tx_in) = (std::mem::take(&mut rx_in), std::mem::take(&mut tx_in));
        engine.change(Change { plan, rx_in, tx_in, ..Change::default() });
        assert!(guest.send(&mut cache, &frame(MAC, &[], 60, n)));
        open.store(*is_open, Ordering::Relaxed);
        engine.turn();
    }
    let out = Change { rx_out: vec![RxSlot(0)], tx_out: vec![TxSlot(0)], ..Change::default() };
    drop(engine.change(out));
    drop((engine, cache, guest));
    assert_eq!(pool.counts().out, 0);
    let frames = left.lock().unwrap();
    let marks: Vec<_> = frames.iter().map(|frame| tags_and_mark(frame).1).collect();
    assert_eq!(marks, (0..steps.len() as u32).collect::<Vec<_>>());
    (asked.lock().unwrap().clone(), frames.iter().map(|frame| tags_and_mark(frame).0).collect())
}

const TCI: u16 = 3 << 13 | 5;
const OTHER: VlanOp = VlanOp::Add { vid: 9, pcp: 3 };

#[test]
fn card_is_asked_when_a_plan_begins_to_tag_and_again_when_none_does() {
    let (asked, tags) =
        under(&[(ADD, true), (ADD, true), (VlanOp::None, true), (VlanOp::Del, true), (OTHER, true)]);
    // The last: the half leaves, and goes as it came.
    assert_eq!(asked, [Some(TCI), None, Some(3 << 13 | 9), None]);
    assert_eq!(tags, [tagged(5), tagged(5), vec![], vec![], tagged(9)]);
}

#[test]
fn frame_that_waits_for_the_card_gets_the_tag_of_the_plan_it_came_under() {
    for (next, wanted) in
        [(VlanOp::None, vec![]), (OTHER, tagged(9)), (ADD, tagged(5)), (VlanOp::Del, vec![])]
    {
        let (asked, tags) = under(&[(ADD, false), (next, true)]);
        assert_eq!(tags, [tagged(5), wanted], "{next:?}");
        assert_eq!(asked, [Some(TCI), None], "{next:?}");
    }
}

#[test]
fn frame_that_waits_without_a_tag_gets_none_from_a_card_that_tags_the_next() {
    let (asked, tags) = under(&[(VlanOp::None, false), (ADD, true), (ADD, true)]);
    assert_eq!(tags, [vec![], tagged(5), tagged(5)]);
    assert_eq!(asked, [Some(TCI), None], "once nothing waits");
}
