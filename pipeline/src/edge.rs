//! The two ends of a component: taking bursts in, sending bursts out, counting both.
//!
//! Shared by all components, called by the worker thread only. Each drop here is counted twice for
//! two questions: at its edge (which port?) and at its component (which reason, in all?).

use spp_drivers::Burst;
use spp_drivers::dma::{PacketBuf, PoolCache, Tally};
use spp_drivers::port::{Passed, RxQueue, TxQueue};
use spp_drivers::stats::{DropReason, QueueStats};

use crate::frame::{self, ETHERNET_BYTES};
use crate::link::Link;
use crate::offload;
use crate::plan::{RxEdge, TxEdge, VlanOp, WhenFull};
use crate::stats::ComponentStats;

/// A receiving half in its slot.
#[derive(Default)]
pub(crate) struct RxHalf {
    pub queue: Option<Box<dyn RxQueue>>,
    /// The link in front of it, when it is the end of a fused ring.
    pub link: Option<u16>,
    /// It takes tags off by itself.
    pub strips: bool,
    /// It panicked while nobody asked it for packets: left alone from then on.
    pub faulty: bool,
    /// Its code is running, or panicked.
    pub in_call: bool,
}

/// A sending half in its slot, with the frames that wait for it. They stay through plan changes.
#[derive(Default)]
pub(crate) struct TxHalf {
    pub queue: Option<Box<dyn TxQueue>>,
    /// In a box, so that a whole burst changes hands by a pointer: copied, it costs 4 instructions a packet and hop.
    pub pending: Box<Burst>,
    /// As [`RxHalf::link`].
    pub link: Option<u16>,
    /// What it does to tags by itself, also to what is pending.
    pub inserts: VlanOp,
    /// When the pending burst was first refused, in ticks.
    pub since: Option<u64>,
    /// Merge: the input served first next time.
    pub cursor: u16,
    /// Segments of a long frame made at a time, in software; 0 is a burst.
    pub step: u8,
    /// As [`RxHalf::faulty`].
    pub faulty: bool,
    /// As [`RxHalf::in_call`].
    pub in_call: bool,
}

/// All halves of a worker.
#[derive(Default)]
pub(crate) struct Slots {
    pub rx: Vec<RxHalf>,
    pub tx: Vec<TxHalf>,
    /// The burst that the component whose turn it is has in its hand. Empty between turns.
    pub hand: Box<Burst>,
}

/// What one turn of a component moved; becomes counters when the turn is over.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ledger {
    pub rx: u64,
    pub tx: u64,
    pub copies: u64,
    pub dropped: u64,
}

/// What a component's turn works with besides its edges.
pub(crate) struct Books<'a> {
    pub pool: &'a mut PoolCache,
    /// The core's fused rings.
    pub links: &'a mut Vec<Link>,
    pub ledger: Ledger,
    pub stats: &'a ComponentStats,
    /// Start of this turn, in ticks.
    pub now: u64,
}

impl Books<'_> {
    #[inline]
    pub(crate) fn count_drops(&mut self, edge: &QueueStats, reason: DropReason, n: usize) {
        edge.dropped(reason, n);
        self.stats.dropped(reason, n as u64);
        self.ledger.dropped += n as u64;
    }

    #[inline]
    pub(crate) fn drop_packet(&mut self, packet: PacketBuf, edge: &QueueStats, reason: DropReason) {
        self.pool.free(packet);
        self.count_drops(edge, reason, 1);
    }
}

/// Takes a burst from an open edge to the end of `out`: runts are dropped, the edge's VLAN
/// operation is done. Tells what it took, unless some of that was dropped or changed since.
#[inline(always)]
pub(crate) fn receive(
    edge: &RxEdge,
    half: &mut RxHalf,
    books: &mut Books,
    out: &mut Box<Burst>,
) -> Option<Tally> {
    // As most fused rings are in most turns: no call for that.
    if half.link.and_then(|link| books.links.get(usize::from(link))).is_some_and(Link::is_empty) {
        return Some(Tally::default());
    }
    receive_some(edge, half, books, out)
}

#[inline(never)]
fn receive_some(edge: &RxEdge, half: &mut RxHalf, books: &mut Books, out: &mut Box<Burst>) -> Option<Tally> {
    let first = out.len();
    let tally = take(edge, half, books, out);
    if out.len() == first || !tally.has_runt && edge.vlan == VlanOp::None {
        return Some(tally);
    }
    tidy(edge, books, out, first);
    None
}

/// Drops runts and does the edge's VLAN operation.
#[inline(never)]
fn tidy(edge: &RxEdge, books: &mut Books, out: &mut Burst, first: usize) {
    rework(out, first, &edge.stats, books, |packet, pool| {
        if packet.total_len() < ETHERNET_BYTES {
            return Err(DropReason::Runt);
        }
        frame::apply(edge.vlan, packet, pool)
    });
}

/// Moves a burst from an open edge straight to an output with nothing pending: true when there was none, or it went. False when
/// there may be frames that have to be [received](receive).
#[inline]
pub(crate) fn pass(
    rx: &RxEdge,
    input: &mut RxHalf,
    tx: &TxEdge,
    output: &mut TxHalf,
    books: &mut Books,
) -> bool {
    let (Some(from), Some(to)) = (&mut input.queue, &mut output.queue) else { return false };
    // Either could be where it panics: then both ports are reset.
    (input.in_call, output.in_call) = (true, true);
    let passed = from.rx_into(to.as_mut());
    (input.in_call, output.in_call) = (false, false);
    let Some(Passed { packets: n, bytes }) = passed else { return false };
    if n > 0 {
        books.ledger.rx += n as u64;
        books.ledger.tx += n as u64;
        books.stats.received_burst(n);
        rx.stats.moved(n, bytes);
        tx.stats.moved(n, bytes);
    }
    true
}

/// Takes a burst from a closed edge and drops it.
#[inline(never)]
pub(crate) fn refuse(edge: &RxEdge, half: &mut RxHalf, books: &mut Books, hand: &mut Box<Burst>) {
    take(edge, half, books, hand);
    let n = hand.free_all(books.pool);
    if n > 0 {
        books.count_drops(&edge.stats, DropReason::Unplugged, n);
    }
}

/// Takes a burst from an edge to the end of `out`, and books it.
#[inline(always)]
fn take(edge: &RxEdge, half: &mut RxHalf, books: &mut Books, out: &mut Box<Burst>) -> Tally {
    let Some(queue) = &mut half.queue else { return Tally::default() };
    let first = out.len();
    let mut link = half.link.and_then(|link| books.links.get_mut(usize::from(link)));
    let tally = match link.as_mut().and_then(|link| link.receive(out)) {
        Some(tally) => tally,
        None => {
            half.in_call = true;
            let tally = queue.rx_tallied(books.pool, out);
            half.in_call = false;
            if let Some(link) = link {
                link.ring_was_asked();
            }
            tally
        }
    };
    // What the burst holds counts, not what the queue says.
    let n = out.len().saturating_sub(first);
    if n > 0 {
        books.ledger.rx += n as u64;
        books.stats.received_burst(n);
        edge.stats.moved(n, tally.bytes);
    }
    tally
}

/// Does an output's VLAN operation on the packets of its pending burst from `first` on; those that it refuses are dropped.
#[inline(never)]
pub(crate) fn tag(edge: &TxEdge, pending: &mut Burst, first: usize, books: &mut Books) {
    rework(pending, first, &edge.stats, books, |packet, pool| frame::apply(edge.vlan, packet, pool));
}

/// Runs `operation` on the packets of `burst` from `first` on and drops those it refuses; the others keep their order.
#[inline(always)]
fn rework(
    burst: &mut Burst,
    first: usize,
    edge: &QueueStats,
    books: &mut Books,
    mut operation: impl FnMut(&mut PacketBuf, &mut PoolCache) -> Result<(), DropReason>,
) {
    let mut refused = 0u32;
    frame::fetch_headers(&burst[first..]);
    for (index, packet) in burst.iter_mut().enumerate().skip(first) {
        if let Err(reason) = operation(packet, books.pool) {
            refused |= 1 << index;
            books.count_drops(edge, reason, 1);
        }
    }
    if refused != 0 {
        free_marked(burst, refused, books.pool);
    }
}

#[cold]
fn free_marked(burst: &mut Burst, marked: u32, pool: &mut PoolCache) {
    let mut kept = Burst::new();
    for (index, packet) in burst.take_all().enumerate() {
        if marked >> index & 1 != 0 {
            pool.free(packet);
        } else {
            kept.push(packet).expect("no more packets are kept than there were");
        }
    }
    *burst = kept;
}

/// Queues one packet on an output, after the edge's VLAN operation.
#[inline(always)]
pub(crate) fn push(edge: &TxEdge, half: &mut TxHalf, mut packet: PacketBuf, books: &mut Books) {
    if let Err(reason) = frame::apply(edge.vlan, &mut packet, books.pool) {
        books.drop_packet(packet, &edge.stats, reason);
        return;
    }
    if let Err(packet) = half.pending.push(packet) {
        push_to_full(edge, half, packet, books);
    }
}

#[cold]
fn push_to_full(edge: &TxEdge, half: &mut TxHalf, packet: PacketBuf, books: &mut Books) {
    flush(edge, half, books);
    if let Err(packet) = half.pending.push(packet) {
        let (WhenFull::Drop(reason) | WhenFull::Wait { then: reason, .. }) = edge.full;
        books.drop_packet(packet, &edge.stats, reason);
    }
}

/// Sends what is pending on an output. What its queue refuses is dropped, or waits, as the edge says.
#[inline(always)]
pub(crate) fn flush(edge: &TxEdge, half: &mut TxHalf, books: &mut Books) {
    flush_all_of(None, edge, half, books);
}

/// As [`flush`], when `known` says what all that is pending is: then it need not be looked at again (8 instructions a packet).
#[inline(always)]
pub(crate) fn flush_all_of(known: Option<&Tally>, edge: &TxEdge, half: &mut TxHalf, books: &mut Books) {
    // Most turns of most components have nothing to send: no call for that.
    if !half.pending.is_empty() {
        flush_some(known, edge, half, books);
    }
}

#[inline(never)]
fn flush_some(known: Option<&Tally>, edge: &TxEdge, half: &mut TxHalf, books: &mut Books) {
    half.in_call = true;
    let offered = offer(known, edge, half, books);
    half.in_call = false;
    if half.pending.is_empty() || offered == Offered::Paused {
        half.since = None;
    } else {
        refused(edge, half, books);
    }
}

/// What came of offering the pending burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offered {
    /// The queue took what it could.
    Once,
    /// The queue took everything so far; there is work left for the next turn.
    Paused,
}

/// Offers the pending burst to the queue, after the checksum and segmentation work that the queue can't leave to others.
#[inline(always)]
fn offer(known: Option<&Tally>, edge: &TxEdge, half: &mut TxHalf, books: &mut Books) -> Offered {
    let Some(queue) = &mut half.queue else { return Offered::Once };
    let tally = known.map_or_else(|| Tally::of(&half.pending), |known| *known);
    debug_assert_eq!(tally, Tally::of(&half.pending), "it speaks of what is pending");
    if let Some(link) = half.link.and_then(|link| books.links.get_mut(usize::from(link))) {
        let n = half.pending.len();
        if link.hand_over(&mut half.pending, tally, queue.as_mut(), books.pool) {
            books.ledger.tx += n as u64;
            edge.stats.moved(n, tally.bytes);
            return Offered::Once;
        }
    }
    if tally.has_offload {
        return offload::offer(edge, half, books);
    }
    send(queue.as_mut(), &mut half.pending, &tally, edge, books);
    Offered::Once
}

/// Sends from the front of `burst`, of which `tally` is true, and books what left it; returns how many.
#[inline(always)]
pub(crate) fn send(
    queue: &mut dyn TxQueue,
    burst: &mut Burst,
    tally: &Tally,
    edge: &TxEdge,
    books: &mut Books,
) -> usize {
    let n = burst.len();
    queue.tx_tallied(books.pool, burst, tally);
    let left = burst.len();
    let left_bytes = if left == 0 { 0 } else { burst.bytes() };
    let sent = n.saturating_sub(left);
    books.ledger.tx += sent as u64;
    edge.stats.moved(sent, tally.bytes.saturating_sub(left_bytes));
    sent
}

/// The queue left some of the burst.
#[inline(never)]
fn refused(edge: &TxEdge, half: &mut TxHalf, books: &mut Books) {
    let reason = match edge.full {
        _ if half.queue.is_none() => DropReason::ComponentGone,
        WhenFull::Drop(reason) => reason,
        WhenFull::Wait { limit_ticks, then } => {
            // The age of the burst as a whole: progress within it does not extend the wait.
            let since = *half.since.get_or_insert(books.now);
            if books.now.saturating_sub(since) <= limit_ticks {
                return;
            }
            then
        }
    };
    drop_pending(&edge.stats, half, books, reason);
}

fn drop_pending(edge: &QueueStats, half: &mut TxHalf, books: &mut Books, reason: DropReason) {
    let n = half.pending.free_all(books.pool);
    half.since = None;
    books.count_drops(edge, reason, n);
}

/// Offers the pending burst of an output that goes away a last time and drops the rest.
pub(crate) fn close(edge: &TxEdge, half: &mut TxHalf, books: &mut Books) {
    if half.pending.is_empty() {
        return;
    }
    offer(None, edge, half, books);
    if !half.pending.is_empty() {
        drop_pending(&edge.stats, half, books, DropReason::ComponentGone);
    }
}
