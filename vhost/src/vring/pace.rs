//! How often a ring is looked at for frames: not while its driver is most likely writing the next ones.
//!
//! The driver's index lies in a line with available entries, and to look at it takes that line from the driver, who waits for it to
//! come back. A core that is faster than its guest would do so again and again, for nothing, and then find a few frames, take
//! a few lines for those, and so on. So it leaves a ring that it found empty alone for about as long as the driver needs for as many
//! frames as it brought last, and half as long each time that there is nothing again. After a lone frame that is next to
//! nothing, and a ring that has frames whenever it is looked at is never left alone.
//!
//! Owned with its ring by the core that polls it. Told the time, so that it can be tested without any.

/// What a driver needs for a frame, at the least. Beside testpmd's virtio-user, which needs 100 to 150, four runs of 3 samples with and
/// without in turns (`spp-bench --quick --row P1 --row P2 --row P4`, medians in Mpkt/s): fused node 11.9 without, 14.5 with 80 and
/// 14.8 with 40 behind mergeable buffers, 13.3, 19.0 and 18.1 in order; MAC swap with mergeable buffers 11.8, 15.9 and 11.8 on a
/// split ring, 14.4, 19.0 and 20.5 on a packed one; others the same or a tenth more, round trips of a lone frame the same.
const TICKS_PER_FRAME: u32 = 64;

/// When a ring is looked at next.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Left alone since this time, for so many ticks; 0: it is not.
    since: u64,
    alone: u32,
    /// For how long it is left alone when it is found empty.
    rest: u32,
}

impl Pace {
    /// Whether to look now. Asks for the time only while the ring is left alone.
    #[inline(always)]
    pub fn may_look(&mut self, now: impl FnOnce() -> u64) -> bool {
        if self.alone == 0 {
            return true;
        }
        // A clock that was set back has passed any time.
        let is_over = now().wrapping_sub(self.since) >= self.alone.into();
        if is_over {
            self.alone = 0;
        }
        is_over
    }

    /// There were `n` frames (at most a burst).
    #[inline(always)]
    pub fn found(&mut self, n: usize) {
        self.rest = n as u32 * TICKS_PER_FRAME;
    }

    /// There were none.
    #[inline(always)]
    pub fn found_none(&mut self, now: impl FnOnce() -> u64) {
        if self.rest > 0 {
            (self.since, self.alone) = (now(), self.rest);
            self.rest /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at an empty ring whenever it may, from `start` on for so many ticks; returns when it did.
    fn looks(pace: &mut Pace, start: u64, ticks: u64) -> Vec<u64> {
        let may = |now: &u64| {
            let looked = pace.may_look(|| *now);
            if looked {
                pace.found_none(|| *now);
            }
            looked
        };
        (start..start + ticks).filter(may).map(|now| now - start).collect()
    }

    #[test]
    fn ring_that_was_empty_from_the_start_is_looked_at_all_the_time() {
        assert_eq!(looks(&mut Pace::default(), 1000, 5), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn ring_that_has_frames_each_time_is_never_left_alone() {
        let mut pace = Pace::default();
        for now in 0..100 {
            assert!(pace.may_look(|| now));
            pace.found(32);
        }
    }

    #[test]
    fn ring_that_becomes_empty_is_left_alone_by_what_it_had_and_half_as_long_each_time() {
        let mut pace = Pace::default();
        pace.found(4);
        assert_eq!(looks(&mut pace, 1, 520)[..9], [0, 256, 384, 448, 480, 496, 504, 508, 510]);
        assert_eq!(looks(&mut pace, 1000, 3), [0, 1, 2], "and then not at all");
        pace.found(1);
        assert_eq!(looks(&mut pace, 2000, 170)[..4], [0, 64, 96, 112], "a lone frame is no reason to wait");
    }

    #[test]
    fn frames_that_come_meanwhile_are_found_when_the_time_is_over() {
        let mut pace = Pace::default();
        pace.found(32);
        pace.found_none(|| 5);
        assert!(!pace.may_look(|| 5 + 2047) && pace.may_look(|| 5 + 2048));
    }

    #[test]
    fn clock_that_wraps_changes_nothing_and_one_that_is_set_back_ends_the_wait() {
        for (later, may) in [(u64::MAX, false), (52, false), (53, true), (u64::MAX - 11, true)] {
            let mut pace = Pace::default();
            pace.found(1);
            pace.found_none(|| u64::MAX - 10);
            assert_eq!(pace.may_look(|| later), may, "{later}");
        }
    }
}
