// UNSAFETY: the time-stamp counter is read with an intrinsic.
//! The time-stamp counter: the only clock a polling core reads.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The counter now, in ticks. Monotonic on one core; on the machines spp runs on
/// (constant and non-stop TSC) also across cores to within a few hundred ticks.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: RDTSC is in every x86_64 CPU and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ticks in one second, measured once against the monotonic clock (takes 10 ms at first call:
/// call it in set-up).
pub fn ticks_per_second() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| {
        let (t0, c0) = (Instant::now(), now());
        std::thread::sleep(Duration::from_millis(10));
        let (dt, dc) = (t0.elapsed(), now().wrapping_sub(c0));
        (u128::from(dc) * 1_000_000_000 / dt.as_nanos().max(1)).max(1) as u64
    })
}

/// A duration in ticks, saturating. Set-up only (it divides).
pub fn ticks(duration: Duration) -> u64 {
    let t = u128::from(ticks_per_second()) * duration.as_nanos() / 1_000_000_000;
    u64::try_from(t).unwrap_or(u64::MAX)
}
