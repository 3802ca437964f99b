// UNSAFETY: translates addresses chosen by a guest into pointers to its mapped memory.
//! Guest memory: an immutable map from guest addresses to our own.
//!
//! Built by the port's control thread from the regions a frontend shares, then read by
//! the polling cores. A change builds a new map; the old one comes back through the
//! hand-over ring and is unmapped by the control thread, never by a core.

use std::fs::File;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use spp_drivers::LentFrame;
use spp_drivers::dma::{DATA_ROOM, Fresh, PacketBuf};
use spp_drivers::fault::{self, Fill, Guard};

use crate::copy::{copy, copy_short, prefetch};
use crate::vring::layout::DESCRIPTOR_BYTES;

/// Most regions one guest may share. QEMU with memory slots shares one per DIMM.
pub const MAX_REGIONS: usize = 128;

/// An address as the guest's driver writes it into descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gpa(pub u64);

/// An address in the frontend's own process, as SET_VRING_ADDR carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendVa(pub u64);

/// One region as the frontend describes it (vhost-user, "Memory region description").
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct RegionInfo {
    /// First guest address.
    pub gpa: u64,
    /// Bytes.
    pub len_bytes: u64,
    /// First address in the frontend's process.
    pub frontend_va: u64,
    /// Where the region starts in its file.
    pub file_offset: u64,
}

/// Why a region or a table of regions is refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Length 0, or an end beyond 2^64.
    #[error("memory region {0:x?} is empty or wraps around")]
    BadRange(RegionInfo),
    /// The file is shorter than the region says.
    #[error("memory region {region:x?} goes beyond the end of its file ({file_bytes} bytes)")]
    BeyondFile {
        /// The region.
        region: RegionInfo,
        /// Length of the file.
        file_bytes: u64,
    },
    /// Two regions claim one guest address.
    #[error("memory region {0:x?} overlaps another one")]
    Overlap(RegionInfo),
    /// More than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// REM_MEM_REG of a region that isn't there.
    #[error("memory region {0:x?} is not known")]
    Unknown(RegionInfo),
    /// The kernel would not map it.
    #[error("memory region {region:x?} can't be mapped: {source}")]
    Map {
        /// The region.
        region: RegionInfo,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The SIGBUS guard would not take it.
    #[error("memory region {region:x?} can't be guarded: {source}")]
    Guard {
        /// The region.
        region: RegionInfo,
        /// Why.
        source: fault::FaultError,
    },
}

/// One mapped region. Fields drop in order: the guard goes before the mapping.
struct Region {
    info: RegionInfo,
    guard: Guard,
    /// First byte of the region itself: the mapping may start before it, at a page.
    host: NonNull<u8>,
    _map: MmapRaw,
}

// SAFETY: the pointer leads into the mapping that the region owns; nothing is tied to a thread.
unsafe impl Send for Region {}
// SAFETY: a region is never written through a shared reference except as guest memory, which is foreign anyway.
unsafe impl Sync for Region {}

impl Region {
    fn new(info: RegionInfo, file: &File) -> Result<Region, MemoryError> {
        let end = info.file_offset.checked_add(info.len_bytes);
        let fits = [info.gpa, info.frontend_va].iter().all(|a| a.checked_add(info.len_bytes).is_some());
        let (Some(end), true, true) = (end, fits, info.len_bytes > 0) else {
            return Err(MemoryError::BadRange(info));
        };
        let map_error = |source| MemoryError::Map { region: info, source };
        let stat = rustix::fs::fstat(file).map_err(|e| map_error(e.into()))?;
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if end > file_bytes {
            return Err(MemoryError::BeyondFile { region: info, file_bytes });
        }
        let page = page_bytes(u64::try_from(stat.st_blksize).unwrap_or(0));
        let map_start = info.file_offset & !(page - 1);
        let map_len = (end - map_start).checked_next_multiple_of(page).ok_or(MemoryError::BadRange(info))?;
        let map_len = usize::try_from(map_len).map_err(|_| MemoryError::BadRange(info))?;
        let map = MmapOptions::new().offset(map_start).len(map_len).map_raw(file).map_err(map_error)?;
        let start = NonNull::new(map.as_mut_ptr()).expect("mmap never returns null");
        let guard = fault::guard(start, map_len, Fill::Zeros)
            .map_err(|source| MemoryError::Guard { region: info, source })?;
        let within = (info.file_offset - map_start) as usize;
        // SAFETY: within + len_bytes <= map_len by construction.
        let host = unsafe { start.add(within) };
        Ok(Region { info, guard, host, _map: map })
    }
}

/// What a mapping must be aligned to: hugetlbfs reports its page size as block size, and maps nothing smaller.
fn page_bytes(block_bytes: u64) -> u64 {
    const PAGE: u64 = 4096;
    if block_bytes.is_power_of_two() { block_bytes.clamp(PAGE, 1 << 30) } else { PAGE }
}

/// One row of the translation table.
#[derive(Debug, Clone, Copy)]
struct Row {
    gpa: u64,
    len: u64,
    host: NonNull<u8>,
}

impl Row {
    const NONE: Row = Row { gpa: 0, len: 0, host: NonNull::dangling() };

    #[inline(always)]
    fn translate(&self, gpa: Gpa, len: u32) -> Option<NonNull<u8>> {
        // A wrapped difference is at least len for every gpa below the region.
        let offset = gpa.0.wrapping_sub(self.gpa);
        if offset >= self.len || u64::from(len) > self.len - offset {
            return None;
        }
        // SAFETY: offset < len, and the row covers len mapped bytes from host.
        Some(unsafe { self.host.add(offset as usize) })
    }
}

/// All memory of one guest. Immutable.
#[derive(Default)]
pub struct GuestMap {
    /// Sorted by guest address, not overlapping. Neighbours are never joined: they need not
    /// follow each other in our address space.
    rows: Vec<Row>,
    /// In the order of `rows`.
    regions: Vec<Arc<Region>>,
}

// SAFETY: rows point into the mappings that `regions` keeps alive.
unsafe impl Send for GuestMap {}
// SAFETY: as above.
unsafe impl Sync for GuestMap {}

impl GuestMap {
    /// A map of these regions.
    pub fn new(regions: impl IntoIterator<Item = (RegionInfo, File)>) -> Result<GuestMap, MemoryError> {
        let mut map = GuestMap::default();
        for (info, file) in regions {
            map = map.with(info, &file)?;
        }
        Ok(map)
    }

    /// This map and one region more. Mappings are shared with the old map.
    pub fn with(&self, info: RegionInfo, file: &File) -> Result<GuestMap, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let end = info.gpa.checked_add(info.len_bytes).ok_or(MemoryError::BadRange(info))?;
        if self.rows.iter().any(|row| info.gpa < row.gpa + row.len && row.gpa < end) {
            return Err(MemoryError::Overlap(info));
        }
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::new(info, file)?));
        Ok(GuestMap::from_regions(regions))
    }

    /// This map without one region, named by its guest address, length and frontend address.
    pub fn without(&self, info: RegionInfo) -> Result<GuestMap, MemoryError> {
        let same = |r: &Arc<Region>| {
            (r.info.gpa, r.info.len_bytes, r.info.frontend_va) == (info.gpa, info.len_bytes, info.frontend_va)
        };
        let mut regions = self.regions.clone();
        let at = regions.iter().position(same).ok_or(MemoryError::Unknown(info))?;
        regions.remove(at);
        Ok(GuestMap::from_regions(regions))
    }

    fn from_regions(mut regions: Vec<Arc<Region>>) -> GuestMap {
        regions.sort_by_key(|r| r.info.gpa);
        let row = |r: &Arc<Region>| Row { gpa: r.info.gpa, len: r.info.len_bytes, host: r.host };
        GuestMap { rows: regions.iter().map(row).collect(), regions }
    }

    /// The regions, for status.
    pub fn regions(&self) -> Vec<RegionInfo> {
        self.regions.iter().map(|r| r.info).collect()
    }

    /// True when no memory is shared.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// True once a page of the guest's memory has vanished (its file was truncated).
    #[inline(always)]
    pub fn is_poisoned(&self) -> bool {
        self.regions.iter().any(|region| region.guard.is_poisoned())
    }

    /// Our pointer to `len` bytes at a frontend address, all in one region. For ring set-up.
    pub fn translate_va(&self, va: FrontendVa, len: u32) -> Option<NonNull<u8>> {
        self.regions.iter().find_map(|r| {
            let row = Row { gpa: r.info.frontend_va, len: r.info.len_bytes, host: r.host };
            row.translate(Gpa(va.0), len)
        })
    }

    /// The guest's address of a byte of ours that lies in its memory.
    pub fn gpa_of(&self, host: NonNull<u8>) -> Option<u64> {
        self.rows.iter().find_map(|row| {
            let offset = (host.addr().get() as u64).wrapping_sub(row.host.addr().get() as u64);
            (offset < row.len).then(|| row.gpa + offset)
        })
    }

    /// Finds the row that holds all of `len` bytes at `gpa`.
    #[inline(never)]
    fn find(&self, gpa: Gpa, len: u32) -> Option<Row> {
        let after = self.rows.partition_point(|row| row.gpa <= gpa.0);
        let row = self.rows[..after].last()?;
        row.translate(gpa, len).map(|_| *row)
    }
}

impl std::fmt::Debug for GuestMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.regions.iter().map(|r| &r.info)).finish()
    }
}

/// Translates for one ring: remembers the region of the last hit, since most guests keep
/// their packets in one. Valid only beside the map it was made for.
#[derive(Debug, Clone, Copy)]
pub struct Translator<'m> {
    map: &'m GuestMap,
    last: Row,
}

impl<'m> Translator<'m> {
    /// A translator that remembers nothing yet.
    #[inline(always)]
    pub fn new(map: &'m GuestMap) -> Self {
        Translator { map, last: map.rows.last().copied().unwrap_or(Row::NONE) }
    }

    /// What of the region of the last hit has room for `longest` bytes, for loops without calls over slices of `shortest` to
    /// `longest` bytes.
    #[inline(always)]
    pub fn nearby(&self, shortest: u32, longest: u32) -> Nearby<'m> {
        let Row { gpa, len, host } = self.last;
        let n_starts = len.saturating_add(1).saturating_sub(u64::from(longest));
        Nearby { gpa, n_starts, host, shortest, span: longest.saturating_sub(shortest), map: PhantomData }
    }

    /// The guest's bytes [gpa, gpa + len), when one region holds them all. `None` for a range that
    /// wraps around, leaves its region, or lies in none.
    #[inline(always)]
    pub fn slice(&mut self, gpa: Gpa, len: u32) -> Option<GuestSlice<'m>> {
        let host = match self.last.translate(gpa, len) {
            Some(host) => host,
            None => {
                // Not by a method of self: then self, which lives as long as a burst, can live in registers.
                self.last = self.map.find(gpa, len)?;
                self.last.translate(gpa, len)?
            }
        };
        Some(GuestSlice { host, len, map: PhantomData })
    }
}

/// A part of one region: see [`Translator::nearby`].
#[derive(Debug, Clone, Copy)]
pub struct Nearby<'m> {
    gpa: u64,
    /// Bytes from `gpa` on at which the longest slice could start.
    n_starts: u64,
    host: NonNull<u8>,
    shortest: u32,
    /// The longest slice is so much longer.
    span: u32,
    map: PhantomData<&'m GuestMap>,
}

impl<'m> Nearby<'m> {
    /// The guest's bytes [gpa, gpa + len), if `len` is one asked for and they are here: two comparisons for length and place.
    #[inline(always)]
    pub fn slice(&self, gpa: Gpa, len: u32) -> Option<GuestSlice<'m>> {
        // A wrapped difference is large for every length too short, and for every gpa below the region.
        let offset = gpa.0.wrapping_sub(self.gpa);
        if len.wrapping_sub(self.shortest) > self.span || offset >= self.n_starts {
            return None;
        }
        // SAFETY: len is at most the longest, which fits at every start, and the region is mapped while the map is borrowed.
        let host = unsafe { self.host.add(offset as usize) };
        Some(GuestSlice { host, len, map: PhantomData })
    }
}

/// Guest memory, checked and mapped, that the guest may write at any time: copied from or
/// to, never referenced.
#[derive(Debug, Clone, Copy)]
pub struct GuestSlice<'m> {
    host: NonNull<u8>,
    len: u32,
    map: PhantomData<&'m GuestMap>,
}

impl<'m> GuestSlice<'m> {
    /// `len` bytes at `host`.
    ///
    /// # Safety
    /// They were translated by one map, which lives for `'m`.
    #[inline(always)]
    pub(crate) unsafe fn new(host: NonNull<u8>, len: u32) -> GuestSlice<'m> {
        GuestSlice { host, len, map: PhantomData }
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Where it lies in our address space.
    #[inline(always)]
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.host
    }

    /// The bytes from `at` on; empty when `at` is past the end.
    #[inline(always)]
    pub fn skip(&self, at: usize) -> GuestSlice<'m> {
        let at = at.min(self.len());
        // SAFETY: at <= len, so the pointer stays within the region or one past its end.
        let host = unsafe { self.host.add(at) };
        GuestSlice { host, len: self.len - at as u32, map: PhantomData }
    }

    /// Copies up to `n` bytes from the front behind the data of `packet`; returns how many fitted.
    #[inline(always)]
    pub fn append_to(&self, packet: &mut PacketBuf, n: usize) -> usize {
        let old = packet.len();
        let n = n.min(self.len()).min(packet.tailroom());
        // SAFETY: data_ptr + len is within the buffer, tailroom bytes before its end.
        let to = unsafe { packet.data_ptr().add(old) };
        // SAFETY: the source is mapped for len bytes while the map is borrowed, the destination is our own buffer
        // with n bytes of room. The guest may change the source meanwhile: the copy is then some mix
        // of old and new, and only the copy is looked at.
        unsafe { copy(self.host, to, n) };
        let grown = packet.set_len(old + n);
        debug_assert!(grown.is_ok(), "n is at most the tailroom");
        n
    }

    /// Copies all behind the first `at` bytes into a fresh buffer, if it fits and [takes no call](copy_short); returns how many
    /// bytes that are, or 0, with nothing done, if not.
    #[inline(always)]
    pub fn put_short_into(&self, at: usize, buffer: &Fresh<'_>) -> usize {
        let rest = self.skip(at);
        let n = rest.len();
        // SAFETY: the source as in append_to, the destination is nobody else's and has room for DATA_ROOM bytes.
        let copied = n <= DATA_ROOM && unsafe { copy_short(rest.host, buffer.data_ptr(), n) };
        if copied { n } else { 0 }
    }

    /// Copies `from` to the front of this slice, as much as fits; returns how many bytes.
    #[inline(always)]
    pub fn write(&self, from: &[u8]) -> usize {
        let n = from.len().min(self.len());
        // SAFETY: the destination is mapped for len bytes while the map is borrowed, and is the guest's, so it
        // can't overlap `from`, which is ours. No reference to it exists.
        unsafe { copy(NonNull::from(from).cast(), self.host, n) };
        n
    }

    /// The whole slice, for somebody else to copy from.
    #[inline(always)]
    pub(crate) fn lend(self) -> LentFrame<'m> {
        // SAFETY: mapped for len bytes while the map is borrowed, which 'm says.
        unsafe { LentFrame::new(self.host, self.len) }
    }

    /// Copies bytes from the front of this slice to `to`, as many as there are; returns how many.
    #[inline(always)]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let n = to.len().min(self.len());
        // SAFETY: the source is mapped for len bytes while the map is borrowed, the destination is ours and holds n
        // bytes; they can't overlap. The guest may change the source meanwhile: only the copy is looked at.
        unsafe { std::ptr::copy_nonoverlapping(self.host.as_ptr(), to.as_mut_ptr(), n) };
        n
    }

    /// Asks the CPU to fetch the line of byte `at`.
    #[inline(always)]
    pub fn prefetch(&self, at: usize) {
        prefetch(self.host.as_ptr().wrapping_add(at));
    }

    /// The two words of a descriptor at the front, each read once; the slice holds at least 16 bytes.
    #[inline(always)]
    pub(crate) fn read_words(&self) -> [u64; 2] {
        assert!(self.len >= DESCRIPTOR_BYTES, "callers ask for whole descriptors");
        let words = self.host.as_ptr().cast::<Words>();
        // SAFETY: 16 mapped bytes, and Words has no alignment; volatile, so that it is one copy.
        let words = unsafe { words.read_volatile() };
        [words.0, words.1]
    }
}

/// Two words at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Words(u64, u64);

#[cfg(test)]
mod tests;
