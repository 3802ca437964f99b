//! classifier: what the wire brings, and what guests send to each other, to the outputs that the table chooses.
//!
//! Two passes over a burst: first all headers and look-ups, which do not depend on each other and so
//! overlap their cache misses; then the packets move, runs of one output together, to the pending bursts of their
//! outputs, or the whole burst becomes its one output's. Those are sent at the end of the turn. Nothing waits for more packets
//! to come: a burst out is what one burst in gave. A full output drops at once, for it must not stop the others.

use spp_drivers::burst::Runs;
use spp_drivers::dma::{PacketBuf, PoolCache};
use spp_drivers::prefetch;
use spp_drivers::stats::DropReason;
use spp_drivers::{BURST, Burst};

use crate::edge::{Books, Slots, TxHalf, flush_all_of, push, receive, refuse};
use crate::frame::{self, Header, TAGGED_BYTES};
use crate::plan::{Origin, RxEdge, TxEdge};
use crate::table::{ELSEWHERE, Place, Route, Table};

/// One turn.
pub(crate) fn turn(rx: &[RxEdge], tx: &[TxEdge], table: &Table, slots: &mut Slots, books: &mut Books) {
    let Slots { rx: inputs, tx: halves, hand: burst } = slots;
    let (mut whole, mut known, mut n_bursts) = (None, None, 0);
    for edge in rx {
        let input = &mut inputs[usize::from(edge.slot.0)];
        if edge.closed {
            refuse(edge, input, books, burst);
        } else if !tx.is_empty() && !table.is_empty() {
            let tally = receive(edge, input, books, burst);
            if !burst.is_empty() {
                // The look-up may shorten chains.
                known = tally.filter(|tally| tally.extra == 0);
                whole = classify(edge, tx, table, burst, halves, books);
                n_bursts += 1;
            }
        }
    }
    // The output whose pending burst is the only one that came, and that has been looked at.
    let known_at = whole.filter(|_| n_bursts == 1);
    for (n, edge) in (0..).zip(tx) {
        let known = if known_at == Some(n) { known.as_ref() } else { None };
        flush_all_of(known, edge, &mut halves[usize::from(edge.slot.0)], books);
    }
}

/// Sorts a burst. Tells the output to which all of it went as it is, and where nothing was.
#[inline(always)]
fn classify(
    rx: &RxEdge,
    tx: &[TxEdge],
    table: &Table,
    burst: &mut Box<Burst>,
    halves: &mut [TxHalf],
    books: &mut Books,
) -> Option<u16> {
    let mut outputs = [ELSEWHERE; BURST];
    let only = look_up(table, burst, books.pool, &mut outputs);
    let whole = only.filter(|&only| rx.from != Origin::Local && send_whole(tx, only, burst, halves));
    if whole.is_none() {
        deal(rx, tx, table, &outputs, burst, halves, books);
    }
    whole
}

/// A burst for one output that takes it as it is, and has nothing yet: the one becomes the other. False when it is not so.
#[inline(always)]
fn send_whole(tx: &[TxEdge], output: u16, burst: &mut Box<Burst>, halves: &mut [TxHalf]) -> bool {
    let edge = &tx[usize::from(output)];
    let pending = &mut halves[usize::from(edge.slot.0)].pending;
    let goes = edge.takes_as_they_are() && pending.is_empty();
    if goes {
        std::mem::swap(burst, pending);
    }
    goes
}

/// Moves each packet of a burst to its output.
#[inline(never)]
fn deal(
    rx: &RxEdge,
    tx: &[TxEdge],
    table: &Table,
    outputs: &Outputs,
    burst: &mut Burst,
    halves: &mut [TxHalf],
    books: &mut Books,
) {
    let n = burst.len();
    let is_local = rx.from == Origin::Local;
    let (mut packets, mut at) = (burst.take_runs(), 0);
    while at < n {
        let output = outputs[at];
        let n_same = run_length(&outputs[at..n]);
        at += n_same;
        if output != ELSEWHERE && !is_local && send_run(tx, output, n_same, &mut packets, halves) {
            continue;
        }
        let run = packets.by_ref().take(n_same);
        if output == ELSEWHERE {
            run.for_each(|packet| route(rx, tx, table, packet, halves, books));
        } else if is_local {
            run.for_each(|packet| send_unless_own(rx, tx, output, packet, halves, books));
        } else {
            run.for_each(|packet| send(tx, output, packet, halves, books));
        }
    }
}

/// How many of the first outputs are the same: frames come in flows, and a burst often goes to one guest. Moved one by one,
/// packets take 177 and 221 instructions where they take 126 and 184 by the run (`spp-stages --count classifier`, "2 entries" and
/// "8 outputs"); where no two neighbours have one output, 235 and 251 ("1000 entries").
#[inline(always)]
fn run_length(outputs: &[u16]) -> usize {
    let Some((first, others)) = outputs.split_first() else { return 0 };
    // Most often it ends at once, or is long.
    if others.first() != Some(first) {
        return 1;
    }
    1 + others.iter().take_while(|output| *output == first).count()
}

/// One frame that does not go to one output: a group's, or nobody's. Looked up again rather than kept in mind, which would
/// cost all others something.
#[inline(never)]
fn route(
    rx: &RxEdge,
    tx: &[TxEdge],
    table: &Table,
    packet: PacketBuf,
    halves: &mut [TxHalf],
    books: &mut Books,
) {
    let route = match frame::parse(packet.data()) {
        Ok(header) => table.route(header.vid, header.dst),
        Err(reason) => Route::Drop(reason),
    };
    match route {
        Route::One(output) => send(tx, output, packet, halves, books),
        Route::Each(outputs) => {
            let sender = (rx.from == Origin::Local).then(|| packet.origin());
            spread(rx, tx, outputs, sender, packet, halves, books);
        }
        Route::Drop(reason) => books.drop_packet(packet, &rx.stats, reason),
    }
}

/// One frame of a guest's.
#[inline(always)]
fn send_unless_own(
    rx: &RxEdge,
    tx: &[TxEdge],
    output: u16,
    packet: PacketBuf,
    halves: &mut [TxHalf],
    books: &mut Books,
) {
    if is_own(&packet, &tx[usize::from(output)]) {
        books.drop_packet(packet, &rx.stats, DropReason::UnknownDestination);
    } else {
        send(tx, output, packet, halves, books);
    }
}

/// True for a group frame on its way back to who sent it.
#[inline(never)]
fn is_own(packet: &PacketBuf, output: &TxEdge) -> bool {
    let is_group = packet.data().first().is_some_and(|byte| byte & 1 != 0);
    is_group && output.guest == Some(packet.origin())
}

/// The one output of each frame of a burst, or [`ELSEWHERE`].
type Outputs = [u16; BURST];

/// First bytes of frames.
type Headers<'a> = [&'a [u8; TAGGED_BYTES]];

/// Fewer frames than this are looked up as they come: there is little to be fetched ahead, and a list of headers takes 50
/// instructions, however short.
const FEW: usize = 4;

/// Finds the outputs of a burst that is not empty, and the one that is all frames'.
#[inline(always)]
fn look_up(table: &Table, burst: &mut Burst, pool: &mut PoolCache, outputs: &mut Outputs) -> Option<u16> {
    let found = if burst.len() < FEW { None } else { look_up_together(table, burst, outputs) };
    found.unwrap_or_else(|| look_up_each(table, burst, pool, outputs)).only()
}

/// What all outputs have in common, and what any of them has.
#[derive(Clone, Copy)]
struct Bits {
    all: u16,
    any: u16,
}

impl Bits {
    const NONE: Bits = Bits { all: u16::MAX, any: 0 };

    #[inline(always)]
    fn and(self, output: u16) -> Bits {
        Bits { all: self.all & output, any: self.any | output }
    }

    /// The output, if they are all the same.
    #[inline(always)]
    fn only(self) -> Option<u16> {
        (self.all == self.any && self.any != ELSEWHERE).then_some(self.any)
    }
}

/// Frames one by one.
#[inline(always)]
fn look_up_each(table: &Table, burst: &mut Burst, pool: &mut PoolCache, outputs: &mut Outputs) -> Bits {
    let mut bits = Bits::NONE;
    for (output, packet) in outputs.iter_mut().zip(burst.iter_mut()) {
        *output = match packet.data().first_chunk() {
            Some(header) => output_of(table, frame::parse_whole(header)),
            None => output_of_short(table, packet, pool),
        };
        bits = bits.and(*output);
    }
    bits
}

/// A frame that is cut up, or hardly more than a header.
#[cold]
fn output_of_short(table: &Table, packet: &mut PacketBuf, pool: &mut PoolCache) -> u16 {
    frame::gather_header(packet, pool);
    frame::parse(packet.data()).map_or(ELSEWHERE, |header| output_of(table, header))
}

/// All headers are on their way before the first is read. Where they lie in the second-level cache, a packet
/// takes 140 ticks and not 150 (`spp-stages` "classifier, 1000 entries"), where they lie in the first, 82 and not 74
/// ("2 entries"): frames off a card come from further away than either. None when the first segment of a frame is too short
/// for a header with a tag.
#[inline(never)]
fn look_up_together(table: &Table, burst: &[PacketBuf], outputs: &mut Outputs) -> Option<Bits> {
    let mut headers = [&[0; TAGGED_BYTES]; BURST];
    for (header, packet) in headers.iter_mut().zip(burst) {
        *header = packet.data().first_chunk()?;
        prefetch(*header);
    }
    let headers = headers.get(..burst.len())?;
    Some(if table.is_far() {
        look_up_far(table, headers, outputs)
    } else {
        look_up_near(table, headers, outputs)
    })
}

#[inline(always)]
fn look_up_near(table: &Table, headers: &Headers, outputs: &mut Outputs) -> Bits {
    let mut bits = Bits::NONE;
    for (output, header) in outputs.iter_mut().zip(headers) {
        *output = output_of(table, frame::parse_whole(header));
        bits = bits.and(*output);
    }
    bits
}

/// The same with a table that is far from the core: what all frames need of it is on its way before the first look-up. Those
/// without an entry are left for later, so that nothing is guessed here.
#[inline(never)]
fn look_up_far(table: &Table, headers: &Headers, outputs: &mut Outputs) -> Bits {
    let (mut bits, mut places) = (Bits::NONE, [Place::default(); BURST]);
    for (place, header) in places.iter_mut().zip(headers) {
        let Header { vid, dst } = frame::parse_whole(header);
        *place = table.fetch(vid, dst);
    }
    for (output, place) in outputs.iter_mut().zip(&places[..headers.len()]) {
        *output = table.route_fetched(*place);
        bits = bits.and(*output);
    }
    // All bits are set: in one of them, most likely.
    if bits.any == ELSEWHERE { look_up_again(table, headers, outputs) } else { bits }
}

/// Those frames that have no entry of their own, most likely.
#[inline(never)]
fn look_up_again(table: &Table, headers: &Headers, outputs: &mut Outputs) -> Bits {
    let mut bits = Bits::NONE;
    for (output, header) in outputs.iter_mut().zip(headers) {
        if *output == ELSEWHERE {
            *output = output_of(table, frame::parse_whole(header));
        }
        bits = bits.and(*output);
    }
    bits
}

#[inline(always)]
fn output_of(table: &Table, header: Header) -> u16 {
    match table.route(header.vid, header.dst) {
        Route::One(output) => output,
        _ => ELSEWHERE,
    }
}

/// Frames in a row for one output that takes them as they are. False when there is one only, when it doesn't, or when it
/// has no room for all: they stay.
#[inline(always)]
fn send_run(tx: &[TxEdge], output: u16, n: usize, packets: &mut Runs, halves: &mut [TxHalf]) -> bool {
    let edge = &tx[usize::from(output)];
    n > 1 && edge.takes_as_they_are() && packets.move_to(n, &mut halves[usize::from(edge.slot.0)].pending)
}

#[inline(always)]
fn send(tx: &[TxEdge], output: u16, packet: PacketBuf, halves: &mut [TxHalf], books: &mut Books) {
    // The plan was checked to have every output the table names.
    let mut edge = &tx[usize::from(output)];
    if let Some(sharing) = &edge.sharing {
        edge = &tx[usize::from(sharing.pick(packet.data()))];
    }
    push(edge, &mut halves[usize::from(edge.slot.0)], packet, books);
}

/// One frame to several outputs but the sender's: each gets a handle of it. An output that changes the tag does so to bytes
/// of its own, so a tag put on for one is never seen on another.
#[inline(never)]
fn spread(
    rx: &RxEdge,
    tx: &[TxEdge],
    outputs: &[u16],
    sender: Option<u16>,
    mut packet: PacketBuf,
    halves: &mut [TxHalf],
    books: &mut Books,
) {
    let others = |output: &u16| sender.is_none() || tx[usize::from(*output)].guest != sender;
    let mut outputs = outputs.iter().copied().filter(others);
    let Some(mut last) = outputs.next() else {
        books.drop_packet(packet, &rx.stats, DropReason::UnknownDestination);
        return;
    };
    for next in outputs {
        books.ledger.copies += 1;
        send(tx, last, packet.share(), halves, books);
        last = next;
    }
    send(tx, last, packet, halves, books);
}
