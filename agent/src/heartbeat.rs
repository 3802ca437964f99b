//! Tells neutron that this node is alive: `report_state` over AMQP 0-9-1, as oslo.messaging casts it.
//!
//! Neutron binds ports only on hosts whose agent reported within the last 75 s. A task of its own that
//! shares nothing with the agent's but the status: a broker that is down, slow or hostile costs reports,
//! never etcd or the data plane. [`message`] builds the bytes, [`url`] says where they go, [`wire`] sends them
//! and [`screen`] bounds what comes back.

pub mod message;
pub mod screen;
pub mod url;
pub mod wire;

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::keys::Name;
use crate::resolve::NameFiles;
use crate::schedule::Backoff;
use crate::status::{HeartbeatStatus, StatusCell};
use crate::tls::TlsFiles;
use message::{Report, Stamp};
use url::Brokers;
use wire::{BrokerError, Delivery, Session};

/// How soon a report that nobody listened to is sent again.
const UNROUTED_RETRY: Duration = Duration::from_secs(5);

/// Longest pause between two tries to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Longest time for the good-bye at the end.
const CLOSE_DEADLINE: Duration = Duration::from_millis(500);

/// What to report, where to and how often.
#[derive(Debug, Clone)]
pub struct HeartbeatConfig {
    /// Neutron's message brokers.
    pub brokers: Brokers,
    /// Files for `amqps://`.
    pub tls: TlsFiles,
    /// Where host names are looked up.
    pub names: NameFiles,
    /// This host's name.
    pub host: Name,
    /// Our version.
    pub version: String,
    /// From report to report.
    pub interval: Duration,
}

/// Reports until `shutdown` resolves; then returns within half a second or so.
pub async fn run(config: HeartbeatConfig, status: StatusCell, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (stop, stopped) = oneshot::channel();
        let mut task = tokio::spawn(report_until(config.clone(), status.clone(), stopped));
        tokio::select! {
            biased;
            () = &mut shutdown => {
                let _ = stop.send(());
                let _ = tokio::time::timeout(2 * CLOSE_DEADLINE, &mut task).await;
                task.abort();
                return;
            }
            // It never ends by itself: a panic, ours or the client library's.
            _ = &mut task => tracing::error!("the heartbeat panicked and starts over"),
        }
        tokio::time::sleep(LONGEST_PAUSE).await;
    }
}

async fn report_until(config: HeartbeatConfig, status: StatusCell, stop: oneshot::Receiver<()>) {
    let mut reporter = Reporter { config, status, broker_idx: 0, session: None };
    tokio::select! {
        biased;
        _ = stop => {}
        never = reporter.serve() => match never {},
    }
    if let Some(session) = reporter.session.take() {
        let _ = tokio::time::timeout(CLOSE_DEADLINE, session.close()).await;
    }
}

struct Reporter {
    config: HeartbeatConfig,
    status: StatusCell,
    /// Whose turn it is; counts on for ever.
    broker_idx: usize,
    session: Option<Session>,
}

impl Reporter {
    async fn serve(&mut self) -> Infallible {
        let longest = LONGEST_PAUSE.min(self.config.interval);
        let mut pauses = Backoff::new(Duration::from_secs(1).min(longest), longest);
        let mut said_lost = false;
        loop {
            let n_before = self.status.get().heartbeat.map_or(0, |heartbeat| heartbeat.n_reports);
            let Err(error) = self.connected(&mut said_lost).await;
            self.session = None;
            let (broker, reason) = (self.label(), error.to_string());
            if !std::mem::replace(&mut said_lost, true) {
                tracing::warn!(
                    broker,
                    reason,
                    "no reports to neutron, trying again: it binds no ports here meanwhile"
                );
            } else {
                tracing::debug!(broker, reason, "still no reports to neutron");
            }
            self.say(|heartbeat| {
                heartbeat.connected = false;
                heartbeat.last_error = Some(reason);
            });
            if self.status.get().heartbeat.is_some_and(|heartbeat| heartbeat.n_reports > n_before) {
                pauses.reset();
            }
            self.broker_idx = self.broker_idx.wrapping_add(1);
            tokio::time::sleep(pauses.pause_with_jitter()).await;
        }
    }

    /// One connection, from opening to loss.
    async fn connected(&mut self, said_lost: &mut bool) -> Result<Infallible, BrokerError> {
        self.say(|_| {});
        let HeartbeatConfig { brokers, tls, names, host, .. } = &self.config;
        let session = Session::open(brokers, self.broker_idx, tls, names, host.as_str()).await?;
        self.session = Some(session);
        self.say(|heartbeat| heartbeat.connected = true);
        let mut start = true;
        loop {
            let body = self.body(start);
            let interval = self.config.interval;
            let session = self.session.as_mut().expect("it was opened above");
            let wait = match session.publish(&body).await? {
                Delivery::Taken => {
                    if std::mem::take(&mut start) {
                        tracing::info!(broker = self.label(), "reporting to neutron");
                        *said_lost = false;
                    }
                    self.say(|heartbeat| {
                        heartbeat.n_reports += 1;
                        heartbeat.last_report = Some(now());
                        heartbeat.last_error = None;
                    });
                    interval
                }
                Delivery::Unrouted => {
                    if !std::mem::replace(said_lost, true) {
                        tracing::warn!(broker = self.label(), "{NOBODY}");
                    }
                    self.say(|heartbeat| heartbeat.last_error = Some(NOBODY.into()));
                    // Whoever listens next has not seen the first report.
                    start = true;
                    interval.min(UNROUTED_RETRY)
                }
            };
            let session = self.session.as_mut().expect("it was opened above");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                error = session.lost() => return Err(error),
            }
        }
    }

    fn body(&self, start: bool) -> Vec<u8> {
        let agent = self.status.get();
        let report = Report {
            host: &self.config.host,
            version: &self.config.version,
            start,
            etcd_connected: agent.etcd.connected,
            vhosts: &agent.vhosts,
        };
        report.body(Stamp::now())
    }

    fn label(&self) -> String {
        self.config.brokers.label(self.broker_idx)
    }

    fn say(&self, change: impl FnOnce(&mut HeartbeatStatus)) {
        let broker = self.label();
        self.status.update(|status| {
            let heartbeat = status.heartbeat.get_or_insert_default();
            heartbeat.broker = broker;
            change(heartbeat);
        });
    }
}

const NOBODY: &str = "nobody listens for reports: start neutron-server, or is this not the broker and virtual host of its transport_url?";

/// Now, for people: UTC to the second.
fn now() -> String {
    let text = message::timestamp(Stamp::now().time);
    format!("{}Z", text.split('.').next().unwrap_or_default())
}
