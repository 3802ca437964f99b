//! The machine: pinning, what a thread got of its CPU, and how far apart two CPUs are.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::runner::Result;

/// This thread's id.
pub fn tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// Pins the calling thread, which is going to poll.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
        .map_err(|os| format!("CPU {cpu} can't be had: {os} (choose others with --cpus)"))
}

/// Time one hand-over of a cache line between two CPUs takes: the fastest of some stretches, since other work only
/// makes it longer.
pub fn handover_ns(a: usize, b: usize) -> f64 {
    const ROUNDS: u64 = 2000;
    const STRETCHES: usize = 8;
    let (line, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (echo_line, echo_over) = (line.clone(), over.clone());
    let echo = std::thread::spawn(move || {
        let pinned = pin(b);
        // Odd: the other side wrote; answers with the next even number.
        while pinned.is_ok() && !echo_over.load(Ordering::Relaxed) {
            let seen = echo_line.load(Ordering::Acquire);
            if seen & 1 == 1 {
                echo_line.store(seen + 1, Ordering::Release);
            }
        }
    });
    let main = std::thread::spawn(move || {
        let (mut best, give_up) = (f64::MAX, Instant::now() + Duration::from_millis(200));
        if pin(a).is_err() {
            return best;
        }
        for _ in 0..STRETCHES {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                let odd = line.load(Ordering::Relaxed) + 1;
                line.store(odd, Ordering::Release);
                while line.load(Ordering::Acquire) == odd {
                    if start.elapsed() > Duration::from_millis(50) {
                        break;
                    }
                }
                if line.load(Ordering::Relaxed) == odd {
                    return best; // the other CPU is busy with something else
                }
            }
            best = best.min(start.elapsed().as_nanos() as f64 / (2 * ROUNDS) as f64);
            if Instant::now() > give_up {
                break;
            }
        }
        best
    });
    let best = main.join().unwrap_or(f64::MAX);
    over.store(true, Ordering::Relaxed);
    let _ = echo.join();
    best
}

/// Nanoseconds a fixed piece of work takes on a CPU, the middle one of some tries. Where other work has the second thread of its
/// core, nearly twice as many as alone.
pub fn pace_ns(cpu: usize) -> Result<f64> {
    const TRIES: usize = 21;
    let work = move || {
        pin(cpu)?;
        let mut took = [0.0; TRIES];
        for ns in &mut took {
            let start = Instant::now();
            std::hint::black_box(keep_busy());
            *ns = start.elapsed().as_nanos() as f64;
        }
        took.sort_by(f64::total_cmp);
        Ok(took[TRIES / 2])
    };
    std::thread::spawn(work).join().map_err(|_| "the measurement of a CPU's pace panicked".to_owned())?
}

/// As many instructions at a time as a core can have: what it shares with a second thread shows.
fn keep_busy() -> u64 {
    let mut lanes: [u64; 8] = std::hint::black_box([1, 2, 3, 4, 5, 6, 7, 8]);
    for round in 0..4000 {
        lanes.iter_mut().for_each(|lane| *lane = lane.rotate_left(7) ^ round);
    }
    lanes.iter().fold(0, |sum, lane| sum ^ lane)
}

/// A thread whose share of its CPU is watched.
#[derive(Debug, Clone)]
pub struct Watched {
    path: String,
    start: (u64, u64),
}

fn schedstat(path: &str) -> Option<(u64, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let mut numbers = text.split_whitespace().map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

impl Watched {
    /// Thread `tid` of process `pid`, which polls.
    pub fn thread(pid: u32, tid: u32) -> Watched {
        let path = format!("/proc/{pid}/task/{tid}/schedstat");
        let start = schedstat(&path).unwrap_or_default();
        Watched { path, start }
    }

    /// The threads of a process whose names start with `name`.
    pub fn named(pid: u32, name: &str) -> Vec<Watched> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let named = tasks.filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name))
        });
        let ids = named.filter_map(|task| task.file_name().to_string_lossy().parse().ok());
        ids.map(|tid| Watched::thread(pid, tid)).collect()
    }

    /// Starts a new measurement.
    pub fn restart(&mut self) {
        self.start = schedstat(&self.path).unwrap_or_default();
    }

    /// Time run over time it could have run, since the restart.
    pub fn share(&self) -> f64 {
        let Some((run, wait)) = schedstat(&self.path) else { return 0.0 };
        let (run, wait) = ((run - self.start.0) as f64, (wait - self.start.1) as f64);
        if run + wait == 0.0 { 0.0 } else { run / (run + wait) }
    }
}

/// Restarts all, waits, and returns the smallest share.
pub fn smallest_share(threads: &[Watched]) -> f64 {
    threads.iter().map(Watched::share).fold(1.0, f64::min)
}
