//! What a device can do to its driver, by the numbers of the list that all drivers are held against.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::dma::{DmaError, DmaMapper, Iova, IovaRange};
use crate::nic::fault::Fault as NicFault;

pub fn trap_01_frame_is_whole_once_its_done_bit_is_seen<S: Subject>() {
    let mut bench = Bench::<S>::new();
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

pub fn trap_01_descriptor_that_is_written_late_costs_its_frame_only<S: Subject>() {
    let mut bench = Bench::<S>::new();
    assert!(bench.receive_with(Fault::LateWriteBack).is_empty());
    assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
    bench.restart();
    bench.works();
    bench.finish();
}

pub fn trap_02_length_zero_or_beyond_the_buffer_drops_the_frame_only<S: Subject>() {
    for len in [0, 2049, 0x4000, u16::MAX] {
        let mut bench = Bench::<S>::new();
        assert!(bench.receive_with(Fault::GarbageLength(len)).is_empty(), "{len}");
        assert_eq!(bench.rx_drops(DropReason::DeviceGarbage), 1);
        bench.works();
        bench.finish();
    }
}

pub fn trap_02_frame_that_never_ends_stops_the_port_and_a_restart_heals_it<S: Subject>() {
    let mut bench = Bench::<S>::new();
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

pub fn damaged_frame_is_dropped_and_counted<S: Subject>() {
    let mut bench = Bench::<S>::new();
    assert!(bench.receive_with(Fault::Damaged).is_empty());
    assert_eq!(bench.rx_drops(DropReason::DeviceError), 1);
    bench.works();
    bench.finish();
}

pub fn trap_03_descriptor_completed_out_of_turn_is_not_read_and_stops_the_port<S: Subject>() {
    let mut bench = Bench::<S>::new();
    // Another of the ring, and the one that is not posted, which the next frame shows.
    for (ahead, n_frames) in [(1, 1), (bench.most_taken(), 2)] {
        bench.model.set_fault(Some(Fault::IndexJump(ahead as u16)));
        (0..n_frames).for_each(|n| bench.model.inject(&frame(n, 64)));
        let mut frames = bench.receive(1);
        let end = Instant::now() + Duration::from_secs(60);
        while bench.nic.health() == Health::Ok {
            frames.extend(bench.poll(0));
            assert!(Instant::now() < end);
        }
        assert!(frames.is_empty());
        assert!(bench.reason().contains("passed over"));
        bench.restart();
        bench.works();
    }
    bench.finish();
}

pub fn trap_04_hung_transmitter_is_noticed_counted_and_restarted<S: Subject>() {
    let mut bench = Bench::<S>::unstarted();
    bench.nic.set_tx_limit(Duration::from_millis(2));
    bench.start();
    bench.model.set_fault(Some(Fault::Hang));
    let mut burst = Burst::new();
    for n in 0..3 {
        let packet = bench.packet(&frame(n, 64));
        burst.push(packet).unwrap();
    }
    bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
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

pub fn trap_05_pulled_device_is_gone_and_gives_its_buffers_back<S: Subject>() {
    let mut bench = Bench::<S>::new();
    bench.send(8, 64);
    bench.model.set_fault(Some(Fault::Gone));
    assert!(matches!(bench.nic.health(), Health::Gone(_)));
    assert!(!bench.nic.link_after_looks(25).is_up());
    bench.stop();
    let error = bench.nic.start(&bench.pool, 1).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    bench.finish();
}

trait Looks {
    fn link_after_looks(&mut self, n: usize) -> Link;
}

impl<D: Device> Looks for D {
    fn link_after_looks(&mut self, n: usize) -> Link {
        (0..n).for_each(|_| drop(self.link()));
        self.link()
    }
}

pub fn trap_06_counters_that_clear_on_read_sum_to_64_bits<S: Subject>() {
    let mut bench = Bench::<S>::new();
    bench.send(10, 100);
    assert_eq!(
        (bench.counter("GPTC"), bench.counter("GOTC"), bench.counter("PTC127")),
        (10, 1000 + 10 * S::COUNTED_FCS, 10)
    );
    S::preset(&mut bench.model.lock(), 0x4090, u32::MAX - 10);
    S::preset(&mut bench.model.lock(), 0x4094, 7);
    bench.send(1, 100);
    let carried = (8u64 << 32) - 11 + 104 + 1040;
    assert_eq!((bench.counter("GPTC"), bench.counter("GOTC")), (11, carried));
    (0..3).for_each(|n| bench.model.inject(&frame(n, 1000)));
    assert_eq!(bench.receive(3).len(), 3);
    bench.restart();
    assert_eq!((bench.counter("GPRC"), bench.counter("GPTC")), (3, 11), "kept over a restart");
    bench.send(2, 64);
    assert_eq!(bench.counter("GPTC"), 13);
    bench.finish();
}

pub fn trap_07_device_whose_memory_decoding_went_off_is_started_anew<S: Subject>() {
    let mut bench = Bench::<S>::new();
    bench.model.set_fault(Some(Fault::Deaf));
    assert!(bench.reason().contains("memory decoding"));
    bench.restart();
    bench.works();
    bench.finish();
}

pub fn trap_08_stopped_device_does_no_dma<S: Subject>() {
    let mut bench = Bench::<S>::new();
    assert_eq!((bench.model.bus_master(), S::is_enabled(&bench.model.lock())), (true, [true; 2]));
    bench.stop();
    assert_eq!((bench.model.bus_master(), S::is_enabled(&bench.model.lock())), (false, [false; 2]));
    bench.start();
    let Bench { nic, model, pool, cache, queues, .. } = bench;
    drop(nic);
    assert_eq!(
        (model.bus_master(), S::is_enabled(&model.lock())),
        (false, [false; 2]),
        "dropped while started"
    );
    drop((queues, cache));
    assert_eq!(pool.counts().out, 0);
}

/// An IOMMU that maps little, on both sides of the window of message interrupts (0xfee00000).
#[derive(Default)]
pub struct NarrowIommu(Mutex<Vec<(u64, u64)>>);

impl NarrowIommu {
    const RANGES: [(u64, u64); 2] = [(0xfd00_0000, 0xfedf_ffff), (0xfef0_0000, 0x1_3fff_ffff)];

    /// In front of everything in `space`.
    pub fn attach(space: &DmaSpace) -> Arc<NarrowIommu> {
        let iommu = Arc::new(NarrowIommu::default());
        space.attach(iommu.clone()).unwrap();
        iommu
    }

    /// It was asked to map something, and only what it can.
    pub fn check(&self) {
        let mapped = self.0.lock().unwrap();
        let fits = |(first, last): &(u64, u64)| Self::RANGES.iter().any(|r| r.0 <= *first && *last <= r.1);
        assert!(!mapped.is_empty() && mapped.iter().all(fits), "{mapped:x?}");
    }
}

impl DmaMapper for NarrowIommu {
    fn usable_ranges(&self) -> Vec<IovaRange> {
        Self::RANGES.map(|(first, last)| IovaRange { first, last }).to_vec()
    }
    fn map(&self, iova: Iova, _host: NonNull<u8>, len: usize) -> Result<(), DmaError> {
        self.0.lock().unwrap().push((iova.0, iova.0 + len as u64 - 1));
        Ok(())
    }
    fn unmap(&self, _iova: Iova, _len: usize) {}
}

pub fn trap_09_memory_lies_where_the_iommu_can_map_it_and_not_in_the_msi_window<S: Subject>() {
    let space = DmaSpace::new();
    let iommu = NarrowIommu::attach(&space);
    let (function, model) = crate::nic::model::new(&space, |memory| S::model(memory, MAC));
    let mut bench = Bench::<S>::of(S::open(function, &space).unwrap(), model, &space);
    bench.start();
    bench.works();
    iommu.check();
    bench.finish();
}

pub fn trap_10_all_descriptors_but_one_are_used_and_full_rings_leave_frames_with_the_caller<S: Subject>() {
    let mut bench = Bench::<S>::new();
    let n_all = bench.most_taken();
    assert_eq!(S::available(&bench.model.lock(), false) as usize, n_all);
    let mut burst = Burst::new();
    let mut sent = 0;
    for _ in 0..n_all / BURST + 4 {
        while burst.room() > 0 {
            let packet = bench.packet(&frame(0, 64));
            burst.push(packet).unwrap();
        }
        sent += bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst);
    }
    assert_eq!((sent, S::available(&bench.model.lock(), true) as usize), (n_all, n_all));
    bench.model.step();
    let left = burst.len();
    assert_eq!(bench.queues.tx[0].tx_burst(&mut bench.cache, &mut burst), left);
    bench.finish();
}

pub fn trap_11_descriptor_format_that_does_not_take_is_an_error_that_names_the_register<S: Subject>() {
    let mut bench = Bench::<S>::unstarted();
    S::stick_format(&mut bench.model.lock(), true);
    let error = bench.nic.start(&bench.pool, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(S::FORMAT) && error.contains("it reads 0x00000000"), "{error}");
    S::stick_format(&mut bench.model.lock(), false);
    bench.start();
    bench.works();
    bench.finish();
}

pub fn trap_12_card_without_a_valid_address_gets_a_random_one<S: Subject>() {
    for bad in [MacAddr([0; 6]), MacAddr([0xff; 6])] {
        let space = DmaSpace::new();
        let (function, _model) = crate::nic::model::new(&space, |memory| S::model(memory, bad));
        let mut nic = S::open(function, &space).unwrap();
        let mac = nic.mac().unwrap();
        assert_eq!(mac.0[0] & 3, 2, "locally administered, unicast: {mac}");
        assert!(nic.device_counters().contains(&("invalid_mac", 1)));
    }
}

pub fn trap_13_all_interrupts_are_masked_before_vectors_are_enabled<S: Subject>() {
    let mut bench = Bench::<S>::unstarted();
    for register in S::MASKS {
        assert!(bench.model.writes_to(*register) >= 2, "before and after the reset");
    }
    S::unmask(&mut bench.model.lock());
    bench.start();
    assert_eq!(S::masks(&bench.model.lock()), S::LINK_MASKS, "only the link's");
    bench.finish();
}

pub fn trap_14_missing_carrier_is_a_reason_and_not_silence<S: Subject>() {
    let mut bench = Bench::<S>::unstarted();
    assert_eq!(bench.nic.link(), Link::Down { reason: "not started".into() });
    S::set_cable(&mut bench.model.lock(), false);
    bench.start();
    assert_eq!(bench.nic.link_after_looks(25), Link::Down { reason: "no carrier".into() });
    S::set_cable(&mut bench.model.lock(), true);
    assert!(bench.nic.link_after_looks(25).is_up());
    bench.works();
    bench.finish();
}

pub fn reset_that_never_ends_names_register_mask_and_last_value<S: Subject>() {
    let mut bench = Bench::<S>::new();
    bench.model.set_fault(Some(Fault::NeverResets));
    bench.stop();
    assert!(!bench.model.bus_master(), "what does not reset loses its bus");
    let error = bench.nic.start(&bench.pool, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(S::RESET_LATE), "{error}");
    bench.model.set_fault(None);
    bench.start();
    bench.works();
    bench.finish();
}

pub fn card_is_opened_by_its_id<S: Subject>() {
    let space = DmaSpace::new();
    let (function, _model) = crate::nic::model::new(&space, |memory| S::model(memory, MAC));
    let nic = crate::nic::open(function, &space).unwrap();
    assert_eq!((nic.info().driver, nic.mac()), (S::DRIVER, Some(MAC)));
}
