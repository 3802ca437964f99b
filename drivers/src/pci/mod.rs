//! A PCI function as a driver sees it: config space, BARs, bus mastering, interrupts.
//!
//! The drivers are generic over [`PciFunction`]: kernel VFIO implements it for real devices, each
//! driver's software model implements it for tests, and both run the same driver code.

mod address;
pub(crate) mod bind;
pub mod sysfs;
#[cfg(test)]
pub(crate) mod testing;

pub use address::{NotAnAddress, PciAddress};

use std::os::fd::OwnedFd;

use crate::port::PortError;

/// Registers of one BAR. Offsets and widths are checked: an access outside the BAR is our own bug
/// and is asserted at set-up by the register tables; implementations answer it with all-ones.
/// An all-ones answer from a device that never has it means the device is gone.
pub trait Registers: Send + Sync + Clone + 'static {
    /// Length of the BAR in bytes.
    fn len_bytes(&self) -> usize;
    /// 8-bit read.
    fn read8(&self, offset: usize) -> u8;
    /// 16-bit read.
    fn read16(&self, offset: usize) -> u16;
    /// 32-bit read.
    fn read32(&self, offset: usize) -> u32;
    /// 8-bit write.
    fn write8(&self, offset: usize, value: u8);
    /// 16-bit write.
    fn write16(&self, offset: usize, value: u16);
    /// 32-bit write. Earlier writes to DMA memory are visible to the device before it
    /// (drivers put a release fence before a doorbell).
    fn write32(&self, offset: usize, value: u32);
}

/// One PCI function, opened exclusively. Dropping it stops DMA (bus mastering off), resets the
/// function where it can, and releases it, in that order.
pub trait PciFunction: Send {
    /// Its register blocks.
    type Bar: Registers;

    /// Full address, `0000:00:04.0`.
    fn address(&self) -> &str;
    /// Reads `buf.len()` bytes of config space.
    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), PortError>;
    /// Writes config space.
    fn config_write(&self, offset: u16, bytes: &[u8]) -> Result<(), PortError>;
    /// Maps a BAR (0 to 5).
    fn map_bar(&self, index: u8) -> Result<Self::Bar, PortError>;
    /// On: memory decoding and DMA. Off: no DMA; the registers still answer.
    fn set_bus_master(&self, on: bool) -> Result<(), PortError>;
    /// Function-level reset where the device has one; `Ok(false)` where it has none.
    fn reset(&self) -> Result<bool, PortError>;
    /// Enables `n` MSI-X vectors (or fewer, where the device has fewer), each signalling the eventfd at its index.
    fn enable_msix(&self, n: usize) -> Result<Vec<OwnedFd>, PortError>;
    /// NUMA node, where the kernel knows it.
    fn numa_node(&self) -> Option<u32>;
    /// True once the kernel wants the device back (it is being unplugged or unbound): close it soon.
    fn removal_requested(&self) -> bool {
        false
    }
}
