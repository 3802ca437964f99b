//! merge: many inputs to one output, round robin.
//!
//! Small bursts of several inputs fill one output burst, so that a NIC's doorbell is rung once for them.
//! While the output is full no open input is polled; closed ones are emptied all the same. The input that could
//! not be served is the first one next time, so a slow output starves nobody.

use spp_drivers::Burst;
use spp_drivers::dma::Tally;

use crate::edge::{Books, RxHalf, Slots, TxHalf, flush, flush_all_of, receive, refuse, tag};
use crate::plan::{RxEdge, TxEdge, VlanOp};

/// One turn: each input once.
pub(crate) fn turn(rx: &[RxEdge], tx: &TxEdge, slots: &mut Slots, books: &mut Books) {
    let Slots { rx: inputs, tx: outputs, hand } = slots;
    serve(rx, tx, inputs, &mut outputs[usize::from(tx.slot.0)], hand, books, |_, _, _, _| true);
}

/// A turn in which `sort` sees what each input gave: the burst, and where in it the input's packets start. It tells whether it has
/// left them as they were.
#[inline(always)]
pub(crate) fn serve(
    rx: &[RxEdge],
    tx: &TxEdge,
    inputs: &mut [RxHalf],
    output: &mut TxHalf,
    hand: &mut Box<Burst>,
    books: &mut Books,
    mut sort: impl FnMut(&RxEdge, &mut Burst, usize, &mut Books) -> bool,
) {
    flush(tx, output, books);
    let start = if usize::from(output.cursor) < rx.len() { usize::from(output.cursor) } else { 0 };
    let mut unserved = None;
    // What all that is pending is, as long as that is known.
    let (mut sum, mut is_known) = (Tally::default(), output.pending.is_empty());
    let mut next = start;
    for _ in rx {
        let index = next;
        next = if index + 1 < rx.len() { index + 1 } else { 0 };
        let edge = &rx[index];
        let input = &mut inputs[usize::from(edge.slot.0)];
        if edge.closed {
            refuse(edge, input, books, hand);
            continue;
        }
        if output.pending.room() == 0 {
            flush_all_of(is_known.then_some(&sum), tx, output, books);
            (sum, is_known) = (Tally::default(), output.pending.is_empty());
        }
        if output.queue.is_none() || output.since.is_some() || output.pending.room() == 0 {
            unserved = unserved.or(Some(index));
            continue;
        }
        let first = output.pending.len();
        let tally = receive(edge, input, books, &mut output.pending);
        if output.pending.len() == first {
            continue;
        }
        let as_it_was = sort(edge, &mut output.pending, first, books) && tx.vlan == VlanOp::None;
        if tx.vlan != VlanOp::None {
            tag(tx, &mut output.pending, first, books);
        }
        match tally {
            // Chains may be shorter now.
            Some(tally) if as_it_was && tally.extra == 0 => sum.add(&tally),
            _ => is_known = false,
        }
    }
    if output.since.is_none() {
        flush_all_of(is_known.then_some(&sum), tx, output, books);
    }
    output.cursor = unserved.unwrap_or(start + 1) as u16;
}
