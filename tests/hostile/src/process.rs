//! The backend's process from outside: whether it lives, and what it holds.

use std::fs;
use std::time::Duration;

use serde::Serialize;

use crate::frontend::until;

/// A process by its number.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pid: u32,
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Holdings {
    /// Open descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings.
    pub maps: usize,
    /// Resident memory of its own (heaps and stacks, not shared files), in KiB.
    pub anon_kib: u64,
}

impl Process {
    /// The process with this number.
    pub fn new(pid: u32) -> Process {
        Process { pid }
    }

    /// Its number.
    pub fn pid(self) -> u32 {
        self.pid
    }

    /// False once it has ended, waited for or not.
    pub fn is_alive(self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        // The state is the first word behind the name, which is in parentheses.
        let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
        !matches!(state, Some("Z" | "X") | None)
    }

    /// What it holds now; `None` when it is gone or not ours to look at.
    pub fn holdings(self) -> Option<Holdings> {
        let path = |name| format!("/proc/{}/{name}", self.pid);
        let entries = |name| fs::read_dir(path(name)).ok().map(Iterator::count);
        let lines = fs::read_to_string(path("maps")).ok()?;
        let status = fs::read_to_string(path("status")).ok()?;
        let anon = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        Some(Holdings {
            fds: entries("fd")?,
            threads: entries("task")?,
            maps: lines.lines().count(),
            anon_kib: anon.trim().trim_end_matches(" kB").parse().ok()?,
        })
    }

    /// Waits for the process to hold no more than `level`, with room for allocators to keep `slack_kib`. In words
    /// what is too much.
    pub fn returns_to(self, level: Holdings, slack_kib: u64, time: Duration) -> Result<(), String> {
        let mut now = None;
        let mut over = String::new();
        let back = until(time, || {
            now = self.holdings();
            over = now.map_or_else(|| "the process is gone".to_owned(), |now| excess(now, level, slack_kib));
            if !over.is_empty() {
                std::thread::sleep(Duration::from_millis(5));
            }
            over.is_empty()
        });
        if back { Ok(()) } else { Err(over) }
    }
}

/// Threads that pools of the backend's own (its API's, say) may start when they please.
const SPARE_THREADS: usize = 2;
/// Mappings an allocator may add or split without holding more.
const SPARE_MAPS: usize = 8;

/// What of `now` is above `level`, in words; empty when nothing is.
fn excess(now: Holdings, level: Holdings, slack_kib: u64) -> String {
    let counts = [
        ("descriptors", now.fds, level.fds),
        ("threads", now.threads, level.threads + SPARE_THREADS),
        ("mappings", now.maps, level.maps + SPARE_MAPS),
        ("KiB", now.anon_kib as usize, (level.anon_kib + slack_kib) as usize),
    ];
    let over = counts.into_iter().filter(|(_, now, level)| now > level);
    over.map(|(what, now, level)| format!("{now} {what} instead of {level}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_descriptors_are_counted_and_their_return_is_seen() {
        let this = Process::new(std::process::id());
        let before = this.holdings().unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        let during = this.holdings().unwrap();
        assert!(during.fds > before.fds, "{during:?}");
        drop(file);
        // Tests beside this one open files too.
        let level = Holdings { fds: during.fds + 50, threads: during.threads + 50, maps: 10_000, ..during };
        assert!(this.returns_to(level, 1 << 20, Duration::from_secs(10)).is_ok());
        let nothing = Holdings { fds: 0, ..level };
        let too_many = this.returns_to(nothing, 1 << 20, Duration::ZERO).unwrap_err();
        assert!(too_many.contains("descriptors instead of 0"), "{too_many}");
    }

    #[test]
    fn ended_child_is_not_alive_before_it_is_waited_for() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::new(child.id());
        assert!(until(Duration::from_secs(10), || !process.is_alive()));
        child.wait().unwrap();
        assert!(!process.is_alive());
    }
}
