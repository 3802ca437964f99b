// UNSAFETY: the instruction takes an address.
//! A hint to the caches. Any thread.

use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Has the first cache line of `value` fetched while the caller goes on.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    let line = std::ptr::from_ref(value).cast::<i8>();
    // SAFETY: a prefetch has no effect but on caches, for any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line) }
}
