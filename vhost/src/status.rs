//! What a port says about itself: state in words, last failure, counters.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Serialize, Serializer};
use spp_drivers::stats::{Counter, SharedStats, StatsSnapshot};

use crate::Role;
use crate::handover::RingState;
use crate::memory::RegionInfo;
use crate::vring::{FROM_GUEST, N_RINGS, TO_GUEST};

/// Where a port is in its life. Displays, and serialises, as the operator reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// No frontend is connected.
    Waiting,
    /// A frontend is connected.
    Connected,
    /// Features are agreed upon.
    Negotiated,
    /// Both rings are polled and enabled.
    Running,
    /// It can't go on until the guest resets or the frontend reconnects: why, in words.
    Failed(String),
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortState::Waiting => f.write_str("waiting"),
            PortState::Connected => f.write_str("connected"),
            PortState::Negotiated => f.write_str("negotiated"),
            PortState::Running => f.write_str("running"),
            PortState::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

impl Serialize for PortState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One ring, for status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RingStatus {
    /// Descriptors, once set.
    pub size: Option<u16>,
    /// Polled and enabled.
    pub running: bool,
    /// Interrupts sent to the guest.
    pub calls: u64,
}

/// All there is to know about a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortStatus {
    /// `vhost:0`.
    pub name: String,
    /// The socket.
    pub path: PathBuf,
    /// Who listens on it.
    pub role: Role,
    /// Where the port is in its life.
    pub state: PortState,
    /// What it waits for, in words; empty when it runs.
    pub detail: String,
    /// The last failure, also after recovery.
    pub last_failure: Option<String>,
    /// Connections after the first.
    pub reconnects: u64,
    /// Bugs of ours in the port's control thread, each contained at the cost of a connection.
    pub panics: u64,
    /// What the frontend told the guest to be the longest packet, without Ethernet header.
    pub mtu: Option<u16>,
    /// Negotiated virtio features, by name.
    pub features: Vec<&'static str>,
    /// Memory the frontend shares.
    pub memory: Vec<RegionInfo>,
    /// The ring to the guest (its receive ring).
    pub to_guest_ring: RingStatus,
    /// The ring from the guest (its transmit ring).
    pub from_guest_ring: RingStatus,
    /// Frames sent to the guest, and drops on the way.
    pub to_guest: StatsSnapshot,
    /// Frames received from the guest, and drops on the way.
    pub from_guest: StatsSnapshot,
}

/// What the control thread tells about the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub connected: bool,
    pub connections: u64,
    /// Why the last connection ended, when that was no plain disconnect; cleared by a new one.
    pub failure: Option<String>,
    pub last_failure: Option<String>,
    /// Why nobody is connected: the socket isn't there, is a symbolic link, ...
    pub waiting_for: String,
    pub features: Option<u64>,
    pub mtu: Option<u16>,
    pub panics: u64,
    pub memory: Vec<RegionInfo>,
    pub sizes: [Option<u16>; N_RINGS],
    /// What ring set-up waits for.
    pub missing: String,
}

/// Shared by the control thread, which writes, and status, which reads. Never touched by a core.
pub(crate) struct Board {
    progress: Mutex<Progress>,
    pub rings: [Arc<RingState>; N_RINGS],
    pub stats: [SharedStats; N_RINGS],
    pub calls: [Arc<Counter>; N_RINGS],
}

impl Board {
    pub fn new(
        rings: [Arc<RingState>; N_RINGS],
        stats: [SharedStats; N_RINGS],
        calls: [Arc<Counter>; N_RINGS],
    ) -> Self {
        Board { progress: Mutex::default(), rings, stats, calls }
    }

    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// State and what is waited for.
    pub fn state(&self) -> (PortState, String) {
        let progress = self.progress().clone();
        if !progress.connected {
            let state = progress.failure.map_or(PortState::Waiting, PortState::Failed);
            return (state, progress.waiting_for);
        }
        if let Some(fault) = self.rings.iter().find_map(|ring| ring.fault()) {
            return (
                PortState::Failed(fault.words().to_owned()),
                "a reset of the guest, or a reconnect".into(),
            );
        }
        if self.rings.iter().all(|ring| ring.is_running()) {
            return (PortState::Running, String::new());
        }
        let state = if progress.features.is_some() { PortState::Negotiated } else { PortState::Connected };
        (state, progress.missing)
    }

    fn ring_status(&self, ring: usize) -> RingStatus {
        RingStatus {
            size: self.progress().sizes[ring],
            running: self.rings[ring].is_running(),
            calls: self.calls[ring].get(),
        }
    }

    pub fn status(&self, name: &str, path: &std::path::Path, role: Role) -> PortStatus {
        let (state, detail) = self.state();
        let progress = self.progress().clone();
        let fault = self.rings.iter().find_map(|ring| ring.fault()).map(|f| f.words().to_owned());
        PortStatus {
            name: name.to_owned(),
            path: path.to_owned(),
            role,
            state,
            detail,
            last_failure: fault.or(progress.last_failure),
            reconnects: progress.connections.saturating_sub(1),
            panics: progress.panics,
            mtu: progress.mtu,
            features: progress.features.map(crate::setup::names).unwrap_or_default(),
            memory: progress.memory,
            to_guest_ring: self.ring_status(TO_GUEST),
            from_guest_ring: self.ring_status(FROM_GUEST),
            to_guest: self.stats[TO_GUEST].snapshot(),
            from_guest: self.stats[FROM_GUEST].snapshot(),
        }
    }
}
