//! `spp nic list|stats|bind|unbind`: which NICs there are, who drives them, and what they counted.

use serde_json::json;
use spp_drivers::pci::sysfs::{self, BindError, BindOptions, Bound, Interface, NicEntry};
use spp_pipeline::status::NicStatus;

use crate::api::NodeReport;
use crate::cli::{Nic, NicBind, NicList, NicStats, NicUnbind, NodeAddress};
use crate::client::Client;
use crate::fail::{Exit, Failure, chain};
use crate::output;

/// Runs one of them.
pub fn run(command: &Nic) -> Result<(), Failure> {
    match command {
        Nic::List(args) => list(args),
        Nic::Stats(args) => stats(args),
        Nic::Bind(args) => bind(args),
        Nic::Unbind(args) => unbind(args),
    }
}

/// A NIC as the kernel lists it, with its link.
#[derive(serde::Serialize)]
struct Listed {
    #[serde(flatten)]
    nic: NicEntry,
    /// spp has a driver for it, and an IOMMU guards it.
    drivable: bool,
    /// `null`: nobody can tell, since nobody drives it.
    link: Option<String>,
    /// `phy:0` of the running node.
    port: Option<String>,
}

fn list(args: &NicList) -> Result<(), Failure> {
    let nics = sysfs::list_nics().map_err(|e| Failure::failed(format!("can't list NICs: {e}")))?;
    let held = nics.iter().any(|nic| nic.kernel_driver.as_deref() == Some("vfio-pci"));
    let running = if held { nics_of_node(&args.node).unwrap_or_default() } else { Vec::new() };
    let nics: Vec<Listed> = nics.into_iter().map(|nic| listed(nic, &running)).collect();
    if args.json {
        return output::json(&nics);
    }
    if nics.is_empty() {
        return output::line(
            "no network cards on the PCI bus; software devices (tap:, pcap:, vhost-user:) need none",
        );
    }
    let headings =
        ["address", "id", "kernel driver", "spp driver", "iommu group", "numa", "link", "interfaces"];
    let mut rows = vec![headings.map(String::from).to_vec()];
    rows.extend(nics.iter().map(row));
    output::line(&output::columns(&rows))
}

/// The NICs of the running node.
fn nics_of_node(node: &NodeAddress) -> Result<Vec<NicStatus>, Failure> {
    let report = Client::new(&node.api).get("/v1/node")?;
    let report: NodeReport = serde_json::from_value(report)
        .map_err(|e| Failure::failed(format!("the node's status is of another version: {e}")))?;
    Ok(report.node.vfs.into_iter().map(|vf| vf.nic).collect())
}

fn listed(nic: NicEntry, running: &[NicStatus]) -> Listed {
    let address = nic.address.to_string();
    let ours = running.iter().find(|status| status.address == address);
    let of_kernel = |interface: &Interface| {
        let speed = interface.speed_mbps.map_or_else(String::new, |mbps| format!(", {mbps} Mbit/s"));
        interface.link_up.map(|up| if up { format!("up{speed}") } else { "down: no carrier".to_owned() })
    };
    let link = ours.map(|status| status.link.clone());
    Listed {
        drivable: nic.spp_driver.is_some() && nic.iommu_group.is_some(),
        link: link.or_else(|| nic.interfaces.iter().find_map(of_kernel)),
        port: ours.map(|status| status.port.clone()),
        nic,
    }
}

fn row(listed: &Listed) -> Vec<String> {
    let Listed { nic, drivable, link, port } = listed;
    let dash = || "-".to_owned();
    let number = |n: Option<u32>| n.map_or_else(dash, |n| n.to_string());
    let mut interfaces: Vec<String> = nic.interfaces.iter().map(|interface| interface.name.clone()).collect();
    if nic.default_route {
        interfaces.push("(default route)".to_owned());
    }
    interfaces.extend(port.clone());
    let spp_driver = match (nic.spp_driver, drivable) {
        (None, _) => dash(),
        (Some(driver), true) => driver.to_owned(),
        (Some(driver), false) => format!("{driver} (needs an IOMMU)"),
    };
    vec![
        nic.address.to_string(),
        format!("{:04x}:{:04x}", nic.vendor, nic.device),
        nic.kernel_driver.clone().unwrap_or_else(dash),
        spp_driver,
        number(nic.iommu_group),
        number(nic.numa_node),
        link.clone().unwrap_or_else(dash),
        if interfaces.is_empty() { dash() } else { interfaces.join(" ") },
    ]
}

fn stats(args: &NicStats) -> Result<(), Failure> {
    let nics = nics_of_node(&args.node)?;
    let Some(nic) = nics.iter().find(|nic| nic.port == args.port) else {
        let ports: Vec<&str> = nics.iter().map(|nic| nic.port.as_str()).collect();
        let has = ports.join(", ");
        return Err(Failure::refused(format!("the node has no NIC {}; it has {has}", args.port)));
    };
    if args.json {
        return output::json(nic);
    }
    output::line(&format!(
        "{}: {} at {}, {}, link {}",
        nic.port, nic.driver, nic.address, nic.state, nic.link
    ))?;
    let mut rows = vec![vec!["counter".to_owned(), "value".to_owned()]];
    for (side, counters) in [("rx", &nic.rx), ("tx", &nic.tx)] {
        let mut add = |name: String, n: u64| rows.push(vec![name, n.to_string()]);
        add(format!("{side} packets"), counters.packets);
        add(format!("{side} bytes"), counters.bytes);
        counters.drops.iter().for_each(|(reason, n)| add(format!("{side} dropped {reason}"), *n));
    }
    rows.push(vec!["restarts".to_owned(), nic.restarts.to_string()]);
    rows.extend(nic.device.iter().filter(|c| *c.1 > 0).map(|(name, n)| vec![name.clone(), n.to_string()]));
    output::line(&output::columns(&rows))
}

fn bind(args: &NicBind) -> Result<(), Failure> {
    let options = BindOptions { force: args.force, ..BindOptions::default() };
    let bound = sysfs::bind(args.address, &options).map_err(|e| failure(&e))?;
    let (changed, before) = match &bound {
        Bound::Already => (false, None),
        Bound::From(driver) => (true, driver.as_deref()),
    };
    if args.json {
        let address = args.address;
        return output::json(
            &json!({"address": address, "driver": "vfio-pci", "changed": changed, "before": before}),
        );
    }
    output::line(&match (changed, before) {
        (false, _) => format!("{} is bound to vfio-pci already", args.address),
        (true, None) => format!("{} is bound to vfio-pci; it had no driver before", args.address),
        (true, Some(driver)) => format!("{} is bound to vfio-pci; it was {driver}'s", args.address),
    })
}

fn unbind(args: &NicUnbind) -> Result<(), Failure> {
    let now = sysfs::unbind(args.address, &BindOptions::default()).map_err(|e| failure(&e))?.0;
    if args.json {
        return output::json(&json!({"address": args.address, "driver": now}));
    }
    output::line(&match now {
        Some(driver) => format!("{} is {driver}'s again", args.address),
        None => format!("{} has no driver, as before", args.address),
    })
}

fn failure(error: &BindError) -> Failure {
    let refused = matches!(error, BindError::DefaultRoute { .. } | BindError::NotBound { .. });
    Failure { exit: if refused { Exit::Refused } else { Exit::Failed }, message: chain(error) }
}
