//! What the queue halves of a NIC tell its control half: the link, the first fault, and what they held when they
//! were dropped. One [`Shared`] for each start of the device.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

/// Which half of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Receiving.
    Rx,
    /// Sending.
    Tx,
}

/// Why a device has to be stopped and started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It wrote something that can't be true.
    Garbage {
        /// Where.
        side: Side,
        /// Number of the queue.
        queue: u16,
        /// What is wrong with it, in words.
        what: &'static str,
        /// The word it wrote.
        value: u64,
    },
    /// Sent frames were not completed in time.
    TxHang {
        /// Number of the queue.
        queue: u16,
        /// Descriptors the device has.
        n_descriptors: u16,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Garbage { side, queue, what, value } => {
                let side = if *side == Side::Rx { "receive" } else { "transmit" };
                write!(f, "{side} queue {queue}: {what} ({value:#x})")
            }
            Fault::TxHang { queue, n_descriptors } => {
                write!(f, "transmit queue {queue}: {n_descriptors} descriptors not completed in time")
            }
        }
    }
}

/// Shared by the control half and the queue halves of one start. `P` is what a half leaves behind: its ring and the
/// buffers in it, which the device may touch until it is known to be stopped.
pub struct Shared<P> {
    driver: &'static str,
    link_down: AtomicBool,
    fault: OnceLock<Fault>,
    parked: Mutex<Vec<P>>,
}

impl<P> Shared<P> {
    /// For a device whose link is taken to be up. `driver` names it in logs.
    pub fn new(driver: &'static str) -> Self {
        Shared { driver, link_down: AtomicBool::new(false), fault: OnceLock::new(), parked: Mutex::default() }
    }

    /// True while nothing can be sent; one load.
    #[inline(always)]
    pub fn link_is_down(&self) -> bool {
        self.link_down.load(Ordering::Relaxed)
    }

    /// Control half: the link changed.
    pub fn set_link(&self, up: bool) {
        self.link_down.store(!up, Ordering::Relaxed);
    }

    /// Remembers the first fault; the halves move nothing from then on.
    #[cold]
    pub fn fail(&self, fault: Fault) {
        if self.fault.set(fault).is_ok() {
            tracing::error!(driver = self.driver, %fault, "NIC stopped");
        }
    }

    /// What stopped the device, if anything did since its start.
    #[inline(always)]
    pub fn fault(&self) -> Option<Fault> {
        self.fault.get().copied()
    }

    fn parked(&self) -> MutexGuard<'_, Vec<P>> {
        self.parked.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes what a half that is dropped leaves behind.
    pub fn park(&self, left: P) {
        self.parked().push(left);
    }

    /// What the halves left behind. Only for a device that is stopped.
    pub fn take_parked(&self) -> Vec<P> {
        std::mem::take(&mut *self.parked())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_fault_is_the_one_that_counts() {
        let shared = Shared::<()>::new("test");
        let first = Fault::Garbage { side: Side::Rx, queue: 1, what: "no end of frame", value: 0x21 };
        shared.fail(first);
        shared.fail(Fault::TxHang { queue: 0, n_descriptors: 3 });
        assert_eq!(shared.fault(), Some(first));
        assert_eq!(first.to_string(), "receive queue 1: no end of frame (0x21)");
    }

    #[test]
    fn parked_rings_are_taken_once() {
        let shared = Shared::new("test");
        shared.park(7);
        assert_eq!(shared.take_parked(), [7]);
        assert!(shared.take_parked().is_empty());
    }
}
