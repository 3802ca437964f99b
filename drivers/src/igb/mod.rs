//! Intel 82576, I350, I210 and I211: 1 Gbit/s, up to 16 queue pairs, on [`crate::intel`].
//!
//! Reading order: [`regs`], [`desc`], [`init`], [`counters`]; `model` is the card in software.
//!
//! Fibre and backplane cards negotiate over the chip's own serial link; a PHY outside of the chip (SGMII) is left as the
//! EEPROM has set it up. Neither has been run on a card.

pub mod counters;
pub mod desc;
pub mod init;
#[cfg(any(test, feature = "models"))]
pub mod model;
pub mod regs;
#[cfg(test)]
mod tests;

use crate::dma::DmaSpace;
use crate::intel::nic::IntelNic;
use crate::pci::PciFunction;
use crate::port::PortError;
use init::Igb;

/// Which chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 82576.
    I82576,
    /// I350.
    I350,
    /// I210.
    I210,
    /// I211.
    I211,
}

impl Kind {
    /// Of a PCI device id.
    pub const fn of(device: u16) -> Kind {
        match device {
            0x1521..=0x1524 | 0x1546 => Kind::I350,
            0x1539 => Kind::I211,
            0x1533..=0x1538 | 0x157b | 0x157c => Kind::I210,
            _ => Kind::I82576,
        }
    }

    /// Queue pairs that RSS can spread over.
    pub const fn n_queue_pairs(self) -> u16 {
        match self {
            Kind::I82576 => 16,
            Kind::I350 => 8,
            Kind::I210 => 4,
            Kind::I211 => 2,
        }
    }

    /// Receive addresses.
    pub const fn n_exact_filters(self) -> usize {
        match self {
            Kind::I82576 => 24,
            Kind::I350 => 32,
            Kind::I210 | Kind::I211 => 16,
        }
    }

    /// Each queue has to be told to strip the FCS, besides the receiver.
    pub const fn strips_by_queue(self) -> bool {
        !matches!(self, Kind::I82576)
    }
}

/// A card of the family.
pub type Nic<F> = IntelNic<F, Igb<<F as PciFunction>::Bar>>;

/// Opens a card.
pub fn open<F: PciFunction>(function: F, space: &DmaSpace) -> Result<Nic<F>, PortError> {
    let mut id = [0; 2];
    function.config_read(2, &mut id)?;
    function.set_bus_master(true)?;
    let chip = Igb::new(&function, Kind::of(u16::from_le_bytes(id)))?;
    IntelNic::open(function, chip, space)
}
