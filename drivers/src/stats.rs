//! Counters with one writer, and the one list of reasons a packet can be dropped for.
//!
//! The polling core that owns a queue half is the only writer; anyone may read. A
//! counter is a relaxed load and a relaxed store, never a locked instruction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

/// A 64-bit counter with one writer at a time.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call this; a second writer would lose counts.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        let value = self.0.load(Ordering::Relaxed);
        self.0.store(value.wrapping_add(n), Ordering::Relaxed);
    }

    /// The value now, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a packet was dropped. Every drop anywhere in spp has exactly one of these.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// All reasons, in declaration order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant),*];

            /// The name operators see in status and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// No free buffer in the pool.
    NoBuffer = "no_buffer",
    /// The ring between two components was full.
    RingFull = "ring_full",
    /// The ring that brings a guest's frames to other guests of the same NIC was full.
    LocalRingFull = "local_ring_full",
    /// Frame shorter than an Ethernet header.
    Runt = "runt",
    /// Frame longer than this port can carry.
    Oversize = "oversize",
    /// No headroom or room for a VLAN tag.
    NoRoomForTag = "no_room_for_tag",
    /// VLAN id 4095 is reserved (802.1Q 9.6).
    ReservedVlan = "reserved_vlan",
    /// No classifier entry and no default for the destination.
    UnknownDestination = "unknown_destination",
    /// The port isn't plugged: nothing may pass from its guest.
    Unplugged = "unplugged",
    /// The guest's ring isn't running (nobody connected, or disabled).
    NotRunning = "not_running",
    /// The guest gave no receive buffers in time.
    GuestRingFull = "guest_ring_full",
    /// A guest's descriptor chain was malformed.
    BadChain = "bad_chain",
    /// A guest's descriptor pointed outside its memory.
    BadAddress = "bad_address",
    /// A guest asked for checksum or segmentation work that its frame does not allow, or that was not negotiated.
    BadOffload = "bad_offload",
    /// The link of the NIC is down.
    LinkDown = "link_down",
    /// The NIC did not take the frame in time.
    TxTimeout = "tx_timeout",
    /// The NIC reported an error with this frame.
    DeviceError = "device_error",
    /// The NIC wrote a length, id or flag that can't be true.
    DeviceGarbage = "device_garbage",
    /// A software sink that drops by design (`null:`).
    Sink = "sink",
    /// The kernel refused the frame (`tap:`), or a file could not be written (`pcap:`).
    OsError = "os_error",
    /// The component that held the frame panicked or was removed.
    ComponentGone = "component_gone",
}

/// Number of drop reasons.
pub const N_REASONS: usize = DropReason::ALL.len();

/// The counters of one queue half or one component edge, on cache lines of their own.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Packets moved.
    pub packets: Counter,
    /// Their bytes, without FCS.
    pub bytes: Counter,
    /// Bursts that moved at least one packet.
    pub bursts: Counter,
    /// Panics in the code of the half, caught by its core.
    pub panics: Counter,
    drops: [Counter; N_REASONS],
}

/// Shared handle: the polling core writes, status reads.
pub type SharedStats = Arc<CachePadded<QueueStats>>;

impl QueueStats {
    /// New counters at zero.
    pub fn shared() -> SharedStats {
        Arc::new(CachePadded::new(QueueStats::default()))
    }

    /// Counts one burst of `packets` with `bytes` in all; nothing if the burst was empty.
    #[inline(always)]
    pub fn moved(&self, packets: usize, bytes: u64) {
        if packets > 0 {
            self.packets.add(packets as u64);
            self.bytes.add(bytes);
            self.bursts.add(1);
        }
    }

    /// A burst that was counted in [`moved`](Self::moved) was counted a second time: takes that back.
    pub fn moved_again(&self, packets: usize, bytes: u64) {
        if packets > 0 {
            self.packets.add(0u64.wrapping_sub(packets as u64));
            self.bytes.add(0u64.wrapping_sub(bytes));
            self.bursts.add(u64::MAX);
        }
    }

    /// Counts `n` drops.
    #[inline(always)]
    pub fn dropped(&self, reason: DropReason, n: usize) {
        self.drops[reason as usize].add(n as u64);
    }

    /// Drops for one reason so far.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// A copy for status: drops with a count of zero are left out.
    pub fn snapshot(&self) -> StatsSnapshot {
        let drops = DropReason::ALL.iter().map(|&r| (r.name(), self.drops(r))).filter(|d| d.1 > 0);
        StatsSnapshot {
            packets: self.packets.get(),
            bytes: self.bytes.get(),
            bursts: self.bursts.get(),
            drops: drops.collect(),
        }
    }
}

/// Counters as read at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct StatsSnapshot {
    /// Packets moved.
    pub packets: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Non-empty bursts.
    pub bursts: u64,
    /// Drops by reason name.
    pub drops: std::collections::BTreeMap<&'static str, u64>,
}

impl StatsSnapshot {
    /// Drops for all reasons together.
    pub fn total_drops(&self) -> u64 {
        self.drops.values().sum()
    }
}
