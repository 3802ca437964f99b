//! A counting allocator proves that bursts of the drivers take no memory from the heap.

use spp_counting::heap_calls;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::e1000::model::{Chip, E1000Model};
use spp_drivers::nic::model;
use spp_drivers::port::Device;
use spp_drivers::virtio::regs::feature;
use spp_drivers::virtio::{self, net};
use spp_drivers::{Burst, MacAddr, e1000};

#[test]
fn the_counter_counts() {
    let (kept, calls) = heap_calls(|| Box::new(std::hint::black_box(7)));
    assert_eq!((*kept, calls), (7, 1));
}

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// Echoes bursts; `inject` puts a frame on the wire, `step` lets the device work. In the second half tags are asked for.
fn bursts_take_nothing(nic: &mut dyn Device, space: &DmaSpace, inject: &dyn Fn(&[u8]), step: &dyn Fn()) {
    let pool = Pool::new(space, PoolConfig { n_buffers: 2048 }).unwrap();
    let mut cache = pool.cache();
    let mut queues = nic.start(&pool, 1).unwrap();
    nic.set_promiscuous(true).unwrap();
    let (mut received, mut total) = (0, 0);
    for round in 0..200 {
        // One frame in eight is long: a chain of two buffers, in both directions.
        for n in 0..32 {
            let mut frame = vec![2 * n; if round % 8 == 0 { 3000 } else { 64 }];
            if n % 4 == 0 {
                frame[12..14].copy_from_slice(&[0x81, 0]);
            }
            inject(&frame);
        }
        // The first rounds in software, where the control half has not looked yet.
        if round == 100 {
            queues.rx[0].strip_vlan(true);
            queues.tx[0].insert_vlan(Some(100));
        } else if round == 120 {
            nic.link();
        }
        step();
        let mut burst = Burst::new();
        let (n, calls) = heap_calls(|| {
            let n = queues.rx[0].rx_burst(&mut cache, &mut burst);
            queues.tx[0].tx_burst(&mut cache, &mut burst);
            n
        });
        received += n;
        // The first round is the models': they begin to count doorbells.
        total += if round > 0 { calls } else { 0 };
        assert!(burst.is_empty());
        step();
    }
    assert!(received > 5000, "{received} frames were moved");
    assert_eq!(total, 0);
    nic.stop(queues);
}

#[test]
fn bursts_of_virtio_net_take_and_give_no_heap_memory() {
    let (split, packed) = (virtio::model::OFFERED, virtio::model::OFFERED | feature::RING_PACKED);
    let in_order = |layout: u64| (layout | feature::IN_ORDER) & !feature::MRG_RXBUF;
    for offered in [split, packed, in_order(split), in_order(packed)] {
        let space = DmaSpace::new();
        let (function, device) = virtio::model::new(&space, MAC);
        device.lock().offer(offered);
        let mut nic = net::open(function, &space).unwrap();
        bursts_take_nothing(&mut nic, &space, &|frame| device.inject(frame), &|| device.step());
        assert_eq!(nic.features(), offered);
    }
}

#[test]
fn bursts_of_intels_cards_take_and_give_no_heap_memory() {
    let space = DmaSpace::new();
    let (function, device) = model::new(&space, |memory| E1000Model::new(memory, Chip::I82574, MAC));
    let mut nic = e1000::open_82574(function, &space).unwrap();
    bursts_take_nothing(&mut nic, &space, &|frame| device.inject(frame), &|| device.step());
}
