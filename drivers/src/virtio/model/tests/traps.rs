//! The fifteen traps NIC drivers fall into, each on split and on packed rings.

use std::time::{Duration, Instant};

use super::*;
use crate::nic::fault::{Fault as PortFault, Side};

/// A device that completes nothing from now on, noticed.
fn hang(bench: &mut Bench, n: usize) {
    bench.sim.set_fault(Some(Fault::Hang));
    let mut burst = Burst::new();
    for n in 0..n {
        let packet = bench.frame(n, 64);
        burst.push(packet).unwrap();
    }
    bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
    let end = Instant::now() + Duration::from_secs(60);
    while bench.nic.health() == Health::Ok {
        bench.sim.step();
        bench.queues.tx[0].poll_control();
        assert!(Instant::now() < end);
    }
}

#[test]
fn trap_01_completion_is_not_taken_before_it_is_shown() {
    for offered in ALL_LAYOUTS {
        let mut bench = Bench::new(offered);
        bench.lie(Some(Lie::LateCompletion));
        bench.sim.inject(&frame(7, 200));
        bench.sim.step();
        let mut burst = Burst::new();
        assert_eq!(bench.queues.rx[0].rx_burst(&mut bench.cache, &mut burst), 0);
        assert_eq!(bench.receive(1), [frame(7, 200)]);
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_01_index_shown_before_its_entry_stops_the_port() {
    let mut bench = Bench::new(OFFERED);
    assert!(bench.receive_lie(Lie::LateEntry).is_empty());
    assert!(bench.reason().contains("0xffffffff"), "entries are all ones until they are written");
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn trap_02_length_beyond_the_buffer_stops_the_port_and_a_restart_heals_it() {
    for offered in ALL_LAYOUTS {
        for lie in [2061, u16::MAX] {
            let mut bench = Bench::new(offered);
            assert!(bench.receive_with(Fault::GarbageLength(lie)).is_empty());
            let Some(PortFault::Garbage { side: Side::Rx, queue: 0, value, .. }) = bench.nic.fault() else {
                panic!("{:?}", bench.nic.fault())
            };
            assert_eq!(value, u64::from(lie));
            assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
            bench.sim.inject(&frame(1, 64));
            assert!(bench.receive(3).is_empty(), "nothing is read any more");
            bench.restart();
            bench.works();
            bench.finish();
        }
    }
}

#[test]
fn trap_02_length_of_no_frame_drops_the_frame_only() {
    for offered in ALL_LAYOUTS {
        for len in [0, 11, 12] {
            let mut bench = Bench::new(offered);
            assert!(bench.receive_with(Fault::GarbageLength(len)).is_empty());
            assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
            bench.works();
            bench.finish();
        }
    }
}

#[test]
fn trap_02_frame_that_never_ends_goes_home_at_the_stop() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        assert!(bench.receive_lie(Lie::NumBuffers(3)).is_empty());
        assert_eq!(bench.nic.health(), Health::Ok);
        bench.finish();
        let mut bench = Bench::new(offered);
        assert!(bench.receive_lie(Lie::NumBuffers(34)).is_empty());
        assert!(bench.reason().contains("more buffers than any can have (0x22)"), "{}", bench.reason());
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_03_completion_of_an_id_out_of_range_stops_the_port() {
    for offered in ALL_LAYOUTS {
        for id in [256, 0x1_0000, u32::MAX] {
            if offered & feature::RING_PACKED != 0 && id > 0xffff {
                continue; // its ids have 16 bits
            }
            let mut bench = Bench::new(offered);
            assert!(bench.receive_lie(Lie::ForeignId(id)).is_empty());
            assert!(bench.reason().contains(&format!("beyond the ring was completed ({id:#x})")));
            bench.restart();
            bench.works();
            bench.finish();
        }
    }
}

#[test]
fn trap_03_completion_of_an_id_never_posted_stops_the_port() {
    for offered in ALL_LAYOUTS {
        let mut bench = Bench::new(offered);
        bench.lie(Some(Lie::ForeignId(200)));
        bench.send(1, 64);
        bench.send(1, 64);
        assert!(matches!(
            bench.nic.fault(),
            Some(PortFault::Garbage { side: Side::Tx, queue: 0, value: 200, .. })
        ));
        bench.send(5, 64);
        assert_eq!(bench.tx_drops(DropReason::DeviceError), 6, "taken and counted until the restart");
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_03_index_jump_stops_the_port_or_is_not_looked_at() {
    for jump in [300, 40_000, u16::MAX] {
        let mut bench = Bench::new(OFFERED);
        assert!(bench.receive_with(Fault::IndexJump(jump)).is_empty());
        assert!(bench.reason().contains("index jumped"));
        bench.restart();
        bench.works();
        bench.finish();
        // A packed ring has no index: what is written further on is not its turn.
        let mut bench = Bench::new(PACKED);
        assert!(bench.receive_with(Fault::IndexJump(jump)).is_empty());
        assert_eq!(bench.nic.health(), Health::Ok);
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_04_hung_transmitter_is_noticed_counted_and_restarted() {
    for offered in ALL_LAYOUTS {
        let mut bench = Bench::unstarted(offered);
        bench.nic.set_tx_limit(Duration::from_millis(2));
        bench.start();
        hang(&mut bench, 3);
        assert_eq!(bench.nic.fault(), Some(PortFault::TxHang { queue: 0, n_descriptors: 3 }));
        bench.send(2, 64);
        assert_eq!(bench.tx_drops(DropReason::TxTimeout), 2);
        bench.nic.set_tx_limit(Duration::from_secs(5));
        bench.sim.set_fault(None);
        bench.restart();
        assert_eq!(bench.tx_drops(DropReason::TxTimeout), 5, "those the device had as well");
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_04_frames_kept_without_a_link_are_no_hang() {
    let mut bench = Bench::unstarted(OFFERED);
    bench.nic.set_tx_limit(Duration::from_millis(1));
    bench.start();
    bench.sim.set_fault(Some(Fault::Hang));
    let mut burst = Burst::new();
    let packet = bench.frame(0, 64);
    burst.push(packet).unwrap();
    bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
    bench.model(|model| model.set_link(false));
    bench.nic.link();
    std::thread::sleep(Duration::from_millis(3));
    bench.queues.tx[0].poll_control();
    assert_eq!(bench.nic.health(), Health::Ok);
    bench.finish();
}

#[test]
fn trap_05_pulled_device_is_gone_and_gives_its_buffers_back() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        bench.send(8, 64);
        bench.sim.set_fault(Some(Fault::Gone));
        assert!(matches!(bench.nic.health(), Health::Gone(_)));
        bench.stop();
        let error = bench.start_error();
        assert!(error.contains("gone"), "{error}");
        bench.finish();
    }
}

#[test]
fn trap_06_counts_go_on_over_restarts_and_have_one_reader() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        for round in 1..=3 {
            bench.send(10, 64);
            (0..10).for_each(|n| bench.sim.inject(&frame(n, 96)));
            bench.receive(2);
            let (rx, tx) = (bench.queues.rx[0].stats(), bench.queues.tx[0].stats());
            assert_eq!((rx.packets.get(), rx.bytes.get()), (10 * round, 960 * round));
            assert_eq!((tx.packets.get(), tx.bytes.get()), (10 * round, 640 * round));
            assert_eq!(bench.counter("starts"), round);
            bench.restart();
        }
        bench.finish();
    }
}

#[test]
fn trap_07_device_whose_memory_decoding_went_off_is_started_anew() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        bench.sim.set_fault(Some(Fault::Deaf));
        assert!(bench.reason().contains("memory decoding was off"));
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_08_device_dropped_while_started_is_reset_and_does_no_dma() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        bench.send(4, 64);
        let Bench { nic, sim, pool, cache, queues, .. } = bench;
        drop(nic);
        let status = sim.lock().status();
        assert_eq!((status, sim.bus_master()), (0, false));
        drop((queues, cache));
        assert_eq!(pool.counts().out, 0);
    }
}

#[test]
fn trap_08_halves_dropped_before_the_stop_keep_their_buffers_until_the_reset() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        let before = bench.pool.counts().out;
        bench.queues = Queues::default();
        assert_eq!(bench.pool.counts().out, before, "the device may still write to them");
        (0..10).for_each(|n| bench.sim.inject(&frame(n, 64)));
        bench.sim.step();
        bench.finish();
    }
}

#[test]
fn trap_08_device_that_does_not_reset_loses_its_bus() {
    for offered in LAYOUTS {
        let mut bench = Bench::new(offered);
        bench.sim.set_fault(Some(Fault::NeverResets));
        bench.stop();
        assert!(!bench.sim.bus_master());
        let error = bench.start_error();
        assert!(error.contains("device_status & 0x000000ff"), "{error}");
        assert!(error.contains("it reads 0x0000000f"), "{error}");
        bench.finish();
    }
}

#[test]
fn trap_09_rings_are_where_the_device_reaches_them_and_not_in_the_msi_window() {
    for offered in LAYOUTS {
        let bench = Bench::new(offered);
        for queue in 0..3 {
            let [desc, driver, device] = bench.model(|model| model.ring_addresses(queue));
            assert!(desc.is_multiple_of(64) && driver.is_multiple_of(2) && device.is_multiple_of(4));
            for at in [desc, driver, device] {
                assert!(!(0xfee0_0000..0xfef0_0000).contains(&at) && at < 1 << 48 && at > 0, "{at:#x}");
            }
        }
        bench.finish();
    }
}

#[test]
fn trap_10_all_descriptors_are_used_and_full_rings_leave_frames_with_the_caller() {
    for offered in ALL_LAYOUTS {
        let mut bench = Bench::new(offered);
        let mut burst = Burst::new();
        let mut sent = 0;
        for _ in 0..10 {
            while burst.room() > 0 {
                let packet = bench.frame(0, 64);
                burst.push(packet).unwrap();
            }
            sent += bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
        }
        assert_eq!((sent, burst.len()), (256, 32), "the ring has 256 descriptors");
        bench.sim.step();
        assert_eq!(bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst), 32);
        bench.finish();
    }
}

#[test]
fn trap_10_odd_and_huge_ring_sizes_are_cut_to_a_power_of_two() {
    for layout in LAYOUTS {
        for (offered, n_in_ring) in [(2u16, 2), (100, 64), (32_768, 1024)] {
            let mut bench = Bench::prepared(|model| {
                model.offer(layout);
                model.set_ring_size(offered);
            });
            bench.start();
            (0..1100).for_each(|n| bench.sim.inject(&frame(n, 64)));
            bench.sim.step();
            assert_eq!(1100 - bench.sim.waiting_on_wire(), n_in_ring);
            bench.finish();
        }
    }
}

#[test]
fn trap_11_ring_layout_is_the_one_the_device_has_confirmed() {
    for offered in ALL_LAYOUTS {
        let mut bench = Bench::new(offered);
        assert_eq!(
            bench.model(|model| model.accepted()) & feature::RING_PACKED,
            offered & feature::RING_PACKED
        );
        bench.works();
        // Another device in its place at the next start, as after a live migration: the other layout.
        bench.stop();
        bench.model(|model| model.offer(offered ^ feature::RING_PACKED));
        bench.start();
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_11_layout_that_is_refused_is_an_error() {
    for offered in LAYOUTS {
        let mut bench = Bench::unstarted(offered);
        bench.lie(Some(Lie::RefusesFeatures));
        let error = bench.start_error();
        assert!(error.contains("refuses the features"), "{error}");
        bench.lie(None);
        bench.start();
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_12_device_without_a_valid_address_gets_a_random_one() {
    for (offered, own) in
        [(OFFERED & !feature::MAC, MAC), (OFFERED, MacAddr([0; 6])), (PACKED, MacAddr([1; 6]))]
    {
        let space = DmaSpace::new();
        let (function, sim) = super::super::new(&space, own);
        sim.lock().offer(offered);
        let mut nic = net::open(function, &space).unwrap();
        let MacAddr([first, ..]) = nic.mac().unwrap();
        assert_eq!(first & 3, 2, "locally administered, of one station");
        assert!(nic.device_counters().contains(&("invalid_mac", 1)));
    }
}

#[test]
fn trap_13_queues_raise_no_interrupts_and_the_link_raises_one() {
    for offered in LAYOUTS {
        let mut bench = Bench::unstarted(offered | feature::MQ);
        bench.n_pairs = 2;
        bench.start();
        assert_eq!(bench.model(|model| model.queue_vectors()), [0xffff; N_QUEUES]);
        let [_, driver, _] = bench.model(|model| model.ring_addresses(0));
        let wish: [u8; 4] = bench.model(|model| model.card.read(driver));
        let wish = match offered & feature::RING_PACKED {
            0 => [wish[0], wish[1]],
            _ => [wish[2], wish[3]],
        };
        assert_eq!(wish, [1, 0], "AVAIL_F_NO_INTERRUPT, RING_EVENT_FLAGS_DISABLE");
        assert_eq!(bench.model(|model| model.config_vector), 0);
        bench.finish();
    }
}

#[test]
fn trap_14_missing_carrier_is_a_reason_and_not_silence() {
    for offered in LAYOUTS {
        let mut bench = Bench::prepared(|model| {
            model.offer(offered);
            model.set_link(false);
        });
        assert_eq!(bench.nic.link(), Link::Down { reason: "not started".into() });
        bench.start();
        assert_eq!(bench.nic.link(), Link::Down { reason: "the device reports no carrier".into() });
        bench.finish();
    }
}

#[test]
fn trap_15_features_never_wanted_are_never_accepted() {
    for n_pairs in [1, 2] {
        let mut bench = Bench::unstarted(u64::MAX);
        bench.model(|model| model.set_mtu(9000));
        bench.n_pairs = n_pairs;
        bench.start();
        let several = if n_pairs > 1 { 0 } else { feature::MQ | feature::RSS };
        assert_eq!(bench.model(|model| model.accepted()), feature::USED & !several & !feature::IN_ORDER);
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_15_configuration_that_changes_during_the_read_is_read_again() {
    let space = DmaSpace::new();
    let (function, sim) = super::super::new(&space, MAC);
    let new = MacAddr([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    sim.lock().change_mac_during_next_read(new);
    let nic = net::open(function, &space).unwrap();
    assert_eq!(nic.mac(), Some(new), "not half of the old one");
}

#[test]
fn trap_15_configuration_that_never_stands_still_is_an_error() {
    for offered in LAYOUTS {
        let mut bench = Bench::unstarted(offered);
        bench.lie(Some(Lie::RestlessConfig));
        let error = bench.start_error();
        assert!(error.contains("never stands still"), "{error}");
        bench.finish();
    }
}
