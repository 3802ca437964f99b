// UNSAFETY: reads and writes ring memory that a guest shares and may change at any time.
//! The packed ring in memory (virtio 1.2, 2.8): one descriptor ring that both sides write, and an event
//! suppression structure of each.
//!
//! A descriptor's length, id and flags are one 64-bit word, loaded and stored as one, so that a used element
//! appears whole. Owned by one thread at a time.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::layout::{DESCRIPTOR_BYTES, Descriptor, RingAddr};
use crate::memory::{FrontendVa, GuestMap};

/// Flag bits that say whose turn a descriptor is (virtio 1.2, 2.8.1).
pub const F_AVAIL: u16 = 1 << 7;
/// As [`F_AVAIL`], for the device.
pub const F_USED: u16 = 1 << 15;

/// Flags of an event suppression structure (virtio 1.2, 2.8.14).
const EVENT_ENABLE: u16 = 0;
pub(super) const EVENT_DISABLE: u16 = 1;
pub(super) const EVENT_DESC: u16 = 2;

/// A ring's memory, mapped: all three parts lie whole in regions of `map`, aligned.
pub struct PackedMemory {
    desc: NonNull<u64>,
    /// The driver's wish for calls: SET_VRING_ADDR's available ring.
    driver_event: NonNull<u32>,
    /// Our wish for kicks: SET_VRING_ADDR's used ring.
    device_event: NonNull<u32>,
    size: u16,
    map: Arc<GuestMap>,
}

// SAFETY: the pointers lead into mappings that `map` keeps alive.
unsafe impl Send for PackedMemory {}

/// A descriptor in the ring: the buffer's address; length, id and flags.
#[repr(transparent)]
pub struct Desc([AtomicU64; 2]);

const _: () = assert!(size_of::<Desc>() == DESCRIPTOR_BYTES as usize);

impl Desc {
    /// The second word: what the descriptor says is there once this is read.
    #[inline(always)]
    pub fn state(&self) -> State {
        State(u64::from_le(self.0[1].load(Ordering::Acquire)))
    }

    /// The buffer address.
    #[inline(always)]
    pub fn buffer(&self) -> u64 {
        u64::from_le(self.0[0].load(Ordering::Relaxed))
    }

    /// Writes a used element; everything written before is visible to a driver that sees it.
    #[inline(always)]
    pub fn write_used(&self, used: State) {
        self.0[1].store(used.0.to_le(), Ordering::Release);
    }

    /// One that lies in no ring.
    #[inline(always)]
    pub fn aside(state: State) -> Desc {
        Desc([AtomicU64::new(0), AtomicU64::new(state.0.to_le())])
    }
}

impl PackedMemory {
    /// Translates a ring of `size` descriptors. `None` when a part is not aligned or does not lie whole in one region.
    pub fn new(map: Arc<GuestMap>, addr: RingAddr, size: u16) -> Option<PackedMemory> {
        assert!((1..=1 << 15).contains(&size), "ring sizes are checked when they are set");
        let part = |va: FrontendVa, align: u64, len: u32| {
            let host = map.translate_va(va, len)?;
            let aligned = (va.0 | host.as_ptr() as u64) & (align - 1) == 0;
            aligned.then_some(host)
        };
        let desc = part(addr.desc, 16, u32::from(size) * DESCRIPTOR_BYTES)?.cast();
        let driver_event = part(addr.avail, 4, 4)?.cast();
        let device_event = part(addr.used, 4, 4)?.cast();
        Some(PackedMemory { desc, driver_event, device_event, size, map })
    }

    /// Descriptors in the ring; any number up to 32,768.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The guest's memory.
    #[inline(always)]
    pub fn map(&self) -> &GuestMap {
        &self.map
    }

    /// Where the descriptors lie in our address space, and where our event suppression structure does.
    pub(super) fn starts(&self) -> (NonNull<u8>, NonNull<u8>) {
        (self.desc.cast(), self.device_event.cast())
    }

    /// Descriptor `slot`; the first when there is none such.
    #[inline(always)]
    fn desc(&self, slot: u16) -> &Desc {
        debug_assert!(slot < self.size);
        let slot = if slot < self.size { usize::from(slot) } else { 0 };
        // SAFETY: the ring was translated for size descriptors of two words each, and slot is below size.
        let at = unsafe { self.desc.add(2 * slot) };
        // SAFETY: aligned, mapped while self lives; atomics may change under a shared reference.
        unsafe { at.cast().as_ref() }
    }

    /// Writes a used element into `slot`; everything written before is visible to a driver that sees it.
    #[inline(always)]
    pub fn write_used(&self, slot: u16, used: State) {
        self.desc(slot).write_used(used);
    }

    /// The second word of descriptor `slot`: what it says is there once this is read.
    #[inline(always)]
    pub fn state(&self, slot: u16) -> State {
        self.desc(slot).state()
    }

    /// The buffer address of descriptor `slot`.
    #[inline(always)]
    pub fn buffer(&self, slot: u16) -> u64 {
        self.desc(slot).buffer()
    }

    /// The descriptors from `slot` on, up to `n` and to the end of the ring: a loop over them checks no slot.
    #[inline(always)]
    pub fn run(&self, slot: u16, n: u16) -> &[Desc] {
        let slot = slot.min(self.size);
        let n = n.min(self.size - slot);
        // SAFETY: slot <= size, and there are size descriptors of two words each.
        let first = unsafe { self.desc.add(2 * usize::from(slot)) };
        // SAFETY: n descriptors from slot on were translated, aligned, and are mapped while self lives; atomics may change
        // under a shared reference.
        unsafe { std::slice::from_raw_parts(first.as_ptr().cast::<Desc>(), usize::from(n)) }
    }

    /// The driver's event suppression structure: slot and wrap counter, flags.
    #[inline(always)]
    pub fn driver_event(&self) -> (u16, u16) {
        // SAFETY: translated for four aligned bytes, mapped while self lives.
        let event = unsafe { AtomicU32::from_ptr(self.driver_event.as_ptr()) };
        let event = u32::from_le(event.load(Ordering::Relaxed));
        (event as u16, (event >> 16) as u16)
    }

    fn set_device_event(&self, flags: u16) {
        // SAFETY: translated for four aligned bytes, mapped while self lives.
        let event = unsafe { AtomicU32::from_ptr(self.device_event.as_ptr()) };
        event.store((u32::from(flags) << 16).to_le(), Ordering::Relaxed);
    }

    /// Tells the driver not to kick: we poll.
    pub fn suppress_kicks(&self) {
        self.set_device_event(EVENT_DISABLE);
    }

    /// Tells the driver to kick again: whoever serves the ring next may sleep.
    pub fn allow_kicks(&self) {
        self.set_device_event(EVENT_ENABLE);
    }
}

/// A descriptor's length, id and flags, copied out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State(pub(super) u64);

impl std::ops::BitOr for State {
    type Output = State;

    #[inline(always)]
    fn bitor(self, other: State) -> State {
        State(self.0 | other.0)
    }
}

impl State {
    /// As it goes into the ring.
    #[inline(always)]
    pub fn new(len: u32, id: u16, flags: u16) -> State {
        State(u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48)
    }

    /// Buffer id.
    #[inline(always)]
    pub fn id(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Flags.
    #[inline(always)]
    pub fn flags(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Length.
    #[inline(always)]
    pub fn len(self) -> u32 {
        self.0 as u32
    }

    /// With the buffer's address, in the form both layouts share: `next` is the buffer id.
    #[inline(always)]
    pub fn descriptor(self, addr: u64) -> Descriptor {
        Descriptor { addr, len: self.0 as u32, flags: self.flags(), next: self.id() }
    }
}
