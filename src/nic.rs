//! `spp nic list|bind|unbind`: which NICs there are and who drives them.

use serde_json::json;
use spp_drivers::pci::sysfs::{self, BindError, BindOptions, Bound, NicEntry};

use crate::cli::{Nic, NicBind, NicList, NicUnbind};
use crate::fail::{Exit, Failure, chain};
use crate::output;

/// Runs one of the three.
pub fn run(command: &Nic) -> Result<(), Failure> {
    match command {
        Nic::List(args) => list(args),
        Nic::Bind(args) => bind(args),
        Nic::Unbind(args) => unbind(args),
    }
}

fn list(args: &NicList) -> Result<(), Failure> {
    let nics = sysfs::list_nics().map_err(|e| Failure::failed(format!("can't list NICs: {e}")))?;
    if args.json {
        return output::json(&nics);
    }
    if nics.is_empty() {
        return output::line(
            "no network cards on the PCI bus; software devices (tap:, pcap:, vhost-user:) need none",
        );
    }
    let headings = ["address", "id", "kernel driver", "spp driver", "iommu group", "numa", "interfaces"];
    let mut rows = vec![headings.map(String::from).to_vec()];
    rows.extend(nics.iter().map(row));
    output::line(&output::columns(&rows))
}

fn row(nic: &NicEntry) -> Vec<String> {
    let dash = || "-".to_owned();
    let number = |n: Option<u32>| n.map_or_else(dash, |n| n.to_string());
    let mut interfaces: Vec<String> = nic.interfaces.iter().map(|interface| interface.name.clone()).collect();
    if nic.default_route {
        interfaces.push("(default route)".to_owned());
    }
    vec![
        nic.address.to_string(),
        format!("{:04x}:{:04x}", nic.vendor, nic.device),
        nic.kernel_driver.clone().unwrap_or_else(dash),
        nic.spp_driver.map_or_else(dash, str::to_owned),
        number(nic.iommu_group),
        number(nic.numa_node),
        if interfaces.is_empty() { dash() } else { interfaces.join(" ") },
    ]
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
