//! The agent against a real etcd server: exact keys, and everything etcd and the agent can suffer.
//!
//! Each test has a server of its own on loopback; without the `etcd` binary they are skipped.

mod binary;
mod configuration;
mod crash;
mod faults;
mod keys;
mod names;
mod restart;
mod secure;
// Shared with tests/neutron, which uses more of it.
#[allow(dead_code)]
mod support;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions};
use spp_agent::{ConfigError, Key, Name, PortState, SlotId};
use support::driver::{Driver, dump, values};
use support::node::{Agent, Moment, Node, config, configuration, put_config};
use support::proxy::Proxy;
use support::server::Etcd;
use support::{in_time, until};

const HOST: &str = "spp4";
const PORT: &str = "6160c9da-b2d5-4236-8413-7d646e5c0ae2";
const MAC: &str = "fa:16:3e:a0:da:db";
const CONFIGURATION: &str = r#"[{"num_vhost": 2, "core_mask": "0xfe", "pci_address": "00:04.0", "physical_network": "phys1"}, {"num_vhost": 2, "core_mask": "0xfc02", "pci_address": "00:05.0", "physical_network": "phys2"}]"#;

/// A server with the document's host on it, and the driver for it. None: skipped.
async fn lab(test: &str) -> Option<(Etcd, Driver)> {
    let etcd = Etcd::start(test).await?;
    put_config(&etcd.url(), HOST, CONFIGURATION).await;
    let driver = Driver::new(etcd.client().await, HOST);
    Some((etcd, driver))
}

fn slot(physnet: &str, vhost: u32) -> Key {
    Key::Vhost(SlotId { physnet: Name::new(physnet).unwrap(), vhost })
}

/// The document's first example, "just after construction".
fn document_unused() -> Vec<(String, String)> {
    let pairs = [
        ("configuration/spp4", CONFIGURATION),
        ("vhost/spp4/phys1/0", "None"),
        ("vhost/spp4/phys1/1", "None"),
        ("vhost/spp4/phys2/2", "None"),
        ("vhost/spp4/phys2/3", "None"),
    ];
    pairs.map(|(key, value)| (format!("/spp/openstack/{key}"), value.to_string())).into()
}

/// The document's second example, "one vhostuser using".
fn document_one_in_use() -> Vec<(String, String)> {
    let mut keys = document_unused();
    keys[1].1 = PORT.into();
    let bind_port = format!("{{\"vhost_id\": 0, \"mac_address\": \"{MAC}\"}}");
    for (family, value) in [("action", "plug"), ("bind_port", &bind_port), ("port_status", "up")] {
        keys.push((format!("/spp/openstack/{family}/spp4/{PORT}"), value.into()));
    }
    keys.sort();
    keys
}
