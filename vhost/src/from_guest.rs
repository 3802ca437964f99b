//! The receiving half of a vhost port: frames the guest transmits (its ring 1).
//!
//! Polled by one core. Payload and header are copied into our own memory before anyone looks at them; checksum and
//! segmentation work that the guest left undone is judged by the frame it came with and travels on beside
//! it. Chains are taken in order and given back used at the end of the burst.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arrayvec::ArrayVec;
use spp_drivers::dma::{DATA_ROOM, PacketBuf, Pool, PoolCache, Tally};
use spp_drivers::offload::{Offloads, accept::accept};
use spp_drivers::port::{Passed, RxQueue, TxQueue};
use spp_drivers::stats::{DropReason, QueueStats, SharedStats};
use spp_drivers::{BURST, Burst, MacAddr};

use crate::deal::Seat;
use crate::lanes::{Lane, LaneStats, Lanes};
use crate::lend::lend;
use crate::memory::{GuestSlice, Translator};
use crate::net_hdr;
use crate::plain::{PlainFrames, Shape, plain_frames};
use crate::rarp::rarp;
use crate::vring::chain::{Chain, Direction};
use crate::vring::walk::{Entries, Head, Layout, Queue, Used, for_layout};
use crate::vring::{RingFault, RingFeatures};

/// Shortest frame taken: an Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;
/// Longest frame taken: 64 KiB of IP behind an Ethernet header.
pub const MAX_FRAME_BYTES: usize = 65_550;
/// Descriptors of long chains looked at in one burst: a guest that hides one byte in each
/// gets its next chain served in the next burst.
const DESCRIPTOR_BUDGET: usize = 1024;
/// What a buffer of a long frame costs of that: a burst ends after two frames of 64 KiB, for whoever gets it holds them all.
const BUFFER_COST: usize = DESCRIPTOR_BUDGET / 64;

/// The half that receives from the guest.
pub struct FromGuest {
    lanes: Lanes,
    stats: SharedStats,
    /// The ring served first in the next burst, among those with work.
    next: usize,
    /// Longest frame the pool could ever hold beside others.
    max_frame_bytes: usize,
}

impl FromGuest {
    /// A half without a ring yet.
    pub fn new(lanes: impl IntoIterator<Item = Lane>, bell: Arc<AtomicUsize>, pool: &Pool) -> FromGuest {
        // A frame that takes more than a quarter of the pool could wait for buffers for ever.
        let max_buffers = (pool.counts().capacity as usize / 4).max(1);
        let max_frame_bytes = MAX_FRAME_BYTES.min(max_buffers * DATA_ROOM);
        let lanes = Lanes::new(lanes, bell, true);
        FromGuest { lanes, stats: QueueStats::shared(), next: 0, max_frame_bytes }
    }

    /// As [`ToGuest::sit`](crate::ToGuest).
    pub(crate) fn sit(&mut self, seat: Seat) {
        self.lanes.sit(seat);
    }

    /// Takes what one ring has, as far as `out` and the budget go.
    #[inline(always)]
    fn receive_on(&mut self, nth: usize, pool: &mut PoolCache, out: &mut Burst, budget: &mut usize) -> Taken {
        let Lane { mailbox, stats, .. } = self.lanes.active(nth);
        let Some((ring, enabled)) = mailbox.ring() else { return Taken::default() };
        let taken = if enabled {
            let max_frame_bytes = self.max_frame_bytes;
            let mut walk = Walk { pool, out, stats: &self.stats, max_frame_bytes, budget };
            for_layout!(&mut ring.0, ring => walk.burst(ring))
        } else {
            for_layout!(&mut ring.0, ring => discard(ring, &self.stats))
        };
        match taken {
            Ok(taken) => {
                taken.count(&self.stats, stats);
                taken
            }
            Err(fault) => {
                mailbox.fail(fault);
                self.lanes.refresh();
                Taken::default()
            }
        }
    }

    /// Serves the rings in turns: each burst starts with another one, so that none starves, however much the others have.
    #[inline(never)]
    fn rotate(&mut self, pool: &mut PoolCache, out: &mut Burst, budget: &mut usize) -> Taken {
        let n_lanes = self.lanes.n_active();
        let first = if self.next < n_lanes { self.next } else { 0 };
        self.next = first + 1;
        let mut all = Taken::default();
        for nth in (first..n_lanes).chain(0..first) {
            // A ring that has just failed is active no more.
            if out.room() == 0 || *budget == 0 || nth >= self.lanes.n_active() {
                break;
            }
            let taken = self.receive_on(nth, pool, out, budget);
            all.n_frames += taken.n_frames;
            all.bytes += taken.bytes;
            all.some_special |= taken.some_special;
        }
        all
    }

    /// A burst from whichever rings there are.
    #[inline(always)]
    fn receive(&mut self, pool: &mut PoolCache, out: &mut Burst) -> Taken {
        self.lanes.poll();
        if let Some(mac) = self.lanes.announcement {
            return self.announce(mac, pool, out);
        }
        let mut budget = DESCRIPTOR_BUDGET;
        match self.lanes.n_active() {
            0 => Taken::default(),
            1 => self.receive_on(0, pool, out, &mut budget),
            _ => self.rotate(pool, out, &mut budget),
        }
    }
}

impl RxQueue for FromGuest {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        self.receive(pool, out).n_frames
    }

    /// Plain frames are long enough for a header and in one buffer each: nothing need be looked at again.
    fn rx_tallied(&mut self, pool: &mut PoolCache, out: &mut Burst) -> Tally {
        let first = out.len();
        let taken = self.receive(pool, out);
        if taken.some_special { Tally::of(&out[first..]) } else { Tally::of_plain(taken.bytes) }
    }

    /// From a guest with one queue only: of several, each has its turn.
    fn rx_into(&mut self, to: &mut dyn TxQueue) -> Option<Passed> {
        self.lanes.poll();
        if self.lanes.announcement.is_some() || self.lanes.n_active() != 1 {
            return None;
        }
        let Lane { mailbox, stats, .. } = self.lanes.active(0);
        let (ring, true) = mailbox.ring()? else { return None };
        // A fault is found again, and reported, by the burst into buffers that comes instead.
        let taken = for_layout!(&mut ring.0, ring => lend(ring, to)).ok()??;
        taken.count(&self.stats, stats);
        Some(Passed { packets: taken.n_frames, bytes: taken.bytes })
    }

    fn poll_control(&mut self) {
        self.lanes.poll();
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl FromGuest {
    /// A frame in the guest's name, so that switches learn where it is now.
    #[cold]
    fn announce(&mut self, mac: MacAddr, pool: &mut PoolCache, out: &mut Burst) -> Taken {
        // Without room or buffer it is made later.
        let packet = if out.room() > 0 { pool.alloc() } else { None };
        let Some(mut packet) = packet else { return Taken::default() };
        self.lanes.announcement = None;
        let frame = rarp(mac);
        let appended = packet.append(&frame);
        debug_assert!(appended.is_ok(), "a short frame fits any buffer");
        let pushed = out.push(packet);
        debug_assert!(pushed.is_ok(), "there was room");
        let taken = Taken { n_frames: 1, bytes: frame.len() as u64, ..Taken::default() };
        self.stats.moved(taken.n_frames, taken.bytes);
        taken
    }
}

/// What one burst came to.
#[derive(Default)]
pub(crate) struct Taken {
    pub n_frames: usize,
    pub bytes: u64,
    pub called: bool,
    /// Some frames may be longer than a buffer, or have work with them.
    pub some_special: bool,
}

impl Taken {
    /// In the counters of all rings, and of the one.
    #[inline(always)]
    fn count(&self, all: &QueueStats, one: &LaneStats) {
        all.moved(self.n_frames, self.bytes);
        one.packets.add(self.n_frames as u64);
        one.calls.add(u64::from(self.called));
    }
}

/// A started but disabled ring is drained and its frames are dropped (vhost-user, "Ring states").
fn discard<L: Layout>(ring: &mut Queue<L>, stats: &QueueStats) -> Result<Taken, RingFault> {
    ring.look()?;
    let mut entries = Entries::<L>::new();
    ring.layout.entries(&ring.place, BURST, &mut entries)?;
    give_back(ring, &entries);
    stats.dropped(DropReason::NotRunning, entries.len());
    Ok(Taken { called: ring.publish(), ..Taken::default() })
}

/// Gives chains back that were only read, from the front. In order, one used element stands for all of them
/// (virtio 1.2, 2.7.9 and 2.8.20).
#[inline(always)]
pub(crate) fn give_back<L: Layout>(ring: &mut Queue<L>, entries: &[L::Entry]) {
    let Queue { layout, place, features, .. } = ring;
    let used = entries.iter().map(|entry| L::used(*entry, 0));
    match entries {
        [.., last] if features.in_order => {
            let n_slots = used.map(|used| used.n_slots).sum();
            let all = std::iter::once(Used { n_slots, ..L::used(*last, 0) });
            layout.complete(place, Direction::FromGuest, all);
        }
        _ => layout.complete(place, Direction::FromGuest, used),
    }
}

/// How one chain ended.
enum Outcome {
    /// A frame of so many bytes went to the burst.
    Frame(usize),
    Dropped(DropReason),
    /// No buffer: the chain stays in the ring.
    NoBuffer,
}

/// What a run of plain frames came to: chains taken, and why it ended.
struct Plain {
    n_taken: usize,
    end: End,
}

enum End {
    /// All chains were plain.
    All,
    /// This one is not.
    Other(Head),
    /// There were too few buffers for all of them.
    NoBuffer,
}

struct Walk<'b> {
    pool: &'b mut PoolCache,
    out: &'b mut Burst,
    stats: &'b QueueStats,
    max_frame_bytes: usize,
    /// Descriptors of long chains that may still be looked at in this burst.
    budget: &'b mut usize,
}

impl Walk<'_> {
    /// Takes up to a burst of chains. Heads, descriptors and payload are fetched in loops of their own,
    /// so that cache misses overlap.
    fn burst<L: Layout>(&mut self, ring: &mut Queue<L>) -> Result<Taken, RingFault> {
        let mut entries = Entries::<L>::new();
        ring.poll(self.out.room(), &mut entries)?;
        let Queue { layout, features, .. } = ring;
        if entries.is_empty() {
            return Ok(Taken::default());
        }
        let (mut n_taken, mut taken) = (0, Taken::default());
        loop {
            let plain = self.copy_plain(layout, features, &entries[n_taken..], &mut taken);
            n_taken += plain.n_taken;
            let End::Other(head) = plain.end else { break };
            if *self.budget == 0 {
                break;
            }
            match self.copy_chain(layout, features, &head) {
                Outcome::Frame(n_bytes) => {
                    taken.some_special = true;
                    taken.n_frames += 1;
                    taken.bytes += n_bytes as u64;
                }
                Outcome::Dropped(reason) => self.stats.dropped(reason, 1),
                Outcome::NoBuffer => break,
            }
            n_taken += 1;
        }
        give_back(ring, &entries[..n_taken]);
        taken.called = ring.publish();
        Ok(taken)
    }

    /// Takes the frames in front that lie in one piece with their header and fit one buffer, up to the first that does
    /// not: most of all traffic. Buffers are taken together, and each step is a loop of its own, without calls.
    #[inline(always)]
    fn copy_plain<L: Layout>(
        &mut self,
        layout: &L,
        features: &RingFeatures,
        entries: &[L::Entry],
        taken: &mut Taken,
    ) -> Plain {
        let (shape, mut frames) = (Shape::new(features), PlainFrames::new());
        let other = plain_frames(layout, shape, entries, &mut frames);
        let first = self.out.len();
        let (n_taken, mut bytes) = copy_frames(&frames, shape.header_bytes, self.pool, self.out);
        if shape.has_work {
            taken.some_special = true;
            bytes -= self.judge_plain(first, &frames[..n_taken], features);
        }
        taken.n_frames += self.out.len() - first;
        taken.bytes += bytes as u64;
        let end = match other {
            _ if n_taken < frames.len() => End::NoBuffer,
            Some(head) => End::Other(head),
            None => End::All,
        };
        Plain { n_taken, end }
    }

    /// Looks at the headers of packets from `first` on, which came as `frames`, and takes those out that ask for what can't be;
    /// returns their bytes.
    #[inline(never)]
    fn judge_plain(&mut self, first: usize, frames: &[GuestSlice<'_>], features: &RingFeatures) -> usize {
        let mut dropped_bytes = 0;
        // From the last on: what is taken out moves none that is still to be looked at.
        for (i, frame) in frames.iter().enumerate().rev() {
            let packet = &mut self.out[first + i];
            let header = net_hdr::from_guest(std::slice::from_ref(frame));
            match accept(&header, packet, features.from_guest) {
                Ok(None) => (),
                Ok(work) => packet.set_offload(work),
                Err(reason) => {
                    let packet = self.out.remove(first + i);
                    dropped_bytes += packet.len();
                    self.pool.free(packet);
                    self.stats.dropped(reason, 1);
                }
            }
        }
        dropped_bytes
    }

    /// A frame of any other shape, with the chain it came in: its header says what work is left. From a guest that
    /// negotiated none the header means nothing, and is not read.
    fn admit(&mut self, chain: &[GuestSlice<'_>], mut packet: PacketBuf, features: &RingFeatures) -> Outcome {
        let n_bytes = packet.total_len();
        let too_long = n_bytes > features.max_frame_bytes;
        let judged = match features.from_guest {
            Offloads::NONE => Ok(None),
            negotiated => accept(&net_hdr::from_guest(chain), &packet, negotiated),
        };
        let judged = match judged {
            Ok(work) if too_long && !work.is_some_and(|work| work.is_long()) => Err(DropReason::Oversize),
            judged => judged,
        };
        match judged {
            Ok(work) => {
                if work.is_some() {
                    packet.set_offload(work);
                }
                let pushed = self.out.push(packet);
                debug_assert!(pushed.is_ok(), "at most the room was asked for");
                Outcome::Frame(n_bytes)
            }
            Err(reason) => {
                self.pool.free(packet);
                Outcome::Dropped(reason)
            }
        }
    }

    /// Any other chain: gathered whole, checked, then copied.
    #[inline(never)]
    fn copy_chain<L: Layout>(&mut self, layout: &L, features: &RingFeatures, head: &Head) -> Outcome {
        let (mut memory, mut chain) = (Translator::new(layout.map()), Chain::new());
        let gathered = layout.gather(head, &mut memory, Direction::FromGuest, features.indirect, &mut chain);
        *self.budget = self.budget.saturating_sub(chain.len().max(1));
        if let Err(error) = gathered {
            return Outcome::Dropped(error.reason());
        }
        let header_bytes = features.header_bytes;
        let frame_bytes = chain.bytes().saturating_sub(header_bytes as u64);
        if frame_bytes < MIN_FRAME_BYTES as u64 {
            return Outcome::Dropped(DropReason::Runt);
        }
        if frame_bytes > self.max_frame_bytes as u64 {
            return Outcome::Dropped(DropReason::Oversize);
        }
        match copy_slices(self.pool, &chain, header_bytes) {
            Some(packet) => {
                *self.budget = self.budget.saturating_sub((packet.n_segments() - 1) * BUFFER_COST);
                self.admit(&chain, packet, features)
            }
            None => Outcome::NoBuffer,
        }
    }
}

/// Copies frames behind their headers, which are no longer than a buffer, to the end of `out`: how many there were buffers
/// for, and their bytes.
#[inline(always)]
fn copy_frames(
    frames: &[GuestSlice<'_>],
    header_bytes: usize,
    pool: &mut PoolCache,
    out: &mut Burst,
) -> (usize, usize) {
    let (first, mut bytes, mut some_left) = (out.len(), 0, false);
    // A loop without calls.
    let n = pool.alloc_each(frames, out, |buffer, frame| {
        let n = frame.put_short_into(header_bytes, &buffer);
        bytes += n;
        some_left |= n == 0;
        n
    });
    if some_left {
        for (packet, frame) in out[first..].iter_mut().zip(frames).filter(|(packet, _)| packet.len() == 0) {
            let rest = frame.skip(header_bytes);
            bytes += rest.append_to(packet, rest.len());
        }
    }
    (n, bytes)
}

/// Copies the bytes of `slices` from `skip` on into a new chain of buffers; `None` when the pool runs out.
fn copy_slices(pool: &mut PoolCache, slices: &[GuestSlice<'_>], mut skip: usize) -> Option<PacketBuf> {
    let mut full: ArrayVec<PacketBuf, { MAX_FRAME_BYTES / DATA_ROOM + 1 }> = Default::default();
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
