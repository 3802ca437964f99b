// UNSAFETY: guest memory is mapped here and written by the backend at the same time.
//! The memory of a built-in guest: memfds mapped once here and once by the backend. Bytes move
//! in and out by copying through raw pointers; no reference to them is ever formed.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use spp_drivers::virtio::ring::RingMemory;
use vhost::VhostUserMemoryRegionInfo;

/// How the guest's memory is cut into regions, as frontends were seen to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLayout {
    /// One region, like virtio-user.
    OneRegion,
    /// Two regions of one file with a hole between, like a q35 machine of QEMU: from 0 to 640 KiB
    /// and from 768 KiB up, the second with an offset into the file.
    TwoRegionsOneFile,
    /// Two files, far apart in guest-physical space.
    TwoFiles,
}

/// q35: end of low memory and start of the rest.
const LOW_END: u64 = 0xa_0000;
const HIGH_START: u64 = 0xc_0000;
const PAGE: usize = 4096;

struct Region {
    gpa: u64,
    len: usize,
    file_offset: u64,
    file: usize,
    next: usize,
}

struct Mapping {
    map: MmapRaw,
    file: File,
}

// A mapping is touched through raw pointers by whoever holds a span of it; spans never overlap.
/// Guest memory that is cut into spans at set-up.
pub(super) struct GuestMemory {
    mappings: Arc<[Mapping]>,
    regions: Vec<Region>,
}

fn map_file(name: &str, len: usize) -> std::io::Result<Mapping> {
    let name = CString::new(name).unwrap_or_default();
    let file = File::from(memfd_create(&name, MemfdFlags::CLOEXEC)?);
    ftruncate(&file, len as u64)?;
    let map = MmapOptions::new().len(len).map_raw(&file)?;
    Ok(Mapping { map, file })
}

impl GuestMemory {
    /// Maps memory with room for `len` bytes of spans in each region but the low one.
    pub(super) fn new(layout: MemoryLayout, len: usize) -> std::io::Result<Self> {
        let len = len.next_multiple_of(PAGE);
        let region = |gpa, len, file_offset, file| Region { gpa, len, file_offset, file, next: 0 };
        let (files, regions) = match layout {
            MemoryLayout::OneRegion => (vec![len], vec![region(0x10_0000, len, 0, 0)]),
            MemoryLayout::TwoRegionsOneFile => {
                let low = region(0, LOW_END as usize, 0, 0);
                let high = region(HIGH_START, len, HIGH_START, 0);
                (vec![HIGH_START as usize + len], vec![low, high])
            }
            MemoryLayout::TwoFiles => {
                let (first, second) = (region(0, len, 0, 0), region(1 << 32, len, 0, 1));
                (vec![len, len], vec![first, second])
            }
        };
        let mappings = files.into_iter().map(|len| map_file("spp-guest", len));
        let mappings = mappings.collect::<std::io::Result<Arc<[Mapping]>>>()?;
        Ok(GuestMemory { mappings, regions })
    }

    /// Cuts a span of `len` bytes, aligned to cache lines, from region `prefer` or the next with room.
    pub(super) fn carve(&mut self, len: usize, prefer: usize) -> Option<Span> {
        let n = self.regions.len();
        let mut order = (0..n).map(|i| (prefer + i) % n);
        let pick = order.find(|&i| self.regions[i].len - self.regions[i].next >= len)?;
        let region = &mut self.regions[pick];
        let (gpa, offset) = (region.gpa + region.next as u64, region.file_offset as usize + region.next);
        region.next = (region.next + len.next_multiple_of(64)).min(region.len);
        let base =
            NonNull::new(self.mappings[region.file].map.as_mut_ptr()).expect("mmap never returns null");
        // SAFETY: offset + len lies within the file's mapping, since regions do and the span lies in its region.
        let base = unsafe { base.add(offset) };
        Some(Span { base, len, gpa, _mappings: self.mappings.clone() })
    }

    /// The memory table for SET_MEM_TABLE.
    pub(super) fn table(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let entry = |region: &Region| {
            let mapping = &self.mappings[region.file];
            VhostUserMemoryRegionInfo {
                guest_phys_addr: region.gpa,
                memory_size: region.len as u64,
                userspace_addr: mapping.map.as_ptr().addr() as u64 + region.file_offset,
                mmap_offset: region.file_offset,
                mmap_handle: mapping.file.as_raw_fd(),
            }
        };
        self.regions.iter().map(entry).collect()
    }
}

/// A piece of guest memory that no other span overlaps. Keeps the mapping alive.
pub(super) struct Span {
    base: NonNull<u8>,
    len: usize,
    gpa: u64,
    _mappings: Arc<[Mapping]>,
}

// SAFETY: the span is the only one over its bytes on our side, and the mapping lives as long as it.
unsafe impl Send for Span {}

// SAFETY: the bytes are mapped as long as the span lives and are reached by pointer only.
unsafe impl RingMemory for Span {
    fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }
    fn len_bytes(&self) -> usize {
        self.len
    }
    fn device_address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }
}

impl Span {
    /// Guest-physical address of byte `offset`.
    pub(super) fn gpa(&self, offset: usize) -> u64 {
        self.gpa + offset as u64
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    /// If they do not fit: offsets are our own.
    #[inline]
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len);
        assert!(fits, "write beyond the span");
        // SAFETY: in bounds, as just checked.
        let to = unsafe { self.base.add(offset) };
        // SAFETY: `to` is valid for the length, and private memory does not overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Copies `into.len()` bytes from `offset` out.
    ///
    /// # Panics
    /// If there are fewer: lengths from the ring are checked against the buffer by the ring.
    #[inline]
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        let fits = offset.checked_add(into.len()).is_some_and(|end| end <= self.len);
        assert!(fits, "read beyond the span");
        // SAFETY: in bounds, as just checked.
        let from = unsafe { self.base.add(offset) };
        // SAFETY: `from` is valid for the length, and private memory does not overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q35_layout_has_two_regions_of_one_file_with_a_hole() {
        let mut memory = GuestMemory::new(MemoryLayout::TwoRegionsOneFile, 1 << 20).unwrap();
        let table = memory.table();
        assert_eq!((table[0].guest_phys_addr, table[0].memory_size), (0, LOW_END));
        assert_eq!((table[1].guest_phys_addr, table[1].mmap_offset), (HIGH_START, HIGH_START));
        assert_eq!(table[0].mmap_handle, table[1].mmap_handle);
        let (low, high) = (memory.carve(0xa_0000, 0).unwrap(), memory.carve(10, 0).unwrap());
        assert_eq!((low.gpa(0), high.gpa(1)), (0, HIGH_START + 1), "a full region sends on to the next");
        let host = |gpa: u64| table[0].userspace_addr + gpa;
        assert_eq!(high.device_address(), host(HIGH_START), "frontend addresses run over the hole");
        assert!(memory.carve(2 << 20, 0).is_none());
    }

    #[test]
    fn spans_keep_their_bytes_apart() {
        let mut memory = GuestMemory::new(MemoryLayout::TwoFiles, 8192).unwrap();
        let (a, b) = (memory.carve(100, 0).unwrap(), memory.carve(100, 0).unwrap());
        a.write(0, &[1; 100]);
        b.write(0, &[2; 100]);
        let mut bytes = [0; 100];
        a.read(0, &mut bytes);
        assert_eq!(bytes, [1; 100]);
    }
}
