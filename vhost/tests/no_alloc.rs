//! A burst allocates nothing: counted, on plain and on awkward chains.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use spp_drivers::Burst;
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::{FromGuest, ToGuest};
use support::*;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocator calls of this thread during `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn receiving_a_burst_allocates_nothing() {
    let mut bench: Bench<FromGuest> = Bench::new(256, 65_530, features(true, true));
    for i in 0..32u16 {
        if i % 2 == 0 {
            bench.offer_frame(i, &frame(60, 0));
        } else {
            // A long chain, 5,000 bytes: three buffers.
            bench.memory.desc(DESC, i, BUFFERS, 12, NEXT, 100 + i);
            bench.memory.desc(DESC, 100 + i, BUFFERS, 5000, 0, 0);
            bench.offer(i);
        }
    }
    let mut burst = Burst::new();
    let Bench { half, cache, .. } = &mut bench;
    let n = allocations(|| {
        assert_eq!(half.rx_burst(cache, &mut burst), 32);
        burst.free_all(cache);
    });
    assert_eq!(n, 0);
}

#[test]
fn sending_a_burst_allocates_nothing() {
    let mut bench: Bench<ToGuest> = Bench::new(256, 65_530, features(true, true));
    for i in 0..128u16 {
        bench.memory.desc(DESC, i, BUFFERS + 0x800 * u64::from(i), 1526, WRITE, 0);
        bench.put_head(i);
    }
    bench.publish();
    let mut burst = Burst::new();
    for i in 0..32 {
        burst.push(packet(&mut bench.cache, if i % 2 == 0 { 60 } else { 4000 }, i as u8)).unwrap();
    }
    let Bench { half, cache, .. } = &mut bench;
    let n = allocations(|| assert_eq!(half.tx_burst(cache, &mut burst), 32));
    assert_eq!(n, 0);
    assert_eq!(bench.take_used().len(), 16 + 16 * 3);
}
