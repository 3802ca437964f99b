//! P8: one frame in flight. The mean with testpmd's frontend, percentiles with our built-in guest, both on ours and on testpmd's
//! vhost port.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use spp_drivers::tsc;
use spp_vhost::Role;
use spp_vhost::guest::{Guest, GuestConfig, MessageOrder};
use tempfile::TempDir;

use super::vhost::{Baseline, WARM_UP};
use crate::cpu::{self, Watched};
use crate::port::{Backend, Job, Ours};
use crate::runner::{Case, Plan, Reading, Result, Side};

const DEADLINE: Duration = Duration::from_secs(15);
/// Percentiles and the part of all round trips each names.
pub(super) const PARTS: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

/// Round trips, in nanoseconds, by percentile.
pub fn measure(plan: &Plan, done: &mut dyn FnMut(Case)) {
    super::vhost::round_trip(plan, done);
    for (name, part) in PARTS {
        let case = Case::new("P8", format!("round trip of one 64 B frame, {name}, our guest"), "ns", None);
        let case = Case { target: Some(1.0), ..case.less_is_better() };
        done(case.measure(plan, ours(plan, part), theirs(plan, part)));
    }
}

fn ours(plan: &Plan, part: f64) -> Result<Box<dyn Side>> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let socket = dir.path().join("sock0");
    let backend = Ours::start(plan.backend_cpu, Job::MacSwap, std::slice::from_ref(&socket))?;
    Ok(Box::new(RoundTrips::new(plan, part, backend, &socket, dir)?))
}

fn theirs(plan: &Plan, part: f64) -> Result<Box<dyn Side>> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let socket = dir.path().join("sock0");
    let backend = Baseline::start(plan.backend_first(), Job::MacSwap, std::slice::from_ref(&socket))?;
    Ok(Box::new(RoundTrips::new(plan, part, backend, &socket, dir)?))
}

/// One frame at a time between our guest and a backend.
pub(super) struct RoundTrips<B> {
    guest: Guest,
    backend: B,
    cpu: usize,
    part: f64,
    gap: Duration,
    _dir: TempDir,
}

impl<B: Backend> RoundTrips<B> {
    pub(super) fn new(plan: &Plan, part: f64, backend: B, socket: &Path, dir: TempDir) -> Result<Self> {
        let mut config = GuestConfig::new(PathBuf::from(socket), Role::Client);
        // The order DPDK's own frontend has.
        (config.event_idx, config.order) = (false, MessageOrder::VirtioUser);
        let guest = Guest::attach(config, DEADLINE).map_err(|error| error.to_string())?;
        Ok(RoundTrips { guest, backend, cpu: plan.frontend_cpu, part, gap: Duration::ZERO, _dir: dir })
    }

    /// Each frame is sent this long after the last one came back.
    pub(super) fn after(mut self, gap: Duration) -> Self {
        self.gap = gap;
        self
    }
}

impl<B: Backend> Side for RoundTrips<B> {
    fn sample(&mut self, window: Duration) -> Result<Reading> {
        self.backend.go()?;
        // testpmd throws away what comes while it starts.
        std::thread::sleep(WARM_UP);
        let (guest, cpu, gap) = (&mut self.guest, self.cpu, self.gap);
        let mut threads = self.backend.threads();
        threads.iter_mut().for_each(Watched::restart);
        let (trips, share) = std::thread::scope(|scope| {
            let run = || round_trips(guest, cpu, window, gap);
            scope.spawn(run).join()
        })
        .map_err(|_| "the guest panicked".to_owned())??;
        let cpu_share = cpu::smallest_share(&threads).min(share);
        self.backend.halt()?;
        let at = ((trips.len() - 1) as f64 * self.part) as usize;
        let value = trips[at] as f64 * 1e9 / tsc::ticks_per_second() as f64;
        Ok(Reading { value, cycles_per_packet: None, cpu_share })
    }
}

/// Ticks of each round trip, sorted, and the share of its CPU that the guest had.
fn round_trips(guest: &mut Guest, cpu: usize, window: Duration, gap: Duration) -> Result<(Vec<u64>, f64)> {
    cpu::pin(cpu)?;
    let tid = cpu::tid();
    let watched = Watched::thread(std::process::id(), tid);
    let frame = [0x02; 64];
    let (mut trips, start) = (Vec::with_capacity(1 << 20), Instant::now());
    while start.elapsed() < window {
        let quiet = Instant::now();
        while quiet.elapsed() < gap {
            std::hint::spin_loop();
        }
        // What a sample before this one left on its way is no answer to this frame.
        while guest.receive_burst(32, |_| ()) > 0 {}
        let sent = tsc::now();
        if !guest.send(&frame) {
            return Err("the guest's ring is full: nothing comes back".to_owned());
        }
        while guest.receive_burst(1, |_| ()) == 0 {
            if tsc::now() - sent > tsc::ticks_per_second() {
                return Err("a frame did not come back within a second".to_owned());
            }
        }
        trips.push(tsc::now() - sent);
    }
    trips.sort_unstable();
    if trips.is_empty() { Err("no round trip".to_owned()) } else { Ok((trips, watched.share())) }
}
