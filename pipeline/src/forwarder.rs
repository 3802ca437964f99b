//! forward: one input to one output, in bursts of 32.
//!
//! Packets go straight from the input's queue into the output's pending burst; without VLAN
//! operations no header is read. While the output is full the input is not polled, so its ring, or
//! the guest's, is the buffer.

use crate::edge::{Books, Slots, flush, receive, refuse, rework};
use crate::frame;
use crate::plan::{RxEdge, TxEdge, VlanOp};

/// One turn.
pub(crate) fn turn(rx: &RxEdge, tx: &TxEdge, slots: &mut Slots, books: &mut Books) {
    let input = &mut slots.rx[usize::from(rx.slot.0)];
    let output = &mut slots.tx[usize::from(tx.slot.0)];
    flush(tx, output, books);
    if rx.closed {
        return refuse(rx, input, books);
    }
    if output.queue.is_none() || !output.pending.is_empty() {
        return;
    }
    receive(rx, input, books, &mut output.pending);
    if tx.vlan != VlanOp::None {
        rework(&mut output.pending, 0, &tx.stats, books, |packet, pool| frame::apply(tx.vlan, packet, pool));
    }
    flush(tx, output, books);
}
