//! A running split ring: its memory, its indices, and what both directions share.
//!
//! Owned by the polling half; made and taken apart by the port's control thread. A burst reads
//! the available index once, takes its heads, works, writes its used elements, publishes
//! once and decides once whether to call.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use spp_drivers::BURST;

use super::layout::RingMemory;
use super::{CallFd, RingFault, RingFeatures};

/// A ring that a half polls. Boxed by the control thread, so that handing it over moves a pointer.
pub struct SplitRing {
    /// Where it is.
    pub(crate) memory: RingMemory,
    /// What was negotiated.
    pub(crate) features: RingFeatures,
    /// How to interrupt the guest; without it the guest polls.
    pub(crate) call: Option<Arc<CallFd>>,
    /// Next available index to take.
    pub(crate) next_avail: u16,
    /// Next used index to write.
    pub(crate) next_used: u16,
}

impl SplitRing {
    /// A ring that goes on where the frontend says. `base` is SET_VRING_BASE's available index; the
    /// used index is the one in memory. A base behind the used index can't be true (a
    /// driver that starts afresh on a ring it has used before sends 0): then the used index rules.
    pub fn new(
        memory: RingMemory,
        features: RingFeatures,
        call: Option<Arc<CallFd>>,
        base: u16,
    ) -> SplitRing {
        let used = memory.used_idx();
        let in_flight = base.wrapping_sub(used);
        let next_avail = if in_flight > memory.size() { used } else { base };
        memory.suppress_kicks(next_avail);
        SplitRing { memory, features, call, next_avail, next_used: used }
    }

    /// The index GET_VRING_BASE answers with.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Moves the ring to other memory (the same ring in a new map); the old one remains in `memory`.
    pub fn swap_memory(&mut self, memory: &mut RingMemory) {
        std::mem::swap(&mut self.memory, memory);
    }

    /// Lets the guest kick again; for a ring that stops.
    pub fn rest(&self) {
        self.memory.allow_kicks(self.next_avail);
    }

    /// Chains the guest has made available; reads its index once. Looks also whether the
    /// guest's memory is still all there.
    #[inline(always)]
    pub(crate) fn available(&self) -> Result<u16, RingFault> {
        let n = self.memory.avail_idx().wrapping_sub(self.next_avail);
        if n <= self.memory.size() && !self.memory.map().is_poisoned() {
            return Ok(n);
        }
        Err(self.blame(RingFault::IndexJump))
    }

    /// Vanished memory reads as zeros, which looks like a lie: name the cause.
    #[cold]
    fn blame(&self, fault: RingFault) -> RingFault {
        if self.memory.map().is_poisoned() { RingFault::MemoryGone } else { fault }
    }

    /// Copies the first `n` heads (at most a burst) out of the available ring, checked.
    #[inline(always)]
    pub(crate) fn heads(&self, n: usize) -> Result<[u16; BURST], RingFault> {
        let mut heads = [0; BURST];
        let mut all = 0;
        for (i, head) in heads.iter_mut().enumerate().take(n) {
            *head = self.memory.avail_head(self.next_avail.wrapping_add(i as u16));
            all |= u32::from(*head);
        }
        // Sizes are powers of two: one bit at or above the size betrays any head outside.
        if all >= u32::from(self.memory.size()) {
            return Err(self.blame(RingFault::HeadOutside));
        }
        Ok(heads)
    }

    /// One head, checked.
    #[inline(always)]
    pub(crate) fn head(&self, ahead: u16) -> Result<u16, RingFault> {
        let head = self.memory.avail_head(self.next_avail.wrapping_add(ahead));
        if head < self.memory.size() { Ok(head) } else { Err(self.blame(RingFault::HeadOutside)) }
    }

    /// Writes the used element `ahead` of the next; visible after [`publish`](Self::publish).
    #[inline(always)]
    pub(crate) fn stage_used(&self, ahead: u16, head: u16, len: u32) {
        self.memory.write_used(self.next_used.wrapping_add(ahead), head, len);
    }

    /// Takes `n` chains off the available ring, whose used elements are written.
    #[inline(always)]
    pub(crate) fn advance(&mut self, n: u16) {
        self.next_avail = self.next_avail.wrapping_add(n);
        self.next_used = self.next_used.wrapping_add(n);
    }

    /// Publishes everything used since index `old`, and calls the guest if it asked for it.
    /// True when it was called.
    #[inline(always)]
    pub(crate) fn publish(&self, old: u16) -> bool {
        if old == self.next_used {
            return false;
        }
        self.memory.publish_used(self.next_used);
        // The driver writes its wish, then reads our index; we write our index, then read its wish.
        // Without a full fence both could miss the other's store (virtio 1.2, 2.7.7.1).
        fence(Ordering::SeqCst);
        let wanted = if self.features.event_idx {
            wants_event(self.memory.used_event(), self.next_used, old)
        } else {
            !self.memory.wants_no_calls()
        };
        match &self.call {
            Some(call) if wanted => {
                call.signal();
                true
            }
            _ => false,
        }
    }
}

/// Whether an index that went from `old` to `new` passed `event` (virtio 1.2, 2.7.7.1).
#[inline(always)]
fn wants_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::wants_event;

    #[test]
    fn event_is_wanted_exactly_when_its_index_is_passed() {
        for start in [0u16, 65_530] {
            for moved in 0..20u16 {
                for event in 0..40u16 {
                    let (old, new) = (start, start.wrapping_add(moved));
                    let passed = (0..moved).any(|i| old.wrapping_add(i) == start.wrapping_add(event));
                    assert_eq!(
                        wants_event(start.wrapping_add(event), new, old),
                        passed,
                        "{start} {moved} {event}"
                    );
                }
            }
        }
    }
}
