//! From guest to guest: the same random traffic copied once and copied through packet buffers gives the same frames, used
//! elements, counters and marks in the dirty log; and what is particular to frames that are lent.

mod support;
#[path = "support/packed.rs"]
mod support_packed;
#[path = "support/two_guests.rs"]
mod two_guests;

use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::ftruncate;
use spp_drivers::offload::Offloads;
use spp_drivers::port::{Passed, RxQueue, TxQueue};
use spp_drivers::stats::DropReason;
use spp_vhost::handover::{Command, Reply};
use spp_vhost::vring::{RingFault, RingFeatures};
use spp_vhost::{FromGuest, ToGuest};
use support::*;
use two_guests::*;

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let sent = prop_oneof![
        20 => Just(Sent::Plain),
        1 => Just(Sent::Asks),
        1 => Just(Sent::AsksAmiss),
        1 => Just(Sent::Noise),
        1 => Just(Sent::HeaderApart),
        1 => Just(Sent::Outside),
        1 => Just(Sent::Backwards),
        1 => Just(Sent::Runt),
    ];
    let room = prop_oneof![
        20 => Just(Room::Plain),
        1 => Just(Room::TwoPieces),
        1 => Just(Room::Outside),
        1 => Just(Room::Backwards),
    ];
    let frame_len = prop_oneof![8 => 30usize..200, 4 => 1400usize..2100, 1 => 4000usize..9000];
    let room_len = prop_oneof![1 => 40u32..200, 8 => 1500u32..2100, 2 => 9100u32..0x3000];
    let action = prop_oneof![
        10 => (sent, frame_len, any::<u8>()).prop_map(|(shape, len, seed)| Action::Send { shape, len, seed }),
        10 => (room, room_len).prop_map(|(shape, len)| Action::Buffer { shape, len }),
        1 => Just(Action::Settle),
    ];
    proptest::collection::vec(action, 1..200)
}

/// Packed or split, mergeable or not, and who does what.
fn choices() -> impl Strategy<Value = [RingFeatures; 2]> {
    let works = prop_oneof![
        Just([Offloads::NONE; 2]),
        Just([Offloads::ALL; 2]),
        Just([Offloads::NONE, Offloads::ALL]),
    ];
    let lengths = prop_oneof![3 => Just(usize::MAX), 1 => Just(1514)];
    (any::<[bool; 3]>(), works, lengths).prop_map(
        |([packed, to_packed, mergeable], works, max_frame_bytes)| {
            let from = RingFeatures { packed, from_guest: works[0], ..features(false, false) };
            let to = features(mergeable, false);
            [from, RingFeatures { packed: to_packed, to_guest: works[1], max_frame_bytes, ..to }]
        },
    )
}

/// Compares what has come of both, copied twice and once, and lets both senders have the same buffers again. With a full
/// ring in front of them, how many frames wait in the core's hand and how many with their sender is not the same.
fn compare(two: &mut World, one: &mut World) -> Result<(), TestCaseError> {
    prop_assert_eq!(two.received(), one.received());
    let n = two.sent.len().min(one.sent.len());
    prop_assert_eq!(&two.sent[..n], &one.sent[..n]);
    let (from, to) = (two.counters(), one.counters());
    prop_assert_eq!(&from[1], &to[1]);
    if two.pending.is_empty() && one.pending.is_empty() {
        prop_assert_eq!((&from[0], two.sent.len()), (&to[0], one.sent.len()));
    }
    prop_assert_eq!((two.from.fault(), two.to.fault()), (one.from.fault(), one.to.fault()));
    prop_assert!(two.marked() == one.marked(), "the same pages are marked");
    [two, one].into_iter().for_each(|world| world.reclaim(n));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn traffic_copied_once_is_the_same_as_traffic_through_buffers([from, to] in choices(), actions in actions()) {
        let mut worlds = [false, true].map(|once| World::new(once, from, to));
        let [two, one] = &mut worlds;
        for action in &actions {
            [&mut *two, &mut *one].into_iter().for_each(|world| world.apply(action));
            if matches!(action, Action::Settle) {
                compare(two, one)?;
            }
        }
        // Room for all that still waits.
        for _ in 0..N {
            for world in [&mut *two, &mut *one] {
                world.settle();
                while !world.pending.is_empty() && !world.free[1].is_empty() {
                    world.apply(&Action::Buffer { shape: Room::Plain, len: 2060 });
                }
                world.settle();
            }
            compare(two, one)?;
            if two.pending.is_empty() && one.pending.is_empty() {
                break;
            }
        }
        prop_assert_eq!((two.pending.len(), one.pending.len()), (0, 0));
        let all = |world: &World| world.to.memory().read(BUFFERS, ROOM as usize * usize::from(N));
        prop_assert!(all(two) == all(one), "not a byte more is written");
        worlds.into_iter().for_each(World::close);
    }
}

fn world(once: bool) -> World {
    World::new(once, features(false, false), features(false, false))
}

impl World {
    fn send(&mut self, len: usize) {
        self.apply(&Action::Send { shape: Sent::Plain, len, seed: len as u8 });
    }

    fn room(&mut self, n: usize) {
        (0..n).for_each(|_| self.apply(&Action::Buffer { shape: Room::Plain, len: 2060 }));
    }

    /// Frames received, without their headers.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        self.received().into_iter().map(|(_, bytes)| bytes[12..].to_vec()).collect()
    }
}

#[test]
fn plain_frames_pass_while_the_pool_has_no_buffer_left() {
    let mut world = world(true);
    let (_, cache) = world.from.half();
    let hoard: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    world.room(40);
    let lens = [14, 60, 64, 129, 1514, 2048];
    lens.into_iter().cycle().take(40).for_each(|len| world.send(len));
    world.settle();
    let expected: Vec<_> = lens.into_iter().cycle().take(40).map(|len| frame(len, len as u8)).collect();
    assert_eq!(world.frames(), expected);
    assert_eq!(world.n_passed, 40);
    drop(hoard);
    world.close();
}

#[test]
fn frames_wait_for_a_full_ring_without_loss_and_in_order() {
    let mut world = world(true);
    let mut frames = Vec::new();
    for len in 100..140 {
        world.send(len);
    }
    for n in [0, 1, 7, 0, 20, 12] {
        world.room(n);
        world.settle();
        frames.extend(world.frames());
    }
    assert_eq!(frames, (100..140).map(|len| frame(len, len as u8)).collect::<Vec<_>>());
    assert_eq!(world.counters().map(|stats| (stats.packets, stats.total_drops())), [(40, 0); 2]);
    assert!(world.n_passed > 0, "some found room at once");
    world.close();
}

#[test]
fn frames_for_a_guest_without_a_ring_are_dropped_by_name() {
    let mut world = world(true);
    let Reply::Ring(Some(ring)) = world.to.command(Command::Stop) else { panic!("the ring comes back") };
    world.send(60);
    world.settle();
    let [from, to] = world.counters();
    assert_eq!((from.packets, to.packets, to.drops.get("not_running")), (1, 0, Some(&1)));
    world.to.command(Command::Start(ring, true));
    world.room(1);
    world.send(61);
    world.settle();
    assert_eq!(world.frames(), [frame(61, 61)]);
    world.close();
}

#[test]
fn frames_of_a_disabled_ring_are_not_lent() {
    let mut world = world(true);
    world.from.command(Command::Enable(false));
    world.room(1);
    world.send(60);
    world.settle();
    assert_eq!(world.frames(), Vec::<Vec<u8>>::new());
    assert_eq!((world.n_passed, world.from.half().0.stats().drops(DropReason::NotRunning)), (0, 1));
    world.close();
}

#[test]
fn address_to_be_announced_goes_before_frames_that_could_be_lent() {
    let mut world = world(true);
    world.from.command(Command::Announce(spp_drivers::MacAddr([2, 0, 0, 0, 0, 7])));
    world.room(2);
    world.send(60);
    world.settle();
    let frames = world.frames();
    assert_eq!((frames.len(), &frames[0][12..14], &frames[1]), (2, &[0x80, 0x35][..], &frame(60, 60)));
    world.close();
}

#[test]
fn ring_faults_of_either_guest_stop_that_ring_alone() {
    let mut world = world(true);
    world.room(1);
    world.send(60);
    if let Side::Split(bench) = &mut world.from {
        bench.avail = bench.avail.wrapping_add(300);
        bench.publish();
    }
    world.settle();
    assert_eq!((world.from.fault(), world.to.fault()), (Some(RingFault::IndexJump), None));
    world.close();
    let mut world = self::world(true);
    world.send(60);
    if let Side::Split(bench) = &mut world.to {
        bench.offer(256);
    }
    world.settle();
    assert_eq!((world.from.fault(), world.to.fault()), (None, Some(RingFault::HeadOutside)));
    assert_eq!(world.to.half().0.stats().drops(DropReason::NotRunning), 1);
    world.close();
}

#[test]
fn memory_that_vanishes_under_lent_frames_stops_the_ring_and_nothing_else() {
    for receiver in [false, true] {
        let mut world = world(true);
        world.room(4);
        world.send(60);
        world.settle();
        assert_eq!(world.frames(), [frame(60, 60)]);
        world.send(61);
        let memory = if receiver { world.to.memory() } else { world.from.memory() };
        // The rings stay, the buffers go.
        ftruncate(&memory.file, BUFFERS).unwrap();
        world.settle();
        let gone = Some(RingFault::MemoryGone);
        let expected = if receiver { (None, gone) } else { (gone, None) };
        // The frame itself may have gone through as zeros before anybody knew; the next turn knows.
        assert_eq!((world.from.fault(), world.to.fault()), expected, "receiver: {receiver}");
        world.close();
    }
}

#[test]
fn guest_that_receives_into_the_buffer_it_sends_from_harms_nobody() {
    // Both rings of one guest, in one memory: the frame lies across its own destination.
    let mut from: Bench<FromGuest> = Bench::new(256, 65_530, features(false, false));
    let mut to: Bench<ToGuest> = Bench::new(256, 65_530, features(false, false));
    to.memory = Memory::over(&from.memory);
    let Reply::Ring(Some(_)) = to.command(Command::Stop) else { panic!("the ring comes back") };
    // Its ring lies behind the other's, in the other region.
    let at = |part: u64| REGION + part;
    let addr = {
        use spp_vhost::memory::FrontendVa;
        use spp_vhost::vring::layout::RingAddr;
        RingAddr {
            desc: FrontendVa(VA + at(DESC)),
            avail: FrontendVa(VA + at(AVAIL)),
            used: FrontendVa(VA + at(USED)),
        }
    };
    let map = from.memory.map();
    let restart = |map: Arc<spp_vhost::memory::GuestMap>, addr| {
        use spp_vhost::vring::{Ring, RingMemory};
        let memory = RingMemory::new(map, addr, 256, false).unwrap();
        Box::new(Ring::new(memory, features(false, false), None, 0))
    };
    // One map for both, as a port has it.
    let Reply::Ring(Some(_)) = from.command(Command::Stop) else { panic!("the ring comes back") };
    from.memory.write(AVAIL + 2, &[0; 2]);
    from.memory.write(USED + 2, &[0; 2]);
    (from.avail, from.used) = (0, 0);
    from.command(Command::Start(restart(map.clone(), from.ring_addr()), true));
    to.command(Command::Start(restart(map, addr), true));
    for (n, shift) in (0u16..).zip([0u64, 1, 12, 64, 1000]) {
        let sent = frame(1500, n as u8);
        let (source, target) = (BUFFERS + 4096, BUFFERS + 4096 + shift);
        from.memory.write(source, &[0; 12]);
        from.memory.write(source + 12, &sent);
        from.memory.desc(DESC, n, source, 1512, 0, 0);
        from.offer(n);
        to.memory.desc(at(DESC), n, target, 2060, WRITE, 0);
        to.memory.write(at(AVAIL) + 4 + 2 * u64::from(n), &n.to_le_bytes());
        to.memory.write(at(AVAIL) + 2, &(n + 1).to_le_bytes());
        assert_eq!(from.half.rx_into(&mut to.half), Some(Passed { packets: 1, bytes: 1500 }));
        let received = from.memory.read(target + 12, 1500);
        // The frame was copied before the header was written over where it came from.
        assert_eq!(received, sent, "{shift} bytes on");
        assert_eq!(from.memory.read(target, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "{shift} bytes on");
        assert_eq!(from.take_used(), [(n, 0)]);
    }
    assert_eq!((from.fault(), to.fault()), (None, None));
}
