//! What a built-in guest is told, and what can go wrong with it.

use std::path::PathBuf;
use std::time::Duration;

use super::memory::MemoryLayout;
use crate::Role;

/// In which order the frontend sends its set-up, as two real ones were measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageOrder {
    /// Like QEMU: call fds and ENABLE before features, memory and addresses exist; kick, then call.
    Qemu,
    /// Like DPDK's virtio-user: SET_OWNER first, memory, rings, KICK, and ENABLE last.
    VirtioUser,
}

/// How the guest lays out the frames it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxLayout {
    /// Header and frame in one descriptor.
    OneDescriptor,
    /// The header in a descriptor of its own.
    HeaderApart,
    /// Header and frame in an indirect table (falls back to `HeaderApart` when the backend has no INDIRECT_DESC).
    Indirect,
}

/// A built-in guest. Made by [`GuestConfig::new`], then changed by field.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// The socket.
    pub path: PathBuf,
    /// What the frontend does with it: it listens (`Server`) or connects (`Client`).
    pub role: Role,
    /// Entries of each ring: a power of two up to 32,768; packed, any number up to it.
    pub ring_size: u16,
    /// Offer MRG_RXBUF.
    pub mrg_rxbuf: bool,
    /// Longest frame a receive buffer takes without MRG_RXBUF; a buffer is one chain (or, with
    /// [`TxLayout::Indirect`], one table) of 2 KiB pieces.
    pub rx_frame_bytes: usize,
    /// Offer EVENT_IDX.
    pub event_idx: bool,
    /// Offer RING_PACKED.
    pub packed: bool,
    /// Offer IN_ORDER.
    pub in_order: bool,
    /// Offer checksum and segmentation offloads both ways. What the backend then leaves undone in a received frame says
    /// [`Guest::received_header`](super::Guest::received_header).
    pub offloads: bool,
    /// Queue pairs, all enabled; more than one needs MQ.
    pub n_pairs: u16,
    /// How frames are sent.
    pub tx_layout: TxLayout,
    /// Order of messages.
    pub order: MessageOrder,
    /// Cut of the memory.
    pub memory: MemoryLayout,
    /// Where all rings' indices start, told to the backend with SET_VRING_BASE. Packed rings start at this slot
    /// (modulo their size) with wrap counter 1.
    pub first_index: u16,
    /// Ask for calls on received frames, for [`Guest::wait_for_call`](super::Guest::wait_for_call).
    pub want_calls: bool,
    /// Longest wait for one answer of the backend.
    pub answer_deadline: Duration,
}

impl GuestConfig {
    /// A guest with rings of 256 entries and every feature, in QEMU's order with QEMU's memory.
    pub fn new(path: impl Into<PathBuf>, role: Role) -> Self {
        GuestConfig {
            path: path.into(),
            role,
            ring_size: 256,
            mrg_rxbuf: true,
            rx_frame_bytes: 2048,
            event_idx: true,
            packed: false,
            in_order: false,
            offloads: false,
            n_pairs: 1,
            tx_layout: TxLayout::OneDescriptor,
            order: MessageOrder::Qemu,
            memory: MemoryLayout::TwoRegionsOneFile,
            first_index: 0,
            want_calls: false,
            answer_deadline: Duration::from_secs(5),
        }
    }
}

/// Why a guest can't be attached, or lost its backend.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The socket could not be opened or used.
    #[error("socket {path:?}: {source}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// No backend in time.
    #[error("no backend at {path:?} within {waited:?}")]
    NoBackend {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// Guest memory could not be had.
    #[error("no memory for the guest: {0}")]
    Memory(std::io::Error),
    /// An eventfd could not be had.
    #[error("no eventfd: {0}")]
    EventFd(std::io::Error),
    /// The backend answered wrongly or not at all.
    #[error("vhost-user {request}: {source}")]
    Protocol {
        /// The message.
        request: &'static str,
        /// What happened.
        source: vhost::Error,
    },
    /// A feature the guest can't do without is not offered.
    #[error("the backend offers {offered:#x}, without {missing}")]
    Feature {
        /// What it offers.
        offered: u64,
        /// What is missing.
        missing: &'static str,
    },
    /// The configuration can't be met.
    #[error("{0}")]
    Config(String),
}
