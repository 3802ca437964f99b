//! merge with a way inside: a NIC's guests reach each other without the wire.
//!
//! Each frame of a plugged guest is looked up among the guests of its own VLAN, as the plugs have them; nothing is
//! learned from packets. A frame to another one of them goes into the local ring in place of the wire, a group
//! frame, if there are others, goes both ways with a note of who sent it, everything else to the wire as ever. The
//! classifier takes the local ring like the wire's frames: tagged as they would be there. The sender's
//! VLAN counts, not what it wrote into the frame: a flat guest's tagged frame is nobody's here.
//!
//! A full local ring drops at once, so that a guest that takes nothing never holds up the wire.

use spp_drivers::Burst;
use spp_drivers::dma::PacketBuf;
use spp_drivers::stats::DropReason;

use crate::edge::{Books, Slots, TxHalf, flush, push};
use crate::frame;
use crate::merger;
use crate::plan::{Origin, RxEdge, TxEdge};
use crate::table::{Route, Table};

/// One turn: as [`merger::turn`], with `tx` the wire and the local ring.
pub(crate) fn turn(rx: &[RxEdge], tx: &[TxEdge; 2], guests: &Table, slots: &mut Slots, books: &mut Books) {
    let [wire, local] = tx;
    let halves = slots.tx.get_disjoint_mut([usize::from(wire.slot.0), usize::from(local.slot.0)]);
    let Ok([output, inward]) = halves else { return };
    let mut inside = Inside { edge: local, half: inward, guests };
    merger::serve(rx, wire, &mut slots.rx, output, &mut slots.hand, books, |edge, pending, first, books| {
        match edge.from {
            Origin::Guest { id, vid } => inside.sort_out(id, vid, pending, first, books),
            _ => true,
        }
    });
    flush(local, inside.half, books);
}

struct Inside<'a> {
    edge: &'a TxEdge,
    half: &'a mut TxHalf,
    guests: &'a Table,
}

impl Inside<'_> {
    /// Moves and copies what is for other guests from `pending`, where a guest's frames start at `first`.
    /// True when there was nothing to do.
    fn sort_out(&mut self, id: u16, vid: u16, pending: &mut Burst, first: usize, books: &mut Books) -> bool {
        let (mut moved, mut copied) = (0u32, 0u32);
        frame::fetch_headers(&pending[first..]);
        for (index, packet) in pending.iter_mut().enumerate().skip(first) {
            frame::gather_header(packet, books.pool);
            let Ok(header) = frame::parse(packet.data()) else { continue };
            if header.vid != vid {
                continue;
            }
            let is_group = header.dst & 1 != 0;
            match self.guests.route(vid, header.dst) {
                Route::One(guest) if guest == id => {}
                Route::One(_) if !is_group => moved |= 1 << index,
                Route::One(_) | Route::Each(_) => copied |= 1 << index,
                Route::Drop(_) => {}
            }
        }
        if moved | copied != 0 {
            self.divert(id, pending, moved, copied, books);
        }
        moved | copied == 0
    }

    /// Sends the marked packets inside, in their order; those that are not moved stay in `pending`, in theirs.
    #[inline(never)]
    fn divert(&mut self, id: u16, pending: &mut Burst, moved: u32, copied: u32, books: &mut Books) {
        let mut all = std::mem::take(pending);
        for (index, mut packet) in all.take_all().enumerate() {
            if moved >> index & 1 != 0 {
                push(self.edge, self.half, packet, books);
                continue;
            }
            if copied >> index & 1 != 0 {
                self.copy(id, &mut packet, books);
            }
            pending.push(packet).expect("no more packets are kept than there were");
        }
    }

    /// A group frame goes inside too; the classifier leaves out who sent it.
    fn copy(&mut self, id: u16, packet: &mut PacketBuf, books: &mut Books) {
        books.ledger.copies += 1;
        if packet.make_own(books.pool).is_err() {
            books.count_drops(&self.edge.stats, DropReason::NoBuffer, 1);
            return;
        }
        packet.set_origin(id);
        let copy = packet.share();
        push(self.edge, self.half, copy, books);
    }
}
