// UNSAFETY: the ring lies in memory that the device writes at the same time.
//! A packed ring in shared memory (virtio 1.2, 2.8), and nothing but single atomic accesses to it: the descriptors,
//! the driver's event suppression structure, the device's.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::MAX_RING_SIZE;
use super::area::{Addresses, RingMemory};
use crate::virtio::desc::Descriptor;

/// A ring's memory: descriptors, then the two event structures on cache lines of their own.
pub struct PackedArea<M> {
    base: NonNull<u8>,
    memory: M,
    size: u16,
}

// SAFETY: base points into memory, which is Send and moves along; all accesses through it are atomic.
unsafe impl<M: RingMemory> Send for PackedArea<M> {}

const LINE: usize = 64;

impl<M: RingMemory> PackedArea<M> {
    const fn driver_event_offset(size: u16) -> usize {
        (Descriptor::BYTES * size as usize).next_multiple_of(LINE)
    }

    const fn device_event_offset(size: u16) -> usize {
        Self::driver_event_offset(size) + LINE
    }

    /// Bytes of memory a ring of `size` entries needs.
    pub const fn len_bytes(size: u16) -> usize {
        Self::device_event_offset(size) + 4
    }

    /// Lays a ring out at the start of `memory`: no descriptor is available or used in any lap.
    ///
    /// # Panics
    /// If `size` is not 1 to [`MAX_RING_SIZE`] or `memory` is too short or not aligned to 64 bytes: our own set-up is
    /// wrong then.
    pub fn new(memory: M, size: u16) -> Self {
        assert!((1..=MAX_RING_SIZE).contains(&size), "ring size {size}");
        assert!(memory.len_bytes() >= Self::len_bytes(size), "ring memory is too short");
        let base = memory.as_ptr();
        assert!(base.as_ptr().addr().is_multiple_of(LINE), "ring memory is aligned to a cache line");
        let area = PackedArea { memory, base, size };
        for slot in 0..size {
            area.write_address(slot, u64::MAX);
            area.write_state(slot, 0x0000_ffff_ffff_ffff, Ordering::Relaxed);
        }
        area.set_driver_event(0, 0);
        area.cell32(Self::device_event_offset(size)).store(0, Ordering::Relaxed);
        area
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the device finds the parts: `avail` is the driver's event structure, `used` the device's.
    pub fn addresses(&self) -> Addresses {
        let base = self.memory.device_address();
        Addresses {
            desc: base,
            avail: base + Self::driver_event_offset(self.size) as u64,
            used: base + Self::device_event_offset(self.size) as u64,
        }
    }

    #[inline(always)]
    fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < Self::len_bytes(self.size));
        // SAFETY: all callers are in this file and pass the offset of a part, or of a descriptor below the size;
        // new() has checked the whole layout against the length of the memory.
        unsafe { self.base.add(offset) }
    }

    #[inline(always)]
    fn cell32(&self, offset: usize) -> &AtomicU32 {
        let cell = self.at(offset).cast::<u32>().as_ptr();
        // SAFETY: valid while self lives; the event structures are aligned to lines; all accesses are atomic.
        unsafe { AtomicU32::from_ptr(cell) }
    }

    #[inline(always)]
    fn word(&self, slot: u16, which: usize) -> &AtomicU64 {
        assert!(slot < self.size && which < 2, "slots are counted by the driver alone");
        let cell = self.at(Descriptor::BYTES * usize::from(slot) + 8 * which).cast::<u64>().as_ptr();
        // SAFETY: as in cell32; descriptors are 16-byte aligned.
        unsafe { AtomicU64::from_ptr(cell) }
    }

    /// Writes a descriptor's buffer address.
    #[inline(always)]
    pub fn write_address(&self, slot: u16, addr: u64) {
        self.word(slot, 0).store(addr.to_le(), Ordering::Relaxed);
    }

    /// Writes a descriptor's length (bits 0 to 31), id (32 to 47) and flags (48 to 63).
    #[inline(always)]
    pub fn write_state(&self, slot: u16, state: u64, order: Ordering) {
        self.word(slot, 1).store(state.to_le(), order);
    }

    /// The same word as the device left it.
    #[inline(always)]
    pub fn state(&self, slot: u16) -> u64 {
        u64::from_le(self.word(slot, 1).load(Ordering::Acquire))
    }

    /// Says when the driver wants interrupts: slot with wrap counter, flags.
    pub fn set_driver_event(&self, at: u16, flags: u16) {
        let event = u32::from(at) | u32::from(flags) << 16;
        self.cell32(Self::driver_event_offset(self.size)).store(event.to_le(), Ordering::Relaxed);
    }

    /// When the device wants doorbells: slot with wrap counter, flags.
    #[inline(always)]
    pub fn device_event(&self) -> (u16, u16) {
        let event = u32::from_le(self.cell32(Self::device_event_offset(self.size)).load(Ordering::Relaxed));
        (event as u16, (event >> 16) as u16)
    }
}
