//! What every card of Intel's has to pass: the true driver over the family's model. Traffic, long frames, checksums, queues,
//! filters, link, restart are here; what a device can do to its driver is in [`traps`]. A family names what differs
//! ([`Subject`]) and lists the trials that apply to it ([`trials!`]); each becomes a test of that name there.

mod bench;
pub mod tags;
pub mod traps;

use crate::burst::{BURST, Burst};
use crate::dma::{DmaSpace, PacketBuf, Pool, PoolConfig};
use crate::mac::MacAddr;
use crate::nic::model::{Fault, Model};
use crate::offload::{F_NEEDS_CSUM, Offload, Offloads};
use crate::port::{Device, Health, Link, Queues};
use crate::stats::DropReason;
pub use bench::{Bench, MAC, Nic, Subject, frame, frame_to};

const OTHER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 9, 9, 9]);

/// Makes tests of trials: `trials!(Card: one_doorbell_a_burst; traps: trap_05_...)`.
macro_rules! trials {
    ($subject:ty: $($name:ident)*; $(tags: $($tag:ident)*;)? traps: $($trap:ident)*) => {
        $($(#[test]
        fn $tag() {
            crate::intel::trials::tags::$tag::<$subject>();
        })*)?
        $(#[test]
        fn $name() {
            crate::intel::trials::$name::<$subject>();
        })*
        $(#[test]
        fn $trap() {
            crate::intel::trials::traps::$trap::<$subject>();
        })*
    };
}
pub(crate) use trials;

/// All lengths, both ways.
pub fn frames_of_all_lengths_pass_both_ways<S: Subject>() {
    let mut bench = Bench::<S>::new();
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

pub fn indices_wrap_after_seventy_thousand_frames<S: Subject>() {
    let mut bench = Bench::<S>::new();
    for round in 0..2200 {
        (0..BURST).for_each(|n| bench.model.inject(&frame(round + n, 64)));
        bench.model.step();
        assert_eq!(bench.poll(0), (0..BURST).map(|n| frame(round + n, 64)).collect::<Vec<_>>());
        bench.send(BURST, 64);
    }
    assert_eq!(bench.model.transmitted().len(), 2200 * BURST);
    bench.finish();
}

pub fn one_doorbell_a_burst<S: Subject>() {
    let mut bench = Bench::<S>::new();
    let (rx, tx) = (bench.model.writes_to(S::TAILS[0]), bench.model.writes_to(S::TAILS[1]));
    (0..BURST).for_each(|n| bench.model.inject(&frame(n, 64)));
    assert_eq!(bench.receive(3).len(), BURST);
    bench.send(BURST, 64);
    assert_eq!((bench.model.writes_to(S::TAILS[0]) - rx, bench.model.writes_to(S::TAILS[1]) - tx), (1, 1));
    bench.finish();
}

pub fn frames_wait_in_the_card_while_the_pool_is_empty<S: Subject>() {
    let mut bench = Bench::<S>::new();
    let n_taken = bench.most_taken();
    (0..n_taken + 89).for_each(|n| bench.model.inject(&frame(n, 64)));
    let hoard: Vec<_> = std::iter::from_fn(|| bench.cache.alloc()).collect();
    assert!(bench.receive(5).is_empty());
    assert_eq!(bench.model.waiting_on_wire(), 89);
    hoard.into_iter().for_each(|packet| bench.cache.free(packet));
    assert_eq!(bench.receive(n_taken / BURST + 30).len(), n_taken + 89, "none is lost");
    bench.finish();
}

pub fn frames_too_short_for_the_card_get_zeros_and_runts_are_dropped<S: Subject>() {
    let mut bench = Bench::<S>::new();
    bench.send(1, 14);
    let sent = bench.model.transmitted();
    assert_eq!(sent[0][..14], frame(0, 14));
    assert_eq!(sent[0][14..], [0; 46]);
    bench.send(1, 13);
    bench.send(1, 9231);
    assert_eq!((bench.tx_drops(DropReason::Runt), bench.tx_drops(DropReason::Oversize)), (1, 1));
    bench.finish();
}

/// A UDP frame of flow `n`, its checksum right or wrong by one.
pub fn udp(n: u8, right: bool) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 38, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, n, 10, 0, 0, 2];
    let sum = crate::intel::model::internet_checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = vec![0x10, 0, 0x20, 0, 0, 18, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, n];
    let pseudo = [&ip[12..20], &[0, 17, 0, 18], &udp].concat();
    let sum = crate::intel::model::internet_checksum(&pseudo) ^ u16::from(!right);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    [&MAC.0[..], &[2, 0, 0, 0, 0, 9, 8, 0], &ip, &udp, &[0; 8]].concat()
}

pub fn checksums_the_card_found_right_are_marked_and_wrong_ones_counted<S: Subject>() {
    let mut bench = Bench::<S>::new();
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
fn undone<S: Subject>(bench: &mut Bench<S>, n: u8) -> PacketBuf {
    let mut bytes = udp(n, true);
    let pseudo = [&bytes[26..34], &[0, 17, 0, 18]].concat();
    let sum = !crate::intel::model::internet_checksum(&pseudo);
    bytes[40..42].copy_from_slice(&sum.to_be_bytes());
    let mut packet = bench.packet(&bytes);
    let work = Offload { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..Offload::default() };
    packet.set_offload(Some(work));
    packet
}

pub fn checksums_left_undone_are_completed_by_the_card<S: Subject>() {
    let mut bench = Bench::<S>::new();
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

pub fn checksum_the_card_can_not_reach_is_completed_in_software<S: Subject>() {
    let mut bench = Bench::<S>::new();
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

pub fn long_frame_the_card_does_not_cut_stays_with_the_caller<S: Subject>() {
    let mut bench = Bench::<S>::new();
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

pub fn queues_share_flows_and_keep_each_in_order<S: Subject>() {
    let mut bench = Bench::<S>::with_queues(S::N_PAIRS);
    for round in 0..4 {
        for n in 0..64 {
            let mut bytes = udp(n, true);
            bytes[51] = round;
            bench.model.inject(&bytes);
        }
    }
    bench.model.step();
    let mut seen = vec![Vec::new(); S::N_PAIRS.into()];
    for (queue, frames) in seen.iter_mut().enumerate() {
        for _ in 0..20 {
            frames.extend(bench.poll(queue));
        }
    }
    assert_eq!(seen.iter().map(Vec::len).sum::<usize>(), 256);
    let share = 256 / seen.len() / 2;
    assert!(seen.iter().all(|frames| frames.len() >= share), "{seen:?}");
    for n in 0..64 {
        let of_flow = |frames: &Vec<Vec<u8>>| -> Vec<u8> {
            frames.iter().filter(|f| f[29] == n).map(|f| f[51]).collect()
        };
        assert!(seen.iter().any(|frames| of_flow(frames) == [0, 1, 2, 3]), "flow {n} stays in one queue");
    }
    let mut burst = Burst::new();
    let packet = bench.packet(&frame(9, 80));
    burst.push(packet).unwrap();
    bench.queues.tx[usize::from(S::N_PAIRS) - 1].tx_burst(&mut bench.cache, &mut burst);
    bench.model.step();
    assert_eq!(bench.model.transmitted(), [frame(9, 80)]);
    bench.finish();
}

pub fn filters_let_in_what_is_wanted_and_survive_a_restart<S: Subject>() {
    let mut bench = Bench::<S>::new();
    let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    let arrive = |bench: &mut Bench<S>| {
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

pub fn more_addresses_than_filters_are_received_promiscuously_and_counted<S: Subject>() {
    let mut bench = Bench::<S>::new();
    let (n, mac) = (bench.nic.limits().n_exact_filters, |n: usize| MacAddr([2, 0, 0, 0, 1, n as u8]));
    let many: Vec<_> = (0..n).map(mac).collect();
    bench.nic.set_unicast(&many[..n - 1]).unwrap();
    bench.model.inject(&frame_to(many[n - 1], 5, 64));
    bench.model.inject(&frame_to(many[n - 2], 6, 64));
    assert_eq!(bench.receive(2), [frame_to(many[n - 2], 6, 64)], "its own and the others fit exactly");
    assert_eq!(bench.counter("promiscuous_fallbacks"), 0);
    bench.nic.set_unicast(&many).unwrap();
    assert_eq!(bench.counter("promiscuous_fallbacks"), 1);
    bench.model.inject(&frame_to(many[n - 1], 5, 64));
    assert_eq!(bench.receive(2).len(), 1);
    bench.finish();
}

pub fn link_loss_drops_sent_frames_with_their_reason<S: Subject>() {
    let mut bench = Bench::<S>::new();
    assert_eq!(bench.nic.link(), Link::Up { speed_mbps: 1000 });
    S::set_cable(&mut bench.model.lock(), false);
    assert_eq!(bench.nic.link(), Link::Down { reason: "no carrier".into() });
    bench.send(40, 64);
    assert_eq!(bench.tx_drops(DropReason::LinkDown), 40);
    S::set_cable(&mut bench.model.lock(), true);
    assert!(bench.nic.link().is_up());
    bench.works();
    assert_eq!(bench.counter("link_interrupts"), S::LINK_INTERRUPTS);
    bench.finish();
}

pub fn link_change_whose_interrupt_is_lost_is_seen_within_a_second_of_looks<S: Subject>() {
    let mut bench = Bench::<S>::new();
    bench.model.lock().card().vectors.clear();
    S::set_cable(&mut bench.model.lock(), false);
    let looks = (0..25).find(|_| !bench.nic.link().is_up());
    assert!(looks.is_some());
    bench.finish();
}

pub fn second_start_and_too_many_queue_pairs_are_refused<S: Subject>() {
    let mut bench = Bench::<S>::new();
    assert!(bench.nic.start(&bench.pool, 1).is_err());
    bench.stop();
    let n_pairs = bench.nic.limits().n_queue_pairs;
    for n in [0, n_pairs + 1] {
        assert!(bench.nic.start(&bench.pool, n).is_err());
    }
    bench.start();
    bench.works();
    bench.finish();
}

pub fn pool_too_small_for_the_ring_is_an_error_with_the_remedy<S: Subject>() {
    let mut bench = Bench::<S>::unstarted();
    let space = DmaSpace::new();
    let small = Pool::new(&space, PoolConfig { n_buffers: 128 }).unwrap();
    let error = bench.nic.start(&small, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("give the pool more buffers"), "{error}");
    assert_eq!(small.counts().out, 0);
    bench.start();
    bench.works();
    bench.finish();
}

pub fn halves_dropped_before_the_stop_keep_their_buffers_until_the_reset<S: Subject>() {
    let mut bench = Bench::<S>::new();
    let before = bench.pool.counts().out;
    bench.queues = Queues::default();
    assert_eq!(bench.pool.counts().out, before, "the device may still write to them");
    (0..10).for_each(|n| bench.model.inject(&frame(n, 64)));
    bench.model.step();
    bench.finish();
}
