//! [`PackedRing`]: the driver side of a packed virtqueue (virtio 1.2, 2.8), with the same calls as
//! [`SplitRing`](super::SplitRing).

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use super::area::{Addresses, RingMemory};
use super::packed_area::PackedArea;
use super::split::{RingFault, Segment, Slot};
use crate::virtio::desc::DESC_F_NEXT;

const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;
/// The wrap counter in a place, and in the event structures.
const WRAP: u16 = 1 << 15;
const EVENT_ENABLE: u16 = 0;
const EVENT_DISABLE: u16 = 1;
const EVENT_DESC: u16 = 2;

/// The driver side of a packed ring. `T` is what is given to the device with a buffer: it is in
/// the ring's keeping until the device completes the buffer, or the ring is dropped.
///
/// What the device could confuse (chain lengths, what is out) is kept in private memory.
pub struct PackedRing<M, T> {
    area: PackedArea<M>,
    /// By buffer id.
    slots: Box<[Slot<T>]>,
    free_ids: Vec<u16>,
    n_free: u16,
    n_out: u16,
    /// Places: slot, and wrap counter in bit 15. Next to write, first not published, next to take back.
    avail: u16,
    published: u16,
    used: u16,
    /// The second word of the descriptor at `published`, written last.
    held: u64,
    /// Ids in the order they were posted, when the device completes in order.
    order: Option<VecDeque<u16>>,
    /// In order: the completion that was taken in part, and stands for buffers up to its id. Id and length.
    run: Option<(u16, u32)>,
    event_idx: bool,
    calls: bool,
    fault: Option<RingFault>,
}

#[inline(always)]
fn state(len: u32, id: u16, flags: u16) -> u64 {
    u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
}

impl<M: RingMemory, T> PackedRing<M, T> {
    /// Bytes of memory for a ring of `size` entries.
    pub const fn memory_bytes(size: u16) -> usize {
        PackedArea::<M>::len_bytes(size)
    }

    /// An empty ring of `size` entries at the start of `memory`, as a device has it after a reset.
    pub fn new(memory: M, size: u16, event_idx: bool) -> Self {
        Self::starting_at(memory, size, event_idx, 0)
    }

    /// An empty ring of `size` entries at the start of `memory`, both sides at slot `first_slot` with wrap counter 1.
    ///
    /// # Panics
    /// If `first_slot` is not below `size`.
    pub fn starting_at(memory: M, size: u16, event_idx: bool, first_slot: u16) -> Self {
        assert!(first_slot < size, "slot {first_slot} of {size}");
        let place = first_slot | WRAP;
        let ring = PackedRing {
            area: PackedArea::new(memory, size),
            slots: (0..size).map(|_| Slot::EMPTY).collect(),
            free_ids: (0..size).rev().collect(),
            n_free: size,
            n_out: 0,
            avail: place,
            published: place,
            used: place,
            held: 0,
            order: None,
            run: None,
            event_idx,
            calls: false,
            fault: None,
        };
        ring.tell_call_wish();
        ring
    }

    /// VIRTIO_F_IN_ORDER was negotiated: one completion may stand for all buffers posted before it.
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

    /// Descriptors free.
    #[inline(always)]
    pub fn n_free(&self) -> usize {
        usize::from(self.n_free)
    }

    /// Buffers the device has and has not completed as far as we have looked.
    #[inline(always)]
    pub fn outstanding(&self) -> u16 {
        self.n_out
    }

    /// Up to where completions were taken: slot, and wrap counter in bit 15.
    pub fn used_place(&self) -> u16 {
        self.used
    }

    /// The first lie of the device, if there was one.
    pub fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// Asks for interrupts (calls) or not; not is how a ring starts.
    pub fn want_calls(&mut self, on: bool) {
        self.calls = on;
        self.tell_call_wish();
        // The wish is visible before the next look at the ring, or a completion between both is missed.
        fence(Ordering::SeqCst);
    }

    fn tell_call_wish(&self) {
        let flags = match (self.calls, self.event_idx) {
            (false, _) => EVENT_DISABLE,
            (true, false) => EVENT_ENABLE,
            (true, true) => EVENT_DESC,
        };
        self.area.set_driver_event(self.used, flags);
    }

    #[inline(always)]
    fn step(&self, place: u16, n: u16) -> u16 {
        let slot = (place & !WRAP) + n;
        match slot.checked_sub(self.size()) {
            None => slot | place & WRAP,
            Some(slot) => slot | (place & WRAP ^ WRAP),
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
        if segments.len() > self.n_free() {
            return Err(token);
        }
        let Some(id) = self.free_ids.pop() else { return Err(token) };
        let (mut at, mut room_bytes) = (self.avail, None);
        for (i, segment) in segments.iter().enumerate() {
            let more = if i + 1 < segments.len() { DESC_F_NEXT } else { 0 };
            let turn = if at & WRAP != 0 { F_AVAIL } else { F_USED };
            let word = state(segment.len, id, segment.flags | more | turn);
            self.area.write_address(at & !WRAP, segment.addr);
            if at == self.published {
                self.held = word;
            } else {
                self.area.write_state(at & !WRAP, word, Ordering::Release);
            }
            if let Some(room) = segment.room_bytes() {
                room_bytes = Some(room_bytes.unwrap_or(0u32).saturating_add(room));
            }
            at = self.step(at, 1);
        }
        self.avail = at;
        self.n_free -= segments.len() as u16;
        self.n_out += 1;
        let slot = &mut self.slots[usize::from(id)];
        debug_assert!(slot.token.is_none(), "a free id has nothing out");
        *slot = Slot { token: Some(token), n_descriptors: segments.len() as u16, last: 0, room_bytes };
        if let Some(order) = &mut self.order {
            order.push_back(id);
        }
        Ok(())
    }

    /// Shows the device everything posted since the last call, at once. True when it wants a doorbell.
    #[inline(always)]
    pub fn publish(&mut self) -> bool {
        if self.avail == self.published {
            return false;
        }
        self.area.write_state(self.published & !WRAP, self.held, Ordering::Release);
        let old = std::mem::replace(&mut self.published, self.avail);
        // The device looks at the ring after it allows doorbells; we look at its wish after the ring.
        fence(Ordering::SeqCst);
        match self.area.device_event() {
            (_, EVENT_DISABLE) => false,
            (event, EVENT_DESC) if self.event_idx => {
                let (new, size) = (self.avail, u32::from(self.size()));
                let line = |p: u16| u32::from(p & !WRAP) + if (p ^ new) & WRAP == 0 { size } else { 0 };
                (line(old)..line(new)).contains(&line(event))
            }
            _ => true,
        }
    }

    /// Takes up to `limit` completed buffers, in the device's order; `sink` gets the token and the bytes
    /// written (0 for a buffer the device only read). After a lie nothing is taken any more.
    #[inline(always)]
    pub fn reap(&mut self, limit: usize, mut sink: impl FnMut(T, u32)) -> Result<usize, RingFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let mut n = 0;
        while n < limit && self.n_out > 0 {
            let (id, len_bytes) = match self.run.take() {
                Some(run) => run,
                None => match self.completion() {
                    Some(completion) => completion,
                    None => break,
                },
            };
            let taken = if self.order.is_none() {
                self.complete(id, len_bytes, &mut sink).map(|()| 1)
            } else {
                self.complete_run(id, len_bytes, limit - n, &mut sink)
            };
            n += taken.inspect_err(|fault| self.fault = Some(*fault))?;
        }
        if self.event_idx && n > 0 {
            self.tell_call_wish();
        }
        Ok(n)
    }

    /// Id and length at the next place, if the device has written them.
    #[inline(always)]
    fn completion(&self) -> Option<(u16, u32)> {
        let word = self.area.state(self.used & !WRAP);
        let flags = (word >> 48) as u16 & (F_AVAIL | F_USED);
        let wanted = if self.used & WRAP != 0 { F_AVAIL | F_USED } else { 0 };
        (flags == wanted).then_some(((word >> 32) as u16, word as u32))
    }

    /// Takes one buffer back.
    #[inline(always)]
    fn complete(&mut self, id: u16, len_bytes: u32, sink: &mut impl FnMut(T, u32)) -> Result<(), RingFault> {
        let ring_size = self.size();
        let Some(slot) = self.slots.get_mut(usize::from(id)) else {
            return Err(RingFault::IdOutOfRange { id: u32::from(id), ring_size });
        };
        let (token, written_bytes) = slot.take(id, len_bytes)?;
        let n_descriptors = slot.n_descriptors;
        self.free_ids.push(id);
        self.n_free += n_descriptors;
        self.n_out -= 1;
        self.used = self.step(self.used, n_descriptors);
        sink(token, written_bytes);
        Ok(())
    }

    /// In order: a completion stands for every buffer posted up to its id, of which `limit` are taken now. Returns how
    /// many.
    fn complete_run(
        &mut self,
        id: u16,
        len_bytes: u32,
        limit: usize,
        sink: &mut impl FnMut(T, u32),
    ) -> Result<usize, RingFault> {
        // Before anything is handed out: is there such a buffer?
        match self.slots.get(usize::from(id)) {
            None => return Err(RingFault::IdOutOfRange { id: u32::from(id), ring_size: self.size() }),
            Some(Slot { token: None, .. }) => return Err(RingFault::NeverPosted { id }),
            Some(_) => {}
        }
        let mut n = 0;
        while n < limit {
            let next = self.order.as_mut().and_then(VecDeque::pop_front);
            let Some(next) = next else { return Err(RingFault::NeverPosted { id }) };
            // One that is stood for was filled, if it was to be written at all.
            let filled = self.slots[usize::from(next)].room_bytes.unwrap_or(0);
            self.complete(next, if next == id { len_bytes } else { filled }, sink)?;
            n += 1;
            if next == id {
                return Ok(n);
            }
        }
        self.run = Some((id, len_bytes));
        Ok(n)
    }

    /// Takes everything back that is out. Only for a device that is stopped: it must not touch the
    /// buffers any more.
    pub fn take_back(&mut self) -> impl Iterator<Item = T> + '_ {
        self.slots.iter_mut().filter_map(|slot| slot.token.take())
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
