//! When to say `up`, and when to try again: pure time arithmetic, clock handed in.
//!
//! Called by the reconciler and the agent's task. Times are `Duration`s since the agent's start.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// When `up` is put, counted from the moment the wiring was live.
///
/// The driver writes its request, *then* starts to watch port_status, without a start revision, for
/// 20 s (30 s for taps), and never reads the key: an `up` it has not seen come never happened. The
/// first one comes before some 6 % of the watches, so it is said again, once for a driver that starts
/// its watch as briskly as it wrote its request, and once for one that stumbles before it. Each is a
/// write for the whole site's etcd: with the driver's own three that makes six for a plug.
pub fn up_offsets() -> Vec<Duration> {
    [0, 200, 6_000].map(MS).to_vec()
}

/// The same for a driver that was slow before: often, and for as long as it may still start to watch.
pub fn patient_up_offsets() -> Vec<Duration> {
    [0, 30, 100, 250, 500, 1_000, 2_000, 4_000, 8_000, 12_000, 16_000, 20_000, 25_000, 30_000]
        .map(MS)
        .to_vec()
}

/// The course of one port's `up`s.
#[derive(Debug, Clone)]
pub struct UpSchedule {
    started: Duration,
    offsets: Vec<Duration>,
    next_idx: usize,
}

impl UpSchedule {
    /// The wiring went live now; `up` is due at these offsets from now.
    pub fn start(now: Duration, offsets: &[Duration]) -> UpSchedule {
        UpSchedule { started: now, offsets: offsets.to_vec(), next_idx: 0 }
    }

    /// When the next put is due; None when all is said.
    pub fn due(&self) -> Option<Duration> {
        Some(self.started + *self.offsets.get(self.next_idx)?)
    }

    /// A put went through: go on with the first time still ahead, so that puts an outage held up
    /// are not said in one go.
    pub fn said(&mut self, now: Duration) {
        let ahead = |offset: &Duration| self.started + *offset > now;
        self.next_idx = self.offsets.iter().position(ahead).unwrap_or(self.offsets.len());
    }
}

/// Growing pauses: `first`, doubled each time, at most `longest`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    n_tries: u32,
}

impl Backoff {
    /// Starts over with `first`.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, n_tries: 0 }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let factor = 1u32 << self.n_tries.min(16);
        self.n_tries = self.n_tries.saturating_add(1);
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// The next pause, shortened by up to a half at random, so that the nodes of a site do not knock
    /// on a restarted etcd all at once.
    pub fn pause_with_jitter(&mut self) -> Duration {
        let pause = self.pause();
        let random = RandomState::new().hash_one(0u8) as u32;
        pause - (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// A pause anywhere up to the next one: clients that all lost the same server in the same instant
    /// come back evenly spread. `random` is any number.
    pub fn random_pause(&mut self, random: u32) -> Duration {
        self.pause().mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// It worked: start over.
    pub fn reset(&mut self) {
        self.n_tries = 0;
    }
}

/// At most `burst` lines at once and one per `refill` after that; a peer decides how often there is
/// something to say, not how much is written.
#[derive(Debug)]
pub struct LogLimit {
    burst: u32,
    refill: Duration,
    tokens: u32,
    since: Duration,
    n_suppressed: u64,
}

impl LogLimit {
    /// Full at start.
    pub fn new(burst: u32, refill: Duration) -> LogLimit {
        LogLimit { burst, refill, tokens: burst, since: Duration::ZERO, n_suppressed: 0 }
    }

    /// May a line be written now? If so: how many were not, since the last one.
    pub fn allow(&mut self, now: Duration) -> Option<u64> {
        while self.tokens < self.burst && now.saturating_sub(self.since) >= self.refill {
            self.tokens += 1;
            self.since += self.refill;
        }
        if self.tokens == self.burst {
            self.since = now;
        }
        if self.tokens == 0 {
            self.n_suppressed += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.n_suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_is_said_at_once_and_then_at_growing_distances() {
        for offsets in [up_offsets(), patient_up_offsets()] {
            let mut up = UpSchedule::start(MS(500), &offsets);
            let mut said_at = Vec::new();
            while let Some(due) = up.due() {
                said_at.push(due - MS(500));
                up.said(due);
            }
            assert_eq!(said_at, offsets);
        }
        assert_eq!(patient_up_offsets().last(), Some(&MS(30_000)));
    }

    #[test]
    fn ups_missed_during_an_outage_are_said_once() {
        let mut up = UpSchedule::start(MS(0), &patient_up_offsets());
        up.said(MS(0));
        assert_eq!(up.due(), Some(MS(30)));
        up.said(MS(9_000));
        assert_eq!(up.due(), Some(MS(12_000)));
        up.said(MS(60_000));
        assert_eq!(up.due(), None);
    }

    #[test]
    fn pauses_grow_to_the_longest_and_start_over() {
        let mut backoff = Backoff::new(MS(50), MS(2_000));
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
        for _ in 0..100 {
            let pause = backoff.pause_with_jitter();
            assert!((MS(1_000)..=MS(2_000)).contains(&pause), "{pause:?}");
        }
        backoff.reset();
        assert_eq!(backoff.pause(), MS(50));
    }

    #[test]
    fn log_lines_beyond_the_burst_are_counted_not_written() {
        let mut limit = LogLimit::new(3, MS(1_000));
        let allowed: Vec<_> = (0..10).map(|_| limit.allow(MS(5_000))).collect();
        assert_eq!(allowed[..3], [Some(0); 3]);
        assert_eq!(allowed[3..], [None; 7]);
        assert_eq!(limit.allow(MS(6_000)), Some(7));
        assert_eq!(limit.allow(MS(6_100)), None);
        assert_eq!((0..9).filter_map(|_| limit.allow(MS(600_000))).count(), 3);
    }
}
