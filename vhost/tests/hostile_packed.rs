//! Guest attacks on the packed ring (G26 and what G01 to G19 are there), with ring memory made by hand.

#[path = "support/packed.rs"]
mod packed_ring;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use packed_ring::*;
use spp_drivers::stats::DropReason;
use spp_vhost::handover::Command;
use spp_vhost::vring::{RingFault, RingFeatures};
use spp_vhost::{FromGuest, ToGuest};
use support::*;

fn from_guest() -> Packed<FromGuest> {
    Packed::new(SIZE, (START, true), packed(false, false))
}

fn to_guest(mergeable: bool) -> Packed<ToGuest> {
    Packed::new(SIZE, (START, true), packed(mergeable, false))
}

/// Offers a chain, expects it back empty and counted for `reason`, and the ring to go on.
fn expect_dropped(descriptors: &[(u64, u32, u16)], reason: DropReason, prepare: impl Fn(&Memory)) {
    for in_order in [false, true] {
        let mut bench: Packed<FromGuest> = Packed::new(SIZE, (START, true), packed(false, in_order));
        prepare(&bench.memory);
        bench.offer(3, descriptors);
        assert!(bench.receive().is_empty());
        assert_eq!(bench.take_used(descriptors.len() as u16), Some((3, 0)), "{descriptors:x?}");
        assert_eq!(bench.half.drops(reason), 1, "counted as {}: {descriptors:x?}", reason.name());
        assert_eq!(bench.fault(), None);
        bench.assert_alive();
        bench.assert_no_leak();
    }
}

#[test]
fn g01_g02_g04_g13_bad_buffers_are_dropped_and_the_ring_goes_on() {
    let none = |_: &Memory| ();
    let bad = DropReason::BadAddress;
    for (addr, len) in [
        (REGION - 50, 100),
        (2 * REGION - 99, 100),
        (u64::MAX - 10, 100),
        (2 * REGION, 64),
        (BUFFERS, u32::MAX),
        (1 << 63, 64),
    ] {
        expect_dropped(&[(addr, len, 0)], bad, none);
        // Behind a good one, and with length 0 before it (CVE-2020-10725).
        expect_dropped(&[(BUFFERS, 64, NEXT), (addr, len, 0)], bad, none);
        expect_dropped(&[(addr, 0, NEXT), (addr, len, 0)], bad, none);
    }
    for len in [0, 1, 11, 12, 25] {
        expect_dropped(&[(BUFFERS, len, 0)], DropReason::Runt, none);
    }
    expect_dropped(&[(BUFFERS, 100, WRITE)], DropReason::BadChain, none);
    expect_dropped(&[(BUFFERS, 100, NEXT), (BUFFERS, 100, WRITE)], DropReason::BadChain, none);
}

#[test]
fn g08_bad_indirect_tables_are_dropped_and_the_ring_goes_on() {
    let table = |memory: &Memory| {
        memory.desc(TABLE, 0, BUFFERS, 40, 0, 0);
        memory.desc(TABLE, 1, BUFFERS, 40, 0, 0);
    };
    for (addr, len, flags, reason) in [
        (TABLE, 15, INDIRECT, DropReason::BadChain),
        (TABLE, 0, INDIRECT, DropReason::BadChain),
        (TABLE, 40, INDIRECT, DropReason::BadChain),
        (TABLE, 16 * 257, INDIRECT, DropReason::BadChain),
        (TABLE, 16 * 65_537, INDIRECT, DropReason::BadChain),
        (2 * REGION - 8, 32, INDIRECT, DropReason::BadAddress),
        (u64::MAX - 7, 32, INDIRECT, DropReason::BadAddress),
    ] {
        expect_dropped(&[(addr, len, flags)], reason, table);
    }
    // In the middle of a chain, at its start, and a table in a table.
    expect_dropped(&[(TABLE, 32, INDIRECT | NEXT), (BUFFERS, 64, 0)], DropReason::BadChain, table);
    expect_dropped(&[(BUFFERS, 64, NEXT), (TABLE, 32, INDIRECT)], DropReason::BadChain, table);
    // The flags of a packed table's descriptor lie where a split one has its link.
    expect_dropped(&[(TABLE, 32, INDIRECT)], DropReason::BadChain, |memory| {
        memory.desc(TABLE, 0, TABLE, 32, 0, INDIRECT);
    });
    expect_dropped(&[(TABLE, 32, INDIRECT)], DropReason::BadChain, |memory| {
        memory.desc(TABLE, 0, BUFFERS, 40, 0, WRITE);
    });
}

#[test]
fn g26_buffer_id_outside_the_ring_stops_it() {
    for id in [SIZE, SIZE + 1, 0x8000, u16::MAX] {
        let mut bench = from_guest();
        bench.offer(id, &[(BUFFERS, 100, 0)]);
        bench.expect_stopped(RingFault::IdOutside);
        let mut bench = from_guest();
        bench.offer(id, &[(BUFFERS, 100, NEXT), (BUFFERS, 100, 0)]);
        bench.expect_stopped(RingFault::IdOutside);
    }
}

#[test]
fn g26_chain_that_goes_on_where_nothing_is_available_stops_the_ring() {
    for follower in [0, AVAIL_FLAG | USED_FLAG, USED_FLAG] {
        let bench = from_guest();
        bench.write(1, BUFFERS, 100, 3, follower);
        bench.write(0, BUFFERS, 100, 3, NEXT | turn(true));
        bench.expect_stopped(RingFault::ChainCut);
    }
}

#[test]
fn g06_chain_without_an_end_stops_the_ring() {
    let mut bench = from_guest();
    bench.offer(3, &[(BUFFERS, 100, NEXT); SIZE as usize]);
    bench.expect_stopped(RingFault::ChainEndless);
    // Longer than any frame's chain may be, in a ring that has room for it.
    let mut bench: Packed<FromGuest> = Packed::new(4096, (4000, true), packed(false, false));
    let mut chain = vec![(BUFFERS, 1, NEXT); 1025];
    chain[1024].2 = 0;
    bench.offer(3, &chain);
    assert!(bench.receive().is_empty());
    assert_eq!(bench.fault(), Some(RingFault::ChainEndless));
}

#[test]
fn good_chains_before_a_lie_are_served() {
    let mut bench = from_guest();
    for id in 0..5 {
        bench.offer(id, &[(BUFFERS, 100, 0)]);
    }
    bench.offer(SIZE, &[(BUFFERS, 100, 0)]);
    assert_eq!(bench.receive().len(), 5);
    assert_eq!(bench.fault(), None);
    assert!(bench.receive().is_empty());
    assert_eq!(bench.fault(), Some(RingFault::IdOutside));
}

#[test]
fn g26_descriptors_of_another_lap_and_skipped_ones_are_not_taken() {
    for flags in [0, AVAIL_FLAG | USED_FLAG, USED_FLAG] {
        let mut bench = from_guest();
        bench.write(0, BUFFERS, 100, 3, flags);
        // The next one is fine, but it is not its turn.
        bench.write(1, BUFFERS, 100, 4, turn(true));
        assert!(bench.receive().is_empty());
        assert_eq!(bench.fault(), None);
        bench.write(1, 0, 0, 0, 0);
        bench.assert_alive();
    }
}

#[test]
fn ring_that_is_all_available_for_ever_is_bounded_work() {
    for size in [1, 2, 16, 256] {
        let mut bench: Packed<FromGuest> = Packed::new(size, (0, true), packed(false, true));
        for _ in 0..50 {
            // Whatever was used is available again at once, in whichever lap.
            for slot in 0..size {
                let wrap = (slot >= bench.used.0) == bench.used.1;
                let mut bytes = BUFFERS.to_le_bytes().to_vec();
                bytes.extend(72u32.to_le_bytes());
                bytes.extend(slot.to_le_bytes());
                bytes.extend(turn(wrap).to_le_bytes());
                bench.memory.write(DESC + 16 * u64::from(slot), &bytes);
            }
            let n = bench.receive().len() as u16;
            assert!(n >= 1 && n <= size.min(32), "{n} of {size}");
            assert!(bench.take_used(n).is_some());
        }
        assert_eq!(bench.fault(), None);
        bench.assert_no_leak();
    }
}

/// Runs `poll` until it has seen enough, while another thread writes random descriptors and table entries.
fn under_attack<H: Half + Send>(bench: &mut Packed<H>, mut poll: impl FnMut(&mut Packed<H>) -> bool) {
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
            let addrs = [BUFFERS, REGION - 50, u64::MAX - 5, USED, AVAIL, DESC, next(), TABLE];
            let addr = addrs[next() as usize % addrs.len()];
            let len = [64, 76, 1514, 0, 16, 32, next() as u32, 4096][next() as usize % 8];
            let table = if next() % 4 == 0 { TABLE } else { DESC };
            // Id and flags: mostly good ids, every combination of the flags that mean something.
            let id = if next() % 32 == 0 { next() as u16 } else { next() as u16 % 16 };
            let turns = [AVAIL_FLAG, USED_FLAG, 0, AVAIL_FLAG | USED_FLAG][next() as usize % 4];
            let flags = [0, NEXT, WRITE, WRITE | NEXT, INDIRECT][next() as usize % 5] | turns;
            attacker.desc(table, next() as u16 % 16, addr, len, id, flags);
        }
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    while !poll(bench) {
        assert!(Instant::now() < deadline, "the attack is not felt");
        std::thread::yield_now();
    }
    done.store(true, Ordering::Relaxed);
    thread.join().unwrap();
}

/// After a fault the guest sets the ring up anew where it was.
fn revive<H: Half + Send>(bench: &mut Packed<H>, features: RingFeatures) {
    if bench.fault().is_some() {
        bench.command(Command::Stop);
        bench.used.1 = !bench.used.1;
        bench.start(features);
    }
}

#[test]
fn g09_g10_g19_descriptors_flipped_while_we_read_harm_nobody() {
    for in_order in [false, true] {
        let features = packed(false, in_order);
        let mut bench: Packed<FromGuest> = Packed::new(16, (0, true), features);
        let (mut n_faults, mut n_frames) = (0, 0);
        under_attack(&mut bench, |bench| {
            n_frames += bench.receive().len();
            n_faults += u32::from(bench.fault().is_some());
            revive(bench, features);
            let felt = bench.half.drops(DropReason::BadChain) + bench.half.drops(DropReason::BadAddress);
            felt > 50 && n_faults > 5 && n_frames > 10
        });
        bench.assert_no_leak();
    }
}

#[test]
fn g10_g18_g19_receive_descriptors_flipped_while_we_write_harm_only_the_guest() {
    for mergeable in [false, true] {
        let features = packed(mergeable, true);
        let mut bench: Packed<ToGuest> = Packed::new(16, (0, true), features);
        let (mut n_faults, mut n_bursts) = (0, 0);
        under_attack(&mut bench, |bench| {
            let (n, _) = bench.send(&[60, 1514, 60, 4000]);
            n_bursts += u32::from(n > 0);
            n_faults += u32::from(bench.fault().is_some());
            revive(bench, features);
            n_faults > 5 && n_bursts > 100
        });
        bench.assert_no_leak();
    }
}

#[test]
fn f02_truncated_guest_memory_stops_the_ring_with_its_reason() {
    let mut bench = from_guest();
    bench.assert_alive();
    rustix::fs::ftruncate(&bench.memory.file, 0).unwrap();
    assert!(bench.receive().is_empty());
    assert!(bench.receive().is_empty());
    assert_eq!(bench.fault(), Some(RingFault::MemoryGone));
}

#[test]
fn g05_g17_g29_receive_buffers_of_any_size_are_filled_and_never_overrun() {
    for mergeable in [false, true] {
        let mut bench = to_guest(mergeable);
        for i in 0..64u16 {
            let at = BUFFERS + 0x100 * u64::from(i);
            bench.memory.write(at, &[0xcc; 16]);
            bench.offer(i, &[(at, 5, WRITE)]);
        }
        let (n, _) = bench.send(&[60]);
        let used: Vec<_> = std::iter::from_fn(|| bench.take_used(1)).collect();
        if mergeable {
            assert_eq!((n, used.len()), (1, 15), "72 bytes in buffers of 5");
            assert_eq!(used.iter().map(|u| u.1).sum::<u32>(), 72);
        } else {
            assert_eq!((n, bench.half.drops(DropReason::Oversize)), (1, 1));
        }
        for i in 0..64 {
            assert_eq!(bench.memory.read(BUFFERS + 0x100 * i + 5, 11), [0xcc; 11], "behind buffer {i}");
        }
        bench.assert_no_leak();
    }
}
