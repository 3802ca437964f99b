//! One core's packet work without its thread: slots, plan, turns.
//!
//! The worker thread owns an [`Engine`] and calls [`Engine::turn`] for ever; tests and benches call it
//! themselves, step by step. It owns the core's queue halves, pending bursts and buffer cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_utils::CachePadded;
use spp_drivers::dma::{Pool, PoolCache};
use spp_drivers::stats::DropReason;
use spp_drivers::tsc;

use crate::edge::{self, Books, Ledger, Slots};
use crate::forwarder::Way;
use crate::handover::{Parcel, SlotBook};
use crate::link::Link;
use crate::plan::{Change, ComponentPlan, CorePlan, Done, RxSlot, TxSlot, Work};
use crate::stats::{ComponentStats, CycleCounters, Cycles};
use crate::{classifier, forwarder, local, merger, mirror, tags};

/// What a turn of all components, or of one, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Packets moved or were dropped.
    Useful,
    /// Nothing moved, and packets wait for a full output.
    Blocked,
    /// There was nothing to do.
    Idle,
}

pub(crate) const N_ACTIVITIES: usize = 3;

/// One core's work.
pub struct Engine {
    plan: CorePlan,
    slots: Slots,
    links: Vec<Link>,
    pool: PoolCache,
    cycles: Arc<CachePadded<CycleCounters>>,
    /// When the last turn ended.
    last_ticks: u64,
    /// For [`Engine::change`]; a worker's book is with the control thread.
    book: SlotBook,
}

impl Engine {
    /// An engine without halves or components, with a buffer cache of its own.
    pub fn new(pool: &Pool) -> Engine {
        Engine {
            plan: CorePlan::default(),
            slots: Slots::default(),
            links: Vec::new(),
            pool: pool.cache(),
            cycles: Arc::default(),
            last_ticks: tsc::now(),
            book: SlotBook::default(),
        }
    }

    /// Where the cycles went.
    pub fn cycles(&self) -> Cycles {
        self.cycles.get()
    }

    pub(crate) fn share_cycles(&self) -> Arc<CachePadded<CycleCounters>> {
        self.cycles.clone()
    }

    /// One turn of every component, in order.
    #[inline]
    pub fn turn(&mut self) -> Activity {
        let mut spent = [0; N_ACTIVITIES];
        let mut last = tsc::now();
        spent[Activity::Idle as usize] = last.saturating_sub(self.last_ticks);
        for component in &self.plan.components {
            if component.stats.failed() {
                continue;
            }
            let mut books = Books {
                pool: &mut self.pool,
                links: &mut self.links,
                ledger: Ledger::default(),
                stats: &component.stats,
                now: last,
            };
            let ran = catch_unwind(AssertUnwindSafe(|| run(&component.work, &mut self.slots, &mut books)));
            if ran.is_err() {
                fail(component, &mut self.slots, &mut books);
            }
            let activity = settle(&component.stats, &books.ledger);
            let now = tsc::now();
            // A turn took time, whatever the counter's grain.
            let ticks = now.saturating_sub(last).max(1);
            component.stats.cycles.add(activity, ticks);
            spent[activity as usize] += ticks;
            last = now;
        }
        self.last_ticks = last;
        self.cycles.add_all(spent);
        match spent {
            [(1..), ..] => Activity::Useful,
            [_, (1..), _] => Activity::Blocked,
            _ => Activity::Idle,
        }
    }

    /// Lets every half serve its control side, also those no component polls now.
    pub fn poll_control(&mut self) {
        for half in self.slots.rx.iter_mut().filter(|half| !half.faulty) {
            if let Some(queue) = &mut half.queue {
                half.faulty = catch_unwind(AssertUnwindSafe(|| queue.poll_control())).is_err();
                if half.faulty {
                    queue.stats().panics.add(1);
                }
            }
        }
        for half in self.slots.tx.iter_mut().filter(|half| !half.faulty) {
            if let Some(queue) = &mut half.queue {
                half.faulty = catch_unwind(AssertUnwindSafe(|| queue.poll_control())).is_err();
                if half.faulty {
                    queue.stats().panics.add(1);
                }
            }
        }
    }

    /// Puts a plan in force at once, for whoever runs the engine without a thread.
    pub fn change(&mut self, change: Change) -> Done {
        let mut parcel = self.book.pack(change, false);
        self.apply(&mut parcel);
        parcel.done
    }

    /// Puts the parcel's plan in force and packs what it replaces. Neither allocates nor frees.
    pub(crate) fn apply(&mut self, parcel: &mut Parcel) {
        self.unlink();
        if let Some(roomier) = &mut parcel.slots {
            self.slots.move_to(roomier);
        }
        let Parcel { change, done, links, .. } = parcel;
        for &slot in &change.tx_out {
            self.release_tx(slot, done);
        }
        for &slot in &change.rx_out {
            self.release_rx(slot, done);
        }
        for (slot, queue) in change.rx_in.drain(..) {
            let half = &mut self.slots.rx[usize::from(slot.0)];
            (half.queue, half.faulty) = (Some(queue), false);
        }
        for (slot, queue) in change.tx_in.drain(..) {
            let half = &mut self.slots.tx[usize::from(slot.0)];
            (half.queue, half.faulty) = (Some(queue), false);
        }
        tags::share_out(&mut change.plan, &mut self.slots, &mut self.pool);
        std::mem::swap(&mut self.links, links);
        self.link();
        std::mem::swap(&mut self.plan, &mut done.old);
        std::mem::swap(&mut self.plan, &mut change.plan);
        done.old.components.iter().for_each(|gone| gone.stats.set_held(0));
        for component in &self.plan.components {
            component.stats.set_failed(false);
            component.stats.set_held(held(&component.work, &self.slots));
        }
    }

    /// Puts the links of the plan between their halves.
    fn link(&mut self) {
        for (number, link) in (0u16..).zip(&mut self.links) {
            let Some(tx) = self.slots.tx.get_mut(usize::from(link.ends.tx.0)) else { continue };
            let Some(rx) = self.slots.rx.get_mut(usize::from(link.ends.rx.0)) else { continue };
            if let (Some(sender), Some(receiver)) = (&tx.queue, &rx.queue) {
                link.connect(sender.stats(), receiver.stats());
                (tx.link, rx.link) = (Some(number), Some(number));
            }
        }
    }

    /// Takes all links out; what they hold goes into their rings.
    fn unlink(&mut self) {
        for link in &mut self.links {
            if let Some(half) = self.slots.tx.get_mut(usize::from(link.ends.tx.0)) {
                half.link = None;
                half.queue.iter_mut().for_each(|queue| link.spill(queue.as_mut(), &mut self.pool));
            }
            if let Some(half) = self.slots.rx.get_mut(usize::from(link.ends.rx.0)) {
                half.link = None;
            }
        }
    }

    fn release_rx(&mut self, slot: RxSlot, done: &mut Done) {
        let half = self.slots.rx.get_mut(usize::from(slot.0));
        if let Some(queue) = half.and_then(tags::leave_rx) {
            done.rx_out.push((slot, queue));
        }
    }

    /// Frames pending on the output get a last try under the plan that is still in force.
    fn release_tx(&mut self, slot: TxSlot, done: &mut Done) {
        let Some(half) = self.slots.tx.get_mut(usize::from(slot.0)) else { return };
        let mut users = self.plan.components.iter().flat_map(|component| {
            component
                .work
                .tx_edges()
                .iter()
                .filter(|edge| edge.slot == slot)
                .map(move |edge| (component, edge))
        });
        if let Some((component, edge)) = users.next() {
            let mut books = Books {
                pool: &mut self.pool,
                links: &mut Vec::new(),
                ledger: Ledger::default(),
                stats: &component.stats,
                now: self.last_ticks,
            };
            let tried = catch_unwind(AssertUnwindSafe(|| edge::close(edge, half, &mut books)));
            if tried.is_err() {
                let n = half.pending.free_all(books.pool);
                component.stats.dropped(DropReason::ComponentGone, n as u64);
            }
            settle(&component.stats, &books.ledger);
        } else if let Some(queue) = &half.queue {
            let n = half.pending.free_all(&mut self.pool);
            queue.stats().dropped(DropReason::ComponentGone, n);
        }
        half.since = None;
        if let Some(queue) = tags::leave_tx(half, &mut self.pool) {
            done.tx_out.push((slot, queue));
        }
    }
}

#[inline(always)]
fn run(work: &Work, slots: &mut Slots, books: &mut Books) {
    match work {
        Work::Forward { rx, tx } => forwarder::turn(rx, tx, Way::Buffers, slots, books),
        Work::Direct { rx, tx } => forwarder::turn(rx, tx, Way::Direct, slots, books),
        Work::Merge { rx, tx } => merger::turn(rx, tx, slots, books),
        Work::Classify { rx, tx, table } => classifier::turn(rx, tx, table, slots, books),
        Work::MergeLocal { rx, tx, guests } => local::turn(rx, tx, guests, slots, books),
        Work::Mirror { rx, tx } => mirror::turn(rx, tx, slots, books),
    }
}

/// Packets that wait on the outputs of a component.
fn held(work: &Work, slots: &Slots) -> u64 {
    let waiting = |slot: TxSlot| slots.tx.get(usize::from(slot.0)).map_or(0, |half| half.pending.len());
    work.tx_edges().iter().map(|edge| waiting(edge.slot) as u64).sum()
}

/// Books a turn in the component's counters, and tells what it came to.
#[inline(always)]
fn settle(stats: &ComponentStats, ledger: &Ledger) -> Activity {
    let moved = ledger.rx | ledger.tx | ledger.dropped;
    if moved | ledger.copies != 0 {
        stats.rx_packets.add(ledger.rx);
        stats.tx_packets.add(ledger.tx);
        stats.copies.add(ledger.copies);
        stats.set_held(left_over(stats, ledger));
    }
    match moved {
        1.. => Activity::Useful,
        0 if stats.held() != 0 => Activity::Blocked,
        0 => Activity::Idle,
    }
}

/// Packets that came in, now or before, and neither left nor were dropped.
#[inline(always)]
fn left_over(stats: &ComponentStats, ledger: &Ledger) -> u64 {
    (stats.held() + ledger.rx + ledger.copies).saturating_sub(ledger.tx + ledger.dropped)
}

/// A component panicked: it is skipped until the next plan. Packets it had in hand went back to
/// the pool while its stack unwound or go back now, as do those pending; the ledger knows how many all were, and has them as
/// drops when this is over.
#[cold]
fn fail(component: &ComponentPlan, slots: &mut Slots, books: &mut Books) {
    slots.hand.free_all(books.pool);
    // The half whose code was running is where it happened: its port is reset by whoever sees the count.
    for edge in component.work.tx_edges() {
        if let Some(half) = slots.tx.get_mut(usize::from(edge.slot.0)) {
            half.pending.free_all(books.pool);
            half.since = None;
            if std::mem::take(&mut half.in_call) {
                half.queue.iter().for_each(|queue| queue.stats().panics.add(1));
            }
        }
    }
    for edge in component.work.rx_edges() {
        if let Some(half) = slots.rx.get_mut(usize::from(edge.slot.0))
            && std::mem::take(&mut half.in_call)
        {
            half.queue.iter().for_each(|queue| queue.stats().panics.add(1));
        }
    }
    component.stats.panics.add(1);
    let gone = left_over(&component.stats, &books.ledger);
    component.stats.dropped(DropReason::ComponentGone, gone);
    books.ledger.dropped += gone;
    component.stats.set_failed(true);
}
