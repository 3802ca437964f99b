//! What both ring layouts have in common: [`Ring`], which a half polls, and [`Layout`], through which the
//! walkers of both directions see a ring without knowing whether it is split or packed.
//!
//! The layout is picked once per burst (`match ring { Split, Packed }`); behind that every call is static.
//! Owned by the polling half; made and taken apart by the port's control thread.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use arrayvec::ArrayVec;
use spp_drivers::{BURST, tsc};

use super::chain::{Chain, ChainError, Direction};
use super::layout::{Descriptor, RingAddr, SplitMemory};
use super::pace::Pace;
use super::packed_layout::PackedMemory;
use super::{CallFd, RingFault, RingFeatures};
use crate::dirty::RingLog;
use crate::memory::{GuestMap, Translator};

/// A chain the driver has made available, not taken yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// Its first descriptor, copied out.
    pub first: Descriptor,
    /// What the used element names: the first descriptor's index (split), the buffer id (packed).
    pub id: u16,
    /// Where its first descriptor lies in the ring; packed, only of a chain of several.
    pub at: u16,
    /// Entries it takes: one (split), its descriptors (packed).
    pub n_slots: u16,
}

/// Chains of one burst, in the driver's order.
pub(crate) type Entries<L> = ArrayVec<<L as Layout>::Entry, BURST>;

/// One used element: a chain given back, or with IN_ORDER a run of chains that ends with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub id: u16,
    /// Entries it frees.
    pub n_slots: u16,
    /// Bytes written into its buffers.
    pub len: u32,
}

impl Head {
    /// Given back with `len` bytes written.
    #[inline(always)]
    pub fn used(&self, len: u32) -> Used {
        Used { id: self.id, n_slots: self.n_slots, len }
    }
}

/// Where a ring is, in its layout's own counting: free-running indices (split), or slots with the wrap counter
/// in bit 15 (packed).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Next chain to take.
    pub avail: u16,
    /// Next used element to write.
    pub used: u16,
    /// Used elements before this one are visible to the driver.
    pub published: u16,
    /// The driver's index as last read (split).
    pub seen: u16,
    /// The used element at `published`, which is written last (packed).
    pub held: u64,
}

impl Place {
    pub(super) fn new(avail: u16, used: u16) -> Place {
        Place { avail, used, published: used, seen: avail, held: 0 }
    }
}

/// A ring's memory, seen as chains that come and used elements that go. No state: that is in [`Place`].
pub(crate) trait Layout: Sized {
    /// What the ring itself says about a chain, copied out and checked: small, so that a burst of them is a few lines.
    type Entry: Copy;

    /// Where descriptors are, for a loop.
    type Table<'r>: Copy
    where
        Self: 'r;

    /// The guest's memory.
    fn map(&self) -> &GuestMap;

    /// Entries of the ring.
    fn size(&self) -> u16;

    /// Where a ring goes on whose SET_VRING_BASE was `base`.
    fn place(&self, base: u32) -> Place;

    /// What GET_VRING_BASE answers at `place`.
    fn base(place: &Place) -> u32;

    /// Reads how far the driver is, once a burst.
    fn look(&self, place: &mut Place) -> Result<(), RingFault>;

    /// Puts up to `max` (at most a burst of) chains from the front into `entries`, which is empty, as far as the last look saw.
    fn entries(&self, place: &Place, max: usize, entries: &mut Entries<Self>) -> Result<(), RingFault>;

    /// For [`head`](Self::head).
    fn table(&self) -> Self::Table<'_>;

    /// A chain with its first descriptor, which is copied out here: asked for once each burst, by whoever checks the copy.
    fn head(table: Self::Table<'_>, entry: Self::Entry) -> Head;

    /// The chain of `entry` given back with `len` bytes written.
    fn used(entry: Self::Entry, len: u32) -> Used;

    /// The chain at `cursor`, which starts as `place.avail` and moves on behind it.
    fn head_at(&self, place: &Place, cursor: &mut u16) -> Result<Option<Head>, RingFault>;

    /// Appends the buffers of a chain.
    fn gather<'m>(
        &self,
        head: &Head,
        memory: &mut Translator<'m>,
        direction: Direction,
        indirect_allowed: bool,
        chain: &mut Chain<'m>,
    ) -> Result<(), ChainError>;

    /// Takes chains off the front and writes their used elements, not visible before [`publish`](Self::publish). All
    /// that go to the guest are said to be written as far as their length.
    fn complete(&self, place: &mut Place, direction: Direction, used: impl Iterator<Item = Used>);

    /// Asks the CPU to fetch what bursts will read soon, now that `n_slots` entries have been taken since it was asked last.
    fn look_ahead(&self, place: &Place, n_slots: u16);

    /// Makes every used element before `place.used` visible.
    fn publish(&self, place: &Place);

    /// Whether the driver wants a call now that used elements from `old` to `new` are visible.
    fn wants_call(&self, old: u16, new: u16, event_idx: bool) -> bool;

    /// Tells the driver not to kick: we poll.
    fn suppress_kicks(&self, place: &Place);

    /// Tells the driver to kick again: whoever serves the ring next may sleep.
    fn allow_kicks(&self, place: &Place);

    /// Marks what [`complete`](Self::complete) and [`publish`](Self::publish) wrote for used elements from `old` to `new`.
    fn log_used(&self, old: u16, new: u16, log: &RingLog);

    /// Marks what [`suppress_kicks`](Self::suppress_kicks) and [`allow_kicks`](Self::allow_kicks) wrote.
    fn log_kicks(&self, log: &RingLog);

    /// Vanished memory reads as zeros, which looks like a lie: name the cause.
    #[cold]
    fn blame(&self, fault: RingFault) -> RingFault {
        if self.map().is_poisoned() { RingFault::MemoryGone } else { fault }
    }
}

/// A running ring of one layout. Its parts are borrowed apart by the walkers.
pub(crate) struct Queue<L> {
    pub layout: L,
    pub place: Place,
    /// What was negotiated.
    pub features: RingFeatures,
    /// How to interrupt the guest; without it the guest polls.
    pub call: Option<Arc<CallFd>>,
    /// While the guest migrates: where every write is noted.
    pub log: Option<RingLog>,
    /// Of a ring that frames are taken from.
    pace: Pace,
}

impl<L: Layout> Queue<L> {
    fn new(layout: L, features: RingFeatures, call: Option<Arc<CallFd>>, base: u32) -> Self {
        let place = layout.place(base);
        Layout::suppress_kicks(&layout, &place);
        Queue { layout, place, features, call, log: None, pace: Pace::default() }
    }

    /// Reads how far the driver is. Looks also whether the guest's memory is still all there.
    #[inline(always)]
    pub fn look(&mut self) -> Result<(), RingFault> {
        if self.layout.map().is_poisoned() {
            return Err(RingFault::MemoryGone);
        }
        self.layout.look(&mut self.place)
    }

    /// As [`look`](Self::look), and puts up to `max` (at most a burst of) chains from the front into `entries`, which is empty:
    /// none while the ring is [left alone](Pace). Where what the guest sends is taken.
    #[inline(always)]
    pub fn poll(&mut self, max: usize, entries: &mut Entries<L>) -> Result<(), RingFault> {
        if !self.pace.may_look(tsc::now) {
            return Ok(());
        }
        self.look()?;
        self.layout.entries(&self.place, max, entries)?;
        match entries.len() {
            0 if max > 0 => self.pace.found_none(tsc::now),
            n => self.pace.found(n),
        }
        Ok(())
    }

    /// Publishes everything used since the last call, and calls the guest if it asked for it. True when it was called.
    #[inline(always)]
    pub fn publish(&mut self) -> bool {
        let Place { used, published: old, .. } = self.place;
        if old == used {
            return false;
        }
        self.layout.publish(&self.place);
        self.place.published = used;
        self.layout.look_ahead(&self.place, used.wrapping_sub(old));
        if let Some(log) = &self.log {
            self.layout.log_used(old, used, log);
        }
        // The driver writes its wish, then reads what is used; we write what is used, then read its wish.
        // Without a full fence both could miss the other's store (virtio 1.2, 2.7.7.1).
        fence(Ordering::SeqCst);
        let wanted = self.layout.wants_call(old, used, self.features.event_idx);
        match &self.call {
            Some(call) if wanted => {
                call.signal();
                true
            }
            _ => false,
        }
    }

    fn swap_layout(&mut self, layout: &mut L) {
        std::mem::swap(&mut self.layout, layout);
        Layout::suppress_kicks(&self.layout, &self.place);
        self.log_kicks();
    }

    fn swap_log(&mut self, log: Option<RingLog>) -> Option<RingLog> {
        let old = std::mem::replace(&mut self.log, log);
        // What was written just before it came.
        self.log_kicks();
        old
    }

    fn rest(&self) {
        Layout::allow_kicks(&self.layout, &self.place);
        self.log_kicks();
    }

    fn log_kicks(&self) {
        if let Some(log) = &self.log {
            self.layout.log_kicks(log);
        }
    }
}

/// A ring's memory in either layout, mapped and checked.
pub struct RingMemory(Either<SplitMemory, PackedMemory>);

enum Either<S, P> {
    Split(S),
    Packed(P),
}

impl RingMemory {
    /// Translates a ring of `size` entries (a power of two, unless packed). `None` when a part is not aligned or
    /// does not lie whole in one region.
    pub fn new(map: Arc<GuestMap>, addr: RingAddr, size: u16, packed: bool) -> Option<RingMemory> {
        let memory = if packed {
            Either::Packed(PackedMemory::new(map, addr, size)?)
        } else {
            Either::Split(SplitMemory::new(map, addr, size)?)
        };
        Some(RingMemory(memory))
    }
}

/// A ring that a half polls. Boxed by the control thread, so that handing it over moves a pointer.
pub struct Ring(pub(crate) AnyRing);

/// The layouts there are.
pub(crate) enum AnyRing {
    Split(Queue<SplitMemory>),
    Packed(Queue<PackedMemory>),
}

/// Runs one expression for whichever layout a ring has.
macro_rules! for_layout {
    ($ring:expr, $queue:ident => $body:expr) => {
        match $ring {
            $crate::vring::walk::AnyRing::Split($queue) => $body,
            $crate::vring::walk::AnyRing::Packed($queue) => $body,
        }
    };
}
pub(crate) use for_layout;

impl Ring {
    /// A ring that goes on where the frontend says: `base` is SET_VRING_BASE's number (virtio 1.2, 2.7.13 and 2.8;
    /// vhost-user, "Vring state description").
    pub fn new(memory: RingMemory, features: RingFeatures, call: Option<Arc<CallFd>>, base: u32) -> Ring {
        Ring(match memory.0 {
            Either::Split(memory) => AnyRing::Split(Queue::new(memory, features, call, base)),
            Either::Packed(memory) => AnyRing::Packed(Queue::new(memory, features, call, base)),
        })
    }

    /// The number GET_VRING_BASE answers with.
    pub fn base(&self) -> u32 {
        match &self.0 {
            AnyRing::Split(queue) => SplitMemory::base(&queue.place),
            AnyRing::Packed(queue) => PackedMemory::base(&queue.place),
        }
    }

    /// Moves the ring to other memory (the same ring in a new map); the old one remains in `memory`.
    pub fn swap_memory(&mut self, memory: &mut RingMemory) {
        match (&mut self.0, &mut memory.0) {
            (AnyRing::Split(queue), Either::Split(memory)) => queue.swap_layout(memory),
            (AnyRing::Packed(queue), Either::Packed(memory)) => queue.swap_layout(memory),
            _ => debug_assert!(false, "the control thread maps a ring as what it was started as"),
        }
    }

    /// Interrupts through `call` from now on; returns the old one.
    pub fn swap_call(&mut self, call: Option<Arc<CallFd>>) -> Option<Arc<CallFd>> {
        for_layout!(&mut self.0, queue => std::mem::replace(&mut queue.call, call))
    }

    /// Notes every write in `log` from now on; returns the old one.
    pub fn swap_log(&mut self, log: Option<RingLog>) -> Option<RingLog> {
        for_layout!(&mut self.0, queue => queue.swap_log(log))
    }

    /// Lets the guest kick again; for a ring that stops.
    pub fn rest(&self) {
        for_layout!(&self.0, queue => queue.rest());
    }
}
