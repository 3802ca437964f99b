// UNSAFETY: volatile access to the registers of a device.
//! A BAR: mapped where the kernel allows it, through the device's file elsewhere.

use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use rustix::io::{pread, pwrite};
use vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_MMAP;
use vfio_ioctls::{VfioRegionInfoCap, VfioRegionSparseMmapArea};

use super::container::Opened;
use crate::fault::{self, Fill, Guard};
use crate::pci::Registers;
use crate::port::PortError;

/// A mapped part of the BAR. The guard goes before the mapping.
struct Window {
    start: usize,
    guard: Guard,
    map: MmapRaw,
}

struct Inner {
    /// Unmapped before the device is closed.
    windows: Vec<Window>,
    len: usize,
    /// Where the BAR starts in the device's file.
    file_offset: u64,
    device: Arc<Opened>,
}

/// Registers of one BAR. Clones share the mapping; any thread may use them. After the function
/// is dropped registers still answer, but the device has been reset and does no DMA.
///
/// When the device is unplugged the mapping reads as all-ones from then on.
#[derive(Clone)]
pub struct VfioBar(Arc<Inner>);

/// Parts of a BAR of `len` bytes that may be mapped: what the kernel lists, or all of it.
fn mappable(len: u64, flags: u32, caps: &[VfioRegionInfoCap]) -> Vec<VfioRegionSparseMmapArea> {
    if flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
        return Vec::new();
    }
    let sparse = caps.iter().find_map(|cap| match cap {
        VfioRegionInfoCap::SparseMmap(sparse) => Some(sparse.areas.clone()),
        _ => None,
    });
    let areas = sparse.unwrap_or_else(|| vec![VfioRegionSparseMmapArea { offset: 0, size: len }]);
    let inside =
        |a: &VfioRegionSparseMmapArea| a.size > 0 && a.offset.checked_add(a.size).is_some_and(|e| e <= len);
    areas.into_iter().filter(inside).collect()
}

impl VfioBar {
    /// Maps BAR `index` (0 to 5).
    pub(super) fn map(device: Arc<Opened>, address: &str, index: u8) -> Result<Self, PortError> {
        let error = |what: String| PortError::new(address, what, "");
        if index > 5 {
            return Err(error(format!("BAR {index}: PCI functions have 0 to 5")));
        }
        let (vfio, index) = (device.vfio(), u32::from(index));
        let (len, flags) = (vfio.get_region_size(index), vfio.get_region_flags(index));
        let file_offset = vfio.get_region_offset(index);
        if len == 0 {
            return Err(error(format!("BAR {index}: the device has none")));
        }
        let areas = mappable(len, flags, &vfio.get_region_caps(index));
        let windows = areas.into_iter().map(|area| {
            let map = MmapOptions::new()
                .offset(file_offset + area.offset)
                .len(area.size as usize)
                .map_raw(std::os::fd::AsRawFd::as_raw_fd(vfio))
                .map_err(|e| error(format!("BAR {index} can't be mapped: {e}")).caused_by(e))?;
            let start = std::ptr::NonNull::new(map.as_mut_ptr()).expect("mmap never returns null");
            let guard = fault::guard(start, map.len(), Fill::Ones)
                .map_err(|e| error(format!("BAR {index} can't be guarded: {e}")).caused_by(e))?;
            Ok(Window { start: area.offset as usize, guard, map })
        });
        let windows = windows.collect::<Result<_, PortError>>()?;
        Ok(VfioBar(Arc::new(Inner { windows, len: len as usize, file_offset, device })))
    }

    /// True once a mapped register page vanished: the device is gone, or its memory decoding was off.
    /// A new mapping is needed.
    pub fn is_poisoned(&self) -> bool {
        self.0.windows.iter().any(|window| window.guard.is_poisoned())
    }

    /// Whether the access lies in the BAR, on its natural boundary.
    #[inline(always)]
    fn holds(&self, offset: usize, width: usize) -> bool {
        offset.is_multiple_of(width) && offset < self.0.len && self.0.len - offset >= width
    }

    /// The mapped place of an access that [`holds`](Self::holds); `None` where only the file reaches.
    #[inline(always)]
    fn mapped(&self, offset: usize, width: usize) -> Option<*mut u8> {
        self.0.windows.iter().find_map(|window| {
            let inside = offset.checked_sub(window.start)?;
            let fits = inside < window.map.len() && window.map.len() - inside >= width;
            fits.then(|| window.map.as_mut_ptr().wrapping_add(inside))
        })
    }

    #[cold]
    fn read_file(&self, offset: usize, buf: &mut [u8]) {
        let at = self.0.file_offset + offset as u64;
        if !matches!(pread(self.0.device.fd(), &mut *buf, at), Ok(n) if n == buf.len()) {
            buf.fill(0xff); // as a device that is gone answers
        }
    }

    #[cold]
    fn write_file(&self, offset: usize, bytes: &[u8]) {
        // A device that is gone takes no writes: its driver finds out by reading.
        let _ = pwrite(self.0.device.fd(), bytes, self.0.file_offset + offset as u64);
    }
}

macro_rules! access {
    ($read:ident, $write:ident, $word:ty) => {
        #[inline(always)]
        fn $read(&self, offset: usize) -> $word {
            const WIDTH: usize = size_of::<$word>();
            if !self.holds(offset, WIDTH) {
                debug_assert!(false, "read at {offset:#x} outside of the BAR");
                return <$word>::MAX;
            }
            match self.mapped(offset, WIDTH) {
                // SAFETY: mapped() checked the range, holds() the alignment; the mapping lives as long as self.
                Some(place) => <$word>::from_le(unsafe { place.cast::<$word>().read_volatile() }),
                None => {
                    let mut bytes = [0; WIDTH];
                    self.read_file(offset, &mut bytes);
                    <$word>::from_le_bytes(bytes)
                }
            }
        }

        #[inline(always)]
        fn $write(&self, offset: usize, value: $word) {
            const WIDTH: usize = size_of::<$word>();
            if !self.holds(offset, WIDTH) {
                debug_assert!(false, "write at {offset:#x} outside of the BAR");
                return;
            }
            match self.mapped(offset, WIDTH) {
                // SAFETY: as for reading.
                Some(place) => unsafe { place.cast::<$word>().write_volatile(value.to_le()) },
                None => self.write_file(offset, &value.to_le_bytes()),
            }
        }
    };
}

impl Registers for VfioBar {
    fn len_bytes(&self) -> usize {
        self.0.len
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_ioctls::VfioRegionInfoCapSparseMmap;

    fn area(offset: u64, size: u64) -> VfioRegionSparseMmapArea {
        VfioRegionSparseMmapArea { offset, size }
    }

    #[test]
    fn whole_bar_is_mapped_unless_the_kernel_lists_parts() {
        let msix_mappable = [VfioRegionInfoCap::MsixMappable];
        assert_eq!(mappable(0x4000, VFIO_REGION_INFO_FLAG_MMAP, &msix_mappable), [area(0, 0x4000)]);
        assert_eq!(mappable(0x4000, 0, &msix_mappable), [], "I/O ports are never mapped");
    }

    #[test]
    fn parts_outside_of_the_bar_are_not_mapped() {
        let areas = vec![
            area(0, 0x1000),
            area(0x3000, 0),
            area(0x3000, 0x2000),
            area(u64::MAX, 2),
            area(0x2000, 0x2000),
        ];
        let caps = [VfioRegionInfoCap::SparseMmap(VfioRegionInfoCapSparseMmap { areas })];
        let mapped = mappable(0x4000, VFIO_REGION_INFO_FLAG_MMAP, &caps);
        assert_eq!(mapped, [area(0, 0x1000), area(0x2000, 0x2000)]);
    }
}
