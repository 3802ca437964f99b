//! The sending half of a vhost port: frames for the guest to receive (its ring 0).
//!
//! Polled by one core. A frame fills one chain, or several when the guest merges buffers. A full
//! ring leaves the rest of the burst to the caller; a ring that isn't running takes all and
//! drops it by name.

use std::sync::Arc;

use arrayvec::ArrayVec;
use spp_drivers::dma::{PacketBuf, PoolCache};
use spp_drivers::port::TxQueue;
use spp_drivers::stats::{Counter, DropReason, QueueStats, SharedStats};
use spp_drivers::{BURST, Burst};

use crate::handover::Mailbox;
use crate::memory::{Gpa, GuestSlice, Translator};
use crate::net_hdr::{HEADER_BYTES, header};
use crate::vring::RingFault;
use crate::vring::chain::{Chain, ChainError, Direction, MAX_CHAIN};
use crate::vring::layout::{F_INDIRECT, F_NEXT, F_WRITE};
use crate::vring::split::SplitRing;

/// The half that sends to the guest.
pub struct ToGuest {
    mailbox: Mailbox,
    stats: SharedStats,
    calls: Arc<Counter>,
}

impl ToGuest {
    /// A half without a ring yet. `calls` counts interrupts sent to the guest.
    pub fn new(mailbox: Mailbox, calls: Arc<Counter>) -> ToGuest {
        ToGuest { mailbox, stats: QueueStats::shared(), calls }
    }
}

impl TxQueue for ToGuest {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        self.mailbox.poll();
        let sent = match self.mailbox.ring() {
            Some((ring, true)) => send(ring, pool, from, &self.stats),
            _ => {
                let n = from.free_all(pool);
                self.stats.dropped(DropReason::NotRunning, n);
                return n;
            }
        };
        match sent {
            Ok(Sent { n_left, n_frames, bytes, called }) => {
                self.stats.moved(n_frames, bytes);
                self.calls.add(u64::from(called));
                n_left
            }
            Err(fault) => {
                self.mailbox.fail(fault);
                let n = from.free_all(pool);
                self.stats.dropped(DropReason::NotRunning, n);
                n
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

/// What one burst came to: frames that left the burst, and those of them that were delivered.
#[derive(Default)]
struct Sent {
    n_left: usize,
    n_frames: usize,
    bytes: u64,
    called: bool,
}

/// Sends from the front of `from`. A fault found half-way still publishes what was delivered before it.
fn send(
    ring: &mut SplitRing,
    pool: &mut PoolCache,
    from: &mut Burst,
    stats: &QueueStats,
) -> Result<Sent, RingFault> {
    let old = ring.next_used;
    let mut available = ring.available()?;
    let mut sent = Sent::default();
    let mut fault = None;
    while !from.is_empty() && available > 0 {
        let n = match send_plain(ring, from, available) {
            Ok((n, bytes)) => {
                sent.n_frames += n;
                sent.bytes += bytes;
                n
            }
            Err(found) => {
                fault = Some(found);
                break;
            }
        };
        ring.advance(n as u16);
        available -= n as u16;
        sent.n_left += n;
        from.take_front(n).for_each(|packet| pool.free(packet));
        let Some(packet) = from.first() else { break };
        let (outcome, n_chains) = match send_chained(ring, packet, available) {
            Ok(outcome) => outcome,
            Err(found) => {
                fault = Some(found);
                break;
            }
        };
        match outcome {
            Outcome::Full => break,
            Outcome::Dropped(reason) => stats.dropped(reason, 1),
            Outcome::Delivered => {
                sent.n_frames += 1;
                sent.bytes += packet.total_len() as u64;
            }
        }
        ring.advance(n_chains);
        available -= n_chains;
        sent.n_left += 1;
        from.take_front(1).for_each(|packet| pool.free(packet));
    }
    sent.called = ring.publish(old);
    match fault {
        Some(fault) if sent.n_left == 0 => Err(fault),
        // Found again, and reported, by the next burst.
        _ => Ok(sent),
    }
}

/// Sends frames that fit one direct descriptor, up to the first that doesn't: most of all
/// traffic. Returns how many, and their bytes; their chains are used up, but not yet taken off the ring.
#[inline(always)]
fn send_plain(ring: &SplitRing, from: &Burst, available: u16) -> Result<(usize, u64), RingFault> {
    let n = from.len().min(usize::from(available));
    let heads = ring.heads(n)?;
    heads[..n].iter().for_each(|head| ring.memory.prefetch_descriptor(*head));
    let mut memory = Translator::new(ring.memory.map());
    let mut slots: ArrayVec<GuestSlice<'_>, BURST> = ArrayVec::new();
    for (head, packet) in heads[..n].iter().zip(from.iter()) {
        let Some(slot) = plain_slot(ring, &mut memory, *head, packet) else { break };
        slot.prefetch();
        packet.prefetch();
        slots.push(slot);
    }
    let n = slots.len();
    let header_bytes = ring.features.header_bytes;
    let header = header(1);
    let mut bytes = 0;
    for (i, (slot, packet)) in slots.iter().zip(from.iter()).enumerate() {
        slot.write(&header[..header_bytes]);
        slot.skip(header_bytes).write(packet.data());
        ring.stage_used(i as u16, heads[i], (header_bytes + packet.len()) as u32);
        bytes += packet.len() as u64;
    }
    Ok((n, bytes))
}

/// The one descriptor at `head`, if the frame fits it.
#[inline(always)]
fn plain_slot<'m>(
    ring: &SplitRing,
    memory: &mut Translator<'m>,
    head: u16,
    packet: &PacketBuf,
) -> Option<GuestSlice<'m>> {
    let descriptor = ring.memory.descriptor(head);
    let plain = descriptor.flags & (F_NEXT | F_INDIRECT | F_WRITE) == F_WRITE;
    let fits = descriptor.len as usize >= packet.len() + ring.features.header_bytes;
    if !plain || !fits || packet.is_chained() {
        return None;
    }
    memory.slice(Gpa(descriptor.addr), descriptor.len)
}

/// How one frame ended.
enum Outcome {
    Delivered,
    /// It leaves the burst undelivered.
    Dropped(DropReason),
    /// Not enough chains now; it stays.
    Full,
}

/// Chains gathered for one frame: head, and capacity in bytes.
type Heads = ArrayVec<(u16, u64), MAX_CHAIN>;

/// Sends one frame of any shape into chains of any shape. Returns the chains it used up, not yet
/// taken off the ring.
#[inline(never)]
fn send_chained(ring: &SplitRing, packet: &PacketBuf, available: u16) -> Result<(Outcome, u16), RingFault> {
    let need = (ring.features.header_bytes + packet.total_len()) as u64;
    let mut memory = Translator::new(ring.memory.map());
    let mut chain = Chain::new();
    let mut heads = Heads::new();
    while chain.bytes() < need {
        let n = heads.len() as u16;
        if n > 0 && !ring.features.mergeable || heads.is_full() {
            return Ok((Outcome::Dropped(DropReason::Oversize), 0));
        }
        if n == available {
            // All the guest could ever give, and still too little: waiting would not help.
            let all = available == ring.memory.size();
            return Ok((if all { Outcome::Dropped(DropReason::Oversize) } else { Outcome::Full }, 0));
        }
        let head = ring.head(n)?;
        let before = chain.bytes();
        let direction = Direction::ToGuest;
        match chain.gather(&ring.memory, &mut memory, head, direction, ring.features.indirect) {
            Ok(()) => heads.push((head, chain.bytes() - before)),
            Err(ChainError::TooLong) if n > 0 => return Ok((Outcome::Dropped(DropReason::Oversize), 0)),
            Err(error) => {
                heads.push((head, 0));
                give_back_empty(ring, &heads);
                return Ok((Outcome::Dropped(error.reason()), heads.len() as u16));
            }
        }
    }
    let n = heads.len() as u16;
    let header: [u8; HEADER_BYTES] = header(n);
    let mut writer = Writer { slices: &chain, at: 0 };
    writer.write(&header[..ring.features.header_bytes]);
    packet.segments().for_each(|segment| writer.write(segment));
    let mut left = need;
    for (i, (head, capacity)) in heads.iter().enumerate() {
        let len = left.min(*capacity);
        ring.stage_used(i as u16, *head, len as u32);
        left -= len;
    }
    Ok((Outcome::Delivered, n))
}

/// Bad chains go back with length 0, or the guest would wait for them for ever.
#[cold]
fn give_back_empty(ring: &SplitRing, heads: &Heads) {
    for (i, (head, _)) in heads.iter().enumerate() {
        ring.stage_used(i as u16, *head, 0);
    }
}

/// Writes bytes one after the other into a list of guest buffers.
struct Writer<'c, 'm> {
    slices: &'c [GuestSlice<'m>],
    /// Bytes written into the first of `slices`.
    at: usize,
}

impl Writer<'_, '_> {
    /// Writes all of `bytes`; the buffers are known to be long enough.
    fn write(&mut self, mut bytes: &[u8]) {
        while let (Some(slice), false) = (self.slices.first(), bytes.is_empty()) {
            let n = slice.skip(self.at).write(bytes);
            bytes = &bytes[n..];
            self.at += n;
            if self.at == slice.len() {
                (self.slices, self.at) = (&self.slices[1..], 0);
            }
        }
    }
}
