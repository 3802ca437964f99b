//! Network cards as the kernel knows them: who they are, who drives them, what depends on them.
//!
//! Reads `/sys` and `/proc/net`, changes nothing (that is [`super::bind`]'s job). Control
//! thread and command line only. Every root can be another directory, so that tests run on made-up machines.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::PciAddress;
pub use super::bind::{BindError, BindOptions, Bound, Unbound, bind, unbind};
use crate::nic::ids;

/// The spp driver for a PCI id, if there is one.
pub fn driver_for(vendor: u16, device: u16) -> Option<&'static str> {
    ids::family(vendor, device).map(ids::Family::driver)
}

/// A kernel network interface that sits on a NIC.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Interface {
    /// `eth0`
    pub name: String,
    /// Whether it has a carrier; unknown while the interface is down.
    pub link_up: Option<bool>,
    /// Where the kernel knows it.
    pub speed_mbps: Option<u32>,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NicEntry {
    /// Where it is.
    pub address: PciAddress,
    /// PCI vendor id.
    pub vendor: u16,
    /// PCI device id.
    pub device: u16,
    /// The kernel driver that has it now; `vfio-pci` when spp may take it.
    pub kernel_driver: Option<String>,
    /// `None`: no IOMMU, so spp can't have it.
    pub iommu_group: Option<u32>,
    /// Memory it is near to.
    pub numa_node: Option<u32>,
    /// Interfaces the kernel made of it.
    pub interfaces: Vec<Interface>,
    /// The spp driver that would drive it.
    pub spp_driver: Option<&'static str>,
    /// The machine's default route (IPv4 or IPv6) goes through it.
    pub default_route: bool,
}

/// The kernel's file systems.
#[derive(Debug, Clone)]
pub struct Sysfs {
    pub(super) sys: PathBuf,
    pub(super) proc: PathBuf,
    pub(super) dev: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Sysfs::at(Path::new("/"))
    }
}

/// All network cards of this machine, by address.
pub fn list_nics() -> io::Result<Vec<NicEntry>> {
    Sysfs::default().list_nics()
}

/// A file of one short line; `None` when it isn't there or the kernel has no answer now.
fn line(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn hex_line(path: &Path) -> Option<u32> {
    let text = line(path)?;
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
}

/// Last part of where a symbolic link points to.
fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// Names in a directory, sorted; none when there is no such directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

impl Sysfs {
    /// With `sys`, `proc` and `dev` below `root`.
    pub fn at(root: &Path) -> Self {
        Sysfs { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev") }
    }

    /// The function's directory.
    pub(crate) fn device_dir(&self, address: PciAddress) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address.to_string())
    }

    /// The kernel driver that has the function.
    pub fn kernel_driver(&self, address: PciAddress) -> Option<String> {
        link_name(&self.device_dir(address).join("driver"))
    }

    /// The function's IOMMU group.
    pub fn iommu_group(&self, address: PciAddress) -> Option<u32> {
        link_name(&self.device_dir(address).join("iommu_group"))?.parse().ok()
    }

    /// The NUMA node the function is near to.
    pub fn numa_node(&self, address: PciAddress) -> Option<u32> {
        line(&self.device_dir(address).join("numa_node"))?.parse().ok() // -1: unknown
    }

    /// The other functions of an IOMMU group that a kernel driver other than `vfio-pci` has, with that driver.
    /// Bridges don't count: they do no DMA of their own.
    pub fn group_neighbours(&self, address: PciAddress) -> Vec<(String, String)> {
        let others = names(&self.device_dir(address).join("iommu_group/devices")).into_iter();
        let others =
            others.filter_map(|name| name.parse::<PciAddress>().ok()).filter(|other| *other != address);
        let is_bridge = |other| self.class(other).is_some_and(|class| class >> 16 == 0x06);
        let foreign = others.filter(|other| !is_bridge(*other)).filter_map(|other| {
            let driver =
                self.kernel_driver(other).filter(|driver| driver != "vfio-pci" && driver != "pci-stub")?;
            Some((other.to_string(), driver))
        });
        foreign.collect()
    }

    /// True when there is such a PCI function.
    pub fn exists(&self, address: PciAddress) -> bool {
        self.device_dir(address).exists()
    }

    /// Class code: base class, subclass, interface, 8 bits each.
    pub(super) fn class(&self, address: PciAddress) -> Option<u32> {
        hex_line(&self.device_dir(address).join("class"))
    }

    /// True when the function's class is "network controller".
    pub(super) fn is_nic(&self, address: PciAddress) -> bool {
        self.class(address).is_some_and(|class| class >> 16 == 0x02)
    }

    /// All network cards, by address.
    pub fn list_nics(&self) -> io::Result<Vec<NicEntry>> {
        let bus = self.sys.join("bus/pci/devices");
        if !bus.exists() {
            return Ok(Vec::new()); // a machine without PCI
        }
        fs::read_dir(&bus)?;
        let routed = self.default_route_interfaces();
        let addresses = names(&bus).into_iter().filter_map(|name| name.parse().ok());
        let mut nics: Vec<_> =
            addresses.filter(|a| self.is_nic(*a)).filter_map(|a| self.nic(a, &routed)).collect();
        nics.sort_by_key(|nic| nic.address);
        Ok(nics)
    }

    fn nic(&self, address: PciAddress, routed: &BTreeSet<String>) -> Option<NicEntry> {
        let dir = self.device_dir(address);
        let (vendor, device) = (hex_line(&dir.join("vendor"))? as u16, hex_line(&dir.join("device"))? as u16);
        let interfaces = self.interfaces(address);
        Some(NicEntry {
            address,
            vendor,
            device,
            kernel_driver: self.kernel_driver(address),
            iommu_group: self.iommu_group(address),
            numa_node: self.numa_node(address),
            default_route: interfaces.iter().any(|i| routed.contains(&i.name)),
            interfaces,
            spp_driver: driver_for(vendor, device),
        })
    }

    /// The kernel's interfaces on a function, also below a virtio device on it.
    pub(super) fn interfaces(&self, address: PciAddress) -> Vec<Interface> {
        let all = names(&self.sys.join("class/net")).into_iter();
        let on_it = all.filter(|name| self.function_below(name) == Some(address));
        on_it.map(|name| self.interface(name)).collect()
    }

    fn interface(&self, name: String) -> Interface {
        let dir = self.sys.join("class/net").join(&name);
        let link_up = line(&dir.join("carrier")).map(|carrier| carrier == "1");
        let speed_mbps = line(&dir.join("speed")).and_then(|speed| speed.parse().ok()); // -1: unknown
        Interface { name, link_up, speed_mbps }
    }

    /// The PCI function an interface sits on: the innermost address in its device path.
    fn function_below(&self, interface: &str) -> Option<PciAddress> {
        let path = fs::canonicalize(self.sys.join("class/net").join(interface)).ok()?;
        path.iter().rev().filter_map(|part| part.to_str()).find_map(|part| part.parse().ok())
    }

    /// Interfaces a default route leaves through, and all below them: a bridge's ports, a bond's
    /// members, a VLAN's parent.
    pub(super) fn default_route_interfaces(&self) -> BTreeSet<String> {
        let read = |name: &str| fs::read_to_string(self.proc.join("net").join(name)).unwrap_or_default();
        let mut routed = default_routes_v4(&read("route"));
        routed.extend(default_routes_v6(&read("ipv6_route")));
        let (mut open, mut found) = (routed, BTreeSet::new());
        while let Some(name) = open.pop_first() {
            let below = self.interfaces_below(&name);
            if found.insert(name) {
                open.extend(below);
            }
        }
        found
    }

    /// Interfaces directly below one. Open vSwitch shows no such links for its internal ports: an
    /// interface with nothing below it is taken to be one, and to sit on all ports of the switch.
    fn interfaces_below(&self, name: &str) -> Vec<String> {
        let net = self.sys.join("class/net");
        let lower = |of: &str| -> Vec<String> {
            let links = names(&net.join(of)).into_iter();
            links.filter_map(|link| link.strip_prefix("lower_").map(str::to_owned)).collect()
        };
        let below = lower(name);
        if below.is_empty() && self.function_below(name).is_none() { lower("ovs-system") } else { below }
    }
}

/// RTF_REJECT: the kernel's own "unreachable" entries are no routes.
const REJECT: u32 = 0x200;

/// Interfaces in `/proc/net/route` whose destination and mask are zero.
fn default_routes_v4(table: &str) -> BTreeSet<String> {
    let rows = table.lines().skip(1).filter_map(|row| {
        let mut fields = row.split_whitespace();
        let (interface, destination) = (fields.next()?, fields.next()?);
        let flags = u32::from_str_radix(fields.nth(1)?, 16).ok()?;
        let mask = fields.nth(3)?;
        let is_default = destination == "00000000" && mask == "00000000" && flags & REJECT == 0;
        is_default.then(|| interface.to_owned())
    });
    rows.collect()
}

/// Interfaces in `/proc/net/ipv6_route` whose destination is `::/0`.
fn default_routes_v6(table: &str) -> BTreeSet<String> {
    let rows = table.lines().filter_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let [destination, prefix_len, .., flags, interface] = fields.as_slice() else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let is_default = destination.bytes().all(|b| b == b'0') && *prefix_len == "00";
        (is_default && flags & REJECT == 0 && *interface != "lo").then(|| (*interface).to_owned())
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Machine;
    use super::*;

    fn addr(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn nics_are_listed_with_all_the_kernel_knows() {
        let machine = Machine::new();
        machine.function("0000:00:04.0", 0x1af4, 0x1041, 0x020000, Some("virtio-pci"), Some(3));
        machine.function("0000:00:05.0", 0x8086, 0x10d3, 0x020000, None, None);
        machine.function("0000:00:1f.2", 0x8086, 0x2922, 0x010601, Some("ahci"), Some(9));
        machine.interface("eth0", "0000:00:04.0", "virtio0/net");
        machine.write("sys/class/net/eth0/carrier", "1\n");
        machine.write("sys/class/net/eth0/speed", "-1\n");
        machine.write("sys/bus/pci/devices/0000:00:04.0/numa_node", "1\n");
        let nics = machine.sysfs().list_nics().unwrap();
        assert_eq!(nics.len(), 2, "the disk controller is none");
        let eth0 = Interface { name: "eth0".into(), link_up: Some(true), speed_mbps: None };
        let virtio = NicEntry {
            address: addr("00:04.0"),
            vendor: 0x1af4,
            device: 0x1041,
            kernel_driver: Some("virtio-pci".into()),
            iommu_group: Some(3),
            numa_node: Some(1),
            interfaces: vec![eth0],
            spp_driver: Some("virtio-net"),
            default_route: false,
        };
        assert_eq!(nics[0], virtio);
        assert_eq!(
            (nics[1].spp_driver, nics[1].iommu_group, nics[1].numa_node),
            (Some("e1000e"), None, None)
        );
    }

    #[test]
    fn machine_without_pci_has_no_nics() {
        let machine = Machine::new();
        std::fs::remove_dir_all(machine.root().join("sys/bus")).unwrap();
        assert_eq!(machine.sysfs().list_nics().unwrap(), []);
    }

    #[test]
    fn default_route_is_found_through_vlan_bond_and_bridge() {
        let machine = Machine::new();
        for (n, name) in [(4, "eth0"), (5, "eth1"), (6, "eth2")] {
            let address = format!("0000:00:0{n}.0");
            machine.function(&address, 0x8086, 0x10d3, 0x020000, Some("e1000e"), Some(n));
            machine.interface(name, &address, "net");
        }
        machine.virtual_interface("bond0", &["eth0", "eth1"]);
        machine.virtual_interface("bond0.100", &["bond0"]);
        machine.virtual_interface("br0", &["bond0.100"]);
        machine.default_route_v4("br0");
        let routed: Vec<bool> =
            machine.sysfs().list_nics().unwrap().iter().map(|nic| nic.default_route).collect();
        assert_eq!(routed, [true, true, false]);
    }

    #[test]
    fn open_vswitch_ports_carry_the_route_of_its_internal_port() {
        let machine = Machine::new();
        machine.function("0000:00:04.0", 0x8086, 0x10d3, 0x020000, Some("e1000e"), Some(1));
        machine.interface("eth0", "0000:00:04.0", "net");
        machine.virtual_interface("ovs-system", &["eth0"]);
        machine.virtual_interface("br-ex", &[]);
        machine.default_route_v4("br-ex");
        assert!(machine.sysfs().list_nics().unwrap()[0].default_route);
    }

    #[test]
    fn route_tables_yield_default_routes_only() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                  eth1\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
                  eth2\t00000000\t00000000\t0001\t0\t0\t0\t000000E0\t0\t0\t0\n";
        assert_eq!(default_routes_v4(v4), BTreeSet::from(["eth0".to_owned()]));
        let zero = "00000000000000000000000000000000";
        let v6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
             fe800000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth1\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n"
        );
        assert_eq!(default_routes_v6(&v6), BTreeSet::from(["eth0".to_owned()]));
    }

    proptest::proptest! {
        #[test]
        fn any_route_table_is_read_without_harm(table in "([0-9a-f]{0,32}[ \\t\\n]){0,40}|.{0,200}") {
            default_routes_v4(&table);
            default_routes_v6(&table);
        }
    }
}
