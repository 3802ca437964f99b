//! The true driver over the model, for both chips: the trials all cards pass, and what only these have.

use super::*;
use crate::dma::DmaSpace;
use crate::e1000::init::{E1000, K8254x, K82574, Kind};
use crate::e1000::open;
use crate::intel::trials::{self, Bench, Subject, trials};
use crate::nic::model::{ModelBar, ModelFunction};
use crate::port::{Device, PortError};

impl<K: Kind> Subject for E1000<K, ModelBar<E1000Model>> {
    type Model = E1000Model;
    type Chip = Self;
    const DRIVER: &'static str = K::LIMITS.driver;
    const N_PAIRS: u16 = K::LIMITS.n_queue_pairs;
    const TAILS: [usize; 2] = [0x2818, 0x3818];
    const MASKS: &'static [usize] = &[0xd8];
    const LINK_MASKS: [u32; 2] = [if K::PCIE { LSC | OTHER } else { 0 }, 0];
    const LINK_INTERRUPTS: u64 = if K::PCIE { 2 } else { 0 };
    const FORMAT: &'static str = "RFCTL & 0x00008000";

    fn model(memory: Arc<dyn DeviceMemory>, mac: MacAddr) -> E1000Model {
        E1000Model::new(memory, if K::PCIE { Chip::I82574 } else { Chip::I82545 }, mac)
    }
    fn open(function: ModelFunction<E1000Model>, space: &DmaSpace) -> Result<trials::Nic<Self>, PortError> {
        open(function, space)
    }
    fn set_cable(model: &mut E1000Model, plugged: bool) {
        model.set_cable(plugged);
    }
    fn preset(model: &mut E1000Model, offset: usize, value: u32) {
        model.preset(offset, value);
    }
    fn available(model: &E1000Model, tx: bool) -> u32 {
        model.available(tx, 0)
    }
    fn is_enabled(model: &E1000Model) -> [bool; 2] {
        model.is_enabled()
    }
    fn masks(model: &E1000Model) -> [u32; 2] {
        [model.mask(), 0]
    }
    fn unmask(model: &mut E1000Model) {
        model.unmask();
    }
    fn n_tags(model: &E1000Model) -> [u64; 2] {
        model.n_tags
    }
    fn stick_format(model: &mut E1000Model, stuck: bool) {
        model.stuck_format = stuck;
    }
}

type Card<K> = E1000<K, ModelBar<E1000Model>>;

mod i82574 {
    use super::*;

    trials! {
        Card<K82574>:
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

mod i82545 {
    use super::*;

    trials! {
        Card<K8254x>:
        frames_of_all_lengths_pass_both_ways
        indices_wrap_after_seventy_thousand_frames
        one_doorbell_a_burst
        frames_wait_in_the_card_while_the_pool_is_empty
        frames_too_short_for_the_card_get_zeros_and_runts_are_dropped
        checksums_the_card_found_right_are_marked_and_wrong_ones_counted
        checksums_left_undone_are_completed_by_the_card
        checksum_the_card_can_not_reach_is_completed_in_software
        long_frame_the_card_does_not_cut_stays_with_the_caller
        filters_let_in_what_is_wanted_and_survive_a_restart
        more_addresses_than_filters_are_received_promiscuously_and_counted
        link_loss_drops_sent_frames_with_their_reason
        second_start_and_too_many_queue_pairs_are_refused
        pool_too_small_for_the_ring_is_an_error_with_the_remedy
        halves_dropped_before_the_stop_keep_their_buffers_until_the_reset;
        tags:
        tags_by_the_card_are_those_of_software
        bursts_of_all_kinds_get_their_tags_in_order
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
        trap_06_counters_that_clear_on_read_sum_to_64_bits
        trap_07_device_whose_memory_decoding_went_off_is_started_anew
        trap_08_stopped_device_does_no_dma
        trap_09_memory_lies_where_the_iommu_can_map_it_and_not_in_the_msi_window
        trap_10_all_descriptors_but_one_are_used_and_full_rings_leave_frames_with_the_caller
        trap_12_card_without_a_valid_address_gets_a_random_one
        trap_13_all_interrupts_are_masked_before_vectors_are_enabled
        trap_14_missing_carrier_is_a_reason_and_not_silence
        reset_that_never_ends_names_register_mask_and_last_value
        card_is_opened_by_its_id
    }
}

#[test]
fn phy_that_the_kernel_switched_off_is_woken() {
    let mut bench = Bench::<Card<K82574>>::unstarted();
    bench.model.lock().power_phy_down();
    bench.start();
    assert!(bench.nic.link().is_up());
    bench.finish();
}
