//! What all NIC drivers are made of. Reading order: [`regs`] and [`wait`] (registers), [`ring`] (descriptors), [`filters`],
//! [`counters`], [`watchdog`], [`interrupt`], [`fault`] (what queue halves and control half share), [`ids`] and
//! [`open`](open()) (from a PCI function to its driver). `model` has the parts of software models.

pub mod counters;
pub mod fault;
pub mod filters;
pub mod ids;
pub mod interrupt;
#[cfg(any(test, feature = "models"))]
pub mod model;
mod open;
pub mod regs;
pub mod ring;
pub mod tags;
pub mod wait;
pub mod watchdog;

pub use open::open;
