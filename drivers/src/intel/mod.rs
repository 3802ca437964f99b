//! What all families of Intel's NICs share: receive and transmit halves over a descriptor format ([`desc`], [`rx`],
//! [`tx`]), and the device around them ([`nic`]), which a family fills in with its [`Chip`](nic::Chip).
//!
//! Every descriptor ring of these cards works the same (82574 7.1.8, 82576 7.1.5, 82599 7.1.9): head and tail are
//! indices, the device owns what lies between, and equal ones mean an empty ring, so one descriptor always stays unused.

pub mod advanced;
pub mod common;
pub mod desc;
#[cfg(any(test, feature = "models"))]
pub mod model;
pub mod nic;
pub mod phy;
pub mod rx;
pub mod semaphore;
#[cfg(test)]
pub(crate) mod trials;
pub mod tx;

use crate::dma::{RxBuffers, TxBuffers};
use crate::nic::ring::DescRing;

/// What a queue half leaves behind when it is dropped: the device may use it until it is stopped.
pub enum Parked {
    /// A receiving half's ring and the buffers in it.
    Rx(DescRing, RxBuffers),
    /// A sending half's, with the frames that were not sent.
    Tx(DescRing, TxBuffers),
}

/// Shared by the halves of one start.
pub type Shared = crate::nic::fault::Shared<Parked>;
