//! A ring whose two ends are on one core, fused: a burst goes from the sender's hand into the receiver's.
//!
//! Worker thread only; the core's engine owns the links. A link is the front of its ring, and all the ring has: it holds a burst
//! only while the ring is empty. When another comes before that burst was taken (the receiver waits for its own
//! output), both go into the ring, first the one, then the other. So order, what fits, what is dropped and what is counted are the
//! ring's, and packets that flow never touch it: a ring costs a core some 25 ticks a packet at a burst of 32.
//!
//! Frames of several buffers go through the ring, which counts them by their buffers.

use spp_drivers::dma::PoolCache;
use spp_drivers::port::TxQueue;
use spp_drivers::stats::SharedStats;
use spp_drivers::{BURST, Burst};

use crate::plan::Fused;

/// One fused ring.
pub(crate) struct Link {
    pub ends: Fused,
    /// Sent and not yet received.
    burst: Burst,
    /// Packets may be in the ring.
    ring_in_use: bool,
    /// The ring's counters, sender's and receiver's. None when an end is not there: the link is not used.
    stats: Option<[SharedStats; 2]>,
}

impl Link {
    pub(crate) fn new(ends: Fused) -> Link {
        Link { ends, burst: Burst::new(), ring_in_use: true, stats: None }
    }

    /// Both ends of the ring are on this core, with these counters.
    pub(crate) fn connect(&mut self, sender: SharedStats, receiver: SharedStats) {
        self.stats = Some([sender, receiver]);
    }

    /// Takes all of `pending` for the receiver and says how many bytes they are, or leaves it for the ring `queue`, into which
    /// it puts what came before.
    #[inline(always)]
    pub(crate) fn hand_over(
        &mut self,
        pending: &mut Burst,
        queue: &mut dyn TxQueue,
        pool: &mut PoolCache,
    ) -> Option<u64> {
        let (mut bytes, mut has_chain) = (0, false);
        for packet in pending.iter() {
            bytes += packet.len() as u64;
            has_chain |= packet.is_chained();
        }
        let Some([sent, _]) = &self.stats else { return None };
        if self.ring_in_use || has_chain || !self.burst.is_empty() {
            self.spill(queue, pool);
            return None;
        }
        sent.moved(pending.len(), bytes);
        self.burst.append(pending);
        Some(bytes)
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

    /// The first packets of the ring, as many as fit into `out`: true when they came from here, or when there are none.
    #[inline(always)]
    pub(crate) fn receive(&mut self, out: &mut Burst) -> bool {
        if self.ring_in_use {
            return false;
        }
        let n = self.burst.len().min(out.room());
        if n == 0 {
            return true;
        }
        let first = out.len();
        if n == self.burst.len() {
            out.append(&mut self.burst);
        } else {
            self.burst.take_front(n).for_each(|packet| {
                let pushed = out.push(packet);
                debug_assert!(pushed.is_ok(), "no more than fit are taken");
            });
        }
        if let Some([_, received]) = &self.stats {
            received.moved(n, out[first..].iter().map(|packet| packet.len() as u64).sum());
        }
        true
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
