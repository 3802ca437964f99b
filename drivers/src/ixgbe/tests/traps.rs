//! What cards do wrong, and waits that end: one test for each trap.

use super::*;
use crate::intel::trials::traps::NarrowIommu;

#[test]
fn trap_01_frame_is_not_taken_before_its_late_write_back() {
    let mut bench = Bench::new();
    bench.chip(|chip| chip.set_fault(Some(Fault::LateWriteBack(3))));
    bench.inject(&[frame(5, 200)]);
    assert_eq!(bench.receive(3).len(), 0);
    bench.chip(|chip| chip.set_fault(None));
    assert_eq!(bench.receive(2), [frame(5, 200)]);
    bench.works();
    bench.finish();
}

#[test]
fn trap_02_length_beyond_the_buffer_is_dropped_and_counted() {
    for lie in [2049, 0xffff, 0] {
        let mut bench = Bench::new();
        assert_eq!(bench.receive_with(Fault::GarbageLength(lie)), [[0u8; 0]; 0], "{lie}");
        assert_eq!(bench.drops(DropReason::DeviceGarbage), 1, "{lie}");
        bench.works();
        bench.finish();
    }
}

#[test]
fn trap_02_frame_that_never_ends_is_dropped_or_stops_the_port() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.receive_with(Fault::MissingEop);
    }
    assert!(bench.drops(DropReason::DeviceGarbage) >= 1);
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn trap_03_completion_never_posted_reads_nothing_outside() {
    for fault in [Fault::NeverPosted, Fault::IndexJump(7), Fault::IndexJump(600)] {
        let mut bench = Bench::new();
        bench.receive_with(fault);
        for n in 0..30 {
            bench.inject(&(0..40).map(|i| frame(n * 40 + i, 64)).collect::<Vec<_>>());
            bench.receive(3);
        }
        bench.restart();
        bench.works();
        // The card has overwritten a buffer's address: where it then goes astray the IOMMU stops it.
        bench.close();
    }
}

#[test]
fn trap_04_hung_transmitter_is_noticed_and_a_restart_cures_it() {
    let mut bench = Bench::unstarted(0x10f7, |_| {});
    bench.nic.set_tx_limit(Duration::from_millis(20));
    bench.queues = bench.nic.start(&bench.pool, 1).unwrap();
    bench.chip(|chip| chip.set_fault(Some(Fault::TxHang)));
    bench.send(&[frame(0, 64)]);
    let end = Instant::now() + Duration::from_secs(60);
    while bench.nic.health() == Health::Ok && Instant::now() < end {
        bench.queues.tx[0].poll_control();
    }
    assert!(bench.reason().contains("queue 0"), "{}", bench.reason());
    let stats = bench.queues.tx[0].stats();
    bench.restart();
    assert_eq!(stats.drops(DropReason::TxTimeout), 1, "the frame in the ring is counted");
    bench.works();
    bench.finish();
}

#[test]
fn trap_05_all_ones_are_a_card_that_is_gone() {
    let mut bench = Bench::new();
    bench.card.set_fault(Some(CommonFault::Gone));
    assert!(matches!(bench.nic.health(), Health::Gone(_)));
    bench.nic.stop(std::mem::take(&mut bench.queues));
    assert!(bench.nic.start(&bench.pool, 1).is_err());
    drop((bench.nic, bench.cache));
    assert_eq!(bench.pool.counts().out, 0);
}

#[test]
fn trap_06_counters_that_clear_when_read_are_summed() {
    let mut bench = Bench::new();
    for round in 1..=3 {
        let frames: Vec<_> = (0..10).map(|n| frame(n, 96)).collect();
        bench.send(&frames);
        bench.inject(&frames);
        bench.receive(2);
        let names = ["GPRC", "GPTC", "GORC", "GOTC", "PRC127", "PTC127", "QPRC"];
        let got = names.map(|name| bench.counter(name));
        assert_eq!(got, [10, 10, 1000, 1000, 10, 10, 10].map(|n| n * round));
    }
    bench.restart();
    assert_eq!(bench.counter("GPRC"), 30, "a restart loses nothing");
    bench.finish();
}

#[test]
fn trap_07_card_that_was_deaf_for_a_while_comes_back() {
    let mut bench = Bench::new();
    bench.card.set_fault(Some(CommonFault::Deaf));
    assert!(bench.reason().contains("all ones"));
    bench.restart();
    bench.works();
    bench.finish();
}

#[test]
fn trap_08_no_dma_is_left_on_by_a_driver_that_vanishes() {
    let bench = Bench::new();
    let Bench { nic, card, pool, cache, queues } = bench;
    drop(queues);
    drop(nic);
    assert!(!card.bus_master());
    drop(cache);
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn trap_09_memory_lies_where_the_iommu_can_map_it_and_not_in_the_msi_window() {
    let space = DmaSpace::new();
    let iommu = NarrowIommu::attach(&space);
    let mut bench = Bench::in_space(&space, 0x10f7, |_| {});
    bench.queues = bench.nic.start(&bench.pool, 1).unwrap();
    bench.works();
    iommu.check();
    bench.finish();
}

#[test]
fn trap_10_full_ring_leaves_one_descriptor_unused() {
    let mut bench = Bench::new();
    let mut burst = Burst::new();
    let mut sent = 0;
    for _ in 0..20 {
        while burst.room() > 0 {
            let packet = bench.packet(&frame(0, 64));
            burst.push(packet).unwrap();
        }
        sent += bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
    }
    assert_eq!((sent, burst.len()), (511, 32));
    bench.card.step();
    assert_eq!(bench.card.transmitted().len(), 511);
    burst.free_all(&mut bench.cache);
    bench.finish();
}

#[test]
fn trap_11_descriptor_format_is_chosen_and_read_back() {
    let mut bench = Bench::with_queues(0x10f7, 2);
    let format = bench.chip(|chip| [chip.read(0x1014), chip.read(0x1054)]);
    assert_eq!(
        format.map(|value| (value >> 25 & 7, value & 0x1f)),
        [(1, 2); 2],
        "advanced, one buffer of 2 KB"
    );
    assert_eq!(bench.nic.health(), Health::Ok);
    bench.finish();
}

#[test]
fn trap_12_card_without_a_valid_address_gets_a_random_one() {
    let space = DmaSpace::new();
    let chip = Model::new(Card::of_id(0x10f7, [0; 6]));
    let make = |memory: Arc<ModelMemory>| Function::new(Common::new(memory), chip);
    let (function, _card) = crate::nic::model::new(&space, make);
    let nic = open(function, &space).unwrap();
    let MacAddr([first, ..]) = nic.mac().unwrap();
    assert_eq!(first & 3, 2, "locally administered, of one station");
}

#[test]
fn trap_13_interrupts_of_the_driver_before_are_masked() {
    let bench = Bench::unstarted(0x10f7, |chip| {
        chip.write(0x880, 0x7fff_ffff);
        chip.write(0xaa0, u32::MAX);
        chip.write(0xaa4, u32::MAX);
    });
    let masks = bench.chip(|chip| [0x880, 0xaa0, 0xaa4].map(|offset| chip.read(offset)));
    assert_eq!(masks, [0; 3]);
    bench.finish();
}

#[test]
fn trap_14_writes_may_not_overtake_each_other() {
    let mut bench = Bench::with_queues(0x10f7, 2);
    for queue in 0..2 {
        let (rx, tx) =
            bench.chip(|chip| (chip.read(0x100c + queue * 0x40), chip.read(0x600c + queue * 0x40)));
        assert_eq!((rx & (1 << 13 | 1 << 15), tx & 1 << 11), (0, 0), "queue {queue}");
    }
    assert_eq!(bench.nic.link(), UP);
    bench.finish();
}

#[test]
fn trap_14_cage_without_a_module_is_a_reason_not_silence() {
    let mut bench = Bench::unstarted(0x10fb, |chip| chip.set_module(None));
    bench.queues = bench.nic.start(&bench.pool, 1).unwrap();
    assert_eq!(bench.down(), "no SFP+ module");
    bench.chip(|chip| chip.set_module(Some(Module::IntelSr)));
    bench.card.step();
    assert_eq!(bench.nic.link(), UP);
    bench.works();
    bench.finish();
}

#[test]
fn waits_that_time_out_name_register_mask_and_value() {
    for (fault, word) in
        [(Fault::NeverResets, "CTRL & 0x04000008"), (Fault::QueueNeverEnables, "DCTL & 0x02000000")]
    {
        let mut bench = Bench::unstarted(0x10f7, |_| {});
        bench.chip(|chip| chip.set_fault(Some(fault)));
        let error = bench.nic.start(&bench.pool, 1).err().unwrap().to_string();
        assert!(error.contains(word) && error.contains("it reads 0x"), "{error}");
        bench.restart();
        bench.works();
        bench.finish();
    }
}

#[test]
fn firmware_that_keeps_the_semaphore_is_waited_for_with_a_deadline() {
    let mut bench = Bench::unstarted(0x10fb, |chip| chip.set_cable(false));
    bench.chip(|chip| chip.set_fault(Some(Fault::FirmwareHoldsLock)));
    bench.queues = bench.nic.start(&bench.pool, 1).unwrap();
    assert!(bench.down().contains("SWSM & 0x00000001"), "{}", bench.down());
    bench.restart();
    assert_eq!(bench.down(), "no signal from the other end");
    bench.finish();
}
