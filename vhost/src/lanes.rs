//! The rings of one half: a mailbox for each, and which of them there is work on. A port has rings for
//! [`MAX_PAIRS`] queue pairs, most guests use one: what a burst costs depends on the rings that run, not on those there
//! could be. Owned by the half, polled by its core.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use spp_drivers::MacAddr;
use spp_drivers::stats::Counter;

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
}

impl Lane {
    /// A lane without a ring yet.
    pub fn new(mailbox: Mailbox, stats: LaneStats) -> Lane {
        Lane { mailbox, stats }
    }
}

/// All rings of a half.
pub struct Lanes {
    all: Box<[Lane]>,
    /// Moved on by the control thread when it has put a command into any of the mailboxes; as last seen.
    bell: Arc<AtomicUsize>,
    heard: usize,
    /// Lanes with work: those whose ring is enabled, or also those whose ring is to be drained.
    active: ArrayVec<u8, MAX_PAIRS>,
    drains: bool,
    /// An address to announce in the guest's name.
    pub(crate) announcement: Option<MacAddr>,
}

impl Lanes {
    /// Lanes whose mailboxes' other ends ring `bell`. `drains`: rings that are not enabled are worked on too.
    pub fn new(all: impl IntoIterator<Item = Lane>, bell: Arc<AtomicUsize>, drains: bool) -> Lanes {
        let all: Box<[Lane]> = all.into_iter().collect();
        assert!((1..=MAX_PAIRS).contains(&all.len()), "a half has 1 to {MAX_PAIRS} rings");
        Lanes { all, bell, heard: 0, active: ArrayVec::new(), drains, announcement: None }
    }

    /// Rings there could be.
    pub fn n_all(&self) -> usize {
        self.all.len()
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
        for lane in &mut self.all {
            if lane.mailbox.poll() {
                // Something is left: look again next time.
                self.heard = rung.wrapping_sub(1);
            }
            self.announcement = lane.mailbox.announcement().or(self.announcement);
        }
        self.refresh();
    }

    /// Finds out anew which lanes there is work on.
    #[cold]
    pub fn refresh(&mut self) {
        self.active.clear();
        for (i, lane) in self.all.iter_mut().enumerate() {
            if lane.mailbox.ring().is_some_and(|(_, enabled)| enabled || self.drains) {
                self.active.push(i as u8);
            }
        }
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
