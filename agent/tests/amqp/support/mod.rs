//! A broker and a neutron-server of a test's own, and a heartbeat to send there.

pub mod broker;
#[path = "../../../../tests/etcd/support/certificates.rs"]
pub mod certificates;
pub mod neutron;

use std::future::Future;
use std::time::Duration;

use spp_agent::heartbeat::{self, HeartbeatConfig};
use spp_agent::{HeartbeatStatus, Name, NameFiles, StatusCell, TlsFiles};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest wait for anything that is sure to come; only a hang gets there. A broker starts slowly.
pub const DEADLINE: Duration = Duration::from_secs(120);

pub const HOST: &str = "compute1";

/// Polls until `check` says so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never came true: {what}"));
}

/// A heartbeat at work, once a second.
pub struct Heartbeat {
    pub status: StatusCell,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

pub fn config(url: &str, tls: TlsFiles) -> HeartbeatConfig {
    HeartbeatConfig {
        brokers: url.parse().unwrap(),
        tls,
        names: NameFiles::default(),
        host: Name::new(HOST).unwrap(),
        version: "1.2.3".into(),
        interval: Duration::from_secs(1),
    }
}

impl Heartbeat {
    pub fn start(url: &str) -> Heartbeat {
        Heartbeat::with(config(url, TlsFiles::default()))
    }

    pub fn with(config: HeartbeatConfig) -> Heartbeat {
        let (stop, stopped) = oneshot::channel();
        let status = StatusCell::default();
        let shutdown = async move { drop(stopped.await) };
        let task = tokio::spawn(heartbeat::run(config, status.clone(), shutdown));
        Heartbeat { status, stop: Some(stop), task }
    }

    pub fn get(&self) -> HeartbeatStatus {
        self.status.get().heartbeat.unwrap_or_default()
    }

    /// Until an error is shown that has these words.
    pub async fn until_error(&self, words: &str) {
        let check = || async { self.get().last_error.is_some_and(|error| error.contains(words)) };
        let wait = async {
            while !check().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let timeout = tokio::time::timeout(DEADLINE, wait).await;
        timeout.unwrap_or_else(|_| panic!("{words:?} is not in {:?}", self.get()));
    }

    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(DEADLINE, &mut self.task).await.expect("it stops").unwrap();
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}
