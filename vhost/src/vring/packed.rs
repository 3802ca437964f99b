//! The packed ring as the walkers see it (virtio 1.2, 2.8).
//!
//! Each descriptor's flags are read once, with its length and id in the same load; of a chain of several they are read once
//! to find its end, and its descriptors when it is gathered. Used elements are single stores
//! into the same ring; a burst's first one is written last, so that the driver sees all of them or none.
//!
//! The driver's lies are found here: a chain that is not available to its end, or has no end, leaves no way to tell
//! where the next one starts, so the ring stops.

use super::RingFault;
use super::chain::{Chain, ChainError, Direction, MAX_CHAIN};
use super::layout::{DESCRIPTOR_BYTES, Descriptor, F_INDIRECT, F_NEXT, F_WRITE};
use super::packed_layout::{Desc, EVENT_DESC, EVENT_DISABLE, F_AVAIL, F_USED, PackedMemory, State};
use super::walk::{Entries, Head, Layout, Place, Used};
use crate::dirty::RingLog;
use crate::memory::{Gpa, GuestMap, Translator};

/// Descriptors of long chains looked at for one burst, as far as that is more than one chain.
const SCAN_BUDGET: u16 = 1024;

/// The wrap counter in a place, and in the event suppression structures.
const WRAP: u16 = 1 << 15;

/// A fresh ring: both wrap counters 1, both slots 0.
pub const FIRST_BASE: u32 = 0x8000_8000;

/// A chain in the ring, in two words: a burst of them is written and read once more for each packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// Where its buffer is. Of a chain of several descriptors, which are copied out when it is gathered: the slot of the first.
    addr: u64,
    /// Length, id, and of the flags [`KEPT`]; in the bits above them how many descriptors it has.
    state: State,
}

/// The flags that mean something once a chain has been found.
const KEPT: u16 = F_NEXT | F_WRITE | F_INDIRECT;

impl Entry {
    /// Where the number of descriptors stands.
    const SLOTS_SHIFT: u32 = 48 + KEPT.count_ones();

    /// Of a state without any flags but the kept ones.
    #[inline(always)]
    fn new(addr: u64, state: State, n_slots: u16) -> Entry {
        Entry { addr, state: state | State(u64::from(n_slots) << Self::SLOTS_SHIFT) }
    }

    #[inline(always)]
    fn n_slots(self) -> u16 {
        (self.state.0 >> Self::SLOTS_SHIFT) as u16
    }
}

const _: () = assert!(KEPT == 0b111 && MAX_CHAIN < 1 << (64 - Entry::SLOTS_SHIFT));

impl PackedMemory {
    /// `n` (at most the ring's size) descriptors behind `at`.
    #[inline(always)]
    fn step(&self, at: u16, n: u16) -> u16 {
        let slot = (at & !WRAP) + n;
        match slot.checked_sub(self.size()) {
            None => slot | at & WRAP,
            Some(slot) => slot | (at & WRAP ^ WRAP),
        }
    }

    /// Descriptor `at`, if it is available there.
    #[inline(always)]
    fn available(&self, at: u16) -> Option<State> {
        let state = self.state(at & !WRAP);
        (state.flags() & (F_AVAIL | F_USED) == self.wanted(at)).then_some(state)
    }

    /// Appends chains of one descriptor, up to `max`, to the first that is none, is not available or lies behind the end
    /// of the ring: nearly all there are. Returns how many. One comparison for flags and id, and two words kept, take 17
    /// instructions a descriptor, where a comparison each and fields beside the words took 33. Nothing is fetched ahead: taking
    /// the lines of a burst for writing cost a packet 1 to 32 cycles of 132 to 165, since the driver is still at work in them.
    #[inline(always)]
    fn single_entries(&self, at: u16, max: u16, entries: &mut Entries<Self>) -> u16 {
        let run = self.run(at & !WRAP, max);
        let (before, size) = (entries.len(), u32::from(self.size()));
        let wanted = State::new(0, 0, self.wanted(at));
        let single = |desc: &Desc| {
            // Without the flags that it must have, nothing is left but the id and what may be there or not: one comparison for
            // both. The faults among the others are found by who looks closer.
            let state = State(desc.state().0 ^ wanted.0);
            let id = (state.0 >> 32) as u32 & !(u32::from(F_WRITE | F_INDIRECT) << 16);
            (id < size).then(|| Entry::new(desc.buffer(), state, 1))
        };
        entries.extend(run.iter().map_while(single));
        (entries.len() - before) as u16
    }

    /// Goes on behind `n_scanned` descriptors, at one that is available, but behind the end of the ring, or no chain by itself.
    #[inline(never)]
    fn other_entries(
        &self,
        mut at: u16,
        mut n_scanned: u16,
        max: usize,
        entries: &mut Entries<Self>,
    ) -> Result<(), RingFault> {
        loop {
            // Only a driver that lies has more chains than its ring has room for.
            let n_wanted = (max - entries.len()).min(usize::from(self.size() - n_scanned)) as u16;
            let n_single = self.single_entries(at, n_wanted, entries);
            at = self.step(at, n_single);
            n_scanned += n_single;
            if entries.len() == max {
                return Ok(());
            }
            let Some(first) = self.available(at) else { return Ok(()) };
            let entry = match self.chain_at(at, first) {
                Ok(entry) => entry,
                // Good chains before it are served first; the next burst meets it again.
                Err(_) if !entries.is_empty() => return Ok(()),
                Err(fault) => return Err(fault),
            };
            n_scanned += entry.n_slots();
            if n_scanned > self.size() || n_scanned > SCAN_BUDGET && !entries.is_empty() {
                return Ok(());
            }
            entries.push(entry);
            at = self.step(at, entry.n_slots());
        }
    }

    /// The flags of a descriptor that is available at `at`: the avail bit is the wrap counter, the used bit is not (virtio
    /// 1.2, 2.8.1).
    #[inline(always)]
    fn wanted(&self, at: u16) -> u16 {
        if at & WRAP != 0 { F_AVAIL } else { F_USED }
    }

    /// The flags of a descriptor used in a lap with this wrap counter: both bits are the wrap counter (virtio 1.2, 2.8.1).
    #[inline(always)]
    fn turn(wrap: u16) -> State {
        State::new(0, 0, if wrap != 0 { F_AVAIL | F_USED } else { 0 })
    }

    /// The chain that starts at `at` with descriptor `first`.
    #[inline(always)]
    fn chain_at(&self, at: u16, first: State) -> Result<Entry, RingFault> {
        let (mut last, mut n_slots) = (first, 1);
        if first.flags() & F_NEXT != 0 {
            (last, n_slots) = self.find_end(at)?;
        }
        if last.id() >= self.size() {
            return Err(self.blame(RingFault::IdOutside));
        }
        let slot = at & !WRAP;
        let addr = if n_slots == 1 { self.buffer(slot) } else { u64::from(slot) };
        let state = State::new(first.len(), last.id(), first.flags() & KEPT);
        Ok(Entry::new(addr, state, n_slots))
    }

    /// The last descriptor of the chain at `at`, and how many there are. The id is the last one's (virtio 1.2, 2.8.6).
    #[inline(never)]
    fn find_end(&self, at: u16) -> Result<(State, u16), RingFault> {
        let mut next = at;
        for n in 1..=usize::from(self.size()).min(MAX_CHAIN) as u16 {
            let state = self.available(next).ok_or_else(|| self.blame(RingFault::ChainCut))?;
            if state.flags() & F_NEXT == 0 {
                return Ok((state, n));
            }
            next = self.step(next, 1);
        }
        Err(self.blame(RingFault::ChainEndless))
    }

    /// Entries between two places that are at most a ring apart; `None` for those that can't be.
    fn distance(&self, from: u16, to: u16) -> Option<u16> {
        let (from_slot, to_slot) = (from & !WRAP, to & !WRAP);
        if (from ^ to) & WRAP == 0 {
            to_slot.checked_sub(from_slot)
        } else {
            (to_slot <= from_slot).then(|| self.size() - from_slot + to_slot)
        }
    }
}

impl Layout for PackedMemory {
    type Entry = Entry;
    type Table<'r> = ();

    #[inline(always)]
    fn map(&self) -> &GuestMap {
        PackedMemory::map(self)
    }

    #[inline(always)]
    fn size(&self) -> u16 {
        PackedMemory::size(self)
    }

    /// `base` has slot and wrap counter of the next available descriptor in its lower half, of the next used one in
    /// its upper half. Frontends that keep 16 bits leave the upper half 0; then, as when the two can't both be
    /// true, nothing is in flight.
    fn place(&self, base: u32) -> Place {
        let (avail, used) = (base as u16, (base >> 16) as u16);
        let avail = if avail & !WRAP < self.size() { avail } else { WRAP };
        let known = used != 0 && used & !WRAP < self.size() && self.distance(used, avail).is_some();
        Place::new(avail, if known { used } else { avail })
    }

    fn base(place: &Place) -> u32 {
        u32::from(place.avail) | u32::from(place.used) << 16
    }

    #[inline(always)]
    fn look(&self, _place: &mut Place) -> Result<(), RingFault> {
        Ok(()) // each descriptor tells for itself
    }

    #[inline(always)]
    fn entries(&self, place: &Place, max: usize, entries: &mut Entries<Self>) -> Result<(), RingFault> {
        let n_wanted = max.min(usize::from(self.size())) as u16;
        let n_single = self.single_entries(place.avail, n_wanted, entries);
        let at = self.step(place.avail, n_single);
        if entries.len() == max || self.available(at).is_none() {
            return Ok(());
        }
        self.other_entries(at, n_single, max, entries)
    }

    #[inline(always)]
    fn table(&self) {}

    #[inline(always)]
    fn head((): (), entry: Entry) -> Head {
        let Entry { addr, state } = entry;
        // Who looks at the flags looks at single ones: those above need not be taken away.
        Head { first: state.descriptor(addr), id: state.id(), at: addr as u16, n_slots: entry.n_slots() }
    }

    #[inline(always)]
    fn used(entry: Entry, len: u32) -> Used {
        Used { id: entry.state.id(), n_slots: entry.n_slots(), len }
    }

    #[inline(always)]
    fn head_at(&self, place: &Place, cursor: &mut u16) -> Result<Option<Head>, RingFault> {
        let Some(first) = self.available(*cursor) else { return Ok(None) };
        let entry = self.chain_at(*cursor, first)?;
        // A driver that lies could make us go round: what lies between here and there is not free again yet.
        let taken = self.distance(place.avail, *cursor).unwrap_or(self.size());
        if u32::from(taken) + u32::from(entry.n_slots()) > u32::from(self.size()) {
            return Ok(None);
        }
        *cursor = self.step(*cursor, entry.n_slots());
        Ok(Some(Self::head((), entry)))
    }

    fn gather<'m>(
        &self,
        head: &Head,
        memory: &mut Translator<'m>,
        direction: Direction,
        indirect_allowed: bool,
        chain: &mut Chain<'m>,
    ) -> Result<(), ChainError> {
        if head.n_slots == 1 {
            return match head.first.flags & F_INDIRECT {
                0 => chain.add(&head.first, memory, direction),
                _ if indirect_allowed => gather_table(&head.first, self.size(), memory, direction, chain),
                _ => Err(ChainError::Malformed),
            };
        }
        let mut at = head.at;
        for _ in 0..head.n_slots {
            let slot = at & !WRAP;
            let descriptor = self.state(slot).descriptor(self.buffer(slot));
            if descriptor.flags & F_INDIRECT != 0 {
                return Err(ChainError::Malformed);
            }
            chain.add(&descriptor, memory, direction)?;
            at = self.step(slot, 1);
        }
        Ok(())
    }

    #[inline(always)]
    fn complete(&self, place: &mut Place, direction: Direction, used: impl Iterator<Item = Used>) {
        let (ring, held) = (self.run(0, self.size()), Desc::aside(State(place.held)));
        let (first, mut wrap, mut n_in_laps) = (usize::from(place.used & !WRAP), place.used & WRAP, 0);
        let written = State::new(0, 0, if direction == Direction::ToGuest { F_WRITE } else { 0 });
        let mut turn = Self::turn(wrap) | written;
        let mut rest = ring.get(first..).unwrap_or_default().iter();
        let mut desc = rest.next().unwrap_or(&held);
        if place.used == place.published {
            // Written as the others are, elsewhere.
            desc = &held;
        }
        for Used { id, n_slots, len } in used {
            desc.write_used(State::new(len, id, 0) | turn);
            // Chains of one descriptor in one lap: little to do but to write (13 instructions, with slot and wrap counter kept
            // along 25).
            let next = if n_slots == 1 { rest.next() } else { None };
            desc = next.unwrap_or_else(|| {
                let mut slot = ring.len() - 1 - rest.len() + usize::from(n_slots);
                if slot >= ring.len() {
                    (slot, n_in_laps, wrap) = (slot - ring.len(), n_in_laps + ring.len(), wrap ^ WRAP);
                    turn = Self::turn(wrap) | written;
                }
                rest = ring.get(slot..).unwrap_or_default().iter();
                rest.next().unwrap_or(&held)
            });
        }
        let slot = ring.len() - 1 - rest.len();
        place.held = held.state().0;
        place.used = slot as u16 | wrap;
        place.avail = self.step(place.avail, (n_in_laps + slot - first) as u16);
    }

    /// The driver's progress shows in the descriptors only: to look is to take lines that it may be writing.
    #[inline(always)]
    fn look_ahead(&self, _place: &Place, _n_slots: u16) {}

    #[inline(always)]
    fn publish(&self, place: &Place) {
        self.write_used(place.published & !WRAP, State(place.held));
    }

    #[inline(always)]
    fn wants_call(&self, old: u16, new: u16, event_idx: bool) -> bool {
        match self.driver_event() {
            (_, EVENT_DISABLE) => false,
            (event, EVENT_DESC) if event_idx => self.passes(event, old, new),
            _ => true,
        }
    }

    fn suppress_kicks(&self, _place: &Place) {
        PackedMemory::suppress_kicks(self);
    }

    fn allow_kicks(&self, _place: &Place) {
        PackedMemory::allow_kicks(self);
    }

    /// The descriptors in one or two pieces. They are no used ring in the sense of VHOST_VRING_F_LOG: they are
    /// logged where they are.
    #[cold]
    fn log_used(&self, old: u16, new: u16, log: &RingLog) {
        let (map, (desc, _), size) = (PackedMemory::map(self), self.starts(), usize::from(self.size()));
        let n = usize::from(self.distance(old, new).unwrap_or(self.size()));
        let first = usize::from(old & !WRAP);
        let to_end = n.min(size - first);
        log.mark_host(map, desc, DESCRIPTOR_BYTES as usize * first, DESCRIPTOR_BYTES as usize * to_end);
        log.mark_host(map, desc, 0, DESCRIPTOR_BYTES as usize * (n - to_end));
    }

    fn log_kicks(&self, log: &RingLog) {
        log.mark_used(PackedMemory::map(self), self.starts().1, 0, 4);
    }
}

impl PackedMemory {
    /// Whether used elements from `old` up to before `new` include `event` (virtio 1.2, 2.8.14).
    #[inline(always)]
    fn passes(&self, event: u16, old: u16, new: u16) -> bool {
        // On a line on which `new` is in its second lap.
        let line = |place: u16| {
            let lap = if (place ^ new) & WRAP == 0 { u32::from(self.size()) } else { 0 };
            u32::from(place & !WRAP) + lap
        };
        (line(old)..line(new)).contains(&line(event))
    }
}

/// Appends the buffers of an indirect table: whole descriptors one after the other, no longer than the ring; only
/// their F_WRITE means anything (virtio 1.2, 2.8.8). The table need not be contiguous in our address space.
fn gather_table<'m>(
    table: &Descriptor,
    ring_size: u16,
    memory: &mut Translator<'m>,
    direction: Direction,
    chain: &mut Chain<'m>,
) -> Result<(), ChainError> {
    let n = table.len / DESCRIPTOR_BYTES;
    let whole = n > 0 && table.len & (DESCRIPTOR_BYTES - 1) == 0;
    if !whole || n > u32::from(ring_size) || n as usize > MAX_CHAIN {
        return Err(ChainError::Malformed);
    }
    for i in 0..n {
        let at = table.addr.checked_add(u64::from(i * DESCRIPTOR_BYTES));
        let slice = at.and_then(|at| memory.slice(Gpa(at), DESCRIPTOR_BYTES));
        let [addr, state] = slice.ok_or(ChainError::Address)?.read_words();
        let descriptor = State(u64::from_le(state)).descriptor(u64::from_le(addr));
        if descriptor.flags & F_INDIRECT != 0 {
            return Err(ChainError::Malformed);
        }
        chain.add(&descriptor, memory, direction)?;
    }
    Ok(())
}
