//! What is wanted of the packet path, as pure data: components, their ports, classifier entries, plugs.
//!
//! Owned by the control thread. The editing operations have the meaning of spp-ctl's commands; each
//! checks everything first and then changes everything, so an error leaves the topology as it was.
//! [`crate::compile`] turns a topology into what the cores run.

mod edit;
mod local;
mod plug;
mod queues;
mod tap;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use spp_drivers::MacAddr;

use crate::config::{ConfigError, NodeConfig};
use crate::cores::{self, CoreMask};
use crate::names::{ComponentKind, PortName};
use crate::plan::VlanOp;
use crate::table::Dst;

pub use plug::{Plug, Plugged};
pub use tap::{Mirror, Stage, Tap, Tapped, Way};

/// Which end of a port a component uses, from the component's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The component receives from the port.
    Rx,
    /// The component sends to the port.
    Tx,
}

/// One end of one port of the node. At most one component has it.
pub type PortEnd = (Direction, PortName);

/// A port attached to a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// The port.
    pub port: PortName,
    /// What happens to the tag of each frame there.
    pub vlan: VlanOp,
}

/// A component's identity for as long as it exists; never reused, so that counters of one
/// component are not continued by the next of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComponentId(pub u64);

/// A component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Identity.
    pub id: ComponentId,
    /// Name, unique in its vf.
    pub name: String,
    /// The core that runs it.
    pub core: usize,
    /// Type.
    pub kind: ComponentKind,
    /// Inputs, in the order attached.
    pub rx: Vec<Attachment>,
    /// Outputs, in the order attached.
    pub tx: Vec<Attachment>,
}

impl Component {
    /// The attachments of one direction.
    pub fn ends(&self, direction: Direction) -> &[Attachment] {
        match direction {
            Direction::Rx => &self.rx,
            Direction::Tx => &self.tx,
        }
    }

    fn ends_mut(&mut self, direction: Direction) -> &mut Vec<Attachment> {
        match direction {
            Direction::Rx => &mut self.rx,
            Direction::Tx => &mut self.tx,
        }
    }
}

/// A classifier entry. It belongs to a port and is in force while the port is a classifier's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// VLAN id; None for untagged frames.
    pub vid: Option<u16>,
    /// Destination.
    pub dst: Dst,
    /// The output.
    pub port: PortName,
}

/// One NIC's unit: what SPP has a process spp_vf for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vf {
    /// Its id in the API: 1 for the first NIC.
    pub id: u32,
    /// Its NIC.
    pub phy: PortName,
    /// The vhost ports behind it.
    pub vhosts: Range<u32>,
    /// Its master core.
    pub master: usize,
    /// Cores that components may run on.
    pub workers: CoreMask,
    /// Its components, in order of start.
    pub components: Vec<Component>,
    /// Its classifier entries.
    pub entries: Vec<Entry>,
    /// Ports that have been attached at some time.
    pub seen: BTreeSet<PortName>,
}

impl Vf {
    /// Whose frames its NIC has to let in: the unicast addresses and the VLANs of its entries, each once.
    pub fn served(&self) -> (BTreeSet<MacAddr>, BTreeSet<u16>) {
        let address = |entry: &Entry| match entry.dst {
            Dst::Mac(mac) if !mac.is_group() => Some(mac),
            _ => None,
        };
        let addresses = self.entries.iter().filter_map(address).collect();
        (addresses, self.entries.iter().filter_map(|entry| entry.vid).collect())
    }
}

/// The whole node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    n_vhost: u32,
    n_rings: u32,
    /// Queue pairs of each NIC.
    phy_queues: Vec<u16>,
    gate_unplugged: bool,
    vfs: Vec<Vf>,
    plugs: BTreeMap<u32, Plugged>,
    mirrors: Vec<Mirror>,
    taps: Vec<Tapped>,
    local_switching: bool,
    /// Only in a topology that is in force: the plugged vhost whose packets an end of a port carries.
    guests: BTreeMap<PortEnd, u32>,
    next_id: u64,
}

/// Why an edit is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {what}")]
pub struct EditError {
    /// The words spp-ctl has for it: `Invalid value (port)`, `error occur`, `sec_id 7 not found.`
    pub code: String,
    /// What is wrong, in a sentence.
    pub what: String,
}

impl EditError {
    fn value(field: &str, what: impl Into<String>) -> EditError {
        EditError { code: format!("Invalid value ({field})"), what: what.into() }
    }

    fn occurred(what: impl Into<String>) -> EditError {
        EditError { code: "error occur".to_owned(), what: what.into() }
    }
}

impl Topology {
    /// The topology a configuration asks for. `gate_unplugged`: nothing passes from the guest of a
    /// vhost that is not plugged.
    pub fn from_config(config: &NodeConfig, gate_unplugged: bool) -> Result<Topology, ConfigError> {
        let vfs = config.vfs.iter().zip(config.vhost_ranges()).zip(0..);
        let vfs = vfs.map(|((vf, vhosts), index): (_, u32)| Vf {
            id: index + 1,
            phy: PortName::Phy(index),
            vhosts,
            master: vf.core_mask.lowest().expect("a mask that was parsed has a core"),
            workers: cores::workers(&vf.core_mask),
            components: Vec::new(),
            entries: Vec::new(),
            seen: BTreeSet::new(),
        });
        let mut topology = Topology {
            n_vhost: config.n_vhost(),
            n_rings: config.n_rings(),
            phy_queues: (0..config.vfs.len()).map(|index| config.n_queue_pairs(index)).collect(),
            gate_unplugged,
            vfs: vfs.collect(),
            plugs: BTreeMap::new(),
            mirrors: Vec::new(),
            taps: Vec::new(),
            local_switching: false,
            guests: BTreeMap::new(),
            next_id: 0,
        };
        for index in 0..config.vfs.len() {
            topology.add_configured(config, index)?;
        }
        topology.add_mirrors(config)?;
        Ok(topology)
    }

    fn add_mirrors(&mut self, config: &NodeConfig) -> Result<(), ConfigError> {
        for (index, mirror) in config.mirrors.iter().enumerate() {
            let refused = |field: &str, what: String| {
                let (nic, field) = (format!("mirror {index}"), field.to_owned());
                Err(ConfigError::Field { nic, field, what })
            };
            if let Some(vf) = self.vfs.iter().find(|vf| vf.master == mirror.core) {
                return refused("core", format!("core {} is the master core of vf {}", mirror.core, vf.id));
            }
            let [a, b] = mirror.ports;
            for ring in mirror.ports {
                let taken = self.mirrors.iter().any(|other| other.rings.contains(&ring)) || a == b;
                let used = |direction| self.user_of((direction, ring));
                if taken || used(Direction::Rx).or(used(Direction::Tx)).is_some() {
                    return refused("ports", format!("{ring} is in use already"));
                }
                if !matches!(ring, PortName::Ring(n) if n < self.n_rings) {
                    let what =
                        format!("there is no {ring}: this node has ring:0 to ring:{}", self.n_rings - 1);
                    return refused("ports", what);
                }
            }
            let component = Component {
                id: ComponentId(self.next_id),
                name: format!("mirror_{index}"),
                core: mirror.core,
                kind: ComponentKind::Mirror,
                rx: Vec::new(),
                tx: Vec::new(),
            };
            self.next_id += 1;
            self.mirrors.push(Mirror { component, rings: mirror.ports });
        }
        Ok(())
    }

    /// The wiring with everything in it that is not configured component by component: taps, and the ways from guest to
    /// guest.
    pub fn in_force(&self) -> Topology {
        let mut whole = self.clone();
        whole.guests = self.guest_ends();
        whole.put_taps_in();
        whole.put_local_in();
        whole
    }

    fn add_configured(&mut self, config: &NodeConfig, index: usize) -> Result<(), ConfigError> {
        let vf = index as u32 + 1;
        for (n, component) in config.components(index)?.into_iter().enumerate() {
            let field_error = |error: EditError| ConfigError::Field {
                nic: config.vfs[index].owner(index),
                field: format!("components[{n}] ({})", component.name),
                what: error.what,
            };
            self.component_start(vf, &component.name, component.core, component.kind).map_err(field_error)?;
            let rx = component.rx.iter().map(|&port| (Direction::Rx, port));
            for (direction, port) in rx.chain(component.tx.iter().map(|&port| (Direction::Tx, port))) {
                self.port_attach(vf, &component.name, port, direction, VlanOp::None).map_err(field_error)?;
            }
        }
        Ok(())
    }

    /// The units, by NIC.
    pub fn vfs(&self) -> &[Vf] {
        &self.vfs
    }

    /// The unit with this id.
    pub fn vf(&self, id: u32) -> Result<&Vf, EditError> {
        let index = self.vf_index(id)?;
        Ok(&self.vfs[index])
    }

    fn vf_index(&self, id: u32) -> Result<usize, EditError> {
        let found = self.vfs.iter().position(|vf| vf.id == id);
        found.ok_or_else(|| EditError {
            code: format!("sec_id {id} not found."),
            what: format!("there are vfs 1 to {}", self.vfs.len()),
        })
    }

    /// Number of vhost ports.
    pub fn n_vhost(&self) -> u32 {
        self.n_vhost
    }

    /// Number of rings.
    pub fn n_rings(&self) -> u32 {
        self.n_rings
    }

    /// Plugged vhosts.
    pub fn plugs(&self) -> &BTreeMap<u32, Plugged> {
        &self.plugs
    }

    /// True when nothing may pass from the guests of unplugged vhosts.
    pub fn gates_unplugged(&self) -> bool {
        self.gate_unplugged
    }

    /// All components of the node, mirrors too.
    pub fn components(&self) -> impl Iterator<Item = &Component> {
        let mirrors = self.mirrors.iter().map(|mirror| &mirror.component);
        self.vfs.iter().flat_map(|vf| &vf.components).chain(mirrors)
    }

    /// The unit a component belongs to; a mirror belongs to none.
    pub fn vf_of(&self, id: ComponentId) -> Option<&Vf> {
        self.vfs.iter().find(|vf| vf.components.iter().any(|component| component.id == id))
    }

    /// The component that has this end of a port.
    pub fn user_of(&self, (direction, port): PortEnd) -> Option<&Component> {
        self.components().find(|component| component.ends(direction).iter().any(|end| end.port == port))
    }

    fn attachment_mut(&mut self, (direction, port): PortEnd) -> Option<&mut Attachment> {
        let components = self.vfs.iter_mut().flat_map(|vf| &mut vf.components);
        let mut ends = components.flat_map(|component| component.ends_mut(direction));
        ends.find(|end| end.port == port)
    }

    /// True when a component takes what comes in at `port` only to drop it: the guests it comes from may not
    /// send, or it is a classifier that nothing behind it is plugged into. Left in a NIC's ring, frames
    /// would be delivered to whoever is plugged in next.
    pub(crate) fn closes(&self, component: &Component, port: PortName) -> bool {
        let entries = || self.vf_of(component.id).map_or(&[][..], |vf| &vf.entries);
        let has_entry = || entries().iter().any(|entry| component.tx.iter().any(|tx| tx.port == entry.port));
        let idle = self.gate_unplugged && component.kind == ComponentKind::Classifier && !has_entry();
        idle || self.is_gated(port)
    }

    /// True when the packets a component would receive from `port` come from guests none of which may send.
    pub(crate) fn is_gated(&self, port: PortName) -> bool {
        self.gate_unplugged && self.only_from_unplugged(port, self.components().count())
    }

    /// `depth` bounds the walk in topologies that run in circles.
    fn only_from_unplugged(&self, port: PortName, depth: usize) -> bool {
        match port {
            PortName::Phy(_) | PortName::PhyQueue(..) | PortName::Local(_) => false,
            PortName::Vhost(vhost) | PortName::VhostQueue(vhost, _) => !self.plugs.contains_key(&vhost),
            PortName::Ring(_) => match self.user_of((Direction::Tx, port)) {
                Some(from) if depth > 0 && from.kind != ComponentKind::Classifier => {
                    let mut inputs = from.rx.iter();
                    !from.rx.is_empty() && inputs.all(|rx| self.only_from_unplugged(rx.port, depth - 1))
                }
                _ => false,
            },
        }
    }
}

/// How a destination is written: a MAC address or `default`.
pub fn parse_dst(text: &str) -> Result<Dst, EditError> {
    if text == "default" {
        return Ok(Dst::Default);
    }
    let mac: Result<MacAddr, _> = text.parse();
    mac.map(Dst::Mac).map_err(|error| EditError::value("mac address", error.to_string()))
}

/// The two types of classifier entries in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// For untagged frames.
    Mac,
    /// For frames of one VLAN.
    Vlan,
}

#[cfg(test)]
mod tests;
