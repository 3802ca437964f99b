//! Reads what `spp status --json` says.

use serde_json::Value;

/// The state word of a vhost port; nothing while the node is still starting.
pub fn vhost_state(status: &Value, vhost: u32) -> Option<&str> {
    vhost_port(status, vhost)?["state"].as_str()
}

/// What a vhost port waits for, in words.
pub fn vhost_waits_for(status: &Value, vhost: u32) -> Option<&str> {
    vhost_port(status, vhost)?["detail"].as_str()
}

fn vhost_port(status: &Value, vhost: u32) -> Option<&Value> {
    items(status, "vfs").flat_map(|vf| items(vf, "vhosts")).find(|port| port["id"] == vhost)
}

/// How many packets the component of this name has taken.
pub fn component_packets(status: &Value, name: &str) -> u64 {
    let mut components = items(status, "vfs").flat_map(|vf| items(vf, "components"));
    let component = components.find(|component| component["name"] == name);
    component.and_then(|component| component["rx_packets"].as_u64()).unwrap_or_else(|| panic!("{status}"))
}

/// How many packets components have dropped for one reason.
pub fn drops(status: &Value, reason: &str) -> u64 {
    items(status, "vfs")
        .flat_map(|vf| items(vf, "components"))
        .filter_map(|component| component["drops"][reason].as_u64())
        .sum()
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[key].as_array().into_iter().flatten()
}
