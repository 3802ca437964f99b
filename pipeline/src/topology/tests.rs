use super::*;
use crate::config::Form;

pub(crate) fn two_nics() -> Topology {
    let config = NodeConfig::from_mappings("00:04.0#phys1#2#0xfe,00:05.0#phys2#2#0xfc02").unwrap();
    Topology::from_config(&config, true).unwrap()
}

fn add(vid: u16) -> VlanOp {
    VlanOp::Add { vid, pcp: 0 }
}

fn plug(vhost: u32, mac: u8, vlan: Option<u16>) -> Plug {
    Plug { vhost, mac: MacAddr([2, 0, 0, 0, 0, mac]), vlan }
}

/// The code of a refused edit, after checking that nothing changed.
fn refused(topology: &mut Topology, edit: impl FnOnce(&mut Topology) -> Result<(), EditError>) -> String {
    let before = topology.clone();
    let error = edit(topology).expect_err("the edit must be refused");
    assert_eq!(*topology, before, "a refused edit changes nothing: {error}");
    error.code
}

#[test]
fn default_components_use_rings_2n_and_2n_plus_1() {
    let topology = two_nics();
    let ports =
        |direction, port| topology.user_of((direction, port)).map(|c| c.name.clone()).unwrap_or_default();
    assert_eq!(ports(Direction::Rx, PortName::Ring(4)), "forward_2_tx");
    assert_eq!(ports(Direction::Tx, PortName::Ring(5)), "forward_2_rx");
    assert_eq!(ports(Direction::Rx, PortName::Phy(1)), "classifier");
    assert_eq!(topology.user_of((Direction::Tx, PortName::Phy(1))).unwrap().core, 15);
    assert_eq!(topology.components().count(), 12);
}

#[test]
fn dict_form_gives_the_same_topology_as_the_list() {
    let list = NodeConfig::from_mappings("00:04.0#phys1#2#0xfe,00:05.0#phys2#2#0xfc02").unwrap();
    let dict = NodeConfig::parse(list.to_json(Form::Dict).unwrap().as_bytes()).unwrap();
    assert_eq!(Topology::from_config(&dict, true).unwrap(), two_nics());
}

#[test]
fn configured_component_with_a_port_in_use_is_refused_naming_it() {
    let json = r#"{"vf": [{"num_vhost": 1, "pci_address": "null:", "physical_network": "p", "core_mask": "0x3", "components": [
        {"core": 1, "type": "forward", "name": "a", "rx_port": ["phy:0"], "tx_port": ["vhost:0"]},
        {"core": 1, "type": "forward", "name": "b", "rx_port": ["phy:0"], "tx_port": ["ring:0"]}]}]}"#;
    let error = NodeConfig::parse(json.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("components[1] (b)") && error.contains("phy:0 is in use by a"), "{error}");
}

#[test]
fn duplicate_component_name_is_refused() {
    let code = refused(&mut two_nics(), |t| t.component_start(1, "merger", 2, ComponentKind::Merge));
    assert_eq!(code, "Invalid value (component name)");
}

#[test]
fn component_names_of_32_bytes_are_refused_and_leave_the_vf_working() {
    let mut topology = two_nics();
    let name = "x".repeat(32);
    let code = refused(&mut topology, |t| t.component_start(1, &name, 2, ComponentKind::Merge));
    assert_eq!(code, "Invalid value (component name)");
    topology.component_start(1, "after", 2, ComponentKind::Merge).unwrap();
}

#[test]
fn component_on_the_master_core_is_refused_instead_of_hanging() {
    let code = refused(&mut two_nics(), |t| t.component_start(1, "x", 1, ComponentKind::Merge));
    assert_eq!(code, "Invalid value (core)");
}

#[test]
fn component_on_a_core_of_another_vf_is_refused() {
    assert_eq!(
        refused(&mut two_nics(), |t| t.component_start(1, "x", 10, ComponentKind::Merge)),
        "error occur"
    );
}

#[test]
fn unknown_vf_is_named_as_spp_ctl_does() {
    assert_eq!(refused(&mut two_nics(), |t| t.component_stop(3, "x")), "sec_id 3 not found.");
}

#[test]
fn stopping_an_unknown_component_and_detaching_an_unattached_port_are_fine() {
    let mut topology = two_nics();
    topology.component_stop(1, "nobody").unwrap();
    topology.port_detach(1, "merger", PortName::Ring(0), Direction::Rx).unwrap();
    topology.port_detach(1, "merger", PortName::Ring(4_000_000), Direction::Rx).unwrap();
    assert_eq!(topology, two_nics());
}

#[test]
fn port_of_a_ring_that_does_not_exist_is_refused_and_later_edits_work() {
    let mut topology = two_nics();
    for port in [PortName::Ring(8), PortName::Ring(32), PortName::Vhost(4)] {
        let code = refused(&mut topology, |t| t.port_attach(1, "merger", port, Direction::Rx, VlanOp::None));
        assert_eq!(code, "Invalid value (port)");
    }
    let code =
        refused(&mut topology, |t| t.port_attach(1, "merger", PortName::Phy(2), Direction::Rx, VlanOp::None));
    assert_eq!(code, "Invalid value (port rxtx)");
    topology.port_detach(1, "merger", PortName::Ring(1), Direction::Rx).unwrap();
    topology.port_attach(1, "merger", PortName::Ring(1), Direction::Rx, add(7)).unwrap();
}

#[test]
fn port_in_use_is_refused_also_with_a_tag_to_add() {
    let mut topology = two_nics();
    topology.component_start(1, "second", 2, ComponentKind::Merge).unwrap();
    for vlan in [VlanOp::None, VlanOp::Del, add(5)] {
        // ring:1 is used as tx by forward_0_rx and as rx by merger.
        let code =
            refused(&mut topology, |t| t.port_attach(1, "second", PortName::Ring(1), Direction::Rx, vlan));
        assert_eq!(code, "Invalid value (port)");
    }
    topology.port_detach(1, "forward_0_rx", PortName::Ring(1), Direction::Tx).unwrap();
    let code =
        refused(&mut topology, |t| t.port_attach(1, "second", PortName::Ring(1), Direction::Rx, add(5)));
    assert_eq!(code, "Invalid value (port rxtx)");
}

#[test]
fn more_ports_than_the_type_takes_are_refused() {
    let mut topology = two_nics();
    topology.component_stop(1, "merger").unwrap();
    topology.component_start(1, "f", 7, ComponentKind::Forward).unwrap();
    topology.port_attach(1, "f", PortName::Ring(1), Direction::Rx, VlanOp::None).unwrap();
    let code =
        refused(&mut topology, |t| t.port_attach(1, "f", PortName::Ring(3), Direction::Rx, VlanOp::None));
    assert_eq!(code, "error occur");
}

#[test]
fn attaching_again_with_a_tag_replaces_the_tag_only_where_there_is_one() {
    let mut topology = two_nics();
    let attach = |t: &mut Topology, vlan| t.port_attach(1, "merger", PortName::Ring(1), Direction::Rx, vlan);
    assert_eq!(refused(&mut topology, |t| attach(t, add(5))), "Invalid value (port)");
    topology.port_detach(1, "merger", PortName::Ring(1), Direction::Rx).unwrap();
    attach(&mut topology, add(5)).unwrap();
    attach(&mut topology, add(6)).unwrap();
    assert_eq!(refused(&mut topology, |t| attach(t, VlanOp::Del)), "Invalid value (port)");
    assert_eq!(topology.attachment_mut((Direction::Rx, PortName::Ring(1))).unwrap().vlan, add(6));
}

#[test]
fn vlan_ids_and_priorities_out_of_range_are_refused() {
    let mut topology = two_nics();
    topology.port_detach(1, "merger", PortName::Ring(1), Direction::Rx).unwrap();
    for (vid, pcp, expected) in [(4096, 0, "port vid"), (u16::MAX, 0, "port vid"), (5, 8, "port pcp")] {
        let vlan = VlanOp::Add { vid, pcp };
        let code =
            refused(&mut topology, |t| t.port_attach(1, "merger", PortName::Ring(1), Direction::Rx, vlan));
        assert_eq!(code, format!("Invalid value ({expected})"));
    }
}

fn entry(vid: Option<u16>, mac: u8, port: PortName) -> Entry {
    Entry { vid, dst: Dst::Mac(MacAddr([2, 0, 0, 0, 0, mac])), port }
}

#[test]
fn a_port_may_have_several_entries_but_none_twice() {
    let mut topology = two_nics();
    let ring = PortName::Ring(0);
    topology.table_add(1, entry(None, 1, ring)).unwrap();
    topology.table_add(1, entry(None, 2, ring)).unwrap();
    topology.table_add(1, entry(Some(5), 1, ring)).unwrap();
    topology.table_add(1, Entry { vid: None, dst: Dst::Default, port: ring }).unwrap();
    topology
        .table_add(1, Entry { vid: None, dst: parse_dst("00:00:00:00:00:01").unwrap(), port: ring })
        .unwrap();
    assert_eq!(refused(&mut topology, |t| t.table_add(1, entry(None, 2, ring))), "Invalid value (port)");
    assert_eq!(refused(&mut topology, |t| t.table_del(1, entry(None, 3, ring))), "Invalid value (port)");
    assert_eq!(
        refused(&mut topology, |t| t.table_add(1, entry(None, 1, PortName::Ring(4)))),
        "Invalid value (port)"
    );
    assert_eq!(
        refused(&mut topology, |t| t.table_add(1, entry(Some(4095), 1, ring))),
        "Invalid value (vlan id)"
    );
    topology.table_del(1, entry(None, 2, ring)).unwrap();
    assert_eq!(topology.vf(1).unwrap().entries.len(), 4);
}

#[test]
fn entries_survive_detach_and_stop() {
    let mut topology = two_nics();
    topology.table_add(1, entry(None, 1, PortName::Ring(0))).unwrap();
    topology.component_stop(1, "classifier").unwrap();
    assert_eq!(topology.vf(1).unwrap().entries.len(), 1);
}

#[test]
fn addresses_nobody_has_are_refused() {
    assert!(parse_dst("0200.0000.000a").is_err());
    let zero = Entry { vid: None, dst: parse_dst("0:0:0:0:0:0").unwrap(), port: PortName::Ring(0) };
    assert_eq!(refused(&mut two_nics(), |t| t.table_add(1, zero)), "Invalid value (mac address)");
}

#[test]
fn flat_plug_is_one_entry_and_opens_the_gate() {
    let mut topology = two_nics();
    assert!(topology.is_gated(PortName::Vhost(2)) && topology.is_gated(PortName::Ring(5)));
    topology.plug(&plug(2, 9, None)).unwrap();
    assert_eq!(topology.vf(2).unwrap().entries, [entry(None, 9, PortName::Ring(4))]);
    assert!(!topology.is_gated(PortName::Vhost(2)) && !topology.is_gated(PortName::Ring(5)));
    assert!(topology.is_gated(PortName::Ring(7)) && !topology.is_gated(PortName::Ring(4)));
    topology.unplug(2).unwrap();
    assert_eq!(topology, two_nics());
}

#[test]
fn vlan_plug_sets_the_tags_the_contract_names_and_unplug_takes_them_back() {
    let mut topology = two_nics();
    topology.plug(&plug(1, 9, Some(100))).unwrap();
    assert_eq!(topology.attachment_mut((Direction::Tx, PortName::Ring(2))).unwrap().vlan, VlanOp::Del);
    assert_eq!(topology.attachment_mut((Direction::Rx, PortName::Ring(3))).unwrap().vlan, add(100));
    assert_eq!(topology.vf(1).unwrap().entries, [entry(Some(100), 9, PortName::Ring(2))]);
    topology.unplug(1).unwrap();
    topology.unplug(1).unwrap();
    assert_eq!(topology, two_nics());
}

#[test]
fn replug_with_the_same_mac_and_another_vlan_takes_the_new_vlan() {
    let mut topology = two_nics();
    topology.plug(&plug(1, 9, Some(100))).unwrap();
    topology.plug(&plug(1, 9, Some(200))).unwrap();
    assert_eq!(topology.vf(1).unwrap().entries, [entry(Some(200), 9, PortName::Ring(2))]);
    assert_eq!(topology.attachment_mut((Direction::Rx, PortName::Ring(3))).unwrap().vlan, add(200));
    topology.plug(&plug(1, 9, None)).unwrap();
    assert_eq!(topology.attachment_mut((Direction::Rx, PortName::Ring(3))).unwrap().vlan, VlanOp::None);
}

#[test]
fn plugs_that_cannot_be_are_refused_and_keep_the_old_one() {
    let mut topology = two_nics();
    topology.plug(&plug(1, 9, Some(100))).unwrap();
    for bad in [plug(4, 9, None), plug(1, 9, Some(0)), plug(1, 9, Some(4095)), plug(1, 9, Some(u16::MAX))] {
        refused(&mut topology, |t| t.plug(&bad));
    }
    for mac in [MacAddr([0; 6]), MacAddr::BROADCAST] {
        assert_eq!(
            refused(&mut topology, |t| t.plug(&Plug { vhost: 1, mac, vlan: None })),
            "Invalid value (mac address)"
        );
    }
    assert_eq!(refused(&mut topology, |t| t.unplug(4)), "Invalid value (port)");
}

#[test]
fn plug_finds_its_way_without_forwarders() {
    let json = r#"{"vf": [{"num_vhost": 2, "pci_address": "null:", "physical_network": "p", "core_mask": "0x7", "components": [
        {"core": 1, "type": "classifier_mac", "name": "c", "rx_port": ["phy:0"], "tx_port": ["vhost:0", "vhost:1"]},
        {"core": 2, "type": "merge", "name": "m", "rx_port": ["vhost:0", "vhost:1"], "tx_port": ["phy:0"]}]}]}"#;
    let config = NodeConfig::parse(json.as_bytes()).unwrap();
    let mut topology = Topology::from_config(&config, true).unwrap();
    topology.plug(&plug(1, 9, Some(100))).unwrap();
    assert_eq!(topology.attachment_mut((Direction::Tx, PortName::Vhost(1))).unwrap().vlan, VlanOp::Del);
    assert_eq!(topology.attachment_mut((Direction::Rx, PortName::Vhost(1))).unwrap().vlan, add(100));
    assert!(topology.is_gated(PortName::Vhost(0)) && !topology.is_gated(PortName::Vhost(1)));
}

#[test]
fn plug_of_a_vhost_that_leads_nowhere_is_refused() {
    let mut topology = two_nics();
    topology.component_stop(1, "forward_0_tx").unwrap();
    assert_eq!(refused(&mut topology, |t| t.plug(&plug(0, 9, None))), "Invalid value (port)");
}

#[test]
fn components_that_run_in_circles_do_not_hang_a_plug() {
    let mut topology = two_nics();
    topology.component_stop(1, "forward_0_rx").unwrap();
    for (name, from, to) in [("x", 6, 7), ("y", 7, 6)] {
        topology.component_stop(2, "forward_3_tx").unwrap();
        topology.component_stop(2, "forward_3_rx").unwrap();
        topology.component_stop(2, "merger").unwrap();
        topology.component_stop(2, "classifier").unwrap();
        topology.component_start(1, name, 3, ComponentKind::Merge).unwrap();
        topology.port_attach(1, name, PortName::Ring(from), Direction::Rx, VlanOp::None).unwrap();
        topology.port_attach(1, name, PortName::Ring(to), Direction::Tx, VlanOp::None).unwrap();
    }
    topology.port_attach(1, "x", PortName::Vhost(0), Direction::Rx, VlanOp::None).unwrap();
    refused(&mut topology, |t| t.plug(&plug(0, 9, None)));
    assert!(!topology.is_gated(PortName::Phy(0)));
    topology.is_gated(PortName::Ring(6));
}

#[test]
fn ungated_node_gates_nothing() {
    let config = NodeConfig::from_mappings("null:#p#1#0x3e").unwrap();
    let topology = Topology::from_config(&config, false).unwrap();
    assert!(!topology.is_gated(PortName::Vhost(0)));
}
