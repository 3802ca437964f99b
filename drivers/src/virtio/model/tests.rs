//! The true driver over the model, in every layout of rings: traffic, chains, link, restart. In `traps` the fifteen
//! traps; in `lies` what else a device may do wrong; in `control` filters and several queues; in `work` checksums.

mod control;
mod lies;
mod traps;
mod work;

use super::*;
use crate::burst::{BURST, Burst};
use crate::dma::{Pool, PoolCache, PoolConfig};
use crate::port::{Device, Health, Link, Queues};
use crate::stats::DropReason;
use crate::virtio::net::{self, VirtioNet};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
const PACKED: u64 = OFFERED | feature::RING_PACKED;
/// Split and packed.
const LAYOUTS: [u64; 2] = [OFFERED, PACKED];
/// Completions in order, which are accepted without frames over several buffers only.
const IN_ORDER: u64 = (OFFERED | feature::IN_ORDER) & !feature::MRG_RXBUF;
/// Split and packed, in any order and in order.
const ALL_LAYOUTS: [u64; 4] = [OFFERED, PACKED, IN_ORDER, IN_ORDER | feature::RING_PACKED];

const QUEUE_TX: usize = 1;

struct Bench {
    nic: VirtioNet<ModelFunction<VirtioModel>>,
    sim: Handle<VirtioModel>,
    pool: Pool,
    cache: PoolCache,
    queues: Queues,
    n_pairs: u16,
}

impl Bench {
    /// A device that `prepare` was told of; not started, and all its filters open.
    fn prepared(prepare: impl FnOnce(&mut VirtioModel)) -> Bench {
        let space = DmaSpace::new();
        let (function, sim) = super::new(&space, MAC);
        prepare(&mut sim.lock());
        let mut nic = net::open(function, &space).unwrap();
        nic.set_promiscuous(true).unwrap();
        let pool = Pool::new(&space, PoolConfig { n_buffers: 4096 }).unwrap();
        let cache = pool.cache();
        Bench { nic, sim, pool, cache, queues: Queues::default(), n_pairs: 1 }
    }

    fn unstarted(offered: u64) -> Bench {
        Bench::prepared(|model| model.offer(offered))
    }

    fn new(offered: u64) -> Bench {
        let mut bench = Bench::unstarted(offered);
        bench.start();
        bench
    }

    fn start(&mut self) {
        self.queues = self.nic.start(&self.pool, self.n_pairs).unwrap();
    }

    fn start_error(&mut self) -> String {
        self.nic.start(&self.pool, self.n_pairs).map(|_| ()).unwrap_err().to_string()
    }

    fn stop(&mut self) {
        self.nic.stop(std::mem::take(&mut self.queues));
    }

    fn restart(&mut self) {
        self.stop();
        self.sim.set_fault(None);
        self.lie(None);
        self.start();
    }

    fn model<T>(&self, look: impl FnOnce(&mut VirtioModel) -> T) -> T {
        look(&mut self.sim.lock())
    }

    fn lie(&self, lie: Option<Lie>) {
        self.model(|model| model.set_lie(lie));
    }

    fn frame(&mut self, n: usize, len: usize) -> crate::dma::PacketBuf {
        self.packet(&frame(n, len))
    }

    fn packet(&mut self, bytes: &[u8]) -> crate::dma::PacketBuf {
        crate::soft::copy_in(&mut self.cache, bytes).unwrap()
    }

    /// Sends frames in bursts from one queue, the device working in between, until all are gone.
    fn send_from(&mut self, queue: usize, n: usize, len: usize) {
        let mut burst = Burst::new();
        let mut made = 0;
        for _ in 0..10 * n + 10 {
            while made < n && burst.room() > 0 {
                let packet = self.frame(made, len);
                burst.push(packet).unwrap();
                made += 1;
            }
            self.queues.tx[queue].tx_burst(&mut self.cache, &mut burst);
            self.sim.step();
            if made == n && burst.is_empty() {
                return;
            }
        }
        panic!("{} of {n} frames are stuck", n - made + burst.len());
    }

    fn send(&mut self, n: usize, len: usize) {
        self.send_from(0, n, len);
    }

    /// Receives everything that comes to one queue, at most `limit` bursts.
    fn receive_at(&mut self, queue: usize, limit: usize) -> Vec<Vec<u8>> {
        let (mut got, mut burst) = (Vec::new(), Burst::new());
        for _ in 0..limit {
            self.sim.step();
            self.queues.rx[queue].rx_burst(&mut self.cache, &mut burst);
            for packet in burst.take_all() {
                got.push(packet.segments().collect::<Vec<_>>().concat());
                self.cache.free(packet);
            }
        }
        got
    }

    fn receive(&mut self, limit: usize) -> Vec<Vec<u8>> {
        self.receive_at(0, limit)
    }

    fn rx_drops(&self, reason: DropReason) -> u64 {
        self.queues.rx[0].stats().drops(reason)
    }

    fn tx_drops(&self, reason: DropReason) -> u64 {
        self.queues.tx[0].stats().drops(reason)
    }

    fn counter(&mut self, name: &str) -> u64 {
        let counters = self.nic.device_counters();
        counters.into_iter().find(|counter| counter.0 == name).unwrap().1
    }

    fn reason(&mut self) -> String {
        match self.nic.health() {
            Health::NeedsRestart(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Shows the fault on one received frame; returns what came through.
    fn receive_with(&mut self, fault: Fault) -> Vec<Vec<u8>> {
        self.sim.set_fault(Some(fault));
        self.sim.inject(&frame(0, 64));
        self.receive(1)
    }

    /// The same with a lie.
    fn receive_lie(&mut self, lie: Lie) -> Vec<Vec<u8>> {
        self.lie(Some(lie));
        self.sim.inject(&frame(0, 64));
        self.receive(1)
    }

    /// After any story: nothing is lost, nothing was touched that was not given.
    fn finish(mut self) {
        self.stop();
        let Bench { nic, sim, pool, cache, queues, .. } = self;
        drop((nic, cache, queues));
        assert_eq!(pool.counts().out, 0, "in = out + live + dropped, and none is live");
        assert_eq!(sim.stray_accesses(), [0u64; 0]);
    }

    /// Traffic passes both ways.
    fn works(&mut self) {
        self.sim.transmitted();
        self.receive(4);
        self.send(40, 64);
        assert_eq!(self.sim.transmitted().len(), 40);
        (0..40).for_each(|n| self.sim.inject(&frame(n, 100)));
        let n: usize = (0..self.queues.rx.len()).map(|queue| self.receive_at(queue, 4).len()).sum();
        assert_eq!(n, 40);
        assert_eq!(self.nic.health(), Health::Ok);
    }
}

fn frame(n: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (n * 31 + i) as u8).collect()
}

#[test]
fn identity_and_features_are_those_of_the_device() {
    for offered in ALL_LAYOUTS {
        let mut bench = Bench::new(offered);
        assert_eq!(bench.nic.mac(), Some(MAC));
        assert_eq!((bench.nic.info().driver, bench.nic.info().n_queue_pairs), ("virtio-net", 1));
        assert_eq!(bench.model(|model| model.accepted()), offered);
        assert_eq!(bench.nic.features(), offered);
        assert_eq!(bench.nic.link(), Link::Up { speed_mbps: 0 });
        bench.finish();
    }
}

#[test]
fn bursts_of_every_size_arrive_whole_and_in_order() {
    for offered in ALL_LAYOUTS {
        for batches in [false, true] {
            for (n, len) in [(1, 64), (31, 65), (32, 1500), (33, 4000), (200, 9014), (1000, 64)] {
                if len > 2048 && offered & feature::MRG_RXBUF == 0 {
                    continue;
                }
                let mut bench = Bench::new(offered);
                bench.model(|model| model.set_batches(batches));
                let expected: Vec<_> = (0..n).map(|i| frame(i, len)).collect();
                bench.send(n, len);
                assert_eq!(bench.sim.transmitted(), expected, "tx {n} x {len}");
                expected.iter().for_each(|bytes| bench.sim.inject(bytes));
                assert_eq!(bench.receive(4 + n / 4), expected, "rx {n} x {len}");
                assert_eq!(bench.queues.rx[0].stats().bytes.get(), (n * len) as u64);
                assert_eq!(bench.queues.tx[0].stats().packets.get(), n as u64);
                bench.finish();
            }
        }
    }
}

#[test]
fn indices_wrap_after_seventy_thousand_frames() {
    for offered in ALL_LAYOUTS {
        let mut bench = Bench::new(offered);
        for _ in 0..70 {
            bench.send(1000, 64);
            assert_eq!(bench.sim.transmitted().len(), 1000);
            (0..1000).for_each(|n| bench.sim.inject(&frame(n, 64)));
            assert_eq!(bench.receive(40).len(), 1000);
        }
        assert_eq!(bench.nic.health(), Health::Ok);
        bench.finish();
    }
}

#[test]
fn one_doorbell_a_burst_and_none_when_the_device_wants_none() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        let bell = doorbell(QUEUE_TX);
        let before = bench.sim.writes_to(bell);
        bench.send(32, 64);
        assert_eq!(bench.sim.writes_to(bell), before + 1);
        bench.model(|model| model.suppress_doorbells(QUEUE_TX, true));
        bench.send(32, 64);
        assert_eq!(bench.sim.writes_to(bell), before + 1);
        assert_eq!(bench.sim.transmitted().len(), 64);
        bench.finish();
    }
}

#[test]
fn frames_wait_in_the_ring_while_the_pool_is_empty() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        (0..200).for_each(|n| bench.sim.inject(&frame(n, 64)));
        let hoard: Vec<_> = std::iter::from_fn(|| bench.cache.alloc()).collect();
        let mut kept = Vec::new();
        let mut burst = Burst::new();
        for _ in 0..20 {
            bench.sim.step();
            bench.queues.rx[0].rx_burst(&mut bench.cache, &mut burst);
            kept.extend(burst.take_all());
        }
        assert!(kept.len() <= 2 * BURST, "the ring stays filled but for a burst or two: {}", kept.len());
        hoard.into_iter().for_each(|packet| bench.cache.free(packet));
        let n_kept = kept.len();
        drop(kept);
        assert_eq!(bench.receive(20).len(), 200 - n_kept, "none is lost");
        bench.finish();
    }
}

#[test]
fn frame_without_headroom_gets_its_header_in_a_buffer_of_its_own() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        let mut packet = bench.cache.alloc().unwrap();
        packet.reserve(0).unwrap();
        packet.append(&frame(3, 1514)).unwrap();
        let mut burst = Burst::new();
        burst.push(packet).unwrap();
        bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
        bench.sim.step();
        assert_eq!(bench.sim.transmitted(), [frame(3, 1514)]);
        bench.finish();
    }
}

#[test]
fn frame_that_others_read_gets_its_header_in_a_buffer_of_its_own() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        let mut packet = bench.cache.alloc().unwrap();
        packet.append(&frame(3, 100)).unwrap();
        let mut other = packet.share();
        other.push_front(12).unwrap();
        let before = other.data().to_vec();
        let mut burst = Burst::new();
        burst.push(packet).unwrap();
        bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
        bench.sim.step();
        assert_eq!(bench.sim.transmitted(), [frame(3, 100)]);
        assert_eq!(other.data(), before, "not a byte of its headroom was written");
        drop(other);
        bench.finish();
    }
}

#[test]
fn runts_and_oversize_frames_are_not_sent_and_counted() {
    let mut bench = Bench::unstarted(OFFERED | feature::MTU);
    bench.model(|model| model.set_mtu(1500));
    bench.start();
    assert_eq!(bench.nic.info().max_frame_bytes, 1522);
    bench.send(1, 13);
    bench.send(1, 1523);
    bench.send(1, 1522);
    assert_eq!(bench.sim.transmitted(), [frame(0, 1522)]);
    assert_eq!((bench.tx_drops(DropReason::Runt), bench.tx_drops(DropReason::Oversize)), (1, 1));
    bench.finish();
}

#[test]
fn frame_of_more_pieces_than_the_ring_has_is_dropped_and_blocks_nothing() {
    for offered in LAYOUTS {
        let mut bench = Bench::prepared(|model| {
            model.offer(offered);
            model.set_ring_size(4);
        });
        bench.start();
        bench.send(1, 9000);
        bench.send(3, 4000);
        assert_eq!(bench.sim.transmitted().len(), 3);
        assert_eq!(bench.tx_drops(DropReason::Oversize), 1);
        bench.finish();
    }
}

#[test]
fn received_runt_is_dropped_and_counted() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        bench.sim.inject(&frame(0, 13));
        bench.sim.inject(&frame(1, 14));
        assert_eq!(bench.receive(1), [frame(1, 14)]);
        assert_eq!(bench.rx_drops(DropReason::Runt), 1);
        bench.finish();
    }
}

#[test]
fn without_mergeable_buffers_plain_frames_still_pass() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered & !feature::MRG_RXBUF);
        assert_eq!(bench.nic.info().max_frame_bytes, 2048);
        bench.sim.inject(&frame(0, 2048));
        bench.sim.inject(&frame(1, 2049));
        assert_eq!(bench.receive(2), [frame(0, 2048)]);
        bench.works();
        bench.finish();
    }
}

#[test]
fn link_loss_drops_sent_frames_with_their_reason() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        assert!(bench.nic.link().is_up());
        bench.model(|model| model.set_link(false));
        assert!(!bench.nic.link().is_up(), "by the interrupt, at the first look");
        bench.send(40, 64);
        assert_eq!(bench.tx_drops(DropReason::LinkDown), 40);
        assert!(bench.sim.transmitted().is_empty());
        bench.model(|model| model.set_link(true));
        assert!(bench.nic.link().is_up());
        bench.works();
        assert_eq!((bench.counter("link_interrupts"), bench.counter("config_changes")), (2, 2));
        bench.finish();
    }
}

#[test]
fn link_change_whose_interrupt_was_lost_is_seen_within_a_second() {
    let mut bench = Bench::new(OFFERED);
    assert!(bench.nic.link().is_up());
    bench.model(|model| model.card.vectors.clear());
    bench.model(|model| model.set_link(false));
    let looks = (0..).take_while(|_| bench.nic.link().is_up()).take(100).count();
    assert!(looks <= 20, "{looks} looks of 50 ms");
    bench.finish();
}

#[test]
fn speed_is_told_where_the_device_knows_it() {
    let mut bench = Bench::unstarted(OFFERED | feature::SPEED_DUPLEX);
    bench.start();
    assert_eq!(bench.nic.link(), Link::Up { speed_mbps: 0 }, "unknown");
    bench.stop();
    bench.model(|model| model.set_speed(40_000));
    bench.start();
    assert_eq!(bench.nic.link(), Link::Up { speed_mbps: 40_000 });
    bench.finish();
}

#[test]
fn device_with_a_short_configuration_is_asked_for_nothing_behind_it() {
    let all = OFFERED | feature::SPEED_DUPLEX | feature::RSS | feature::MQ;
    let mut bench = Bench::prepared(|model| {
        model.offer(all);
        model.set_device_bytes(12);
    });
    bench.n_pairs = 2;
    bench.start();
    assert_eq!(bench.nic.features(), OFFERED | feature::MQ);
    bench.works();
    bench.finish();
}
