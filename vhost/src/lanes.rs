//! The rings of one half: a mailbox for each, and which of them there is work on. A port has rings for
//! [`MAX_PAIRS`] queue pairs, most guests use one: what a burst costs depends on the rings that run, not on those there
//! could be. Owned by the half, polled by its core; rings move between the halves of a port by [`crate::deal`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use crossbeam_utils::CachePadded;
use spp_drivers::MacAddr;
use spp_drivers::stats::Counter;

use crate::deal::{Live, Move, Seat};
use crate::handover::Mailbox;
use crate::vring::MAX_PAIRS;

/// Counters of one ring. Written by the half, read by status.
#[derive(Debug, Default, Clone)]
pub struct LaneStats {
    /// Frames moved.
    pub packets: Arc<Counter>,
    /// Interrupts sent to the guest.
    pub calls: Arc<Counter>,
}

/// One ring of a half.
pub struct Lane {
    pub(crate) mailbox: Mailbox,
    pub(crate) stats: LaneStats,
    queue: u8,
}

impl Lane {
    /// The lane of queue 0, without a ring yet.
    pub fn new(mailbox: Mailbox, stats: LaneStats) -> Lane {
        Lane { mailbox, stats, queue: 0 }
    }

    /// As another queue's.
    pub fn of_queue(self, queue: usize) -> Lane {
        assert!(queue < MAX_PAIRS, "a port has {MAX_PAIRS} queue pairs");
        Lane { queue: queue as u8, ..self }
    }

    /// Which queue of its port it is.
    pub fn queue(&self) -> usize {
        self.queue.into()
    }
}

/// All rings of a half.
pub struct Lanes {
    /// By queue number. Has room for all there could be.
    all: ArrayVec<Lane, MAX_PAIRS>,
    /// Moved on by the control thread when it has put a command into any of the mailboxes; as last seen.
    bell: Arc<AtomicUsize>,
    heard: usize,
    /// Lanes with work: those whose ring is enabled, or also those whose ring is to be drained.
    active: ArrayVec<u8, MAX_PAIRS>,
    drains: bool,
    /// Where lanes come and go, for a half that shares its port.
    seat: Option<Seat>,
    live: Live,
    /// An address to announce in the guest's name.
    pub(crate) announcement: Option<MacAddr>,
}

impl Lanes {
    /// Lanes whose mailboxes' other ends ring `bell`. `drains`: rings that are not enabled are worked on too.
    pub fn new(all: impl IntoIterator<Item = Lane>, bell: Arc<AtomicUsize>, drains: bool) -> Lanes {
        let mut lanes = Lanes {
            all: ArrayVec::new(),
            heard: bell.load(Ordering::Relaxed),
            bell,
            active: ArrayVec::new(),
            drains,
            seat: None,
            live: Arc::new(CachePadded::new(AtomicBool::new(false))),
            announcement: None,
        };
        lanes.all.extend(all);
        lanes
    }

    /// Lanes come and go there from now on.
    pub fn sit(&mut self, seat: Seat) {
        self.seat = Some(seat);
        self.heard = self.heard.wrapping_sub(1);
    }

    /// Rings there could be.
    pub fn n_all(&self) -> usize {
        if self.seat.is_some() { MAX_PAIRS } else { self.all.len() }
    }

    /// Whether a ring is enabled.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Obeys what the control thread asked since the last burst; one load when there is nothing.
    #[inline(always)]
    pub fn poll(&mut self) {
        let rung = self.bell.load(Ordering::Acquire);
        if rung != self.heard {
            self.obey(rung);
        }
    }

    #[cold]
    fn obey(&mut self, rung: usize) {
        self.heard = rung;
        self.change_lanes();
        for lane in &mut self.all {
            if lane.mailbox.poll() {
                // Something is left: look again next time.
                self.heard = rung.wrapping_sub(1);
            }
            self.announcement = lane.mailbox.announcement().or(self.announcement);
        }
        self.refresh();
    }

    /// Takes lanes that come and gives up those that are to go.
    #[cold]
    fn change_lanes(&mut self) {
        let Lanes { all, seat: Some(seat), .. } = self else { return };
        while let Some(request) = seat.moves.pop() {
            match request {
                Move::Take(lane) => {
                    let at = all.iter().position(|other| other.queue > lane.queue).unwrap_or(all.len());
                    all.insert(at, lane);
                }
                Move::Give(queue) => {
                    let Some(at) = all.iter().position(|lane| lane.queue == queue) else { continue };
                    let given = seat.given.push(all.remove(at));
                    debug_assert!(given.is_ok(), "there is room for all lanes of a port");
                }
            }
        }
    }

    /// Finds out anew which lanes there is work on.
    #[cold]
    pub fn refresh(&mut self) {
        self.active.clear();
        let mut live = false;
        for (i, lane) in self.all.iter_mut().enumerate() {
            let Some((_, enabled)) = lane.mailbox.ring() else { continue };
            live |= enabled;
            if enabled || self.drains {
                self.active.push(i as u8);
            }
        }
        self.live.store(live, Ordering::Release);
    }

    /// Lanes with work.
    #[inline(always)]
    pub fn n_active(&self) -> usize {
        self.active.len()
    }

    /// The `n`th lane with work.
    #[inline(always)]
    pub fn active(&mut self, n: usize) -> &mut Lane {
        &mut self.all[usize::from(self.active[n])]
    }
}
