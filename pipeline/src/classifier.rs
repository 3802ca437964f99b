//! classifier: what the wire brings, and what guests send to each other, to the outputs that the table chooses.
//!
//! Two passes over a burst: first all headers and look-ups, which do not depend on each other and so
//! overlap their cache misses; then the packets move, runs of one output together, to the pending bursts of their
//! outputs, which are sent at the end of the turn. Nothing waits for more packets to come: a burst out is what one
//! burst in gave. A full output drops at once, for it must not stop the others.

use spp_drivers::burst::Runs;
use spp_drivers::dma::{PacketBuf, PoolCache};
use spp_drivers::stats::DropReason;
use spp_drivers::{BURST, Burst};

use crate::edge::{Books, Slots, TxHalf, flush, push, receive, refuse};
use crate::frame::{self, Header};
use crate::plan::{Origin, RxEdge, TxEdge, VlanOp};
use crate::table::{Place, Route, Table};

/// Not one output: several, or none. Outputs are fewer.
const ELSEWHERE: u16 = u16::MAX;

/// One turn.
pub(crate) fn turn(rx: &[RxEdge], tx: &[TxEdge], table: &Table, slots: &mut Slots, books: &mut Books) {
    for edge in rx {
        let input = &mut slots.rx[usize::from(edge.slot.0)];
        if edge.closed {
            refuse(edge, input, books);
        } else if !tx.is_empty() && !table.is_empty() {
            let mut burst = Burst::new();
            receive(edge, input, books, &mut burst);
            if !burst.is_empty() {
                classify(edge, tx, table, &mut burst, &mut slots.tx, books);
            }
        }
    }
    for edge in tx {
        flush(edge, &mut slots.tx[usize::from(edge.slot.0)], books);
    }
}

fn classify(
    rx: &RxEdge,
    tx: &[TxEdge],
    table: &Table,
    burst: &mut Burst,
    halves: &mut [TxHalf],
    books: &mut Books,
) {
    let n = burst.len();
    let outputs = if table.is_far() {
        look_up_far(table, burst, books.pool)
    } else {
        look_up(table, burst, books.pool)
    };
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

/// How many of the first outputs are the same: frames come in flows, and a burst often goes to one guest.
#[inline(always)]
fn run_length(outputs: &[u16]) -> usize {
    let differs = outputs.iter().position(|output| *output != outputs[0]);
    differs.unwrap_or(outputs.len())
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

/// The one output of each frame, or [`ELSEWHERE`].
#[inline(always)]
fn look_up(table: &Table, burst: &mut Burst, pool: &mut PoolCache) -> [u16; BURST] {
    let mut outputs = [ELSEWHERE; BURST];
    frame::fetch_headers(burst);
    for (output, packet) in outputs.iter_mut().zip(burst.iter_mut()) {
        frame::gather_header(packet, pool);
        if let Ok(header) = frame::parse(packet.data())
            && let Route::One(one) = table.route(header.vid, header.dst)
        {
            *output = one;
        }
    }
    outputs
}

/// The same with a table that is far from the core: what all frames need of it is on its way before the first look-up.
#[inline(never)]
fn look_up_far(table: &Table, burst: &mut Burst, pool: &mut PoolCache) -> [u16; BURST] {
    let (mut outputs, mut places) = ([ELSEWHERE; BURST], [Place::default(); BURST]);
    frame::fetch_headers(burst);
    for (place, packet) in places.iter_mut().zip(burst.iter_mut()) {
        frame::gather_header(packet, pool);
        let header = frame::parse(packet.data()).unwrap_or(NOBODYS);
        *place = table.fetch(header.vid, header.dst);
    }
    for ((output, place), packet) in outputs.iter_mut().zip(places).zip(burst.iter()) {
        *output = table.route_fetched(place).unwrap_or_else(|| look_up_again(table, packet));
    }
    outputs
}

/// Stands for a header that cannot be: it has no entry in any table.
const NOBODYS: Header = Header { dst: 0, vid: frame::VID_RESERVED };

/// One frame that has no entry of its own, most likely.
#[inline(never)]
fn look_up_again(table: &Table, packet: &PacketBuf) -> u16 {
    match frame::parse(packet.data()).map(|header| table.route(header.vid, header.dst)) {
        Ok(Route::One(output)) => output,
        _ => ELSEWHERE,
    }
}

/// Frames in a row for one output that takes them as they are. False when there is one only, when it doesn't, or when it
/// has no room for all: they stay.
#[inline(always)]
fn send_run(tx: &[TxEdge], output: u16, n: usize, packets: &mut Runs, halves: &mut [TxHalf]) -> bool {
    let edge = &tx[usize::from(output)];
    let as_they_are = edge.sharing.is_none() && edge.vlan == VlanOp::None;
    n > 1 && as_they_are && packets.move_to(n, &mut halves[usize::from(edge.slot.0)].pending)
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
