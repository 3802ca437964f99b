//! The status replies recorded from the real SPP, rebuilt through the same commands.
//!
//! One intended difference: entries of one VLAN are sorted by address, not by hash.

use serde_json::Value;
use spp_pipeline::compat::VfJson;
use spp_pipeline::config::NodeConfig;
use spp_pipeline::names::PortName;
use spp_pipeline::plan::VlanOp;
use spp_pipeline::topology::{Direction, Entry, Topology, parse_dst};

fn vlan(json: &Value) -> VlanOp {
    match json["operation"].as_str().unwrap() {
        "add" => {
            VlanOp::Add { vid: json["id"].as_u64().unwrap() as u16, pcp: json["pcp"].as_u64().unwrap() as u8 }
        }
        "del" => VlanOp::Del,
        _ => VlanOp::None,
    }
}

fn port(json: &Value) -> PortName {
    json["port"].as_str().unwrap().parse().unwrap()
}

/// Runs the commands that lead to a recorded status; returns how many table entries were refused.
fn rebuild(topology: &mut Topology, status: &Value) -> usize {
    for component in status["components"].as_array().unwrap() {
        let Some(name) = component["name"].as_str() else { continue };
        let kind = component["type"].as_str().unwrap().parse().unwrap();
        topology.component_start(1, name, component["core"].as_u64().unwrap() as usize, kind).unwrap();
        for (key, direction) in [("rx_port", Direction::Rx), ("tx_port", Direction::Tx)] {
            for end in component[key].as_array().unwrap() {
                topology.port_attach(1, name, port(end), direction, vlan(&end["vlan"])).unwrap();
            }
        }
    }
    let mut refused = 0;
    for entry in status["classifier_table"].as_array().unwrap() {
        let value = entry["value"].as_str().unwrap();
        let (vid, dst) = match value.split_once('/') {
            Some((vid, dst)) => (Some(vid.parse().unwrap()), dst),
            None => (None, value),
        };
        let entry = Entry { vid, dst: parse_dst(dst).unwrap(), port: port(entry) };
        refused += usize::from(topology.table_add(1, entry).is_err());
    }
    refused
}

fn sorted(table: &Value) -> Vec<String> {
    let mut entries: Vec<String> = table.as_array().unwrap().iter().map(Value::to_string).collect();
    entries.sort();
    entries
}

#[test]
fn status_of_each_recorded_wiring_is_what_spp_said() {
    let recorded: Value = serde_json::from_str(include_str!("golden/packets.json")).unwrap();
    let recorded = recorded.as_array().unwrap();
    assert_eq!(recorded.len(), 11);
    for case in recorded {
        let status = &case["status"];
        let json = r#"{"vf": [{"num_vhost": 4, "pci_address": "null:", "physical_network": "p", "core_mask": "0x6", "components": []}]}"#;
        let config = NodeConfig::parse(json.as_bytes()).unwrap();
        let mut topology = Topology::from_config(&config, false).unwrap();
        assert_eq!(rebuild(&mut topology, status), 0, "{}", case["case"]);
        let ours = serde_json::to_value(VfJson::new(&topology, 1).unwrap()).unwrap();
        for key in ["client-id", "ports", "master-lcore", "components"] {
            assert_eq!(ours[key], status[key], "{}: {key}", case["case"]);
        }
        assert_eq!(
            sorted(&ours["classifier_table"]),
            sorted(&status["classifier_table"]),
            "{}",
            case["case"]
        );
    }
}
