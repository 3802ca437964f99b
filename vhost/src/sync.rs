//! What the hand-over is built from: the standard library's types and a way to wait, under names
//! that `tests/loom` gives loom's, so that it can compile the very same source.

use std::time::{Duration, Instant};

pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

/// Waiting for a polling half, up to a deadline. Short pauses first: it answers within a microsecond or two.
pub struct Patience {
    deadline: Instant,
    n_pauses: u32,
}

impl Patience {
    /// Lasts for `limit` from now on.
    pub fn new(limit: Duration) -> Patience {
        Patience { deadline: Instant::now() + limit, n_pauses: 0 }
    }

    /// Whether the deadline has passed.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Waits a little, longer from time to time.
    pub fn pause(&mut self) {
        self.n_pauses = (self.n_pauses + 1).min(20);
        match self.n_pauses {
            0..10 => std::thread::yield_now(),
            n => std::thread::sleep(Duration::from_micros(20 << ((n - 10) / 2))),
        }
    }
}
