//! The true driver over the model, for both chips: traffic, long frames, checksums, queues, filters, link, counters,
//! restart; and in `traps` those by name.

mod traps;

use super::*;
use crate::burst::{BURST, Burst};
use crate::dma::{DATA_ROOM, DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use crate::e1000::init::{K8254x, K82574, Kind};
use crate::e1000::{Nic, open};
use crate::nic::model::{Handle, ModelFunction};
use crate::offload::{F_NEEDS_CSUM, Offload, Offloads};
use crate::port::{Device, Health, Link, Queues};
use crate::stats::DropReason;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
const OTHER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 9, 9, 9]);
const IMC: usize = 0xd8;
const RDT: usize = 0x2818;
const TDT: usize = 0x3818;

struct Bench<K: Kind> {
    nic: Nic<ModelFunction<E1000Model>, K>,
    model: Handle<E1000Model>,
    pool: Pool,
    cache: PoolCache,
    queues: Queues,
    n_pairs: u16,
}

type B82574 = Bench<K82574>;

fn frame_to(dst: MacAddr, n: usize, len: usize) -> Vec<u8> {
    let mut frame = [&dst.0[..], &[2, 0, 0, 0, 0, 9, 0x88, 0xb5], &(n as u32).to_be_bytes()].concat();
    frame.extend((frame.len()..len.max(frame.len())).map(|at| (at + n) as u8));
    frame.truncate(len);
    frame
}

fn frame(n: usize, len: usize) -> Vec<u8> {
    frame_to(MAC, n, len)
}

impl<K: Kind> Bench<K> {
    fn unstarted() -> Self {
        let space = DmaSpace::new();
        let chip = if K::PCIE { Chip::I82574 } else { Chip::I82545 };
        let (function, model) = crate::nic::model::new(&space, |memory| E1000Model::new(memory, chip, MAC));
        let nic = open::<_, K>(function, &space).unwrap();
        let pool = Pool::new(&space, PoolConfig { n_buffers: 4096 }).unwrap();
        let cache = pool.cache();
        Bench { nic, model, pool, cache, queues: Queues::default(), n_pairs: 1 }
    }

    fn new() -> Self {
        let mut bench = Bench::unstarted();
        bench.start();
        bench
    }

    fn start(&mut self) {
        self.queues = self.nic.start(&self.pool, self.n_pairs).unwrap();
    }

    fn stop(&mut self) {
        self.nic.stop(std::mem::take(&mut self.queues));
    }

    fn restart(&mut self) {
        self.stop();
        self.model.set_fault(None);
        self.start();
    }

    fn packet(&mut self, bytes: &[u8]) -> PacketBuf {
        let mut packet: Option<PacketBuf> = None;
        for piece in bytes.chunks(DATA_ROOM) {
            let mut buffer = self.cache.alloc().unwrap();
            buffer.append(piece).unwrap();
            match &mut packet {
                None => packet = Some(buffer),
                Some(head) => head.last_segment_mut().chain(buffer),
            }
        }
        packet.unwrap()
    }

    /// Sends frames in bursts, the device working in between, until all are gone.
    fn send(&mut self, n: usize, len: usize) {
        let mut burst = Burst::new();
        let mut made = 0;
        for _ in 0..10 * n + 10 {
            while made < n && burst.room() > 0 {
                let packet = self.packet(&frame(made, len));
                burst.push(packet).unwrap();
                made += 1;
            }
            self.queues.tx[0].tx_burst(&mut self.cache, &mut burst);
            self.model.step();
            if made == n && burst.is_empty() {
                return;
            }
        }
        panic!("{} frames not taken", burst.len());
    }

    fn poll(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        self.queues.rx[queue].rx_burst(&mut self.cache, &mut burst);
        let frames: Vec<_> = burst.take_all().collect();
        frames
            .into_iter()
            .map(|packet| {
                let bytes = packet.segments().collect::<Vec<_>>().concat();
                self.cache.free(packet);
                bytes
            })
            .collect()
    }

    /// All that arrives in so many steps.
    fn receive(&mut self, steps: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for _ in 0..steps {
            self.model.step();
            frames.extend(self.poll(0));
        }
        frames
    }

    fn receive_with(&mut self, fault: Fault) -> Vec<Vec<u8>> {
        self.model.set_fault(Some(fault));
        self.model.inject(&frame(0, 64));
        self.receive(3)
    }

    fn rx_drops(&self, reason: DropReason) -> u64 {
        self.queues.rx[0].stats().drops(reason)
    }

    fn tx_drops(&self, reason: DropReason) -> u64 {
        self.queues.tx[0].stats().drops(reason)
    }

    fn counter(&mut self, name: &str) -> u64 {
        self.nic.device_counters().into_iter().find(|c| c.0 == name).unwrap().1
    }

    fn reason(&mut self) -> String {
        match self.nic.health() {
            Health::NeedsRestart(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Frames of all kinds pass both ways.
    fn works(&mut self) {
        self.model.transmitted();
        for n in [1, 31, 32, 33] {
            (0..n).for_each(|i| self.model.inject(&frame(i, 60 + i)));
            let wanted: Vec<_> = (0..n).map(|i| frame(i, 60 + i)).collect();
            assert_eq!(self.receive(4), wanted);
            self.send(n, 100);
            assert_eq!(self.model.transmitted(), (0..n).map(|i| frame(i, 100)).collect::<Vec<_>>());
        }
    }

    /// Nothing is lost, nothing was touched that is not ours.
    fn finish(mut self) {
        self.stop();
        assert_eq!(self.model.stray_accesses(), [] as [u64; 0]);
        drop(self.nic);
        drop(self.cache);
        assert_eq!(self.pool.counts().out, 0);
    }
}

fn both(test: fn(), other: fn()) {
    test();
    other();
}

fn traffic<K: Kind>() {
    let mut bench = Bench::<K>::new();
    assert_eq!(bench.nic.mac(), Some(MAC));
    for len in [60, 61, 1514, 2047, 2048, 2049, 4096, 4097, 9014] {
        (0..40).for_each(|n| bench.model.inject(&frame(n, len)));
        assert_eq!(bench.receive(10), (0..40).map(|n| frame(n, len)).collect::<Vec<_>>(), "{len}");
        bench.send(40, len);
        assert_eq!(bench.model.transmitted(), (0..40).map(|n| frame(n, len)).collect::<Vec<_>>(), "{len}");
    }
    bench.works();
    assert_eq!(bench.nic.health(), Health::Ok);
    bench.finish();
}

#[test]
fn frames_of_all_lengths_pass_both_ways_on_both_chips() {
    both(traffic::<K8254x>, traffic::<K82574>);
}

#[test]
fn indices_wrap_after_seventy_thousand_frames() {
    let mut bench = B82574::new();
    for round in 0..2200 {
        (0..BURST).for_each(|n| bench.model.inject(&frame(round + n, 64)));
        bench.model.step();
        assert_eq!(bench.poll(0), (0..BURST).map(|n| frame(round + n, 64)).collect::<Vec<_>>());
        bench.send(BURST, 64);
    }
    assert_eq!(bench.model.transmitted().len(), 2200 * BURST);
    bench.finish();
}

#[test]
fn one_doorbell_a_burst() {
    let mut bench = B82574::new();
    let (rx, tx) = (bench.model.writes_to(RDT), bench.model.writes_to(TDT));
    (0..BURST).for_each(|n| bench.model.inject(&frame(n, 64)));
    assert_eq!(bench.receive(3).len(), BURST);
    bench.send(BURST, 64);
    assert_eq!((bench.model.writes_to(RDT) - rx, bench.model.writes_to(TDT) - tx), (1, 1));
    bench.finish();
}

#[test]
fn frames_wait_in_the_card_while_the_pool_is_empty() {
    let mut bench = B82574::new();
    (0..600).for_each(|n| bench.model.inject(&frame(n, 64)));
    let hoard: Vec<_> = std::iter::from_fn(|| bench.cache.alloc()).collect();
    assert!(bench.receive(5).is_empty());
    assert_eq!(bench.model.waiting_on_wire(), 600 - 511);
    hoard.into_iter().for_each(|packet| bench.cache.free(packet));
    assert_eq!(bench.receive(60).len(), 600, "none is lost");
    bench.finish();
}

#[test]
fn frames_too_short_for_the_card_get_zeros_and_runts_are_dropped() {
    let mut bench = B82574::new();
    bench.send(1, 14);
    let sent = bench.model.transmitted();
    assert_eq!(sent[0][..14], frame(0, 14));
    assert_eq!(sent[0][14..], [0; 46]);
    bench.send(1, 13);
    bench.send(1, 9231);
    assert_eq!((bench.tx_drops(DropReason::Runt), bench.tx_drops(DropReason::Oversize)), (1, 1));
    bench.finish();
}

fn udp(n: u8, right: bool) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 38, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, n, 10, 0, 0, 2];
    let sum = crate::intel::model::internet_checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = vec![0x10, 0, 0x20, 0, 0, 18, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, n];
    let pseudo = [&ip[12..20], &[0, 17, 0, 18], &udp].concat();
    let sum = crate::intel::model::internet_checksum(&pseudo) ^ u16::from(!right);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    [&MAC.0[..], &[2, 0, 0, 0, 0, 9, 8, 0], &ip, &udp, &[0; 8]].concat()
}

fn checked<K: Kind>() {
    let mut bench = Bench::<K>::new();
    let mut verified = Vec::new();
    for bytes in [udp(1, true), udp(1, false), frame(0, 60)] {
        bench.model.inject(&bytes);
        bench.model.step();
        let mut burst = Burst::new();
        assert_eq!(bench.queues.rx[0].rx_burst(&mut bench.cache, &mut burst), 1, "wrong ones pass too");
        let packet = burst.pop().unwrap();
        assert_eq!(packet.data(), bytes);
        verified.push(packet.is_verified());
        bench.cache.free(packet);
    }
    assert_eq!(verified, [true, false, false]);
    assert_eq!((bench.counter("rx_checksums_right"), bench.counter("rx_checksums_wrong")), (1, 1));
    bench.finish();
}

#[test]
fn checksums_the_card_found_right_are_marked_and_wrong_ones_counted() {
    both(checked::<K8254x>, checked::<K82574>);
}

/// A UDP frame whose checksum is left undone.
fn undone<K: Kind>(bench: &mut Bench<K>, n: u8) -> PacketBuf {
    let mut bytes = udp(n, true);
    let pseudo = [&bytes[26..34], &[0, 17, 0, 18]].concat();
    let sum = !crate::intel::model::internet_checksum(&pseudo);
    bytes[40..42].copy_from_slice(&sum.to_be_bytes());
    let mut packet = bench.packet(&bytes);
    let work = Offload { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..Offload::default() };
    packet.set_offload(Some(work));
    packet
}

#[test]
fn checksums_left_undone_are_completed_by_the_card() {
    let mut bench = B82574::new();
    assert_eq!(bench.queues.tx[0].offloads(), Offloads::CSUM);
    let mut burst = Burst::new();
    for n in 0..20 {
        let packet = if n % 3 == 2 { bench.packet(&udp(n, true)) } else { undone(&mut bench, n) };
        burst.push(packet).unwrap();
    }
    assert_eq!(bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst), 20);
    bench.model.step();
    assert_eq!(bench.model.transmitted(), (0..20).map(|n| udp(n, true)).collect::<Vec<_>>());
    bench.restart();
    let packet = undone(&mut bench, 7);
    burst.push(packet).unwrap();
    bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
    bench.model.step();
    assert_eq!(bench.model.transmitted(), [udp(7, true)], "a card that was reset is told anew");
    bench.finish();
}

#[test]
fn checksum_the_card_can_not_reach_is_completed_in_software() {
    let mut bench = B82574::new();
    let mut bytes = frame(0, 400);
    bytes[300..302].fill(0);
    let wanted = crate::intel::model::internet_checksum(&bytes[290..]);
    let mut packet = bench.packet(&bytes);
    let work = Offload { flags: F_NEEDS_CSUM, csum_start: 290, csum_offset: 10, ..Offload::default() };
    packet.set_offload(Some(work));
    let mut burst = Burst::new();
    burst.push(packet).unwrap();
    bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
    bench.model.step();
    assert_eq!(bench.model.transmitted()[0][300..302], wanted.to_be_bytes());
    bench.finish();
}

#[test]
fn long_frame_the_card_does_not_cut_stays_with_the_caller() {
    let mut bench = B82574::new();
    let mut burst = Burst::new();
    let plain = bench.packet(&frame(0, 64));
    burst.push(plain).unwrap();
    let mut long = undone(&mut bench, 1);
    let work = long.offload().unwrap();
    long.set_offload(Some(Offload { gso_type: crate::offload::GSO_TCPV4, gso_size: 1000, ..work }));
    burst.push(long).unwrap();
    assert_eq!(bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst), 1);
    assert_eq!(burst.len(), 1);
    burst.free_all(&mut bench.cache);
    bench.finish();
}

#[test]
fn two_queues_share_flows_and_keep_each_in_order() {
    let mut bench = B82574::unstarted();
    bench.n_pairs = 2;
    bench.start();
    for round in 0..4 {
        for n in 0..64 {
            let mut bytes = udp(n, true);
            bytes[51] = round;
            bench.model.inject(&bytes);
        }
    }
    bench.model.step();
    let mut seen = [Vec::new(), Vec::new()];
    for (queue, frames) in seen.iter_mut().enumerate() {
        for _ in 0..20 {
            frames.extend(bench.poll(queue));
        }
    }
    assert_eq!(seen[0].len() + seen[1].len(), 256);
    assert!(seen.iter().all(|frames| frames.len() >= 64), "{:?}", seen.each_ref().map(Vec::len));
    for n in 0..64 {
        let of_flow = |frames: &Vec<Vec<u8>>| -> Vec<u8> {
            frames.iter().filter(|f| f[29] == n).map(|f| f[51]).collect()
        };
        let [a, b] = seen.each_ref().map(of_flow);
        assert!([a, b].contains(&vec![0, 1, 2, 3]), "flow {n} stays in one queue, in order");
    }
    let mut burst = Burst::new();
    let packet = bench.packet(&frame(9, 80));
    burst.push(packet).unwrap();
    bench.queues.tx[1].tx_burst(&mut bench.cache, &mut burst);
    bench.model.step();
    assert_eq!(bench.model.transmitted(), [frame(9, 80)]);
    bench.finish();
}

#[test]
fn filters_let_in_what_is_wanted_and_survive_a_restart() {
    let mut bench = B82574::new();
    let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    let arrive = |bench: &mut B82574| {
        for (n, dst) in [MAC, OTHER_MAC, group, MacAddr([0xff; 6])].into_iter().enumerate() {
            bench.model.inject(&frame_to(dst, n, 64));
        }
        let frames = bench.receive(3);
        frames.into_iter().map(|frame| frame[17]).collect::<Vec<_>>()
    };
    assert_eq!(arrive(&mut bench), [0, 2, 3]);
    bench.nic.set_all_multicast(false).unwrap();
    assert_eq!(arrive(&mut bench), [0, 3]);
    bench.nic.set_unicast(&[OTHER_MAC]).unwrap();
    assert_eq!(arrive(&mut bench), [0, 1, 3]);
    bench.restart();
    assert_eq!(arrive(&mut bench), [0, 1, 3], "restored");
    bench.nic.set_unicast(&[]).unwrap();
    assert_eq!(arrive(&mut bench), [0, 3]);
    bench.nic.set_promiscuous(true).unwrap();
    assert_eq!(arrive(&mut bench), [0, 1, 2, 3]);
    bench.restart();
    assert_eq!(arrive(&mut bench), [0, 1, 2, 3], "restored");
    bench.finish();
}

#[test]
fn more_addresses_than_filters_are_received_promiscuously_and_counted() {
    let mut bench = B82574::new();
    let many: Vec<_> = (0..16).map(|n| MacAddr([2, 0, 0, 0, 1, n])).collect();
    bench.nic.set_unicast(&many[..15]).unwrap();
    assert_eq!(bench.counter("promiscuous_fallbacks"), 0);
    bench.nic.set_unicast(&many).unwrap();
    assert_eq!(bench.counter("promiscuous_fallbacks"), 1);
    bench.model.inject(&frame_to(many[15], 5, 64));
    assert_eq!(bench.receive(2).len(), 1);
    bench.finish();
}

fn link<K: Kind>(interrupts: u64) {
    let mut bench = Bench::<K>::new();
    assert_eq!(bench.nic.link(), Link::Up { speed_mbps: 1000 });
    bench.model.lock().set_cable(false);
    assert_eq!(bench.nic.link(), Link::Down { reason: "no carrier".into() });
    bench.send(40, 64);
    assert_eq!(bench.tx_drops(DropReason::LinkDown), 40);
    bench.model.lock().set_cable(true);
    assert!(bench.nic.link().is_up());
    bench.works();
    assert_eq!(bench.counter("link_interrupts"), interrupts);
    bench.finish();
}

#[test]
fn link_loss_drops_sent_frames_with_their_reason() {
    both(|| link::<K8254x>(0), || link::<K82574>(2));
}

#[test]
fn link_change_whose_interrupt_is_lost_is_seen_within_a_second_of_looks() {
    let mut bench = B82574::new();
    bench.model.lock().card().vectors.clear();
    bench.model.lock().set_cable(false);
    let looks = (0..25).find(|_| !bench.nic.link().is_up());
    assert!(looks.is_some());
    bench.finish();
}

#[test]
fn phy_that_the_kernel_switched_off_is_woken() {
    let mut bench = B82574::unstarted();
    bench.model.lock().power_phy_down();
    bench.start();
    assert!(bench.nic.link().is_up());
    bench.finish();
}

#[test]
fn second_start_and_too_many_queue_pairs_are_refused() {
    let mut bench = B82574::new();
    assert!(bench.nic.start(&bench.pool, 1).is_err());
    bench.stop();
    for n in [0, 3] {
        assert!(bench.nic.start(&bench.pool, n).is_err());
    }
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn pool_too_small_for_the_ring_is_an_error_with_the_remedy() {
    let mut bench = B82574::unstarted();
    let space = DmaSpace::new();
    let small = Pool::new(&space, PoolConfig { n_buffers: 128 }).unwrap();
    let error = bench.nic.start(&small, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("give the pool more buffers"), "{error}");
    assert_eq!(small.counts().out, 0);
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn halves_dropped_before_the_stop_keep_their_buffers_until_the_reset() {
    let mut bench = B82574::new();
    let before = bench.pool.counts().out;
    bench.queues = Queues::default();
    assert_eq!(bench.pool.counts().out, before, "the device may still write to them");
    (0..10).for_each(|n| bench.model.inject(&frame(n, 64)));
    bench.model.step();
    bench.finish();
}
