// UNSAFETY: the dirty log is memory that the frontend shares and writes at the same time.
//! The dirty log of a migration: one bit for each page of guest memory that we have written
//! (vhost-user, "Migration"). The frontend sends the pages whose bits are set, and clears them.
//!
//! A page is marked after it is written: marked before, it could be sent and cleared with the write still
//! to come. Marking is one locked OR, so it also orders the write before whatever the frontend does on seeing the
//! bit. Mapped and unmapped by the port's control thread; polling cores mark, and have no log when none is wanted.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use spp_drivers::fault::{self, Fill, Guard};

use crate::memory::{GuestMap, GuestSlice};

/// Bytes of guest memory that one bit stands for (VHOST_LOG_PAGE), whatever pages the guest has.
pub const PAGE_BYTES: u64 = 4096;

/// Why a log is refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Empty, or beyond the end of its file, or an end beyond 2^64.
    #[error("a dirty log of {len_bytes} bytes at {offset} does not lie in its file of {file_bytes} bytes")]
    BadRange {
        /// Length asked for.
        len_bytes: u64,
        /// Where it starts.
        offset: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// It has no bits for some of the guest's memory.
    #[error("the dirty log is too short for the guest's memory: {0} bytes")]
    TooShort(u64),
    /// The kernel would not map it.
    #[error("the dirty log can't be mapped: {0}")]
    Map(std::io::Error),
    /// The SIGBUS guard would not take it.
    #[error("the dirty log can't be guarded: {0}")]
    Guard(fault::FaultError),
}

/// A mapped log. Fields drop in order: the guard goes before the mapping.
pub struct DirtyLog {
    _guard: Guard,
    first: NonNull<u8>,
    len: usize,
    _map: MmapRaw,
}

// SAFETY: the pointer leads into the mapping that the log owns; nothing is tied to a thread.
unsafe impl Send for DirtyLog {}
// SAFETY: all access is atomic.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps `len_bytes` of a file from `offset` on.
    pub fn new(file: &File, len_bytes: u64, offset: u64) -> Result<DirtyLog, LogError> {
        let stat = rustix::fs::fstat(file).map_err(|e| LogError::Map(e.into()))?;
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let bad = LogError::BadRange { len_bytes, offset, file_bytes };
        let end = offset.checked_add(len_bytes).filter(|end| *end <= file_bytes && len_bytes > 0);
        let (Some(end), start) = (end, offset & !(PAGE_BYTES - 1)) else { return Err(bad) };
        let Ok(map_len) = usize::try_from((end - start).next_multiple_of(PAGE_BYTES)) else {
            return Err(bad);
        };
        let map = MmapOptions::new().offset(start).len(map_len).map_raw(file).map_err(LogError::Map)?;
        let base = NonNull::new(map.as_mut_ptr()).expect("mmap never returns null");
        let guard = fault::guard(base, map_len, Fill::Zeros).map_err(LogError::Guard)?;
        // SAFETY: less than a page, and the mapping has at least one.
        let first = unsafe { base.add((offset - start) as usize) };
        Ok(DirtyLog { _guard: guard, first, len: len_bytes as usize, _map: map })
    }

    /// Refuses a log that can't tell of all of the guest's memory.
    pub fn check_covers(&self, map: &GuestMap) -> Result<(), LogError> {
        let covered = (self.len as u64).saturating_mul(8 * PAGE_BYTES);
        let reaches = |region: &crate::memory::RegionInfo| region.gpa + region.len_bytes <= covered;
        if map.regions().iter().all(reaches) { Ok(()) } else { Err(LogError::TooShort(self.len as u64)) }
    }

    /// Marks the pages of [gpa, gpa + len). What the log has no bits for is passed over.
    pub fn mark(&self, gpa: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|more| gpa.checked_add(more)) else { return };
        let n_pages = self.len as u64 * 8;
        let last = (last / PAGE_BYTES).min(n_pages - 1);
        for page in gpa / PAGE_BYTES..=last {
            self.byte((page / 8) as usize).fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
    }

    /// Marks all of the guest's memory.
    pub fn mark_all(&self, map: &GuestMap) {
        map.regions().iter().for_each(|region| self.mark(region.gpa, region.len_bytes));
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.len, "pages are bounded by the log's length");
        // SAFETY: below len, which is mapped.
        let byte = unsafe { self.first.add(at) };
        // SAFETY: mapped while self lives; an atomic may change under a shared reference.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}

/// What one ring logs.
#[derive(Clone)]
pub struct RingLog {
    /// The log.
    pub log: Arc<DirtyLog>,
    /// Where the frontend wants writes to the used ring logged (SET_VRING_ADDR with VHOST_VRING_F_LOG), beside
    /// where the ring really is.
    pub used_at: Option<u64>,
}

impl RingLog {
    /// True if both log the same way.
    pub fn is_same(&self, other: &RingLog) -> bool {
        Arc::ptr_eq(&self.log, &other.log) && self.used_at == other.used_at
    }

    /// The first `n` bytes of `buffers` were written.
    #[cold]
    pub(crate) fn wrote(&self, map: &GuestMap, buffers: &[GuestSlice<'_>], n: usize) {
        let mut left = n;
        for buffer in buffers {
            let n = left.min(buffer.len());
            self.mark_host(map, buffer.start(), 0, n);
            left -= n;
        }
    }

    /// `n` bytes from `offset` on of what starts at `host` were written.
    pub(crate) fn mark_host(&self, map: &GuestMap, host: NonNull<u8>, offset: usize, n: usize) {
        if let Some(gpa) = map.gpa_of(host) {
            self.log.mark(gpa + offset as u64, n as u64);
        }
    }

    /// As [`mark_host`](Self::mark_host), for the used ring.
    pub(crate) fn mark_used(&self, map: &GuestMap, used: NonNull<u8>, offset: usize, n: usize) {
        self.mark_host(map, used, offset, n);
        if let Some(at) = self.used_at.and_then(|at| at.checked_add(offset as u64)) {
            self.log.mark(at, n as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::unix::fs::FileExt;

    fn file(len: u64) -> File {
        let file = File::from(memfd_create(c"log", MemfdFlags::CLOEXEC).unwrap());
        ftruncate(&file, len).unwrap();
        file
    }

    fn bits(file: &File, len: usize) -> Vec<u64> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let is_set = |page: &u64| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1;
        (0..len as u64 * 8).filter(is_set).collect()
    }

    #[test]
    fn pages_touched_are_marked_and_no_others() {
        let file = file(4096);
        let log = DirtyLog::new(&file, 4096, 0).unwrap();
        log.mark(0, 1);
        log.mark(2 * 4096 + 4095, 2); // over a page's end
        log.mark(9 * 4096, 4096);
        log.mark(11 * 4096, 0); // nothing
        assert_eq!(bits(&file, 4096), [0, 2, 3, 9]);
    }

    #[test]
    fn marks_beyond_the_log_change_nothing() {
        let file = file(8192);
        // One byte in the middle of the file: pages 0 to 7.
        let log = DirtyLog::new(&file, 1, 5000).unwrap();
        for (gpa, len) in
            [(8 * 4096, 4096), (u64::MAX, 1), (u64::MAX, 2), (1 << 50, u64::MAX), (7 * 4096, 1 << 40)]
        {
            log.mark(gpa, len);
        }
        assert_eq!(bits(&file, 8192), [5000 * 8 + 7]);
    }

    #[test]
    fn log_that_is_not_in_its_file_is_refused() {
        let file = file(4096);
        for (len, offset) in [(0, 0), (4097, 0), (4096, 1), (u64::MAX, 2), (2, u64::MAX), (1, 4096)] {
            assert!(
                matches!(DirtyLog::new(&file, len, offset), Err(LogError::BadRange { .. })),
                "{len} {offset}"
            );
        }
        assert!(DirtyLog::new(&file, 1, 4095).is_ok());
    }

    #[test]
    fn log_whose_file_is_truncated_costs_nothing_but_its_bits() {
        let file = file(1 << 20);
        let log = DirtyLog::new(&file, 1 << 20, 0).unwrap();
        ftruncate(&file, 0).unwrap();
        log.mark(1 << 30, 4096);
    }
}
