//! Two guests patched together.

use spp_pipeline::config::NodeConfig;
use spp_pipeline::names::{ComponentKind, PortName};
use spp_pipeline::node::{Node, NodeOptions};
use spp_pipeline::plan::VlanOp;
use spp_pipeline::topology::Direction;

use crate::support::*;

#[test]
fn forward_between_two_guests_needs_no_buffers_until_it_changes_tags() {
    let site = Site::new();
    let wire = format!("vhost-user:{}", site.path("wire0").display());
    let json = serde_json::json!({"vf": [{"num_vhost": 2, "pci_address": wire, "physical_network": "p",
        "core_mask": "0xe", "components": []}]});
    let config = NodeConfig::parse(json.to_string().as_bytes()).unwrap();
    let options = NodeOptions { gate_unplugged: false, ..site.options() };
    let mut node = Node::start(config, options).unwrap();
    for (name, from, to) in [("there", 0, 1), ("back", 1, 0)] {
        node.component_start(1, name, 2, ComponentKind::Forward).unwrap();
        node.port_attach(1, name, PortName::Vhost(from), Direction::Rx, VlanOp::None).unwrap();
        node.port_attach(1, name, PortName::Vhost(to), Direction::Tx, VlanOp::None).unwrap();
    }
    let (mut one, mut other) = (site.guest(&mut node, 0), site.guest(&mut node, 1));
    let pool = node.pool().clone();
    let mut cache = pool.cache();
    let hoard: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    for id in 0..300 {
        send(&mut one, &frame(mac(1), None, id));
        assert_eq!(receive_id(&mut other), (None, id));
        send(&mut other, &frame(mac(0), Some(7), id));
        assert_eq!(receive_id(&mut one), (Some(7), id));
    }
    drop(hoard);
    // A tag needs a buffer to be put on in.
    node.port_detach(1, "there", PortName::Vhost(1), Direction::Tx).unwrap();
    let tag = VlanOp::Add { vid: 42, pcp: 0 };
    node.port_attach(1, "there", PortName::Vhost(1), Direction::Tx, tag).unwrap();
    send(&mut one, &frame(mac(1), None, 300));
    assert_eq!(receive_id(&mut other), (Some(42), 300));
    let status = node.status();
    let there = status.vfs[0].components.iter().find(|component| component.name == "there").unwrap();
    assert_eq!((there.rx_packets, there.tx_packets), (301, 301), "{there:#?}");
    drop((node, cache));
    assert_eq!(pool.counts().out, 0);
}
