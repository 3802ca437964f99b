//! Guest attacks of the feature table's E1 on the split ring, one test a row, with ring memory
//! made by hand. Each ends the same way: the chain is dropped, counted and given back, and the
//! ring goes on; or the ring stops with its reason. Indices start just before their wrap.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spp_drivers::Burst;
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::stats::DropReason;
use spp_vhost::handover::{Command, Reply};
use spp_vhost::vring::RingFault;
use spp_vhost::{FromGuest, ToGuest};
use support::*;

const START: u16 = 65_530;

fn from_guest() -> Bench<FromGuest> {
    Bench::new(256, START, features(false, false))
}

fn to_guest(mergeable: bool) -> Bench<ToGuest> {
    Bench::new(256, START, features(mergeable, false))
}

/// Offers head 0, expects it back empty and counted for `reason`, and the ring to go on.
fn expect_dropped(mut bench: Bench<FromGuest>, reason: DropReason) {
    bench.offer(0);
    assert!(bench.receive().is_empty());
    assert_eq!(bench.take_used(), [(0, 0)]);
    assert_eq!(bench.half.drops(reason), 1, "counted as {}", reason.name());
    assert_eq!(bench.fault(), None);
    bench.assert_alive();
    bench.assert_no_leak();
}

/// Expects the ring to have stopped for `fault`, to stay stopped, and to work after a restart.
fn expect_stopped(mut bench: Bench<FromGuest>, fault: RingFault) {
    assert!(bench.receive().is_empty());
    assert_eq!(bench.fault(), Some(fault));
    assert!(bench.receive().is_empty());
    assert!(bench.take_used().is_empty());
    let Reply::Ring(Some(_)) = bench.command(Command::Stop) else { panic!("the ring comes back") };
    bench.avail = START;
    bench.memory.write(AVAIL + 2, &START.to_le_bytes());
    bench.start(features(false, false));
    assert_eq!(bench.fault(), None);
    bench.assert_alive();
    bench.assert_no_leak();
}

#[test]
fn g01_buffer_across_the_end_of_a_region_is_dropped() {
    // The next region follows directly in guest addresses, but not in ours.
    let bench = from_guest();
    bench.memory.desc(DESC, 0, REGION - 50, 100, 0, 0);
    expect_dropped(bench, DropReason::BadAddress);
    let bench = from_guest();
    bench.memory.desc(DESC, 0, 2 * REGION - 99, 100, 0, 0);
    expect_dropped(bench, DropReason::BadAddress);
}

#[test]
fn g01_frame_ending_with_its_region_is_received() {
    let mut bench = from_guest();
    let frame = frame(88, 3);
    bench.memory.write(2 * REGION - 88, &frame);
    bench.memory.desc(DESC, 0, 2 * REGION - 100, 100, 0, 0);
    bench.offer(0);
    assert_eq!(bench.receive(), [frame]);
}

#[test]
fn g02_address_that_wraps_or_lies_nowhere_is_dropped() {
    for (addr, len) in
        [(u64::MAX - 10, 100), (u64::MAX, 1), (2 * REGION, 64), (BUFFERS, u32::MAX), (1 << 63, 64)]
    {
        let bench = from_guest();
        bench.memory.desc(DESC, 0, addr, len, 0, 0);
        expect_dropped(bench, DropReason::BadAddress);
    }
}

#[test]
fn g02_address_zero_is_only_memory() {
    // Guest address 0 is ordinary memory here; it reads as whatever lies there and harms nobody.
    let mut bench = from_guest();
    bench.memory.desc(DESC, 0, 0, 100, 0, 0);
    bench.offer(0);
    assert_eq!(bench.receive().len(), 1);
    bench.assert_alive();
}

#[test]
fn g03_header_spread_over_single_bytes_is_skipped_whole() {
    let mut bench = from_guest();
    let frame = frame(60, 9);
    for i in 0..72u16 {
        let at = BUFFERS + 0x100 * u64::from(i);
        bench.memory.write(at, &[if i < 12 { 0xee } else { frame[usize::from(i) - 12] }]);
        bench.memory.desc(DESC, i, at, 1, if i < 71 { NEXT } else { 0 }, i + 1);
    }
    bench.offer(0);
    assert_eq!(bench.receive(), [frame]);
    assert_eq!(bench.take_used(), [(0, 0)]);
    bench.assert_alive();
}

#[test]
fn g04_chain_no_longer_than_header_and_runt_are_dropped() {
    for len in [1, 11, 12, 13, 25] {
        let bench = from_guest();
        bench.memory.desc(DESC, 0, BUFFERS, len, 0, 0);
        expect_dropped(bench, DropReason::Runt);
    }
    let bench = from_guest();
    bench.memory.desc(DESC, 0, BUFFERS, 0, 0, 0);
    expect_dropped(bench, DropReason::Runt);
}

#[test]
fn g05_receive_buffer_shorter_than_the_header_is_not_overrun() {
    for mergeable in [false, true] {
        let mut bench = to_guest(mergeable);
        for i in 0..64 {
            bench.memory.desc(DESC, i, BUFFERS + 0x100 * u64::from(i), 5, WRITE, 0);
            bench.memory.write(BUFFERS + 0x100 * u64::from(i), &[0xcc; 16]);
            bench.put_head(i);
        }
        bench.publish();
        let (n, _) = bench.send(&[60]);
        let used = bench.take_used();
        if mergeable {
            assert_eq!((n, used.len()), (1, 15), "72 bytes in buffers of 5");
            assert_eq!(used.iter().map(|u| u.1).sum::<u32>(), 72);
        } else {
            assert_eq!((n, bench.half.drops(DropReason::Oversize)), (1, 1));
        }
        for i in 0..64 {
            let beyond = bench.memory.read(BUFFERS + 0x100 * i + 5, 11);
            assert_eq!(beyond, [0xcc; 11], "bytes behind buffer {i} are untouched");
        }
        bench.assert_no_leak();
    }
}

#[test]
fn g06_chain_that_loops_is_dropped() {
    for (a, b, len) in [(0, 0, 64), (1, 0, 64), (0, 0, 0), (1, 1, 0)] {
        let bench = from_guest();
        bench.memory.desc(DESC, 0, BUFFERS, len, NEXT, a);
        bench.memory.desc(DESC, 1, BUFFERS, len, NEXT, b);
        expect_dropped(bench, DropReason::BadChain);
    }
}

#[test]
fn g07_link_outside_the_ring_is_dropped() {
    for next in [256, 257, 65_535] {
        let bench = from_guest();
        bench.memory.desc(DESC, 0, BUFFERS, 64, NEXT, next);
        expect_dropped(bench, DropReason::BadChain);
    }
}

#[test]
fn g07_head_outside_the_ring_stops_it() {
    for head in [256, 4096, 65_535] {
        let mut bench = from_guest();
        bench.offer(head);
        expect_stopped(bench, RingFault::HeadOutside);
    }
}

#[test]
fn g08_bad_indirect_table_is_dropped() {
    let table = BUFFERS + 0x8000;
    let cases = [
        (table, 15, INDIRECT, DropReason::BadChain),
        (table, 0, INDIRECT, DropReason::BadChain),
        (table, 40, INDIRECT, DropReason::BadChain),
        (table, 16 * 257, INDIRECT, DropReason::BadChain),
        (table, 16 * 65_537, INDIRECT, DropReason::BadChain),
        (table, !15, INDIRECT, DropReason::BadChain),
        (table, 32, INDIRECT | NEXT, DropReason::BadChain),
        (2 * REGION - 8, 32, INDIRECT, DropReason::BadAddress),
        (u64::MAX - 7, 32, INDIRECT, DropReason::BadAddress),
    ];
    for (addr, len, flags, reason) in cases {
        let bench = from_guest();
        bench.memory.desc(table, 0, BUFFERS, 40, NEXT, 1);
        bench.memory.desc(table, 1, BUFFERS, 40, 0, 0);
        bench.memory.desc(DESC, 0, addr, len, flags, 1);
        expect_dropped(bench, reason);
    }
}

#[test]
fn g08_nested_indirect_table_and_link_out_of_a_table_are_dropped() {
    let table = BUFFERS + 0x8000;
    let bench = from_guest();
    bench.memory.desc(table, 0, table, 32, INDIRECT, 0);
    bench.memory.desc(DESC, 0, table, 32, INDIRECT, 0);
    expect_dropped(bench, DropReason::BadChain);
    let bench = from_guest();
    bench.memory.desc(table, 0, BUFFERS, 40, NEXT, 2);
    bench.memory.desc(DESC, 0, table, 32, INDIRECT, 0);
    expect_dropped(bench, DropReason::BadChain);
}

#[test]
fn g08_indirect_table_across_two_regions_is_walked() {
    let (mut bench, frame) = (from_guest(), frame(100, 1));
    let table = REGION - 16;
    bench.memory.write(BUFFERS + 12, &frame);
    bench.memory.desc(table, 0, BUFFERS, 12, NEXT, 1);
    bench.memory.desc(table, 1, BUFFERS + 12, 100, 0, 0);
    bench.memory.desc(DESC, 0, table, 32, INDIRECT, 0);
    bench.offer(0);
    assert_eq!(bench.receive(), [frame]);
    bench.assert_alive();
}

#[test]
fn g08_indirect_table_without_the_feature_is_dropped() {
    let mut features = features(false, false);
    features.indirect = false;
    let bench = Bench::new(256, START, features);
    bench.memory.desc(BUFFERS + 0x8000, 0, BUFFERS, 100, 0, 0);
    bench.memory.desc(DESC, 0, BUFFERS + 0x8000, 16, INDIRECT, 0);
    expect_dropped(bench, DropReason::BadChain);
}

/// Runs `poll` many times while another thread writes random descriptors and table entries.
fn under_attack<H: Half + Send>(n_polls: u32, bench: &mut Bench<H>, mut poll: impl FnMut(&mut Bench<H>)) {
    let attacker = Memory::over(&bench.memory);
    let done = Arc::new(AtomicBool::new(false));
    let flag = done.clone();
    let thread = std::thread::spawn(move || {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        while !flag.load(Ordering::Relaxed) {
            let addrs = [BUFFERS, REGION - 50, u64::MAX - 5, USED, AVAIL, DESC, next(), BUFFERS + 0x8000];
            let addr = addrs[next() as usize % addrs.len()];
            let len = [64, 76, 1514, 0, 16, 32, next() as u32, 4096][next() as usize % 8];
            let table = if next() % 2 == 0 { DESC } else { BUFFERS + 0x8000 };
            attacker.desc(table, next() as u16 % 64, addr, len, next() as u16 & 7, next() as u16 % 80);
        }
    });
    for _ in 0..n_polls {
        poll(bench);
    }
    done.store(true, Ordering::Relaxed);
    thread.join().unwrap();
}

#[test]
fn g09_g10_g19_descriptors_flipped_while_we_read_harm_nobody() {
    let mut bench = from_guest();
    under_attack(20_000, &mut bench, |bench| {
        for head in 0..32 {
            bench.put_head(head);
        }
        bench.publish();
        bench.receive();
        // Descriptors may have pointed at the rings, but we only read here.
        bench.take_used();
        assert_eq!(bench.fault(), None);
    });
    let stats = bench.half.drops(DropReason::BadChain) + bench.half.drops(DropReason::BadAddress);
    assert!(stats > 0, "the attack was felt");
    bench.assert_no_leak();
}

#[test]
fn g10_g18_g19_receive_descriptors_flipped_while_we_write_harm_only_the_guest() {
    for mergeable in [false, true] {
        let mut bench = to_guest(mergeable);
        under_attack(500, &mut bench, |bench| {
            // Frames land on rings as well: indices become anything, and the ring may stop. Then it is set up anew.
            if bench.fault().is_some() {
                bench.command(Command::Stop);
                bench.used = bench.memory.read_u16(USED + 2);
                bench.avail = bench.used;
                bench.publish();
                bench.start(features(mergeable, false));
            }
            for head in 0..32 {
                bench.put_head(head);
            }
            bench.publish();
            bench.send(&[60, 1514, 60, 4000]);
        });
        bench.assert_no_leak();
    }
}

/// Frames of `from` go to `to`, past the packet buffers where that can be.
fn pass(from: &mut Bench<FromGuest>, to: &mut Bench<ToGuest>) {
    if from.half.rx_into(&mut to.half).is_none() {
        let mut burst = Burst::new();
        from.half.rx_burst(&mut from.cache, &mut burst);
        to.half.tx_burst(&mut from.cache, &mut burst);
        burst.free_all(&mut from.cache);
    }
}

#[test]
fn g10_g19_descriptors_flipped_while_frames_are_lent_harm_nobody() {
    let (mut from, mut to) = (from_guest(), to_guest(false));
    let canary = |to: &Bench<ToGuest>| to.memory.read(BUFFERS + 0x2_0000, 0x1_0000);
    to.memory.write(BUFFERS + 0x2_0000, &[0xc7; 0x1_0000]);
    for head in 0..32 {
        to.memory.desc(DESC, head, BUFFERS + 0x1000 * u64::from(head), 2060, WRITE, 0);
        to.put_head(head);
    }
    to.publish();
    let mut n_passed = 0;
    under_attack(5_000, &mut from, |from| {
        (0..32).for_each(|head| from.put_head(head));
        from.publish();
        // Those behind the first that can't be lent go in the next turns.
        (0..4).for_each(|_| pass(from, &mut to));
        from.take_used();
        let received = to.take_used();
        assert!(received.iter().all(|(_, len)| (26..=2060).contains(len)), "{received:?}");
        received.iter().for_each(|(head, _)| to.put_head(*head));
        to.publish();
        n_passed += received.len();
        assert_eq!((from.fault(), to.fault()), (None, None));
    });
    assert!(n_passed > 0, "some frames were good");
    assert_eq!(canary(&to), vec![0xc7; 0x1_0000]);
    [from.half.drops(DropReason::BadChain), from.half.drops(DropReason::BadAddress)]
        .iter()
        .for_each(|drops| assert!(*drops > 0, "the attack was felt"));
    from.assert_no_leak();
    to.assert_no_leak();
}

#[test]
fn g10_g18_receive_descriptors_flipped_while_frames_are_lent_harm_only_the_receiver() {
    let (mut from, mut to) = (from_guest(), to_guest(false));
    let mut n = 0u16;
    under_attack(2_000, &mut to, |to| {
        if to.fault().is_some() {
            to.command(Command::Stop);
            to.used = to.memory.read_u16(USED + 2);
            to.avail = to.used;
            to.publish();
            to.start(features(false, false));
        }
        (0..32).for_each(|head| to.put_head(head));
        to.publish();
        for len in [60, 1514, 60, 2000] {
            from.offer_frame(n % 64, &frame(len, n as u8));
            n = n.wrapping_add(1);
        }
        (0..6).for_each(|_| pass(&mut from, to));
        // None waits: what does not fit now is thrown away.
        let used = from.take_used();
        assert_eq!(used.len(), 4, "{used:?}");
        assert_eq!(from.fault(), None);
    });
    for head in 0..64u16 {
        let at = BUFFERS + 0x1000 * u64::from(head);
        assert!(from.memory.read(at, 12).iter().all(|byte| *byte == 0), "the sender's memory is only read");
    }
    from.assert_no_leak();
    to.assert_no_leak();
}

#[test]
fn g12_available_index_that_jumps_or_goes_back_stops_the_ring() {
    for step in [257u16, 32_768, 65_535] {
        let mut bench = from_guest();
        bench.avail = bench.avail.wrapping_add(step);
        bench.publish();
        expect_stopped(bench, RingFault::IndexJump);
    }
}

#[test]
fn g13_buffers_of_the_wrong_direction_are_dropped() {
    let bench = from_guest();
    bench.memory.desc(DESC, 0, BUFFERS, 100, WRITE, 0);
    expect_dropped(bench, DropReason::BadChain);
    let bench = from_guest();
    bench.memory.desc(DESC, 0, BUFFERS, 100, NEXT, 1);
    bench.memory.desc(DESC, 1, BUFFERS, 100, WRITE, 0);
    expect_dropped(bench, DropReason::BadChain);
    for mergeable in [false, true] {
        let mut bench = to_guest(mergeable);
        bench.memory.desc(DESC, 7, BUFFERS, 2000, 0, 0);
        bench.memory.write(BUFFERS, &[0xcc; 100]);
        bench.offer(7);
        assert_eq!(bench.send(&[60]), (1, 0));
        assert_eq!(bench.take_used(), [(7, 0)], "it goes back empty");
        assert_eq!(bench.half.drops(DropReason::BadChain), 1);
        assert_eq!(bench.memory.read(BUFFERS, 100), [0xcc; 100], "a read-only buffer is not written");
    }
}

#[test]
fn g16_frame_of_single_bytes_is_bounded_work() {
    let mut bench: Bench<FromGuest> = Bench::new(2048, START, features(false, false));
    for i in 0..2048u16 {
        bench.memory.desc(DESC, i, BUFFERS, 1, NEXT, (i + 1) % 2048);
    }
    // Every head starts a chain that never ends within the bound.
    for head in 0..32 {
        bench.put_head(head);
    }
    bench.publish();
    let mut polls = 0;
    while bench.take_used().is_empty() || bench.used != bench.avail {
        bench.receive();
        polls += 1;
        assert!(polls <= 32, "each poll takes at least one");
    }
    assert!(polls > 16, "and not many: one long chain uses up the budget, but took {polls} polls");
    assert_eq!(bench.half.drops(DropReason::BadChain), 32);
    let mut bench: Bench<FromGuest> = Bench::new(1024, START, features(false, false));
    let frame = frame(1012, 5);
    for i in 0..1024u16 {
        let at = BUFFERS + u64::from(i);
        bench.memory.write(at, &[if i < 12 { 0 } else { frame[usize::from(i) - 12] }]);
        bench.memory.desc(DESC, i, at, 1, if i < 1023 { NEXT } else { 0 }, (i + 1) % 1024);
    }
    bench.offer(0);
    assert_eq!(bench.receive(), [frame], "the longest chain allowed is a frame");
    bench.assert_no_leak();
}

#[test]
fn g17_frame_for_single_byte_buffers_is_dropped_or_kept_never_looped_over() {
    let mut bench: Bench<ToGuest> = Bench::new(256, START, features(true, false));
    for i in 0..256u16 {
        bench.memory.desc(DESC, i, BUFFERS + u64::from(i), 1, WRITE, 0);
        bench.put_head(i);
    }
    bench.publish();
    assert_eq!(bench.send(&[9000, 60]), (2, 0), "a full ring that can't hold it: dropped");
    assert_eq!(bench.half.drops(DropReason::Oversize), 1);
    assert_eq!(bench.take_used().len(), 72, "the small one still fits");
    assert_eq!(bench.send(&[1500]), (0, 1), "not enough now, but there could be more: kept");
    bench.assert_no_leak();
}

#[test]
fn g21_random_event_indices_change_nothing_but_calls() {
    let mut bench: Bench<FromGuest> = Bench::new(256, START, features(false, true));
    for round in 0..2000u16 {
        bench.memory.write(AVAIL + 4 + 2 * 256, &round.wrapping_mul(40_503).to_le_bytes());
        bench.memory.write(AVAIL, &(round & 1).to_le_bytes());
        let frame = frame(60, round as u8);
        bench.offer_frame(round % 256, &frame);
        assert_eq!(bench.receive(), [frame]);
        assert_eq!(bench.take_used(), [(round % 256, 0)]);
    }
    bench.assert_no_leak();
}

#[test]
fn g29_short_frame_carries_no_byte_of_an_earlier_one() {
    let mut bench = to_guest(false);
    bench.memory.desc(DESC, 0, BUFFERS, 2048, WRITE, 0);
    bench.memory.desc(DESC, 1, BUFFERS + 0x1000, 2048, WRITE, 0);
    bench.memory.write(BUFFERS + 0x1000, &[0xcc; 2048]);
    bench.offer(0);
    bench.send(&[1514]);
    bench.offer(1);
    bench.send(&[60]);
    assert_eq!(bench.take_used(), [(0, 1526), (1, 72)]);
    assert_eq!(bench.memory.read(BUFFERS + 0x1000 + 72, 1900), [0xcc; 1900]);
}

#[test]
fn f02_truncated_guest_memory_stops_the_ring_with_its_reason() {
    let mut bench = from_guest();
    bench.offer_frame(0, &[1; 60]);
    assert_eq!(bench.receive().len(), 1);
    rustix::fs::ftruncate(&bench.memory.file, 0).unwrap();
    assert!(bench.receive().is_empty());
    // The first read finds zeros; from then on the ring is known to be gone.
    assert!(bench.receive().is_empty());
    assert_eq!(bench.fault(), Some(RingFault::MemoryGone));
    let mut bench = to_guest(true);
    rustix::fs::ftruncate(&bench.memory.file, 0).unwrap();
    bench.send(&[60]);
    assert_eq!(bench.send(&[60]), (1, 0));
    assert_eq!(bench.fault(), Some(RingFault::MemoryGone));
}

#[test]
fn buffer_that_only_begins_in_memory_is_bad_however_short_the_frame() {
    // Across the end of all memory, and from one region into the next.
    for (addr, len) in [(2 * REGION - 1000, 1001), (2 * REGION - 100, u32::MAX), (REGION - 1000, 2000)] {
        let mut bench: Bench<ToGuest> = Bench::new(256, 65_530, features(false, false));
        bench.memory.desc(DESC, 0, addr, len, WRITE, 0);
        bench.offer(0);
        assert_eq!(bench.send(&[60]), (1, 0));
        assert_eq!(bench.half.drops(DropReason::BadAddress), 1, "{addr:x} {len}");
        assert_eq!(bench.take_used(), [(0, 0)]);
        bench.assert_no_leak();
    }
}
