//! Guest attacks on the packed ring (G26 and what G01 to G19 are there), with ring memory made by hand, and a small
//! model of the driver's side tried with every ring, place and chain there is up to four descriptors.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolCache, PoolConfig};
use spp_drivers::stats::DropReason;
use spp_vhost::handover::{Command, Handover, Reply, handover};
use spp_vhost::lanes::{Lane, LaneStats};
use spp_vhost::vring::{Ring, RingFault, RingFeatures, RingMemory};
use spp_vhost::{FromGuest, ToGuest};
use support::*;

const AVAIL_FLAG: u16 = 1 << 7;
const USED_FLAG: u16 = 1 << 15;
const TABLE: u64 = BUFFERS + 0x8000;
const SIZE: u16 = 256;
/// Near the end of the ring, in the lap whose wrap counter is 0.
const START: u16 = 250;

/// A half under test with its packed ring, and the guest's side of it.
struct Packed<H> {
    memory: Memory,
    half: H,
    handover: Handover,
    pool: Pool,
    cache: PoolCache,
    size: u16,
    /// Next slot to make available, next to look for a used element in, and their wrap counters.
    avail: (u16, bool),
    used: (u16, bool),
}

fn packed(mergeable: bool, in_order: bool) -> RingFeatures {
    RingFeatures { packed: true, in_order, ..features(mergeable, false) }
}

/// Descriptor flags as a driver writes them in a lap.
fn turn(wrap: bool) -> u16 {
    if wrap { AVAIL_FLAG } else { USED_FLAG }
}

impl<H: Half + Send> Packed<H> {
    fn new(size: u16, start: (u16, bool), features: RingFeatures) -> Self {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 512 }).unwrap();
        let bell: Arc<AtomicBool> = Arc::default();
        let (handover, mailbox) = handover(bell.clone());
        let half = H::build(Lane::new(mailbox, LaneStats::default()), bell, &pool);
        let (memory, cache) = (Memory::new(), pool.cache());
        let mut bench = Packed { memory, half, handover, cache, pool, size, avail: start, used: start };
        // Nothing is available in this lap or the next.
        (0..size).for_each(|slot| bench.memory.desc(DESC, slot, 0, 0, 0, 0));
        bench.start(features);
        bench
    }

    fn command(&mut self, command: Command) -> Reply {
        let (handover, half) = (&mut self.handover, &mut self.half);
        std::thread::scope(|scope| {
            let call = scope.spawn(move || handover.call(command));
            while !call.is_finished() {
                half.poll();
                std::thread::yield_now();
            }
            call.join().unwrap().unwrap()
        })
    }

    fn start(&mut self, features: RingFeatures) {
        let addr = spp_vhost::vring::layout::RingAddr {
            desc: spp_vhost::memory::FrontendVa(VA + DESC),
            avail: spp_vhost::memory::FrontendVa(VA + AVAIL),
            used: spp_vhost::memory::FrontendVa(VA + USED),
        };
        let memory = RingMemory::new(self.memory.map(), addr, self.size, true).unwrap();
        let at = u32::from(self.used.0) | if self.used.1 { 0x8000 } else { 0 };
        let ring = Ring::new(memory, features, None, at | at << 16);
        self.command(Command::Start(Box::new(ring), true));
    }

    fn fault(&self) -> Option<RingFault> {
        self.handover.state().fault()
    }

    fn step(&self, (slot, wrap): (u16, bool), n: u16) -> (u16, bool) {
        if slot + n >= self.size { (slot + n - self.size, !wrap) } else { (slot + n, wrap) }
    }

    /// Writes a descriptor `ahead` of the next one, with flags of its own.
    fn write(&self, ahead: u16, addr: u64, len: u32, id: u16, flags: u16) {
        let (slot, _) = self.step(self.avail, ahead);
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.memory.write(DESC + 16 * u64::from(slot), &bytes);
    }

    /// Makes a chain of these descriptors (address, length, flags) available under `id`.
    fn offer(&mut self, id: u16, descriptors: &[(u64, u32, u16)]) {
        for (i, &(addr, len, flags)) in descriptors.iter().enumerate().rev() {
            let wrap = self.step(self.avail, i as u16).1;
            self.write(i as u16, addr, len, id, flags | turn(wrap));
        }
        self.avail = self.step(self.avail, descriptors.len() as u16);
    }

    /// The used element at the place we are at: id and length.
    fn used_element(&self) -> Option<(u16, u32)> {
        let bytes = self.memory.read(DESC + 16 * u64::from(self.used.0), 16);
        let flags = u16::from_le_bytes([bytes[14], bytes[15]]);
        let both = if self.used.1 { AVAIL_FLAG | USED_FLAG } else { 0 };
        let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
        (flags & (AVAIL_FLAG | USED_FLAG) == both).then(|| (u16::from_le_bytes([bytes[12], bytes[13]]), len))
    }

    /// Takes a used element that frees `n` descriptors.
    fn take_used(&mut self, n: u16) -> Option<(u16, u32)> {
        let element = self.used_element()?;
        self.used = self.step(self.used, n);
        Some(element)
    }

    fn assert_no_leak(self) {
        let Packed { half, handover, pool, cache, .. } = self;
        drop((half, handover, cache));
        assert_eq!(pool.counts().out, 0);
    }
}

impl Packed<FromGuest> {
    fn receive(&mut self) -> Vec<Vec<u8>> {
        use spp_drivers::port::RxQueue;
        let mut burst = Burst::new();
        self.half.rx_burst(&mut self.cache, &mut burst);
        let frames = burst.iter().map(bytes).collect();
        burst.free_all(&mut self.cache);
        frames
    }

    /// The ring still serves a good frame.
    fn assert_alive(&mut self) {
        let good = frame(60, 0x5a);
        self.memory.write(BUFFERS + 0x1_0000, &[0; 12]);
        self.memory.write(BUFFERS + 0x1_000c, &good);
        self.offer(77, &[(BUFFERS + 0x1_0000, 72, 0)]);
        assert_eq!(self.receive(), [good]);
        assert_eq!(self.take_used(1), Some((77, 0)));
    }

    /// Expects the ring to have stopped for `fault`, to stay so, and to work after a restart.
    fn expect_stopped(mut self, fault: RingFault) {
        assert!(self.receive().is_empty());
        assert_eq!(self.fault(), Some(fault));
        assert!(self.receive().is_empty());
        assert_eq!(self.used_element(), None);
        let Reply::Ring(Some(_)) = self.command(Command::Stop) else { panic!("the ring comes back") };
        (0..self.size).for_each(|slot| self.memory.desc(DESC, slot, 0, 0, 0, 0));
        (self.avail, self.used) = ((START, true), (START, true));
        self.start(packed(false, false));
        assert_eq!(self.fault(), None);
        self.assert_alive();
        self.assert_no_leak();
    }
}

impl Packed<ToGuest> {
    fn send(&mut self, lens: &[usize]) -> (usize, usize) {
        use spp_drivers::port::TxQueue;
        let mut burst = Burst::new();
        for (i, len) in lens.iter().enumerate() {
            burst.push(packet(&mut self.cache, *len, i as u8)).unwrap();
        }
        let n = self.half.tx_burst(&mut self.cache, &mut burst);
        let left = burst.len();
        burst.free_all(&mut self.cache);
        (n, left)
    }
}

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

/// All ways to cut `n` descriptors into chains.
fn cuts(n: u16) -> Vec<Vec<u16>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for first in 1..=n {
        for mut rest in cuts(n - first) {
            rest.insert(0, first);
            all.push(rest);
        }
    }
    all
}

#[test]
fn every_small_ring_place_and_cut_is_taken_and_given_back_as_the_model_says() {
    let mut n_cases = 0;
    for size in 1..=4u16 {
        for start in 0..size {
            for wrap in [false, true] {
                for in_order in [false, true] {
                    let mut bench: Packed<FromGuest> =
                        Packed::new(size, (start, wrap), packed(false, in_order));
                    if !wrap {
                        // What the driver's last lap left: used.
                        (0..size)
                            .for_each(|slot| bench.memory.desc(DESC, slot, 0, 0, 0, AVAIL_FLAG | USED_FLAG));
                    }
                    // On and on in the same ring, so that each cut meets each place.
                    for n in (1..=size).chain(1..=size) {
                        for cut in cuts(n) {
                            n_cases += 1;
                            round(&mut bench, &cut, in_order);
                        }
                    }
                    assert_eq!(bench.fault(), None);
                    bench.assert_no_leak();
                }
            }
        }
    }
    assert_eq!(n_cases, 704);
}

/// Offers chains of so many descriptors each, and expects their frames, and the used elements a driver counts on.
fn round(bench: &mut Packed<FromGuest>, cut: &[u16], in_order: bool) {
    let mut expected = Vec::new();
    for (i, &n) in cut.iter().enumerate() {
        let good = frame(60 + 7 * i, i as u8);
        let at = BUFFERS + 0x1000 * i as u64;
        bench.memory.write(at, &[0; 12]);
        bench.memory.write(at + 12, &good);
        // Header and frame over n descriptors, cut after each 20 bytes.
        let total = 12 + good.len() as u32;
        let part = |k: u16| {
            let last = k + 1 == n;
            let start = 20 * u32::from(k);
            let len = if last { total - start } else { 20 };
            (at + u64::from(start), len, if last { 0 } else { NEXT })
        };
        let chain: Vec<_> = (0..n).map(part).collect();
        bench.offer(bench.size - 1 - i as u16, &chain);
        expected.push(good);
    }
    assert_eq!(bench.receive(), expected, "{cut:?}");
    let size = bench.size;
    let id = |i: usize| size - 1 - i as u16;
    if in_order {
        let all = cut.iter().sum();
        let last = id(cut.len() - 1);
        assert_eq!(bench.take_used(all), Some((last, 0)), "one element for {cut:?}");
    } else {
        for (i, n) in cut.iter().enumerate() {
            let id = id(i);
            assert_eq!(bench.take_used(*n), Some((id, 0)), "element {i} of {cut:?}");
        }
    }
    assert!(bench.receive().is_empty());
    assert_eq!(bench.used, bench.avail);
}
