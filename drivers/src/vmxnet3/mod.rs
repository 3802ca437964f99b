//! vmxnet3, the paravirtual NIC of VMware's hosts. It has no public datasheet: names and layouts are those of the BSD-licensed
//! definitions that DPDK and FreeBSD have (`vmxnet3_defs.h`, `upt1_defs.h`).
//!
//! A queue is two or three rings in memory: command rings, on which the driver posts buffers, and a completion ring, on
//! which the device says what became of them. Whose a descriptor is says its generation bit, which changes its meaning with
//! every lap. All configuration is in one area of memory that the device reads when it is told to.
//!
//! Reading order: [`regs`], [`desc`], [`config`] (the configuration area, pure), [`area`] (memory that both sides use),
//! [`ring`], [`init`], [`rx`], [`tx`], [`counters`], then [`nic`], the device on the port trait. [`model`] is the same
//! device in software.

mod area;
mod config;
mod counters;
mod desc;
mod init;
#[cfg(any(test, feature = "models"))]
pub mod model;
mod nic;
mod regs;
mod ring;
mod rx;
#[cfg(test)]
mod tests;
mod tx;

pub use nic::{Vmxnet3, open};

use crate::dma::PacketBuf;
use crate::nic::fault::Side;
use ring::{CommandRing, CompletionRing};

/// What a queue half leaves behind when it is dropped: the device may use it until it is stopped.
struct Parked {
    side: Side,
    _rings: (Vec<CommandRing>, CompletionRing),
    buffers: Vec<Box<[Option<PacketBuf>]>>,
}

/// Shared by the halves of one start.
type Shared = crate::nic::fault::Shared<Parked>;
