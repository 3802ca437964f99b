//! [`SplitRing`]: buffers given to a device, and taken back only by a completed descriptor.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{Ordering, fence};

use super::area::{Addresses, RingArea, RingMemory};
use crate::virtio::desc::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, USED_F_NO_NOTIFY,
};

/// A lie of the device about the ring. The ring takes nothing more from it until it is set up anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingFault {
    /// The used index moved further than buffers are out.
    IndexJump {
        /// Where it was.
        from: u16,
        /// Where it is said to be.
        to: u16,
        /// Buffers out.
        outstanding: u16,
    },
    /// A completed id beyond the ring.
    IdOutOfRange {
        /// The id.
        id: u32,
        /// Entries of the ring.
        ring_size: u16,
    },
    /// A completed id that is not out: never posted, or completed twice.
    NeverPosted {
        /// The id.
        id: u16,
    },
    /// More bytes written than the buffer has.
    LengthOverflow {
        /// The id.
        id: u16,
        /// Bytes said to be written.
        len_bytes: u32,
        /// Bytes there are.
        room_bytes: u32,
    },
}

impl fmt::Display for RingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingFault::IndexJump { from, to, outstanding } => {
                write!(f, "used index jumped from {from} to {to} with {outstanding} buffers out")
            }
            RingFault::IdOutOfRange { id, ring_size } => {
                write!(f, "descriptor {id} completed in a ring of {ring_size}")
            }
            RingFault::NeverPosted { id } => {
                write!(f, "descriptor {id} completed without having been posted")
            }
            RingFault::LengthOverflow { id, len_bytes, room_bytes } => {
                write!(f, "descriptor {id} completed with {len_bytes} bytes in a buffer of {room_bytes}")
            }
        }
    }
}

impl std::error::Error for RingFault {}

impl RingFault {
    /// What is wrong, and the word the device wrote: for [`Fault::Garbage`](crate::nic::fault::Fault::Garbage).
    pub const fn what_and_value(&self) -> (&'static str, u64) {
        match *self {
            RingFault::IndexJump { to, .. } => ("the used index jumped beyond what is out", to as u64),
            RingFault::IdOutOfRange { id, .. } => ("a descriptor beyond the ring was completed", id as u64),
            RingFault::NeverPosted { id } => {
                ("a descriptor was completed without having been posted", id as u64)
            }
            RingFault::LengthOverflow { len_bytes, .. } => {
                ("a buffer was completed with more bytes than it has", len_bytes as u64)
            }
        }
    }
}

/// A piece of a buffer, as the device sees it.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// Bytes the device may write.
    room: u32,
}

impl Segment {
    /// Bytes the device reads.
    #[inline(always)]
    pub const fn readable(addr: u64, len_bytes: u32) -> Self {
        Segment { addr, len: len_bytes, flags: 0, room: 0 }
    }

    /// Bytes the device writes.
    #[inline(always)]
    pub const fn writable(addr: u64, len_bytes: u32) -> Self {
        Segment { addr, len: len_bytes, flags: DESC_F_WRITE, room: len_bytes }
    }

    /// A table of `n` descriptors, all of them for the device to read (virtio 1.2, 2.7.5.3).
    pub const fn indirect(addr: u64, n: u16) -> Self {
        Self::indirect_writable(addr, n, 0)
    }

    /// A table of `n` descriptors, all of them for the device to write: `room_bytes` together.
    pub const fn indirect_writable(addr: u64, n: u16, room_bytes: u32) -> Self {
        let len = n as u32 * Descriptor::BYTES as u32;
        Segment { addr, len, flags: DESC_F_INDIRECT, room: room_bytes }
    }

    /// Bytes the device may write; `None` when it may only read.
    #[inline(always)]
    pub(super) const fn room_bytes(&self) -> Option<u32> {
        if self.room > 0 { Some(self.room) } else { None }
    }
}

pub(super) struct Slot<T> {
    /// What is out under this head (split) or id (packed).
    pub token: Option<T>,
    pub n_descriptors: u16,
    /// The chain's last descriptor (split).
    pub last: u16,
    /// Bytes the device may write; `None` when it may only read, and its length means nothing.
    pub room_bytes: Option<u32>,
}

impl<T> Slot<T> {
    pub const EMPTY: Self = Slot { token: None, n_descriptors: 0, last: 0, room_bytes: None };

    /// What was out under `id`, with the bytes written, if `len_bytes` can be true.
    #[inline(always)]
    pub fn take(&mut self, id: u16, len_bytes: u32) -> Result<(T, u32), RingFault> {
        let written_bytes = match self.room_bytes {
            Some(room_bytes) if len_bytes > room_bytes => {
                return Err(RingFault::LengthOverflow { id, len_bytes, room_bytes });
            }
            Some(_) => len_bytes,
            None => 0,
        };
        let token = self.token.take().ok_or(RingFault::NeverPosted { id })?;
        self.room_bytes = None;
        Ok((token, written_bytes))
    }
}

/// How far from our place an event index lies that is never passed. Half way round: the index just behind would do but for
/// a device that publishes, and reads it only after we have taken what it published and moved the index on to there.
const NEVER: u16 = 0x8000;

/// The driver side of a split ring. `T` is what is given to the device with a buffer: it is in
/// the ring's keeping until the device completes the buffer, or the ring is dropped.
///
/// Everything the device could confuse (chain links, what is out, lengths) is kept in private
/// memory; shared memory is only written, but for the used ring.
pub struct SplitRing<M, T> {
    area: RingArea<M>,
    slots: Box<[Slot<T>]>,
    /// Private links: of the free list, and of each chain that is out.
    next: Box<[u16]>,
    free_head: u16,
    free_tail: u16,
    n_free: u16,
    /// Next avail entry to write, free-running.
    avail_idx: u16,
    /// What the device has been told, free-running.
    published: u16,
    /// Where the device was last told about by doorbell decision, free-running.
    kicked: u16,
    /// Next used entry to read, free-running.
    used_idx: u16,
    /// Heads in the order they were posted, when the device completes in order.
    order: Option<VecDeque<u16>>,
    /// In order: the completion that was taken in part, and stands for buffers up to its id. Id and length.
    run: Option<(u32, u32)>,
    event_idx: bool,
    calls: bool,
    fault: Option<RingFault>,
}

impl<M: RingMemory, T> SplitRing<M, T> {
    /// Bytes of memory for a ring of `size` entries.
    pub const fn memory_bytes(size: u16) -> usize {
        RingArea::<M>::len_bytes(size)
    }

    /// An empty ring of `size` entries (a power of two) at the start of `memory`, with indices at 0.
    pub fn new(memory: M, size: u16, event_idx: bool) -> Self {
        Self::starting_at(memory, size, event_idx, 0)
    }

    /// As [`new`](Self::new), with both indices at `first_index`, for a device that is told so
    /// (vhost-user SET_VRING_BASE).
    pub fn starting_at(memory: M, size: u16, event_idx: bool, first_index: u16) -> Self {
        let area = RingArea::new(memory, size, first_index);
        let ring = SplitRing {
            area,
            slots: (0..size).map(|_| Slot::EMPTY).collect(),
            next: (1..=size).collect(),
            free_head: 0,
            free_tail: size - 1,
            n_free: size,
            avail_idx: first_index,
            published: first_index,
            kicked: first_index,
            used_idx: first_index,
            order: None,
            run: None,
            event_idx,
            calls: false,
            fault: None,
        };
        ring.tell_call_wish();
        ring
    }

    /// VIRTIO_F_IN_ORDER was negotiated: descriptors are used in ring order, and one completion may stand for all
    /// buffers posted before it (virtio 1.2, 2.7.9).
    pub fn in_order(mut self) -> Self {
        self.order = Some(VecDeque::with_capacity(usize::from(self.size())));
        self
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.area.size()
    }

    /// Where the device finds the ring.
    pub fn addresses(&self) -> Addresses {
        self.area.addresses()
    }

    /// The memory the ring lies in.
    pub fn memory(&self) -> &M {
        self.area.memory()
    }

    /// Descriptors free.
    #[inline(always)]
    pub fn n_free(&self) -> usize {
        self.n_free as usize
    }

    /// Buffers the device has and has not completed as far as we have looked.
    #[inline(always)]
    pub fn outstanding(&self) -> u16 {
        self.published.wrapping_sub(self.used_idx)
    }

    /// The used index up to which completions were taken: where a device that restarts goes on.
    pub fn used_idx(&self) -> u16 {
        self.used_idx
    }

    /// The first lie of the device, if there was one.
    pub fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// Asks for interrupts (calls) or not; not is how a ring starts.
    pub fn want_calls(&mut self, on: bool) {
        self.calls = on;
        self.tell_call_wish();
        // The wish is visible before the next look at the used index, or a completion between both is missed.
        fence(Ordering::SeqCst);
    }

    #[inline(always)]
    fn tell_call_wish(&self) {
        match (self.event_idx, self.calls) {
            (false, on) => self.area.set_avail_flags(if on { 0 } else { AVAIL_F_NO_INTERRUPT }),
            (true, true) => self.area.set_used_event(self.used_idx),
            (true, false) => self.area.set_used_event(self.used_idx.wrapping_add(NEVER)),
        }
    }

    /// Gives a buffer to the device, visible with the next [`publish`](Self::publish). Gives the
    /// token back when fewer descriptors are free than there are segments.
    ///
    /// # Panics
    /// If there are no segments.
    #[inline(always)]
    pub fn post(&mut self, segments: &[Segment], token: T) -> Result<(), T> {
        assert!(!segments.is_empty(), "a buffer has at least one segment");
        if segments.len() > self.n_free as usize {
            return Err(token);
        }
        let head = self.free_head;
        let (mut at, mut room_bytes) = (head, None);
        for (i, segment) in segments.iter().enumerate() {
            let more = i + 1 < segments.len();
            let next = self.next[at as usize];
            let descriptor = Descriptor {
                addr: segment.addr,
                len: segment.len,
                flags: segment.flags | if more { DESC_F_NEXT } else { 0 },
                next: if more { next } else { 0 },
            };
            self.area.write_descriptor(at, descriptor);
            if let Some(room) = segment.room_bytes() {
                room_bytes = Some(room_bytes.unwrap_or(0u32).saturating_add(room));
            }
            if more {
                at = next;
            }
        }
        self.free_head = self.next[at as usize];
        self.n_free -= segments.len() as u16;
        let slot = &mut self.slots[head as usize];
        debug_assert!(slot.token.is_none(), "a free descriptor has nothing out");
        *slot = Slot { token: Some(token), n_descriptors: segments.len() as u16, last: at, room_bytes };
        if let Some(order) = &mut self.order {
            order.push_back(head);
        }
        self.area.write_avail(self.avail_idx, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        Ok(())
    }

    /// Shows the device everything posted since the last call, at once. True when it wants a doorbell.
    #[inline(always)]
    pub fn publish(&mut self) -> bool {
        if self.avail_idx == self.published {
            return false;
        }
        self.published = self.avail_idx;
        self.area.publish_avail(self.published);
        // The device checks avail after it allows doorbells; we look at its wish after avail.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.kicked, self.published);
        if !self.event_idx {
            return self.area.used_flags() & USED_F_NO_NOTIFY == 0;
        }
        // virtio 1.2, 2.7.10: is the event between old (inclusive) and new (exclusive)?
        let past_event = self.published.wrapping_sub(self.area.avail_event()).wrapping_sub(1);
        past_event < self.published.wrapping_sub(old)
    }

    /// Takes up to `limit` completed buffers, in the device's order; `sink` gets the token and the bytes
    /// written (0 for a buffer the device only read). After a lie nothing is taken any more.
    #[inline(always)]
    pub fn reap(&mut self, limit: usize, mut sink: impl FnMut(T, u32)) -> Result<usize, RingFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let said = self.area.used_idx();
        let ready = said.wrapping_sub(self.used_idx);
        if ready == 0 {
            return Ok(0);
        }
        if ready > self.outstanding() {
            let (from, outstanding) = (self.used_idx, self.outstanding());
            return Err(self.fail(RingFault::IndexJump { from, to: said, outstanding }));
        }
        let n = limit.min(ready as usize);
        let mut n_taken = 0;
        while n_taken < n {
            let taken = if self.order.is_none() {
                let (id, len_bytes) = self.area.used_entry(self.used_idx);
                self.complete(id, len_bytes).map(|(token, written_bytes)| {
                    sink(token, written_bytes);
                    1
                })
            } else {
                self.complete_run(ready - n_taken as u16, (n - n_taken) as u16, &mut sink)
            };
            match taken {
                Ok(taken) => {
                    n_taken += usize::from(taken);
                    self.used_idx = self.used_idx.wrapping_add(taken);
                }
                Err(fault) => return Err(self.fail(fault)),
            }
        }
        if self.event_idx && n > 0 {
            self.tell_call_wish();
        }
        Ok(n)
    }

    #[inline(always)]
    fn complete(&mut self, id: u32, len_bytes: u32) -> Result<(T, u32), RingFault> {
        let ring_size = self.size();
        let Some(slot) = self.slots.get_mut(id as usize) else {
            return Err(RingFault::IdOutOfRange { id, ring_size });
        };
        let head = id as u16;
        let (token, written_bytes) = slot.take(head, len_bytes)?;
        self.n_free += slot.n_descriptors;
        let last = slot.last;
        if self.order.is_none() {
            // The descriptors freed last are the warmest.
            self.next[last as usize] = self.free_head;
            self.free_head = head;
        } else if self.n_free == slot.n_descriptors {
            (self.free_head, self.free_tail) = (head, last);
        } else {
            self.next[self.free_tail as usize] = head;
            self.free_tail = last;
        }
        Ok((token, written_bytes))
    }

    /// In order: an element stands for every buffer posted up to its id, of which `ready` may be taken at most, and
    /// `limit` are taken now. Returns how many.
    fn complete_run(
        &mut self,
        ready: u16,
        limit: u16,
        sink: &mut impl FnMut(T, u32),
    ) -> Result<u16, RingFault> {
        let (id, len_bytes) = match self.run.take() {
            Some(run) => run,
            None => self.area.used_entry(self.used_idx),
        };
        // Before anything is handed out: is there such a buffer?
        match self.slots.get(id as usize) {
            None => return Err(RingFault::IdOutOfRange { id, ring_size: self.size() }),
            Some(Slot { token: None, .. }) => return Err(RingFault::NeverPosted { id: id as u16 }),
            Some(_) => {}
        }
        let mut n = 0;
        while n < limit {
            let Some(head) = self.order.as_mut().and_then(VecDeque::pop_front) else { break };
            let last = u32::from(head) == id;
            // One that is stood for was filled, if it was to be written at all.
            let filled = self.slots[head as usize].room_bytes.unwrap_or(0);
            let (token, written_bytes) = self.complete(head.into(), if last { len_bytes } else { filled })?;
            sink(token, written_bytes);
            n += 1;
            if last {
                return Ok(n);
            }
        }
        if n == ready {
            return Err(RingFault::NeverPosted { id: id as u16 });
        }
        self.run = Some((id, len_bytes));
        Ok(n)
    }

    #[cold]
    fn fail(&mut self, fault: RingFault) -> RingFault {
        self.fault = Some(fault);
        fault
    }

    /// Takes everything back that is out. Only for a device that is stopped: it must not touch the
    /// buffers any more.
    pub fn take_back(&mut self) -> impl Iterator<Item = T> + '_ {
        self.slots.iter_mut().filter_map(|slot| slot.token.take())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
pub(super) mod tests;
