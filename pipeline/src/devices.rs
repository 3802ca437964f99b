//! Opens whatever a configuration has in the place of a NIC. Control thread, at start.

use spp_drivers::dma::DmaSpace;
use spp_drivers::pci::{PciAddress, PciFunction};
use spp_drivers::port::{Device, PortError};
use spp_drivers::{soft, vfio, virtio};
use spp_vhost::Wire;

use crate::config::{DeviceAddr, DeviceKind};

/// Opens a device without starting it. PCI functions are mapped into `space`, which must not hold
/// packet memory yet where the IOMMU could object to its address.
pub fn open(address: &DeviceAddr, space: &DmaSpace) -> Result<Box<dyn Device>, PortError> {
    match address.kind() {
        DeviceKind::Pci(pci) => open_pci(pci, space),
        DeviceKind::VhostUser(path) => Ok(Box::new(Wire::open(path)?)),
        DeviceKind::Soft(spec) => soft::open(spec).unwrap_or_else(|| {
            Err(PortError::new(spec, "is not a software device", "write null:, gen:, tap: or pcap:"))
        }),
    }
}

fn open_pci(address: &PciAddress, space: &DmaSpace) -> Result<Box<dyn Device>, PortError> {
    let function = vfio::open(space, address)?;
    let mut ids = [0; 4];
    function.config_read(0, &mut ids)?;
    let (vendor, device) = (u16::from_le_bytes([ids[0], ids[1]]), u16::from_le_bytes([ids[2], ids[3]]));
    if virtio::net::matches(vendor, device) {
        return Ok(Box::new(virtio::net::open(function, space)?));
    }
    Err(PortError::new(
        address.to_string(),
        format!("no driver for PCI device {vendor:04x}:{device:04x}"),
        "spp drives modern virtio-net (1af4:1041)",
    ))
}
