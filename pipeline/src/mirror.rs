//! mirror: every packet of its input to two outputs, the original and a copy.
//!
//! The copy is a second, counted handle of the same buffer ([`PacketBuf::share`](spp_drivers::dma::PacketBuf::share)):
//! not a byte is copied here, and later only for an output that writes to the frame while the other still
//! has it. The original waits for a full output as in a forwarder, and the input is not polled meanwhile; the copy
//! never waits: what its output does not take at once is dropped there, so nobody who watches can
//! slow down or lose what is watched.

use crate::edge::{Books, Slots, flush, push, receive, refuse, tag};
use crate::plan::{RxEdge, TxEdge, VlanOp};

/// One turn. Several inputs are there while taps change.
pub(crate) fn turn(rx: &[RxEdge], tx: &[TxEdge; 2], slots: &mut Slots, books: &mut Books) {
    let [original, copy] = tx;
    let halves = slots.tx.get_disjoint_mut([usize::from(original.slot.0), usize::from(copy.slot.0)]);
    let Ok([output, copies]) = halves else { return };
    flush(copy, copies, books);
    flush(original, output, books);
    for edge in rx {
        let input = &mut slots.rx[usize::from(edge.slot.0)];
        if edge.closed {
            refuse(edge, input, books, &mut slots.hand);
            continue;
        }
        if output.queue.is_none() || !output.pending.is_empty() {
            continue;
        }
        receive(edge, input, books, &mut output.pending);
        for packet in output.pending.iter_mut() {
            books.ledger.copies += 1;
            push(copy, copies, packet.share(), books);
        }
        flush(copy, copies, books);
        if original.vlan != VlanOp::None {
            tag(original, &mut output.pending, 0, books);
        }
        flush(original, output, books);
    }
}
