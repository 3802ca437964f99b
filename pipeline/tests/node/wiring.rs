//! Edits while traffic runs.

use spp_pipeline::config::NodeConfig;
use spp_pipeline::names::{ComponentKind, PortName};
use spp_pipeline::node::{Node, NodeError, NodeOptions};
use spp_pipeline::plan::VlanOp;
use spp_pipeline::table::Dst;
use spp_pipeline::topology::{Direction, Entry, Plug};
use spp_vhost::guest::Guest;

use crate::support::*;

/// Frames with these ids go through the guest's plug, both ways, each awaited: a lost one fails.
fn ping(wire: &mut Guest, vm: &mut Guest, plug: &Plug, ids: std::ops::Range<u32>) {
    for id in ids {
        send(wire, &frame(plug.mac, plug.vlan, id));
        assert_eq!(receive_id(vm), (None, id));
        send(vm, &frame(mac(0xee), None, id));
        assert_eq!(receive_id(wire), (plug.vlan, id));
    }
}

#[test]
fn unplug_stops_frames_both_ways_and_replug_starts_them_again() {
    let site = Site::new();
    let mut node = site.one_nic();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    let mut other = site.guest(&mut node, 1);
    node.plug(&plug(1, None)).unwrap();
    for round in 0..5 {
        let vlan = (round % 2 == 1).then_some(100 + round as u16);
        node.plug(&plug(0, vlan)).unwrap();
        ping(&mut wire, &mut vm, &plug(0, vlan), 0..20);
        node.unplug(0).unwrap();
        send(&mut wire, &frame(mac(0), vlan, 77));
        send(&mut vm, &frame(mac(0xee), None, 78));
        ping(&mut wire, &mut other, &plug(1, None), 0..20);
        assert_silent(&mut vm);
        assert_silent(&mut wire);
    }
}

#[test]
fn folded_ways_share_a_thread_each_and_pass_frames_while_a_component_comes_and_goes() {
    let site = Site::new();
    let config = NodeConfig::from_mappings(&site.wire_mapping("wire0", "phys1#2#0xfe")).unwrap();
    let mut node = Node::start(config, NodeOptions { share_ways: true, ..site.options() }).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    let mut other = site.guest(&mut node, 1);
    node.plug(&plug(1, None)).unwrap();
    node.plug(&plug(0, Some(7))).unwrap();
    for round in 0..4 {
        ping(&mut wire, &mut vm, &plug(0, Some(7)), 0..20);
        // The lowest core of its way: all others move when it goes and comes.
        let (name, core) = [("forward_0_tx", 2), ("forward_0_rx", 3)][round % 2];
        let ends: Vec<_> = [Direction::Rx, Direction::Tx]
            .map(|direction| {
                let component =
                    node.topology().components().find(|component| component.name == name).unwrap();
                (direction, component.ends(direction)[0].port)
            })
            .into();
        node.component_stop(1, name).unwrap();
        ping(&mut wire, &mut other, &plug(1, None), 0..20);
        node.component_start(1, name, core, ComponentKind::Forward).unwrap();
        for (direction, port) in ends {
            node.port_attach(1, name, port, direction, VlanOp::None).unwrap();
        }
    }
    ping(&mut wire, &mut vm, &plug(0, Some(7)), 0..20);
    let status = node.status();
    let cores: Vec<usize> = status.vfs[0].components.iter().map(|component| component.core).collect();
    assert_eq!(status.vfs[0].components.len(), 6);
    assert!(status.rings.len() == 4 && status.rings.iter().all(|ring| ring.fused), "{:?}", status.rings);
    assert!((2..8).all(|core| cores.contains(&core)), "each shows the core it was dealt: {cores:?}");
    assert!(status.vfs[0].components.iter().all(|component| component.state == "running"));
}

#[test]
fn no_frame_of_a_vlan_leaves_with_another_tag_while_plugs_change() {
    let site = Site::new();
    let mut node = site.one_nic();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    let mut seen = [0u32; 2];
    let mut buf = Vec::new();
    for round in 0..60u32 {
        node.plug(&plug(0, Some(100))).unwrap();
        for id in 0..40 {
            vm.send(&frame(mac(0xee), None, round * 100 + id));
        }
        node.unplug(0).unwrap();
        while wire.receive(&mut buf) {
            let (vlan, _) = parse(&buf);
            assert_eq!(vlan, Some(100), "an untagged frame would be in the flat network");
            seen[0] += 1;
        }
        seen[1] += 40;
    }
    assert!(seen[0] <= seen[1]);
}

#[test]
fn replug_with_another_mac_or_vlan_replaces_the_wiring() {
    let site = Site::new();
    let mut node = site.one_nic();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    let plugs = [
        plug(0, Some(100)),
        plug(0, Some(200)),
        plug(0, None),
        Plug { mac: mac(0x44), ..plug(0, None) },
        Plug { mac: mac(0x44), ..plug(0, Some(300)) },
    ];
    for (n, new) in plugs.iter().enumerate() {
        node.plug(new).unwrap();
        node.plug(new).unwrap();
        assert_eq!(node.plugs(), [*new]);
        if let Some(old) = n.checked_sub(1).map(|n| plugs[n]) {
            send(&mut wire, &frame(old.mac, old.vlan, 66));
        }
        ping(&mut wire, &mut vm, new, 0..10);
        assert_silent(&mut vm);
    }
}

#[test]
fn neighbour_loses_nothing_while_plugs_and_components_change() {
    let site = Site::new();
    let mut node = site.one_nic();
    node.plug(&plug(0, Some(100))).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    for round in 0..20u32 {
        let (first, n) = (round * 100, 100);
        // 100 frames are on their way while the neighbour is rewired, and all of them arrive.
        for id in first..first + n {
            send(&mut wire, &frame(mac(0), Some(100), id));
            send(&mut vm, &frame(mac(0xee), None, id));
            match id % 25 {
                3 => node.plug(&plug(1, Some(round as u16 + 1))).unwrap(),
                9 => node.component_stop(1, "forward_1_tx").unwrap(),
                13 => {
                    let core = if round % 2 == 0 { 5 } else { 4 };
                    node.component_start(1, "forward_1_tx", core, ComponentKind::Forward).unwrap();
                    let attach = |node: &mut Node, port, direction| {
                        node.port_attach(1, "forward_1_tx", port, direction, VlanOp::None).unwrap();
                    };
                    attach(&mut node, PortName::Ring(2), Direction::Rx);
                    attach(&mut node, PortName::Vhost(1), Direction::Tx);
                }
                21 => node.unplug(1).unwrap(),
                _ => {}
            }
        }
        for id in first..first + n {
            assert_eq!(receive_id(&mut vm), (None, id));
            assert_eq!(receive_id(&mut wire), (Some(100), id));
        }
    }
}

#[test]
fn component_moved_to_another_core_loses_no_frame_in_its_ring() {
    let site = Site::new();
    let mut node = site.one_nic();
    node.plug(&plug(0, None)).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    for (round, core) in [(0, 3), (1, 7), (2, 2)] {
        node.component_stop(1, "forward_0_tx").unwrap();
        let ids = round * 100..round * 100 + 100;
        // The classifier goes on: frames gather in ring:0.
        ids.clone().for_each(|id| send(&mut wire, &frame(mac(0), None, id)));
        eventually(&mut node, "ring:0 holds them", |node| node.status().rings[0].depth == 100);
        node.component_start(1, "forward_0_tx", core, ComponentKind::Forward).unwrap();
        node.port_attach(1, "forward_0_tx", PortName::Vhost(0), Direction::Tx, VlanOp::None).unwrap();
        node.port_attach(1, "forward_0_tx", PortName::Ring(0), Direction::Rx, VlanOp::None).unwrap();
        ids.for_each(|id| assert_eq!(receive_id(&mut vm), (None, id)));
    }
}

#[test]
fn bad_edits_of_any_kind_leave_everything_running_as_it_was() {
    let site = Site::new();
    let mut node = site.one_nic();
    node.plug(&plug(0, Some(100))).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    let before = node.topology().clone();
    let refused: Vec<NodeError> = [
        node.plug(&plug(9, None)),
        node.plug(&plug(0, Some(4095))),
        node.unplug(9),
        node.component_start(1, "merger", 2, ComponentKind::Merge),
        node.component_start(1, "x", 1, ComponentKind::Merge),
        node.component_start(1, "x", 99, ComponentKind::Merge),
        node.component_start(7, "x", 2, ComponentKind::Merge),
        node.component_start(1, &"x".repeat(200), 2, ComponentKind::Merge),
        node.port_attach(1, "merger", PortName::Ring(4), Direction::Rx, VlanOp::None),
        node.port_attach(1, "merger", PortName::Vhost(77), Direction::Rx, VlanOp::None),
        node.port_attach(1, "nobody", PortName::Ring(0), Direction::Rx, VlanOp::None),
        node.port_attach(1, "merger", PortName::Ring(0), Direction::Rx, VlanOp::None),
        node.table_add(1, Entry { vid: Some(4095), dst: Dst::Default, port: PortName::Ring(0) }),
        node.table_del(1, Entry { vid: None, dst: Dst::Default, port: PortName::Ring(0) }),
    ]
    .into_iter()
    .filter_map(Result::err)
    .collect();
    assert_eq!(refused.len(), 14);
    assert!(
        refused.iter().all(|error| matches!(error, NodeError::Edit(_)) && !error.to_string().contains('\n'))
    );
    assert_eq!(*node.topology(), before);
    ping(&mut wire, &mut vm, &plug(0, Some(100)), 0..20);
    // And nothing is wedged: a good edit still works.
    node.plug(&plug(1, None)).unwrap();
}

#[test]
fn node_wired_by_commands_alone_passes_frames() {
    let site = Site::new();
    let wire = format!("vhost-user:{}", site.path("wire0").display());
    let json = serde_json::json!({"vf": [{"num_vhost": 1, "pci_address": wire, "physical_network": "p",
        "core_mask": "0xe", "components": []}]});
    let config = NodeConfig::parse(json.to_string().as_bytes()).unwrap();
    let options = NodeOptions { gate_unplugged: false, ..site.options() };
    let mut node = Node::start(config, options).unwrap();
    for (name, core, kind, from, to) in [
        ("cls", 2, ComponentKind::Classifier, PortName::Phy(0), PortName::Vhost(0)),
        ("back", 3, ComponentKind::Forward, PortName::Vhost(0), PortName::Phy(0)),
    ] {
        node.component_start(1, name, core, kind).unwrap();
        node.port_attach(1, name, from, Direction::Rx, VlanOp::None).unwrap();
        let tag = VlanOp::Add { vid: 42, pcp: 0 };
        node.port_attach(1, name, to, Direction::Tx, if core == 3 { tag } else { VlanOp::Del }).unwrap();
    }
    node.table_add(1, Entry { vid: None, dst: Dst::Default, port: PortName::Vhost(0) }).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest(&mut node, 0));
    send(&mut wire, &frame(mac(1), Some(9), 1));
    assert_eq!(receive_id(&mut vm), (None, 1));
    send(&mut vm, &frame(mac(1), None, 2));
    assert_eq!(receive_id(&mut wire), (Some(42), 2));
    node.table_del(1, Entry { vid: None, dst: Dst::Default, port: PortName::Vhost(0) }).unwrap();
    node.component_stop(1, "cls").unwrap();
    send(&mut wire, &frame(mac(1), Some(9), 3));
    assert_silent(&mut vm);
}
