// UNSAFETY: reads and writes ring memory that a guest shares and may change at any time.
//! The split ring in memory (virtio 1.2, 2.7): descriptor table, available ring, used ring.
//!
//! Every access is one volatile or atomic load or store of one field, and every index is masked
//! to the ring's size here, so the walkers above are safe code. Owned by one thread at a time.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::copy::{prefetch, prefetch_write};
use crate::memory::{FrontendVa, GuestMap};

use spp_drivers::virtio::desc::{
    AVAIL_F_NO_INTERRUPT as AVAIL_NO_INTERRUPT, USED_F_NO_NOTIFY as USED_NO_NOTIFY,
};
pub use spp_drivers::virtio::desc::{
    DESC_F_INDIRECT as F_INDIRECT, DESC_F_NEXT as F_NEXT, DESC_F_WRITE as F_WRITE, Descriptor,
};

/// Bytes of one descriptor, as guests count lengths.
pub const DESCRIPTOR_BYTES: u32 = Descriptor::BYTES as u32;

/// Where the frontend put a ring, in its own addresses (SET_VRING_ADDR).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddr {
    /// Descriptor table, 16-byte aligned.
    pub desc: FrontendVa,
    /// Available ring, 2-byte aligned.
    pub avail: FrontendVa,
    /// Used ring, 4-byte aligned.
    pub used: FrontendVa,
}

/// A ring's memory, mapped: all three parts lie whole in regions of `map`, aligned.
pub struct SplitMemory {
    desc: NonNull<u64>,
    avail: NonNull<u16>,
    used: NonNull<u16>,
    mask: u16,
    map: Arc<GuestMap>,
}

// SAFETY: the pointers lead into mappings that `map` keeps alive.
unsafe impl Send for SplitMemory {}

/// The descriptor table for a loop. The compiler takes each volatile access for one that might change anything, and would load
/// pointer and mask again after it: here they are in registers.
#[derive(Clone, Copy)]
pub struct DescTable<'r> {
    desc: NonNull<u64>,
    mask: u16,
    ring: PhantomData<&'r SplitMemory>,
}

impl DescTable<'_> {
    /// Descriptor `index`, masked to the table, each word read once.
    #[inline(always)]
    pub fn descriptor(self, index: u16) -> Descriptor {
        // SAFETY: the table was translated for size descriptors of two words each, and index is masked.
        let at = unsafe { self.desc.add(2 * usize::from(index & self.mask)) };
        // SAFETY: mapped and aligned; volatile, since the guest may write it.
        let addr = unsafe { at.read_volatile() };
        // SAFETY: the second word of the same descriptor.
        let rest_at = unsafe { at.add(1) };
        // SAFETY: as for the first.
        let rest = unsafe { rest_at.read_volatile() };
        Descriptor::from_words([addr, rest])
    }

    /// Asks the CPU to fetch a descriptor. `index` need not be one of the table: a hint needs no mask.
    #[inline(always)]
    pub fn prefetch(self, index: u16) {
        prefetch(self.desc.as_ptr().wrapping_add(2 * usize::from(index)).cast());
    }
}

/// The used elements for a loop, as [`DescTable`].
#[derive(Clone, Copy)]
pub struct UsedRing<'r> {
    used: NonNull<u16>,
    mask: u16,
    ring: PhantomData<&'r SplitMemory>,
}

impl UsedRing<'_> {
    /// Writes the used element for the free-running index `idx`; not visible before
    /// [`publish_used`](SplitMemory::publish_used).
    #[inline(always)]
    pub fn write(self, idx: u16, head: u16, len: u32) {
        let element = u64::from(head) | u64::from(len) << 32;
        // SAFETY: the ring was translated for size elements behind two words, and idx is masked.
        let slot = unsafe { self.used.add(2 + 4 * usize::from(idx & self.mask)) };
        // SAFETY: mapped and the guest's; 4-byte aligned at least, written as one unaligned store.
        unsafe { slot.as_ptr().cast::<u64>().write_unaligned(element.to_le()) };
    }
}

/// Four available entries at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct FourHeads(u64);

/// Available entries that lie one behind the other. Each is read once.
pub struct AvailRun<'r> {
    first: NonNull<u16>,
    n: usize,
    ring: PhantomData<&'r SplitMemory>,
}

impl AvailRun<'_> {
    /// How many there are.
    #[allow(clippy::len_without_is_empty)]
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.n
    }

    /// Copies them to the front of `to`, which has room for them, four at a time; returns the bits that any of them has.
    #[inline(always)]
    pub fn copy_to(&self, to: &mut [u16]) -> u16 {
        let (fours, rest) = to[..self.n].as_chunks_mut::<4>();
        let (mut at, mut all) = (self.first, 0);
        for four in fours {
            // SAFETY: four entries of the run, mapped while the ring lives, without alignment; volatile, since the guest may
            // write them.
            let heads = u64::from_le(unsafe { at.as_ptr().cast::<FourHeads>().read_volatile() }.0);
            *four = [heads as u16, (heads >> 16) as u16, (heads >> 32) as u16, (heads >> 48) as u16];
            all |= heads;
            // SAFETY: still in the run, or just behind it.
            at = unsafe { at.add(4) };
        }
        for one in rest {
            // SAFETY: an entry of the run, mapped while the ring lives and aligned; volatile as above.
            *one = u16::from_le(unsafe { at.read_volatile() });
            all |= u64::from(*one);
            // SAFETY: still in the run, or just behind it.
            at = unsafe { at.add(1) };
        }
        let all = all | all >> 32;
        (all | all >> 16) as u16
    }
}

impl SplitMemory {
    /// Translates a ring of `size` descriptors (a power of two). `None` when a part is not
    /// aligned or does not lie whole in one region.
    pub fn new(map: Arc<GuestMap>, addr: RingAddr, size: u16) -> Option<SplitMemory> {
        assert!(size.is_power_of_two(), "ring sizes are checked when they are set");
        let n = u32::from(size);
        let part = |va: FrontendVa, align: u64, len: u32| {
            let host = map.translate_va(va, len)?;
            let aligned = (va.0 | host.as_ptr() as u64) & (align - 1) == 0;
            aligned.then_some(host)
        };
        // Available and used rings end with an event index (virtio 1.2, 2.7.6, 2.7.8).
        let desc = part(addr.desc, 16, n * DESCRIPTOR_BYTES)?.cast();
        let avail = part(addr.avail, 2, 4 + 2 * n + 2)?.cast();
        let used = part(addr.used, 4, 4 + 8 * n + 2)?.cast();
        Some(SplitMemory { desc, avail, used, mask: size - 1, map })
    }

    /// Descriptors in the ring.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.mask.wrapping_add(1)
    }

    /// The guest's memory.
    #[inline(always)]
    pub fn map(&self) -> &GuestMap {
        &self.map
    }

    /// Where the used ring lies in our address space.
    pub(super) fn used_start(&self) -> NonNull<u8> {
        self.used.cast()
    }

    /// Word `at` of the available ring; the caller keeps `at` below 3 + size.
    #[inline(always)]
    fn avail_word(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at < 3 + usize::from(self.size()));
        // SAFETY: the available ring was translated for 3 + size words.
        let word = unsafe { self.avail.add(at) };
        // SAFETY: aligned, mapped while self lives; an atomic may change under a shared reference.
        unsafe { AtomicU16::from_ptr(word.as_ptr()) }
    }

    /// Word `at` of the used ring: 0 flags, 1 index, 2 + 4 * size the event index.
    #[inline(always)]
    fn used_word(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at < 3 + 4 * usize::from(self.size()));
        // SAFETY: the used ring was translated for 3 + 4 * size words.
        let word = unsafe { self.used.add(at) };
        // SAFETY: as in avail_word.
        unsafe { AtomicU16::from_ptr(word.as_ptr()) }
    }

    /// The driver's index; entries before it are there once this is read.
    #[inline(always)]
    pub fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail_word(1).load(Ordering::Acquire))
    }

    /// The head in the available ring's slot for the free-running index `idx`. Not checked.
    #[inline(always)]
    pub fn avail_head(&self, idx: u16) -> u16 {
        u16::from_le(self.avail_word(2 + usize::from(idx & self.mask)).load(Ordering::Relaxed))
    }

    /// The `n` (at most the ring's size) available entries from the free-running index `idx` on, in two pieces, of which
    /// the second is mostly empty: a loop over a piece needs no mask. Not checked.
    #[inline(always)]
    pub fn avail_runs(&self, idx: u16, n: usize) -> [AvailRun<'_>; 2] {
        let (first, size) = (usize::from(idx & self.mask), usize::from(self.size()));
        let n = n.min(size);
        let to_end = n.min(size - first);
        [(first, to_end), (0, n - to_end)].map(|(at, n)| {
            // SAFETY: the entries lie behind two words, and at is below size, which is how many there are.
            let first = unsafe { self.avail.add(2 + at) };
            AvailRun { first, n, ring: PhantomData }
        })
    }

    /// True when the driver asked for no calls (without EVENT_IDX).
    #[inline(always)]
    pub fn wants_no_calls(&self) -> bool {
        u16::from_le(self.avail_word(0).load(Ordering::Relaxed)) & AVAIL_NO_INTERRUPT != 0
    }

    /// The used index at which the driver wants a call (with EVENT_IDX).
    #[inline(always)]
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.avail_word(2 + usize::from(self.size())).load(Ordering::Relaxed))
    }

    /// The used index in memory.
    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.used_word(1).load(Ordering::Relaxed))
    }

    /// Where used elements go.
    #[inline(always)]
    pub fn used_ring(&self) -> UsedRing<'_> {
        UsedRing { used: self.used, mask: self.mask, ring: PhantomData }
    }

    /// Where descriptors are.
    #[inline(always)]
    pub fn desc_table(&self) -> DescTable<'_> {
        DescTable { desc: self.desc, mask: self.mask, ring: PhantomData }
    }

    /// Makes all used elements before `idx` visible to the driver.
    #[inline(always)]
    pub fn publish_used(&self, idx: u16) {
        self.used_word(1).store(idx.to_le(), Ordering::Release);
    }

    /// Tells the driver not to kick: we poll. `idx` is our next available index.
    pub fn suppress_kicks(&self, idx: u16) {
        self.used_word(0).store(USED_NO_NOTIFY.to_le(), Ordering::Relaxed);
        // With EVENT_IDX a kick comes when the index passes this one: a whole turn away.
        let event = 2 + 4 * usize::from(self.size());
        self.used_word(event).store(idx.wrapping_sub(1).to_le(), Ordering::Relaxed);
    }

    /// Tells the driver to kick again: whoever serves the ring next may sleep.
    pub fn allow_kicks(&self, idx: u16) {
        self.used_word(0).store(0, Ordering::Relaxed);
        let event = 2 + 4 * usize::from(self.size());
        self.used_word(event).store(idx.to_le(), Ordering::Relaxed);
    }

    /// Asks the CPU to fetch the line of an available entry.
    #[inline(always)]
    pub fn prefetch_avail(&self, idx: u16) {
        prefetch(self.avail.as_ptr().wrapping_add(2 + usize::from(idx & self.mask)).cast());
    }

    /// Asks the CPU to take the line of a used element, which the driver has read, for writing.
    #[inline(always)]
    pub fn prefetch_used(&self, idx: u16) {
        prefetch_write(self.used.as_ptr().wrapping_add(2 + 4 * usize::from(idx & self.mask)).cast());
    }
}
