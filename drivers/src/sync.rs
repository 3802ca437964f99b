//! What the sharing primitives are built from: the standard library's types under the names loom
//! gives its own, so that `tests/loom` can compile the very same source against loom.

pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// The standard cell, opened as loom's is: the pointer lives for one closure.
#[repr(transparent)]
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    /// A cell around `value`.
    pub const fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// Hands the pointer to `f`. Whether it may be used is for the caller to prove.
    #[inline(always)]
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
