//! Who owns what is wired, and what is to become of every port and tap flow.

use super::*;
use crate::keys::{PortId, Request, SlotValue};
use crate::state::holder;

impl Reconciler {
    /// Forgets who is no longer wired, and attempts that have come true. Wiring nobody is known for
    /// (the agent was restarted, the node was not) belongs to whoever holds its slot and is bound to
    /// it, or asks for its end.
    pub(super) fn learn_owners(&mut self, state: &HostState, live: &BTreeMap<Place, Wiring>) {
        self.owners.retain(|place, _| live.contains_key(place));
        self.held.retain(|place, _| live.contains_key(place));
        self.attempts.retain(|place, attempt| live.get(place).copied() != attempt.wanted);
        for &place in live.keys() {
            let Some(slot) = self.shape.slot(place) else { continue };
            let Some((SlotValue::Held(id), _)) = state.slots.get(&slot) else { continue };
            let subject = holder(&slot, id);
            let keys = &state.subjects[&subject];
            let unplugs = keys.request() == Some(Request::Unplug);
            if keys.may_name(place).unwrap_or(unplugs) {
                self.owners.entry(place).or_insert(subject);
            }
        }
    }

    pub(super) fn verdicts(
        &mut self,
        state: &HostState,
        live: &BTreeMap<Place, Wiring>,
    ) -> BTreeMap<Subject, Verdict> {
        let wired: BTreeSet<&Subject> = self.owners.values().collect();
        // Ports come first in order, so that a tap's are known when it is its turn.
        let subjects: BTreeSet<&Subject> = state.subjects.keys().chain(wired.iter().copied()).collect();
        let mut verdicts = BTreeMap::new();
        for subject in subjects {
            let is_wired = wired.contains(subject);
            let verdict = match subject {
                Subject::Port(_) => state.port_verdict(subject, is_wired, &self.shape),
                Subject::Tap(_) if goes_with_a_port(subject, state, &verdicts) => Verdict::Unplug,
                Subject::Tap(_) => {
                    let vhost_of = |port: &PortId| self.vhost_of(port, state, &verdicts);
                    state.tap_verdict(subject, is_wired, &self.shape, vhost_of)
                }
            };
            verdicts.insert(subject.clone(), self.unless_outdated(subject, state, live, verdict));
        }
        // Keys and wiring agree again: from here on the keys decide as always.
        let owners = &self.owners;
        let agrees = |place: &Place| {
            let verdict = owners.get(place).and_then(|owner| verdicts.get(owner));
            matches!(verdict, Some(Verdict::Wire { wirings, .. }) if wirings.iter().any(|w| w.place() == *place))
        };
        self.held.retain(|place, _| !agrees(place));
        verdicts
    }

    /// The vhost that is wired for a port and stays so.
    fn vhost_of(
        &self,
        port: &PortId,
        state: &HostState,
        verdicts: &BTreeMap<Subject, Verdict>,
    ) -> Option<u32> {
        let port = Subject::Port(port.clone());
        let stays = |place: &Place| match verdicts.get(&port) {
            Some(Verdict::Wire { wirings, .. }) => wirings.iter().any(|wiring| wiring.place() == *place),
            Some(Verdict::Keep(_)) => true,
            Some(Verdict::Wait(_) | Verdict::Drop(_)) => self.protected(*place, state),
            Some(Verdict::Unplug) | None => false,
        };
        self.wired_by(&port).filter(stays).find_map(|place| match place {
            Place::Vhost(vhost) => Some(vhost),
            Place::Mirror(_) => None,
        })
    }

    /// Keys from before etcd's history broke take no wiring away that was live then.
    fn unless_outdated(
        &self,
        subject: &Subject,
        state: &HostState,
        live: &BTreeMap<Place, Wiring>,
        verdict: Verdict,
    ) -> Verdict {
        if self.held.is_empty() {
            return verdict;
        }
        let keys = state.subjects.get(subject);
        let seen = keys.map_or(Seen { action: None, info: None }, SubjectKeys::seen);
        let newest = seen.action.max(seen.info).unwrap_or(0);
        let outdated = |place: &Place| self.held.get(place).is_some_and(|&broken_at| newest <= broken_at);
        let displaces =
            |wiring: &Wiring| outdated(&wiring.place()) && live.get(&wiring.place()) != Some(wiring);
        let outdated = match &verdict {
            Verdict::Wire { wirings, .. } => wirings.iter().any(displaces),
            Verdict::Keep(_) => false,
            Verdict::Wait(_) | Verdict::Drop(_) | Verdict::Unplug => {
                self.wired_by(subject).any(|place| outdated(&place))
            }
        };
        if !outdated {
            return verdict;
        }
        Verdict::Keep("its keys are older than what is wired: etcd went back".into())
    }
}

/// A tap flow ends with either of its ports: nobody asks for its end then.
fn goes_with_a_port(tap: &Subject, state: &HostState, verdicts: &BTreeMap<Subject, Verdict>) -> bool {
    let unplugs = |port: &PortId| verdicts.get(&Subject::Port(port.clone())) == Some(&Verdict::Unplug);
    let info = state.subjects.get(tap).and_then(SubjectKeys::tap);
    info.is_some_and(|info| unplugs(&info.source_port) || unplugs(&info.service_port))
}
