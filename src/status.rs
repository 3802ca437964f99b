//! `spp status`: the node's status for people. Also the demo's table, with rates in place of totals.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use spp_pipeline::status::{
    ComponentStatus, NodeStatus, PlugStatus, QueueStatus, RingUse, VfStatus, VhostStatus,
};
use spp_pipeline::topology::{Tap, Way};

use crate::api::NodeReport;
use crate::cli::Status;
use crate::client::Client;
use crate::fail::Failure;
use crate::output;

/// `spp status`
pub fn run(args: &Status) -> Result<(), Failure> {
    let report = Client::new(&args.node.api).get("/v1/node")?;
    if args.json {
        return output::json(&report);
    }
    let report: NodeReport = serde_json::from_value(report)
        .map_err(|e| Failure::failed(format!("the node's status is of another version ({e}): use --json")))?;
    output::line(&head(&report.node))?;
    for (i, _) in report.node.vfs.iter().enumerate() {
        output::line(&format!("\n{}", vf_text(&report.node, i, None)))?;
    }
    if !report.node.mirrors.is_empty() {
        output::line(&format!("\n{}", mirrors(&report.node)))?;
    }
    if let Some(agent) = &report.agent {
        output::line(&format!("\n{}", agent_text(agent)))?;
    }
    Ok(())
}

fn head(node: &NodeStatus) -> String {
    let pool = &node.pool;
    let seconds = node.uptime_ms / 1000;
    let up = format!("{} h {:02} min {:02} s", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let pages = match pool.page_size_bytes >> 20 {
        0 => format!("{} KiB", pool.page_size_bytes >> 10),
        mib => format!("{mib} MiB"),
    };
    let mut text = format!(
        "spp {}, up {up}; {} packet buffers in pages of {pages}, {} free",
        node.version, pool.buffers, pool.free
    );
    if node.fold_cores {
        text += "\ncores are folded: each NIC has two threads, which share CPUs and sleep when idle";
    }
    let fused: Vec<&str> =
        node.rings.iter().filter(|ring| ring.fused).map(|ring| ring.port.as_str()).collect();
    if !fused.is_empty() {
        text += &format!("\nfused, their components share a core: {}", fused.join(", "));
    }
    node.warnings.iter().fold(text, |text, warning| format!("{text}\nwarning: {warning}"))
}

/// An earlier status and how long ago it was: numbers become rates since then.
pub type Since<'a> = (&'a NodeStatus, Duration);

/// Ports and components of vf number `index`.
pub fn vf_text(node: &NodeStatus, index: usize, since: Option<Since>) -> String {
    let vf = &node.vfs[index];
    let before = since.and_then(|(before, elapsed)| Some((before.vfs.get(index)?, elapsed)));
    let title = format!(
        "vf {}: {} on {} ({}), link {}",
        vf.id, vf.nic.driver, vf.physical_network, vf.nic.address, vf.nic.link
    );
    format!("{title}\n{}\n\n{}", ports(vf, before), components(vf, before))
}

type VfBefore<'a> = Option<(&'a VfStatus, Duration)>;

fn ports(vf: &VfStatus, before: VfBefore) -> String {
    let unit = if before.is_some() { "/s" } else { "" };
    let headings = ["port", "state", "plug", &format!("in{unit}"), &format!("out{unit}"), "drops"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    let nic = &vf.nic;
    let old = before.map(|(old, t)| (&old.nic, t));
    rows.push(vec![
        nic.port.clone(),
        nic.state.clone(),
        "-".to_owned(),
        number(nic.rx.packets, old.map(|(old, t)| (old.rx.packets, t))),
        number(nic.tx.packets, old.map(|(old, t)| (old.tx.packets, t))),
        drops([&nic.rx.drops, &nic.tx.drops]),
    ]);
    for (i, vhost) in vf.vhosts.iter().enumerate() {
        let old = before.and_then(|(old, t)| Some((old.vhosts.get(i)?, t)));
        let state = if vhost.detail.is_empty() {
            vhost.state.clone()
        } else {
            format!("{} ({})", vhost.state, vhost.detail)
        };
        rows.push(vec![
            vhost.port.clone(),
            state,
            vhost.plug.as_ref().map_or("-".to_owned(), plug_text),
            number(vhost.from_guest.packets, old.map(|(old, t)| (old.from_guest.packets, t))),
            number(vhost.to_guest.packets, old.map(|(old, t)| (old.to_guest.packets, t))),
            drops([&vhost.from_guest.drops, &vhost.to_guest.drops]),
        ]);
        rows.extend(queues(vhost, old.map(|(old, t)| (&old.queues[..], t))));
    }
    output::columns(&rows)
}

/// The queues of a guest that has several, and the components that have them.
fn queues(vhost: &VhostStatus, before: Option<(&[QueueStatus], Duration)>) -> Vec<Vec<String>> {
    if vhost.queues.len() < 2 {
        return Vec::new();
    }
    let row = |(n, queue): (usize, &QueueStatus)| {
        let old = before.and_then(|(old, t)| Some((old.get(n)?, t)));
        let QueueStatus { from_guest, to_guest } = queue;
        let name = |ring: &RingUse| ring.component.clone().unwrap_or_else(|| "nobody".to_owned());
        vec![
            format!("  queue {n}"),
            if to_guest.running && from_guest.running { "running" } else { "off" }.to_owned(),
            format!("{} / {}", name(from_guest), name(to_guest)),
            number(from_guest.packets, old.map(|(old, t)| (old.from_guest.packets, t))),
            number(to_guest.packets, old.map(|(old, t)| (old.to_guest.packets, t))),
            "-".to_owned(),
        ]
    };
    vhost.queues.iter().enumerate().map(row).collect()
}

fn components(vf: &VfStatus, before: VfBefore) -> String {
    let unit = if before.is_some() { "/s" } else { "" };
    let (rx, tx) = (format!("rx{unit}"), format!("tx{unit}"));
    let headings = ["component", "type", "core", "state", "busy", &rx, &tx, "drops"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for component in &vf.components {
        let is_same = |old: &&ComponentStatus| old.name == component.name;
        let old = before.and_then(|(old, t)| Some((old.components.iter().find(is_same)?, t)));
        rows.push(vec![
            component.name.clone(),
            component.kind.name().to_owned(),
            component.core.to_string(),
            component.state.clone(),
            format!("{:.0}%", component.busy_percent),
            number(component.rx_packets, old.map(|(old, t)| (old.rx_packets, t))),
            number(component.tx_packets, old.map(|(old, t)| (old.tx_packets, t))),
            drops([&component.drops, &BTreeMap::new()]),
        ]);
    }
    output::columns(&rows)
}

/// What each mirror does. Drops are copies that the watcher's side did not take.
fn mirrors(node: &NodeStatus) -> String {
    let headings = ["mirror", "core", "state", "mirrors", "rx", "copies", "drops"];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    for mirror in &node.mirrors {
        let component = &mirror.component;
        rows.push(vec![
            component.name.clone(),
            component.core.to_string(),
            component.state.clone(),
            mirror.tap.map_or("-".to_owned(), tap_text),
            component.rx_packets.to_string(),
            component.copies.to_string(),
            drops([&component.drops, &BTreeMap::new()]),
        ]);
    }
    output::columns(&rows)
}

fn tap_text(tap: Tap) -> String {
    let way = if tap.way == Way::In { "to" } else { "from" };
    format!("{way} vhost:{}, for vhost:{}", tap.source, tap.dest)
}

/// A count, or its rate per second since an earlier one.
fn number(now: u64, before: Option<(u64, Duration)>) -> String {
    match before {
        None => now.to_string(),
        Some((before, elapsed)) => {
            let rate = now.saturating_sub(before) as f64 / elapsed.as_secs_f64().max(1e-3);
            format!("{rate:.0}")
        }
    }
}

fn plug_text(plug: &PlugStatus) -> String {
    plug.vlan.map_or_else(|| format!("{} flat", plug.mac), |vlan| format!("{} VLAN {vlan}", plug.mac))
}

/// `ring_full 3, runt 1`, of two directions together.
fn drops(directions: [&BTreeMap<String, u64>; 2]) -> String {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, n) in directions.into_iter().flatten() {
        *sums.entry(reason).or_default() += n;
    }
    let texts: Vec<String> = sums.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(", ") }
}

/// The agent: its connection, and each port with its reason.
fn agent_text(agent: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let etcd = &agent["etcd"];
    let connected = if etcd["connected"].as_bool() == Some(true) { "connected" } else { "not connected" };
    let mut lines =
        vec![format!("etcd {}: {connected}, revision {}", text(&etcd["endpoint"]), etcd["revision"])];
    for (key, what) in [("node_error", "the node did not answer"), ("last_error", "last error")] {
        let error = if key == "node_error" { &agent[key] } else { &etcd[key] };
        lines.extend(error.as_str().map(|error| format!("  {what}: {error}")));
    }
    lines.extend(crate::agent_cmd::heartbeat(&agent["heartbeat"]));
    if let Some(key) = agent["node_key"]["key"].as_str() {
        let kept = if agent["node_key"]["held"].as_bool() == Some(true) { "kept" } else { "not kept" };
        lines.push(format!("node key {key}: {kept}"));
        let error = agent["node_key"]["last_error"].as_str();
        lines.extend(error.map(|error| format!("  last error: {error}")));
    }
    if agent["configuration_changed"].as_bool() == Some(true) {
        lines.push("  the configuration has changed: restart spp to apply it".to_owned());
    }
    let ports = agent["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !ports.is_empty() {
        let mut rows = vec![["port", "vhost", "state", "why"].map(str::to_owned).to_vec()];
        rows.extend(ports.iter().map(|port| {
            let plug = if port["live"].is_null() { &port["wanted"] } else { &port["live"] };
            let vhost = plug["vhost"].as_u64().map_or("-".to_owned(), |vhost| vhost.to_string());
            vec![text(&port["port"]), vhost, text(&port["state"]), text(&port["why"])]
        }));
        lines.push(output::columns(&rows));
    }
    let taps = agent["taps"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !taps.is_empty() {
        let mut rows = vec![["tap flow", "of port", "to port", "state", "why"].map(str::to_owned).to_vec()];
        let keys = ["tap", "source_port", "service_port", "state", "why"];
        rows.extend(taps.iter().map(|tap| keys.map(|key| text(&tap[key])).to_vec()));
        lines.push(output::columns(&rows));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_drops_of_both_directions_add_up() {
        assert_eq!(number(150, Some((100, Duration::from_millis(500)))), "100");
        assert_eq!(number(150, None), "150");
        let some = |pairs: &[(&str, u64)]| {
            pairs.iter().map(|(k, v)| (k.to_string(), *v)).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(
            drops([&some(&[("runt", 1)]), &some(&[("runt", 2), ("oversize", 1)])]),
            "oversize 1, runt 3"
        );
        assert_eq!(drops([&some(&[]), &some(&[])]), "-");
    }

    #[test]
    fn agent_shows_why_a_port_is_not_up() {
        let agent = serde_json::json!({
            "etcd": {"connected": false, "endpoint": "http://a:2379", "revision": 7, "last_error": "refused"},
            "configuration_changed": true, "node_error": null,
            "ports": [{"port": "p1", "wanted": {"vhost": 1}, "live": null, "state": "refused", "why": "no such vhost"}],
        });
        let text = agent_text(&agent);
        for part in ["not connected, revision 7", "last error: refused", "restart spp", "no such vhost"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
