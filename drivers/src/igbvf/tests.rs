//! The true driver over the model: the trials all cards pass, and what only virtual functions have: the mailbox.

use std::sync::Arc;

use super::init::Igbvf;
use super::model::IgbvfModel;
use super::open;
use crate::dma::DmaSpace;
use crate::intel::trials::{Bench, MAC, Nic, Subject, frame, frame_to, trials};
use crate::mac::MacAddr;
use crate::nic::model::{DeviceMemory, Model, ModelBar, ModelFunction};
use crate::port::{Device, Health, Link, PortError};

/// A virtual function, of an I350 or an 82576.
struct Vf<const I350: bool>;

impl<const I350: bool> Subject for Vf<I350> {
    type Model = IgbvfModel;
    type Chip = Igbvf<I350, ModelBar<IgbvfModel>>;
    const DRIVER: &'static str = "igbvf";
    const N_PAIRS: u16 = 1;
    const TAILS: [usize; 2] = [0x2818, 0x3818];
    const MASKS: &'static [usize] = &[0x1528];
    const LINK_MASKS: [u32; 2] = [3, 0];
    const LINK_INTERRUPTS: u64 = 2;
    const FORMAT: &'static str = "SRRCTL & 0x0e00007f";
    const RESET_LATE: &'static str = "V2PMAILBOX & 0x00000020 did not become 0x00000020";

    fn model(memory: Arc<dyn DeviceMemory>, mac: MacAddr) -> IgbvfModel {
        IgbvfModel::new(memory, if I350 { 0x1520 } else { 0x10ca }, mac)
    }
    fn open(function: ModelFunction<IgbvfModel>, space: &DmaSpace) -> Result<Nic<Self>, PortError> {
        open(function, space)
    }
    fn set_cable(model: &mut IgbvfModel, plugged: bool) {
        model.set_cable(plugged);
    }
    fn preset(model: &mut IgbvfModel, offset: usize, value: u32) {
        model.preset(offset, value);
    }
    fn available(model: &IgbvfModel, tx: bool) -> u32 {
        model.queues.available(tx, 0)
    }
    fn is_enabled(model: &IgbvfModel) -> [bool; 2] {
        [false, true].map(|tx| model.queues.is_on(tx))
    }
    fn masks(model: &IgbvfModel) -> [u32; 2] {
        [model.vector_mask(), 0]
    }
    fn unmask(model: &mut IgbvfModel) {
        model.write(0x1524, u32::MAX);
    }
    fn n_tags(model: &IgbvfModel) -> [u64; 2] {
        [model.queues.n_stripped, model.queues.n_inserted]
    }
    fn stick_format(model: &mut IgbvfModel, stuck: bool) {
        model.queues.stuck_format = stuck;
    }
}

type Bench82576 = Bench<Vf<false>>;

trials! {
    Vf<false>:
    frames_of_all_lengths_pass_both_ways
    indices_wrap_after_seventy_thousand_frames
    one_doorbell_a_burst
    frames_wait_in_the_card_while_the_pool_is_empty
    frames_too_short_for_the_card_get_zeros_and_runts_are_dropped
    checksums_the_card_found_right_are_marked_and_wrong_ones_counted
    checksums_left_undone_are_completed_by_the_card
    checksum_the_card_can_not_reach_is_completed_in_software
    long_frame_the_card_does_not_cut_stays_with_the_caller
    link_loss_drops_sent_frames_with_their_reason
    link_change_whose_interrupt_is_lost_is_seen_within_a_second_of_looks
    second_start_and_too_many_queue_pairs_are_refused
    pool_too_small_for_the_ring_is_an_error_with_the_remedy
    halves_dropped_before_the_stop_keep_their_buffers_until_the_reset;
    tags:
    tags_by_the_card_are_those_of_software
    tags_of_frames_under_way_at_a_switch_are_right
    card_that_was_reset_is_asked_for_tags_anew;
    traps:
    trap_01_frame_is_whole_once_its_done_bit_is_seen
    trap_01_descriptor_that_is_written_late_costs_its_frame_only
    trap_02_length_zero_or_beyond_the_buffer_drops_the_frame_only
    trap_02_frame_that_never_ends_stops_the_port_and_a_restart_heals_it
    damaged_frame_is_dropped_and_counted
    trap_03_descriptor_completed_out_of_turn_is_not_read_and_stops_the_port
    trap_04_hung_transmitter_is_noticed_counted_and_restarted
    trap_05_pulled_device_is_gone_and_gives_its_buffers_back
    trap_07_device_whose_memory_decoding_went_off_is_started_anew
    trap_08_stopped_device_does_no_dma
    trap_09_memory_lies_where_the_iommu_can_map_it_and_not_in_the_msi_window
    trap_10_all_descriptors_but_one_are_used_and_full_rings_leave_frames_with_the_caller
    trap_11_descriptor_format_that_does_not_take_is_an_error_that_names_the_register
    trap_12_card_without_a_valid_address_gets_a_random_one
    trap_13_all_interrupts_are_masked_before_vectors_are_enabled
    trap_14_missing_carrier_is_a_reason_and_not_silence
    reset_that_never_ends_names_register_mask_and_last_value
    card_is_opened_by_its_id
}

mod i350 {
    use super::*;

    trials! {
        Vf<true>:
        frames_of_all_lengths_pass_both_ways;
        tags:
        tags_by_the_card_are_those_of_software
            tags_of_frames_under_way_at_a_switch_are_right
        card_that_was_reset_is_asked_for_tags_anew;
        traps:
        card_is_opened_by_its_id
    }
}

fn address(n: u8) -> MacAddr {
    MacAddr([2, 9, 9, 9, 9, n])
}

/// The numbers of those frames, one to each address, that come through.
fn arrive(bench: &mut Bench82576, to: &[MacAddr]) -> Vec<u8> {
    to.iter().enumerate().for_each(|(n, dst)| bench.model.inject(&frame_to(*dst, n, 64)));
    bench.receive(3).into_iter().map(|frame| frame[17]).collect()
}

#[test]
fn addresses_are_asked_for_and_asked_for_again_after_a_restart() {
    let mut bench = Bench82576::new();
    let all = [MAC, address(1), address(2), address(3), address(4), MacAddr([1, 0, 0x5e, 0, 0, 1])];
    assert_eq!(arrive(&mut bench, &all), [0, 5]);
    bench.nic.set_unicast(&[address(1), address(3)]).unwrap();
    assert_eq!(arrive(&mut bench, &all), [0, 1, 3, 5]);
    bench.restart();
    assert_eq!(arrive(&mut bench, &all), [0, 1, 3, 5]);
    bench.nic.set_all_multicast(false).unwrap();
    bench.nic.set_unicast(&[address(2)]).unwrap();
    assert_eq!(arrive(&mut bench, &all), [0, 2]);
    assert_eq!(bench.counter("pf_refusals"), 0);
    bench.finish();
}

#[test]
fn what_the_physical_function_refuses_is_counted_and_the_rest_works() {
    let mut bench = Bench82576::new();
    bench.nic.set_promiscuous(true).unwrap();
    assert_eq!(bench.counter("pf_refusals"), 1);
    let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    assert_eq!(arrive(&mut bench, &[MAC, address(1), group]), [0, 2], "groups are granted still");
    bench.nic.set_promiscuous(false).unwrap();
    bench.nic.set_unicast(&[address(1), address(2), address(3), address(4)]).unwrap();
    assert_eq!(bench.counter("pf_refusals"), 3, "the fourth address, and everything instead of it");
    bench.model.lock().pf.trusts = true;
    bench.restart();
    bench.nic.set_unicast(&(0..20).map(address).collect::<Vec<_>>()).unwrap();
    assert_eq!(arrive(&mut bench, &[address(1), address(99)]), [0, 1]);
    assert_eq!((bench.counter("pf_refusals"), bench.counter("promiscuous_fallbacks")), (3, 1));
    bench.works();
    bench.finish();
}

#[test]
fn function_without_an_address_brings_its_own_and_keeps_it() {
    let space = DmaSpace::new();
    let none = MacAddr([0; 6]);
    let (function, model) = crate::nic::model::new(&space, |memory| IgbvfModel::new(memory, 0x10ca, none));
    let nic = open(function, &space).unwrap();
    let mut bench = Bench82576::of(nic, model, &space);
    let own = bench.nic.mac().unwrap();
    bench.start();
    assert_eq!(bench.model.lock().pf.mac, Some(own));
    bench.restart();
    assert_eq!((bench.nic.mac(), arrive(&mut bench, &[own])), (Some(own), vec![0]));
    assert_eq!(bench.counter("pf_refusals"), 0);
    bench.finish();
}

#[test]
fn tags_the_card_takes_off_are_put_back() {
    let mut bench = Bench82576::new();
    let tagged = |vid: u16, n, len: usize| {
        let mut bytes = frame(n, len);
        let [high, low] = (3 << 13 | vid).to_be_bytes();
        bytes.splice(12..12, [0x81, 0, high, low]);
        bytes
    };
    bench.model.inject(&tagged(100, 1, 64));
    assert!(bench.receive(2).is_empty(), "of a VLAN nobody asked for");
    bench.nic.set_vlans(&[100, 7]).unwrap();
    let all = [tagged(100, 1, 60), frame(2, 64), tagged(7, 3, 9014), tagged(100, 4, 2048)];
    all.iter().for_each(|frame| bench.model.inject(frame));
    assert_eq!(bench.receive(3), all);
    let bytes = all.iter().map(|frame| frame.len() as u64).sum::<u64>();
    assert_eq!(bench.queues.rx[0].stats().bytes.get(), bytes);
    bench.nic.set_vlans(&[7]).unwrap();
    bench.restart();
    all.iter().for_each(|frame| bench.model.inject(frame));
    assert_eq!(bench.receive(3), all[1..3]);
    bench.finish();
}

#[test]
fn reset_of_the_physical_function_restarts_the_port() {
    let mut bench = Bench82576::new();
    bench.model.lock().reset_pf(false);
    assert_eq!(bench.nic.link(), Link::Down { reason: "the physical function is being reset".into() });
    assert!(bench.reason().contains("physical function"));
    bench.stop();
    let error = bench.nic.start(&bench.pool, 1).err().unwrap().to_string();
    assert!(error.contains("V2PMAILBOX & 0x00000040 did not become 0x00000000"), "{error}");
    bench.model.lock().reset_pf(true);
    bench.start();
    assert_eq!(bench.nic.health(), Health::Ok);
    bench.works();
    bench.finish();
}

#[test]
fn short_reset_of_the_physical_function_is_noticed_too() {
    let mut bench = Bench82576::new();
    bench.model.lock().reset_pf(false);
    bench.model.lock().reset_pf(true);
    assert_eq!(bench.reason(), "the physical function was reset");
    bench.restart();
    assert_eq!(bench.nic.health(), Health::Ok);
    // Told by message, before or while something else is asked.
    for chats in [false, true] {
        bench.model.lock().pf.granted.known = false;
        bench.model.lock().pf.chats = chats;
        if !chats {
            bench.model.lock().pf.ping();
        }
        bench.nic.set_all_multicast(true).unwrap();
        assert_eq!(bench.reason(), "the physical function was reset");
        bench.restart();
        bench.works();
    }
    bench.finish();
}

#[test]
fn control_message_before_the_answer_is_passed_over() {
    let mut bench = Bench82576::new();
    bench.model.lock().pf.chats = true;
    bench.nic.set_unicast(&[address(1)]).unwrap();
    assert_eq!((bench.nic.health(), bench.counter("pf_refusals")), (Health::Ok, 0));
    assert_eq!(arrive(&mut bench, &[address(1)]), [0]);
    bench.finish();
}

#[test]
fn physical_function_that_no_longer_answers_costs_its_deadline_and_is_counted() {
    let mut bench = Bench82576::new();
    bench.model.lock().pf.silent = true;
    bench.nic.set_all_multicast(false).unwrap();
    assert_eq!(bench.counter("pf_refusals"), 1);
    bench.works();
    bench.finish();
}

#[test]
fn trap_06_counters_that_wrap_sum_to_64_bits() {
    let mut bench = Bench82576::unstarted();
    [0xf10, 0xf14, 0xf18, 0xf34].into_iter().for_each(|at| bench.model.lock().preset(at, u32::MAX - 5));
    bench.start();
    bench.send(10, 100);
    (0..3).for_each(|n| bench.model.inject(&frame(n, 1000)));
    assert_eq!(bench.receive(3).len(), 3);
    let names = ["VFGPRC", "VFGORC", "VFGPTC", "VFGOTC"];
    assert_eq!(names.map(|name| bench.counter(name)), [3, 3012, 10, 1040]);
    bench.restart();
    bench.send(2, 64);
    assert_eq!(names.map(|name| bench.counter(name)), [3, 3012, 12, 1176], "kept over a restart");
    bench.finish();
}

#[test]
fn trap_14_writes_may_not_overtake_each_other() {
    let bench = Bench82576::new();
    let read = |at| bench.model.lock().read(at);
    assert_eq!((read(0x2814) & (1 << 13 | 1 << 15), read(0x3814) & 1 << 11), (0, 0));
    bench.finish();
}
