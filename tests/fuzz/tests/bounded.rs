//! Every fuzz target but the session's on a bounded number of random inputs.

use spp_fuzz::bounded::run;
use spp_fuzz::{offload, rings, text};

#[test]
fn rings_of_a_guest_that_writes_anything_harm_nothing() {
    run(1500, 2000, rings);
}

#[test]
fn offload_requests_are_refused_or_can_be_worked_off() {
    run(4000, 64, offload);
}

#[test]
fn texts_are_read_or_refused() {
    run(20_000, 300, text);
}

#[test]
fn configurations_with_bytes_changed_are_read_or_refused() {
    let good =
        br#"{"vf":[{"pci_address":"00:04.0","physical_network":"phys1","num_vhost":2,"core_mask":"0xfe"}]}"#;
    run(5000, 16, |changes| {
        let mut bytes = good.to_vec();
        for change in changes.chunks_exact(2) {
            let at = usize::from(change[0]) % bytes.len();
            bytes[at] = change[1] & 0x7f;
        }
        text(&[&[0], bytes.as_slice()].concat());
    });
}
