//! virtio 1.2: the driver side of the split ring, and virtio-net over modern PCI.
//!
//! Reading order: [`ring`] (shared with the built-in vhost-user guest), `caps`, [`regs`], [`desc`],
//! `init`, `rx`, `tx`, `ctrl`, `stats`, then [`net`], the device on the port trait. [`sim`] is the
//! same device in software.

mod caps;
mod ctrl;
pub mod desc;
mod init;
pub mod net;
pub mod regs;
pub mod ring;
mod rx;
#[cfg(any(test, feature = "models"))]
pub mod sim;
mod stats;
mod tx;

pub use stats::NetFault;
