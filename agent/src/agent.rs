//! The agent's task: keeps a connection, keeps the view, carries plans out, for ever.
//!
//! One async task owns everything here. Nothing of what etcd does ends it: any failure is a lost
//! connection, a pause of at most 2 s, and a new listing. It may be dropped at any point and started
//! again; what it was about to do follows from the keys and the node.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::configuration::Configuration;
use crate::connect::{Dialer, Endpoints};
use crate::dataplane::{Caller, DataPlane, DataPlaneError};
use crate::keys::{HostKeys, Key, Name, Subject};
use crate::link::{Link, Lost, Outcome};
use crate::reconcile::{Action, Plan, Reconciler, Timing};
use crate::schedule::{Backoff, LogLimit};
use crate::status::{PortState, StatusCell};
use crate::txn::KeyTxn;
use crate::view::{History, View};

/// How often the member is pinged: a connection that died without a word is found this soon.
const PING_EVERY: Duration = Duration::from_secs(3);

/// How often everything is listed again although the watch runs: a change the watch failed to
/// deliver is found this soon.
const RELIST_EVERY: Duration = Duration::from_secs(60);

/// Plans carried out in a row before the watch is looked at again.
const MAX_ROUNDS: usize = 16;

/// A connection that held this long was a good one: the next outage starts with short pauses.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// How soon a node that did not answer is asked again.
const NODE_RETRY: Duration = Duration::from_secs(1);

/// What the agent is to serve.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The etcd cluster.
    pub endpoints: Endpoints,
    /// This host's name in the keys.
    pub host: Name,
    /// The configuration the node was built from; a change at run time is reported.
    pub started_with: Option<Configuration>,
    /// The reconciler's times.
    pub timing: Timing,
    /// Longest time for one call into the node.
    pub node_deadline: Duration,
}

impl AgentConfig {
    /// With the usual times.
    pub fn new(endpoints: Endpoints, host: Name, started_with: Option<Configuration>) -> AgentConfig {
        let node_deadline = Duration::from_secs(10);
        AgentConfig { endpoints, host, started_with, timing: Timing::default(), node_deadline }
    }
}

/// Serves plug and unplug until `shutdown` resolves; then returns at once, whatever it was doing.
pub async fn run(
    config: AgentConfig,
    dataplane: Arc<dyn DataPlane>,
    status: StatusCell,
    shutdown: impl Future<Output = ()>,
) {
    tokio::select! {
        biased;
        () = shutdown => tracing::info!("agent stops"),
        never = serve(config, dataplane, status) => match never {},
    }
}

async fn serve(
    config: AgentConfig,
    dataplane: Arc<dyn DataPlane>,
    status: StatusCell,
) -> std::convert::Infallible {
    let node = Caller::new(dataplane, config.node_deadline);
    let started = Instant::now();
    let (layout, n_mirrors) = loop {
        match node.layout().await {
            Ok(found) => break found,
            Err(error) => status.update(|status| status.node_error = Some(error.to_string())),
        }
        tokio::time::sleep(NODE_RETRY).await;
    };
    let mut agent = Agent {
        dialer: Dialer::new(config.endpoints),
        keys: HostKeys::new(config.host),
        reconciler: Reconciler::new(layout, config.timing).with_mirrors(n_mirrors),
        view: View::default(),
        node,
        status,
        started,
        started_with: config.started_with,
        warned_revision: 0,
        pauses: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
        said_lost: false,
        connected_at: None,
        log: LogLimit::new(100, Duration::from_millis(500)),
        reported: BTreeMap::new(),
    };
    loop {
        let lost = match unless_it_panics(agent.session()).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        };
        agent.lost(&lost);
        tokio::time::sleep(agent.pauses.pause_with_jitter()).await;
    }
}

struct Agent {
    dialer: Dialer,
    keys: HostKeys,
    reconciler: Reconciler,
    view: View,
    node: Caller,
    status: StatusCell,
    started: Instant,
    started_with: Option<Configuration>,
    /// Revision of the configuration last warned about; -1 for its absence.
    warned_revision: i64,
    pauses: Backoff,
    said_lost: bool,
    connected_at: Option<Instant>,
    log: LogLimit,
    /// How everybody stood when last written about.
    reported: BTreeMap<Option<Subject>, (PortState, String)>,
}

impl Agent {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// One connection, from listing to loss.
    async fn session(&mut self) -> Result<std::convert::Infallible, Lost> {
        let mut link = Link::dial(&self.dialer, self.keys.clone()).await?;
        self.relist(&mut link).await?;
        self.reconciler.restart_grace();
        let mut watch = link.watch(self.view.revision() + 1).await?;
        self.connected();
        let (mut ping_at, mut relist_at) = (Instant::now() + PING_EVERY, Instant::now() + RELIST_EVERY);
        loop {
            let wake_at = self.converge(&mut link).await?;
            tokio::select! {
                changes = watch.next() => for change in changes? {
                    self.view.apply(change);
                },
                () = tokio::time::sleep_until(wake_at) => {}
                () = tokio::time::sleep_until(ping_at) => {
                    if Instant::now() >= relist_at {
                        relist_at = Instant::now() + RELIST_EVERY;
                        self.relist(&mut link).await?;
                    } else {
                        self.ping(&mut link).await?;
                    }
                    ping_at = Instant::now() + PING_EVERY;
                }
            }
        }
    }

    async fn relist(&mut self, link: &mut Link) -> Result<(), Lost> {
        let listing = link.list().await?;
        let (before, now) = (self.view.revision(), listing.revision);
        if self.view.history(&listing) == History::Broken {
            tracing::warn!(
                before,
                now,
                "etcd went back or is another: wiring stays until it is written about again"
            );
            let live = self.node.wirings().await.map_err(|error| {
                self.node_failed(&error);
                Lost::WentBack { before, now }
            })?;
            self.reconciler.history_broken(now, &live);
        }
        let n_odd_keys = listing.n_odd_keys;
        self.status.update(|status| {
            if n_odd_keys > status.etcd.n_odd_keys {
                tracing::warn!(
                    n_odd_keys,
                    "keys of this host are ignored: no port or vhost can have such names"
                );
            }
            status.etcd.n_odd_keys = n_odd_keys;
        });
        self.view.relist(listing);
        Ok(())
    }

    async fn ping(&mut self, link: &mut Link) -> Result<(), Lost> {
        let (_, now) = link.configuration().await?;
        let before = self.view.revision();
        if now < before { Err(Lost::WentBack { before, now }) } else { Ok(()) }
    }

    /// Plans and acts until there is nothing to do. When to plan again at the latest.
    async fn converge(&mut self, link: &mut Link) -> Result<Instant, Lost> {
        for _ in 0..MAX_ROUNDS {
            let live = match self.node.wirings().await {
                Ok(live) => live,
                Err(error) => {
                    self.node_failed(&error);
                    return Ok(Instant::now() + NODE_RETRY);
                }
            };
            let plan = self.reconciler.plan(self.now(), &self.view, &live);
            self.publish(&plan);
            if plan.actions.is_empty() {
                let far = self.now() + RELIST_EVERY;
                return Ok(self.started + plan.wake_at.unwrap_or(far));
            }
            for action in plan.actions {
                if !self.act(action, link).await? {
                    break;
                }
            }
        }
        Ok(Instant::now() + Duration::from_millis(50))
    }

    /// Carries one action out. False: things are not as planned, plan again.
    async fn act(&mut self, action: Action, link: &mut Link) -> Result<bool, Lost> {
        let done = match action {
            Action::Wire { subject, wiring } => {
                let result = self.node.wire(wiring).await;
                self.say(|| match &result {
                    Ok(()) => tracing::info!("{subject} wired: {wiring}"),
                    Err(error) => {
                        tracing::warn!(%error, "{subject} not wired, will be tried again: {wiring}")
                    }
                });
                let done = result.is_ok();
                let result = result.map_err(|error| error.to_string());
                self.reconciler.wired(&subject, &wiring, result, self.now());
                done
            }
            Action::Unwire { place, why } => {
                let result = self.node.unwire(place).await;
                self.say(|| match &result {
                    Ok(()) => tracing::info!(why, "{place} unwired"),
                    Err(error) => tracing::warn!(why, %error, "{place} not unwired, will be tried again"),
                });
                let done = result.is_ok();
                self.reconciler.unwired(place, result.map_err(|error| error.to_string()), self.now());
                done
            }
            Action::PutUp { subject, txn } => {
                let done = self.txn(&txn, link).await?;
                if done {
                    self.reconciler.said_up(&subject, self.now());
                }
                done
            }
            Action::Clean { subject, txn, leftover } => {
                let done = self.txn(&txn, link).await?;
                self.say(|| match (done, leftover) {
                    (true, Some(leftover)) => tracing::warn!(leftover, "left-over keys of {subject} removed"),
                    (true, None) => tracing::info!("keys of {subject} removed"),
                    (false, _) => tracing::debug!("keys of {subject} changed before they could be removed"),
                });
                done
            }
            Action::Release { slot, txn, leftover } => {
                let done = self.txn(&txn, link).await?;
                if done {
                    let key = self.keys.spell(&slot);
                    self.say(|| tracing::warn!(key, leftover, "leaked slot given back"));
                }
                done
            }
        };
        Ok(done)
    }

    async fn txn(&mut self, txn: &KeyTxn, link: &mut Link) -> Result<bool, Lost> {
        match link.txn(txn).await? {
            Outcome::Done(revision) => {
                self.view.apply_txn(txn, revision);
                Ok(true)
            }
            Outcome::Changed(changes) => {
                for change in changes {
                    self.view.apply(change);
                }
                Ok(false)
            }
        }
    }

    fn connected(&mut self) {
        self.connected_at = Some(Instant::now());
        let (endpoint, revision) = (self.dialer.endpoint(), self.view.revision());
        tracing::info!(etcd = %endpoint, host = %self.keys.host(), revision, "listed, watching");
        self.said_lost = false;
        self.status.update(|status| {
            status.etcd.connected = true;
            status.etcd.endpoint = endpoint;
            status.etcd.n_connects += 1;
        });
    }

    /// Says so once per outage, however many tries it takes.
    fn lost(&mut self, lost: &Lost) {
        let endpoint = self.dialer.endpoint();
        let reason = lost.to_string();
        if !std::mem::replace(&mut self.said_lost, true) {
            tracing::warn!(etcd = %endpoint, reason, "no etcd: wiring stays as it is, trying again");
        } else {
            tracing::debug!(etcd = %endpoint, reason, "still no etcd");
        }
        match self.connected_at.take() {
            Some(at) if at.elapsed() >= GOOD_SESSION => self.pauses.reset(),
            Some(_) => {}
            None => self.dialer.failed(),
        }
        self.status.update(|status| {
            status.etcd.connected = false;
            status.etcd.endpoint = endpoint;
            status.etcd.last_error = Some(reason);
        });
    }

    fn node_failed(&mut self, error: &DataPlaneError) {
        let text = error.to_string();
        let known = self.status.get().node_error.as_ref() == Some(&text);
        if !known {
            tracing::warn!(error = text, "the node does not answer");
        }
        self.status.update(|status| status.node_error = Some(text));
    }

    fn publish(&mut self, plan: &Plan) {
        let configuration_changed = self.configuration_changed();
        self.report(plan);
        self.status.update(|status| {
            status.etcd.revision = self.view.revision();
            status.configuration_changed = configuration_changed;
            status.node_error = None;
            status.ports.clone_from(&plan.ports);
            status.taps.clone_from(&plan.taps);
        });
    }

    /// Compares with what the node was built from; warns once per change.
    fn configuration_changed(&mut self) -> bool {
        let Some(started_with) = &self.started_with else { return false };
        let (changed, revision) = match self.view.get(&Key::Configuration) {
            Some((json, revision)) => (json != started_with.json, revision),
            None => (true, -1),
        };
        if changed && self.warned_revision != revision {
            self.warned_revision = revision;
            match revision {
                -1 => tracing::warn!(
                    "the configuration key of this host is gone: the node goes on as it was built"
                ),
                _ => tracing::warn!(
                    revision,
                    "the configuration of this host changed: restart spp to apply it"
                ),
            }
        }
        changed
    }

    /// A line for everybody who stands otherwise than when last written about.
    fn report(&mut self, plan: &Plan) {
        let mut reported = std::mem::take(&mut self.reported);
        let port = |id: &Name| Subject::Port(id.clone());
        let tap = |id: &Name| Subject::Tap(id.clone());
        let ports = plan.ports.iter().map(|r| (r.port.as_ref().map(port), (r.state, r.why.clone())));
        let taps = plan.taps.iter().map(|r| (r.tap.as_ref().map(tap), (r.state, r.why.clone())));
        let now: BTreeMap<_, _> = ports.chain(taps).collect();
        reported.retain(|subject, _| now.contains_key(subject));
        for (subject, stands) in now {
            if reported.get(&subject) == Some(&stands) {
                continue;
            }
            let (state, why) = &stands;
            let who = subject.as_ref().map_or("wiring of nobody known".into(), Subject::to_string);
            self.say(|| match state {
                PortState::Refused | PortState::Kept => tracing::warn!(?state, why, "{who}"),
                PortState::Waiting | PortState::Wiring => tracing::debug!(?state, why, "{who}"),
                _ => tracing::info!(?state, why, "{who}"),
            });
            reported.insert(subject, stands);
        }
        self.reported = reported;
    }

    /// Writes a line about something a peer can bring about, unless there were too many.
    fn say(&mut self, line: impl FnOnce()) {
        let now = self.now();
        if let Some(n_suppressed) = self.log.allow(now) {
            if n_suppressed > 0 {
                tracing::warn!(n_suppressed, "lines about ports not written");
            }
            line();
        }
    }
}

/// A panic in the session (the client library has some for answers no etcd should give) ends the
/// connection like any other fault; keys and node are looked at anew afterwards.
async fn unless_it_panics<T>(session: impl Future<Output = Result<T, Lost>>) -> Result<T, Lost> {
    let mut session = std::pin::pin!(session);
    std::future::poll_fn(|context| {
        let poll = AssertUnwindSafe(|| session.as_mut().poll(context));
        catch_unwind(poll).unwrap_or_else(|panic| {
            let text =
                panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
            Poll::Ready(Err(Lost::Panicked(text.unwrap_or("no reason given").to_string())))
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_in_a_session_is_a_lost_connection() {
        let session = async {
            tokio::task::yield_now().await;
            panic!("unknown event {}", 7);
            #[allow(unreachable_code)]
            Ok(())
        };
        let lost = unless_it_panics(session).await.unwrap_err();
        assert_eq!(lost.to_string(), "the session panicked: unknown event 7");
    }
}
