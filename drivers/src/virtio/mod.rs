//! virtio 1.2: the driver side of the split and the packed ring, and virtio-net over modern PCI.
//!
//! Reading order: [`ring`] (shared with the built-in vhost-user guest), `caps`, [`regs`], [`desc`], `features`,
//! `init`, `queue`, `rx`, `tx`, `command` and `ctrl` (the control queue), `counters`, then [`net`], the device on
//! the port trait. [`model`] is the same device in software.

mod caps;
mod command;
mod counters;
mod ctrl;
pub mod desc;
mod features;
mod init;
#[cfg(any(test, feature = "models"))]
pub mod model;
pub mod net;
mod queue;
pub mod regs;
pub mod ring;
mod rx;
mod tx;
