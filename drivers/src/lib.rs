//! Packet memory, VFIO, the port trait and the NIC drivers behind it.
//!
//! The lowest layer of spp: nothing here knows of guests, components or etcd.
//! Reading order: [`dma`] (what a packet is), [`burst`] and [`port`] (how packets
//! move), [`spsc`] (how two cores share), then one NIC directory.

pub mod burst;
pub mod dma;
pub mod e1000;
pub mod end;
pub mod fault;
pub mod igb;
pub mod igbvf;
pub mod intel;
pub mod ixgbe;
pub mod lent;
pub mod mac;
pub mod nic;
pub mod offload;
pub mod pci;
pub mod port;
mod prefetch;
pub mod ring_port;
pub mod soft;
pub mod spsc;
pub mod stats;
mod sync;
pub mod tsc;
pub mod vfio;
pub mod virtio;
pub mod vlan;
pub mod vmxnet3;

pub use burst::{BURST, Burst};
pub use end::End;
pub use lent::LentFrame;
pub use mac::MacAddr;
pub use prefetch::prefetch;
