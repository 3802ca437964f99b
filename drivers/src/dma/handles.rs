//! The count behind [`share`](super::share): how many handles of a segment there are, and who is the last.
//!
//! Touched by every core that has a handle. The order is `Arc`'s: counting up is relaxed, since it needs a handle, which
//! keeps the count from reaching zero; counting down releases the reads of this handle; who finds itself the last one
//! acquires them all, and only then owns the slot and its side table entry again. `tests/loom` compiles this very file
//! against loom and tries every interleaving.

use crate::sync::{AtomicU32, Ordering, fence};

/// More handles than memory could hold: a caller leaks them.
const MAX_HANDLES: u32 = i32::MAX as u32;

/// The count of one segment; means something only while the segment is shared.
#[derive(Default)]
pub struct Handles(AtomicU32);

impl Handles {
    /// Two handles, where there was one that nobody counted.
    #[inline(always)]
    pub fn start(&self) {
        // Nobody else has the slot; the new handle's way to another core orders this store before its use.
        self.0.store(2, Ordering::Relaxed);
    }

    /// One more, made from one of them.
    #[inline(always)]
    pub fn add(&self) {
        if self.0.fetch_add(1, Ordering::Relaxed) >= MAX_HANDLES {
            std::process::abort(); // as Arc does: a count that wraps would free what is in use
        }
    }

    /// Whether the caller's handle is the only one left: then it has seen the end of what others did with theirs.
    #[inline(always)]
    pub fn is_only(&self) -> bool {
        self.0.load(Ordering::Acquire) == 1
    }

    /// Counts the caller's handle out; true when it was the last one, whose owner may write from then on.
    #[inline(always)]
    pub fn remove(&self) -> bool {
        if self.0.fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }
}
