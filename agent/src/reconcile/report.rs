//! How every port stands, in words, from the same pass that made the plan.

use crate::keys::{Key, PortId};
use crate::port::{PortKeys, Verdict};
use crate::status::{PortReport, PortState};

use super::{Pass, Reconciler};

impl Reconciler {
    pub(super) fn report(&self, pass: &mut Pass) {
        let mut reports: Vec<PortReport> = Vec::new();
        for (port, verdict) in &pass.verdicts {
            reports.push(self.report_port(port, verdict, pass));
        }
        for (vhost, plug) in pass.live.iter().filter(|(vhost, _)| !self.owners.contains_key(vhost)) {
            let why = match self.held.contains_key(vhost) {
                true => "kept since etcd went back",
                false => "no port asks for it",
            };
            let (state, why) = (PortState::Kept, why.to_string());
            reports.push(PortReport { port: None, wanted: None, live: Some(*plug), state, why });
        }
        pass.plan.ports = reports;
    }

    fn report_port(&self, port: &PortId, verdict: &Verdict, pass: &Pass) -> PortReport {
        let keys = pass.state.ports.get(port);
        let wanted = keys.and_then(PortKeys::plug);
        let live = self.wired_by(port).next().and_then(|vhost| pass.live.get(&vhost)).copied();
        let refusal = |vhost: u32| self.attempts.get(&vhost).and_then(|attempt| attempt.error.clone());
        let (state, why) = match verdict {
            Verdict::Wire { plug, announce } if live == Some(*plug) => {
                let said = *announce && keys.is_some_and(|keys| keys.status == Some(true));
                let lenient =
                    matches!(keys.map(|keys| &keys.bind_port), Some(Some((Ok(bind), _))) if bind.lenient);
                let why = if lenient { "bind_port has numbers written as text" } else { "" };
                (if said { PortState::Up } else { PortState::Wired }, why.to_string())
            }
            Verdict::Wire { plug, .. } => (PortState::Wiring, refusal(plug.vhost).unwrap_or_default()),
            Verdict::Keep(why) if live.is_some() => (PortState::Kept, why.clone()),
            Verdict::Keep(why) => (self.waits_or_refused(port, keys, pass), why.clone()),
            Verdict::Drop(why) if live.is_some_and(|plug| self.protected(plug.vhost, pass)) => {
                (PortState::Kept, why.clone())
            }
            Verdict::Drop(why) if live.is_some() => (PortState::Unplugging, why.clone()),
            Verdict::Drop(why) => (self.waits_or_refused(port, keys, pass), why.clone()),
            Verdict::Unplug => {
                (PortState::Unplugging, live.and_then(|plug| refusal(plug.vhost)).unwrap_or_default())
            }
        };
        PortReport { port: Some(port.clone()), wanted, live, state, why }
    }

    /// A port whose driver may still be between two steps waits; anything else is refused.
    fn waits_or_refused(&self, port: &PortId, keys: Option<&PortKeys>, pass: &Pass) -> PortState {
        let Some(keys) = keys else { return PortState::Waiting };
        let young = |key: Key| {
            let since = self.suspects.get(&key).map(|(_, since)| *since);
            since.is_none_or(|since| pass.now < since + self.timing.orphan_report)
        };
        match (&keys.bind_port, &keys.action) {
            (None, None) => PortState::Waiting,
            (Some((Ok(_), _)), None) => PortState::Waiting,
            (None, Some(_)) if young(Key::Action(port.clone())) => PortState::Waiting,
            _ => PortState::Refused,
        }
    }
}
