//! NIC -> classifier -> ring -> forward -> VM, and VM -> forward -> ring -> merge -> NIC.

use spp_drivers::MacAddr;
use spp_pipeline::config::NodeConfig;
use spp_pipeline::node::Node;
use spp_pipeline::status::NodeStatus;
use spp_pipeline::topology::Plug;

use crate::support::*;

#[test]
fn flat_frames_pass_both_ways_untouched() {
    for site in Site::apart_and_fused() {
        let mut node = site.one_nic();
        node.plug(&plug(0, None)).unwrap();
        let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
        for (id, len) in [(1, 64), (2, 60), (3, 1500), (4, 1514)] {
            let mut sent = frame(mac(0), None, id);
            sent.resize(len, 0xa5);
            send(&mut wire, &sent);
            assert_eq!(receive(&mut vm), sent);
            send(&mut vm, &sent);
            assert_eq!(receive(&mut wire), sent);
        }
        send(&mut wire, &frame(MacAddr::BROADCAST, None, 9));
        assert_eq!(receive_id(&mut vm), (None, 9));
    }
}

#[test]
fn vlan_frames_are_tagged_on_the_wire_and_untagged_in_the_vm() {
    for site in Site::apart_and_fused() {
        let mut node = site.one_nic();
        node.plug(&plug(0, Some(100))).unwrap();
        let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
        send(&mut wire, &frame(mac(0), Some(100), 1));
        assert_eq!(receive_id(&mut vm), (None, 1));
        send(&mut vm, &frame(mac(0xee), None, 2));
        let out = receive(&mut wire);
        assert_eq!((parse(&out), &out[14..16]), ((Some(100), 2), &[0, 100][..]), "priority 0");
        // Another VLAN, or none, is not for this guest.
        send(&mut wire, &frame(mac(0), Some(101), 3));
        send(&mut wire, &frame(mac(0), None, 4));
        send(&mut wire, &frame(MacAddr::BROADCAST, Some(100), 5));
        assert_eq!(receive_id(&mut vm), (None, 5));
        assert_eq!(component_drops(&node.status(), "unknown_destination"), 2);
    }
}

#[test]
fn two_guests_get_their_own_frames_only() {
    for site in Site::apart_and_fused() {
        let mut node = site.one_nic();
        node.plug(&plug(0, None)).unwrap();
        node.plug(&plug(1, Some(7))).unwrap();
        let mut wire = site.wire("wire0");
        let (mut a, mut b) = (site.guest(&mut node, 0), site.guest(&mut node, 1));
        for id in 0..100 {
            send(&mut wire, &frame(mac(0), None, id));
            send(&mut wire, &frame(mac(1), Some(7), id + 1000));
        }
        for id in 0..100 {
            assert_eq!(receive_id(&mut a), (None, id));
            assert_eq!(receive_id(&mut b), (None, id + 1000));
        }
        assert_silent(&mut a);
        assert_silent(&mut b);
    }
}

#[test]
fn frames_of_an_unplugged_guest_never_reach_the_wire_and_are_counted() {
    let site = Site::new();
    let mut node = site.one_nic();
    let (mut wire, mut a) = (site.wire("wire0"), site.guest(&mut node, 0));
    let mut b = site.guest(&mut node, 1);
    node.plug(&plug(1, None)).unwrap();
    for id in 0..50 {
        send(&mut a, &frame(mac(0xee), None, id));
    }
    eventually(&mut node, "the frames are dropped", |node| {
        component_drops(&node.status(), "unplugged") == 50
    });
    send(&mut b, &frame(mac(0xee), None, 1000));
    assert_eq!(receive_id(&mut wire), (None, 1000));
    assert_silent(&mut wire);
    node.plug(&plug(0, None)).unwrap();
    send(&mut a, &frame(mac(0xee), None, 1001));
    assert_eq!(receive_id(&mut wire), (None, 1001));
}

#[test]
fn two_vfs_keep_their_wires_apart() {
    let site = Site::new();
    let mappings = [site.wire_mapping("wire0", "phys1#1#0x3e"), site.wire_mapping("wire1", "phys2#1#0x3c1")];
    let mappings = mappings.join(",");
    let mut node = Node::start(NodeConfig::from_mappings(&mappings).unwrap(), site.options()).unwrap();
    let same_mac = |vhost| Plug { vhost, mac: mac(9), vlan: Some(5) };
    node.plug(&same_mac(0)).unwrap();
    node.plug(&same_mac(1)).unwrap();
    let mut wires = [site.wire("wire0"), site.wire("wire1")];
    let mut vms = [site.guest(&mut node, 0), site.guest(&mut node, 1)];
    for (n, (wire, vm)) in (0..).zip(wires.iter_mut().zip(&mut vms)) {
        send(wire, &frame(mac(9), Some(5), n));
        assert_eq!(receive_id(vm), (None, n));
        send(vm, &frame(mac(8), None, n + 10));
        assert_eq!(receive_id(wire), (Some(5), n + 10));
    }
    wires.iter_mut().chain(&mut vms).for_each(assert_silent);
}

#[test]
fn several_components_share_a_core_when_the_configuration_says_so() {
    let site = Site::new();
    let wire = format!("vhost-user:{}", site.path("wire0").display());
    let json = serde_json::json!({"vf": [{"num_vhost": 1, "pci_address": wire, "physical_network": "p", "core_mask": "0x6",
        "components": [
            {"core": 2, "type": "forward", "name": "forward_0_tx", "rx_port": ["ring:0"], "tx_port": ["vhost:0"]},
            {"core": 2, "type": "forward", "name": "forward_0_rx", "rx_port": ["vhost:0"], "tx_port": ["ring:1"]},
            {"core": 2, "type": "classifier_mac", "name": "classifier", "rx_port": ["phy:0"], "tx_port": ["ring:0"]},
            {"core": 2, "type": "merge", "name": "merger", "rx_port": ["ring:1"], "tx_port": ["phy:0"]}]}]});
    let config = NodeConfig::parse(json.to_string().as_bytes()).unwrap();
    let mut node = Node::start(config, site.options()).unwrap();
    node.plug(&plug(0, Some(100))).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    send(&mut wire, &frame(mac(0), Some(100), 1));
    assert_eq!(receive_id(&mut vm), (None, 1));
    send(&mut vm, &frame(mac(8), None, 2));
    assert_eq!(receive_id(&mut wire), (Some(100), 2));
}

#[test]
fn generator_in_the_place_of_a_nic_feeds_a_guest() {
    let site = Site::new();
    let config = NodeConfig::from_mappings("gen:len=64,dst=02:00:00:00:00:00,vlan=5#p#1#0x3e").unwrap();
    let mut node = Node::start(config, site.options()).unwrap();
    let mut vm = site.guest(&mut node, 0);
    assert_silent(&mut vm);
    node.plug(&plug(0, Some(5))).unwrap();
    for _ in 0..1000 {
        let frame = receive(&mut vm);
        assert_eq!((&frame[..6], frame.len()), (&mac(0).0[..], 60), "64 bytes less the tag");
    }
}

#[test]
fn sink_in_the_place_of_a_nic_counts_what_guests_send() {
    let site = Site::new();
    let mut node = Node::start(NodeConfig::from_mappings("null:#p#1#0x3e").unwrap(), site.options()).unwrap();
    node.plug(&plug(0, None)).unwrap();
    let mut vm = site.guest(&mut node, 0);
    for id in 0..1000 {
        send(&mut vm, &frame(mac(8), None, id));
    }
    eventually(&mut node, "all frames arrive", |node| {
        let tx = node.status().vfs[0].nic.tx.clone();
        tx.packets + tx.total_drops() == 1000
    });
}

#[test]
fn status_tells_what_passed_where_and_reads_back() {
    let site = Site::new();
    let mut node = site.one_nic();
    node.plug(&plug(1, Some(100))).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 1));
    for id in 0..10 {
        send(&mut wire, &frame(mac(1), Some(100), id));
        receive(&mut vm);
    }
    let status = node.status();
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<NodeStatus>(&text).unwrap(), status);
    let vf = &status.vfs[0];
    assert_eq!((vf.nic.driver.as_str(), vf.nic.link_up, vf.nic.rx.packets), ("vhost-user", true, 10));
    assert_eq!((vf.vhosts[0].state.as_str(), vf.vhosts[1].state.as_str()), ("waiting", "running"));
    assert_eq!((vf.vhosts[1].to_guest.packets, vf.vhosts[1].plug.unwrap().vlan), (10, Some(100)));
    let states: Vec<_> = vf.components.iter().map(|component| component.state.as_str()).collect();
    assert_eq!(states, ["running"; 6]);
    let classifier = &vf.components[4];
    assert_eq!((classifier.name.as_str(), classifier.rx_packets), ("classifier", 10));
    assert_eq!((classifier.tx[1].vlan.as_str(), classifier.tx[1].counters.packets), ("del", 10));
    assert!(vf.components[1].rx[0].closed && !vf.components[3].rx[0].closed);
    assert_eq!((status.rings[2].packets, status.rings[2].depth), (10, 0));
    assert_eq!(
        (status.rings[2].from.as_deref(), status.rings[2].to.as_deref()),
        (Some("classifier"), Some("forward_1_tx"))
    );
}

#[test]
fn frames_from_before_a_plug_are_not_delivered_after_it() {
    let site = Site::new();
    let mut node = site.one_nic();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    for id in 0..100 {
        send(&mut wire, &frame(mac(0), None, id));
    }
    eventually(&mut node, "they are dropped", |node| component_drops(&node.status(), "unplugged") == 100);
    node.plug(&plug(0, None)).unwrap();
    send(&mut wire, &frame(mac(0), None, 500));
    assert_eq!(receive_id(&mut vm), (None, 500));
    node.unplug(0).unwrap();
    assert!(node.status().vfs[0].components[4].rx[0].closed);
}
