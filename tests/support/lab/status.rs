//! Reads what `spp status --json` says.

use serde_json::Value;

/// The state word of a vhost port; nothing while the node is still starting.
pub fn vhost_state(status: &Value, vhost: u32) -> Option<&str> {
    items(status, "vfs")
        .flat_map(|vf| items(vf, "vhosts"))
        .find(|port| port["id"] == vhost)
        .and_then(|port| port["state"].as_str())
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
