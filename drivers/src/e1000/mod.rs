//! The e1000 family: 8254x (PCI, one queue pair) and 82574 (PCI Express, two), on [`crate::intel`].
//!
//! Reading order: [`regs`], [`desc`], [`init`], [`counters`]; `model` is the card in software.

pub mod counters;
pub mod desc;
pub mod init;
#[cfg(any(test, feature = "models"))]
pub mod model;
pub mod regs;

use crate::dma::DmaSpace;
use crate::intel::nic::IntelNic;
use crate::pci::PciFunction;
use crate::port::PortError;
use init::{E1000, K8254x, K82574, Kind};

/// A card of the family.
pub type Nic<F, K> = IntelNic<F, E1000<K, <F as PciFunction>::Bar>>;

fn open<F: PciFunction, K: Kind>(function: F, space: &DmaSpace) -> Result<Nic<F, K>, PortError> {
    function.set_bus_master(true)?;
    let chip = E1000::new(&function)?;
    IntelNic::open(function, chip, space)
}

/// Opens an 82540 or 82545.
pub fn open_8254x<F: PciFunction>(function: F, space: &DmaSpace) -> Result<Nic<F, K8254x>, PortError> {
    open(function, space)
}

/// Opens an 82574.
pub fn open_82574<F: PciFunction>(function: F, space: &DmaSpace) -> Result<Nic<F, K82574>, PortError> {
    open(function, space)
}
