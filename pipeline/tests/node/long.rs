//! Long frames: what one guest piles up in front of a neighbour that takes nothing costs nobody else a buffer.

use spp_drivers::offload::{F_NEEDS_CSUM, GSO_TCPV4};
use spp_drivers::virtio::desc::NetHdr;
use spp_pipeline::config::NodeConfig;
use spp_pipeline::node::Node;

use crate::support::*;

const HEADER: NetHdr = NetHdr {
    flags: F_NEEDS_CSUM,
    gso_type: GSO_TCPV4,
    hdr_len: 54,
    gso_size: 1400,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};

/// 64 KiB of TCP over IPv4 from guest 0 to guest 1.
fn long() -> Vec<u8> {
    let mut frame = [mac(1).0, mac(0).0].concat();
    frame.extend([0x08, 0x00, 0x45]);
    frame.resize(54, 0);
    (frame[23], frame[46]) = (6, 0x50);
    frame.resize(65_000, 0x77);
    frame
}

#[test]
fn flood_of_64_kib_frames_to_a_guest_that_takes_nothing_leaves_the_others_their_buffers() {
    const N_SMALL: u32 = 2000;
    let site = Site::new();
    let config = NodeConfig::from_mappings(&site.wire_mapping("wire0", "phys1#3#0x1ff")).unwrap();
    let mut node = Node::start(config, site.options()).unwrap();
    (0..3).for_each(|vhost| node.plug(&plug(vhost, None)).unwrap());
    let mut wire = site.wire("wire0");
    let mut flooder = site.guest_with(&mut node, 0, |config| config.offloads = true);
    let _deaf = site.guest_with(&mut node, 1, |config| config.offloads = true);
    let mut third = site.guest(&mut node, 2);
    let (flood, capacity) = (long(), node.pool().counts().capacity);
    let mut n_flood = 0;
    for id in 0..N_SMALL {
        for _ in 0..4 {
            n_flood += u32::from(flooder.send_with(HEADER, &flood));
        }
        send(&mut third, &frame(mac(0xee), None, id));
        assert_eq!(receive_id(&mut wire), (None, id));
        send(&mut wire, &frame(mac(2), None, id));
        assert_eq!(receive_id(&mut third), (None, id));
        let free = node.pool().counts().free;
        assert!(free > capacity / 4, "{free} of {capacity} buffers are left: {:#?}", node.status());
        node.tick();
    }
    assert!(n_flood > 200, "{n_flood}");
    let status = node.status();
    let lost =
        ["ring_full", "local_ring_full", "guest_ring_full"].map(|reason| component_drops(&status, reason));
    assert!(lost.iter().sum::<u64>() > 0, "the flood ends by name: {lost:?}");
    assert_eq!(component_drops(&status, "no_buffer"), 0);
}
