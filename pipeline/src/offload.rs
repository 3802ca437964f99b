//! Checksums and segments in software, just before a frame goes to a queue whose receiver can't do them.
//!
//! The cold side of [`edge::flush`](crate::edge::flush), on the worker's thread: only bursts that hold a frame with
//! work come here. Frames stay in the output's pending burst, in order, until they are gone; a long frame
//! of which some segments were sent is a shorter long frame, so nothing is kept beside it.

use spp_drivers::dma::{PacketBuf, Tally};
use spp_drivers::offload::segment::Tso;
use spp_drivers::offload::{Offloads, checksum};
use spp_drivers::port::TxQueue;
use spp_drivers::stats::DropReason;
use spp_drivers::{BURST, Burst};

use crate::edge::{Books, Offered, TxHalf, send};
use crate::plan::TxEdge;

/// Segments made for one output in one turn: a frame of 64 KiB and a bit. Other components share the core.
const SEGMENTS_A_TURN: usize = 2 * BURST;

/// Offers the pending burst to its queue, frame by frame in the shape the queue takes.
#[inline(never)]
pub(crate) fn offer(edge: &TxEdge, half: &mut TxHalf, books: &mut Books) -> Offered {
    let TxHalf { queue: Some(queue), pending, since, step, .. } = half else { return Offered::Once };
    let takes = queue.offloads();
    let mut budget = SEGMENTS_A_TURN;
    // Each round sends a frame, drops one, or makes a segment, or is the last.
    while !pending.is_empty() {
        let n_ready = ready(pending, takes, books);
        if n_ready > 0 {
            if send_front(queue.as_mut(), pending, n_ready, edge, books) < n_ready {
                return Offered::Once;
            }
            continue;
        }
        if budget == 0 {
            return Offered::Paused;
        }
        match cut(queue.as_mut(), pending, step, &mut budget, edge, books) {
            Ok(Cut::Partly) => {}
            // The wait for a full queue is counted anew for each long frame.
            Ok(Cut::Whole) => *since = None,
            Ok(Cut::Refused) => return Offered::Once,
            Err(reason) => {
                pending.take_front(1).for_each(|packet| books.drop_packet(packet, &edge.stats, reason));
            }
        }
    }
    Offered::Once
}

/// Frames at the front that can go now, their checksums completed where the queue's receiver doesn't.
fn ready(pending: &mut Burst, takes: Offloads, books: &mut Books) -> usize {
    let is_ready = |packet: &mut PacketBuf| {
        let Some(work) = packet.offload() else { return true };
        if takes.contains(work.needs()) {
            return true;
        }
        let own = !work.is_long() && packet.own_chain(books.pool).is_ok();
        let done = own && checksum::complete(packet, &work).is_ok();
        books.stats.checksummed.add(u64::from(done));
        done
    };
    let n_pending = pending.len();
    pending.iter_mut().map(is_ready).position(|ready| !ready).unwrap_or(n_pending)
}

/// Sends the first `n` frames; those that are refused stay where they were. Returns how many left.
fn send_front(
    queue: &mut dyn TxQueue,
    pending: &mut Burst,
    n: usize,
    edge: &TxEdge,
    books: &mut Books,
) -> usize {
    if n == pending.len() {
        let tally = Tally::of(pending);
        return send(queue, pending, &tally, edge, books);
    }
    let mut front = Burst::new();
    move_all(pending.take_front(n), &mut front);
    let tally = Tally::of(&front);
    let sent = send(queue, &mut front, &tally, edge, books);
    move_all(pending.take_all(), &mut front);
    *pending = front;
    sent
}

fn move_all(packets: impl Iterator<Item = PacketBuf>, to: &mut Burst) {
    packets.for_each(|packet| to.push(packet).expect("they were in one burst before"));
}

/// What became of a long frame.
enum Cut {
    /// It is shorter.
    Partly,
    /// It is one segment now, and has no work left.
    Whole,
    /// The queue is full.
    Refused,
}

/// Makes segments of the first frame and sends them.
fn cut(
    queue: &mut dyn TxQueue,
    pending: &mut Burst,
    step: &mut u8,
    budget: &mut usize,
    edge: &TxEdge,
    books: &mut Books,
) -> Result<Cut, DropReason> {
    let Some(packet) = pending.first_mut() else { return Ok(Cut::Whole) };
    packet.own_chain(books.pool).map_err(|_| DropReason::NoBuffer)?;
    let Some(work) = packet.offload().filter(|work| work.is_long()) else {
        return Err(DropReason::BadOffload); // a checksum that can't be completed
    };
    let tso = Tso::of(packet, &work)?;
    let limit = if *step == 0 { BURST } else { usize::from(*step) };
    let mut segments = Burst::new();
    let n = tso.copy(packet, books.pool, limit.min(*budget), &mut segments);
    if n == 0 && tso.n_copies() > 0 {
        return Err(DropReason::NoBuffer);
    }
    // Before they are sent: a panic in the queue must not leave them uncounted.
    books.ledger.copies += n as u64;
    let tally = Tally::of(&segments);
    let sent = if n == 0 { 0 } else { send(queue, &mut segments, &tally, edge, books) };
    books.ledger.copies -= segments.free_all(books.pool) as u64;
    *budget -= n;
    // A queue that takes little is not made to refuse a whole burst of copies on each turn.
    *step = if sent < n { sent.max(1) as u8 } else { (2 * limit).min(BURST) as u8 };
    if tso.advance(packet, books.pool, sent) {
        books.stats.segmented.add(1);
        return Ok(Cut::Whole);
    }
    Ok(if sent < n { Cut::Refused } else { Cut::Partly })
}
