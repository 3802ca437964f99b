//! A burst allocates nothing: counted, on plain and on awkward chains.

mod support;

use spp_counting::heap_calls;
use spp_drivers::Burst;
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::{FromGuest, ToGuest};
use support::*;

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
    let ((), n) = heap_calls(|| {
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
    let ((), n) = heap_calls(|| assert_eq!(half.tx_burst(cache, &mut burst), 32));
    assert_eq!(n, 0);
    assert_eq!(bench.take_used().len(), 16 + 16 * 3);
}

#[test]
fn passing_a_burst_from_guest_to_guest_allocates_nothing() {
    let mut from: Bench<FromGuest> = Bench::new(256, 65_530, features(false, true));
    let mut to: Bench<ToGuest> = Bench::new(256, 65_530, features(false, true));
    for i in 0..32u16 {
        from.offer_frame(i, &frame(60 + 40 * usize::from(i), 0));
        to.memory.desc(DESC, i, BUFFERS + 0x800 * u64::from(i), 1526, WRITE, 0);
        to.put_head(i);
    }
    to.publish();
    let (half, to_half) = (&mut from.half, &mut to.half);
    let (passed, n) = heap_calls(|| half.rx_into(to_half));
    assert_eq!((passed.map(|passed| passed.packets), n), (Some(32), 0));
    assert_eq!((from.take_used().len(), to.take_used().len()), (32, 32));
}
