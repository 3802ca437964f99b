//! What the agent says: lines for the log, and the status others read.
//!
//! Owned by the [`crate::machine::Machine`]. Says everything once: an outage, a configuration that
//! changed, a port that stands otherwise than before; what peers can bring about at will is limited.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::dataplane::DataPlaneError;
use crate::keys::{HostKeys, Name, Subject};
use crate::link::Lost;
use crate::reconcile::{Action, Plan};
use crate::schedule::LogLimit;
use crate::status::{PortState, StatusCell};
use crate::view::View;

/// The voice of one agent.
#[derive(Debug)]
pub(crate) struct Journal {
    keys: HostKeys,
    status: StatusCell,
    endpoint: String,
    said_lost: bool,
    /// What was last warned about: the configuration's revision, or None for its absence.
    warned_of: Option<Option<i64>>,
    limit: LogLimit,
    /// How everybody stood when last written about.
    reported: BTreeMap<Option<Subject>, (PortState, String)>,
}

impl Journal {
    pub fn new(keys: HostKeys, status: StatusCell) -> Journal {
        Journal {
            keys,
            status,
            endpoint: String::new(),
            said_lost: false,
            warned_of: None,
            limit: LogLimit::new(100, Duration::from_millis(500)),
            reported: BTreeMap::new(),
        }
    }

    pub fn dialled(&mut self, endpoint: String) {
        self.endpoint = endpoint;
        self.status.update(|status| status.etcd.n_dials += 1);
    }

    pub fn connected(&mut self, revision: i64) {
        let endpoint = self.endpoint.clone();
        tracing::info!(etcd = %endpoint, host = %self.keys.host(), revision, "listed, watching");
        self.said_lost = false;
        self.status.update(|status| {
            status.etcd.connected = true;
            status.etcd.endpoint = endpoint;
            status.etcd.n_connects += 1;
        });
    }

    /// Says so once per outage, however many tries it takes.
    pub fn lost(&mut self, lost: &Lost, endpoint: String) {
        let reason = lost.to_string();
        if !std::mem::replace(&mut self.said_lost, true) {
            tracing::warn!(etcd = %endpoint, reason, "no etcd: wiring stays as it is, trying again");
        } else {
            tracing::debug!(etcd = %endpoint, reason, "still no etcd");
        }
        self.status.update(|status| {
            status.etcd.connected = false;
            status.etcd.endpoint = endpoint;
            status.etcd.last_error = Some(reason);
            status.etcd.remedy = lost.remedy();
        });
    }

    pub fn history_broken(&mut self, before: i64, now: i64) {
        tracing::warn!(
            before,
            now,
            "etcd went back or is another: wiring stays until it is written about again"
        );
    }

    pub fn odd_keys(&mut self, n_odd_keys: u64) {
        self.status.update(|status| {
            if n_odd_keys > status.etcd.n_odd_keys {
                tracing::warn!(
                    n_odd_keys,
                    "keys of this host are ignored: no port or vhost can have such names"
                );
            }
            status.etcd.n_odd_keys = n_odd_keys;
        });
    }

    pub fn node_failed(&mut self, error: &DataPlaneError) {
        let text = error.to_string();
        let known = self.status.get().node_error.as_ref() == Some(&text);
        if !known {
            tracing::warn!(error = text, "the node does not answer");
        }
        self.status.update(|status| status.node_error = Some(text));
    }

    /// What the node said to an action.
    pub fn called(&mut self, action: &Action, result: &Result<(), DataPlaneError>, now: Duration) {
        self.say(now, || match (action, result) {
            (Action::Wire { subject, wiring }, Ok(())) => tracing::info!("{subject} wired: {wiring}"),
            (Action::Wire { subject, wiring }, Err(error)) => {
                tracing::warn!(%error, "{subject} not wired, will be tried again: {wiring}");
            }
            (Action::Unwire { place, why }, Ok(())) => tracing::info!(why, "{place} unwired"),
            (Action::Unwire { place, why }, Err(error)) => {
                tracing::warn!(why, %error, "{place} not unwired, will be tried again");
            }
            _ => {}
        });
    }

    /// How an action's transaction went.
    pub fn transacted(&mut self, action: &Action, done: bool, now: Duration) {
        match (action, done) {
            (Action::Clean { subject, leftover: Some(leftover), .. }, true) => {
                self.say(now, || tracing::warn!(leftover, "left-over keys of {subject} removed"));
            }
            (Action::Clean { subject, leftover: None, .. }, true) => {
                self.say(now, || tracing::info!("keys of {subject} removed"));
            }
            (Action::Clean { subject, .. }, false) => {
                tracing::debug!("keys of {subject} changed before they could be removed");
            }
            (Action::Release { slot, leftover, .. }, true) => {
                let key = self.keys.spell(slot);
                self.say(now, || tracing::warn!(key, leftover, "leaked slot given back"));
            }
            _ => {}
        }
    }

    /// How everything stands after a plan was made. `changed`: the configuration is another than the
    /// node was built from, at this revision, or gone.
    pub fn publish(&mut self, plan: &Plan, view: &View, changed: Option<Option<i64>>, now: Duration) {
        if changed.is_some() && self.warned_of != changed {
            match changed.flatten() {
                None => tracing::warn!(
                    "the configuration key of this host is gone: the node goes on as it was built"
                ),
                Some(revision) => tracing::warn!(
                    revision,
                    "the configuration of this host changed: restart spp to apply it"
                ),
            }
            self.warned_of = changed;
        }
        self.report(plan, now);
        let (revision, vhosts) = (view.revision(), view.vhost_counts());
        self.status.update(|status| {
            status.etcd.revision = revision;
            status.vhosts = vhosts;
            status.configuration_changed = changed.is_some();
            status.node_error = None;
            status.ports.clone_from(&plan.ports);
            status.taps.clone_from(&plan.taps);
        });
    }

    /// A line for everybody who stands otherwise than when last written about.
    fn report(&mut self, plan: &Plan, now: Duration) {
        let mut reported = std::mem::take(&mut self.reported);
        let port = |id: &Name| Subject::Port(id.clone());
        let tap = |id: &Name| Subject::Tap(id.clone());
        let ports = plan.ports.iter().map(|r| (r.port.as_ref().map(port), (r.state, r.why.clone())));
        let taps = plan.taps.iter().map(|r| (r.tap.as_ref().map(tap), (r.state, r.why.clone())));
        let stand: BTreeMap<_, _> = ports.chain(taps).collect();
        reported.retain(|subject, _| stand.contains_key(subject));
        for (subject, stands) in stand {
            if reported.get(&subject) == Some(&stands) {
                continue;
            }
            let (state, why) = &stands;
            let who = subject.as_ref().map_or("wiring of nobody known".into(), Subject::to_string);
            self.say(now, || match state {
                PortState::Refused | PortState::Kept => tracing::warn!(?state, why, "{who}"),
                PortState::Waiting | PortState::Wiring => tracing::debug!(?state, why, "{who}"),
                _ => tracing::info!(?state, why, "{who}"),
            });
            reported.insert(subject, stands);
        }
        self.reported = reported;
    }

    /// Writes a line about something a peer can bring about, unless there were too many.
    fn say(&mut self, now: Duration, line: impl FnOnce()) {
        if let Some(n_suppressed) = self.limit.allow(now) {
            if n_suppressed > 0 {
                tracing::warn!(n_suppressed, "lines about ports not written");
            }
            line();
        }
    }
}
