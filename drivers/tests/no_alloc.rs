// UNSAFETY: a global allocator is an unsafe trait.
//! A counting allocator proves that bursts of the virtio-net driver take no memory from the heap.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::Device;
use spp_drivers::virtio::{net, sim};
use spp_drivers::{Burst, MacAddr};

struct Counting;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches thread-locals without destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if WATCHED.get() {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if WATCHED.get() {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and returns how often it went to the heap, to take or to give.
fn heap_calls<T>(work: impl FnOnce() -> T) -> (T, u64) {
    ALLOCATIONS.set(0);
    WATCHED.set(true);
    let result = work();
    WATCHED.set(false);
    (result, ALLOCATIONS.get())
}

#[test]
fn the_counter_counts() {
    let (kept, calls) = heap_calls(|| Box::new(std::hint::black_box(7)));
    assert_eq!((*kept, calls), (7, 1));
}

#[test]
fn bursts_take_and_give_no_heap_memory() {
    let space = DmaSpace::new();
    let (function, device) = sim::new(&space, MacAddr([2, 0, 0, 0, 0, 1]));
    let mut nic = net::open(function, &space).unwrap();
    let pool = Pool::new(&space, PoolConfig { n_buffers: 2048 }).unwrap();
    let mut cache = pool.cache();
    let mut queues = nic.start(&pool, 1).unwrap();
    let (mut received, mut total) = (0, 0);
    for round in 0..200 {
        // One frame in eight is long: a chain of two buffers, in both directions.
        for n in 0..32 {
            device.inject(&vec![n; if round % 8 == 0 { 3000 } else { 64 }]);
        }
        device.step();
        let mut burst = Burst::new();
        let (n, calls) = heap_calls(|| {
            let n = queues.rx[0].rx_burst(&mut cache, &mut burst);
            queues.tx[0].tx_burst(&mut cache, &mut burst);
            n
        });
        received += n;
        total += calls;
        assert!(burst.is_empty());
        device.step();
    }
    assert!(received > 5000, "{received} frames were moved");
    assert_eq!(total, 0);
    nic.stop(queues);
}
