//! Real PCI functions through the kernel's VFIO (type1v2, group interface).
//!
//! [`open`] is called by the control thread; the function it returns stays there, the registers of
//! its BARs ([`VfioBar`]) go wherever the driver's queues go. One container serves all devices of
//! a [`DmaSpace`], so that packet memory is pinned once and has one address for all of them.
//!
//! Tear-down is in the types: dropping a [`VfioFunction`] switches bus mastering off, resets the
//! function and takes its interrupts away; the device is closed when its last BAR is unmapped;
//! the kernel drops the DMA mappings with the last device of the container.

mod bar;
mod container;
mod error;
mod function;
mod ioctl;

pub use bar::VfioBar;
pub use error::VfioError;
pub use function::VfioFunction;

use crate::dma::DmaSpace;
use crate::pci::PciAddress;
use crate::pci::sysfs::Sysfs;
use crate::port::PortError;

/// Opens a function that is bound to `vfio-pci`, and lets it reach the memory of `space`.
pub fn open(space: &DmaSpace, address: &PciAddress) -> Result<VfioFunction, PortError> {
    let sysfs = Sysfs::default();
    let opened = error::check(&sysfs, *address).and_then(|()| container::open(space, &sysfs, *address));
    match opened {
        Ok(device) => Ok(VfioFunction::new(device, &sysfs, *address)),
        Err(error) => Err(error.into_port_error(*address)),
    }
}
