//! From a PCI function to the driver that serves it.

use super::ids::{self, Family};
use crate::dma::DmaSpace;
use crate::pci::PciFunction;
use crate::port::{Device, PortError};
use crate::{e1000, igb, igbvf, ixgbe, virtio, vmxnet3};

/// Opens the device of a function by its PCI id, without starting it. No DMA yet.
pub fn open<F: PciFunction + 'static>(function: F, space: &DmaSpace) -> Result<Box<dyn Device>, PortError> {
    let mut id = [0; 4];
    function.config_read(0, &mut id)?;
    let (vendor, device) = (u16::from_le_bytes([id[0], id[1]]), u16::from_le_bytes([id[2], id[3]]));
    let Some(family) = ids::family(vendor, device) else {
        return Err(PortError::new(
            function.address(),
            format!("no driver for PCI device {vendor:04x}:{device:04x}"),
            "docs/drivers.md lists the cards spp drives",
        ));
    };
    Ok(match family {
        Family::VirtioNet => Box::new(virtio::net::open(function, space)?),
        Family::E1000 => Box::new(e1000::open_8254x(function, space)?),
        Family::E1000e => Box::new(e1000::open_82574(function, space)?),
        Family::Igb => Box::new(igb::open(function, space)?),
        Family::Igbvf if device == igbvf::I350_VF => Box::new(igbvf::open_i350(function, space)?),
        Family::Igbvf => Box::new(igbvf::open_82576(function, space)?),
        Family::Ixgbe => Box::new(ixgbe::open(function, space)?),
        Family::Vmxnet3 => Box::new(vmxnet3::open(function, space)?),
    })
}
