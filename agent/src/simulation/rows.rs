//! Every crash point of every short life of a port: one test for each row of the table.
//!
//! A life runs once without a fault, which says what commands it has and how it ends. Then again for
//! each command and each way it can fail, and for each two of them; each time it must end the same.

use crate::dataplane::Plug;
use crate::machine::Command;
use crate::reconcile::Action;
use crate::testing::plug;

use super::world::{FATES, Fate, World};

type Life = fn(&mut World);

fn flat() -> Plug {
    plug(0, 1, None)
}

fn tagged() -> Plug {
    plug(0, 2, Some(100))
}

fn bind_flat(world: &mut World) {
    world.pump();
    world.bind_all("a", flat());
}

fn bind_vlan(world: &mut World) {
    world.pump();
    world.bind_all("a", tagged());
}

fn unbind(world: &mut World) {
    bind_vlan(world);
    world.unbind("a");
}

/// The vhost goes from one port to the next, with another MAC and another tag.
fn rebind(world: &mut World) {
    bind_vlan(world);
    world.unbind("a");
    // The driver takes what is free; a fault may have kept this one until the agent is back.
    world.start_agent();
    world.pass(std::time::Duration::from_secs(10));
    world.bind_all("b", flat());
}

/// The same MAC moves from one vhost to another: its entry must leave the table first.
fn move_to_another_vhost(world: &mut World) {
    bind_vlan(world);
    world.unbind("a");
    world.bind_all("a2", Plug { vhost: 1, ..tagged() });
}

/// Two ports at once, and a third that finds its vhost held by the first.
fn contention(world: &mut World) {
    world.pump();
    world.bind_all("a", flat());
    assert!(!world.take("late", 0), "a vhost was given twice");
    world.bind("late", plug(0, 9, None));
    world.pump();
    world.ask("late", "plug");
    world.bind_all("b", plug(1, 3, Some(7)));
}

/// An unplug for a port whose bind ended after the slot, after bind_port, or never began.
fn unplug_never_plugged(world: &mut World) {
    world.pump();
    world.ask("stranger", "unplug");
    world.pump();
    assert!(world.take("a", 0));
    world.ask("a", "unplug");
    world.pump();
    assert!(world.take("b", 1));
    world.bind("b", plug(1, 3, None));
    world.ask("b", "unplug");
    world.pump();
}

/// Drivers that give up: with the slot, with bind_port, and after the plug without ever seeing `up`.
fn driver_timeouts(world: &mut World) {
    world.pump();
    assert!(world.take("slot-only", 0));
    world.pump();
    assert!(world.take("bound", 1));
    world.bind("bound", plug(1, 3, Some(7)));
    world.pump();
    world.ask("orphan", "plug");
    world.pump();
    world.bind_all("a", plug(2, 4, None));
    world.pass(std::time::Duration::from_secs(30));
}

/// The unplug comes before the agent has got to the plug.
fn unplug_squeezed_onto_plug(world: &mut World) {
    world.pump();
    assert!(world.take("a", 0));
    world.bind("a", flat());
    world.ask("a", "plug");
    world.ask("a", "unplug");
    world.pump();
}

/// bind_port is written again in place with another tag, the MAC being the same, and asked for again.
pub fn replug_with_another_tag(world: &mut World) {
    bind_vlan(world);
    world.bind("a", Plug { vlan: Some(200), ..tagged() });
    world.pump();
    world.ask("a", "plug");
    world.pump();
}

/// A tap of both directions between two ports; then its source goes, and the tap with it.
fn tap_and_unbind_its_source(world: &mut World) {
    tap(world);
    world.unbind("s");
}

/// Both directions of one port's frames are copied to another.
fn tap(world: &mut World) {
    world.pump();
    world.bind_all("s", tagged());
    world.bind_all("d", plug(2, 2, None));
    assert!(world.tap_all("t", ("s", "d"), [Some(0), Some(1)]));
}

fn tap_and_untap(world: &mut World) {
    tap(world);
    world.ask_tap("t", "unplug");
    world.pump();
}

/// A tap of a port that is not bound yet, and a TaaS driver that gives up.
fn tap_before_its_ports(world: &mut World) {
    world.pump();
    assert!(world.tap_all("t", ("s", "d"), [Some(0), None]));
    world.bind_all("s", tagged());
    world.bind_all("d", plug(2, 2, None));
    assert!(world.store.take_mirror(&crate::testing::name("given-up"), 1));
}

/// The life with these faults, settled.
fn live(life: Life, faults: &[(usize, Fate)]) -> World {
    let mut world = World::new();
    world.fates = faults.iter().copied().collect();
    life(&mut world);
    world.settle();
    world
}

/// How often the life was lived: with a fault at each command that is `meant`.
fn every_crash(life: Life, meant: fn(&Command) -> bool, fates: &[Fate]) -> usize {
    let mut whole = World::new();
    life(&mut whole);
    let commands = whole.trace.clone();
    whole.settle();
    let golden = whole.end();
    let mut n_lives = 0;
    for (at, command) in commands.iter().enumerate().filter(|(_, command)| meant(command)) {
        for fate in fates {
            let world = caught(&format!("{fate:?} at {at}, {command:?}"), || live(life, &[(at, *fate)]));
            assert_eq!(world.end(), golden, "{fate:?} at {at}, {command:?}");
            n_lives += 1;
        }
    }
    assert!(n_lives > 0, "no command is meant");
    n_lives
}

/// A panic inside says where it was.
fn caught<T>(place: &str, run: impl FnOnce() -> T) -> T {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| panic!("{place}"))
}

/// Every command, every fate.
fn every_point(life: Life) {
    every_crash(life, |_| true, &FATES);
}

/// Every two commands, each crashing with or without the node: crash loops, and crashes in recovery.
fn every_two_points(life: Life) {
    let mut whole = World::new();
    life(&mut whole);
    let n = whole.trace.len();
    whole.settle();
    let golden = whole.end();
    let fates = [Fate::CrashBefore(false), Fate::CrashAfter(true), Fate::CrashInFlight, Fate::FailsAfter];
    for first in 0..n {
        // The second in what follows the first, recovery included.
        for second in first + 1..first + 14 {
            for a in fates {
                for b in fates {
                    let place = format!("{a:?} at {first}, {b:?} at {second}");
                    let world = caught(&place, || live(life, &[(first, a), (second, b)]));
                    assert_eq!(world.end(), golden, "{place}");
                }
            }
        }
    }
}

const BEFORE: [Fate; 4] =
    [Fate::CrashBefore(false), Fate::CrashBefore(true), Fate::StaysDown(false), Fate::FailsBefore];
const AFTER: [Fate; 4] =
    [Fate::CrashAfter(false), Fate::CrashAfter(true), Fate::StaysDown(true), Fate::FailsAfter];

fn reads(command: &Command) -> bool {
    matches!(command, Command::Dial | Command::List | Command::Watch(_) | Command::Look)
}

fn plugs(command: &Command) -> bool {
    matches!(command, Command::Act(Action::Wire { .. }))
}

fn unplugs(command: &Command) -> bool {
    matches!(command, Command::Act(Action::Unwire { .. }))
}

fn says_up(command: &Command) -> bool {
    matches!(command, Command::Act(Action::PutUp { .. }))
}

fn cleans(command: &Command) -> bool {
    matches!(command, Command::Act(Action::Clean { .. }))
}

// Plug.

#[test]
fn crash_before_bind_port_is_read_ends_wired_and_up() {
    every_crash(bind_flat, reads, &BEFORE);
    live(bind_flat, &[]).assert_up("a", flat());
}

#[test]
fn crash_after_bind_port_is_read_ends_wired_and_up() {
    every_crash(bind_flat, reads, &AFTER);
    every_crash(bind_flat, plugs, &BEFORE);
}

#[test]
fn crash_between_tags_and_classifier_entry_leaves_no_half_wiring() {
    // The node has one step from old to new: a crash finds it before or after, and a node that died is
    // wired anew.
    every_crash(bind_vlan, plugs, &FATES);
    live(bind_vlan, &[]).assert_up("a", tagged());
}

#[test]
fn crash_after_classifier_entry_before_up_ends_up() {
    every_crash(bind_vlan, plugs, &AFTER);
    every_crash(bind_vlan, says_up, &BEFORE);
}

#[test]
fn crash_after_up_stays_up_and_wired() {
    every_crash(bind_vlan, says_up, &AFTER);
    every_crash(bind_vlan, says_up, &[Fate::CrashInFlight]);
}

// Unplug.

#[test]
fn crash_before_classifier_entry_is_removed_ends_clean() {
    every_crash(unbind, unplugs, &BEFORE);
    live(unbind, &[]).assert_pristine();
}

#[test]
fn crash_after_classifier_entry_is_removed_before_the_slot_is_given_back_ends_clean() {
    every_crash(unbind, unplugs, &AFTER);
    every_crash(unbind, cleans, &BEFORE);
}

#[test]
fn crash_after_the_slot_is_given_back_finds_all_keys_gone_with_it() {
    every_crash(unbind, cleans, &AFTER);
}

#[test]
fn crash_with_the_last_transaction_on_its_way_ends_clean() {
    every_crash(unbind, cleans, &[Fate::CrashInFlight]);
}

/// Between the deletes: our agent has no such point, the one before it had. Every set of keys it can
/// have left, wired or not, seen by an agent that starts or one that runs.
#[test]
fn crash_of_the_old_agent_between_its_deletes_leaves_nothing_behind() {
    for left in 0u32..16 {
        for (wired, running) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut world = World::new();
            if running {
                world.pump();
            }
            if left & 1 != 0 {
                world.take("a", 0);
            }
            if left & 2 != 0 {
                world.bind("a", flat());
            }
            if left & 4 != 0 {
                world.ask("a", "unplug");
            }
            if left & 8 != 0 {
                let status = crate::keys::Key::PortStatus(crate::testing::name("a"));
                world.store.put(status, "up");
            }
            world.honest = false;
            if wired {
                world.node.plug(flat()).unwrap();
            }
            // A slot, bind_port and status with a running agent look like a port that is up, its action
            // lost: that one stays as it is until somebody asks for its end.
            if left & 0b1111 == 0b1011 {
                world.settle();
                assert!(world.node.wired.contains_key(&0), "a port that was up is served");
                world.ask("a", "unplug");
            }
            caught(&format!("left {left:04b}, wired {wired}, running {running}"), || {
                world.settle();
                if world.store.get(&crate::keys::Key::BindPort(crate::testing::name("a"))).is_some() {
                    // Wired, slot and bind_port, no word of an end: a port in use.
                    assert_eq!((left & 0b111, wired), (0b011, true));
                    world.ask("a", "unplug");
                    world.settle();
                }
                world.assert_pristine();
            });
        }
    }
}

// Every command of each life, in every way.

#[test]
fn bind_flat_with_any_fault_anywhere_ends_up() {
    every_point(bind_flat);
}

#[test]
fn bind_vlan_with_any_two_faults_ends_up() {
    every_point(bind_vlan);
    every_two_points(bind_vlan);
}

#[test]
fn unbind_with_any_two_faults_ends_clean() {
    every_point(unbind);
    every_two_points(unbind);
}

#[test]
fn rebind_of_the_vhost_with_any_fault_ends_with_the_new_port() {
    every_point(rebind);
    let world = live(rebind, &[]);
    world.assert_up("b", flat());
    assert_eq!(world.n_given_back, 1);
}

#[test]
fn mac_that_moves_to_another_vhost_with_any_fault_ends_there() {
    every_point(move_to_another_vhost);
    live(move_to_another_vhost, &[]).assert_up("a2", Plug { vhost: 1, ..tagged() });
}

#[test]
fn two_ports_contending_with_any_fault_serves_the_holder() {
    every_point(contention);
    let world = live(contention, &[]);
    world.assert_up("a", flat());
    world.assert_up("b", plug(1, 3, Some(7)));
    assert_eq!(world.store.status(&crate::testing::name("late")), None);
}

#[test]
fn unplug_of_ports_never_plugged_with_any_fault_ends_clean() {
    every_point(unplug_never_plugged);
    live(unplug_never_plugged, &[]).assert_pristine();
}

#[test]
fn drivers_that_give_up_with_any_fault_leak_nothing() {
    every_point(driver_timeouts);
    let world = live(driver_timeouts, &[]);
    world.assert_up("a", plug(2, 4, None));
    assert_eq!(world.n_given_back, 2);
}

#[test]
fn unplug_squeezed_onto_plug_with_any_fault_ends_clean() {
    every_point(unplug_squeezed_onto_plug);
    live(unplug_squeezed_onto_plug, &[]).assert_pristine();
}

#[test]
fn replug_with_another_tag_and_any_fault_ends_with_the_new_tag() {
    every_point(replug_with_another_tag);
    live(replug_with_another_tag, &[]).assert_up("a", Plug { vlan: Some(200), ..tagged() });
}

// Taps.

#[test]
fn tap_with_any_fault_ends_copying_and_up() {
    every_point(tap);
    let world = live(tap, &[]);
    assert_eq!(world.node.taps.len(), 2);
    assert_eq!(world.store.tap_status(&crate::testing::name("t")), Some("up"));
}

#[test]
fn untap_with_any_fault_leaves_both_ports_and_idle_mirrors() {
    every_point(tap_and_untap);
    let world = live(tap_and_untap, &[]);
    assert!(world.node.taps.is_empty());
    world.assert_up("s", tagged());
    world.assert_up("d", plug(2, 2, None));
}

#[test]
fn unbind_of_a_tapped_port_with_any_fault_takes_the_tap_with_it() {
    every_point(tap_and_unbind_its_source);
    let world = live(tap_and_unbind_its_source, &[]);
    assert_eq!(world.store.keys_of_tap(&crate::testing::name("t")), 0);
    world.assert_up("d", plug(2, 2, None));
}

#[test]
fn tap_before_its_ports_with_any_fault_is_copying_once_they_are_wired() {
    every_point(tap_before_its_ports);
    let world = live(tap_before_its_ports, &[]);
    assert_eq!(world.node.taps.len(), 1);
    assert_eq!(world.store.mirror_value(1), Some("None"));
}
