//! Intel 82599, X540 and X550: 10 Gbit/s, up to 16 queue pairs, on [`crate::intel`].
//!
//! Reading order: [`regs`], [`desc`], [`init`], [`module`] (SFP+), [`counters`]; `model` is the 82599 in software,
//! which the Linux kernel's and DPDK's drivers have judged (`tests/lab_ixgbe.rs`).
//!
//! X540 and X550 differ in what is behind the MAC: their PHY is run by firmware, so nothing of the link is set up here,
//! only read. That has been run on no such card and no model that others judged.

pub mod counters;
pub mod desc;
pub mod init;
#[cfg(any(test, feature = "models"))]
pub mod model;
pub mod module;
pub mod regs;
#[cfg(test)]
mod tests;

use crate::dma::DmaSpace;
use crate::intel::nic::IntelNic;
use crate::pci::PciFunction;
use crate::port::PortError;
use init::{Ixgbe, Media};

/// Which chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 82599.
    I82599,
    /// X540.
    X540,
    /// X550.
    X550,
}

impl Kind {
    /// Size of the receive packet buffer.
    pub const fn rx_buffer_kib(self) -> u32 {
        match self {
            Kind::I82599 => 512,
            Kind::X540 | Kind::X550 => 384,
        }
    }
}

/// Chip and media of a PCI device id.
pub const fn card(device: u16) -> (Kind, Media) {
    match device {
        0x1528 | 0x1560 => (Kind::X540, Media::Other),
        0x1563 | 0x15d1 => (Kind::X550, Media::Other),
        0x10f7 | 0x1517 | 0x10f8 | 0x10fc => (Kind::I82599, Media::Backplane),
        0x10fb | 0x1557 | 0x154d | 0x154a => (Kind::I82599, Media::SfpPlus),
        _ => (Kind::I82599, Media::Other),
    }
}

/// A card of the family.
pub type Nic<F> = IntelNic<F, Ixgbe<<F as PciFunction>::Bar>>;

/// Opens a card.
pub fn open<F: PciFunction>(function: F, space: &DmaSpace) -> Result<Nic<F>, PortError> {
    let mut id = [0; 2];
    function.config_read(2, &mut id)?;
    function.set_bus_master(true)?;
    let (kind, media) = card(u16::from_le_bytes(id));
    let chip = Ixgbe::new(&function, kind, media)?;
    IntelNic::open(function, chip, space)
}
