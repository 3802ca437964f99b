//! Devices that lie, hang, vanish, or offer what they should not.

use std::time::{Duration, Instant};

use super::*;
use crate::virtio::NetFault;
use crate::virtio::ring::RingFault;

#[test]
fn length_beyond_the_buffer_stops_the_port_and_a_restart_heals_it() {
    let mut bench = Bench::new();
    assert!(bench.receive_with(Fault::GarbageLength(2061)).is_empty());
    let fault = bench.nic.fault().unwrap();
    assert!(matches!(
        fault,
        NetFault::Rx(RingFault::LengthOverflow { len_bytes: 2061, room_bytes: 2060, .. })
    ));
    assert!(bench.reason().contains("2061 bytes"));
    assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
    bench.sim.inject(&frame(1, 64));
    assert!(bench.receive(3).is_empty(), "nothing is read any more");
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn length_without_a_whole_header_drops_the_frame_only() {
    for len in [0, 11] {
        let mut bench = Bench::new();
        assert!(bench.receive_with(Fault::GarbageLength(len)).is_empty());
        assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
        bench.works();
        bench.finish();
    }
}

#[test]
fn length_of_a_header_alone_drops_the_frame_only() {
    let mut bench = Bench::new();
    assert!(bench.receive_with(Fault::GarbageLength(12)).is_empty());
    assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
    bench.works();
    bench.finish();
}

#[test]
fn completion_of_an_id_out_of_range_stops_the_port() {
    for id in [256, 0x1_0000, u32::MAX] {
        let mut bench = Bench::new();
        assert!(bench.receive_with(Fault::ForeignId(id)).is_empty());
        assert!(bench.reason().contains("completed in a ring of 256"));
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn completion_of_an_id_never_posted_stops_the_port() {
    let mut bench = Bench::new();
    bench.sim.set_fault(Some(Fault::ForeignId(200)));
    bench.send(1, 64);
    bench.send(1, 64);
    assert_eq!(bench.nic.fault(), Some(NetFault::Tx(RingFault::NeverPosted { id: 200 })));
    bench.send(5, 64);
    assert_eq!(bench.tx_drops(DropReason::DeviceError), 6, "taken and counted until the restart");
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn index_jump_stops_the_port() {
    for jump in [300, 40_000, u16::MAX] {
        let mut bench = Bench::new();
        assert!(bench.receive_with(Fault::IndexJump(jump)).is_empty());
        assert!(bench.reason().contains("used index jumped"));
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn index_published_before_its_entry_stops_the_port() {
    let mut bench = Bench::new();
    assert!(bench.receive_with(Fault::LateEntry).is_empty());
    assert!(bench.reason().contains("4294967295"), "entries are all ones until they are written");
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn zero_buffers_claimed_drops_the_frame_only() {
    let mut bench = Bench::new();
    assert!(bench.receive_with(Fault::NumBuffers(0)).is_empty());
    assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
    bench.works();
    bench.finish();
}

#[test]
fn more_buffers_claimed_than_a_frame_can_have_stops_the_port() {
    let mut bench = Bench::new();
    assert!(bench.receive_with(Fault::NumBuffers(34)).is_empty());
    assert_eq!(bench.nic.fault(), Some(NetFault::TooManyBuffers(34)));
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn unfinished_frame_of_several_buffers_goes_home_at_the_stop() {
    let mut bench = Bench::new();
    assert!(bench.receive_with(Fault::NumBuffers(3)).is_empty());
    assert_eq!(bench.nic.health(), Health::Ok);
    bench.finish();
}

#[test]
fn hung_transmitter_is_noticed_counted_and_restarted() {
    let mut bench = Bench::unstarted();
    bench.nic.set_tx_limit(Duration::from_millis(2));
    bench.start();
    bench.sim.set_fault(Some(Fault::Hang));
    let mut burst = Burst::new();
    for n in 0..3 {
        let packet = bench.frame(n, 64);
        burst.push(packet).unwrap();
    }
    bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
    let end = Instant::now() + Duration::from_secs(20);
    while bench.nic.health() == Health::Ok {
        bench.sim.step();
        bench.queues.tx[0].poll_control();
        assert!(Instant::now() < end);
    }
    assert_eq!(bench.nic.fault(), Some(NetFault::TxHang { n_frames: 3 }));
    bench.send(2, 64);
    assert_eq!(bench.tx_drops(DropReason::TxTimeout), 2);
    bench.nic.set_tx_limit(Duration::from_secs(5));
    bench.restart();
    assert_eq!(bench.tx_drops(DropReason::TxTimeout), 5, "those the device had as well");
    bench.works();
    bench.finish();
}

#[test]
fn device_that_asks_for_a_reset_is_restarted() {
    let mut bench = Bench::new();
    bench.sim.need_reset();
    assert!(bench.reason().contains("asks for a reset"));
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn pulled_device_is_gone_and_gives_its_buffers_back() {
    let mut bench = Bench::new();
    bench.send(8, 64);
    bench.sim.set_fault(Some(Fault::Gone));
    assert!(matches!(bench.nic.health(), Health::Gone(_)));
    bench.stop();
    let error = bench.nic.start(&bench.pool, 1).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    bench.finish();
}

#[test]
fn reset_that_never_ends_names_register_mask_and_last_value() {
    let space = DmaSpace::new();
    let (function, sim) = super::new(&space, MAC);
    let mut nic = net::open(function, &space).unwrap();
    let pool = Pool::new(&space, PoolConfig { n_buffers: 512 }).unwrap();
    let queues = nic.start(&pool, 1).unwrap();
    sim.set_fault(Some(Fault::NeverResets));
    nic.stop(queues);
    assert!(!sim.bus_master(), "what does not reset loses its bus");
    assert_eq!(pool.counts().out, 0);
    let error = nic.start(&pool, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("device_status & 0xff") && error.contains("it reads 0x0f"), "{error}");
}

#[test]
fn features_never_wanted_are_never_accepted() {
    let mut bench = Bench::unstarted();
    bench.sim.offer(u64::MAX);
    bench.start();
    assert_eq!(bench.sim.accepted(), feature::USED);
    bench.finish();
}

#[test]
fn control_mode_without_a_control_queue_is_not_accepted() {
    let mut bench = Bench::unstarted();
    bench.sim.offer(feature::VERSION_1 | feature::CTRL_RX | feature::MRG_RXBUF);
    bench.start();
    assert_eq!(bench.sim.accepted(), feature::VERSION_1 | feature::MRG_RXBUF);
    assert_eq!(bench.nic.mac(), None);
    bench.nic.set_promiscuous(true).unwrap();
    bench.works();
    bench.finish();
}

#[test]
fn refused_features_and_legacy_devices_are_errors() {
    let mut bench = Bench::unstarted();
    bench.sim.set_fault(Some(Fault::RefusesFeatures));
    let error = bench.nic.start(&bench.pool, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("refuses the features"), "{error}");
    bench.sim.set_fault(None);
    bench.sim.offer(feature::MAC);
    let error = bench.nic.start(&bench.pool, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("legacy"), "{error}");
    bench.sim.offer(feature::USED);
    bench.sim.set_mtu(1500);
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn configuration_that_changes_during_the_read_is_read_again() {
    let mut bench = Bench::unstarted();
    let new = MacAddr([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    bench.sim.change_mac_during_next_read(new);
    bench.start();
    assert_eq!(bench.nic.mac(), Some(new), "not half of the old one");
    bench.finish();
}

#[test]
fn configuration_that_never_stands_still_is_an_error() {
    let mut bench = Bench::unstarted();
    bench.sim.set_fault(Some(Fault::RestlessConfig));
    let error = bench.nic.start(&bench.pool, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("never stands still"), "{error}");
    bench.finish();
}

#[test]
fn odd_and_huge_ring_sizes_are_cut_to_a_power_of_two() {
    for (offered, n_in_ring) in [(2u16, 2), (100, 64), (32_768, 1024)] {
        let space = DmaSpace::new();
        let (function, sim) = super::new(&space, MAC);
        sim.set_ring_size(offered);
        let mut nic = net::open(function, &space).unwrap();
        let pool = Pool::new(&space, PoolConfig { n_buffers: 2048 }).unwrap();
        let queues = nic.start(&pool, 1).unwrap();
        for n in 0..1100 {
            sim.inject(&frame(n, 64));
        }
        sim.step();
        assert_eq!(1100 - sim.waiting_on_wire(), n_in_ring);
        nic.stop(queues);
        assert_eq!(pool.counts().out, 0);
    }
}

#[test]
fn pool_too_small_for_the_ring_is_an_error_with_the_remedy() {
    let space = DmaSpace::new();
    let (function, _sim) = super::new(&space, MAC);
    let mut nic = net::open(function, &space).unwrap();
    let pool = Pool::new(&space, PoolConfig { n_buffers: 128 }).unwrap();
    let error = nic.start(&pool, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("give the pool more buffers"), "{error}");
    drop(nic);
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn halves_dropped_before_the_stop_keep_their_buffers_until_the_reset() {
    let mut bench = Bench::new();
    let before = bench.pool.counts().out;
    bench.queues = Queues::default();
    assert_eq!(bench.pool.counts().out, before, "the device may still write to them");
    (0..10).for_each(|n| bench.sim.inject(&frame(n, 64)));
    bench.sim.step();
    bench.finish();
}

#[test]
fn device_dropped_while_started_is_reset_first() {
    let mut bench = Bench::new();
    bench.send(4, 64);
    let Bench { nic, sim, pool, cache, queues } = bench;
    drop(nic);
    assert_eq!((sim.status(), sim.bus_master()), (0, false));
    drop((queues, cache));
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn second_start_and_further_queue_pairs_are_refused() {
    let mut bench = Bench::new();
    assert!(bench.nic.start(&bench.pool, 1).is_err());
    bench.stop();
    assert!(bench.nic.start(&bench.pool, 2).is_err());
    bench.start();
    bench.works();
    bench.finish();
}
