// UNSAFETY: hands memory to devices by its address.
//! The one VFIO container of a [`DmaSpace`], and the devices in it.
//!
//! The kernel sets up an IOMMU with the first group that enters a container and drops all
//! mappings with the last one that leaves. So the container is attached to the space after the first
//! device has been opened, and taken out of it when the last has been closed. Opening and closing are serialised.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vfio_ioctls::{VfioContainer, VfioDevice};

use super::error::{VfioError, explain, map_reason};
use super::ioctl;
use crate::dma::{DmaError, DmaMapper, DmaSpace, Iova, IovaRange};
use crate::pci::PciAddress;
use crate::pci::sysfs::Sysfs;

/// The container as the space's mapper.
pub(super) struct Container {
    vfio: Arc<VfioContainer>,
    /// Devices open in it; changed under [`opening`] only.
    n_devices: AtomicUsize,
}

/// Held while a device enters or leaves a container.
fn opening() -> MutexGuard<'static, ()> {
    static OPENING: Mutex<()> = Mutex::new(());
    OPENING.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Container {
    fn ranges(&self) -> std::io::Result<Vec<IovaRange>> {
        // SAFETY: the container's fd stays open as long as self.vfio, which outlives this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(self.vfio.as_raw_fd()) };
        // Kernels that don't tell have the ranges every x86 IOMMU has.
        let any_x86 = || {
            let low = IovaRange { first: 0, last: 0xfedf_ffff };
            vec![low, IovaRange { first: 0xfef0_0000, last: (1 << 39) - 1 }]
        };
        Ok(ioctl::iova_ranges(fd)?.unwrap_or_else(any_x86))
    }
}

impl DmaMapper for Container {
    fn usable_ranges(&self) -> Vec<IovaRange> {
        self.ranges().unwrap_or_else(|error| {
            tracing::warn!(%error, "the IOMMU does not tell which addresses it maps");
            Vec::new()
        })
    }

    fn map(&self, iova: Iova, host: NonNull<u8>, len: usize) -> Result<(), DmaError> {
        // SAFETY: the memory belongs to a Region of the space, mapped until DmaSpace calls unmap (or the
        // container is closed). A device is told an address in it only by who owns the bytes there.
        let mapped = unsafe { self.vfio.vfio_dma_map(iova.0, len, host.as_ptr()) };
        mapped.map_err(|error| DmaError::Map { iova, len_bytes: len, reason: map_reason(&error) })
    }

    fn unmap(&self, iova: Iova, len: usize) {
        if let Err(error) = self.vfio.vfio_dma_unmap(iova.0, len) {
            tracing::warn!(%error, ?iova, len, "memory could not be taken from the IOMMU");
        }
    }
}

/// A device open in its container. Shared by the function and its BARs: closed with the last of them.
pub(super) struct Opened {
    /// `None` only while being dropped.
    vfio: Option<VfioDevice>,
    container: Arc<Container>,
    space: DmaSpace,
}

/// Opens a device in the space's container, which comes into being with its first device.
pub(super) fn open(space: &DmaSpace, sysfs: &Sysfs, address: PciAddress) -> Result<Arc<Opened>, VfioError> {
    let _serial = opening();
    let explain = |error| explain(error, sysfs, address);
    let container = match space.mapper::<Container>() {
        Some(container) => container,
        None => {
            let vfio = Arc::new(VfioContainer::new(None).map_err(explain)?);
            Arc::new(Container { vfio, n_devices: AtomicUsize::new(0) })
        }
    };
    let dir = sysfs.device_dir(address);
    let vfio = open_device(&dir, &container).map_err(explain)?;
    let is_first = container.n_devices.fetch_add(1, Ordering::Relaxed) == 0;
    // From here on, dropping `opened` undoes everything; not before the lock is free again, though.
    let opened = Opened { vfio: Some(vfio), container: container.clone(), space: space.clone() };
    let placed = container
        .ranges()
        .map_err(|source| VfioError::Os { what: "the IOMMU does not tell which addresses it maps", source })
        .and_then(|ranges| {
            let placed = if is_first { space.attach(container) } else { space.narrow(&ranges) };
            placed.map_err(VfioError::Dma)
        });
    drop(_serial);
    placed.map(|()| Arc::new(opened))
}

fn open_device(dir: &Path, container: &Container) -> vfio_ioctls::Result<VfioDevice> {
    VfioDevice::new(dir, container.vfio.clone(), false)
}

impl Opened {
    pub(super) fn vfio(&self) -> &VfioDevice {
        self.vfio.as_ref().expect("only drop takes it")
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the device's fd stays open as long as self.vfio, which outlives this borrow.
        unsafe { BorrowedFd::borrow_raw(self.vfio().as_raw_fd()) }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let _serial = opening();
        // VfioDevice looks its group up in sysfs when it is dropped and panics if it isn't there,
        // which happens when the device is being unplugged. The fds are closed nevertheless.
        let device = self.vfio.take();
        if std::panic::catch_unwind(AssertUnwindSafe(|| drop(device))).is_err() {
            tracing::warn!("a device vanished while it was being closed");
        }
        if self.container.n_devices.fetch_sub(1, Ordering::Relaxed) == 1 {
            let mapper: Arc<dyn DmaMapper> = self.container.clone();
            self.space.detach(&mapper);
        }
    }
}
