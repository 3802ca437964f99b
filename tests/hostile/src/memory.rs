// UNSAFETY: reads and writes memory that another process changes at the same time.
//! Memory shared with the backend: one memfd, mapped here, offered there in two regions.
//!
//! Any thread may write any byte at any moment; that is what the attacks are made of. Everything here is
//! named by [`At`], an offset into the file; guest and frontend addresses are made from it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::MemfdFlags;

/// An offset into the shared file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At(pub u64);

impl At {
    /// `n` bytes further on.
    pub const fn plus(self, n: u64) -> At {
        At(self.0 + n)
    }

    /// As descriptors name it.
    pub fn gpa(self) -> u64 {
        self.region().gpa + (self.0 - self.region().file_offset)
    }

    /// As SET_VRING_ADDR names it.
    pub fn frontend_va(self) -> u64 {
        self.region().frontend_va + (self.0 - self.region().file_offset)
    }

    fn region(self) -> &'static Region {
        REGIONS.iter().rev().find(|r| self.0 >= r.file_offset).expect("the first region starts at 0")
    }
}

/// A region as a memory table describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First guest address.
    pub gpa: u64,
    /// Bytes.
    pub len_bytes: u64,
    /// First address in the frontend's (pretended) address space.
    pub frontend_va: u64,
    /// Where it starts in the file.
    pub file_offset: u64,
}

const MIB: u64 = 1 << 20;
/// The first guest address shared; nothing is at 0.
pub const GPA: u64 = 1 << 32;

/// What is shared: rings, then buffers. Adjacent as the guest sees them, apart in the file and so in the backend.
pub const REGIONS: [Region; 2] = [
    Region { gpa: GPA, len_bytes: 4 * MIB, frontend_va: 0x7f10_0000_0000, file_offset: 0 },
    Region { gpa: GPA + 4 * MIB, len_bytes: 12 * MIB, frontend_va: 0x7f20_0000_0000, file_offset: 8 * MIB },
];
/// Bytes of the file.
pub const FILE_BYTES: u64 = 20 * MIB;
/// The buffer region.
pub const BUFFERS: At = At(8 * MIB);
/// The end of the buffer region, half of which no driver uses: tables and buffers of the attacks.
pub const SCRATCH: At = At(16 * MIB);
/// One past the last guest address.
pub const GPA_END: u64 = GPA + 16 * MIB;

/// The mapping.
pub struct SharedMemory {
    file: OwnedFd,
    map: MmapRaw,
}

impl SharedMemory {
    /// A fresh file of [`FILE_BYTES`], all zeros.
    pub fn new() -> io::Result<SharedMemory> {
        let file = memfd(FILE_BYTES)?;
        let map = MmapOptions::new().len(FILE_BYTES as usize).map_raw(&file)?;
        Ok(SharedMemory { file, map })
    }

    /// Where `len` bytes at `at` are here.
    fn host(&self, at: At, len: u64) -> NonNull<u8> {
        assert!(at.0.checked_add(len).is_some_and(|end| end <= FILE_BYTES), "{at:?} + {len} is in the file");
        let start = self.map.as_mut_ptr().wrapping_add(at.0 as usize);
        NonNull::new(start).expect("mmap never returns null")
    }

    fn word16(&self, at: At) -> &AtomicU16 {
        assert!(at.0.is_multiple_of(2));
        // SAFETY: mapped while self lives, aligned, and every access of ours to ring words is atomic.
        unsafe { AtomicU16::from_ptr(self.host(at, 2).cast().as_ptr()) }
    }

    fn word32(&self, at: At) -> &AtomicU32 {
        assert!(at.0.is_multiple_of(4));
        // SAFETY: as in word16.
        unsafe { AtomicU32::from_ptr(self.host(at, 4).cast().as_ptr()) }
    }

    fn word64(&self, at: At) -> &AtomicU64 {
        assert!(at.0.is_multiple_of(8));
        // SAFETY: as in word16.
        unsafe { AtomicU64::from_ptr(self.host(at, 8).cast().as_ptr()) }
    }

    /// Reads a little-endian word; what was published before it is there.
    pub fn load16(&self, at: At) -> u16 {
        u16::from_le(self.word16(at).load(Ordering::Acquire))
    }

    /// Writes a little-endian word after everything written before.
    pub fn store16(&self, at: At, value: u16) {
        self.word16(at).store(value.to_le(), Ordering::Release);
    }

    /// As [`load16`](Self::load16).
    pub fn load32(&self, at: At) -> u32 {
        u32::from_le(self.word32(at).load(Ordering::Acquire))
    }

    /// As [`store16`](Self::store16).
    pub fn store32(&self, at: At, value: u32) {
        self.word32(at).store(value.to_le(), Ordering::Release);
    }

    /// As [`load16`](Self::load16).
    pub fn load64(&self, at: At) -> u64 {
        u64::from_le(self.word64(at).load(Ordering::Acquire))
    }

    /// As [`store16`](Self::store16).
    pub fn store64(&self, at: At, value: u64) {
        self.word64(at).store(value.to_le(), Ordering::Release);
    }

    /// Copies bytes in.
    pub fn write(&self, at: At, bytes: &[u8]) {
        let to = self.host(at, bytes.len() as u64);
        // SAFETY: checked to lie in the mapping; `bytes` is our own and so does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Copies bytes out.
    pub fn read(&self, at: At, len: usize) -> Vec<u8> {
        let (from, mut bytes) = (self.host(at, len as u64), vec![0; len]);
        // SAFETY: checked to lie in the mapping; the backend may change it meanwhile, and only the copy is looked at.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Sets bytes to one value.
    pub fn fill(&self, at: At, len: usize, value: u8) {
        // SAFETY: checked to lie in the mapping.
        unsafe { std::ptr::write_bytes(self.host(at, len as u64).as_ptr(), value, len) };
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A memory file.
pub fn memfd(len_bytes: u64) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("hostile", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, len_bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_adjacent_for_the_guest_and_apart_in_the_file() {
        let [rings, buffers] = REGIONS;
        assert_eq!(rings.gpa + rings.len_bytes, buffers.gpa);
        assert!(rings.file_offset + rings.len_bytes < buffers.file_offset);
        assert_eq!(BUFFERS.gpa(), buffers.gpa);
        assert_eq!(At(16).frontend_va(), rings.frontend_va + 16);
        assert_eq!(SCRATCH.gpa(), GPA + 12 * MIB);
    }
}
