//! Virtual functions of Intel's 82576 and I350, on [`crate::intel`]: queues of their own, and for everything else a mailbox
//! to the driver of the physical function, which another program owns (Linux, mostly).
//!
//! Reading order: [`regs`], [`desc`], [`mailbox`], [`init`], [`counters`]; `model` is the function in software, with the
//! other side of its mailbox.

pub mod counters;
pub mod desc;
pub mod init;
pub mod mailbox;
#[cfg(any(test, feature = "models"))]
pub mod model;
pub mod regs;
#[cfg(test)]
mod tests;

use crate::dma::DmaSpace;
use crate::intel::nic::IntelNic;
use crate::pci::PciFunction;
use crate::port::PortError;
use init::Igbvf;

/// PCI device id of the I350's.
pub const I350_VF: u16 = 0x1520;

/// A virtual function.
pub type Nic<F, const I350: bool> = IntelNic<F, Igbvf<I350, <F as PciFunction>::Bar>>;

fn open<F: PciFunction, const I350: bool>(function: F, space: &DmaSpace) -> Result<Nic<F, I350>, PortError> {
    function.set_bus_master(true)?;
    let chip = Igbvf::new(&function)?;
    IntelNic::open(function, chip, space)
}

/// Opens one of an 82576.
pub fn open_82576<F: PciFunction>(function: F, space: &DmaSpace) -> Result<Nic<F, false>, PortError> {
    open(function, space)
}

/// Opens one of an I350.
pub fn open_i350<F: PciFunction>(function: F, space: &DmaSpace) -> Result<Nic<F, true>, PortError> {
    open(function, space)
}
