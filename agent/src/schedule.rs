//! When to say `up`, and when to try again: pure time arithmetic, clock handed in.
//!
//! Called by the reconciler and the agent's task. Times are `Duration`s since the agent's start.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// How long networking-spp's mechanism driver waits for `up`; its TaaS driver waits 30 s. The clock starts
/// when etcd has answered that the watch is there.
const DRIVER_WAITS_S: u64 = 20;

/// The longest pause between two `up`s: wherever between them a driver starts to watch, the later one comes
/// while it waits, with 2 s to spare for a slow etcd.
const UP_SPACING: Duration = Duration::from_secs(DRIVER_WAITS_S - 2);

/// No driver starts to watch this late: neutron's callers are gone after 60 s.
const UP_UNTIL: Duration = Duration::from_secs(90);

/// When `up` is put, counted from the moment the wiring was live.
///
/// The driver writes its request, *then* starts to watch port_status, without a start revision, and never
/// reads the key: an `up` it has not seen come never happened. The first one comes before some 6 % of the
/// watches, the second one is for those, the third for whoever stumbles in between: it reaches every watch
/// that starts before it. Each is a write for the whole site's etcd: with the driver's own three that makes
/// six for a plug.
pub fn up_offsets() -> Vec<Duration> {
    [0, 200, 18_000].map(MS).to_vec()
}

/// The same for a driver that was slow before: it is likely to start its watch late, and need not wait long.
pub fn patient_up_offsets() -> Vec<Duration> {
    [0, 200, 1_000, 4_000, 12_000, 30_000].map(MS).to_vec()
}

/// The course of one port's `up`s: at the offsets; then, while its guest is awaited (whose start is what a driver
/// does with an `up`), every [`UP_SPACING`] for as long as a driver may still start to watch.
#[derive(Debug, Clone)]
pub struct UpSchedule {
    started: Duration,
    offsets: Vec<Duration>,
    /// When the last one went through, as an offset.
    said: Option<Duration>,
    /// A guest was there after the last offset.
    guest_came: bool,
}

impl UpSchedule {
    /// The wiring went live now; `up` is due at these offsets from now.
    pub fn start(now: Duration, offsets: &[Duration]) -> UpSchedule {
        UpSchedule { started: now, offsets: offsets.to_vec(), said: None, guest_came: false }
    }

    /// When the next put is due; None when all is said.
    pub fn due(&self) -> Option<Duration> {
        let later = || Some(self.said? + UP_SPACING).filter(|at| !self.guest_came && *at <= UP_UNTIL);
        Some(self.started + self.offset_ahead().or_else(later)?)
    }

    fn offset_ahead(&self) -> Option<Duration> {
        let ahead = |offset: &&Duration| self.said.is_none_or(|said| **offset > said);
        self.offsets.iter().find(ahead).copied()
    }

    /// The guest is not awaited, or not any more. One that is there before the last offset may be the
    /// vhost's last one, on its way out.
    pub fn guest_is_there(&mut self) {
        self.guest_came |= self.offset_ahead().is_none();
    }

    /// A put went through: go on with the first time still ahead, so that puts an outage held up
    /// are not said in one go.
    pub fn said(&mut self, now: Duration) {
        self.said = Some(now.saturating_sub(self.started));
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

    /// All times `up` is said, each put taking `slowness`.
    fn times(offsets: &[Duration], awaited: bool, slowness: Duration) -> Vec<Duration> {
        let mut up = UpSchedule::start(MS(500), offsets);
        let mut said_at = Vec::new();
        while let Some(due) = up.due() {
            said_at.push(due + slowness - MS(500));
            up.said(due + slowness);
            if !awaited {
                up.guest_is_there();
            }
        }
        said_at
    }

    #[test]
    fn brisk_driver_whose_guest_comes_costs_three_puts() {
        assert_eq!(times(&up_offsets(), false, MS(0)), [0, 200, 18_000].map(MS));
        let slow = times(&patient_up_offsets(), false, MS(0));
        assert_eq!(slow, [0, 200, 1_000, 4_000, 12_000, 30_000].map(MS));
    }

    /// Etcd has a watch from `start` on; the driver gives up [`DRIVER_WAITS_S`] later at the earliest.
    #[test]
    fn every_watch_that_starts_before_the_last_up_sees_one_before_its_driver_gives_up() {
        for (awaited, window) in [(false, MS(18_000)), (true, MS(72_000))] {
            for offsets in [up_offsets(), patient_up_offsets()] {
                for slowness in [0, 1, 150, 1_000, 1_900].map(MS) {
                    let said_at = times(&offsets, awaited, slowness);
                    let last = *said_at.last().unwrap();
                    assert!(last >= window, "{said_at:?}");
                    for start in (0..last.as_millis() as u64).map(MS) {
                        let seen = said_at.iter().find(|at| **at > start).unwrap();
                        assert!(
                            *seen < start + Duration::from_secs(DRIVER_WAITS_S),
                            "start {start:?}, {said_at:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn ups_missed_during_an_outage_are_said_once() {
        let mut up = UpSchedule::start(MS(0), &patient_up_offsets());
        up.said(MS(0));
        assert_eq!(up.due(), Some(MS(200)));
        up.said(MS(9_000));
        assert_eq!(up.due(), Some(MS(12_000)));
        up.said(MS(60_000));
        assert_eq!(up.due(), Some(MS(78_000)));
        up.said(MS(80_000));
        assert_eq!(up.due(), None);
    }

    #[test]
    fn guest_that_comes_after_the_last_offset_ends_it_and_one_from_before_does_not() {
        let mut up = UpSchedule::start(MS(0), &up_offsets());
        up.said(MS(0));
        up.guest_is_there();
        up.said(MS(18_000));
        assert_eq!(up.due(), Some(MS(36_000)));
        up.guest_is_there();
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
