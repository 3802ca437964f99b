//! A counting allocator proves that bursts of the virtio-net driver take no memory from the heap.

use spp_counting::heap_calls;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::Device;
use spp_drivers::virtio::{net, sim};
use spp_drivers::{Burst, MacAddr};

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
