//! Running rings: what a set-up becomes when it is complete, and what a polling half walks.

mod call;
pub mod chain;
mod fill;
pub mod layout;
mod pace;
mod packed;
mod packed_layout;
mod place;
mod split;
pub(crate) mod walk;

pub use call::CallFd;
pub(crate) use fill::{Plain, scatter, work_is_taken};
pub use packed::FIRST_BASE as FIRST_PACKED_BASE;
pub(crate) use place::{Place, Told};
pub use walk::{Ring, RingMemory};

use spp_drivers::offload::Offloads;

/// Index of the guest's first receive ring: we send to the guest through it. Even ones follow.
pub const TO_GUEST: usize = 0;
/// Index of the guest's first transmit ring: we receive from the guest through it. Odd ones follow.
pub const FROM_GUEST: usize = 1;
/// Most queue pairs of a port.
pub const MAX_PAIRS: usize = 16;
/// Rings of a port.
pub const N_RINGS: usize = 2 * MAX_PAIRS;

/// Why a ring can't go on until it is set up again. The guest lied about the ring itself, or its memory vanished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RingFault {
    /// The available index is more than a ring ahead of us, or behind (virtio 1.2, 2.7.13.3).
    IndexJump = 1,
    /// An available entry names a descriptor outside the table.
    HeadOutside = 2,
    /// A page of the guest's memory is gone: its file was truncated.
    MemoryGone = 3,
    /// Packed: a buffer id is not below the ring's size.
    IdOutside = 4,
    /// Packed: a chain goes on in a descriptor that is not available (virtio 1.2, 2.8.6).
    ChainCut = 5,
    /// Packed: a chain has no end, so that nobody knows where the next one starts.
    ChainEndless = 6,
}

impl RingFault {
    /// As stored in an atomic; 0 is none.
    pub fn from_code(code: u8) -> Option<RingFault> {
        match code {
            1 => Some(RingFault::IndexJump),
            2 => Some(RingFault::HeadOutside),
            3 => Some(RingFault::MemoryGone),
            4 => Some(RingFault::IdOutside),
            5 => Some(RingFault::ChainCut),
            6 => Some(RingFault::ChainEndless),
            _ => None,
        }
    }

    /// In words, for the operator.
    pub fn words(self) -> &'static str {
        match self {
            RingFault::IndexJump => "the guest's available index jumped by more than the ring's size",
            RingFault::HeadOutside => "the guest's available ring names a descriptor outside the ring",
            RingFault::MemoryGone => "the guest's memory vanished: its backing file was truncated",
            RingFault::IdOutside => {
                "the guest's packed ring has a buffer id that is not below the ring's size"
            }
            RingFault::ChainCut => {
                "a chain in the guest's packed ring goes on where no descriptor is available"
            }
            RingFault::ChainEndless => "a chain in the guest's packed ring has no end",
        }
    }
}

/// What was negotiated, as far as a ring cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// VIRTIO_F_IN_ORDER: one used element may stand for a run of chains that were only read.
    pub in_order: bool,
    /// VIRTIO_NET_F_MRG_RXBUF: one frame may fill several chains.
    pub mergeable: bool,
    /// VIRTIO_F_EVENT_IDX: calls are asked for by index.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// 12, or 10 for a legacy driver without mergeable buffers (virtio 1.2, 5.1.6.1).
    pub header_bytes: usize,
    /// Work the guest may leave undone in what it sends.
    pub from_guest: Offloads,
    /// Work that may be left undone in what the guest receives.
    pub to_guest: Offloads,
    /// Longest frame either way, in bytes, but for long frames that are to be cut (virtio 1.2, 5.1.4.1).
    pub max_frame_bytes: usize,
}
