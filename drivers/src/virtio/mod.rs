//! virtio 1.2: the driver side of the split ring, and virtio-net over modern PCI.
//!
//! Reading order: [`ring`] (shared with the built-in vhost-user guest), `regs`, `desc`,
//! `init`, `rx`, `tx`, `stats`, then [`net`], the device on the port trait. [`sim`] is the
//! same device in software.

pub mod desc;
pub mod ring;
