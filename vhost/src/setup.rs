//! Ring set-up, gathered message by message in whatever order they come. Pure: knows no socket,
//! no memory and no core.
//!
//! QEMU enables rings before anything else exists; virtio-user sets features before memory
//! and kicks before it enables. So nothing here asks for an order: a ring runs as soon as what
//! it needs is there, and a message that changes a running ring restarts it.

use crate::net_hdr::{HEADER_BYTES, LEGACY_HEADER_BYTES};
use crate::vring::RingFeatures;
use crate::vring::layout::RingAddr;

/// Largest ring a driver may set (virtio 1.2, 2.7).
pub const MAX_RING_SIZE: u16 = 32_768;

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_NET_F_MRG_RXBUF.
pub const MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_F_ANY_LAYOUT.
pub const ANY_LAYOUT: u64 = 1 << 27;
/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Everything offered, by name. What is offered is implemented.
pub const OFFERED: [(u64, &str); 6] = [
    (MRG_RXBUF, "mrg_rxbuf"),
    (ANY_LAYOUT, "any_layout"),
    (INDIRECT_DESC, "indirect_desc"),
    (EVENT_IDX, "event_idx"),
    (PROTOCOL_FEATURES, "protocol_features"),
    (VERSION_1, "version_1"),
];

/// The offered bits.
pub fn offered() -> u64 {
    OFFERED.iter().map(|(bit, _)| bit).sum()
}

/// Names of the bits in `features`.
pub fn names(features: u64) -> Vec<&'static str> {
    OFFERED.iter().filter(|(bit, _)| features & bit != 0).map(|(_, name)| *name).collect()
}

/// What negotiated features mean for a ring.
pub fn ring_features(features: u64) -> RingFeatures {
    let mergeable = features & MRG_RXBUF != 0;
    let long = mergeable || features & VERSION_1 != 0;
    RingFeatures {
        mergeable,
        event_idx: features & EVENT_IDX != 0,
        indirect: features & INDIRECT_DESC != 0,
        header_bytes: if long { HEADER_BYTES } else { LEGACY_HEADER_BYTES },
    }
}

/// Why a set-up message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// SET_VRING_NUM with 0, no power of two, or too much.
    #[error("ring size {0} is not a power of two up to {MAX_RING_SIZE}")]
    Size(u32),
    /// SET_VRING_BASE beyond 16 bits.
    #[error("ring base {0} is no index of a split ring")]
    Base(u32),
    /// SET_FEATURES with bits that were never offered.
    #[error("features {0:#x} were never offered")]
    NotOffered(u64),
}

/// All that a ring needs in order to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlan {
    /// Descriptors.
    pub size: u16,
    /// Where it is.
    pub addr: RingAddr,
    /// Next available index.
    pub base: u16,
    /// Negotiated features.
    pub features: RingFeatures,
}

/// The set-up of one ring as far as it has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingSetup {
    size: Option<u16>,
    addr: Option<RingAddr>,
    base: u16,
    /// SET_VRING_KICK has come since the last stop: the driver is ready. We poll, so whether it
    /// brought a descriptor, and whether that ever fires, makes no difference.
    kicked: bool,
    enabled: bool,
}

impl RingSetup {
    /// SET_VRING_NUM.
    pub fn set_size(&mut self, num: u32) -> Result<(), SetupError> {
        let valid = |n: &u16| n.is_power_of_two() && *n <= MAX_RING_SIZE;
        let size = u16::try_from(num).ok().filter(valid).ok_or(SetupError::Size(num))?;
        self.size = Some(size);
        Ok(())
    }

    /// SET_VRING_ADDR.
    pub fn set_addr(&mut self, addr: RingAddr) {
        self.addr = Some(addr);
    }

    /// SET_VRING_BASE.
    pub fn set_base(&mut self, num: u32) -> Result<(), SetupError> {
        self.base = u16::try_from(num).map_err(|_| SetupError::Base(num))?;
        Ok(())
    }

    /// SET_VRING_KICK; again on a started ring changes nothing.
    pub fn kick(&mut self) {
        self.kicked = true;
    }

    /// SET_VRING_ENABLE.
    pub fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// GET_VRING_BASE: the ring stops, stays configured, and goes on after the next kick. Returns the
    /// next available index.
    pub fn stop(&mut self) -> u16 {
        self.kicked = false;
        self.base
    }

    /// A running ring came back at index `next_avail`: it goes on there, unless the frontend has set another
    /// base since it started from `started_at`.
    pub fn came_back(&mut self, started_at: u16, next_avail: u16) {
        if self.base == started_at {
            self.base = next_avail;
        }
    }

    /// Whether frames may pass: without protocol features rings start enabled.
    pub fn is_enabled(&self, features: u64) -> bool {
        self.enabled || features & PROTOCOL_FEATURES == 0
    }

    /// The size set, for status.
    pub fn size(&self) -> Option<u16> {
        self.size
    }

    /// The plan, when all is there.
    pub fn plan(&self, features: Option<u64>) -> Option<RingPlan> {
        let (features, size, addr) = (features?, self.size?, self.addr?);
        self.kicked.then_some(RingPlan { size, addr, base: self.base, features: ring_features(features) })
    }

    /// What is still missing, in words; `None` when nothing is.
    pub fn missing(&self) -> Option<&'static str> {
        match self {
            RingSetup { size: None, .. } => Some("its size"),
            RingSetup { addr: None, .. } => Some("its addresses"),
            RingSetup { kicked: false, .. } => Some("its start"),
            _ => None,
        }
    }
}
