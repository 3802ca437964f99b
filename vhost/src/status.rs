//! What a port says about itself: state in words, last failure, counters.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Serialize, Serializer};
use spp_drivers::stats::{SharedStats, StatsSnapshot};

use crate::Role;
use crate::handover::RingState;
use crate::lanes::LaneStats;
use crate::memory::RegionInfo;
use crate::vring::{FROM_GUEST, MAX_PAIRS, N_RINGS, RingFault, TO_GUEST};

/// Where a port is in its life. Displays, and serialises, as the operator reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// No frontend is connected.
    Waiting,
    /// A frontend is connected.
    Connected,
    /// Features are agreed upon.
    Negotiated,
    /// Rings to the guest and from it are polled and enabled.
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
    /// Frames moved.
    pub packets: u64,
    /// Interrupts sent to the guest.
    pub calls: u64,
}

/// One queue pair, for status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct QueueStatus {
    /// The ring to the guest (its receive ring).
    pub to_guest: RingStatus,
    /// The ring from the guest (its transmit ring).
    pub from_guest: RingStatus,
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
    /// Queue pairs the frontend has set up, up to the last one.
    pub queues: Vec<QueueStatus>,
    /// How many of them run.
    pub n_queues_running: usize,
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
    /// By ring index.
    rings: Vec<(Arc<RingState>, LaneStats)>,
    /// Of the halves to the guest, and from it; those of halves that are gone stay.
    stats: Mutex<[Vec<SharedStats>; 2]>,
}

impl Board {
    pub fn new(rings: Vec<(Arc<RingState>, LaneStats)>) -> Self {
        assert_eq!(rings.len(), N_RINGS, "every ring there could be");
        Board { progress: Mutex::default(), rings, stats: Mutex::default() }
    }

    fn stats(&self) -> MutexGuard<'_, [Vec<SharedStats>; 2]> {
        self.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A further pair of halves counts there, to the guest and from it.
    pub fn add_halves(&self, stats: [SharedStats; 2]) {
        self.stats().iter_mut().zip(stats).for_each(|(all, one)| all.push(one));
    }

    /// Why a ring has stopped, if one has.
    pub fn fault(&self) -> Option<RingFault> {
        self.rings.iter().find_map(|(state, _)| state.fault())
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
        if let Some(fault) = self.fault() {
            return (
                PortState::Failed(fault.words().to_owned()),
                "a reset of the guest, or a reconnect".into(),
            );
        }
        // One queue pair of those the guest may use is enough.
        let any = |side: usize| self.rings.iter().skip(side).step_by(2).any(|(ring, _)| ring.is_running());
        if any(TO_GUEST) && any(FROM_GUEST) {
            return (PortState::Running, String::new());
        }
        let state = if progress.features.is_some() { PortState::Negotiated } else { PortState::Connected };
        (state, progress.missing)
    }

    fn ring_status(&self, ring: usize) -> RingStatus {
        let (state, stats) = &self.rings[ring];
        RingStatus {
            size: self.progress().sizes[ring],
            running: state.is_running(),
            packets: stats.packets.get(),
            calls: stats.calls.get(),
        }
    }

    fn queues(&self) -> Vec<QueueStatus> {
        let pair = |n| QueueStatus {
            to_guest: self.ring_status(2 * n + TO_GUEST),
            from_guest: self.ring_status(2 * n + FROM_GUEST),
        };
        let mut queues: Vec<_> = (0..MAX_PAIRS).map(pair).collect();
        let set_up = |queue: &QueueStatus| queue.to_guest.size.is_some() || queue.from_guest.size.is_some();
        queues.truncate(queues.iter().rposition(set_up).map_or(0, |last| last + 1));
        queues
    }

    fn sum(&self, side: usize) -> StatsSnapshot {
        let stats = self.stats();
        let mut halves = stats[side].iter().map(|stats| stats.snapshot());
        let mut sum = halves.next().unwrap_or_default();
        for half in halves {
            sum.packets += half.packets;
            sum.bytes += half.bytes;
            sum.bursts += half.bursts;
            for (reason, n) in half.drops {
                *sum.drops.entry(reason).or_default() += n;
            }
        }
        sum
    }

    pub fn status(&self, name: &str, path: &std::path::Path, role: Role) -> PortStatus {
        let (state, detail) = self.state();
        let progress = self.progress().clone();
        let fault = self.fault().map(|f| f.words().to_owned());
        let queues = self.queues();
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
            n_queues_running: queues.iter().filter(|q| q.to_guest.running && q.from_guest.running).count(),
            queues,
            to_guest: self.sum(TO_GUEST),
            from_guest: self.sum(FROM_GUEST),
        }
    }
}
