//! The true driver over the model: traffic, chains, link, restart; in `lies` every lie by name.

mod lies;

use super::*;
use crate::burst::{BURST, Burst};
use crate::dma::{Pool, PoolCache, PoolConfig};
use crate::port::{Device, Health, Link, Queues};
use crate::stats::DropReason;
use crate::virtio::net::{self, VirtioNet};
use crate::virtio::regs::feature;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);

struct Bench {
    nic: VirtioNet<SimNic>,
    sim: SimHandle,
    pool: Pool,
    cache: PoolCache,
    queues: Queues,
}

impl Bench {
    fn unstarted() -> Bench {
        let space = DmaSpace::new();
        let (function, sim) = super::new(&space, MAC);
        let nic = net::open(function, &space).unwrap();
        let pool = Pool::new(&space, PoolConfig { n_buffers: 1024 }).unwrap();
        let cache = pool.cache();
        Bench { nic, sim, pool, cache, queues: Queues::default() }
    }

    fn new() -> Bench {
        let mut bench = Bench::unstarted();
        bench.start();
        bench
    }

    fn start(&mut self) {
        self.queues = self.nic.start(&self.pool, 1).unwrap();
    }

    fn stop(&mut self) {
        self.nic.stop(std::mem::take(&mut self.queues));
    }

    fn restart(&mut self) {
        self.stop();
        self.sim.set_fault(None);
        self.start();
    }

    fn frame(&mut self, n: usize, len: usize) -> crate::dma::PacketBuf {
        let bytes = frame(n, len);
        let mut packet: Option<crate::dma::PacketBuf> = None;
        for piece in bytes.chunks(crate::dma::DATA_ROOM) {
            let mut buffer = self.cache.alloc().unwrap();
            buffer.append(piece).unwrap();
            match &mut packet {
                None => packet = Some(buffer),
                Some(head) => head.last_segment_mut().chain(buffer),
            }
        }
        packet.unwrap_or_else(|| self.cache.alloc().unwrap())
    }

    /// Sends frames in bursts, the device working in between, until all are gone.
    fn send(&mut self, n: usize, len: usize) {
        let mut burst = Burst::new();
        let mut made = 0;
        for _ in 0..10 * n + 10 {
            while made < n && burst.room() > 0 {
                let packet = self.frame(made, len);
                burst.push(packet).unwrap();
                made += 1;
            }
            self.queues.tx[0].tx_burst(&mut self.cache, &mut burst);
            self.sim.step();
            if made == n && burst.is_empty() {
                return;
            }
        }
        panic!("{} of {n} frames are stuck", n - made + burst.len());
    }

    /// Receives everything that comes, at most `limit` bursts.
    fn receive(&mut self, limit: usize) -> Vec<Vec<u8>> {
        let (mut got, mut burst) = (Vec::new(), Burst::new());
        for _ in 0..limit {
            self.sim.step();
            self.queues.rx[0].rx_burst(&mut self.cache, &mut burst);
            for packet in burst.take_all() {
                got.push(packet.segments().collect::<Vec<_>>().concat());
                self.cache.free(packet);
            }
        }
        got
    }

    fn rx_drops(&self, reason: DropReason) -> u64 {
        self.queues.rx[0].stats().drops(reason)
    }

    fn tx_drops(&self, reason: DropReason) -> u64 {
        self.queues.tx[0].stats().drops(reason)
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

    /// After any story: nothing is lost, nothing was touched that was not given.
    fn finish(mut self) {
        self.stop();
        let Bench { nic, sim, pool, cache, queues } = self;
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
        assert_eq!(self.receive(4).len(), 40);
        assert_eq!(self.nic.health(), Health::Ok);
    }
}

fn frame(n: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (n * 31 + i) as u8).collect()
}

#[test]
fn identity_and_features_are_those_of_the_device() {
    let mut bench = Bench::new();
    assert!(net::matches(0x1af4, 0x1041) && !net::matches(0x8086, 0x1041));
    assert_eq!(bench.nic.mac(), Some(MAC));
    assert_eq!(bench.nic.info().driver, "virtio-net");
    assert_eq!(bench.sim.accepted(), feature::USED & !feature::MTU);
    assert_eq!(bench.nic.link(), Link::Up { speed_mbps: 0 });
    bench.finish();
}

#[test]
fn bursts_of_every_size_arrive_whole_and_in_order() {
    for n in [1, 31, 32, 33, 1000] {
        for len in [64, 65, 1500, 4000] {
            let mut bench = Bench::new();
            let expected: Vec<_> = (0..n).map(|i| frame(i, len)).collect();
            bench.send(n, len);
            assert_eq!(bench.sim.transmitted(), expected, "tx {n} x {len}");
            expected.iter().for_each(|bytes| bench.sim.inject(bytes));
            assert_eq!(bench.receive(2 + n / 4), expected, "rx {n} x {len}");
            assert_eq!(bench.queues.rx[0].stats().bytes.get(), (n * len) as u64);
            assert_eq!(bench.queues.tx[0].stats().packets.get(), n as u64);
            bench.finish();
        }
    }
}

#[test]
fn indices_wrap_after_seventy_thousand_frames() {
    let mut bench = Bench::new();
    for _ in 0..70 {
        bench.send(1000, 64);
        assert_eq!(bench.sim.transmitted().len(), 1000);
        (0..1000).for_each(|n| bench.sim.inject(&frame(n, 64)));
        assert_eq!(bench.receive(40).len(), 1000);
    }
    assert_eq!(bench.nic.health(), Health::Ok);
    bench.finish();
}

#[test]
fn one_doorbell_a_burst_and_none_when_the_device_wants_none() {
    let mut bench = Bench::new();
    let before = bench.sim.doorbells(QUEUE_TX);
    bench.send(32, 64);
    assert_eq!(bench.sim.doorbells(QUEUE_TX), before + 1);
    bench.sim.suppress_doorbells(QUEUE_TX, true);
    bench.send(32, 64);
    assert_eq!(bench.sim.doorbells(QUEUE_TX), before + 1);
    assert_eq!(bench.sim.transmitted().len(), 64);
    bench.finish();
}

#[test]
fn full_ring_leaves_frames_with_the_caller_until_the_device_gets_on() {
    let mut bench = Bench::new();
    let mut burst = Burst::new();
    let mut sent = 0;
    for _ in 0..10 {
        while burst.room() > 0 {
            let packet = bench.frame(0, 64);
            burst.push(packet).unwrap();
        }
        sent += bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
    }
    assert_eq!((sent, burst.len()), (256, 32), "the ring has 256 descriptors");
    bench.sim.step();
    assert_eq!(bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst), 32);
    bench.finish();
}

#[test]
fn frames_wait_in_the_ring_while_the_pool_is_empty() {
    let mut bench = Bench::new();
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

#[test]
fn frame_without_headroom_gets_its_header_in_a_buffer_of_its_own() {
    let mut bench = Bench::new();
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

#[test]
fn frame_that_others_read_gets_its_header_in_a_buffer_of_its_own() {
    let mut bench = Bench::new();
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

#[test]
fn runts_and_oversize_frames_are_not_sent_and_counted() {
    let mut bench = Bench::unstarted();
    bench.sim.offer(feature::USED);
    bench.sim.set_mtu(1500);
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
fn received_runt_is_dropped_and_counted() {
    let mut bench = Bench::new();
    bench.sim.inject(&frame(0, 13));
    bench.sim.inject(&frame(1, 14));
    assert_eq!(bench.receive(1), [frame(1, 14)]);
    assert_eq!(bench.rx_drops(DropReason::Runt), 1);
    bench.finish();
}

#[test]
fn without_mergeable_buffers_plain_frames_still_pass() {
    let mut bench = Bench::unstarted();
    bench.sim.offer(feature::USED & !feature::MRG_RXBUF & !feature::MTU);
    bench.start();
    assert_eq!(bench.nic.info().max_frame_bytes, 2048);
    bench.sim.inject(&frame(0, 2048));
    bench.sim.inject(&frame(1, 2049));
    assert_eq!(bench.receive(2), [frame(0, 2048)]);
    bench.works();
    bench.finish();
}

#[test]
fn link_loss_drops_sent_frames_with_their_reason() {
    let mut bench = Bench::new();
    bench.sim.set_link(false);
    assert!(!bench.nic.link().is_up());
    bench.send(40, 64);
    assert_eq!(bench.tx_drops(DropReason::LinkDown), 40);
    assert!(bench.sim.transmitted().is_empty());
    bench.sim.set_link(true);
    assert!(bench.nic.link().is_up());
    bench.works();
    assert_eq!(bench.nic.device_counters()[1], ("config_changes", 2));
    bench.finish();
}

#[test]
fn promiscuous_mode_is_set_and_survives_a_restart() {
    let mut bench = Bench::new();
    assert_eq!(bench.sim.receive_modes(), [Some(false), Some(true)]);
    bench.nic.set_promiscuous(true).unwrap();
    assert_eq!(bench.sim.receive_modes(), [Some(true), Some(true)]);
    bench.restart();
    assert_eq!(bench.sim.receive_modes(), [Some(true), Some(true)]);
    bench.finish();
}

#[test]
fn control_queue_that_never_answers_is_an_error_with_a_deadline() {
    let mut bench = Bench::new();
    bench.sim.set_fault(Some(Fault::Hang));
    let error = bench.nic.set_promiscuous(true).unwrap_err();
    assert!(error.to_string().contains("did not answer"), "{error}");
    bench.restart();
    bench.works();
    bench.finish();
}
