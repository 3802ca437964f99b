// UNSAFETY: includes the source of the ring, which is unsafe for the reasons given there.
//! The sharing primitives of `spp-drivers`, compiled from the same sources against loom.
//!
//! Loom runs a model again and again until every interleaving and every value that a
//! relaxed load may see has been tried, and reports a slot touched from two threads at once.

/// Loom's types under the names of `drivers/src/sync.rs`.
mod sync {
    pub use loom::cell::UnsafeCell;
    pub use loom::sync::Arc;
    pub use loom::sync::atomic::{AtomicUsize, Ordering, fence};
}

#[path = "../../../drivers/src/spsc.rs"]
pub mod spsc;

/// A ring whose indices are about to wrap.
pub fn ring_near_wrap<T: Send>(capacity: usize) -> (spsc::Producer<T>, spsc::Consumer<T>) {
    spsc::ring_from(capacity, usize::MAX)
}
