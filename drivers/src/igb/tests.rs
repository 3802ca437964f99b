//! The true driver over the model: the trials all cards pass, and what only these have.

use std::sync::Arc;

use super::init::Igb;
use super::model::IgbModel;
use super::{Kind, open};
use crate::dma::DmaSpace;
use crate::intel::trials::{self, Bench, MAC, Nic, Subject, trials};
use crate::mac::MacAddr;
use crate::nic::ids::{Family, TABLE};
use crate::nic::model::{DeviceMemory, Model, ModelBar, ModelFunction};
use crate::port::{Device, Link, PortError};

/// A card of this PCI device id.
struct Card<const DEVICE: u16>;

impl<const DEVICE: u16> Subject for Card<DEVICE> {
    type Model = IgbModel;
    type Chip = Igb<ModelBar<IgbModel>>;
    const DRIVER: &'static str = "igb";
    const N_PAIRS: u16 = 4;
    const TAILS: [usize; 2] = [0xc018, 0xe018];
    const MASKS: &'static [usize] = &[0xd8, 0x1528];
    const LINK_MASKS: [u32; 2] = [1 << 2, 1];
    const LINK_INTERRUPTS: u64 = 2;
    const FORMAT: &'static str = "SRRCTL & 0x0e00007f";

    fn model(memory: Arc<dyn DeviceMemory>, mac: MacAddr) -> IgbModel {
        IgbModel::new(memory, DEVICE, mac)
    }
    fn open(function: ModelFunction<IgbModel>, space: &DmaSpace) -> Result<Nic<Self>, PortError> {
        open(function, space)
    }
    fn set_cable(model: &mut IgbModel, plugged: bool) {
        model.set_cable(plugged);
    }
    fn preset(model: &mut IgbModel, offset: usize, value: u32) {
        model.preset(offset, value);
    }
    fn available(model: &IgbModel, tx: bool) -> u32 {
        model.queues.available(tx, 0)
    }
    fn is_enabled(model: &IgbModel) -> [bool; 2] {
        model.is_enabled()
    }
    fn masks(model: &IgbModel) -> [u32; 2] {
        model.masks()
    }
    fn unmask(model: &mut IgbModel) {
        model.write(0x1508, u32::MAX);
        model.write(0x1524, u32::MAX);
    }
    fn n_tags(model: &IgbModel) -> [u64; 2] {
        [model.queues.n_stripped, model.queues.n_inserted]
    }
    fn stick_format(model: &mut IgbModel, stuck: bool) {
        model.queues.stuck_format = stuck;
    }
}

type I82576 = Card<0x10c9>;
type I350 = Card<0x1521>;
type I210 = Card<0x1533>;

mod i82576 {
    use super::*;

    trials! {
        I82576:
        frames_of_all_lengths_pass_both_ways
        indices_wrap_after_seventy_thousand_frames
        one_doorbell_a_burst
        frames_wait_in_the_card_while_the_pool_is_empty
        frames_too_short_for_the_card_get_zeros_and_runts_are_dropped
        checksums_the_card_found_right_are_marked_and_wrong_ones_counted
        checksums_left_undone_are_completed_by_the_card
        checksum_the_card_can_not_reach_is_completed_in_software
        long_frame_the_card_does_not_cut_stays_with_the_caller
        queues_share_flows_and_keep_each_in_order
        filters_let_in_what_is_wanted_and_survive_a_restart
        more_addresses_than_filters_are_received_promiscuously_and_counted
        link_loss_drops_sent_frames_with_their_reason
        link_change_whose_interrupt_is_lost_is_seen_within_a_second_of_looks
        second_start_and_too_many_queue_pairs_are_refused
        pool_too_small_for_the_ring_is_an_error_with_the_remedy
        halves_dropped_before_the_stop_keep_their_buffers_until_the_reset;
        tags:
        tags_by_the_card_are_those_of_software
        bursts_of_all_kinds_get_their_tags_in_order
        tags_of_frames_under_way_at_a_switch_are_right
        queues_decide_on_their_tags_by_themselves
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
        trap_06_counters_that_clear_on_read_sum_to_64_bits
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
}

mod i350 {
    use super::*;

    trials! {
        I350:
        frames_of_all_lengths_pass_both_ways
        queues_share_flows_and_keep_each_in_order
        more_addresses_than_filters_are_received_promiscuously_and_counted;
        tags:
        tags_by_the_card_are_those_of_software
        bursts_of_all_kinds_get_their_tags_in_order
        tags_of_frames_under_way_at_a_switch_are_right
        queues_decide_on_their_tags_by_themselves
        card_that_was_reset_is_asked_for_tags_anew;
        traps:
        trap_06_counters_that_clear_on_read_sum_to_64_bits
    }
}

mod i210 {
    use super::*;

    trials! {
        I210:
        frames_of_all_lengths_pass_both_ways
        queues_share_flows_and_keep_each_in_order
        more_addresses_than_filters_are_received_promiscuously_and_counted;
        tags:
        tags_by_the_card_are_those_of_software
        bursts_of_all_kinds_get_their_tags_in_order
        tags_of_frames_under_way_at_a_switch_are_right
        queues_decide_on_their_tags_by_themselves
        card_that_was_reset_is_asked_for_tags_anew;
        traps:
        trap_06_counters_that_clear_on_read_sum_to_64_bits
    }
}

#[test]
fn every_id_of_the_family_starts_and_has_a_link() {
    let ids: Vec<u16> = TABLE.iter().filter(|id| id.2 == Family::Igb).map(|id| id.1).collect();
    assert_eq!(ids.len(), 20);
    for id in ids {
        let space = DmaSpace::new();
        let (function, model) = crate::nic::model::new(&space, |memory| IgbModel::new(memory, id, MAC));
        let nic = open(function, &space).unwrap();
        let mut bench = Bench::<I82576>::of(nic, model, &space);
        bench.start();
        assert_eq!((bench.nic.mac(), bench.nic.info().driver), (Some(MAC), "igb"));
        assert_eq!(bench.nic.link(), Link::Up { speed_mbps: 1000 }, "{id:04x}");
        assert_eq!(bench.nic.info().n_queue_pairs, Kind::of(id).n_queue_pairs());
        bench.works();
        bench.finish();
    }
}

#[test]
fn phy_that_the_kernel_switched_off_is_woken() {
    let mut bench = Bench::<I210>::unstarted();
    bench.model.lock().power_phy_down();
    bench.start();
    assert!(bench.nic.link().is_up());
    bench.finish();
}

#[test]
fn phy_that_firmware_keeps_is_left_as_it_is() {
    let mut bench = Bench::<I82576>::unstarted();
    bench.model.lock().firmware_holds_phy = true;
    bench.start();
    bench.works();
    bench.finish();
}

#[test]
fn queue_that_is_not_polled_drops_and_does_not_hold_up_the_others() {
    fn counted<S: Subject<Model = IgbModel>>() {
        let mut bench = Bench::<S>::with_queues(2);
        let frames: Vec<_> = (0..64).map(|n| trials::udp(n, true)).collect();
        for _ in 0..20 {
            frames.iter().for_each(|frame| bench.model.inject(frame));
            bench.model.step();
            while !bench.poll(0).is_empty() {}
        }
        assert_eq!(bench.model.waiting_on_wire(), 0);
        let dropped = bench.counter("RQDPC1");
        assert!(dropped > 0);
        assert_eq!((bench.counter("RQDPC0"), bench.counter("RQDPC1")), (0, dropped), "counted once");
        bench.finish();
    }
    counted::<I82576>();
    counted::<I210>();
}

#[test]
fn trap_11_descriptor_format_is_chosen_and_read_back() {
    let bench = Bench::<I82576>::with_queues(2);
    for srrctl in [0xc00c, 0xc04c] {
        let format = bench.model.lock().read(srrctl);
        assert_eq!((format >> 25 & 7, format & 0x7f), (1, 2), "advanced, one buffer of 2 KB");
    }
    bench.finish();
}

#[test]
fn trap_14_writes_may_not_overtake_each_other() {
    let bench = Bench::<I82576>::with_queues(2);
    for queue in 0..2 {
        let read = |at: usize| bench.model.lock().read(at + queue * 0x40);
        assert_eq!((read(0xc014) & (1 << 13 | 1 << 15), read(0xe014) & 1 << 11), (0, 0), "queue {queue}");
    }
    bench.finish();
}

#[test]
fn queue_that_is_never_enabled_is_an_error_that_names_the_register() {
    let mut bench = Bench::<I82576>::unstarted();
    bench.model.lock().queues.never_enables = true;
    let error = bench.nic.start(&bench.pool, 1).err().unwrap().to_string();
    assert!(error.contains("TXDCTL & 0x02000000 did not become 0x02000000"), "{error}");
    bench.model.lock().queues.never_enables = false;
    bench.start();
    bench.works();
    bench.finish();
}
