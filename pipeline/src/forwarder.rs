//! forward: one input to one output, in bursts of 32.
//!
//! Packets go straight from the input's queue into the output's pending burst; without VLAN
//! operations no header is read. While the output is full the input is not polled, so its ring, or
//! the guest's, is the buffer.
//!
//! Between two guests frames go past the buffers where the queues know how: see [`RxQueue::rx_into`](spp_drivers::port::RxQueue::rx_into).
//! What can't go that way, because of what it is or because the output is full, goes through the pending burst as ever.

use crate::edge::{Books, Slots, flush, flush_all_of, pass, receive, refuse, tag};
use crate::plan::{RxEdge, TxEdge, VlanOp};

/// How frames get from input to output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through packet buffers.
    Buffers,
    /// Past them, where that can be.
    Direct,
}

/// One turn.
#[inline(always)]
pub(crate) fn turn(rx: &RxEdge, tx: &TxEdge, way: Way, slots: &mut Slots, books: &mut Books) {
    let input = &mut slots.rx[usize::from(rx.slot.0)];
    let output = &mut slots.tx[usize::from(tx.slot.0)];
    flush(tx, output, books);
    if rx.closed {
        return refuse(rx, input, books, &mut slots.hand);
    }
    if output.queue.is_none() || !output.pending.is_empty() {
        return;
    }
    if way == Way::Direct && pass(rx, input, tx, output, books) {
        return;
    }
    let mut known = receive(rx, input, books, &mut output.pending);
    if tx.vlan != VlanOp::None {
        tag(tx, &mut output.pending, 0, books);
        known = None;
    }
    flush_all_of(known.as_ref(), tx, output, books);
}
