//! The split ring as the walkers see it (virtio 1.2, 2.7).
//!
//! A burst reads the available index once, copies its heads, then the descriptors, in loops of their own so that
//! cache misses overlap; used elements are written together and published with one store.

use spp_drivers::BURST;

use super::RingFault;
use super::chain::{Chain, ChainError, Direction, MAX_CHAIN};
use super::layout::{DESCRIPTOR_BYTES, DescTable, Descriptor, F_INDIRECT, F_NEXT, SplitMemory};
use super::walk::{Entries, Head, Layout, Place, Used};
use crate::dirty::RingLog;
use crate::memory::{Gpa, GuestMap, Translator};

/// Where the elements of a used ring start, behind flags and index, and how long each is (virtio 1.2, 2.7.8).
const ELEMENTS: usize = 4;
const ELEMENT_BYTES: usize = 8;
/// Descriptors in a cache line.
const DESCRIPTORS_PER_LINE: usize = 64 / DESCRIPTOR_BYTES as usize;
/// Used elements in a cache line.
const ELEMENTS_PER_LINE: usize = 64 / ELEMENT_BYTES;

impl Layout for SplitMemory {
    /// The index of the first descriptor.
    type Entry = u16;
    type Table<'r> = DescTable<'r>;

    #[inline(always)]
    fn map(&self) -> &GuestMap {
        SplitMemory::map(self)
    }

    #[inline(always)]
    fn size(&self) -> u16 {
        SplitMemory::size(self)
    }

    /// `base` is the available index; the used index is the one in memory. A base behind the used index can't be
    /// true (a driver that starts afresh on a ring it has used before sends 0): then the used index rules.
    fn place(&self, base: u32) -> Place {
        let (base, used) = (base as u16, self.used_idx());
        let in_flight = base.wrapping_sub(used);
        Place::new(if in_flight > self.size() { used } else { base }, used)
    }

    fn base(place: &Place) -> u32 {
        u32::from(place.avail)
    }

    #[inline(always)]
    fn look(&self, place: &mut Place) -> Result<(), RingFault> {
        place.seen = self.avail_idx();
        if place.seen.wrapping_sub(place.avail) <= self.size() {
            return Ok(());
        }
        Err(self.blame(RingFault::IndexJump))
    }

    #[inline(always)]
    fn entries(&self, place: &Place, max: usize, entries: &mut Entries<Self>) -> Result<(), RingFault> {
        let n = max.min(usize::from(place.seen.wrapping_sub(place.avail)));
        // Needed last, by in-order stores: each would wait for its line with the next behind it. 4 to 9 cycles a packet of 90 to
        // 96 (spp-bench P1), as measured with and without, on cores that nobody else used.
        for i in (0..n).step_by(ELEMENTS_PER_LINE) {
            self.prefetch_used(place.used.wrapping_add(i as u16));
        }
        *entries = Entries::<Self>::from([0; BURST]);
        entries.truncate(n);
        let all =
            if n < FEW { self.copy_few(place.avail, entries) } else { self.copy_many(place.avail, entries) };
        // Drivers hand out descriptors in a row, mostly: one in each line is enough. 1 to 2 cycles a packet, as above.
        for index in entries.iter().step_by(DESCRIPTORS_PER_LINE) {
            self.desc_table().prefetch(*index);
        }
        // Sizes are powers of two: one bit at or above the size betrays any head outside.
        if all >= self.size() {
            return Err(self.blame(RingFault::HeadOutside));
        }
        Ok(())
    }

    #[inline(always)]
    fn table(&self) -> DescTable<'_> {
        self.desc_table()
    }

    #[inline(always)]
    fn head(table: DescTable<'_>, index: u16) -> Head {
        Head { first: table.descriptor(index), id: index, at: index, n_slots: 1 }
    }

    #[inline(always)]
    fn used(index: u16, len: u32) -> Used {
        Used { id: index, n_slots: 1, len }
    }

    #[inline(always)]
    fn head_at(&self, place: &Place, cursor: &mut u16) -> Result<Option<Head>, RingFault> {
        if *cursor == place.seen {
            return Ok(None);
        }
        let index = self.avail_head(*cursor);
        if index >= self.size() {
            return Err(self.blame(RingFault::HeadOutside));
        }
        *cursor = cursor.wrapping_add(1);
        Ok(Some(Self::head(self.desc_table(), index)))
    }

    fn gather<'m>(
        &self,
        head: &Head,
        memory: &mut Translator<'m>,
        direction: Direction,
        indirect_allowed: bool,
        chain: &mut Chain<'m>,
    ) -> Result<(), ChainError> {
        let mut table = Table::Ring(self);
        let mut descriptor = head.first;
        // Counts every descriptor looked at, so that a loop ends; one more for the one that names a table.
        for _ in 0..=usize::from(self.size()).min(MAX_CHAIN) {
            if descriptor.flags & F_INDIRECT != 0 {
                if !indirect_allowed {
                    return Err(ChainError::Malformed);
                }
                table = table.indirect(self, &descriptor)?;
                descriptor = table.read(memory, 0)?;
                continue;
            }
            chain.add(&descriptor, memory, direction)?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(());
            }
            descriptor = table.read(memory, descriptor.next)?;
        }
        Err(ChainError::Malformed)
    }

    #[inline(always)]
    fn complete(&self, place: &mut Place, _direction: Direction, used: impl Iterator<Item = Used>) {
        let (mut at, ring) = (place.used, self.used_ring());
        for Used { id, n_slots, len } in used {
            ring.write(at, id, len);
            at = at.wrapping_add(n_slots);
        }
        place.avail = place.avail.wrapping_add(at.wrapping_sub(place.used));
        place.used = at;
    }

    #[inline(always)]
    fn publish(&self, place: &Place) {
        self.publish_used(place.used);
    }

    /// It gains 2 to 21 cycles a packet of 90 to 96 (spp-bench P1), for 5 instructions. A window of one burst is kept fetched, but only what the driver had published at the last look: lines it is still
    /// writing would go to and fro. Hints, so what the entries say is not checked here; a masked index is all that is
    /// made of it.
    #[inline(always)]
    fn look_ahead(&self, place: &Place, n_slots: u16) {
        const WINDOW: u16 = BURST as u16;
        let known = place.seen.wrapping_sub(place.avail);
        // Drivers hand out descriptors in a row, mostly: one in each line is enough.
        for i in (WINDOW.saturating_sub(n_slots)..known.min(WINDOW)).step_by(DESCRIPTORS_PER_LINE) {
            self.desc_table().prefetch(self.avail_head(place.avail.wrapping_add(i)));
        }
        if known > WINDOW {
            self.prefetch_avail(place.avail.wrapping_add(WINDOW));
        }
    }

    #[inline(always)]
    fn wants_call(&self, old: u16, new: u16, event_idx: bool) -> bool {
        if event_idx { passes(self.used_event(), old, new) } else { !self.wants_no_calls() }
    }

    fn suppress_kicks(&self, place: &Place) {
        SplitMemory::suppress_kicks(self, place.avail);
    }

    fn allow_kicks(&self, place: &Place) {
        SplitMemory::allow_kicks(self, place.avail);
    }

    /// The elements in one or two pieces, and the index.
    #[cold]
    fn log_used(&self, old: u16, new: u16, log: &RingLog) {
        let (map, used, size) = (SplitMemory::map(self), self.used_start(), usize::from(self.size()));
        let (first, n) = (usize::from(old) & (size - 1), usize::from(new.wrapping_sub(old)).min(size));
        let to_end = n.min(size - first);
        log.mark_used(map, used, ELEMENTS + ELEMENT_BYTES * first, ELEMENT_BYTES * to_end);
        log.mark_used(map, used, ELEMENTS, ELEMENT_BYTES * (n - to_end));
        log.mark_used(map, used, 0, ELEMENTS);
    }

    /// The flags in front, and the event index behind the elements.
    fn log_kicks(&self, log: &RingLog) {
        let (map, used) = (SplitMemory::map(self), self.used_start());
        log.mark_used(map, used, 0, ELEMENTS);
        log.mark_used(map, used, ELEMENTS + ELEMENT_BYTES * usize::from(self.size()), 2);
    }
}

/// So few entries are copied one by one: a frame alone from a guest takes 570 instructions then, not 629 (`spp-stages --count guest`).
const FEW: usize = 6;

impl SplitMemory {
    /// Copies available entries from the free-running index `idx` on, as many as `entries` holds; returns the bits that any
    /// of them has.
    #[inline(always)]
    fn copy_few(&self, idx: u16, entries: &mut [u16]) -> u16 {
        let mut all = 0;
        for (entry, i) in entries.iter_mut().zip(0u16..) {
            *entry = self.avail_head(idx.wrapping_add(i));
            all |= *entry;
        }
        all
    }

    /// As [`copy_few`](Self::copy_few), for more: at most the ring's size.
    #[inline(always)]
    fn copy_many(&self, idx: u16, entries: &mut [u16]) -> u16 {
        let (mut rest, mut all) = (entries, 0);
        for run in self.avail_runs(idx, rest.len()) {
            let (these, others) = rest.split_at_mut(run.len());
            all |= run.copy_to(these);
            rest = others;
        }
        all
    }
}

/// Whether an index that went from `old` to `new` passed `event` (virtio 1.2, 2.7.7.1).
#[inline(always)]
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Where descriptors are read from.
enum Table<'r> {
    Ring(&'r SplitMemory),
    Indirect { gpa: u64, n: u16 },
}

impl<'r> Table<'r> {
    /// Descriptor `index`, which must lie in the table. An indirect table need not be contiguous in our
    /// address space: each descriptor is translated by itself.
    fn read(&self, memory: &mut Translator<'_>, index: u16) -> Result<Descriptor, ChainError> {
        match *self {
            Table::Ring(ring) if index < ring.size() => Ok(ring.desc_table().descriptor(index)),
            Table::Indirect { gpa, n } if index < n => {
                let at = gpa.checked_add(u64::from(index) * u64::from(DESCRIPTOR_BYTES));
                let slice = at.and_then(|at| memory.slice(Gpa(at), DESCRIPTOR_BYTES));
                let [first, second] = slice.ok_or(ChainError::Address)?.read_words();
                Ok(Descriptor::from_words([first, second]))
            }
            _ => Err(ChainError::Malformed),
        }
    }

    /// The table an indirect descriptor names. Not nested, not together with F_NEXT, whole
    /// descriptors, no longer than the ring (virtio 1.2, 2.7.5.3.1).
    fn indirect(&self, ring: &SplitMemory, descriptor: &Descriptor) -> Result<Table<'r>, ChainError> {
        let n = descriptor.len / DESCRIPTOR_BYTES;
        let whole = n > 0 && descriptor.len & (DESCRIPTOR_BYTES - 1) == 0 && n <= u32::from(ring.size());
        match self {
            Table::Ring(_) if whole && descriptor.flags & F_NEXT == 0 => {
                Ok(Table::Indirect { gpa: descriptor.addr, n: n as u16 })
            }
            _ => Err(ChainError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::passes;

    #[test]
    fn event_is_wanted_exactly_when_its_index_is_passed() {
        for start in [0u16, 65_530] {
            for moved in 0..20u16 {
                for event in 0..40u16 {
                    let (old, new) = (start, start.wrapping_add(moved));
                    let passed = (0..moved).any(|i| old.wrapping_add(i) == start.wrapping_add(event));
                    assert_eq!(
                        passes(start.wrapping_add(event), old, new),
                        passed,
                        "{start} {moved} {event}"
                    );
                }
            }
        }
    }
}
