//! The difference between what the keys ask for and what is wired, as actions.
//!
//! Level-triggered and sans-IO: one call of [`Reconciler::plan`] looks at all keys and all wiring and
//! says what to do next; it never waits for a particular event, so a lost, doubled or reordered one
//! changes nothing. The agent's task carries the actions out and plans again until there are none.
//! The reconciler owns only what keys and node cannot tell: who is wired where, what was tried when,
//! since when something looks left over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::dataplane::{Layout, Plug};
use crate::keys::{Key, PortId, Request, SlotId, SlotValue};
use crate::port::{HostState, PortKeys, Verdict};
use crate::schedule::{Backoff, UpSchedule, up_offsets};
use crate::status::PortReport;
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
    /// First and longest pause before the node is asked again for what it refused.
    pub retry: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            leak_grace: Duration::from_secs(60),
            orphan_report: Duration::from_secs(2),
            up_offsets: up_offsets(),
            retry: (Duration::from_millis(250), Duration::from_secs(30)),
        }
    }
}

/// One thing to do. After each, tell the reconciler and the view, then go on with the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Wire it (replacing the wiring the vhost has); answer with [`Reconciler::plugged`].
    Plug {
        /// For this port.
        port: PortId,
        /// What to wire.
        plug: Plug,
    },
    /// Unwire it; answer with [`Reconciler::unplugged`].
    Unplug {
        /// The vhost.
        vhost: u32,
        /// Why, for the log.
        why: String,
    },
    /// Say `up`; answer with [`Reconciler::said_up`] if it went through.
    PutUp {
        /// The port.
        port: PortId,
        /// The put and what must hold for it.
        txn: KeyTxn,
    },
    /// Remove a port's keys and give its slots back.
    Clean {
        /// The port.
        port: PortId,
        /// The writes and what must hold for them.
        txn: KeyTxn,
        /// None: it was asked for. Otherwise what was left over, for the log.
        leftover: Option<&'static str>,
    },
    /// Give back a slot that nobody has any more.
    Release {
        /// The slot.
        slot: SlotId,
        /// The put and what must hold for it.
        txn: KeyTxn,
        /// What it said, for the log.
        leftover: &'static str,
    },
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
}

impl Plan {
    fn wake(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }
}

/// Asking the node for one vhost's wiring, and how that went.
#[derive(Debug)]
struct Attempt {
    /// None: to unwire it.
    wanted: Option<Plug>,
    pauses: Backoff,
    retry_at: Duration,
    error: Option<String>,
}

/// The memory of the agent between plans.
#[derive(Debug)]
pub struct Reconciler {
    layout: Layout,
    timing: Timing,
    /// The port behind each wired vhost.
    owners: BTreeMap<u32, PortId>,
    /// Wiring that was live when etcd's history broke, and the revision it came back with: keys
    /// from before prove nothing about it.
    held: BTreeMap<u32, i64>,
    ups: BTreeMap<PortId, (Seen, UpSchedule)>,
    attempts: BTreeMap<u32, Attempt>,
    /// Keys that look left over: the revision they do so at, and since when.
    suspects: BTreeMap<Key, (i64, Duration)>,
}

/// One pass over keys and wiring.
struct Pass<'a> {
    now: Duration,
    state: &'a HostState,
    live: &'a BTreeMap<u32, Plug>,
    verdicts: BTreeMap<PortId, Verdict>,
    suspects: BTreeSet<Key>,
    plan: Plan,
}

impl Pass<'_> {
    /// Ports that are to be wired; each on a vhost of its own, since a slot has one holder.
    fn wires(&self) -> impl Iterator<Item = (&PortId, Plug)> {
        self.verdicts.iter().filter_map(|(port, verdict)| match verdict {
            Verdict::Wire { plug, .. } => Some((port, *plug)),
            _ => None,
        })
    }

    /// Is anything wired in one of these slots?
    fn any_wired(&self, slots: &[SlotId], layout: &Layout) -> bool {
        slots
            .iter()
            .any(|slot| layout.get(&slot.vhost) == Some(&slot.physnet) && self.live.contains_key(&slot.vhost))
    }
}

impl Reconciler {
    /// For a node with these vhosts.
    pub fn new(layout: Layout, timing: Timing) -> Reconciler {
        Reconciler {
            layout,
            timing,
            owners: BTreeMap::new(),
            held: BTreeMap::new(),
            ups: BTreeMap::new(),
            attempts: BTreeMap::new(),
            suspects: BTreeMap::new(),
        }
    }

    /// The store came back older or as another one, at `revision`: what is wired stays until keys
    /// written after that say otherwise.
    pub fn history_broken(&mut self, revision: i64, live: &[Plug]) {
        self.held = live.iter().map(|plug| (plug.vhost, revision)).collect();
    }

    /// The watch was away. What looked left over may have been a driver held up by the same outage:
    /// it gets its grace again.
    pub fn restart_grace(&mut self) {
        self.suspects.clear();
    }

    /// The node's answer to [`Action::Plug`].
    pub fn plugged(&mut self, port: &PortId, plug: &Plug, result: Result<(), String>, now: Duration) {
        let worked = result.is_ok();
        self.attempted(plug.vhost, Some(*plug), result, now);
        if worked {
            self.owners.insert(plug.vhost, port.clone());
            self.held.remove(&plug.vhost);
            self.ups.remove(port);
        }
    }

    /// The node's answer to [`Action::Unplug`].
    pub fn unplugged(&mut self, vhost: u32, result: Result<(), String>, now: Duration) {
        self.attempted(vhost, None, result, now);
    }

    /// The transaction of an [`Action::PutUp`] went through.
    pub fn said_up(&mut self, port: &PortId, now: Duration) {
        if let Some((_, schedule)) = self.ups.get_mut(port) {
            schedule.said(now, &self.timing.up_offsets);
        }
    }

    /// What to do, given all keys and all wiring.
    pub fn plan(&mut self, now: Duration, view: &View, live: &[Plug]) -> Plan {
        let state = HostState::read(view);
        let live: BTreeMap<u32, Plug> = live.iter().map(|plug| (plug.vhost, *plug)).collect();
        self.learn_owners(&state, &live);
        let mut pass = Pass {
            now,
            state: &state,
            live: &live,
            verdicts: self.verdicts(&state, &live),
            suspects: BTreeSet::new(),
            plan: Plan::default(),
        };
        self.unplugs(&mut pass);
        self.plugs(&mut pass);
        self.ups(&mut pass);
        self.cleans(&mut pass);
        self.leftover_ports(&mut pass);
        self.leftover_slots(&mut pass);
        self.report(&mut pass);
        let Pass { suspects, plan, .. } = pass;
        self.suspects.retain(|key, _| suspects.contains(key));
        plan
    }

    fn attempted(&mut self, vhost: u32, wanted: Option<Plug>, result: Result<(), String>, now: Duration) {
        let (first, longest) = self.timing.retry;
        let attempt = self.attempts.entry(vhost).or_insert_with(|| Attempt {
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
    fn may_try(&self, vhost: u32, wanted: Option<Plug>, pass: &mut Pass) -> bool {
        match self.attempts.get(&vhost) {
            Some(attempt) if attempt.wanted == wanted && pass.now < attempt.retry_at => {
                pass.plan.wake(attempt.retry_at);
                false
            }
            _ => true,
        }
    }

    /// Forgets who is no longer wired, and attempts that have come true. Wiring nobody is known for
    /// (the agent was restarted, the node was not) belongs to the port that holds its slot and is
    /// bound to it, or asks for its end.
    fn learn_owners(&mut self, state: &HostState, live: &BTreeMap<u32, Plug>) {
        self.owners.retain(|vhost, _| live.contains_key(vhost));
        self.held.retain(|vhost, _| live.contains_key(vhost));
        self.attempts.retain(|vhost, attempt| live.get(vhost).copied() != attempt.wanted);
        for &vhost in live.keys() {
            let Some((_, Some((SlotValue::Held(port), _)))) = state.slot_of(vhost, &self.layout) else {
                continue;
            };
            let keys = &state.ports[port];
            let bound = match &keys.bind_port {
                Some((Ok(bind_port), _)) => bind_port.plug.vhost == vhost,
                Some((Err(_), _)) => true,
                None => keys.request() == Some(Request::Unplug),
            };
            if bound {
                self.owners.entry(vhost).or_insert_with(|| port.clone());
            }
        }
    }

    fn verdicts(&mut self, state: &HostState, live: &BTreeMap<u32, Plug>) -> BTreeMap<PortId, Verdict> {
        let wired: BTreeSet<&PortId> = self.owners.values().collect();
        let ports: BTreeSet<&PortId> = state.ports.keys().chain(wired.iter().copied()).collect();
        let verdict = |port: &PortId| {
            let verdict = state.verdict(port, wired.contains(port), &self.layout);
            (port.clone(), self.unless_outdated(port, state, live, verdict))
        };
        let verdicts: BTreeMap<_, _> = ports.into_iter().map(verdict).collect();
        // Keys and wiring agree again: from here on the keys decide as always.
        let owners = &self.owners;
        let agrees = |vhost: &u32| {
            let verdict = owners.get(vhost).and_then(|owner| verdicts.get(owner));
            matches!(verdict, Some(Verdict::Wire { plug, .. }) if plug.vhost == *vhost)
        };
        self.held.retain(|vhost, _| !agrees(vhost));
        verdicts
    }

    /// Keys from before etcd's history broke take no wiring away that was live then.
    fn unless_outdated(
        &self,
        port: &PortId,
        state: &HostState,
        live: &BTreeMap<u32, Plug>,
        verdict: Verdict,
    ) -> Verdict {
        if self.held.is_empty() {
            return verdict;
        }
        let keys = state.ports.get(port);
        let seen = keys.map_or(Seen { action: None, bind_port: None }, PortKeys::seen);
        let newest = seen.action.max(seen.bind_port).unwrap_or(0);
        let outdated = |vhost: &u32| self.held.get(vhost).is_some_and(|&broken_at| newest <= broken_at);
        let kept = || Verdict::Keep("its keys are older than what is wired: etcd went back".into());
        match &verdict {
            Verdict::Wire { plug, .. } if outdated(&plug.vhost) && live.get(&plug.vhost) != Some(plug) => {
                kept()
            }
            Verdict::Unplug | Verdict::Drop(_) if self.wired_by(port).any(|vhost| outdated(&vhost)) => kept(),
            _ => verdict,
        }
    }

    /// The vhosts wired for a port; one, but for the moment when it moves.
    fn wired_by<'a>(&'a self, port: &'a PortId) -> impl Iterator<Item = u32> + 'a {
        self.owners.iter().filter(move |(_, owner)| *owner == port).map(|(vhost, _)| *vhost)
    }

    fn unplugs(&self, pass: &mut Pass) {
        let heirs: BTreeMap<u32, PortId> =
            pass.wires().map(|(port, plug)| (plug.vhost, port.clone())).collect();
        for &vhost in pass.live.keys() {
            let owner = self.owners.get(&vhost);
            let heir = heirs.get(&vhost);
            if heir.is_some() && (heir == owner || owner.is_none()) {
                continue;
            }
            let why = match (heir, owner.and_then(|owner| pass.verdicts.get(owner))) {
                (_, Some(Verdict::Unplug)) => "asked to".to_string(),
                (Some(heir), _) => format!("port {heir} has its vhost now"),
                (None, Some(Verdict::Keep(_))) => continue,
                _ if self.protected(vhost, pass) => continue,
                (None, Some(Verdict::Wire { plug, .. })) => format!("its port moved to vhost {}", plug.vhost),
                (None, Some(Verdict::Drop(why))) => why.clone(),
                (None, None) => "no port asks for it".to_string(),
            };
            if self.may_try(vhost, None, pass) {
                pass.plan.actions.push(Action::Unplug { vhost, why });
            }
        }
    }

    /// Missing keys are no reason to unwire this: there is no configuration (the host's keys were
    /// wiped, not worked on), or etcd's history broke while it was live.
    fn protected(&self, vhost: u32, pass: &Pass) -> bool {
        !pass.state.configured || self.held.contains_key(&vhost)
    }

    /// A port takes over a wired vhost only once its last owner is unwired, but changes its own
    /// wiring in one step.
    fn plugs(&mut self, pass: &mut Pass) {
        let wires: Vec<(PortId, Plug)> = pass.wires().map(|(port, plug)| (port.clone(), plug)).collect();
        for (port, plug) in wires {
            let of_another = self.owners.get(&plug.vhost).is_some_and(|owner| *owner != port);
            if of_another {
                continue;
            }
            if pass.live.get(&plug.vhost) == Some(&plug) {
                self.owners.insert(plug.vhost, port);
            } else if self.may_try(plug.vhost, Some(plug), pass) {
                pass.plan.actions.push(Action::Plug { port, plug });
            }
        }
    }

    /// `up` for every port that is wired as asked, on its schedule; again if the key is not there.
    fn ups(&mut self, pass: &mut Pass) {
        let mut announced = BTreeSet::new();
        for (port, verdict) in &pass.verdicts {
            let Verdict::Wire { plug, announce: true } = verdict else { continue };
            if pass.live.get(&plug.vhost) != Some(plug) || self.owners.get(&plug.vhost) != Some(port) {
                continue;
            }
            announced.insert(port.clone());
            let keys = &pass.state.ports[port];
            let entry =
                self.ups.entry(port.clone()).or_insert_with(|| (keys.seen(), UpSchedule::start(pass.now)));
            let all_said_but_gone =
                entry.1.due(&self.timing.up_offsets).is_none() && keys.status != Some(true);
            if entry.0 != keys.seen() || all_said_but_gone {
                *entry = (keys.seen(), UpSchedule::start(pass.now));
            }
            let Some(due) = entry.1.due(&self.timing.up_offsets) else { continue };
            if due > pass.now {
                pass.plan.wake(due);
                continue;
            }
            let slot = SlotId { physnet: self.layout[&plug.vhost].clone(), vhost: plug.vhost };
            let txn = KeyTxn::put_up(port, &slot, keys.seen());
            pass.plan.actions.push(Action::PutUp { port: port.clone(), txn });
        }
        self.ups.retain(|port, _| announced.contains(port));
    }

    /// Unplug, second half: only when nothing is wired for the port any more.
    fn cleans(&self, pass: &mut Pass) {
        for (port, verdict) in &pass.verdicts {
            if *verdict != Verdict::Unplug || self.wired_by(port).next().is_some() {
                continue;
            }
            let keys = &pass.state.ports[port];
            if !pass.any_wired(&keys.slots, &self.layout) {
                pass.plan.actions.push(clean(port, keys, None));
            }
        }
    }

    /// Ports whose keys are the rest of a life that ended between two steps.
    fn leftover_ports(&mut self, pass: &mut Pass) {
        for (port, keys) in &pass.state.ports {
            if self.wired_by(port).next().is_some() || pass.any_wired(&keys.slots, &self.layout) {
                continue;
            }
            let wire = matches!(pass.verdicts[port], Verdict::Wire { .. });
            let (key, revision, leftover) = match (&keys.bind_port, &keys.action) {
                (_, Some((Request::Unplug, _))) => continue,
                (None, None) if keys.status.is_some() => {
                    let only_status = PortKeys { status: keys.status, ..PortKeys::default() };
                    pass.plan.actions.push(clean(port, &only_status, Some("port_status without a port")));
                    continue;
                }
                (None, Some((_, revision))) => {
                    (Key::Action(port.clone()), *revision, "action without bind_port")
                }
                (Some((_, revision)), None) if !wire => {
                    (Key::BindPort(port.clone()), *revision, "bind_port without action")
                }
                _ => continue,
            };
            if self.left_over_since(key, revision, pass) >= self.timing.leak_grace {
                pass.plan.actions.push(clean(port, keys, Some(leftover)));
            }
        }
    }

    /// Slots whose owner is not bound to them: the driver died after taking one.
    fn leftover_slots(&mut self, pass: &mut Pass) {
        for (slot, (value, revision)) in &pass.state.slots {
            let wired = pass.any_wired(std::slice::from_ref(slot), &self.layout);
            let (owner, leftover) = match value {
                _ if wired => continue,
                SlotValue::Free => continue,
                SlotValue::Garbled => (None, "held by no possible port"),
                SlotValue::Held(port) => {
                    let keys = &pass.state.ports[port];
                    match (&keys.bind_port, &keys.action) {
                        (None, None) => (Some((port, keys.seen())), "held by a port without keys"),
                        (Some((Ok(bind_port), _)), _) if bind_port.plug.vhost != slot.vhost => {
                            (Some((port, keys.seen())), "held by a port bound to another vhost")
                        }
                        _ => continue,
                    }
                }
            };
            if self.left_over_since(Key::Vhost(slot.clone()), *revision, pass) >= self.timing.leak_grace {
                let txn = KeyTxn::release(slot, *revision, owner);
                pass.plan.actions.push(Action::Release { slot: slot.clone(), txn, leftover });
            }
        }
    }

    /// For how long the key has looked left over at this revision; plans again when the grace is up.
    fn left_over_since(&mut self, key: Key, revision: i64, pass: &mut Pass) -> Duration {
        let suspect = self.suspects.entry(key.clone()).or_insert((revision, pass.now));
        if suspect.0 != revision {
            *suspect = (revision, pass.now);
        }
        let since = suspect.1;
        pass.suspects.insert(key);
        for threshold in [self.timing.orphan_report, self.timing.leak_grace] {
            if pass.now < since + threshold {
                pass.plan.wake(since + threshold);
            }
        }
        pass.now - since
    }
}

fn clean(port: &PortId, keys: &PortKeys, leftover: Option<&'static str>) -> Action {
    Action::Clean { port: port.clone(), txn: KeyTxn::clean(port, &keys.slots, keys.seen()), leftover }
}

mod report;
#[cfg(test)]
mod tests;
