//! What `spp status` shows of the agent: connected or not, and every port with its reason.
//!
//! Written by the agent's task, read from any thread through [`StatusCell`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::dataplane::{Plug, Tap};
use crate::keys::{Name, PortId, TapId};

/// Where a port or tap flow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// Wired, and the control node is told so.
    Up,
    /// Wired; nobody asked to be told.
    Wired,
    /// About to be wired, or another try is due.
    Wiring,
    /// Not wired; something is still missing.
    Waiting,
    /// Not wired, because what is asked for cannot be.
    Refused,
    /// Wired as before although its keys no longer say so.
    Kept,
    /// Being unwired, or its keys being removed.
    Unplugging,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortReport {
    /// Neutron's id; None for wiring whose port is not known.
    pub port: Option<PortId>,
    /// The wiring its keys ask for.
    pub wanted: Option<Plug>,
    /// The wiring it has.
    pub live: Option<Plug>,
    /// In one word.
    pub state: PortState,
    /// The reason, where there is more to say than the word.
    pub why: String,
}

/// One tap flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TapReport {
    /// TaaS's id; None for a mirror at work whose tap flow is not known.
    pub tap: Option<TapId>,
    /// The port whose frames are copied.
    pub source_port: Option<PortId>,
    /// The port that gets the copies.
    pub service_port: Option<PortId>,
    /// Its mirrors at work.
    pub live: Vec<Tap>,
    /// In one word.
    pub state: PortState,
    /// The reason, where there is more to say than the word.
    pub why: String,
}

/// The connection to etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EtcdStatus {
    /// Listed and watching.
    pub connected: bool,
    /// The member in use, or the one tried last.
    pub endpoint: String,
    /// Highest store revision seen.
    pub revision: i64,
    /// Times the connection was built up, first one included.
    pub n_connects: u64,
    /// Keys of this host that were ignored for their names, in the last listing.
    pub n_odd_keys: u64,
    /// Times a member was dialled, in vain or not.
    pub n_dials: u64,
    /// Why the connection was lost, or could not be built up, most recently.
    pub last_error: Option<String>,
    /// What to do about that.
    pub remedy: Option<&'static str>,
}

/// The key that shows that this node is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeKeyStatus {
    /// The full key.
    pub key: String,
    /// It is there and its lease is kept.
    pub held: bool,
    /// Why it was not kept, most recently.
    pub last_error: Option<String>,
}

/// The reports to neutron.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HeartbeatStatus {
    /// The broker in use, or the one tried last; no user, no password.
    pub broker: String,
    /// A channel is open there.
    pub connected: bool,
    /// Reports that are in neutron's queue, since the start.
    pub n_reports: u64,
    /// When the last one was, UTC.
    pub last_report: Option<String>,
    /// Why the one after that was none, and what to do.
    pub last_error: Option<String>,
}

/// Vhosts of one physical network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct VhostCount {
    /// With a key in etcd.
    pub total: u32,
    /// Of those, nobody's.
    pub free: u32,
}

/// The agent as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AgentStatus {
    /// The connection to etcd.
    pub etcd: EtcdStatus,
    /// The node's key; null when none is wanted.
    pub node_key: Option<NodeKeyStatus>,
    /// Reports to neutron; null when none are wanted.
    pub heartbeat: Option<HeartbeatStatus>,
    /// Vhosts of each physical network, as etcd has them.
    pub vhosts: BTreeMap<Name, VhostCount>,
    /// The configuration key no longer says what the node was built from: restart to apply it.
    pub configuration_changed: bool,
    /// The node itself did not answer, most recently.
    pub node_error: Option<String>,
    /// Times the agent was started again, the node running on.
    pub n_restarts: u64,
    /// Why, most recently.
    pub last_restart: Option<String>,
    /// All ports with keys or wiring, in order of their ids.
    pub ports: Vec<PortReport>,
    /// All tap flows with keys or wiring, in order of their ids.
    pub taps: Vec<TapReport>,
}

impl PortReport {
    /// Is it wired as etcd wants it, and told so if somebody asked?
    pub fn in_order(&self) -> bool {
        self.wanted == self.live && matches!(self.state, PortState::Up | PortState::Wired)
    }
}

impl TapReport {
    /// Is it copied as etcd wants it, and told so if somebody asked?
    pub fn in_order(&self) -> bool {
        matches!(self.state, PortState::Up | PortState::Wired)
    }
}

impl AgentStatus {
    /// Is it connected, and everything as etcd wants it?
    pub fn in_order(&self) -> bool {
        let ports = self.ports.iter().all(PortReport::in_order);
        let taps = self.taps.iter().all(TapReport::in_order);
        self.etcd.connected && self.node_error.is_none() && !self.configuration_changed && ports && taps
    }
}

/// Shared handle on the agent: its status, and the wish that it starts anew.
#[derive(Debug, Clone, Default)]
pub struct StatusCell(Arc<Mutex<AgentStatus>>, Arc<tokio::sync::Notify>);

impl StatusCell {
    /// Asks the agent to forget everything and start anew, from etcd and from what is wired. Nothing
    /// changes for the node.
    pub fn ask_restart(&self) {
        self.1.notify_one();
    }

    /// Resolves when that was asked for.
    pub(crate) async fn restart_asked(&self) {
        self.1.notified().await;
    }

    /// A copy of the present status.
    pub fn get(&self) -> AgentStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the present status without copying it. `look` must be short: the agent waits for it.
    pub fn read<T>(&self, look: impl FnOnce(&AgentStatus) -> T) -> T {
        look(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut AgentStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
