//! A ring whose two ends are on one core, fused: a burst goes from the sender's hand into the receiver's.
//!
//! Worker thread only; the core's engine owns the links. A link is the front of its ring, and all the ring has: it holds a burst
//! only while the ring is empty. When another comes before that burst was taken (the receiver waits for its own
//! output), both go into the ring, first the one, then the other. So order, what fits, what is dropped and what is counted are the
//! ring's, and packets that flow never touch it: a ring costs a core some 25 ticks a packet at a burst of 32.
//!
//! Frames of several buffers go through the ring, which counts them by their buffers.

use spp_drivers::dma::{PoolCache, Tally};
use spp_drivers::port::TxQueue;
use spp_drivers::stats::SharedStats;
use spp_drivers::{BURST, Burst};

use crate::plan::Fused;

/// One fused ring.
pub(crate) struct Link {
    pub ends: Fused,
    /// Sent and not yet received, and what the sender found of it.
    burst: Box<Burst>,
    tally: Tally,
    /// Packets may be in the ring.
    ring_in_use: bool,
    /// The ring's counters, sender's and receiver's. None when an end is not there: the link is not used.
    stats: Option<[SharedStats; 2]>,
}

impl Link {
    pub(crate) fn new(ends: Fused) -> Link {
        Link { ends, burst: Box::default(), tally: Tally::default(), ring_in_use: true, stats: None }
    }

    /// Both ends of the ring are on this core, with these counters.
    pub(crate) fn connect(&mut self, sender: SharedStats, receiver: SharedStats) {
        self.stats = Some([sender, receiver]);
    }

    /// Takes all of `pending`, of which `tally` speaks, for the receiver, or leaves it for the ring `queue`, into which it puts
    /// what came before. True when it was taken.
    #[inline(always)]
    pub(crate) fn hand_over(
        &mut self,
        pending: &mut Box<Burst>,
        tally: Tally,
        queue: &mut dyn TxQueue,
        pool: &mut PoolCache,
    ) -> bool {
        let Some([sent, _]) = &self.stats else { return false };
        if self.ring_in_use || tally.extra > 0 || !self.burst.is_empty() {
            self.spill(queue, pool);
            return false;
        }
        sent.moved(pending.len(), tally.bytes);
        std::mem::swap(&mut self.burst, pending);
        self.tally = tally;
        true
    }

    /// Puts what was not received into the ring, which is empty if there is anything.
    #[cold]
    pub(crate) fn spill(&mut self, queue: &mut dyn TxQueue, pool: &mut PoolCache) {
        self.ring_in_use = true;
        let (n, bytes) = (self.burst.len(), self.burst.bytes());
        if n > 0 {
            let sent = queue.tx_burst(pool, &mut self.burst);
            debug_assert_eq!(sent, n, "an empty ring has room for a burst");
            // They were counted as sent when they came.
            queue.stats().moved_again(n, bytes);
        }
    }

    /// True when there is nothing to [receive](Self::receive), here or in the ring.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        !self.ring_in_use && self.burst.is_empty()
    }

    /// The first packets of the ring, as many as fit into `out`, and what there is to say of them; `None` when they have
    /// to come from the ring itself.
    #[inline(always)]
    pub(crate) fn receive(&mut self, out: &mut Box<Burst>) -> Option<Tally> {
        if self.ring_in_use {
            return None;
        }
        let n = self.burst.len();
        if n == 0 {
            return Some(Tally::default());
        }
        let tally = if out.is_empty() {
            std::mem::swap(&mut self.burst, out);
            self.tally
        } else {
            self.receive_behind(out)
        };
        if let Some([_, received]) = &self.stats {
            received.moved(n - self.burst.len(), tally.bytes);
        }
        Some(tally)
    }

    /// Behind what others gave.
    #[inline(never)]
    fn receive_behind(&mut self, out: &mut Burst) -> Tally {
        if self.burst.len() <= out.room() {
            out.append(&mut self.burst);
            return self.tally;
        }
        let first = out.len();
        out.extend(self.burst.take_front(out.room()));
        self.tally = Tally::of(&self.burst);
        Tally::of(&out[first..])
    }

    /// The ring gave packets, or had none. As much came out as went in: it is empty, for nobody but this core sends into it.
    #[inline(always)]
    pub(crate) fn ring_was_asked(&mut self) {
        let is_empty = |[sent, received]: &[SharedStats; 2]| sent.packets.get() == received.packets.get();
        self.ring_in_use = !self.stats.as_ref().is_some_and(is_empty);
    }
}

/// Rings have room for a burst, so an empty one takes what its link holds.
const _: () = assert!(spp_drivers::ring_port::RING_SLOTS >= BURST);
