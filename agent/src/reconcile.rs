//! The difference between what the keys ask for and what is wired, as actions.
//!
//! Level-triggered and sans-IO: one call of [`Reconciler::plan`] looks at all keys and all wiring and
//! says what to do next; it never waits for a particular event, so a lost, doubled or reordered one
//! changes nothing. The agent's task carries the actions out and plans again until there are none.
//! The reconciler owns only what keys and node cannot tell: who is wired where, what was tried when,
//! since when something looks left over.
//!
//! Ports and tap flows go the same way: a subject with keys, places (a vhost; one or two mirrors) it
//! holds by their slots' keys, and wiring for each place. What is particular to taps: they need both
//! their ports wired, and go before either of them does.

mod leftovers;
mod report;
#[cfg(test)]
mod tests;
mod verdicts;
mod wiring;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::dataplane::{Layout, Place, Plug, Tap, Wiring};
use crate::keys::{Key, Subject};
use crate::schedule::{Backoff, UpSchedule, patient_up_offsets, up_offsets};
use crate::state::{HostState, Shape, SubjectKeys, Verdict};
use crate::status::{PortReport, TapReport};
use crate::txn::{KeyTxn, Seen};
use crate::view::View;

/// The reconciler's times.
#[derive(Debug, Clone)]
pub struct Timing {
    /// How long a slot or key must look left over before it is collected. The driver gives up on a
    /// port after 20 s (30 s for taps), so a minute is long after anybody waits.
    pub leak_grace: Duration,
    /// How long a plug without bind_port is taken for a matter of order before it is reported.
    pub orphan_report: Duration,
    /// When to say `up`, from the moment the wiring is live.
    pub up_offsets: Vec<Duration>,
    /// The same for a driver that took longer than `slow_driver` between its last two writes.
    pub patient_up_offsets: Vec<Duration>,
    /// What is slow: a driver writes what it asks for and that it asks within a few milliseconds.
    pub slow_driver: Duration,
    /// First and longest pause before the node is asked again for what it refused.
    pub retry: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            leak_grace: Duration::from_secs(60),
            orphan_report: Duration::from_secs(2),
            up_offsets: up_offsets(),
            patient_up_offsets: patient_up_offsets(),
            slow_driver: Duration::from_secs(1),
            retry: (Duration::from_millis(250), Duration::from_secs(30)),
        }
    }
}

/// One thing to do. After each, tell the reconciler and the view, then go on with the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Wire it (a plug replaces the wiring its vhost has); answer with [`Reconciler::wired`].
    Wire {
        /// For this port or tap flow.
        subject: Subject,
        /// What to wire.
        wiring: Wiring,
    },
    /// Unwire it; answer with [`Reconciler::unwired`].
    Unwire {
        /// The vhost or mirror.
        place: Place,
        /// Why, for the log.
        why: String,
    },
    /// Say `up`; answer with [`Reconciler::said_up`] if it went through.
    PutUp {
        /// Whose status it is.
        subject: Subject,
        /// The put and what must hold for it.
        txn: KeyTxn,
    },
    /// Remove the keys of a port or tap flow and give its slots back.
    Clean {
        /// Whose keys.
        subject: Subject,
        /// The writes and what must hold for them.
        txn: KeyTxn,
        /// None: it was asked for. Otherwise what was left over, for the log.
        leftover: Option<&'static str>,
    },
    /// Give back a slot that nobody has any more.
    Release {
        /// The slot's key.
        slot: Key,
        /// The put and what must hold for it.
        txn: KeyTxn,
        /// What it said, for the log.
        leftover: &'static str,
    },
}

impl Action {
    /// The transaction it is; None: it is a call into the node.
    pub fn txn(&self) -> Option<&KeyTxn> {
        match self {
            Action::PutUp { txn, .. } | Action::Clean { txn, .. } | Action::Release { txn, .. } => Some(txn),
            Action::Wire { .. } | Action::Unwire { .. } => None,
        }
    }
}

/// What to do now, when to look again if nothing happens before, and how all ports stand.
#[derive(Debug, Default)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// Plan again at this time at the latest.
    pub wake_at: Option<Duration>,
    /// For the status.
    pub ports: Vec<PortReport>,
    /// For the status.
    pub taps: Vec<TapReport>,
}

impl Plan {
    fn wake(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }
}

/// Asking the node for the wiring of one place, and how that went.
#[derive(Debug)]
struct Attempt {
    /// None: to unwire it.
    wanted: Option<Wiring>,
    pauses: Backoff,
    retry_at: Duration,
    error: Option<String>,
}

/// The memory of the agent between plans.
#[derive(Debug)]
pub struct Reconciler {
    shape: Shape,
    timing: Timing,
    /// The port behind each wired vhost, the tap flow behind each mirror at work.
    owners: BTreeMap<Place, Subject>,
    /// Wiring that was live when etcd's history broke, and the revision it came back with: keys
    /// from before prove nothing about it.
    held: BTreeMap<Place, i64>,
    ups: BTreeMap<Subject, (Seen, UpSchedule)>,
    /// Wired vhosts whose guest is yet to come.
    awaited: BTreeSet<u32>,
    paces: BTreeMap<Subject, Pace>,
    attempts: BTreeMap<Place, Attempt>,
    /// Keys that look left over: the revision they do so at, and since when.
    suspects: BTreeMap<Key, (i64, Duration)>,
}

/// How a driver goes about its request.
#[derive(Debug)]
struct Pace {
    seen: Seen,
    /// When the info was first seen as it is.
    since: Duration,
    slow: bool,
}

/// One pass over keys and wiring.
struct Pass<'a> {
    now: Duration,
    state: &'a HostState,
    live: &'a BTreeMap<Place, Wiring>,
    verdicts: BTreeMap<Subject, Verdict>,
    /// Wiring that is to go, and why.
    leaving: BTreeMap<Place, String>,
    suspects: BTreeSet<Key>,
    plan: Plan,
}

impl Pass<'_> {
    /// What is to be wired for whom; each on a place of its own, since a slot has one holder.
    fn wires(&self) -> impl Iterator<Item = (&Subject, Wiring)> {
        self.verdicts.iter().flat_map(|(subject, verdict)| {
            let wirings: &[Wiring] = match verdict {
                Verdict::Wire { wirings, .. } => wirings,
                _ => &[],
            };
            wirings.iter().map(move |wiring| (subject, *wiring))
        })
    }

    /// The mirrors at work.
    fn taps(&self) -> impl Iterator<Item = &Tap> {
        self.live.values().filter_map(|wiring| match wiring {
            Wiring::Tap(tap) => Some(tap),
            Wiring::Plug(_) => None,
        })
    }

    /// Is anything wired in one of these slots?
    fn any_wired(&self, slots: &[Key], shape: &Shape) -> bool {
        slots.iter().any(|slot| shape.place(slot).is_some_and(|place| self.live.contains_key(&place)))
    }
}

impl Reconciler {
    /// For a node with these vhosts, and no mirrors.
    pub fn new(layout: Layout, timing: Timing) -> Reconciler {
        Reconciler {
            shape: Shape { layout, n_mirrors: 0 },
            timing,
            owners: BTreeMap::new(),
            held: BTreeMap::new(),
            ups: BTreeMap::new(),
            awaited: BTreeSet::new(),
            paces: BTreeMap::new(),
            attempts: BTreeMap::new(),
            suspects: BTreeMap::new(),
        }
    }

    /// With this many mirrors.
    pub fn with_mirrors(mut self, n_mirrors: u32) -> Reconciler {
        self.shape.n_mirrors = n_mirrors;
        self
    }

    /// The store came back older or as another one, at `revision`: what is wired stays until keys
    /// written after that say otherwise.
    pub fn history_broken(&mut self, revision: i64, live: &[Wiring]) {
        self.held = live.iter().map(|wiring| (wiring.place(), revision)).collect();
    }

    /// The watch was away. What looked left over may have been a driver held up by the same outage:
    /// it gets its grace again.
    pub fn restart_grace(&mut self) {
        self.suspects.clear();
    }

    /// The node's answer to [`Action::Wire`].
    pub fn wired(&mut self, subject: &Subject, wiring: &Wiring, result: Result<(), String>, now: Duration) {
        let worked = result.is_ok();
        let place = wiring.place();
        self.attempted(place, Some(*wiring), result, now);
        if worked {
            self.owners.insert(place, subject.clone());
            self.held.remove(&place);
            self.ups.remove(subject);
        }
    }

    /// The node's answer to [`Action::Unwire`].
    pub fn unwired(&mut self, place: Place, result: Result<(), String>, now: Duration) {
        self.attempted(place, None, result, now);
    }

    /// These wired vhosts' guests are yet to come, as of the plan to come.
    pub fn guests_awaited(&mut self, awaited: BTreeSet<u32>) {
        self.awaited = awaited;
    }

    /// The transaction of an [`Action::PutUp`] went through.
    pub fn said_up(&mut self, subject: &Subject, now: Duration) {
        if let Some((_, schedule)) = self.ups.get_mut(subject) {
            schedule.said(now);
        }
    }

    /// What to do, given all keys and all wiring.
    pub fn plan(&mut self, now: Duration, view: &View, live: &[Wiring]) -> Plan {
        let state = HostState::read(view);
        let live: BTreeMap<Place, Wiring> = live.iter().map(|wiring| (wiring.place(), *wiring)).collect();
        self.learn_owners(&state, &live);
        self.learn_paces(&state, now);
        let mut pass = Pass {
            now,
            state: &state,
            live: &live,
            verdicts: self.verdicts(&state, &live),
            leaving: BTreeMap::new(),
            suspects: BTreeSet::new(),
            plan: Plan::default(),
        };
        self.unwires(&mut pass);
        self.wires(&mut pass);
        self.ups(&mut pass);
        self.cleans(&mut pass);
        self.leftover_subjects(&mut pass);
        self.leftover_slots(&mut pass);
        self.report(&mut pass);
        let Pass { suspects, plan, .. } = pass;
        self.suspects.retain(|key, _| suspects.contains(key));
        plan
    }

    fn attempted(&mut self, place: Place, wanted: Option<Wiring>, result: Result<(), String>, now: Duration) {
        let (first, longest) = self.timing.retry;
        let attempt = self.attempts.entry(place).or_insert_with(|| Attempt {
            wanted,
            pauses: Backoff::new(first, longest),
            retry_at: now,
            error: None,
        });
        if attempt.wanted != wanted {
            attempt.wanted = wanted;
            attempt.pauses.reset();
        }
        attempt.retry_at = now + attempt.pauses.pause();
        attempt.error = result.err();
    }

    /// May the node be asked for this now? If not, plans again when it may.
    fn may_try(&self, place: Place, wanted: Option<Wiring>, pass: &mut Pass) -> bool {
        match self.attempts.get(&place) {
            Some(attempt) if attempt.wanted == wanted && pass.now < attempt.retry_at => {
                pass.plan.wake(attempt.retry_at);
                false
            }
            _ => true,
        }
    }

    /// What is wired for a subject; more than it asks for at the moment when it moves.
    fn wired_by<'a>(&'a self, subject: &'a Subject) -> impl Iterator<Item = Place> + 'a {
        self.owners.iter().filter(move |(_, owner)| *owner == subject).map(|(place, _)| *place)
    }

    /// Missing keys are no reason to unwire this: there is no configuration (the host's keys were
    /// wiped, not worked on), or etcd's history broke while it was live.
    fn protected(&self, place: Place, state: &HostState) -> bool {
        !state.configured || self.held.contains_key(&place)
    }
}

fn clean(subject: &Subject, keys: &SubjectKeys, leftover: Option<&'static str>) -> Action {
    let txn = KeyTxn::clean(subject, &keys.slots, keys.seen());
    Action::Clean { subject: subject.clone(), txn, leftover }
}
