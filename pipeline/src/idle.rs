//! What a polling core does when a turn had nothing to do: nothing, by default.
//!
//! Owned by the worker thread; the policy is chosen once, at its start.

use std::str::FromStr;
use std::thread;
use std::time::Duration;

/// Most PAUSE instructions in a row (some 40 to 140 cycles each): a frame waits no longer than a turn takes.
const PAUSES_MAX: u32 = 16;
/// Idle turns before a core that may sleep does.
const TURNS_BEFORE_SLEEP: u32 = 1024;
/// Folded cores: idle turns before sleeping.
const TURNS_BEFORE_FOLDED_SLEEP: u32 = 64;
/// Shortest sleep, and the longest while packets wait for a full output.
const SLEEP_MIN: Duration = Duration::from_micros(20);
/// Longest sleep of folded cores.
const FOLDED_SLEEP_MAX: Duration = Duration::from_millis(1);

/// How an idle core gives way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdlePolicy {
    /// Not at all: it looks for the next frame all the time, at a guest's ring that it has just emptied a microsecond later at
    /// the latest (`spp-vhost`, `vring/pace.rs`).
    #[default]
    Spin,
    /// PAUSE instructions, ever more up to 16: leaves a core's other thread more of the core, and draws less power.
    Pause,
    /// Sleeps after 1,024 idle turns, from 20 us on ever longer, up to this.
    SleepMax(Duration),
    /// Yields to other threads, then sleeps up to 1 ms: for cores that share CPUs (`--fold-cores`).
    Fold,
}

/// Why a text is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not spin, pause or sleep-max=US with 1 to 1000000 microseconds")]
pub struct BadPolicy(String);

impl FromStr for IdlePolicy {
    type Err = BadPolicy;

    /// `spin`, `pause` or `sleep-max=US`.
    fn from_str(text: &str) -> Result<IdlePolicy, BadPolicy> {
        let bad = || BadPolicy(text.to_owned());
        match text {
            "spin" => Ok(IdlePolicy::Spin),
            "pause" => Ok(IdlePolicy::Pause),
            _ => {
                let us = text.strip_prefix("sleep-max=").and_then(|us| us.parse().ok());
                let us = us.filter(|us| (1..=1_000_000).contains(us)).ok_or_else(bad)?;
                Ok(IdlePolicy::SleepMax(Duration::from_micros(us)))
            }
        }
    }
}

/// How long a core has been idle.
#[derive(Default)]
pub(crate) struct Idle {
    turns: u32,
    sleep: Duration,
}

impl Idle {
    /// After a turn without work. `blocked`: packets wait for a full output. True when it slept.
    #[inline]
    pub(crate) fn rest(&mut self, policy: IdlePolicy, blocked: bool) -> bool {
        match policy {
            IdlePolicy::Spin => false,
            IdlePolicy::Pause => {
                self.turns = (self.turns + 1).min(PAUSES_MAX);
                (0..self.turns).for_each(|_| std::hint::spin_loop());
                false
            }
            IdlePolicy::SleepMax(longest) => {
                self.turns += 1;
                self.turns >= TURNS_BEFORE_SLEEP && self.sleep(TURNS_BEFORE_SLEEP, longest, blocked)
            }
            IdlePolicy::Fold => {
                self.turns += 1;
                if self.turns < TURNS_BEFORE_FOLDED_SLEEP {
                    thread::yield_now();
                    return false;
                }
                self.sleep(TURNS_BEFORE_FOLDED_SLEEP, FOLDED_SLEEP_MAX, blocked)
            }
        }
    }

    #[cold]
    fn sleep(&mut self, turns: u32, longest: Duration, blocked: bool) -> bool {
        self.turns = turns;
        let longest = if blocked { SLEEP_MIN.min(longest) } else { longest };
        self.sleep = (self.sleep * 2).max(SLEEP_MIN).min(longest);
        thread::sleep(self.sleep);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_others_are_refused() {
        let sleep = |us| Ok(IdlePolicy::SleepMax(Duration::from_micros(us)));
        assert_eq!("spin".parse(), Ok(IdlePolicy::Spin));
        assert_eq!("pause".parse(), Ok(IdlePolicy::Pause));
        assert_eq!("sleep-max=50".parse(), sleep(50));
        assert_eq!("sleep-max=1000000".parse(), sleep(1_000_000));
        for bad in ["", "fold", "sleep-max", "sleep-max=", "sleep-max=0", "sleep-max=1000001", "sleep-max=-1"]
        {
            assert_eq!(bad.parse::<IdlePolicy>(), Err(BadPolicy(bad.to_owned())));
        }
    }

    #[test]
    fn spinning_core_never_sleeps_and_a_sleeping_one_only_after_many_idle_turns() {
        let mut idle = Idle::default();
        assert!((0..5000).all(|_| !idle.rest(IdlePolicy::Spin, false)));
        assert!((0..5000).all(|_| !idle.rest(IdlePolicy::Pause, true)));
        let (mut idle, policy) = (Idle::default(), IdlePolicy::SleepMax(Duration::from_micros(30)));
        assert!((1..TURNS_BEFORE_SLEEP).all(|_| !idle.rest(policy, false)));
        assert!(idle.rest(policy, false));
        assert_eq!(idle.sleep, SLEEP_MIN);
        assert!(idle.rest(policy, false));
        assert_eq!(idle.sleep, Duration::from_micros(30), "doubled, but no longer than asked for");
        assert!(idle.rest(policy, true));
        assert_eq!(idle.sleep, SLEEP_MIN, "packets wait");
    }
}
