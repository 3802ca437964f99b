//! A node: NICs, vhost ports, rings and worker threads, made to follow a [`Topology`].
//!
//! Everything here runs on one control thread, which owns the [`Node`]; others reach it through a
//! [`NodeHandle`]. An edit is tried on a copy of the topology, compiled, and carried out step by step;
//! when it returns, it is live on its cores. A refused edit leaves everything as it was.

mod build;
mod handle;
mod nic;
mod queues;
mod report;
mod supervise;
mod switchboard;
mod tap;
mod vhost;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use spp_drivers::dma::{DmaError, Pool};
use spp_drivers::port::PortError;
use spp_drivers::stats::SharedStats;
use spp_vhost::{Role, VhostError, VhostPort};

use crate::compile::Wiring;
use crate::config::{ConfigError, NodeConfig};
use crate::cores::CoresError;
use crate::idle::IdlePolicy;
use crate::names::{ComponentKind, PortName};
use crate::plan::VlanOp;
use crate::table::TableError;
use crate::topology::{Direction, EditError, Entry, Plug, Topology};
use crate::worker::WorkerError;

pub use build::{OpenDevice, pool_buffers};
pub use handle::{NodeGone, NodeHandle};
use nic::Nic;
use report::BusySamples;
use supervise::Retries;
use switchboard::Switchboard;
use vhost::VhostLife;

/// How a node is built, beyond its configuration.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Directory of the vhost-user sockets `sock<vhost id>`.
    pub vhost_dir: PathBuf,
    /// Who listens on them: with `Client`, the VM does.
    pub vhost_role: Role,
    /// Directory of what is kept for the next start of the node: what each VM was offered. `None`
    /// keeps nothing, and an upgrade may then withdraw a feature from a running VM.
    pub state_dir: Option<PathBuf>,
    /// Worker threads are not pinned and give up their CPU when idle, so any mask runs anywhere.
    pub fold_cores: bool,
    /// With folded cores, a NIC's components share two threads, one for each way, and not as the mask deals cores out: the
    /// rings between them have both ends on one.
    pub share_ways: bool,
    /// What worker threads do when idle, unless they are folded.
    pub idle: IdlePolicy,
    /// Nothing passes from the guest of a vhost that is not plugged. True wherever plug and unplug
    /// are used; false for a node wired by component commands alone.
    pub gate_unplugged: bool,
    /// Guests of one NIC and VLAN reach each other inside the node. False: all their frames go to the wire, as
    /// SPP does it.
    pub local_switching: bool,
    /// Longest wait for a core to take over a plan.
    pub change_deadline: Duration,
}

impl Default for NodeOptions {
    /// As OpenStack has it, and with the short way between guests.
    fn default() -> NodeOptions {
        NodeOptions {
            vhost_dir: PathBuf::from("/tmp"),
            vhost_role: Role::Client,
            state_dir: None,
            fold_cores: false,
            share_ways: false,
            idle: IdlePolicy::Spin,
            gate_unplugged: true,
            local_switching: true,
            change_deadline: Duration::from_secs(2),
        }
    }
}

/// Why a node can't be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cores asked for are not there.
    #[error(transparent)]
    Cores(#[from] CoresError),
    /// The machine does not tell what cores it has.
    #[error("can't read which cores are online: {0}")]
    NoCoreList(std::io::Error),
    /// No packet memory.
    #[error("packet memory: {0}")]
    Memory(#[from] DmaError),
    /// A NIC can't be opened or started.
    #[error("{owner}: {source}")]
    Device {
        /// Which NIC.
        owner: String,
        /// Why.
        source: PortError,
    },
    /// A vhost port can't be opened.
    #[error(transparent)]
    Vhost(#[from] VhostError),
    /// A core does not follow.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// An edit is refused; nothing changed.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A classifier with more outputs than a table can number.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A port's queue is on a core that does not answer.
    #[error("{0} is held by a core that does not answer")]
    Held(PortName),
}

/// A ring's counters.
struct RingCounters {
    tx: SharedStats,
    rx: SharedStats,
}

/// A running node. Dropping it stops it, in the order that is safe: cores, vhost ports, NICs, memory.
pub struct Node {
    config: NodeConfig,
    options: NodeOptions,
    started: Instant,
    topology: Topology,
    board: Switchboard,
    /// None while a port can't be opened again.
    vhosts: Vec<Option<VhostPort>>,
    vhost_lives: Vec<VhostLife>,
    nics: Vec<Nic>,
    rings: Vec<RingCounters>,
    pool: Pool,
    warnings: Vec<String>,
    busy: BusySamples,
    /// The cores may not run what the topology asks for: the next tick tries again.
    unsettled: Option<String>,
    health_due: Instant,
    retries: Retries,
}

impl Node {
    /// Builds the node and starts its traffic. The first thing that fails ends it, and what was
    /// opened before is closed again.
    pub fn start(config: NodeConfig, options: NodeOptions) -> Result<Node, NodeError> {
        Node::start_with(config, options, &mut crate::devices::open)
    }

    /// As [`start`](Self::start), with another way to open devices.
    pub fn start_with(
        config: NodeConfig,
        options: NodeOptions,
        open: OpenDevice<'_>,
    ) -> Result<Node, NodeError> {
        build::build(config, options, open)
    }

    /// What is wanted now.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// How it was started.
    pub fn options(&self) -> &NodeOptions {
        &self.options
    }

    /// Where its packet buffers are.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Wires a vhost, replacing whatever wiring it has. Live on its cores when it returns.
    pub fn plug(&mut self, plug: &Plug) -> Result<(), NodeError> {
        self.edit(|topology| topology.plug(plug))?;
        tracing::info!(vhost = plug.vhost, mac = %plug.mac, vlan = plug.vlan, "plugged");
        Ok(())
    }

    /// Undoes the wiring of a vhost and the taps it has a part in; one that is not plugged is fine.
    pub fn unplug(&mut self, vhost: u32) -> Result<(), NodeError> {
        let was_plugged = self.topology.plugs().contains_key(&vhost);
        for tap in self.taps().into_iter().filter(|tap| tap.involves(vhost)) {
            self.untap(tap.mirror)?;
        }
        self.edit(|topology| topology.unplug(vhost))?;
        if was_plugged {
            tracing::info!(vhost, "unplugged");
        }
        Ok(())
    }

    /// What is plugged, by vhost id.
    pub fn plugs(&self) -> Vec<Plug> {
        self.topology.plugs().values().map(|plugged| plugged.plug).collect()
    }

    /// Adds a component without ports.
    pub fn component_start(
        &mut self,
        vf: u32,
        name: &str,
        core: usize,
        kind: ComponentKind,
    ) -> Result<(), NodeError> {
        self.edit(|topology| topology.component_start(vf, name, core, kind))
    }

    /// Removes a component; an unknown name is fine.
    pub fn component_stop(&mut self, vf: u32, name: &str) -> Result<(), NodeError> {
        self.edit(|topology| topology.component_stop(vf, name))
    }

    /// Attaches one end of a port to a component.
    pub fn port_attach(
        &mut self,
        vf: u32,
        component: &str,
        port: PortName,
        direction: Direction,
        vlan: VlanOp,
    ) -> Result<(), NodeError> {
        self.edit(|topology| topology.port_attach(vf, component, port, direction, vlan))
    }

    /// Takes one end of a port from a component; one that is not attached is fine.
    pub fn port_detach(
        &mut self,
        vf: u32,
        component: &str,
        port: PortName,
        direction: Direction,
    ) -> Result<(), NodeError> {
        self.edit(|topology| topology.port_detach(vf, component, port, direction))
    }

    /// Adds a classifier entry.
    pub fn table_add(&mut self, vf: u32, entry: Entry) -> Result<(), NodeError> {
        self.edit(|topology| topology.table_add(vf, entry))
    }

    /// Removes a classifier entry.
    pub fn table_del(&mut self, vf: u32, entry: Entry) -> Result<(), NodeError> {
        self.edit(|topology| topology.table_del(vf, entry))
    }

    /// Edits a copy of the topology, makes the cores follow, and keeps the copy. When the cores
    /// can't follow, they go back to what they ran.
    fn edit(&mut self, edit: impl FnOnce(&mut Topology) -> Result<(), EditError>) -> Result<(), NodeError> {
        let mut next = self.topology.clone();
        edit(&mut next)?;
        let before = std::mem::replace(&mut self.topology, next);
        if let Err(error) = self.settle() {
            self.topology = before;
            self.settle_or_note();
            return Err(error);
        }
        Ok(())
    }

    /// Makes the cores run what the topology asks for, as far as the devices are there.
    fn settle(&mut self) -> Result<(), NodeError> {
        let shares = self.options.fold_cores && self.options.share_ways;
        let compile = if shares { Wiring::compile_folded } else { Wiring::compile };
        let wanted = compile(&self.topology, &self.missing());
        self.add_queue_halves(&wanted);
        self.drain_leaving_queues(&wanted)?;
        let before = self.board.running().clone();
        self.board.settle(&wanted)?;
        self.deal_queues(&before)?;
        self.board.forget_all_but(&self.topology);
        // What is left in a ring that nobody serves must not come out when somebody does again.
        (0..self.nics.len() as u32).for_each(|number| self.board.purge(PortName::Local(number)));
        self.nics.iter_mut().zip(self.topology.vfs()).for_each(|(nic, vf)| nic.serve(vf.served()));
        self.unsettled = None;
        Ok(())
    }

    /// As [`settle`](Self::settle), for callers that have no one to tell: the tick tries again.
    fn settle_or_note(&mut self) {
        if let Err(error) = self.settle() {
            if self.unsettled.is_none() {
                tracing::error!(%error, "the cores don't follow the topology; trying again");
            }
            self.unsettled = Some(error.to_string());
        }
    }

    /// NICs whose queues are not there, and vhost ports that are being reset.
    fn missing(&self) -> BTreeSet<PortName> {
        let down = self.nics.iter().filter(|nic| !nic.is_running()).flat_map(Nic::ports);
        let reset = (0..).zip(&self.vhost_lives).filter(|(_, life)| life.down);
        let reset = reset.flat_map(|(id, _)| queues::ports(id));
        down.chain(reset).chain(self.board.lost()).collect()
    }

    /// Stops everything. Called by drop; a second call does nothing.
    fn shut_down(&mut self) {
        let mut parked = self.board.stop();
        for (port, id) in self.vhosts.drain(..).zip(0..) {
            let halves = parked.take_all(queues::ports(id));
            if let Some(port) = port {
                vhost::close(port, halves);
            }
        }
        for life in &mut self.vhost_lives {
            life.wait_closed();
        }
        for nic in &mut self.nics {
            nic.stop(&mut parked);
        }
        let stopped_now = !self.nics.is_empty();
        self.nics.clear();
        drop(parked);
        let counts = self.pool.counts();
        if stopped_now && counts.out > 0 {
            tracing::error!(buffers = counts.out, "packet buffers did not come back to their pool");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shut_down();
    }
}
