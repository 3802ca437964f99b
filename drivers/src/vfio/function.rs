// UNSAFETY: takes over the fds of eventfds.
//! One PCI function, opened exclusively. Used by the control thread only.

use std::cell::Cell;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, pread, pwrite};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

use super::bar::VfioBar;
use super::container::Opened;
use super::ioctl;
use crate::pci::sysfs::Sysfs;
use crate::pci::{PciAddress, PciFunction};
use crate::port::PortError;

/// Command register (PCI 3.0, 6.2.2).
const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// A function under VFIO. Dropping it ends DMA: bus mastering off, reset, interrupts off.
pub struct VfioFunction {
    address: String,
    numa_node: Option<u32>,
    msix_enabled: Cell<bool>,
    /// Signalled when the kernel wants the device back.
    removal: Option<EventFd>,
    removal_seen: Cell<bool>,
    device: Arc<Opened>,
}

fn eventfd() -> std::io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

impl VfioFunction {
    pub(super) fn new(device: Arc<Opened>, sysfs: &Sysfs, address: PciAddress) -> Self {
        let listen = || {
            let event = eventfd().ok()?;
            device.vfio().enable_irq(VFIO_PCI_REQ_IRQ_INDEX, vec![&event]).ok()?;
            Some(event)
        };
        let removal = listen();
        VfioFunction {
            address: address.to_string(),
            numa_node: sysfs.numa_node(address),
            msix_enabled: Cell::new(false),
            removal,
            removal_seen: Cell::new(false),
            device,
        }
    }

    fn error(&self, what: impl Into<String>) -> PortError {
        PortError::new(&self.address, what, "")
    }

    /// Place in the device's file of `len` bytes of config space.
    fn config_place(&self, offset: u16, len: usize) -> Result<u64, PortError> {
        let vfio = self.device.vfio();
        let size = vfio.get_region_size(VFIO_PCI_CONFIG_REGION_INDEX);
        let offset = u64::from(offset);
        if offset + len as u64 > size {
            return Err(self.error(format!("config space ends at {size:#x}, before {offset:#x}+{len}")));
        }
        Ok(vfio.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX) + offset)
    }

    fn config_error(&self, what: &str, offset: u16, errno: Errno) -> PortError {
        self.error(format!("config space could not be {what} at {offset:#x}: {errno}")).caused_by(errno)
    }

    fn command(&self) -> Result<u16, PortError> {
        let mut bytes = [0; 2];
        self.config_read(COMMAND, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn disable_msix(&self) {
        if self.msix_enabled.replace(false)
            && let Err(error) = self.device.vfio().disable_irq(VFIO_PCI_MSIX_IRQ_INDEX)
        {
            tracing::warn!(device = self.address, %error, "MSI-X could not be disabled");
        }
    }
}

impl PciFunction for VfioFunction {
    type Bar = VfioBar;

    fn address(&self) -> &str {
        &self.address
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), PortError> {
        let place = self.config_place(offset, buf.len())?;
        match pread(self.device.fd(), &mut *buf, place) {
            Ok(n) if n == buf.len() => Ok(()),
            Ok(_) => Err(self.config_error("read", offset, Errno::IO)),
            Err(errno) => Err(self.config_error("read", offset, errno)),
        }
    }

    fn config_write(&self, offset: u16, bytes: &[u8]) -> Result<(), PortError> {
        let place = self.config_place(offset, bytes.len())?;
        match pwrite(self.device.fd(), bytes, place) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err(self.config_error("written", offset, Errno::IO)),
            Err(errno) => Err(self.config_error("written", offset, errno)),
        }
    }

    fn map_bar(&self, index: u8) -> Result<VfioBar, PortError> {
        VfioBar::map(self.device.clone(), &self.address, index)
    }

    fn set_bus_master(&self, on: bool) -> Result<(), PortError> {
        let old = self.command()?;
        let new = if on {
            old | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE
        } else {
            old & !COMMAND_BUS_MASTER
        };
        self.config_write(COMMAND, &new.to_le_bytes())?;
        let now = self.command()?;
        if now & COMMAND_BUS_MASTER == new & COMMAND_BUS_MASTER && now != u16::MAX {
            return Ok(());
        }
        Err(self.error(format!(
            "the command register reads {now:#06x} after {new:#06x} was written: the device is gone"
        )))
    }

    fn reset(&self) -> Result<bool, PortError> {
        let error = |e: std::io::Error| self.error(format!("reset failed: {e}")).caused_by(e);
        if !ioctl::can_reset(self.device.fd()).map_err(error)? {
            return Ok(false);
        }
        ioctl::reset(self.device.fd()).map_err(error)?;
        Ok(true)
    }

    fn enable_msix(&self, n: usize) -> Result<Vec<OwnedFd>, PortError> {
        self.disable_msix();
        let vfio = self.device.vfio();
        let has = vfio.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).map_or(0, |irq| irq.count as usize);
        let events: Vec<EventFd> = (0..n.min(has))
            .map(|_| eventfd())
            .collect::<Result<_, _>>()
            .map_err(|e| self.error(format!("no eventfd for an interrupt: {e}")).caused_by(e))?;
        if events.is_empty() {
            return Ok(Vec::new());
        }
        vfio.enable_irq(VFIO_PCI_MSIX_IRQ_INDEX, events.iter().collect())
            .map_err(|e| self.error(format!("MSI-X could not be enabled: {e}")).caused_by(e))?;
        self.msix_enabled.set(true);
        // SAFETY: into_raw_fd gives up ownership of an open fd, which OwnedFd takes over.
        Ok(events.into_iter().map(|event| unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }).collect())
    }

    fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    fn removal_requested(&self) -> bool {
        if !self.removal_seen.get() && self.removal.as_ref().is_some_and(|event| event.read().is_ok()) {
            self.removal_seen.set(true);
        }
        self.removal_seen.get()
    }
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        // In this order: no DMA, then nothing left of what the device was told to do, then no interrupts.
        // BARs and the device follow with their last holder.
        let steps = [self.set_bus_master(false), self.reset().map(drop)];
        for error in steps.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "on closing a device");
        }
        self.disable_msix();
    }
}
