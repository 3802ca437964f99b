//! The driver's watch starts whenever it likes, and sees an `up` before the driver gives up.

use std::time::Duration;

use crate::dataplane::Plug;
use crate::keys::Subject;
use crate::machine::Command;
use crate::testing::{name, plug};

use super::planted::Bug;
use super::world::{FATES, Fate, World};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// How long networking-spp's mechanism driver waits once its watch is there.
const DRIVER_WAITS: Duration = Duration::from_secs(20);

fn flat() -> Plug {
    plug(0, 1, None)
}

/// When `a` was told so, from the driver's last write on.
fn told(world: &World, asked: Duration) -> Vec<Duration> {
    let of_a = world.ups.iter().filter(|(subject, _)| *subject == Subject::Port(name("a")));
    of_a.map(|(_, at)| *at - asked).collect()
}

/// A port is bound and no guest comes; `fault` strikes within the first 100 s.
fn bound(fault: Option<(usize, Fate)>, bug: Option<Bug>) -> (World, Duration) {
    let mut world = World::new();
    world.planted.bug = bug;
    world.fates.extend(fault);
    world.pump();
    world.bind_all("a", flat());
    let asked = world.now;
    world.pass(Duration::from_secs(100));
    (world, asked)
}

/// Every watch that starts within `window` sees one of these.
fn all_see(told: &[Duration], window: Duration) {
    for start in (0..window.as_millis() as u64).step_by(50).map(MS) {
        let seen = told.iter().find(|at| **at > start);
        let seen = seen.unwrap_or_else(|| panic!("a watch from {start:?} on sees nothing of {told:?}"));
        assert!(*seen < start + DRIVER_WAITS, "a watch from {start:?} on is given up before {seen:?}");
    }
}

/// With no fault at all.
pub fn every_watch_sees_up(bug: Option<Bug>) {
    let (world, asked) = bound(None, bug);
    all_see(&told(&world, asked), MS(72_000));
}

#[test]
fn watch_that_starts_within_72_s_sees_up_with_any_fault_anywhere() {
    let commands = bound(None, None).0.trace;
    assert!(
        commands.iter().filter(|c| matches!(c, Command::Act(_))).count() > 6,
        "wired, and told six times"
    );
    for (at, command) in commands.iter().enumerate() {
        // An agent that stays down says nothing.
        for fate in FATES.into_iter().filter(|fate| !matches!(fate, Fate::StaysDown(_))) {
            let (world, asked) = bound(Some((at, fate)), None);
            let run = std::panic::catch_unwind(|| all_see(&told(&world, asked), MS(72_000)));
            run.unwrap_or_else(|_| panic!("{fate:?} at {at}, {command:?}"));
        }
    }
}

/// Six etcd writes for a plug, the driver's three included: and still every driver is served.
#[test]
fn up_is_put_three_times_when_the_guest_comes_once_its_driver_has_heard() {
    for start in (0..18_000).step_by(250).map(MS) {
        let mut world = World::new();
        world.pump();
        world.bind_all("a", flat());
        let asked = world.now;
        while !told(&world, asked).iter().any(|at| *at > start) {
            world.pass(MS(50));
            assert!(world.now < asked + start + DRIVER_WAITS, "the watch from {start:?} on is given up");
        }
        world.pass(Duration::from_secs(3));
        world.node.guests.insert(0);
        world.pass(Duration::from_secs(300));
        assert_eq!(told(&world, asked).len(), 3, "{start:?}");
    }
}

#[test]
fn driver_that_stumbles_for_a_minute_is_told_until_its_guest_comes() {
    let mut world = World::new();
    world.pump();
    world.bind_all("a", flat());
    let asked = world.now;
    world.pass(Duration::from_secs(60));
    let before = told(&world, asked).len();
    world.pass(DRIVER_WAITS - MS(1));
    assert_eq!(told(&world, asked).len(), before + 1);
    world.node.guests.insert(0);
    world.pass(Duration::from_secs(300));
    assert_eq!(told(&world, asked).len(), before + 1);
}

#[test]
fn guest_that_comes_and_goes_is_no_reason_to_say_up_again() {
    let mut world = World::new();
    world.pump();
    world.bind_all("a", flat());
    world.node.guests.insert(0);
    world.pass(Duration::from_secs(30));
    let asked = world.now;
    world.node.guests.remove(&0);
    world.pass(Duration::from_secs(300));
    assert!(world.ups.iter().all(|(_, at)| *at < asked), "{:?}", world.ups);
}
