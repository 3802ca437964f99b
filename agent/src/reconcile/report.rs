//! How every port and tap flow stands, in words, from the same pass that made the plan.

use super::*;
use crate::status::PortState;

impl Reconciler {
    pub(super) fn report(&self, pass: &mut Pass) {
        let (mut ports, mut taps) = (Vec::new(), Vec::new());
        for (subject, verdict) in &pass.verdicts {
            let keys = pass.state.subjects.get(subject);
            let live: Vec<Wiring> =
                self.wired_by(subject).filter_map(|place| pass.live.get(&place)).copied().collect();
            let (state, why) = self.stands(subject, verdict, &live, pass);
            match subject {
                Subject::Port(port) => ports.push(PortReport {
                    port: Some(port.clone()),
                    wanted: keys.and_then(SubjectKeys::plug),
                    live: live.first().and_then(plug),
                    state,
                    why,
                }),
                Subject::Tap(tap) => {
                    let info = keys.and_then(SubjectKeys::tap);
                    taps.push(TapReport {
                        tap: Some(tap.clone()),
                        source_port: info.map(|info| info.source_port.clone()),
                        service_port: info.map(|info| info.service_port.clone()),
                        live: live.iter().filter_map(tap_of).collect(),
                        state,
                        why,
                    });
                }
            }
        }
        for (place, wiring) in pass.live.iter().filter(|(place, _)| !self.owners.contains_key(place)) {
            let why = match self.held.contains_key(place) {
                true => "kept since etcd went back",
                false => "nobody asks for it",
            };
            let (state, why) = (PortState::Kept, why.to_string());
            match wiring {
                Wiring::Plug(plug) => {
                    ports.push(PortReport { port: None, wanted: None, live: Some(*plug), state, why });
                }
                Wiring::Tap(tap) => taps.push(TapReport {
                    tap: None,
                    source_port: None,
                    service_port: None,
                    live: vec![*tap],
                    state,
                    why,
                }),
            }
        }
        pass.plan.ports = ports;
        pass.plan.taps = taps;
    }

    fn stands(
        &self,
        subject: &Subject,
        verdict: &Verdict,
        live: &[Wiring],
        pass: &Pass,
    ) -> (PortState, String) {
        let keys = pass.state.subjects.get(subject);
        let is_live = !live.is_empty();
        let refusal = |wirings: &[Wiring]| {
            let error = |wiring: &Wiring| self.attempts.get(&wiring.place())?.error.clone();
            wirings.iter().find_map(error).unwrap_or_default()
        };
        match verdict {
            Verdict::Wire { wirings, announce } if wirings.iter().all(|wiring| live.contains(wiring)) => {
                let said = *announce && keys.is_some_and(|keys| keys.status == Some(true));
                let state = if said { PortState::Up } else { PortState::Wired };
                let word = subject.info().family().word();
                let lenient = keys.is_some_and(SubjectKeys::lenient);
                (state, if lenient { format!("{word} has numbers written as text") } else { String::new() })
            }
            Verdict::Wire { wirings, .. } => (PortState::Wiring, refusal(wirings)),
            Verdict::Keep(why) if is_live => (PortState::Kept, why.clone()),
            Verdict::Wait(why) | Verdict::Drop(why) if is_live => {
                let protected = live.iter().any(|wiring| self.protected(wiring.place(), pass.state));
                (if protected { PortState::Kept } else { PortState::Unplugging }, why.clone())
            }
            Verdict::Wait(why) => (PortState::Waiting, why.clone()),
            Verdict::Keep(why) | Verdict::Drop(why) => {
                (self.waits_or_refused(subject, keys, pass), why.clone())
            }
            Verdict::Unplug => (PortState::Unplugging, refusal(live)),
        }
    }

    /// A port whose driver may still be between two steps waits; anything else is refused.
    fn waits_or_refused(&self, subject: &Subject, keys: Option<&SubjectKeys>, pass: &Pass) -> PortState {
        let Some(keys) = keys else { return PortState::Waiting };
        let young = || {
            let since = self.suspects.get(&subject.action()).map(|(_, since)| *since);
            since.is_none_or(|since| pass.now < since + self.timing.orphan_report)
        };
        match (&keys.info, &keys.action) {
            (None, None) => PortState::Waiting,
            (Some((Ok(_), _)), None) => PortState::Waiting,
            (None, Some(_)) if young() => PortState::Waiting,
            _ => PortState::Refused,
        }
    }
}

fn plug(wiring: &Wiring) -> Option<Plug> {
    match wiring {
        Wiring::Plug(plug) => Some(*plug),
        Wiring::Tap(_) => None,
    }
}

fn tap_of(wiring: &Wiring) -> Option<Tap> {
    match wiring {
        Wiring::Tap(tap) => Some(*tap),
        Wiring::Plug(_) => None,
    }
}
