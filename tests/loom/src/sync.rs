//! Loom's types under the names of `drivers/src/sync.rs` and `vhost/src/sync.rs`.

use std::time::Duration;

pub use loom::cell::UnsafeCell;
pub use loom::sync::Arc;
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

loom::lazy_static! {
    /// Pauses after which [`Patience`] is over. Never, unless a model says otherwise.
    pub static ref PATIENCE: AtomicUsize = AtomicUsize::new(usize::MAX);
}

/// Waiting without a clock: the other threads run while it pauses.
pub struct Patience {
    n_left: usize,
}

impl Patience {
    /// Lasts for as many pauses as the model allows.
    pub fn new(_limit: Duration) -> Patience {
        Patience { n_left: PATIENCE.load(Ordering::Relaxed) }
    }

    /// Whether they are used up.
    pub fn is_over(&self) -> bool {
        self.n_left == 0
    }

    /// One pause.
    pub fn pause(&mut self) {
        self.n_left -= 1;
        loom::thread::yield_now();
    }
}
