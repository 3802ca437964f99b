// UNSAFETY: the configuration area and the descriptions of queues are written by driver and device at the same time.
//! Memory that driver and device both read and write outside of rings: configuration, descriptions of queues, counters.
//! Only atomic accesses to whole aligned words. Control half and queue halves share it.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::dma::{DmaError, DmaSpace, Region};

pub(super) struct Area {
    memory: Region,
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: base points into memory, which is Send and moves along; all accesses through it are atomic.
unsafe impl Send for Area {}
// SAFETY: shared accesses are atomic, and the region is not touched otherwise.
unsafe impl Sync for Area {}

impl Area {
    /// Zeros, on a page of their own.
    pub(super) fn new(space: &DmaSpace, what: &str, len_bytes: usize) -> Result<Area, DmaError> {
        let memory = space.allocate(what, len_bytes)?;
        let base = memory.as_ptr();
        assert!(base.as_ptr().addr().is_multiple_of(512), "a mapping starts on a page");
        let area = Area { memory, base, len_bytes };
        (0..len_bytes / 8).for_each(|word| area.store(word * 8, 0));
        Ok(area)
    }

    pub(super) fn iova(&self) -> u64 {
        self.memory.iova().0
    }

    /// The aligned bytes at `offset`; `None` outside of the area.
    #[inline(always)]
    fn at(&self, offset: usize, len_bytes: usize) -> Option<NonNull<u8>> {
        let fits = offset.is_multiple_of(len_bytes) && offset + len_bytes <= self.len_bytes;
        debug_assert!(fits, "{offset:#x} is outside of the area");
        // SAFETY: offset lies within the region, as just checked.
        fits.then(|| unsafe { self.base.add(offset) })
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let at = self.at(offset, 8)?;
        // SAFETY: eight aligned bytes that live as long as self; all accesses of ours are atomic.
        Some(unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) })
    }

    #[inline(always)]
    fn half(&self, offset: usize) -> Option<&AtomicU32> {
        let at = self.at(offset, 4)?;
        // SAFETY: four aligned bytes that live as long as self; all accesses of ours are atomic.
        Some(unsafe { AtomicU32::from_ptr(at.cast().as_ptr()) })
    }

    pub(super) fn load(&self, offset: usize) -> u64 {
        self.word(offset).map_or(0, |word| u64::from_le(word.load(Ordering::Acquire)))
    }

    pub(super) fn store(&self, offset: usize, value: u64) {
        if let Some(word) = self.word(offset) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    #[inline(always)]
    pub(super) fn load32(&self, offset: usize) -> u32 {
        self.half(offset).map_or(0, |half| u32::from_le(half.load(Ordering::Acquire)))
    }

    #[inline(always)]
    pub(super) fn store32(&self, offset: usize, value: u32) {
        if let Some(half) = self.half(offset) {
            half.store(value.to_le(), Ordering::Release);
        }
    }

    /// Bytes of a whole number of words.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        for (word, bytes) in bytes.chunks_exact(8).enumerate() {
            self.store(
                offset + word * 8,
                bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_area_is_zero_and_keeps_what_is_written() {
        let area = Area::new(&DmaSpace::new(), "test", 32).unwrap();
        assert_eq!((area.load(0), area.load(24)), (0, 0));
        area.write(0, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((area.load(0), area.load32(4), area.load(8)), (0x0807_0605_0403_0201, 0x0807_0605, 9));
        area.store32(12, 7);
        assert_eq!(area.load(8), 7 << 32 | 9);
    }
}
