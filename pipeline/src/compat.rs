//! spp-ctl's JSON: what SPP's own tools read, made from a [`Topology`] and a [`NodeStatus`].
//!
//! Pure. Field order is the order in which spp-ctl sends the keys.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::names::{ComponentKind, PortName};
use crate::plan::VlanOp;
use crate::status::NodeStatus;
use crate::table::Dst;
use crate::topology::{Attachment, Component, Entry, Topology, Vf};

/// `GET /v1/processes`: the primary, one vf for each NIC, and one mirror process for all mirrors.
pub fn processes(topology: &Topology) -> Vec<Process> {
    let primary = Process { kind: "primary", client_id: None };
    let vfs = topology.vfs().iter().map(|vf| Process { kind: "vf", client_id: Some(vf.id) });
    let mirror = mirror_process(topology).map(|id| Process { kind: "mirror", client_id: Some(id) });
    [primary].into_iter().chain(vfs).chain(mirror).collect()
}

/// The id of the process that has the mirrors: the one behind the vfs, if there are any.
fn mirror_process(topology: &Topology) -> Option<u32> {
    (!topology.mirrors().is_empty()).then(|| topology.vfs().len() as u32 + 1)
}

/// One of [`processes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// `primary`, `vf` or `mirror`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Absent for the primary.
    #[serde(rename = "client-id", skip_serializing_if = "Option::is_none")]
    pub client_id: Option<u32>,
}

/// What vfs and mirrors have in common; `GET /v1/mirrors/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessJson {
    /// The process's id.
    #[serde(rename = "client-id")]
    pub client_id: u32,
    /// All NICs, then the other ports: of a vf every one that has ever been attached, of mirrors those they have now.
    pub ports: Vec<PortName>,
    /// The master core.
    #[serde(rename = "master-lcore")]
    pub master_lcore: usize,
    /// By core; a vf's core without a component is one entry too.
    pub components: Vec<ComponentJson>,
}

/// `GET /v1/vfs/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VfJson {
    /// The process.
    #[serde(flatten)]
    pub process: ProcessJson,
    /// Entries of ports that are outputs of a classifier.
    pub classifier_table: Vec<EntryJson>,
}

/// A component, or a core without one (type `unuse`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentJson {
    /// Its core.
    pub core: usize,
    /// Absent for `unuse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Absent for `unuse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_port: Option<Vec<PortJson>>,
    /// Absent for `unuse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_port: Option<Vec<PortJson>>,
}

/// A port of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortJson {
    /// The port.
    pub port: PortName,
    /// Its tag operation.
    pub vlan: VlanJson,
}

/// A tag operation; id and pcp are 0 unless it adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct VlanJson {
    /// `none`, `add` or `del`.
    pub operation: &'static str,
    /// VLAN id.
    pub id: u16,
    /// Priority.
    pub pcp: u8,
}

/// A classifier entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryJson {
    /// `mac` or `vlan`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `default`, `02:00:00:00:00:0A`, `100/default` or `100/02:00:00:00:00:0A`.
    pub value: String,
    /// The output.
    pub port: PortName,
}

impl VfJson {
    /// The vf with this id, or `None`.
    pub fn new(topology: &Topology, id: u32) -> Option<VfJson> {
        let topology = topology.in_force();
        let vf = topology.vf(id).ok()?;
        let process = ProcessJson {
            client_id: id,
            ports: ports(&topology, vf.components.iter(), vf.seen.iter().copied()),
            master_lcore: vf.master,
            components: vf.workers.cores().flat_map(|core| on_core(vf, core)).collect(),
        };
        Some(VfJson { process, classifier_table: classifier_table(vf) })
    }
}

impl ProcessJson {
    /// The mirrors' process, if this is its id.
    pub fn mirrors(topology: &Topology, id: u32) -> Option<ProcessJson> {
        mirror_process(topology).filter(|process| *process == id)?;
        let topology = topology.in_force();
        let mut components: Vec<&Component> =
            topology.mirrors().iter().map(|mirror| &mirror.component).collect();
        components.sort_by_key(|component| component.core);
        Some(ProcessJson {
            client_id: id,
            ports: ports(&topology, components.iter().copied(), []),
            master_lcore: topology.vfs().first().map_or(0, |vf| vf.master),
            components: components.into_iter().map(component_json).collect(),
        })
    }
}

/// All NICs, the ports of the components, and `more`, in order.
fn ports<'a>(
    topology: &Topology,
    components: impl Iterator<Item = &'a Component>,
    more: impl IntoIterator<Item = PortName>,
) -> Vec<PortName> {
    let attached =
        components.flat_map(|component| component.rx.iter().chain(&component.tx)).map(|end| end.port);
    let attached = attached.filter(|port| !matches!(port, PortName::Local(_)));
    let mut ports: Vec<PortName> =
        topology.vfs().iter().map(|vf| vf.phy).chain(attached).chain(more).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn on_core(vf: &Vf, core: usize) -> Vec<ComponentJson> {
    let components = vf.components.iter().filter(|component| component.core == core);
    let components: Vec<ComponentJson> = components.map(component_json).collect();
    match components.is_empty() {
        true => vec![ComponentJson { core, name: None, kind: "unuse", rx_port: None, tx_port: None }],
        false => components,
    }
}

fn component_json(component: &Component) -> ComponentJson {
    let ports = |ends: &[Attachment]| {
        let known = ends.iter().filter(|end| !matches!(end.port, PortName::Local(_)));
        Some(known.map(|end| PortJson { port: end.port, vlan: vlan_json(end.vlan) }).collect())
    };
    ComponentJson {
        core: component.core,
        name: Some(component.name.clone()),
        kind: component.kind.name(),
        rx_port: ports(&component.rx),
        tx_port: ports(&component.tx),
    }
}

fn vlan_json(vlan: VlanOp) -> VlanJson {
    match vlan {
        VlanOp::None => VlanJson { operation: "none", id: 0, pcp: 0 },
        VlanOp::Add { vid, pcp } => VlanJson { operation: "add", id: vid, pcp },
        VlanOp::Del => VlanJson { operation: "del", id: 0, pcp: 0 },
    }
}

/// By classifier, then VLAN id with untagged last, then default before addresses.
fn classifier_table(vf: &Vf) -> Vec<EntryJson> {
    let mut table = Vec::new();
    for classifier in vf.components.iter().filter(|component| component.kind == ComponentKind::Classifier) {
        let outputs = |port| classifier.tx.iter().any(|tx| tx.port == port);
        let mut entries: Vec<&Entry> = vf.entries.iter().filter(|entry| outputs(entry.port)).collect();
        let address = |dst| match dst {
            Dst::Default => None,
            Dst::Mac(mac) => Some(mac),
        };
        entries.sort_by_key(|entry| (entry.vid.is_none(), entry.vid, address(entry.dst), entry.port));
        table.extend(entries.into_iter().map(entry_json));
    }
    table
}

fn entry_json(entry: &Entry) -> EntryJson {
    let dst = match entry.dst {
        Dst::Default => "default".to_owned(),
        Dst::Mac(mac) => mac.to_string().to_uppercase(),
    };
    match entry.vid {
        None => EntryJson { kind: "mac", value: dst, port: entry.port },
        Some(vid) => EntryJson { kind: "vlan", value: format!("{vid}/{dst}"), port: entry.port },
    }
}

/// One entry of `GET /v1/cpu_usage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    /// `primary`, `vf` or `mirror`.
    #[serde(rename = "proc-type")]
    pub proc_type: &'static str,
    /// Absent for the primary.
    #[serde(rename = "client-id", skip_serializing_if = "Option::is_none")]
    pub client_id: Option<u32>,
    /// The master core.
    #[serde(rename = "master-lcore")]
    pub master_lcore: usize,
    /// The master core and, for a vf or the mirrors, one entry for each component.
    pub lcores: Vec<usize>,
}

/// `GET /v1/cpu_usage`. The primary's core is the first vf's master: one control thread serves both.
pub fn cpu_usage(topology: &Topology) -> Vec<CpuUsage> {
    let master = topology.vfs().first().map_or(0, |vf| vf.master);
    let primary =
        CpuUsage { proc_type: "primary", client_id: None, master_lcore: master, lcores: vec![master] };
    let vfs = topology.vfs().iter().map(|vf| {
        let mut lcores: Vec<usize> = vf.components.iter().map(|component| component.core).collect();
        lcores.push(vf.master);
        lcores.sort_unstable();
        CpuUsage { proc_type: "vf", client_id: Some(vf.id), master_lcore: vf.master, lcores }
    });
    let mirror = mirror_process(topology).map(|id| {
        let mut lcores: Vec<usize> = topology.mirrors().iter().map(|mirror| mirror.component.core).collect();
        lcores.push(master);
        lcores.sort_unstable();
        CpuUsage { proc_type: "mirror", client_id: Some(id), master_lcore: master, lcores }
    });
    [primary].into_iter().chain(vfs).chain(mirror).collect()
}

/// One socket of `GET /v1/cpu_layout`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketJson {
    /// Physical package.
    pub socket_id: u32,
    /// Its cores.
    pub cores: Vec<CoreJson>,
}

/// A core and its hardware threads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CoreJson {
    /// Core number in its socket.
    pub core_id: u32,
    /// CPU numbers.
    pub lcores: Vec<usize>,
}

/// `GET /v1/cpu_layout` from (CPU number, socket, core) of each online CPU.
pub fn cpu_layout(cpus: &[(usize, u32, u32)]) -> Vec<SocketJson> {
    let mut sockets: BTreeMap<u32, BTreeMap<u32, Vec<usize>>> = BTreeMap::new();
    for &(cpu, socket, core) in cpus {
        sockets.entry(socket).or_default().entry(core).or_default().push(cpu);
    }
    let cores = |cores: BTreeMap<u32, Vec<usize>>| {
        cores.into_iter().map(|(core_id, lcores)| CoreJson { core_id, lcores }).collect()
    };
    sockets.into_iter().map(|(socket_id, all)| SocketJson { socket_id, cores: cores(all) }).collect()
}

/// The CPUs of this machine for [`cpu_layout`]. What the kernel does not tell counts as socket 0, core = CPU.
pub fn read_cpus() -> std::io::Result<Vec<(usize, u32, u32)>> {
    let read = |cpu: usize, file: &str| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/{file}");
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok())
    };
    let online = crate::cores::online()?;
    let cpu = |cpu| {
        (cpu, read(cpu, "physical_package_id").unwrap_or(0), read(cpu, "core_id").unwrap_or(cpu as u32))
    };
    Ok(online.cores().map(cpu).collect())
}

/// `GET /v1/primary/status`. There is no forwarder in the primary here, so that key is absent, as it is
/// in SPP for a primary with one core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrimaryJson {
    /// The control thread's core.
    #[serde(rename = "master-lcore")]
    pub master_lcore: usize,
    /// The same.
    pub lcores: Vec<usize>,
    /// NICs.
    pub phy_ports: Vec<PhyJson>,
    /// Rings.
    pub ring_ports: Vec<RingJson>,
    /// None here.
    pub pipes: Vec<()>,
}

/// Counters of a NIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PhyJson {
    /// phy number.
    pub id: u32,
    /// MAC address; empty when the device has none.
    pub eth: String,
    /// Packets received.
    pub rx: u64,
    /// Packets sent.
    pub tx: u64,
    /// Packets dropped on sending.
    pub tx_drop: u64,
    /// Queues.
    pub nof_queues: QueuesJson,
    /// Flow rules: none here.
    pub flow: Vec<()>,
}

/// Number of queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct QueuesJson {
    /// Receiving.
    pub rx: u32,
    /// Sending.
    pub tx: u32,
}

impl Default for QueuesJson {
    fn default() -> Self {
        QueuesJson { rx: 1, tx: 1 }
    }
}

/// Counters of a ring.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RingJson {
    /// Ring number.
    pub id: u32,
    /// Packets taken out.
    pub rx: u64,
    /// None is ever dropped on taking out.
    pub rx_drop: u64,
    /// Packets put in.
    pub tx: u64,
    /// Packets dropped because it was full.
    pub tx_drop: u64,
}

impl PrimaryJson {
    /// From a node's status.
    pub fn new(status: &NodeStatus) -> PrimaryJson {
        let master = status.vfs.first().map_or(0, |vf| vf.master_core);
        let phy_ports = status.vfs.iter().zip(0..).map(|(vf, id)| PhyJson {
            id,
            eth: vf.nic.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            rx: vf.nic.rx.packets,
            tx: vf.nic.tx.packets,
            tx_drop: vf.nic.tx.total_drops() + drops_into(status, &vf.nic.port),
            ..PhyJson::default()
        });
        let ring_ports = status.rings.iter().zip(0..).map(|(ring, id)| RingJson {
            id,
            rx: ring.packets.saturating_sub(ring.depth),
            rx_drop: 0,
            tx: ring.packets,
            tx_drop: drops_into(status, &ring.port),
        });
        PrimaryJson {
            master_lcore: master,
            lcores: vec![master],
            phy_ports: phy_ports.collect(),
            ring_ports: ring_ports.collect(),
            pipes: Vec::new(),
        }
    }

    /// The counters since `base` (`DELETE /v1/primary/status` clears them by remembering them).
    pub fn since(mut self, base: &PrimaryJson) -> PrimaryJson {
        for (now, base) in self.phy_ports.iter_mut().zip(&base.phy_ports) {
            now.rx = now.rx.saturating_sub(base.rx);
            now.tx = now.tx.saturating_sub(base.tx);
            now.tx_drop = now.tx_drop.saturating_sub(base.tx_drop);
        }
        for (now, base) in self.ring_ports.iter_mut().zip(&base.ring_ports) {
            now.rx = now.rx.saturating_sub(base.rx);
            now.tx = now.tx.saturating_sub(base.tx);
            now.tx_drop = now.tx_drop.saturating_sub(base.tx_drop);
        }
        self
    }
}

/// Drops at the components that send to a port.
fn drops_into(status: &NodeStatus, port: &str) -> u64 {
    let mirrors = status.mirrors.iter().map(|mirror| &mirror.component);
    let components = status.vfs.iter().flat_map(|vf| &vf.components).chain(mirrors);
    let edges = components.flat_map(|component| &component.tx).filter(|edge| edge.port == port);
    edges.map(|edge| edge.counters.total_drops()).sum()
}

#[cfg(test)]
mod tests;
