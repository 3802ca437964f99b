//! How a change travels: a parcel that is packed by the control thread, emptied and refilled by the worker, and
//! unpacked by the control thread again.
//!
//! Everything the worker could need memory for is in the parcel already, and everything it no longer needs
//! goes back in it, so a worker neither allocates nor frees. The same box makes both ways.

use crate::edge::{RxHalf, Slots, TxHalf};
use crate::link::Link;
use crate::plan::{Change, Done};

/// One change on its way.
pub(crate) struct Parcel {
    pub change: Change,
    /// The worker ends after this one.
    pub last: bool,
    /// More slots, when the worker has too few; its old ones come back.
    pub slots: Option<Slots>,
    /// The plan's fused rings; the old plan's come back, empty.
    pub links: Vec<Link>,
    /// Filled by the worker. Its lists have room for all that can leave.
    pub done: Done,
}

/// The control thread's knowledge of a worker's slots.
#[derive(Default)]
pub(crate) struct SlotBook {
    rx: Vec<bool>,
    tx: Vec<bool>,
}

impl SlotBook {
    /// Packs a change. Panics when it would put a half on top of another: the node's bug.
    pub(crate) fn pack(&mut self, change: Change, last: bool) -> Box<Parcel> {
        change.assert_sound();
        let needed = change.slots_needed();
        let slots = (needed.rx > self.rx.len() || needed.tx > self.tx.len()).then(|| {
            self.rx.resize(self.rx.len().max(needed.rx.next_power_of_two()), false);
            self.tx.resize(self.tx.len().max(needed.tx.next_power_of_two()), false);
            Slots {
                rx: self.rx.iter().map(|_| RxHalf::default()).collect(),
                tx: self.tx.iter().map(|_| TxHalf::default()).collect(),
                hand: Box::default(),
            }
        });
        vacate(&mut self.rx, change.rx_out.iter().map(|slot| slot.0));
        vacate(&mut self.tx, change.tx_out.iter().map(|slot| slot.0));
        occupy(&mut self.rx, change.rx_in.iter().map(|half| half.0.0));
        occupy(&mut self.tx, change.tx_in.iter().map(|half| half.0.0));
        let done = Done {
            generation: change.plan.generation,
            rx_out: Vec::with_capacity(change.rx_out.len()),
            tx_out: Vec::with_capacity(change.tx_out.len()),
            ..Done::default()
        };
        let links = change.plan.fused.iter().copied().map(Link::new).collect();
        Box::new(Parcel { change, last, slots, links, done })
    }

    /// Packs the change that takes every half out and ends the worker.
    pub(crate) fn pack_end(&mut self) -> Box<Parcel> {
        use crate::plan::{RxSlot, TxSlot};
        let rx_out = (0..self.rx.len()).map(|slot| RxSlot(slot as u16)).collect();
        let tx_out = (0..self.tx.len()).map(|slot| TxSlot(slot as u16)).collect();
        self.pack(Change { rx_out, tx_out, ..Change::default() }, true)
    }
}

fn vacate(occupied: &mut [bool], slots: impl Iterator<Item = u16>) {
    for slot in slots {
        if let Some(occupied) = occupied.get_mut(usize::from(slot)) {
            *occupied = false;
        }
    }
}

fn occupy(occupied: &mut [bool], slots: impl Iterator<Item = u16>) {
    for slot in slots {
        let was = std::mem::replace(&mut occupied[usize::from(slot)], true);
        assert!(!was, "slot {slot} already holds a queue half");
    }
}

impl Slots {
    /// Moves every half over to `roomier` and leaves the old, empty slots there.
    pub(crate) fn move_to(&mut self, roomier: &mut Slots) {
        debug_assert!(roomier.rx.len() >= self.rx.len() && roomier.tx.len() >= self.tx.len());
        for (new, old) in roomier.rx.iter_mut().zip(&mut self.rx) {
            std::mem::swap(new, old);
        }
        for (new, old) in roomier.tx.iter_mut().zip(&mut self.tx) {
            std::mem::swap(new, old);
        }
        std::mem::swap(self, roomier);
    }
}
