//! The receiving half of a vhost port: frames the guest transmits (its ring 1).
//!
//! Polled by one core. Payload is copied into our own buffers before anyone looks at it;
//! the virtio-net header is skipped, since no offload is offered. Chains are taken in
//! order and given back used at the end of the burst.

use std::sync::Arc;

use spp_drivers::dma::{DATA_ROOM, PacketBuf, Pool, PoolCache};
use spp_drivers::port::RxQueue;
use spp_drivers::stats::{Counter, DropReason, QueueStats, SharedStats};
use spp_drivers::{BURST, Burst};

use crate::handover::Mailbox;
use crate::memory::{Gpa, GuestSlice, Translator};
use crate::vring::RingFault;
use crate::vring::chain::{Chain, Direction};
use crate::vring::layout::{F_INDIRECT, F_NEXT, F_WRITE};
use crate::vring::split::SplitRing;

/// Shortest frame taken: an Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;
/// Longest frame taken: 64 KiB of IP behind an Ethernet header.
pub const MAX_FRAME_BYTES: usize = 65_550;
/// Descriptors of long chains looked at in one burst: a guest that hides one byte in each
/// gets its next chain served in the next burst.
const DESCRIPTOR_BUDGET: usize = 1024;

/// The half that receives from the guest.
pub struct FromGuest {
    mailbox: Mailbox,
    stats: SharedStats,
    calls: Arc<Counter>,
    /// Longest frame the pool could ever hold beside others.
    max_frame_bytes: usize,
}

impl FromGuest {
    /// A half without a ring yet. `calls` counts interrupts sent to the guest.
    pub fn new(mailbox: Mailbox, calls: Arc<Counter>, pool: &Pool) -> FromGuest {
        // A frame that takes more than a quarter of the pool could wait for buffers for ever.
        let max_buffers = (pool.counts().capacity as usize / 4).max(1);
        let max_frame_bytes = MAX_FRAME_BYTES.min(max_buffers * DATA_ROOM);
        FromGuest { mailbox, stats: QueueStats::shared(), calls, max_frame_bytes }
    }
}

impl RxQueue for FromGuest {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        self.mailbox.poll();
        let Some((ring, enabled)) = self.mailbox.ring() else { return 0 };
        let taken = if enabled {
            let mut walk = Walk { pool, out, stats: &self.stats, max_frame_bytes: self.max_frame_bytes };
            walk.burst(ring)
        } else {
            discard(ring, &self.stats)
        };
        match taken {
            Ok(Taken { n_frames, bytes, called }) => {
                self.stats.moved(n_frames, bytes);
                self.calls.add(u64::from(called));
                n_frames
            }
            Err(fault) => {
                self.mailbox.fail(fault);
                0
            }
        }
    }

    fn poll_control(&mut self) {
        self.mailbox.poll();
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

/// What one burst came to.
#[derive(Default)]
struct Taken {
    n_frames: usize,
    bytes: u64,
    called: bool,
}

/// A started but disabled ring is drained and its frames are dropped (vhost-user, "Ring states").
fn discard(ring: &mut SplitRing, stats: &QueueStats) -> Result<Taken, RingFault> {
    let n = usize::from(ring.available()?).min(BURST);
    let heads = ring.heads(n)?;
    for (i, head) in heads.iter().enumerate().take(n) {
        ring.stage_used(i as u16, *head, 0);
    }
    let old = ring.next_used;
    ring.advance(n as u16);
    stats.dropped(DropReason::NotRunning, n);
    Ok(Taken { called: ring.publish(old), ..Taken::default() })
}

/// How one chain ended.
enum Outcome {
    Frame(PacketBuf),
    Dropped(DropReason),
    /// No buffer: the chain stays in the ring.
    NoBuffer,
}

struct Walk<'b> {
    pool: &'b mut PoolCache,
    out: &'b mut Burst,
    stats: &'b QueueStats,
    max_frame_bytes: usize,
}

impl Walk<'_> {
    /// Takes up to a burst of chains. Heads, descriptors and payload are fetched in loops of their own,
    /// so that cache misses overlap.
    fn burst(&mut self, ring: &mut SplitRing) -> Result<Taken, RingFault> {
        let n = usize::from(ring.available()?).min(self.out.room());
        if n == 0 {
            return Ok(Taken::default());
        }
        let heads = ring.heads(n)?;
        heads[..n].iter().for_each(|head| ring.memory.prefetch_descriptor(*head));
        let mut memory = Translator::new(ring.memory.map());
        let mut plain = [None; BURST];
        for (slot, head) in plain.iter_mut().zip(&heads[..n]) {
            *slot = plain_frame(ring, &mut memory, *head);
            if let Some(frame) = slot {
                frame.prefetch();
            }
        }
        let mut budget = DESCRIPTOR_BUDGET;
        let (mut n_taken, mut taken) = (0, Taken::default());
        for (head, frame) in heads[..n].iter().zip(plain) {
            let outcome = match frame {
                Some(frame) => self.copy_plain(frame),
                None if budget == 0 => break,
                None => self.copy_chain(ring, &mut memory, *head, &mut budget),
            };
            match outcome {
                Outcome::Frame(packet) => {
                    taken.n_frames += 1;
                    taken.bytes += packet.total_len() as u64;
                    let pushed = self.out.push(packet);
                    debug_assert!(pushed.is_ok(), "n is at most the room");
                }
                Outcome::Dropped(reason) => self.stats.dropped(reason, 1),
                Outcome::NoBuffer => break,
            }
            ring.stage_used(n_taken, *head, 0);
            n_taken += 1;
        }
        let old = ring.next_used;
        ring.advance(n_taken);
        taken.called = ring.publish(old);
        Ok(taken)
    }

    /// Copies a frame that lies in one piece and fits one buffer.
    #[inline(always)]
    fn copy_plain(&mut self, frame: GuestSlice<'_>) -> Outcome {
        let Some(mut packet) = self.pool.alloc() else { return Outcome::NoBuffer };
        frame.append_to(&mut packet, frame.len());
        Outcome::Frame(packet)
    }

    /// Any other chain: gathered whole, checked, then copied.
    #[inline(never)]
    fn copy_chain<'m>(
        &mut self,
        ring: &'m SplitRing,
        memory: &mut Translator<'m>,
        head: u16,
        budget: &mut usize,
    ) -> Outcome {
        let mut chain = Chain::new();
        let gathered = chain.gather(&ring.memory, memory, head, Direction::FromGuest, ring.features.indirect);
        *budget = budget.saturating_sub(chain.len().max(1));
        if let Err(error) = gathered {
            return Outcome::Dropped(error.reason());
        }
        let header_bytes = ring.features.header_bytes;
        let frame_bytes = chain.bytes().saturating_sub(header_bytes as u64);
        if frame_bytes < MIN_FRAME_BYTES as u64 {
            return Outcome::Dropped(DropReason::Runt);
        }
        if frame_bytes > self.max_frame_bytes as u64 {
            return Outcome::Dropped(DropReason::Oversize);
        }
        match copy_slices(self.pool, &chain, header_bytes) {
            Some(packet) => Outcome::Frame(packet),
            None => Outcome::NoBuffer,
        }
    }
}

/// The frame of a chain of one direct descriptor that fits one buffer, behind its header.
#[inline(always)]
fn plain_frame<'m>(ring: &SplitRing, memory: &mut Translator<'m>, head: u16) -> Option<GuestSlice<'m>> {
    let descriptor = ring.memory.descriptor(head);
    let header_bytes = ring.features.header_bytes;
    let frame_bytes = (descriptor.len as usize).wrapping_sub(header_bytes);
    let plain = descriptor.flags & (F_NEXT | F_INDIRECT | F_WRITE) == 0;
    if !plain || frame_bytes.wrapping_sub(MIN_FRAME_BYTES) > DATA_ROOM - MIN_FRAME_BYTES {
        return None;
    }
    memory.slice(Gpa(descriptor.addr), descriptor.len).map(|slice| slice.skip(header_bytes))
}

/// Copies the bytes of `slices` from `skip` on into a new chain of buffers; `None` when the pool runs out.
fn copy_slices(pool: &mut PoolCache, slices: &[GuestSlice<'_>], mut skip: usize) -> Option<PacketBuf> {
    let mut full: arrayvec::ArrayVec<PacketBuf, { MAX_FRAME_BYTES / DATA_ROOM + 1 }> = Default::default();
    let mut packet = pool.alloc()?;
    for slice in slices {
        let mut rest = slice.skip(skip);
        skip = skip.saturating_sub(slice.len());
        while rest.len() > 0 {
            if packet.tailroom() == 0 {
                let Some(next) = pool.alloc() else {
                    pool.free(packet);
                    full.drain(..).for_each(|part| pool.free(part));
                    return None;
                };
                full.push(std::mem::replace(&mut packet, next));
            }
            let n = rest.append_to(&mut packet, rest.len());
            rest = rest.skip(n);
        }
    }
    // Linked from the back, so that no link is walked.
    while let Some(mut before) = full.pop() {
        before.chain(packet);
        packet = before;
    }
    Some(packet)
}
