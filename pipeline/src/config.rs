//! A node's configuration: the JSON value of `/spp/openstack/configuration/<host>`, in both its shapes.
//!
//! Pure text to data and back; read once at start and by the tools that write the key. Everything a
//! node could refuse for reasons in the text itself is refused here, in one line that names the NIC,
//! the field and what is allowed. What depends on the machine (cores, devices) is checked at start.

mod parse;
mod write;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spp_drivers::pci::PciAddress;
use spp_vhost::MAX_PAIRS;

use crate::cores::{self, CoreMask, CoresError, Role};
use crate::names::{ComponentKind, PortName, clip};
use crate::topology::Topology;

/// Everything a node needs to know to build itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The shape it was read in.
    pub form: Form,
    /// One for each NIC, in port order: vf i owns `phy:i`.
    pub vfs: Vec<VfConfig>,
    /// Mirrors of the later shape.
    pub mirrors: Vec<MirrorConfig>,
}

/// The two shapes of the JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A list of NICs, as the architecture document of 2018 has it.
    List,
    /// A dict with `vf` and perhaps `mirror`, which later drivers need.
    Dict,
}

/// One NIC and the vhost ports behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfConfig {
    /// The NIC.
    pub address: DeviceAddr,
    /// Neutron's name of the network it is connected to.
    pub physical_network: String,
    /// Number of vhost ports, at least 1.
    pub num_vhost: u32,
    /// Its cores; the lowest is the master.
    pub core_mask: CoreMask,
    /// What runs where, when the configuration says so.
    pub components: Option<Vec<ComponentConfig>>,
}

/// One component of the dict shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentConfig {
    /// The core that runs it.
    pub core: usize,
    /// Its type.
    pub kind: ComponentKind,
    /// Its name, unique in its vf.
    pub name: String,
    /// Where it takes packets from.
    pub rx: Vec<PortName>,
    /// Where it sends packets to.
    pub tx: Vec<PortName>,
}

/// A mirror of the dict shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorConfig {
    /// Its core.
    pub core: usize,
    /// The two rings set aside for it: to the guest that watches, and back to the packets' own way.
    pub ports: [PortName; 2],
}

/// Most vhosts on one NIC; 100 times what the field uses.
pub const MAX_VHOSTS: u32 = 1024;

/// Why a configuration is refused: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not a shape that is known.
    #[error("configuration: {0}")]
    Shape(String),
    /// A field of a NIC.
    #[error("configuration: {nic}: {field}: {what}")]
    Field {
        /// The NIC, by number and, where known, address.
        nic: String,
        /// The field's key.
        field: String,
        /// What is wrong and what is allowed.
        what: String,
    },
    /// The core masks don't work out.
    #[error("configuration: {0}")]
    Cores(#[from] CoresError),
}

/// The address of a NIC or of a software device, as configurations spell it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceAddr {
    text: String,
    kind: DeviceKind,
}

/// What a device address says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A PCI function.
    Pci(PciAddress),
    /// A vhost-user socket that plays the wire.
    VhostUser(PathBuf),
    /// Another software device, by its whole specification.
    Soft(String),
}

/// Prefixes of software devices other than `vhost-user:`.
const SOFT: [&str; 4] = ["null:", "gen:", "tap:", "pcap:"];

impl DeviceAddr {
    /// Parses `00:04.0`, `0000:00:04.0`, `null:`, `gen:...`, `tap:NAME`, `pcap:...` or `vhost-user:PATH`.
    /// The error says what is allowed.
    pub fn parse(text: &str) -> Result<DeviceAddr, String> {
        if text.contains(|c: char| c.is_control()) {
            return Err(format!("{:?} has control characters in it", clip(text)));
        }
        let kind = if let Some(path) = text.strip_prefix("vhost-user:") {
            if path.is_empty() {
                return Err(format!("{:?} has no socket path", clip(text)));
            }
            DeviceKind::VhostUser(path.into())
        } else if SOFT.iter().any(|prefix| text.starts_with(prefix)) {
            DeviceKind::Soft(text.to_owned())
        } else if let Ok(address) = text.parse() {
            DeviceKind::Pci(address)
        } else {
            return Err(format!(
                "{:?} is not a device: write a PCI address like 00:04.0 or 0000:00:04.0, or null:, gen:, tap:, pcap: or vhost-user:",
                clip(text)
            ));
        };
        Ok(DeviceAddr { text: text.to_owned(), kind })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it says.
    pub fn kind(&self) -> &DeviceKind {
        &self.kind
    }

    /// What two NICs can't both have, if anything.
    fn exclusive(&self) -> Option<&DeviceKind> {
        match &self.kind {
            DeviceKind::Soft(text) if !text.starts_with("tap:") => None,
            kind => Some(kind),
        }
    }
}

impl fmt::Display for DeviceAddr {
    /// PCI addresses in full.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            DeviceKind::Pci(address) => address.fmt(f),
            _ => f.write_str(&self.text),
        }
    }
}

impl NodeConfig {
    /// Reads the JSON value of the configuration key, in either shape. Fields that are not known are ignored.
    pub fn parse(json: &[u8]) -> Result<NodeConfig, ConfigError> {
        let config = parse::parse(json)?;
        config.check()?;
        Ok(config)
    }

    /// Reads devstack's mapping string: `<device>#<physical network>#<vhosts>#<core mask>`, comma-separated.
    pub fn from_mappings(mappings: &str) -> Result<NodeConfig, ConfigError> {
        let config = NodeConfig { form: Form::Dict, vfs: parse::mappings(mappings)?, mirrors: Vec::new() };
        config.check()?;
        Ok(config)
    }

    /// Which vhost ids exist, ascending, and the physical network of each.
    pub fn layout(&self) -> Vec<(String, u32)> {
        let networks = self.vfs.iter().zip(self.vhost_ranges());
        networks.flat_map(|(vf, range)| range.map(|id| (vf.physical_network.clone(), id))).collect()
    }

    /// The vhost ids of each vf.
    pub fn vhost_ranges(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.vfs.iter().scan(0, |next, vf| {
            let first = *next;
            *next += vf.num_vhost;
            Some(first..*next)
        })
    }

    /// Number of vhost ports of the node.
    pub fn n_vhost(&self) -> u32 {
        self.vfs.iter().map(|vf| vf.num_vhost).sum()
    }

    /// Number of rings: two for each vhost, two for each mirror, and those that components name beyond (for
    /// queues with a way of their own), up to two for each queue there could be.
    pub fn n_rings(&self) -> u32 {
        let n_mirrors = self.mirrors.len() as u32;
        let most = 2 * (MAX_PAIRS as u32 * self.n_vhost() + n_mirrors);
        let named = self.named_ports().filter_map(|port| match port {
            PortName::Ring(number) if number < most => Some(number + 1),
            _ => None,
        });
        named.max().unwrap_or(0).max(2 * (self.n_vhost() + n_mirrors))
    }

    /// Queue pairs a NIC is started with: as many as components name, or one.
    pub fn n_queue_pairs(&self, index: usize) -> u16 {
        let queues = self.named_ports().filter_map(|port| match port {
            PortName::PhyQueue(nic, queue) if nic as usize == index => Some(queue.saturating_add(1)),
            _ => None,
        });
        queues.max().unwrap_or(1)
    }

    /// Ports of the components that are configured one by one.
    fn named_ports(&self) -> impl Iterator<Item = PortName> + '_ {
        let components = self.vfs.iter().flat_map(|vf| vf.components.iter().flatten());
        components.flat_map(|component| component.rx.iter().chain(&component.tx)).copied()
    }

    /// The components of vf `index`: those configured, or the ones the core mask is dealt out to.
    pub fn components(&self, index: usize) -> Result<Vec<ComponentConfig>, CoresError> {
        let vf = &self.vfs[index];
        if let Some(components) = &vf.components {
            return Ok(components.clone());
        }
        let vhosts = self.vhost_ranges().nth(index).expect("there is a range for each vf");
        let deal = cores::deal(&vf.owner(index), &vf.core_mask, vhosts.clone())?;
        let phy = PortName::Phy(index as u32);
        let ports = |role| match role {
            Role::ForwardTx(n) => (vec![PortName::ring_to_guest(n)], vec![PortName::Vhost(n)]),
            Role::ForwardRx(n) => (vec![PortName::Vhost(n)], vec![PortName::ring_from_guest(n)]),
            Role::Classifier => (vec![phy], vhosts.clone().map(PortName::ring_to_guest).collect()),
            Role::Merger => (vhosts.clone().map(PortName::ring_from_guest).collect(), vec![phy]),
        };
        let component = |(core, role): (usize, Role)| {
            let (rx, tx) = ports(role);
            ComponentConfig { core, kind: role.kind(), name: role.name(), rx, tx }
        };
        Ok(deal.components.into_iter().map(component).collect())
    }

    /// The masks with their owners, for the checks of [`cores`].
    pub fn masks(&self) -> Vec<(String, CoreMask)> {
        self.vfs.iter().enumerate().map(|(i, vf)| (vf.owner(i), vf.core_mask.clone())).collect()
    }

    /// The cores of the mirrors, as masks. They may be shared with components, unlike those of NICs.
    pub fn mirror_masks(&self) -> Vec<(String, CoreMask)> {
        let mask =
            |(i, mirror): (usize, &MirrorConfig)| (format!("mirror {i}"), CoreMask::from_iter([mirror.core]));
        self.mirrors.iter().enumerate().map(mask).collect()
    }

    /// What an operator should know about a configuration that is accepted.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = cores::busy_masters(&self.masks());
        for (i, mirror) in self.mirrors.iter().enumerate() {
            if let Some((owner, _)) = self.masks().into_iter().find(|(_, mask)| mask.contains(mirror.core)) {
                warnings.push(format!("mirror {i} shares core {} with components of {owner}", mirror.core));
            }
        }
        for ((i, vf), vhosts) in self.vfs.iter().enumerate().zip(self.vhost_ranges()) {
            let dealt =
                vf.components.is_none().then(|| cores::deal(&vf.owner(i), &vf.core_mask, vhosts).ok());
            warnings.extend(dealt.flatten().and_then(|deal| deal.warning(&vf.owner(i))));
        }
        warnings
    }

    /// The checks that need more than one field.
    fn check(&self) -> Result<(), ConfigError> {
        for (i, vf) in self.vfs.iter().enumerate() {
            let twin = self.vfs[..i].iter().position(|other| {
                vf.address.exclusive().is_some_and(|mine| other.address.exclusive() == Some(mine))
            });
            if let Some(twin) = twin {
                let what = format!("{} is already {}", vf.address, self.vfs[twin].owner(twin));
                return Err(vf.field_error(i, "pci_address", what));
            }
            self.components(i)?;
        }
        cores::check_overlap(&self.masks())?;
        Topology::from_config(self, true).map(drop)
    }
}

impl VfConfig {
    /// How errors and warnings call the NIC at `index`: `NIC 1 (00:04.0)`.
    pub fn owner(&self, index: usize) -> String {
        format!("NIC {} ({})", index + 1, self.address.text())
    }

    fn field_error(&self, index: usize, field: &str, what: String) -> ConfigError {
        ConfigError::Field { nic: self.owner(index), field: field.to_owned(), what }
    }
}

/// Reads a configuration file (same JSON as the key).
pub fn read_file(path: &Path) -> Result<NodeConfig, ConfigError> {
    let bytes = std::fs::read(path)
        .map_err(|error| ConfigError::Shape(format!("can't read {}: {error}", path.display())))?;
    NodeConfig::parse(&bytes)
}

#[cfg(test)]
mod tests;
