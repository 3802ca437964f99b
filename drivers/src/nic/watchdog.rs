//! Whether a transmit queue still gets on: the age of the oldest frame the device has. Owned by the sending half,
//! which looks once a burst (one reading of the time-stamp counter).

use std::time::Duration;

use crate::tsc;

/// How long sent frames may stay with a device that completes nothing, unless told.
pub const TX_LIMIT: Duration = Duration::from_secs(5);

/// Watches one queue.
pub struct Watchdog {
    limit_ticks: u64,
    last_progress: u64,
}

impl Watchdog {
    /// For a queue that has nothing. Set-up only.
    pub fn new(limit: Duration) -> Self {
        Watchdog { limit_ticks: tsc::ticks(limit), last_progress: tsc::now() }
    }

    /// After each reaping: `was_idle`: the device had nothing before; `progressed`: it completed something. True
    /// when it has had frames for longer than the limit without completing any.
    #[inline(always)]
    pub fn is_hung(&mut self, was_idle: bool, progressed: bool) -> bool {
        self.is_hung_at(tsc::now(), was_idle, progressed)
    }

    #[inline(always)]
    fn is_hung_at(&mut self, now: u64, was_idle: bool, progressed: bool) -> bool {
        if was_idle || progressed {
            self.last_progress = now;
            return false;
        }
        now.wrapping_sub(self.last_progress) > self.limit_ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_is_hung_once_its_frames_are_older_than_the_limit() {
        let mut dog = Watchdog { limit_ticks: 100, last_progress: u64::MAX - 10 };
        assert!(!dog.is_hung_at(u64::MAX, false, false));
        assert!(!dog.is_hung_at(89, false, false), "the counter wraps");
        assert!(dog.is_hung_at(90, false, false));
    }

    #[test]
    fn idle_queues_and_those_that_get_on_never_hang() {
        let mut dog = Watchdog { limit_ticks: 100, last_progress: 0 };
        assert!(!dog.is_hung_at(1000, true, false));
        assert!(!dog.is_hung_at(1100, false, false));
        assert!(!dog.is_hung_at(1200, false, true));
        assert!(!dog.is_hung_at(1300, false, false));
        assert!(dog.is_hung_at(1301, false, false));
    }
}
