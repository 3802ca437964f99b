use serde_json::{Value, json};

use super::*;
use crate::config::NodeConfig;
use crate::topology::{Direction, Plug, Stage, Tap, Way, parse_dst};
use spp_drivers::MacAddr;

/// A vf without components on cores 1 (master), 2 and 3, with 4 vhosts.
fn empty_vf() -> Topology {
    let json = r#"{"vf": [{"num_vhost": 4, "pci_address": "null:", "physical_network": "p", "core_mask": "0x6", "components": []}]}"#;
    Topology::from_config(&NodeConfig::parse(json.as_bytes()).unwrap(), false).unwrap()
}

#[test]
fn status_has_the_recorded_keys_in_the_recorded_order() {
    let mut topology = empty_vf();
    topology.component_start(1, "c", 2, ComponentKind::Classifier).unwrap();
    let tag = VlanOp::Add { vid: 300, pcp: 5 };
    for (port, direction, vlan) in [
        (PortName::Vhost(0), Direction::Rx, VlanOp::None),
        (PortName::Vhost(1), Direction::Tx, tag),
        (PortName::Vhost(3), Direction::Tx, VlanOp::Del),
    ] {
        topology.port_attach(1, "c", port, direction, vlan).unwrap();
    }
    for (vid, dst, port) in [
        (None, "02:00:00:00:00:0a", 1),
        (None, "default", 3),
        (Some(100), "02:00:00:00:00:0a", 1),
        (Some(100), "default", 3),
        (Some(0), "02:00:00:00:00:0a", 3),
    ] {
        let entry = Entry { vid, dst: parse_dst(dst).unwrap(), port: PortName::Vhost(port) };
        topology.table_add(1, entry).unwrap();
    }
    let text = serde_json::to_string(&VfJson::new(&topology, 1).unwrap()).unwrap();
    let expected = concat!(
        r#"{"client-id":1,"ports":["phy:0","vhost:0","vhost:1","vhost:3"],"master-lcore":1,"components":["#,
        r#"{"core":2,"name":"c","type":"classifier","#,
        r#""rx_port":[{"port":"vhost:0","vlan":{"operation":"none","id":0,"pcp":0}}],"#,
        r#""tx_port":[{"port":"vhost:1","vlan":{"operation":"add","id":300,"pcp":5}},"#,
        r#"{"port":"vhost:3","vlan":{"operation":"del","id":0,"pcp":0}}]}],"#,
        r#""classifier_table":[{"type":"vlan","value":"0/02:00:00:00:00:0A","port":"vhost:3"},"#,
        r#"{"type":"vlan","value":"100/default","port":"vhost:3"},"#,
        r#"{"type":"vlan","value":"100/02:00:00:00:00:0A","port":"vhost:1"},"#,
        r#"{"type":"mac","value":"default","port":"vhost:3"},"#,
        r#"{"type":"mac","value":"02:00:00:00:00:0A","port":"vhost:1"}]}"#,
    );
    assert_eq!(text, expected);
}

#[test]
fn cores_without_components_are_listed_as_unuse_and_the_master_is_not() {
    let vf = serde_json::to_value(VfJson::new(&empty_vf(), 1).unwrap()).unwrap();
    assert_eq!(vf["components"], json!([{"core": 2, "type": "unuse"}]));
    assert_eq!(vf["master-lcore"], 1);
    assert!(VfJson::new(&empty_vf(), 2).is_none());
}

#[test]
fn port_stays_listed_after_detach_and_entries_of_a_stopped_classifier_do_not() {
    let mut topology = empty_vf();
    topology.component_start(1, "c", 2, ComponentKind::Classifier).unwrap();
    topology.port_attach(1, "c", PortName::Vhost(1), Direction::Tx, VlanOp::None).unwrap();
    let entry = Entry { vid: None, dst: Dst::Default, port: PortName::Vhost(1) };
    topology.table_add(1, entry).unwrap();
    topology.component_stop(1, "c").unwrap();
    let vf = VfJson::new(&topology, 1).unwrap();
    assert!(vf.process.ports.contains(&PortName::Vhost(1)) && vf.classifier_table.is_empty());
}

#[test]
fn processes_and_usage_list_the_primary_first() {
    let config = NodeConfig::from_mappings("null:#a#1#0x3e,null:#b#1#0x7c1").unwrap();
    let topology = Topology::from_config(&config, false).unwrap();
    let text = serde_json::to_string(&processes(&topology)).unwrap();
    assert_eq!(text, r#"[{"type":"primary"},{"type":"vf","client-id":1},{"type":"vf","client-id":2}]"#);
    let usage = serde_json::to_value(cpu_usage(&topology)).unwrap();
    assert_eq!(usage[0], json!({"proc-type": "primary", "master-lcore": 1, "lcores": [1]}));
    assert_eq!(
        usage[2],
        json!({"proc-type": "vf", "client-id": 2, "master-lcore": 0, "lcores": [0, 6, 7, 8, 9]})
    );
}

#[test]
fn cpu_layout_groups_threads_by_core_and_socket() {
    let layout = cpu_layout(&[(0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 1, 0)]);
    let expected: Value = json!([
        {"socket_id": 0, "cores": [{"core_id": 0, "lcores": [0, 2]}, {"core_id": 1, "lcores": [1]}]},
        {"socket_id": 1, "cores": [{"core_id": 0, "lcores": [3]}]}
    ]);
    assert_eq!(serde_json::to_value(layout).unwrap(), expected);
    assert!(!read_cpus().unwrap().is_empty());
}

#[test]
fn cleared_counters_start_from_zero() {
    let ring = |tx| RingJson { id: 0, rx: tx, rx_drop: 0, tx, tx_drop: 0 };
    let with = |tx| PrimaryJson {
        master_lcore: 0,
        lcores: vec![0],
        phy_ports: vec![PhyJson { rx: tx, ..PhyJson::default() }],
        ring_ports: vec![ring(tx)],
        pipes: Vec::new(),
    };
    let now = with(10).since(&with(7));
    assert_eq!((now.ring_ports[0].tx, now.phy_ports[0].rx), (3, 3));
    let text = serde_json::to_string(&now).unwrap();
    assert!(text.starts_with(r#"{"master-lcore":0,"lcores":[0],"phy_ports":[{"id":0,"eth":"","rx":3,"tx":0,"tx_drop":0,"nof_queues":{"rx":1,"tx":1},"flow":[]}],"ring_ports":[{"id":0,"rx":3,"rx_drop":0"#), "{text}");
}

#[test]
fn mirrors_are_one_process_behind_the_vfs_and_show_what_a_tap_wires() {
    let json = br#"{"vf": [{"num_vhost": 2, "pci_address": "00:04.0", "physical_network": "p", "core_mask": "0xfe"}],
        "mirror": [{"core": 16, "ports": ["ring:4", "ring:5"]}, {"core": 17, "ports": ["ring:6", "ring:7"]}]}"#;
    let mut topology = Topology::from_config(&NodeConfig::parse(json).unwrap(), true).unwrap();
    assert_eq!(
        serde_json::to_string(&processes(&topology)).unwrap(),
        r#"[{"type":"primary"},{"type":"vf","client-id":1},{"type":"mirror","client-id":2}]"#
    );
    assert_eq!(cpu_usage(&topology)[2].lcores, [1, 16, 17]);
    assert_eq!((ProcessJson::mirrors(&topology, 1), VfJson::new(&topology, 2)), (None, None));
    assert_eq!(
        serde_json::to_string(&ProcessJson::mirrors(&topology, 2).unwrap()).unwrap(),
        concat!(
            r#"{"client-id":2,"ports":["phy:0"],"master-lcore":1,"components":["#,
            r#"{"core":16,"name":"mirror_0","type":"mirror","rx_port":[],"tx_port":[]},"#,
            r#"{"core":17,"name":"mirror_1","type":"mirror","rx_port":[],"tx_port":[]}]}"#
        )
    );
    for vhost in [0, 1] {
        let plug = Plug { vhost, mac: MacAddr([2, 0, 0, 0, 0, vhost as u8]), vlan: None };
        topology.plug(&plug).unwrap();
    }
    topology.tap(&Tap { mirror: 0, way: Way::In, source: 0, dest: 1 }).unwrap();
    topology.set_tap_stage(0, Stage::On);
    let mirror = ProcessJson::mirrors(&topology, 2).unwrap();
    let names = |ports: &Option<Vec<PortJson>>| -> Vec<String> {
        ports.iter().flatten().map(|port| port.port.to_string()).collect()
    };
    let c = &mirror.components[0];
    assert_eq!(
        (names(&c.rx_port), names(&c.tx_port)),
        (vec!["ring:0".into()], vec!["ring:5".into(), "ring:4".into()])
    );
    let vf = VfJson::new(&topology, 1).unwrap();
    let named =
        |name: &str| vf.process.components.iter().find(|c| c.name.as_deref() == Some(name)).unwrap().clone();
    assert_eq!(names(&named("forward_0_tx").rx_port), ["ring:5"]);
    let watcher = named("forward_1_tx");
    assert_eq!(
        (watcher.kind, names(&watcher.rx_port)),
        ("merge", vec!["ring:2".to_owned(), "ring:4".to_owned()])
    );
    assert!(vf.process.ports.contains(&PortName::Ring(4)));
}
