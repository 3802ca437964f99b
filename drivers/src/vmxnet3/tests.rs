//! The true driver over the model: traffic, queues, filters, link, restart. What a device can do to its driver is in
//! [`traps`].

mod traps;

use super::model::{self, Vmxnet3Model};
use super::{Vmxnet3, open};
use crate::burst::{BURST, Burst};
use crate::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use crate::intel::model::internet_checksum;
use crate::intel::trials::tags::{self, Rig};
use crate::intel::trials::{MAC, frame, frame_to, udp};
use crate::mac::MacAddr;
use crate::nic::model::{Fault, Handle, Model, ModelFunction};
use crate::nic::tags::Switch;
use crate::offload::{F_NEEDS_CSUM, Offload, Offloads};
use crate::port::{Device, Health, Link, Queues};
use crate::stats::DropReason;

const TXPROD: usize = 0x600;
const RXPROD: usize = 0x800;
const OTHER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 9, 9, 9]);

/// The device, its driver, and what is needed to use them.
struct Bench {
    nic: Vmxnet3<ModelFunction<Vmxnet3Model>>,
    model: Handle<Vmxnet3Model>,
    pool: Pool,
    cache: PoolCache,
    queues: Queues,
    n_pairs: u16,
}

impl Bench {
    fn unstarted() -> Bench {
        Bench::in_space(&DmaSpace::new())
    }

    fn in_space(space: &DmaSpace) -> Bench {
        let (function, model) = model::new(space, MAC);
        let nic = open(function, space).unwrap();
        let pool = Pool::new(space, PoolConfig { n_buffers: 12_288 }).unwrap();
        let cache = pool.cache();
        Bench { nic, model, pool, cache, queues: Queues::default(), n_pairs: 1 }
    }

    fn new() -> Bench {
        Bench::with_queues(1)
    }

    fn with_queues(n_pairs: u16) -> Bench {
        let mut bench = Bench::unstarted();
        bench.n_pairs = n_pairs;
        bench.start();
        bench
    }

    fn start(&mut self) {
        self.queues = self.nic.start(&self.pool, self.n_pairs).unwrap();
    }

    fn stop(&mut self) {
        self.nic.stop(std::mem::take(&mut self.queues));
    }

    /// Stops it, ends its faults, starts it.
    fn restart(&mut self) {
        self.stop();
        self.model.set_fault(None);
        self.start();
    }

    fn start_error(&mut self) -> String {
        self.nic.start(&self.pool, 1).map(|_| ()).unwrap_err().to_string()
    }

    fn packet(&mut self, bytes: &[u8]) -> PacketBuf {
        crate::soft::copy_in(&mut self.cache, bytes).unwrap()
    }

    /// One call with these packets, on a queue; how many it took.
    fn burst(&mut self, queue: usize, packets: impl IntoIterator<Item = PacketBuf>) -> usize {
        let mut burst = Burst::new();
        packets.into_iter().for_each(|packet| burst.push(packet).unwrap());
        let taken = self.queues.tx[queue].tx_burst(&mut self.cache, &mut burst);
        burst.free_all(&mut self.cache);
        taken
    }

    fn packets(&mut self, n: usize, len: usize) -> Vec<PacketBuf> {
        (0..n).map(|number| self.packet(&frame(number, len))).collect()
    }

    /// Sends frames in bursts, the device working in between, until all are gone.
    fn send(&mut self, n: usize, len: usize) {
        let (mut burst, mut made) = (Burst::new(), 0);
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
        let bytes = |packet: &PacketBuf| packet.segments().collect::<Vec<_>>().concat();
        let all = frames.iter().map(bytes).collect();
        frames.into_iter().for_each(|packet| self.cache.free(packet));
        all
    }

    fn receive(&mut self, steps: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for _ in 0..steps {
            self.model.step();
            frames.extend(self.poll(0));
        }
        frames
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

    /// Why it has to be started anew.
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
            assert_eq!(self.receive(4), (0..n).map(|i| frame(i, 60 + i)).collect::<Vec<_>>());
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

#[test]
fn frames_of_all_lengths_pass_both_ways() {
    let mut bench = Bench::new();
    assert_eq!(bench.nic.mac(), Some(MAC));
    for len in [14, 60, 61, 1514, 2047, 2048, 2049, 4096, 4097, 9014, 9022] {
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
fn runts_and_frames_too_long_are_dropped_with_their_reason() {
    let mut bench = Bench::new();
    bench.send(1, 13);
    bench.send(1, 9023);
    assert_eq!((bench.tx_drops(DropReason::Runt), bench.tx_drops(DropReason::Oversize)), (1, 1));
    assert!(bench.model.transmitted().is_empty());
    bench.model.lock().card().wire.to_nic.push_back(frame(0, 13));
    assert!(bench.receive(2).is_empty());
    assert_eq!(bench.rx_drops(DropReason::Runt), 1);
    bench.finish();
}

#[test]
fn generations_and_indices_wrap_after_seventy_thousand_frames() {
    let mut bench = Bench::new();
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
fn one_doorbell_a_burst_for_sending_and_none_for_buffers_unless_wanted() {
    let mut bench = Bench::new();
    let (rx, tx) = (bench.model.writes_to(RXPROD), bench.model.writes_to(TXPROD));
    let rounds = |bench: &mut Bench| {
        (0..BURST).for_each(|n| bench.model.inject(&frame(n, 64)));
        assert_eq!(bench.receive(3).len(), BURST);
        bench.send(BURST, 64);
    };
    rounds(&mut bench);
    assert_eq!((bench.model.writes_to(RXPROD) - rx, bench.model.writes_to(TXPROD) - tx), (0, 1));
    bench.model.lock().want_rx_doorbells(true);
    rounds(&mut bench);
    assert_eq!((bench.model.writes_to(RXPROD) - rx, bench.model.writes_to(TXPROD) - tx), (1, 2));
    bench.finish();
}

#[test]
fn doorbell_waits_for_as_many_frames_as_the_device_wants_but_never_for_more_than_a_burst() {
    let mut bench = Bench::new();
    let rung = |bench: &Bench| bench.model.writes_to(TXPROD);
    bench.model.lock().set_tx_threshold(3);
    for (n_frames, n_doorbells) in [(2, 0), (1, 1), (3, 2), (2, 2), (2, 3)] {
        let packets = bench.packets(n_frames, 64);
        assert_eq!(bench.burst(0, packets), n_frames);
        assert_eq!(rung(&bench), n_doorbells);
    }
    bench.model.lock().set_tx_threshold(u32::MAX);
    let packets = bench.packets(BURST, 64);
    bench.burst(0, packets);
    assert_eq!(rung(&bench), 4);
    bench.model.step();
    assert_eq!(bench.model.transmitted().len(), 10 + BURST);
    bench.finish();
}

#[test]
fn frames_wait_with_the_device_while_the_pool_is_empty() {
    let mut bench = Bench::new();
    (0..1100).for_each(|n| bench.model.inject(&frame(n, 64)));
    let hoard: Vec<_> = std::iter::from_fn(|| bench.cache.alloc()).collect();
    assert!(bench.receive(5).is_empty());
    assert_eq!(bench.model.waiting_on_wire(), 1100 - 1023);
    hoard.into_iter().for_each(|packet| bench.cache.free(packet));
    assert_eq!(bench.receive(60).len(), 1100, "none is lost");
    bench.finish();
}

#[test]
fn checksums_the_device_found_right_are_marked_and_wrong_ones_counted() {
    let mut bench = Bench::new();
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

/// A UDP frame whose checksum is left undone.
fn undone(bench: &mut Bench, n: u8) -> PacketBuf {
    let mut bytes = udp(n, true);
    let pseudo = [&bytes[26..34], &[0, 17, 0, 18]].concat();
    bytes[40..42].copy_from_slice(&(!internet_checksum(&pseudo)).to_be_bytes());
    let mut packet = bench.packet(&bytes);
    packet.set_offload(Some(Offload {
        flags: F_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..Offload::default()
    }));
    packet
}

#[test]
fn checksums_left_undone_are_completed_by_the_device_or_in_software_where_it_can_not() {
    let mut bench = Bench::new();
    assert_eq!(bench.queues.tx[0].offloads(), Offloads::CSUM);
    let packets: Vec<_> = (0..20)
        .map(|n| if n % 3 == 2 { bench.packet(&udp(n, true)) } else { undone(&mut bench, n) })
        .collect();
    assert_eq!(bench.burst(0, packets), 20);
    bench.model.step();
    assert_eq!(bench.model.transmitted(), (0..20).map(|n| udp(n, true)).collect::<Vec<_>>());

    let mut bytes = frame(0, 2000);
    bytes[1300..1302].fill(0);
    let wanted = internet_checksum(&bytes[1290..]);
    let mut packet = bench.packet(&bytes);
    let work = Offload { flags: F_NEEDS_CSUM, csum_start: 1290, csum_offset: 10, ..Offload::default() };
    packet.set_offload(Some(work));
    bench.burst(0, [packet]);
    bench.model.step();
    assert_eq!(bench.model.transmitted()[0][1300..1302], wanted.to_be_bytes());
    bench.finish();
}

#[test]
fn long_frame_the_driver_does_not_leave_to_the_device_stays_with_the_caller() {
    let mut bench = Bench::new();
    let plain = bench.packet(&frame(0, 64));
    let mut long = undone(&mut bench, 1);
    let work = long.offload().unwrap();
    long.set_offload(Some(Offload { gso_type: crate::offload::GSO_TCPV4, gso_size: 1000, ..work }));
    assert_eq!(bench.burst(0, [plain, long]), 1);
    bench.finish();
}

#[test]
fn queues_share_flows_and_keep_each_in_order_also_where_their_number_is_no_power_of_two() {
    for n_pairs in [2, 3, 8] {
        let mut bench = Bench::with_queues(n_pairs);
        let n = usize::from(n_pairs);
        assert_eq!(bench.model.lock().n_queues(), (n, n.next_power_of_two()));
        for round in 0..4 {
            for flow in 0..64 {
                let mut bytes = udp(flow, true);
                bytes[51] = round;
                bench.model.inject(&bytes);
            }
        }
        bench.model.step();
        let mut seen = vec![Vec::new(); n];
        for (queue, frames) in seen.iter_mut().enumerate() {
            (0..20).for_each(|_| frames.extend(bench.poll(queue)));
        }
        assert_eq!(seen.iter().map(Vec::len).sum::<usize>(), 256, "none in a queue nobody has");
        assert!(seen.iter().all(|frames| frames.len() >= 256 / n / 4), "{n_pairs}");
        for flow in 0..64 {
            let of_flow = |frames: &Vec<Vec<u8>>| -> Vec<u8> {
                frames.iter().filter(|f| f[29] == flow).map(|f| f[51]).collect()
            };
            assert!(seen.iter().any(|frames| of_flow(frames) == [0, 1, 2, 3]), "{flow} stays in one queue");
        }
        let packet = bench.packet(&frame(9, 80));
        bench.burst(n - 1, [packet]);
        bench.model.step();
        assert_eq!(bench.model.transmitted(), [frame(9, 80)]);
        bench.finish();
    }
}

#[test]
fn filters_let_in_what_is_wanted_and_survive_a_restart() {
    let mut bench = Bench::new();
    let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    let arrive = |bench: &mut Bench| {
        for (n, dst) in [MAC, OTHER_MAC, group, MacAddr::BROADCAST].into_iter().enumerate() {
            bench.model.inject(&frame_to(dst, n, 64));
        }
        bench.receive(3).into_iter().map(|frame| frame[17]).collect::<Vec<_>>()
    };
    assert_eq!(arrive(&mut bench), [0, 2, 3]);
    bench.nic.set_all_multicast(false).unwrap();
    assert_eq!(arrive(&mut bench), [0, 3]);
    bench.nic.set_promiscuous(true).unwrap();
    assert_eq!(arrive(&mut bench), [0, 1, 2, 3]);
    bench.restart();
    assert_eq!(arrive(&mut bench), [0, 1, 2, 3], "restored");
    bench.nic.set_promiscuous(false).unwrap();
    bench.restart();
    assert_eq!(arrive(&mut bench), [0, 3], "restored");
    assert_eq!(bench.counter("promiscuous_fallbacks"), 0);
    bench.nic.set_unicast(&[OTHER_MAC]).unwrap();
    assert_eq!(arrive(&mut bench), [0, 1, 2, 3]);
    assert_eq!(bench.counter("promiscuous_fallbacks"), 1, "it has one filter, for its own address");
    bench.nic.set_unicast(&[MAC]).unwrap();
    assert_eq!(arrive(&mut bench), [0, 3]);
    bench.finish();
}

#[test]
fn tagged_frames_keep_their_tags() {
    let mut bench = Bench::new();
    for vid in [1_u16, 100, 4094] {
        let mut bytes = frame(0, 80);
        bytes[12..14].copy_from_slice(&[0x81, 0]);
        bytes[14..16].copy_from_slice(&vid.to_be_bytes());
        bench.model.inject(&bytes);
        assert_eq!(bench.receive(1), std::slice::from_ref(&bytes));
        let packet = bench.packet(&bytes);
        bench.burst(0, [packet]);
        bench.model.step();
        assert_eq!(bench.model.transmitted(), [bytes]);
    }
    bench.finish();
}

#[test]
fn link_changes_are_seen_by_their_event_and_loss_drops_with_its_reason() {
    let mut bench = Bench::new();
    assert_eq!(bench.nic.link(), Link::Up { speed_mbps: 10_000 });
    bench.model.lock().set_cable(false);
    assert_eq!(bench.nic.link(), Link::Down { reason: "the device reports no carrier".into() });
    bench.send(40, 64);
    assert_eq!(bench.tx_drops(DropReason::LinkDown), 40);
    bench.model.lock().set_cable(true);
    assert_eq!(bench.nic.health(), Health::Ok, "looks at events too, and loses none");
    assert!(bench.nic.link().is_up());
    bench.works();
    assert_eq!(bench.counter("link_interrupts"), 2);
    bench.finish();
}

#[test]
fn link_change_whose_interrupt_is_lost_is_seen_at_the_next_look() {
    let mut bench = Bench::new();
    bench.model.lock().card().vectors.clear();
    bench.model.lock().set_cable(false);
    assert!(!bench.nic.link().is_up(), "the event is in memory");
    assert_eq!(bench.counter("link_interrupts"), 0);
    bench.finish();
}

#[test]
fn second_start_and_too_many_queue_pairs_are_refused() {
    let mut bench = Bench::new();
    assert!(bench.start_error().contains("started already"));
    bench.stop();
    for n in [0, 9] {
        assert!(bench.nic.start(&bench.pool, n).is_err());
    }
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn pool_too_small_for_the_rings_is_an_error_with_the_remedy() {
    let mut bench = Bench::unstarted();
    let space = DmaSpace::new();
    let small = Pool::new(&space, PoolConfig { n_buffers: 300 }).unwrap();
    let error = bench.nic.start(&small, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("give the pool more buffers"), "{error}");
    assert_eq!(small.counts().out, 0);
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn halves_dropped_before_the_stop_keep_their_buffers_until_the_reset() {
    let mut bench = Bench::new();
    let before = bench.pool.counts().out;
    bench.queues = Queues::default();
    assert_eq!(bench.pool.counts().out, before, "the device may still write to them");
    (0..10).for_each(|n| bench.model.inject(&frame(n, 64)));
    bench.model.step();
    bench.finish();
}

#[test]
fn device_is_opened_by_its_id() {
    let space = DmaSpace::new();
    let (function, _model) = model::new(&space, MAC);
    let nic = crate::nic::open(function, &space).unwrap();
    assert_eq!((nic.info().driver, nic.mac()), ("vmxnet3", Some(MAC)));
}

#[test]
fn device_without_the_first_revision_is_refused_with_words() {
    let space = DmaSpace::new();
    let (function, model) = model::new(&space, MAC);
    model.lock().set_revisions(0b110);
    let error = open(function, &space).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("VRRS & 0x00000001") && error.contains("it reads 0x00000006"), "{error}");
}

/// A device that is to be asked for tags.
fn tagging_rig(n_queues: u16) -> Rig<Vmxnet3Model> {
    let Bench { nic, model: card, pool, cache, queues, .. } = Bench::with_queues(n_queues);
    let (nic, switch, n_tags) = (Box::new(nic), Switch::EachQueue, Vmxnet3Model::n_tags);
    Rig { nic, card, pool, cache, queues, switch, n_tags }
}

#[test]
fn tags_by_the_device_are_those_of_software() {
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
fn queue_that_wants_its_tags_gets_them_back_while_another_does_not() {
    let mut bench = Bench::with_queues(2);
    bench.nic.set_promiscuous(true).unwrap();
    let (plain, tagged) =
        (frame(3, 60), [&frame(3, 60)[..12], &[0x81, 0, 0, 100], &frame(3, 60)[12..]].concat());
    assert!(bench.queues.rx[1].strip_vlan(true) && bench.nic.link().is_up());
    // What is no IP goes to the first queue.
    bench.model.inject(&tagged);
    assert_eq!(bench.receive(2), std::slice::from_ref(&tagged), "put back");
    assert_eq!(bench.model.lock().n_tags(), [1, 0]);
    assert_eq!(bench.counter("rx_tags_stripped"), 0);
    assert!(bench.queues.rx[0].strip_vlan(true));
    bench.model.inject(&tagged);
    assert_eq!(bench.receive(2), [plain]);
    assert_eq!(bench.counter("rx_tags_stripped"), 1);
    bench.queues.rx.iter_mut().for_each(|half| assert!(half.strip_vlan(false)));
    assert!(bench.nic.link().is_up());
    bench.model.inject(&tagged);
    assert_eq!(bench.receive(2), [tagged]);
    assert_eq!(bench.model.lock().n_tags(), [2, 0]);
    bench.finish();
}
