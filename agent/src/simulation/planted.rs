//! Agents that are broken on purpose: the simulation is worth what it finds, so it must find these.
//!
//! A [`Bug`] is planted between the agent and the world: what the agent wants done is done wrongly, and it
//! is told what a broken agent would believe. That leaves the agent's own code alone, and makes of the
//! two together an agent with that bug.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::dataplane::{Place, Plug, Wiring};
use crate::keys::{FREE, Key, Subject};
use crate::reconcile::Action;
use crate::testing::{name, plug};
use crate::txn::{KeyOp, KeyTxn};
use crate::view::Listing;

use super::late_watch;
use super::random::live_through;
use super::rows;
use super::world::World;

/// What an agent can get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Says `up` before the wiring is live.
    UpBeforeLive,
    /// Gives the slot back with the `up`: the next driver gets it too.
    SlotGivenTwice,
    /// Gives the slot back while the guest is still wired.
    FreedWhileWired,
    /// Writes without checking that the request still stands and the slot is still held.
    BlindWrites,
    /// Does not see an unplug that came while it was down.
    UnplugForgottenAfterCrash,
    /// Never gives back what a driver that gave up has left.
    NeverCollects,
    /// Wires the neighbour's vhost.
    WrongVhost,
    /// Takes a plug with the same MAC for the same plug.
    VlanChangeMissed,
    /// Leaves a port's mirrors at work when they are to go.
    TapLeftBehind,
    /// Deletes the action with its first `up`, so that nobody can ask for the end.
    ActionDeleted,
    /// Wires what is wired, again and again.
    NeverRests,
    /// Says `up` once.
    UpOnce,
    /// Says `up` three times within 6 s, whether or not a guest comes.
    UpForSixSeconds,
}

/// A bug, and what an agent with it believes of the node.
#[derive(Debug, Default)]
pub struct Planted {
    pub bug: Option<Bug>,
    beliefs: BTreeMap<Place, Option<Wiring>>,
}

impl Planted {
    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// What the agent finds wired.
    pub fn seen(&self, wirings: Vec<Wiring>) -> Vec<Wiring> {
        if self.is(Bug::NeverRests) {
            return Vec::new();
        }
        let mut seen: BTreeMap<Place, Wiring> = wirings.into_iter().map(|w| (w.place(), w)).collect();
        for (place, belief) in &self.beliefs {
            match belief {
                Some(wiring) => drop(seen.insert(*place, *wiring)),
                None => drop(seen.remove(place)),
            }
        }
        seen.into_values().collect()
    }

    /// The call the agent makes in place of this one; None: it makes none, and takes it for done.
    pub fn call(&mut self, action: Action, live: &BTreeMap<u32, Plug>) -> Option<Action> {
        let (place, wiring) = match &action {
            Action::Wire { wiring, .. } => (wiring.place(), Some(*wiring)),
            Action::Unwire { place, .. } => (*place, None),
            _ => return Some(action),
        };
        let skipped = match (self.bug, wiring) {
            (Some(Bug::UpBeforeLive), Some(Wiring::Plug(_))) => true,
            (Some(Bug::FreedWhileWired), None) => matches!(place, Place::Vhost(_)),
            (Some(Bug::TapLeftBehind), None) => matches!(place, Place::Mirror(_)),
            (Some(Bug::VlanChangeMissed), Some(Wiring::Plug(new))) => {
                live.get(&new.vhost).is_some_and(|old| old.mac == new.mac)
            }
            _ => false,
        };
        if skipped {
            self.beliefs.insert(place, wiring);
            return None;
        }
        self.beliefs.remove(&place);
        match (action, wiring) {
            (Action::Wire { subject, .. }, Some(Wiring::Plug(right))) if self.is(Bug::WrongVhost) => {
                self.beliefs.insert(place, wiring);
                Some(Action::Wire { subject, wiring: Plug { vhost: right.vhost ^ 1, ..right }.into() })
            }
            (action, _) => Some(action),
        }
    }

    /// The node died, and with it what was believed of it.
    pub fn node_died(&mut self) {
        self.beliefs.clear();
    }

    /// The transaction the agent sends in place of this one; None: it takes it for done.
    pub fn txn(&self, txn: &KeyTxn, now: Duration, ups: &[(Subject, Duration)]) -> Option<KeyTxn> {
        let mut txn = txn.clone();
        let says_up = matches!(txn.ops[..], [KeyOp::Put(Key::PortStatus(_), _)]);
        let releases = matches!(txn.ops[..], [KeyOp::Put(Key::Vhost(_), _)]);
        match self.bug {
            Some(Bug::BlindWrites) => txn.guards.clear(),
            Some(Bug::NeverCollects) if releases => return None,
            Some(Bug::UpOnce) if says_up && !ups.is_empty() => return None,
            Some(Bug::UpForSixSeconds) if says_up => {
                let late = ups.first().is_some_and(|(_, first)| now > *first + Duration::from_secs(6));
                return (!late).then_some(txn);
            }
            Some(Bug::SlotGivenTwice) if says_up => {
                let slot = txn.guards.iter().map(|guard| guard.key()).find(|k| matches!(k, Key::Vhost(_)));
                let give = slot.map(|slot| KeyOp::Put(slot.clone(), FREE.into()));
                txn.ops.extend(give);
            }
            Some(Bug::ActionDeleted) if says_up => {
                let action = txn.guards.iter().map(|guard| guard.key()).find(|k| matches!(k, Key::Action(_)));
                let delete = action.map(|action| KeyOp::Delete(action.clone()));
                txn.ops.extend(delete);
            }
            _ => {}
        }
        Some(txn)
    }

    /// The listing as the agent reads it.
    pub fn listing(&self, mut listing: Listing, n_agents: u64) -> Listing {
        if self.is(Bug::UnplugForgottenAfterCrash) && n_agents > 1 {
            listing.keys.retain(|kv| !(matches!(kv.key, Key::Action(_)) && kv.value == b"unplug"));
        }
        listing
    }
}

/// What a panic said.
fn words(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map(|text| text.to_string()).unwrap_or_default(),
    }
}

/// Some life out of a few hundred finds the bug, and says one of these words.
fn lives_find(bug: Bug, expected: &[&str]) {
    for seed in 0..400 {
        let life = AssertUnwindSafe(|| live_through(seed, Some(bug)));
        if let Err(panic) = catch_unwind(life) {
            let text = words(panic);
            assert!(
                expected.iter().any(|part| text.contains(part)),
                "{bug:?} is found as something else: {text}"
            );
            return;
        }
    }
    panic!("{bug:?} is not found");
}

fn is_found(what: &str, hunt: impl FnOnce(), expected: &str) {
    let text = words(catch_unwind(AssertUnwindSafe(hunt)).expect_err(what));
    assert!(text.contains(expected), "{what} is found as something else: {text}");
}

#[test]
fn up_before_the_wiring_is_live_is_found() {
    lives_find(Bug::UpBeforeLive, &["up while not wired as asked"]);
}

#[test]
fn slot_given_twice_is_found() {
    lives_find(Bug::SlotGivenTwice, &["given back while wired"]);
}

#[test]
fn slot_freed_while_its_guest_is_wired_is_found() {
    lives_find(Bug::FreedWhileWired, &["given back while wired"]);
}

#[test]
fn writes_without_checks_are_found() {
    lives_find(Bug::BlindWrites, &["up without", "taken away from", "given back"]);
}

#[test]
fn unplug_forgotten_after_a_crash_is_found() {
    lives_find(Bug::UnplugForgottenAfterCrash, &["leaked", "wired: ", "left over", "does not sleep"]);
}

#[test]
fn slot_that_is_never_collected_is_found() {
    lives_find(Bug::NeverCollects, &["leaked", "does not come to rest", "does not sleep"]);
}

#[test]
fn wiring_of_the_neighbours_vhost_is_found() {
    lives_find(Bug::WrongVhost, &["reach the guest of", "does not hold the slot"]);
}

#[test]
fn change_of_vlan_that_is_missed_is_found() {
    let replug = |bug| {
        let mut world = World::new();
        world.planted.bug = bug;
        rows::replug_with_another_tag(&mut world);
    };
    replug(None);
    is_found("it", || replug(Some(Bug::VlanChangeMissed)), "up while not wired as asked");
}

#[test]
fn tap_that_outlives_its_flow_is_found() {
    lives_find(Bug::TapLeftBehind, &["given back at work"]);
}

#[test]
fn action_that_vanishes_is_found() {
    let bind_and_unbind = |bug| {
        let mut world = World::new();
        world.planted.bug = bug;
        world.pump();
        world.bind_all("a", plug(0, 1, None));
        // The driver asks for the end of a port that has an action, and of no other.
        world.unbind("a");
        world.settle();
        world.assert_pristine();
    };
    bind_and_unbind(None);
    is_found("it", || bind_and_unbind(Some(Bug::ActionDeleted)), "wired: ");
}

#[test]
fn agent_that_never_rests_is_found() {
    lives_find(Bug::NeverRests, &["does not come to rest", "does not sleep", "given back while wired"]);
}

#[test]
fn up_said_too_seldom_is_found_by_the_late_watches() {
    for bug in [Bug::UpOnce, Bug::UpForSixSeconds] {
        is_found(&format!("{bug:?}"), || late_watch::every_watch_sees_up(Some(bug)), "sees nothing of");
    }
}

/// The rows of the table find what needs a crash at one place, without a seed's luck.
#[test]
fn unplug_forgotten_after_a_crash_is_found_by_a_crash_at_one_place() {
    let unplug_while_down = |bug: Option<Bug>| {
        let mut world = World::new();
        world.planted.bug = bug;
        world.pump();
        world.bind_all("a", plug(0, 1, None));
        world.crash(false);
        world.store.ask(&name("a"), "unplug");
        world.settle();
        world.assert_pristine();
    };
    unplug_while_down(None);
    is_found("it", || unplug_while_down(Some(Bug::UnplugForgottenAfterCrash)), "wired: ");
}
