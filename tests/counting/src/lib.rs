// UNSAFETY: a global allocator is an unsafe trait.
//! The system's allocator, counting its calls by thread: whoever links this crate can prove that a piece of work
//! takes no memory from the heap and gives none back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // A thread that ends may free memory when its counter is gone already.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches a thread-local without destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the heap this thread has made so far.
pub fn heap_calls_so_far() -> u64 {
    CALLS.get()
}

/// Runs `work` and returns how often it went to the heap on this thread, to take or to give.
pub fn heap_calls<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = heap_calls_so_far();
    let result = work();
    (result, heap_calls_so_far() - before)
}
