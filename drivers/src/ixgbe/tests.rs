//! The true driver over the model: traffic, link and module, filters, counters; the traps by name are in [`traps`].

mod traps;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::model::{Card, Fault, Function, Model, Module};
use super::{Nic, open};
use crate::burst::Burst;
use crate::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use crate::intel::trials::tags::{self, Rig};
use crate::mac::MacAddr;
use crate::nic::model::{Card as Common, Fault as CommonFault, Handle, ModelFunction, ModelMemory};
use crate::nic::tags::Switch;
use crate::offload::{F_NEEDS_CSUM, Offload};
use crate::port::{Device, Health, Link, Queues};
use crate::stats::DropReason;

const MAC: MacAddr = MacAddr([0x02, 0, 0, 0x82, 0x59, 0x90]);
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const UP: Link = Link::Up { speed_mbps: 10_000 };

struct Bench {
    nic: Nic<ModelFunction<Function>>,
    card: Handle<Function>,
    pool: Pool,
    cache: PoolCache,
    queues: Queues,
}

impl Bench {
    fn unstarted(device: u16, prepare: impl FnOnce(&mut Model)) -> Bench {
        Bench::in_space(&DmaSpace::new(), device, prepare)
    }

    fn in_space(space: &DmaSpace, device: u16, prepare: impl FnOnce(&mut Model)) -> Bench {
        let mut chip = Model::new(Card::of_id(device, MAC.0));
        prepare(&mut chip);
        let make = |memory: Arc<ModelMemory>| Function::new(Common::new(memory), chip);
        let (function, card) = crate::nic::model::new(space, make);
        let nic = open(function, space).unwrap();
        let pool = Pool::new(space, PoolConfig { n_buffers: 4096 }).unwrap();
        let cache = pool.cache();
        Bench { nic, card, pool, cache, queues: Queues::default() }
    }

    fn with_queues(device: u16, n: u16) -> Bench {
        let mut bench = Bench::unstarted(device, |_| {});
        bench.queues = bench.nic.start(&bench.pool, n).unwrap();
        bench
    }

    fn new() -> Bench {
        Bench::with_queues(0x10fb, 1)
    }

    fn restart(&mut self) {
        self.nic.stop(std::mem::take(&mut self.queues));
        self.card.set_fault(None);
        self.chip(|chip| chip.set_fault(None));
        self.queues = self.nic.start(&self.pool, 1).unwrap();
    }

    fn chip<T>(&self, then: impl FnOnce(&mut Model) -> T) -> T {
        then(&mut self.card.lock().chip)
    }

    fn packet(&mut self, bytes: &[u8]) -> PacketBuf {
        crate::soft::copy_in(&mut self.cache, bytes).unwrap()
    }

    /// Sends frames in bursts, the device working in between, until all are gone.
    fn send(&mut self, frames: &[Vec<u8>]) {
        let (mut burst, mut rest) = (Burst::new(), frames.iter());
        for _ in 0..10 * frames.len() + 10 {
            while burst.room() > 0
                && let Some(bytes) = rest.next()
            {
                let packet = self.packet(bytes);
                burst.push(packet).unwrap();
            }
            self.queues.tx[0].tx_burst(&mut self.cache, &mut burst);
            self.card.step();
            if burst.is_empty() && rest.len() == 0 {
                return;
            }
        }
        panic!("{} frames are stuck", burst.len() + rest.len());
    }

    /// Receives everything that comes on all queues, in `rounds` looks: (queue, frame, verified).
    fn receive_all(&mut self, rounds: usize) -> Vec<(usize, Vec<u8>, bool)> {
        let (mut got, mut burst) = (Vec::new(), Burst::new());
        for _ in 0..rounds {
            self.card.step();
            for (index, queue) in self.queues.rx.iter_mut().enumerate() {
                queue.rx_burst(&mut self.cache, &mut burst);
                for packet in burst.take_all() {
                    let bytes = packet.segments().collect::<Vec<_>>().concat();
                    got.push((index, bytes, packet.is_verified()));
                    self.cache.free(packet);
                }
            }
        }
        got
    }

    fn receive(&mut self, rounds: usize) -> Vec<Vec<u8>> {
        self.receive_all(rounds).into_iter().map(|(_, bytes, _)| bytes).collect()
    }

    fn inject(&self, frames: &[Vec<u8>]) {
        frames.iter().for_each(|frame| self.card.inject(frame));
    }

    /// One frame comes in while the device misbehaves; what the driver makes of it.
    fn receive_with(&mut self, fault: Fault) -> Vec<Vec<u8>> {
        self.chip(|chip| chip.set_fault(Some(fault)));
        self.inject(&[frame(0, 100)]);
        self.receive(2)
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.queues.rx[0].stats().drops(reason)
    }

    fn counter(&mut self, name: &str) -> u64 {
        let counters = self.nic.device_counters();
        counters.iter().find(|(row, _)| *row == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    fn reason(&mut self) -> String {
        match self.nic.health() {
            Health::NeedsRestart(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn down(&mut self) -> String {
        match self.nic.link() {
            Link::Down { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Traffic passes both ways.
    fn works(&mut self) {
        self.card.transmitted();
        self.receive(4);
        let frames: Vec<_> = (0..40).map(|n| frame(n, 100)).collect();
        self.send(&frames);
        assert_eq!(self.card.transmitted(), frames);
        self.inject(&frames);
        assert_eq!(self.receive(4), frames);
        assert_eq!(self.nic.health(), Health::Ok);
    }

    /// After any story: nothing is lost, nothing was touched that was not given, nothing was done that is forbidden.
    fn finish(self) {
        let card = self.close();
        assert_eq!(card.stray_accesses(), [0u64; 0]);
        let violations = card.lock().chip.violations().to_vec();
        assert!(violations.is_empty(), "{violations:?}");
    }

    fn close(mut self) -> Handle<Function> {
        self.nic.stop(std::mem::take(&mut self.queues));
        assert!(!self.card.bus_master(), "no DMA after a stop");
        let Bench { nic, card, pool, cache, queues } = self;
        drop((nic, cache, queues));
        assert_eq!(pool.counts().out, 0, "in = out + live + dropped, and none is live");
        card
    }
}

/// A frame for the card, of an experimental type.
fn frame(n: usize, len: usize) -> Vec<u8> {
    let mut bytes = [&MAC.0[..], &PEER, &[0x88, 0xb5]].concat();
    bytes.extend((14..len).map(|i| (n * 31 + i) as u8));
    bytes
}

/// A TCP or UDP segment over IPv4, its checksums right.
fn segment(proto: u8, source_port: u16, payload: usize) -> Vec<u8> {
    let port = source_port.to_be_bytes();
    let l4 = match proto {
        6 => vec![port[0], port[1], 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0],
        _ => vec![port[0], port[1], 0, 80, 0, 8 + payload as u8, 0, 0],
    };
    let l4_len = l4.len() + payload;
    let mut ip = vec![0x45, 0, 0, 20 + l4_len as u8, 0, 1, 0, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let value = !ones_sum(&ip, 0);
    ip[10..12].copy_from_slice(&value.to_be_bytes());
    let mut bytes = [&MAC.0[..], &PEER, &[8, 0], &ip, &l4].concat();
    bytes.extend((0..payload).map(|i| i as u8));
    let at = 34 + if proto == 6 { 16 } else { 6 };
    let value = !ones_sum(&bytes[34..], pseudo(proto, l4_len));
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn pseudo(proto: u8, len: usize) -> u32 {
    u32::from(ones_sum(&[10, 0, 0, 1, 10, 0, 0, 2], u32::from(proto) + len as u32))
}

fn ones_sum(bytes: &[u8], seed: u32) -> u16 {
    let mut sum = seed;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn every_id_of_the_family_starts_and_has_a_link() {
    use crate::nic::ids::{Family, TABLE};
    let ids: Vec<u16> = TABLE.iter().filter(|id| id.2 == Family::Ixgbe).map(|id| id.1).collect();
    assert_eq!(ids.len(), 15);
    for id in ids {
        let mut bench = Bench::with_queues(id, 1);
        assert_eq!((bench.nic.mac(), bench.nic.info().driver), (Some(MAC), "ixgbe"));
        assert_eq!(bench.nic.link(), UP, "{id:04x}");
        bench.works();
        bench.finish();
    }
}

#[test]
fn bursts_of_every_size_arrive_whole_and_in_order() {
    for n in [1, 31, 32, 33, 1000] {
        for len in [64, 65, 1500, 2048, 2049, 9000] {
            let mut bench = Bench::new();
            let expected: Vec<_> = (0..n).map(|i| frame(i, len)).collect();
            bench.send(&expected);
            assert_eq!(bench.card.transmitted(), expected, "tx {n} x {len}");
            let mut got = Vec::new();
            for some in expected.chunks(50) {
                bench.inject(some);
                got.extend(bench.receive(8));
            }
            assert_eq!(got, expected, "rx {n} x {len}");
            assert_eq!(bench.queues.rx[0].stats().bytes.get(), (n * len) as u64);
            assert_eq!(bench.queues.tx[0].stats().packets.get(), n as u64);
            bench.finish();
        }
    }
}

#[test]
fn indices_wrap_after_seventy_thousand_frames() {
    let mut bench = Bench::new();
    let frames: Vec<_> = (0..500).map(|n| frame(n, 64)).collect();
    for _ in 0..140 {
        bench.send(&frames);
        assert_eq!(bench.card.transmitted().len(), 500);
        bench.inject(&frames);
        assert_eq!(bench.receive(20).len(), 500);
    }
    assert_eq!(bench.nic.health(), Health::Ok);
    bench.finish();
}

#[test]
fn one_doorbell_a_burst_in_each_direction() {
    let mut bench = Bench::new();
    let frames: Vec<_> = (0..32).map(|n| frame(n, 64)).collect();
    let writes = |bench: &Bench| [0x1018, 0x6018].map(|tail| bench.card.writes_to(tail));
    let [rx, tx] = writes(&bench);
    bench.send(&frames);
    bench.inject(&frames);
    assert_eq!(bench.receive(1).len(), 32);
    assert_eq!(writes(&bench), [rx + 1, tx + 1]);
    bench.finish();
}

#[test]
fn flows_spread_over_queues_and_both_directions_of_one_meet() {
    let mut bench = Bench::with_queues(0x10f7, 4);
    let frames: Vec<_> = (0..64).map(|i| segment(6, 1000 + i * 7, 10)).collect();
    bench.inject(&frames);
    let got = bench.receive_all(4);
    assert_eq!(got.len(), 64);
    for queue in 0..4 {
        assert!(got.iter().filter(|(at, ..)| *at == queue).count() > 4, "queue {queue} has its share");
    }
    let mut back = segment(6, 1000, 10);
    back[26..34].rotate_left(4);
    back[34..38].rotate_left(2);
    bench.inject(&[frames[0].clone(), back]);
    let got = bench.receive_all(2);
    assert_eq!(got[0].0, got[1].0);
    bench.finish();
}

#[test]
fn received_checksums_are_verified_and_wrong_ones_counted() {
    let mut bench = Bench::new();
    let mut wrong = segment(17, 9, 30);
    wrong[45] ^= 1;
    bench.inject(&[segment(6, 9, 30), segment(17, 9, 30), wrong, frame(0, 64)]);
    let verified: Vec<bool> = bench.receive_all(2).into_iter().map(|(_, _, verified)| verified).collect();
    assert_eq!(verified, [true, true, false, false]);
    assert_eq!((bench.counter("rx_checksums_right"), bench.counter("rx_checksums_wrong")), (2, 1));
    bench.finish();
}

#[test]
fn checksum_left_undone_is_completed_by_the_card() {
    for (proto, offset) in [(6, 16), (17, 6)] {
        let mut bench = Bench::new();
        let whole = segment(proto, 7, 40);
        let mut undone = whole.clone();
        let seed = pseudo(proto, whole.len() - 34) as u16;
        undone[34 + offset..36 + offset].copy_from_slice(&seed.to_be_bytes());
        let mut burst = Burst::new();
        for _ in 0..3 {
            let mut packet = bench.packet(&undone);
            let work = Offload {
                flags: F_NEEDS_CSUM,
                csum_start: 34,
                csum_offset: offset as u16,
                ..Offload::default()
            };
            packet.set_offload(Some(work));
            burst.push(packet).unwrap();
        }
        assert_eq!(bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst), 3);
        bench.card.step();
        assert_eq!(bench.card.transmitted(), vec![whole; 3]);
        bench.finish();
    }
}

#[test]
fn addresses_beyond_the_filters_fall_back_to_promiscuous() {
    let mut bench = Bench::new();
    let address = |n: u8| MacAddr([2, 9, 9, 9, 9, n]);
    let to = |address: MacAddr| [&address.0[..], &frame(1, 64)[6..]].concat();
    bench.inject(&[to(address(1))]);
    assert_eq!(bench.receive(2).len(), 0, "not for us");
    bench.nic.set_unicast(&(1..128).map(address).collect::<Vec<_>>()).unwrap();
    bench.inject(&[to(address(127)), to(address(128))]);
    assert_eq!(bench.receive(2), [to(address(127))], "127 and its own fit exactly");
    bench.nic.set_unicast(&(1..129).map(address).collect::<Vec<_>>()).unwrap();
    bench.inject(&[to(address(200))]);
    assert_eq!(bench.receive(2).len(), 1);
    assert_eq!(bench.counter("promiscuous_fallbacks"), 1);
    bench.restart();
    bench.inject(&[to(address(200))]);
    assert_eq!(bench.receive(2).len(), 1, "a restart keeps the filters");
    bench.finish();
}

#[test]
fn group_addresses_follow_all_multicast() {
    let mut bench = Bench::new();
    let group = [&[1, 0, 0x5e, 0, 0, 9][..], &frame(1, 64)[6..]].concat();
    let all = [&[0xff; 6][..], &frame(1, 64)[6..]].concat();
    bench.inject(&[group.clone(), all.clone()]);
    assert_eq!(bench.receive(2).len(), 2);
    bench.nic.set_all_multicast(false).unwrap();
    bench.inject(&[group, all.clone()]);
    assert_eq!(bench.receive(2), [all]);
    bench.finish();
}

#[test]
fn cable_and_module_tell_why_the_link_is_down() {
    let mut bench = Bench::new();
    assert_eq!(bench.nic.link(), UP);
    let interrupts = bench.counter("link_interrupts");
    // The vector brings the news: no look in between finds the change.
    let then = |bench: &mut Bench, change: &dyn Fn(&mut Model)| {
        bench.chip(change);
        bench.card.step();
    };
    then(&mut bench, &|chip| chip.set_cable(false));
    assert_eq!(bench.down(), "no signal from the other end");
    assert!(bench.counter("link_interrupts") > interrupts);
    then(&mut bench, &|chip| chip.set_module(None));
    assert_eq!(bench.down(), "no SFP+ module");
    then(&mut bench, &|chip| chip.set_module(Some(Module::NotAModule)));
    assert!(bench.down().starts_with("unsupported module: its identifier is 0x0c"));
    then(&mut bench, &|chip| chip.set_module(Some(Module::Copper)));
    assert_eq!(bench.down(), "no signal from the other end");
    then(&mut bench, &|chip| chip.set_cable(true));
    assert_eq!(bench.nic.link(), UP);
    bench.works();
    bench.finish();
}

#[test]
fn module_the_eeprom_does_not_know_is_named_unsupported() {
    let mut bench = Bench::unstarted(0x10fb, |chip| {
        (0x201..0x209).for_each(|word| chip.set_eeprom_word(word, 0xffff));
        chip.set_cable(false);
    });
    bench.queues = bench.nic.start(&bench.pool, 1).unwrap();
    assert!(bench.chip(|chip| chip.violations().is_empty()));
    bench.nic.stop(std::mem::take(&mut bench.queues));
    bench.queues = bench.nic.start(&bench.pool, 1).unwrap();
    bench.finish();
}

#[test]
fn link_of_a_backplane_goes_and_comes_with_its_interrupt() {
    let mut bench = Bench::with_queues(0x10f7, 1);
    bench.chip(|chip| chip.set_cable(false));
    bench.card.step();
    assert_eq!(bench.down(), "no carrier");
    let before = bench.queues.tx[0].stats().drops(DropReason::LinkDown);
    bench.send(&[frame(0, 64)]);
    assert_eq!(bench.queues.tx[0].stats().drops(DropReason::LinkDown), before + 1);
    bench.chip(|chip| chip.set_cable(true));
    bench.card.step();
    assert_eq!(bench.nic.link(), UP);
    bench.works();
    bench.finish();
}

/// For the trials of tags, which all of Intel's cards pass.
fn tagging_rig(n_queues: u16) -> Rig<Function> {
    let Bench { nic, card, pool, cache, queues } = Bench::with_queues(0x10fb, n_queues);
    Rig {
        nic: Box::new(nic),
        card,
        pool,
        cache,
        queues,
        switch: Switch::EachQueue,
        n_tags: |card| card.chip.n_tags,
    }
}

#[test]
fn tags_by_the_card_are_those_of_software() {
    tags::every_frame_is_the_same(tagging_rig(1));
}

#[test]
fn bursts_of_all_kinds_get_their_tags_in_order() {
    tags::mixed_bursts_keep_their_order(tagging_rig(1));
}

#[test]
fn tags_of_frames_under_way_at_a_switch_are_right() {
    tags::frames_under_way_while_the_card_is_switched_are_right(tagging_rig(1));
}

#[test]
fn queues_decide_on_their_tags_by_themselves() {
    tags::queue_that_wants_its_tags_keeps_them(tagging_rig(2));
}
