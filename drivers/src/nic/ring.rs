// UNSAFETY: descriptors lie in memory that the device writes at the same time.
//! A ring of 16-byte descriptors in DMA memory, and nothing but single atomic accesses to it. Indices are
//! masked here, so no index can lead outside.
//!
//! The queue half that owns the ring is its only user on this side. A descriptor is handed to the device by the
//! doorbell ([`Doorbell::ring`](super::regs::Doorbell::ring) has the release fence), and comes back when the device
//! sets its done bit: [`done_word`](DescRing::done_word) is the acquire that orders all reads after it.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dma::{DmaError, DmaSpace, Iova, Region};

/// Bytes of a descriptor.
pub const DESC_BYTES: usize = 16;
/// Largest ring any of the drivers uses (82599 8.2.3.8.3: 64 KiB less 128 bytes hold 4088).
pub const MAX_RING: u16 = 2048;
/// Smallest: length registers count in 128 bytes.
pub const MIN_RING: u16 = 8;

/// One descriptor in a ring: two words, each read and written at once.
#[repr(transparent)]
pub struct Desc([AtomicU64; 2]);

const _: () = assert!(size_of::<Desc>() == DESC_BYTES);

impl Desc {
    /// As [`DescRing::put`].
    #[inline(always)]
    pub fn put(&self, [first, second]: [u64; 2]) {
        self.0[0].store(first.to_le(), Ordering::Relaxed);
        self.0[1].store(second.to_le(), Ordering::Relaxed);
    }

    /// As [`DescRing::done_word`].
    #[inline(always)]
    pub fn done_word(&self) -> u64 {
        u64::from_le(self.0[1].load(Ordering::Acquire))
    }
}

/// A ring of 16-byte descriptors.
pub struct DescRing {
    memory: Region,
    base: NonNull<u8>,
    mask: u16,
}

// SAFETY: base points into memory, which is Send and moves along; all accesses through it are atomic.
unsafe impl Send for DescRing {}

impl DescRing {
    /// A ring of `size` descriptors, all ones: a device that starts too early faults instead of writing somewhere.
    ///
    /// # Panics
    /// If `size` is not a power of two from [`MIN_RING`] to [`MAX_RING`]: our own set-up is wrong then.
    pub fn new(space: &DmaSpace, what: &str, size: u16) -> Result<Self, DmaError> {
        assert!(size.is_power_of_two() && (MIN_RING..=MAX_RING).contains(&size), "ring size {size}");
        let memory = space.allocate(what, usize::from(size) * DESC_BYTES)?;
        let base = memory.as_ptr();
        assert!(base.as_ptr().addr().is_multiple_of(128), "a mapping starts on a page");
        let ring = DescRing { memory, base, mask: size - 1 };
        (0..size).for_each(|i| ring.put(i, [u64::MAX; 2]));
        Ok(ring)
    }

    /// Descriptors in the ring.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.mask + 1
    }

    /// `size - 1`.
    #[inline(always)]
    pub fn mask(&self) -> u16 {
        self.mask
    }

    /// Where the device finds the first descriptor; a multiple of 4096.
    pub fn iova(&self) -> Iova {
        self.memory.iova()
    }

    /// Length in bytes, a multiple of 128.
    pub fn len_bytes(&self) -> u32 {
        u32::from(self.size()) * DESC_BYTES as u32
    }

    #[inline(always)]
    fn word(&self, index: u16, word: usize) -> &AtomicU64 {
        debug_assert!(word < 2);
        let offset = usize::from(index & self.mask) * DESC_BYTES + word * 8;
        // SAFETY: new() allocated size * 16 bytes; the index is masked to size, and word is 0 or 1 in all callers,
        // which are in this file.
        let cell = unsafe { self.base.add(offset) }.cast::<u64>().as_ptr();
        // SAFETY: valid while self lives; aligned, since the base is and all offsets are multiples of 8; all accesses
        // of ours are atomic, and so are the device's of aligned words.
        unsafe { AtomicU64::from_ptr(cell) }
    }

    /// The descriptors from `first` to the end of the ring, for a loop over a run.
    #[inline(always)]
    pub fn run(&self, first: u16) -> &[Desc] {
        let (base, n) = (self.base.cast::<Desc>().as_ptr(), self.size().into());
        // SAFETY: new() allocated size descriptors, which is mask + 1; the device's accesses of aligned words are atomic, and
        // so are ours: through these cells.
        let all = unsafe { std::slice::from_raw_parts(base, n) };
        all.get(usize::from(first & self.mask)..).unwrap_or_default()
    }

    /// Writes a descriptor. The device may read it from the next doorbell on.
    #[inline(always)]
    pub fn put(&self, index: u16, [first, second]: [u64; 2]) {
        self.word(index, 0).store(first.to_le(), Ordering::Relaxed);
        self.word(index, 1).store(second.to_le(), Ordering::Relaxed);
    }

    /// A descriptor as it stands in the ring: what was [`put`](Self::put) there, as long as the device doesn't have it.
    #[inline(always)]
    pub fn words(&self, index: u16) -> [u64; 2] {
        [self.first_word(index), u64::from_le(self.word(index, 1).load(Ordering::Relaxed))]
    }

    /// The second word, which has the done bit, length and status in all families: one read, and whatever
    /// the device wrote before it (the rest of the descriptor, the frame) is visible after it.
    #[inline(always)]
    pub fn done_word(&self, index: u16) -> u64 {
        u64::from_le(self.word(index, 1).load(Ordering::Acquire))
    }

    /// The first word, after [`done_word`](Self::done_word) said that it is written.
    #[inline(always)]
    pub fn first_word(&self, index: u16) -> u64 {
        u64::from_le(self.word(index, 0).load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ring_is_all_ones_and_indices_wrap() {
        let ring = DescRing::new(&DmaSpace::new(), "test", 8).unwrap();
        assert_eq!((ring.size(), ring.len_bytes(), ring.iova().0 % 4096), (8, 128, 0));
        assert!((0..8).all(|i| ring.done_word(i) == u64::MAX && ring.first_word(i) == u64::MAX));
        ring.put(65_535, [1, 2]);
        assert_eq!((ring.first_word(7), ring.done_word(7)), (1, 2));
        assert_eq!(ring.done_word(6), u64::MAX);
        let run = ring.run(65_534);
        assert_eq!((run.len(), run[0].done_word(), run[1].done_word()), (2, u64::MAX, 2));
        run[0].put([3, 4]);
        assert_eq!((ring.first_word(6), ring.done_word(6)), (3, 4));
    }

    #[test]
    #[should_panic(expected = "ring size 12")]
    fn odd_sizes_are_our_own_bug() {
        let _ = DescRing::new(&DmaSpace::new(), "test", 12);
    }
}
