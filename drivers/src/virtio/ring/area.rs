// UNSAFETY: the ring lies in memory that the device writes at the same time.
//! The three parts of a split ring in shared memory, and nothing but single atomic accesses to
//! them. Indices are masked here, so no index the device writes can lead outside.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::MAX_RING_SIZE;
use crate::dma::Region;
use crate::virtio::desc::Descriptor;

/// Memory a ring can live in.
///
/// # Safety
/// `as_ptr` is the start of `len_bytes` readable and writable bytes that stay valid and in place
/// as long as the value lives, wherever it is moved, and that no one accesses through references.
pub unsafe trait RingMemory: Send {
    /// First byte.
    fn as_ptr(&self) -> NonNull<u8>;
    /// Length in bytes.
    fn len_bytes(&self) -> usize;
    /// Where the device sees the first byte.
    fn device_address(&self) -> u64;
}

// SAFETY: a Region is a mapping that lives and stays as long as the value, handed out by pointer only.
unsafe impl RingMemory for Region {
    fn as_ptr(&self) -> NonNull<u8> {
        Region::as_ptr(self)
    }
    fn len_bytes(&self) -> usize {
        self.len()
    }
    fn device_address(&self) -> u64 {
        self.iova().0
    }
}

/// Where the device finds the parts of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Descriptor table, 16-byte aligned.
    pub desc: u64,
    /// Avail ring, written by the driver.
    pub avail: u64,
    /// Used ring, written by the device.
    pub used: u64,
}

/// A ring's memory: descriptor table, avail ring, used ring, the last on cache lines of its own
/// since the other side writes it.
pub struct RingArea<M> {
    memory: M,
    base: NonNull<u8>,
    mask: u16,
    avail: usize,
    used: usize,
}

// SAFETY: base points into memory, which is Send and moves along; all accesses through it are atomic.
unsafe impl<M: RingMemory> Send for RingArea<M> {}

const LINE: usize = 64;
const INDEX: usize = 2;
const ENTRIES: usize = 4;

impl<M: RingMemory> RingArea<M> {
    const fn avail_offset(size: u16) -> usize {
        Descriptor::BYTES * size as usize
    }

    const fn used_offset(size: u16) -> usize {
        // flags, index, entries, used_event
        (Self::avail_offset(size) + 6 + 2 * size as usize).next_multiple_of(LINE)
    }

    /// Bytes of memory a ring of `size` entries needs.
    pub const fn len_bytes(size: u16) -> usize {
        Self::used_offset(size) + 6 + 8 * size as usize
    }

    /// Lays a ring out at the start of `memory`: descriptors all ones, so that a device that starts
    /// too early faults instead of writing somewhere; used entries all ones, so that an index published
    /// before its entry names no buffer; and both indices at `first_index`.
    ///
    /// # Panics
    /// If `size` is not a power of two up to [`MAX_RING_SIZE`] or `memory` is too short or not
    /// aligned to 64 bytes: our own set-up is wrong then.
    pub fn new(memory: M, size: u16, first_index: u16) -> Self {
        assert!(size.is_power_of_two() && size <= MAX_RING_SIZE, "ring size {size}");
        assert!(memory.len_bytes() >= Self::len_bytes(size), "ring memory is too short");
        let base = memory.as_ptr();
        assert!(base.as_ptr().addr().is_multiple_of(LINE), "ring memory is aligned to a cache line");
        let area = RingArea {
            memory,
            base,
            mask: size - 1,
            avail: Self::avail_offset(size),
            used: Self::used_offset(size),
        };
        let all_ones = Descriptor { addr: u64::MAX, len: u32::MAX, flags: u16::MAX, next: u16::MAX };
        (0..size).for_each(|i| area.write_descriptor(i, all_ones));
        for word in 0..2 * usize::from(size) {
            area.cell32(area.used + ENTRIES + 4 * word).store(u32::MAX, Ordering::Relaxed);
        }
        area.cell16(area.used).store(0, Ordering::Relaxed);
        area.cell16(area.used + INDEX).store(first_index.to_le(), Ordering::Relaxed);
        area.set_avail_flags(0);
        area.publish_avail(first_index);
        area
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.mask + 1
    }

    /// The memory it lies in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Where the device finds the parts.
    pub fn addresses(&self) -> Addresses {
        let base = self.memory.device_address();
        Addresses { desc: base, avail: base + self.avail as u64, used: base + self.used as u64 }
    }

    #[inline(always)]
    fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < Self::len_bytes(self.size()));
        // SAFETY: all callers are in this file and pass the offset of a part plus that of a field at a
        // masked index; new() has checked the whole layout against the length of the memory.
        unsafe { self.base.add(offset) }
    }

    #[inline(always)]
    fn cell16(&self, offset: usize) -> &AtomicU16 {
        let cell = self.at(offset).cast::<u16>().as_ptr();
        // SAFETY: valid while self lives; aligned, since all 16-bit fields have even offsets from an
        // aligned base; all accesses of ours are atomic, and so are the device's.
        unsafe { AtomicU16::from_ptr(cell) }
    }

    #[inline(always)]
    fn cell32(&self, offset: usize) -> &AtomicU32 {
        let cell = self.at(offset).cast::<u32>().as_ptr();
        // SAFETY: as in cell16; used entries are 4-byte aligned.
        unsafe { AtomicU32::from_ptr(cell) }
    }

    #[inline(always)]
    fn cell64(&self, offset: usize) -> &AtomicU64 {
        let cell = self.at(offset).cast::<u64>().as_ptr();
        // SAFETY: as in cell16; descriptors are 16-byte aligned.
        unsafe { AtomicU64::from_ptr(cell) }
    }

    #[inline(always)]
    fn masked(&self, index: u16) -> usize {
        (index & self.mask) as usize
    }

    /// Writes one descriptor; visible to the device with the next [`publish_avail`](Self::publish_avail).
    #[inline(always)]
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let offset = Descriptor::BYTES * self.masked(index);
        let [first, second] = descriptor.to_words();
        self.cell64(offset).store(first, Ordering::Relaxed);
        self.cell64(offset + 8).store(second, Ordering::Relaxed);
    }

    /// Writes the avail entry at free-running index `at`.
    #[inline(always)]
    pub fn write_avail(&self, at: u16, head: u16) {
        let offset = self.avail + ENTRIES + 2 * self.masked(at);
        self.cell16(offset).store(head.to_le(), Ordering::Relaxed);
    }

    /// Publishes everything before free-running index `index` (virtio 1.2, 2.7.13.3).
    #[inline(always)]
    pub fn publish_avail(&self, index: u16) {
        self.cell16(self.avail + INDEX).store(index.to_le(), Ordering::Release);
    }

    /// The driver's flags.
    #[inline(always)]
    pub fn set_avail_flags(&self, flags: u16) {
        self.cell16(self.avail).store(flags.to_le(), Ordering::Relaxed);
    }

    /// The used index after which the driver wants an interrupt, with EVENT_IDX.
    #[inline(always)]
    pub fn set_used_event(&self, index: u16) {
        let offset = self.avail + ENTRIES + 2 * self.size() as usize;
        self.cell16(offset).store(index.to_le(), Ordering::Relaxed);
    }

    /// The device's index; entries before it may be read after this.
    #[inline(always)]
    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.cell16(self.used + INDEX).load(Ordering::Acquire))
    }

    /// The device's flags.
    #[inline(always)]
    pub fn used_flags(&self) -> u16 {
        u16::from_le(self.cell16(self.used).load(Ordering::Relaxed))
    }

    /// The avail index after which the device wants a doorbell, with EVENT_IDX.
    #[inline(always)]
    pub fn avail_event(&self) -> u16 {
        let offset = self.used + ENTRIES + 8 * self.size() as usize;
        u16::from_le(self.cell16(offset).load(Ordering::Relaxed))
    }

    /// The used entry at free-running index `at`, copied out: (id, length).
    #[inline(always)]
    pub fn used_entry(&self, at: u16) -> (u32, u32) {
        let offset = self.used + ENTRIES + 8 * self.masked(at);
        let id = self.cell32(offset).load(Ordering::Relaxed);
        let len = self.cell32(offset + 4).load(Ordering::Relaxed);
        (u32::from_le(id), u32::from_le(len))
    }
}
