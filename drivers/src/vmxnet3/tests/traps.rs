//! What a device can do to its driver, by the numbers of the list that all drivers are held against.

use std::time::{Duration, Instant};

use super::*;
use crate::intel::trials::traps::NarrowIommu;
use crate::nic::fault::Fault as NicFault;

impl Bench {
    /// One frame comes in while the device misbehaves; what the driver makes of it.
    fn receive_with(&mut self, fault: Fault) -> Vec<Vec<u8>> {
        self.model.set_fault(Some(fault));
        self.model.inject(&frame(0, 64));
        self.receive(3)
    }
}

#[test]
fn trap_01_frame_is_whole_once_its_generation_is_seen() {
    let mut bench = Bench::new();
    let running = bench.model.run();
    let end = Instant::now() + Duration::from_secs(60);
    let (mut injected, mut seen) = (0, 0);
    while seen < 3000 {
        if injected < 3000 && injected - seen < 64 {
            bench.model.inject(&frame(injected, 60 + injected % 3000));
            injected += 1;
        }
        for bytes in bench.poll(0) {
            assert_eq!(bytes, frame(seen, 60 + seen % 3000));
            seen += 1;
        }
        assert!(Instant::now() < end, "{seen} of 3000");
    }
    drop(running);
    bench.finish();
}

#[test]
fn trap_01_completion_that_is_written_late_is_not_believed() {
    let mut bench = Bench::new();
    assert!(bench.receive_with(Fault::LateWriteBack).is_empty());
    assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn trap_02_length_zero_or_beyond_the_buffer_drops_the_frame_only() {
    for len in [0, 2049, 0x3fff] {
        let mut bench = Bench::new();
        assert!(bench.receive_with(Fault::GarbageLength(len)).is_empty(), "{len}");
        assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_02_frame_that_never_ends_stops_the_port_and_a_restart_heals_it() {
    let mut bench = Bench::new();
    // Pieces that fill their buffers, and pieces that don't.
    for len in [8192, 9014] {
        bench.model.set_fault(Some(Fault::MissingEnd));
        let before = bench.rx_drops(DropReason::DeviceGarbage);
        (0..3).for_each(|_| bench.model.inject(&frame(0, len)));
        assert!(bench.receive(3).is_empty());
        assert_eq!(bench.rx_drops(DropReason::DeviceGarbage) - before, 1);
        assert!(bench.reason().contains("never ends"), "{:?}", bench.nic.fault());
        bench.model.lock().card().wire.to_nic.clear();
        bench.restart();
        bench.works();
    }
    bench.finish();
}

#[test]
fn damaged_frame_is_dropped_and_counted() {
    let mut bench = Bench::new();
    assert!(bench.receive_with(Fault::Damaged).is_empty());
    assert_eq!(bench.rx_drops(DropReason::DeviceError), 1);
    bench.works();
    bench.finish();
}

#[test]
fn trap_03_receive_completion_out_of_turn_is_not_read_and_stops_the_port() {
    // Another of the ring, one that is not posted, one beyond the ring.
    for ahead in [1, 1023, 4000] {
        let mut bench = Bench::new();
        assert!(bench.receive_with(Fault::IndexJump(ahead)).is_empty());
        assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
        let reason = bench.reason();
        assert!(reason.starts_with("receive queue 0: a descriptor was completed out of turn"), "{reason}");
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_03_transmit_completion_of_what_was_never_posted_frees_nothing_and_stops_the_port() {
    for ahead in [1, 500, 3000] {
        let mut bench = Bench::new();
        let packets = bench.packets(2, 64);
        let out = bench.pool.counts().out;
        bench.burst(0, packets);
        bench.model.set_fault(Some(Fault::IndexJump(ahead)));
        bench.model.step();
        bench.queues.tx[0].poll_control();
        assert_eq!(bench.pool.counts().out, out, "{ahead}");
        let reason = bench.reason();
        assert!(reason.contains("transmit queue 0") && reason.contains("never posted"), "{reason}");
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_04_hung_transmitter_is_noticed_counted_and_restarted() {
    let mut bench = Bench::unstarted();
    bench.nic.set_tx_limit(Duration::from_millis(2));
    bench.start();
    bench.model.set_fault(Some(Fault::Hang));
    let packets = bench.packets(3, 64);
    bench.burst(0, packets);
    let end = Instant::now() + Duration::from_secs(60);
    while bench.nic.health() == Health::Ok {
        bench.model.step();
        bench.queues.tx[0].poll_control();
        assert!(Instant::now() < end);
    }
    assert_eq!(bench.nic.fault(), Some(NicFault::TxHang { queue: 0, n_descriptors: 3 }));
    bench.send(2, 64);
    assert_eq!(bench.tx_drops(DropReason::TxTimeout), 2);
    bench.nic.set_tx_limit(Duration::from_secs(5));
    bench.restart();
    assert_eq!(bench.tx_drops(DropReason::TxTimeout), 5, "those the device had as well");
    bench.works();
    bench.finish();
}

#[test]
fn queue_the_device_has_stopped_is_reported_with_its_error_and_restarted() {
    let mut bench = Bench::with_queues(2);
    bench.model.lock().stop_tx_queue(1, 0x8000_0002);
    assert_eq!(bench.reason(), "the device stopped transmit queue 1: error 0x80000002");
    bench.restart();
    assert_eq!(bench.nic.health(), Health::Ok);
    bench.works();
    bench.finish();
}

#[test]
fn trap_05_pulled_device_is_gone_and_gives_its_buffers_back() {
    let mut bench = Bench::new();
    bench.send(8, 64);
    bench.model.set_fault(Some(Fault::Gone));
    assert!(matches!(bench.nic.health(), Health::Gone(_)));
    (0..20).for_each(|_| drop(bench.nic.link()));
    assert!(!bench.nic.link().is_up());
    assert_eq!(bench.counter("ucastPktsTxOK"), 0, "nothing is taken from a device that is gone");
    bench.stop();
    let error = bench.start_error();
    assert!(error.contains("gone"), "{error}");
    bench.finish();
}

#[test]
fn trap_06_counters_are_summed_over_restarts() {
    let mut bench = Bench::new();
    bench.send(10, 100);
    assert_eq!((bench.counter("ucastPktsTxOK"), bench.counter("ucastBytesTxOK")), (10, 1000));
    bench.model.lock().preset(true, 3, u64::from(u32::MAX) + 1000);
    bench.send(1, 100);
    assert_eq!(bench.counter("ucastBytesTxOK"), u64::from(u32::MAX) + 1100, "64 bits");
    (0..3).for_each(|n| bench.model.inject(&frame(n, 1000)));
    assert_eq!(bench.receive(3).len(), 3);
    bench.restart();
    assert_eq!((bench.counter("ucastPktsRxOK"), bench.counter("ucastPktsTxOK")), (3, 11), "kept");
    bench.send(2, 64);
    assert_eq!(bench.counter("ucastPktsTxOK"), 13);
    bench.finish();
}

#[test]
fn trap_07_device_whose_memory_decoding_went_off_is_started_anew() {
    let mut bench = Bench::new();
    bench.model.set_fault(Some(Fault::Deaf));
    assert!(bench.reason().contains("memory decoding"));
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn trap_08_stopped_device_does_no_dma() {
    let mut bench = Bench::new();
    assert!(bench.model.bus_master() && bench.model.lock().is_active());
    bench.stop();
    assert!(!bench.model.bus_master() && !bench.model.lock().is_active());
    bench.start();
    let Bench { nic, model, pool, cache, queues, .. } = bench;
    drop(nic);
    assert!(!model.bus_master() && !model.lock().is_active(), "dropped while started");
    drop((queues, cache));
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn trap_09_memory_lies_where_the_iommu_can_map_it_and_not_in_the_msi_window() {
    let space = DmaSpace::new();
    let iommu = NarrowIommu::attach(&space);
    let mut bench = Bench::in_space(&space);
    bench.start();
    bench.works();
    iommu.check();
    bench.finish();
}

#[test]
fn trap_10_all_descriptors_but_one_are_used_and_full_rings_leave_frames_with_the_caller() {
    let mut bench = Bench::new();
    assert_eq!(bench.model.lock().available(false), 1023);
    let mut burst = Burst::new();
    let mut sent = 0;
    for _ in 0..20 {
        while burst.room() > 0 {
            let packet = bench.packet(&frame(0, 64));
            burst.push(packet).unwrap();
        }
        sent += bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
    }
    assert_eq!((sent, bench.model.lock().available(true)), (511, 511));
    bench.model.step();
    let left = burst.len();
    assert_eq!(bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst), left);
    bench.finish();
}

#[test]
fn trap_11_configuration_that_does_not_take_is_an_error_that_names_the_register() {
    let mut bench = Bench::unstarted();
    bench.model.lock().refuse_activation(true);
    let error = bench.start_error();
    assert!(error.contains("activation: CMD & 0xffffffff did not become 0x00000000"), "{error}");
    assert!(error.contains("it reads 0x00000001"), "{error}");
    bench.model.lock().refuse_activation(false);
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn trap_12_device_without_a_valid_address_gets_a_random_one() {
    for bad in [MacAddr([0; 6]), MacAddr([0xff; 6])] {
        let space = DmaSpace::new();
        let (function, _model) = model::new(&space, bad);
        let mut nic = open(function, &space).unwrap();
        let mac = nic.mac().unwrap();
        assert_eq!(mac.0[0] & 3, 2, "locally administered, unicast: {mac}");
        assert!(nic.device_counters().contains(&("invalid_mac", 1)));
    }
}

#[test]
fn trap_13_all_vectors_are_masked_before_any_is_enabled() {
    let mut bench = Bench::unstarted();
    assert!(bench.model.writes_to(0) >= 2 && bench.model.writes_to(24 * 8) >= 2, "around the reset");
    bench.model.lock().unmask_all();
    bench.start();
    assert_eq!(bench.model.lock().unmasked(), [0], "only that of events");
    bench.finish();
}

#[test]
fn trap_14_missing_carrier_is_a_reason_and_not_silence() {
    let mut bench = Bench::unstarted();
    assert_eq!(bench.nic.link(), Link::Down { reason: "not started".into() });
    bench.model.lock().set_cable(false);
    bench.start();
    assert_eq!(bench.nic.link(), Link::Down { reason: "the device reports no carrier".into() });
    bench.model.lock().set_cable(true);
    assert!(bench.nic.link().is_up());
    bench.works();
    bench.finish();
}

#[test]
fn trap_15_configuration_the_device_writes_into_its_area_changes_nothing_of_ours() {
    let mut bench = Bench::new();
    bench.model.lock().scribble();
    bench.model.inject(&frame(0, 64));
    assert_eq!(bench.receive(2), [frame(0, 64)]);
    bench.works();
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn reset_that_never_ends_names_register_mask_and_last_value() {
    let mut bench = Bench::new();
    bench.model.set_fault(Some(Fault::NeverResets));
    bench.stop();
    assert!(!bench.model.bus_master(), "what does not reset loses its bus");
    let error = bench.start_error();
    assert!(error.contains("reset: CMD & 0xffffffff did not become 0x00000000"), "{error}");
    bench.model.set_fault(None);
    bench.start();
    bench.works();
    bench.finish();
}
