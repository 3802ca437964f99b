//! vhost-user ports: the socket, ring set-up, guest memory, and the rings themselves.
//!
//! Reading order: [`port`] (what a node opens), [`session`] and [`protocol`] (the control thread),
//! [`setup`] (messages gather), [`handover`] (a set-up becomes a running ring), [`memory`] and
//! [`vring`] (guest memory and the ring walk), [`from_guest`] and [`to_guest`] (what a core
//! polls), `lend` (how a frame gets from the one to the other without a buffer), [`wire`] (a socket as a NIC),
//! [`guest`] (a VM played in this process).

mod copy;
pub mod deal;
pub mod device;
pub mod dirty;
pub mod flow;
pub mod from_guest;
pub mod guest;
pub mod handover;
pub mod lanes;
mod lend;
pub mod memory;
pub mod net_hdr;
pub mod offer;
mod plain;
pub mod port;
pub mod protocol;
pub mod rarp;
pub mod session;
pub mod setup;
pub mod socket;
pub mod status;
mod sync;
pub mod to_guest;
pub mod vring;
pub mod wire;

pub use deal::Live;
pub use from_guest::FromGuest;
pub use port::{Halves, PortConfig, VhostError, VhostPort};
pub use status::{PortState, PortStatus, QueueStatus, RingStatus};
pub use to_guest::ToGuest;
pub use vring::MAX_PAIRS;
pub use wire::Wire;

/// Who listens on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// We connect; the frontend listens (OpenStack's way).
    Client,
    /// We listen; the frontend connects.
    Server,
}
