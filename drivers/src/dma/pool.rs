// UNSAFETY: packet buffers are raw memory whose one owner is tracked by slot number.
//! Buffer pools: a fixed number of equal buffers, and who has them.
//!
//! A slot is in the pool's depot, in one core's [`PoolCache`], or out as a
//! [`PacketBuf`] (with the CPU, or given to a device). Cores trade whole magazines
//! of [`MAGAZINE`] slots with the [depot](Depot) (Bonwick's magazines), so what is shared is
//! touched once per 64 packets and no two cores write the same line for one packet.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_queue::ArrayQueue;

use super::buf::{Meta, PacketBuf, Received};
use super::depot::Depot;
use super::iova::Iova;
use super::magazine::{MAGAZINE, Magazine, Stock};
use super::region::{DmaError, DmaSpace, PageSize, Region};
use super::{DATA_ROOM, HEADROOM, STRIDE};
use crate::Burst;

/// Most caches (cores and queues) one pool serves.
const MAX_CACHES: usize = 1024;

/// True when the whole buffer lies in one huge page, if the pool has those. The few others are left out: some emulated
/// cards lose a frame whose bytes cross to a page that is not the next one in the machine's memory.
fn lies_in_one_page(slot: &u32) -> bool {
    let page_of = |at: usize| at / PageSize::Huge2M.bytes();
    let first = *slot as usize * STRIDE;
    page_of(first) == page_of(first + HEADROOM + DATA_ROOM - 1)
}

/// How big a pool is.
#[derive(Debug, Clone, Copy)]
pub struct PoolConfig {
    /// Buffers in it.
    pub n_buffers: u32,
}

/// Where a pool's buffers are at one moment. Exact when no core is moving packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct PoolCounts {
    /// Buffers in all.
    pub capacity: u32,
    /// In the depot.
    pub free: u32,
    /// In caches of cores, or live as packets.
    pub out: u32,
}

/// Where a device finds a slot's buffer (its headroom), when that of slot 0 is at `first`.
#[inline(always)]
pub(super) fn iova_of(first: Iova, slot: u32) -> Iova {
    first.offset(u64::from(slot) * STRIDE as u64)
}

/// What all handles of a pool share. Outlives every buffer: see [`PoolOwner`].
pub(super) struct PoolShared {
    base: NonNull<u8>,
    iova: Iova,
    /// Buffers there are; slots there are, of which a few have none.
    capacity: u32,
    n_slots: u32,
    /// Per slot, CPU-only: chain link and offload data. Entry i belongs to the owner of slot i.
    meta: Box<[UnsafeCell<Meta>]>,
    /// Full magazines, and the empty boxes cores trade for them. A core that hands in a full magazine
    /// holds two, so at least two of the depot's boxes are empty then.
    depot: Depot<Magazine>,
    /// Slots dropped outside a hot path, one by one.
    strays: ArrayQueue<u32>,
    n_strays: AtomicU32,
    n_caches: AtomicU32,
    region: Region,
}

// SAFETY: base and region are plain memory valid for the life of PoolShared; meta entries are only written by
// the one owner of their slot (PacketBuf is not Clone, and shared ones refuse); everything else is atomic.
unsafe impl Send for PoolShared {}
// SAFETY: as above.
unsafe impl Sync for PoolShared {}

impl PoolShared {
    /// First byte of a slot's buffer (its headroom).
    #[inline(always)]
    pub(super) fn slot_ptr(&self, slot: u32) -> NonNull<u8> {
        debug_assert!(slot < self.n_slots);
        // SAFETY: slot < n_slots for every slot number handed out at construction, and the region
        // was sized for n_slots * STRIDE.
        unsafe { self.base.add(slot as usize * STRIDE) }
    }

    #[inline(always)]
    pub(super) fn slot_iova(&self, slot: u32) -> Iova {
        iova_of(self.iova, slot)
    }

    /// The metadata cell of a slot; only its owner may look inside.
    #[inline(always)]
    pub(super) fn meta(&self, slot: u32) -> *mut Meta {
        self.meta[slot as usize].get()
    }

    /// Takes a slot back, from anywhere. The counter is the last touch of `self`: from then on the
    /// pool may be freed by its last owner.
    pub(super) fn return_stray(&self, slot: u32) {
        let pushed = self.strays.push(slot);
        debug_assert!(pushed.is_ok(), "the stray queue holds every slot there is");
        self.n_strays.fetch_add(1, Ordering::Release);
    }

    /// Slots neither in a cache nor out. Every magazine in the depot is full.
    fn in_depot(&self) -> u32 {
        let strays = self.n_strays.load(Ordering::Acquire) as i32;
        (self.depot.n_full() * MAGAZINE) as u32 + strays.max(0) as u32
    }
}

/// Frees the pool's memory with the last handle, unless packets are still out: then the memory is
/// kept for ever, so that no [`PacketBuf`] can dangle.
pub(super) struct PoolOwner(NonNull<PoolShared>);

// SAFETY: PoolShared is Send and Sync; the owner adds only the right to free it once.
unsafe impl Send for PoolOwner {}
// SAFETY: as above.
unsafe impl Sync for PoolOwner {}

impl PoolOwner {
    /// Where devices find its first buffer.
    #[inline(always)]
    pub(super) fn first_iova(&self) -> Iova {
        self.get().iova
    }

    /// What its packets name it by.
    #[inline(always)]
    pub(super) fn ptr(&self) -> NonNull<PoolShared> {
        self.0
    }

    #[inline(always)]
    fn get(&self) -> &PoolShared {
        // SAFETY: allocated by Pool::new and freed only by PoolOwner::drop.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for PoolOwner {
    fn drop(&mut self) {
        let shared = self.get();
        let live = shared.capacity - shared.in_depot();
        if live > 0 {
            tracing::warn!(live, "packet pool closed with packets still out: its memory stays allocated");
            return;
        }
        // SAFETY: every slot is in the depot, so no PacketBuf points here; no cache is left, since
        // caches hold the Arc around this owner; the box came from Box::leak in Pool::new.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A pool of packet buffers. Cheap to clone; the handle of set-up and status.
#[derive(Clone)]
pub struct Pool(Arc<PoolOwner>);

impl Pool {
    /// Allocates a pool in `space`.
    pub fn new(space: &DmaSpace, config: PoolConfig) -> Result<Pool, DmaError> {
        let capacity = config.n_buffers.max(1).next_multiple_of(MAGAZINE as u32);
        let slots: Vec<u32> = (0..).filter(lies_in_one_page).take(capacity as usize).collect();
        let n_slots = slots.last().map_or(0, |last| last + 1);
        let region = space.allocate("pool", n_slots as usize * STRIDE)?;
        // Lowest slots come out first.
        let magazines =
            slots.chunks_exact(MAGAZINE).map(|slots| Box::new(slots.iter().rev().copied().collect()));
        let shared = PoolShared {
            base: region.as_ptr(),
            iova: region.iova(),
            capacity,
            n_slots,
            meta: (0..n_slots).map(|_| UnsafeCell::new(Meta::default())).collect(),
            depot: Depot::new(magazines),
            strays: ArrayQueue::new(capacity as usize),
            n_strays: AtomicU32::new(0),
            n_caches: AtomicU32::new(0),
            region,
        };
        Ok(Pool(Arc::new(PoolOwner(NonNull::from(Box::leak(Box::new(shared)))))))
    }

    /// A cache for one core. Set-up only.
    pub fn cache(&self) -> PoolCache {
        let n = self.0.get().n_caches.fetch_add(1, Ordering::Relaxed);
        assert!((n as usize) < MAX_CACHES, "a pool serves at most {MAX_CACHES} caches");
        PoolCache { loaded: Box::default(), spare: Box::default(), owner: self.0.clone() }
    }

    /// Where the buffers are.
    pub fn counts(&self) -> PoolCounts {
        let shared = self.0.get();
        let free = shared.in_depot();
        PoolCounts { capacity: shared.capacity, free, out: shared.capacity - free }
    }

    /// The pages behind the buffers.
    pub fn page_size(&self) -> PageSize {
        self.0.get().region.page_size()
    }
}

/// A buffer that is being filled: nobody else has it.
pub struct Fresh<'a> {
    data: NonNull<u8>,
    buffer: PhantomData<&'a mut u8>,
}

impl Fresh<'_> {
    /// Where its frame goes. [`DATA_ROOM`] bytes can be written there.
    #[inline(always)]
    pub fn data_ptr(&self) -> NonNull<u8> {
        self.data
    }
}

/// One core's stock of free buffers: up to two magazines. Owned by one thread.
pub struct PoolCache {
    loaded: Box<Magazine>,
    spare: Box<Magazine>,
    owner: Arc<PoolOwner>,
}

impl PoolCache {
    /// A buffer with an empty frame at the usual headroom, or `None` when the pool is exhausted.
    #[inline(always)]
    pub fn alloc(&mut self) -> Option<PacketBuf> {
        let slot = match self.loaded.pop() {
            Some(slot) => slot,
            None => self.refill().then(|| self.loaded.pop())??,
        };
        Some(PacketBuf::new(self.owner.0, slot, HEADROOM as u16))
    }

    /// Appends up to `n` buffers with empty frames to `out`, which has room for them; fewer when the pool is exhausted.
    #[inline(always)]
    pub fn alloc_burst(&mut self, n: usize, out: &mut Burst) -> usize {
        let (mut left, pool) = (n, self.owner.0);
        while left > 0 && self.at_hand() > 0 {
            let slots = self.loaded.stock().take_top(left);
            left -= slots.len();
            out.extend(slots.iter().rev().map(|&slot| PacketBuf::new(pool, slot, HEADROOM as u16)));
        }
        n - left
    }

    /// As [`alloc_burst`](Self::alloc_burst), a buffer for each of `items`, but not more than `out` has room for. `fill` puts
    /// something into it and says how long that is, before it goes to `out` (empty, if longer than a buffer): one pass, in which
    /// a packet is two registers.
    #[inline(always)]
    pub fn alloc_each<T>(
        &mut self,
        items: &[T],
        out: &mut Burst,
        mut fill: impl FnMut(Fresh<'_>, &T) -> usize,
    ) -> usize {
        let (items, pool) = (&items[..items.len().min(out.room())], self.owner.0);
        // In a register: every store of the loop could be to the pool, for all the compiler knows.
        let base = self.owner.get().base;
        let (mut n, mut end) = (0, out.end());
        while n < items.len() && self.at_hand() > 0 {
            let slots = self.loaded.stock().take_top(items.len() - n);
            for (&slot, item) in slots.iter().zip(&items[n..]) {
                // SAFETY: slot < n_slots for every slot number there is, and the region was sized for n_slots * STRIDE.
                let data = unsafe { base.add(slot as usize * STRIDE + HEADROOM) };
                let len = fill(Fresh { data, buffer: PhantomData }, item);
                let received = Received::new(len, false).unwrap_or_default();
                let pushed = end.push(PacketBuf::received(pool, slot, received));
                debug_assert!(pushed.is_ok(), "there is room");
            }
            n += slots.len();
        }
        n
    }

    /// Buffers that can be taken without asking the pool: none only when it is exhausted.
    #[inline(always)]
    pub fn at_hand(&mut self) -> usize {
        if self.loaded.len() == 0 {
            self.refill();
        }
        self.loaded.len()
    }

    /// The slots at hand, to be taken one by one; none only when the pool is exhausted.
    #[inline(always)]
    pub(super) fn stock_at_hand(&mut self) -> Stock<'_> {
        self.at_hand();
        self.loaded.stock()
    }

    /// Gives back slots of this pool, which are the caller's.
    #[inline(always)]
    pub(super) fn put_slots(&mut self, slots: &[u32]) {
        if !self.loaded.push_all(slots.iter().copied()) {
            self.put_slots_in_parts(slots);
        }
    }

    #[cold]
    fn put_slots_in_parts(&mut self, mut slots: &[u32]) {
        while !slots.is_empty() {
            if self.loaded.room() == 0 {
                self.unload();
            }
            let (now, later) = slots.split_at(slots.len().min(self.loaded.room()));
            let fits = self.loaded.push_all(now.iter().copied());
            debug_assert!(fits, "there is room for these");
            slots = later;
        }
    }

    /// The pool behind it.
    pub(super) fn owner(&self) -> &Arc<PoolOwner> {
        &self.owner
    }

    /// True when `pool` is the one behind it.
    #[inline(always)]
    pub(super) fn is_of(&self, pool: &PoolOwner) -> bool {
        self.owner.0 == pool.0
    }

    /// Gives the first `n` packets of a burst back.
    #[inline(always)]
    pub fn free_front(&mut self, burst: &mut Burst, n: usize) {
        let pool = self.owner.0;
        // Without branches: 2 instructions a packet fewer than a loop that ends at the first odd one.
        let (mut flags, mut others) = (0, 0);
        for packet in &burst[..n] {
            flags |= packet.slot_flags();
            others |= packet.pool().addr().get() ^ pool.addr().get();
        }
        if PacketBuf::all_free_alone(flags) && others == 0 && self.loaded.room() >= n {
            let fits = self.loaded.push_all(burst.take_front(n).map(PacketBuf::into_slot));
            debug_assert!(fits, "there is room for these");
        } else {
            burst.take_front(n).for_each(|packet| self.free(packet));
        }
    }

    /// Gives a packet back, all its segments; those that are shared with their last handle.
    #[inline(always)]
    pub fn free(&mut self, packet: PacketBuf) {
        if packet.frees_alone() {
            self.free_segment(packet);
        } else {
            self.free_chain(packet);
        }
    }

    #[cold]
    fn free_chain(&mut self, packet: PacketBuf) {
        let mut next = Some(packet);
        while let Some((segment, rest)) = next.and_then(PacketBuf::into_parts) {
            next = rest;
            self.free_segment(segment);
        }
    }

    #[inline(always)]
    fn free_segment(&mut self, segment: PacketBuf) {
        if segment.pool() != self.owner.0 {
            return; // another pool's: dropping it sends it home
        }
        let slot = ManuallyDrop::new(segment).slot();
        if !self.loaded.push(slot) {
            self.unload();
            let pushed = self.loaded.push(slot);
            debug_assert!(pushed, "unload made room");
        }
    }

    /// Slots in this cache.
    pub fn stock(&self) -> usize {
        self.loaded.len() + self.spare.len()
    }

    #[cold]
    fn refill(&mut self) -> bool {
        std::mem::swap(&mut self.loaded, &mut self.spare);
        if self.loaded.len() > 0 {
            return true;
        }
        let shared = self.owner.get();
        if shared.depot.take_full(&mut self.loaded) {
            return true;
        }
        while self.loaded.room() > 0
            && let Some(slot) = shared.strays.pop()
        {
            shared.n_strays.fetch_sub(1, Ordering::Relaxed);
            let pushed = self.loaded.push(slot);
            debug_assert!(pushed, "there is room");
        }
        self.loaded.len() > 0
    }

    /// Makes room in the loaded magazine, which is full.
    #[cold]
    fn unload(&mut self) {
        std::mem::swap(&mut self.loaded, &mut self.spare);
        if self.loaded.room() > 0 {
            return;
        }
        let shared = self.owner.get();
        if !shared.depot.give_full(&mut self.loaded) {
            debug_assert!(false, "a core with two full magazines leaves empty boxes in the depot");
            self.loaded.stock().for_each(|slot| shared.return_stray(slot));
        }
    }
}

impl Drop for PoolCache {
    fn drop(&mut self) {
        let shared = self.owner.get();
        self.loaded.stock().chain(self.spare.stock()).for_each(|slot| shared.return_stray(slot));
        shared.n_caches.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
