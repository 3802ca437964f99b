//! Opens whatever a configuration has in the place of a NIC. Control thread, at start.

use spp_drivers::dma::DmaSpace;
use spp_drivers::port::{Device, PortError};
use spp_drivers::{nic, soft, vfio};
use spp_vhost::Wire;

use crate::config::{DeviceAddr, DeviceKind};

/// Opens a device without starting it. PCI functions are mapped into `space`, which must not hold
/// packet memory yet where the IOMMU could object to its address.
pub fn open(address: &DeviceAddr, space: &DmaSpace) -> Result<Box<dyn Device>, PortError> {
    match address.kind() {
        DeviceKind::Pci(pci) => nic::open(vfio::open(space, pci)?, space),
        DeviceKind::VhostUser(path) => Ok(Box::new(Wire::open(path)?)),
        DeviceKind::Soft(spec) => soft::open(spec).unwrap_or_else(|| {
            Err(PortError::new(spec, "is not a software device", "write null:, gen:, tap: or pcap:"))
        }),
    }
}
