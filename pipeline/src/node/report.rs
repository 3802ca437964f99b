//! What the node says about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use spp_drivers::ring_port::RING_SLOTS;
use spp_vhost::{Role, VhostPort};

use super::Node;
use crate::compile::queue_owners;
use crate::names::PortName;
use crate::stats::Cycles;
use crate::status::{
    ComponentStatus, Counters, EdgeStatus, MirrorStatus, NodeStatus, PlugStatus, PoolStatus, QueueStatus,
    RingStatus, RingUse, VfStatus, VhostStatus, vlan_text,
};
use crate::topology::{Attachment, Component, ComponentId, Direction, Mirror, Topology};

/// How long a busy sample lasts.
const BUSY_WINDOW: Duration = Duration::from_secs(1);

/// Cycle counters at the start of the window, and shares over the window before.
#[derive(Default)]
pub(super) struct BusySamples {
    since: Option<Instant>,
    cores: BTreeMap<usize, Cycles>,
    components: BTreeMap<ComponentId, Cycles>,
    percent: BTreeMap<ComponentId, f32>,
}

/// Ports that components which run have, to send to and to receive from.
type NamedPorts = [BTreeSet<PortName>; 2];

impl Node {
    /// Takes the shares of the last second. Called by the tick.
    pub(super) fn sample_busy(&mut self, now: Instant) {
        if self.busy.since.is_some_and(|since| now - since < BUSY_WINDOW) {
            return;
        }
        let cores: BTreeMap<usize, Cycles> = self.board.busy().collect();
        let (mut components, mut percent) = (BTreeMap::new(), BTreeMap::new());
        for component in self.topology.components() {
            let cycles = self.board.component(component.id).cycles();
            let core = self.board.core_of(component.id).unwrap_or(component.core);
            let core_now = cores.get(&core).map_or(0, Cycles::total);
            let core_then = self.busy.cores.get(&core).map_or(0, Cycles::total);
            let then = self.busy.components.get(&component.id).map_or(0, |cycles| cycles.useful);
            let (useful, all) = (cycles.useful.saturating_sub(then), core_now.saturating_sub(core_then));
            let share = if all == 0 { 0.0 } else { 100.0 * useful as f32 / all as f32 };
            percent.insert(component.id, share.min(100.0));
            components.insert(component.id, cycles);
        }
        self.busy = BusySamples { since: Some(now), cores, components, percent };
    }

    /// Everything `spp status` shows.
    pub fn status(&mut self) -> NodeStatus {
        let wired = self.topology.in_force();
        let named = [Direction::Tx, Direction::Rx].map(|direction| self.board.running().ports(direction));
        let mut warnings = self.warnings.clone();
        warnings.extend(self.unsettled.clone());
        warnings.extend(
            self.board.lost().map(|port| format!("{port} is out of service: its worker thread ended")),
        );
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            configuration_form: self.config.form,
            fold_cores: self.options.fold_cores,
            gate_unplugged: self.options.gate_unplugged,
            local_switching: self.options.local_switching,
            pool: PoolStatus::new(self.pool.counts(), self.pool.page_size()),
            vfs: (0..wired.vfs().len()).map(|index| self.vf_status(index, &wired, &named)).collect(),
            mirrors: (0..)
                .zip(wired.mirrors())
                .map(|(id, mirror)| self.mirror_status(id, mirror, &wired))
                .collect(),
            rings: (0..self.rings.len()).map(|number| self.ring_status(number, &wired)).collect(),
            warnings,
        }
    }

    fn vf_status(&mut self, index: usize, wired: &Topology, named: &NamedPorts) -> VfStatus {
        let vf = &wired.vfs()[index];
        let config = &self.config.vfs[index];
        let (physical_network, core_mask) = (config.physical_network.clone(), config.core_mask.clone());
        VfStatus {
            id: vf.id,
            physical_network,
            core_mask,
            master_core: vf.master,
            nic: self.nics[index].status(),
            components: vf
                .components
                .iter()
                .map(|component| self.component_status(component, wired))
                .collect(),
            vhosts: vf.vhosts.clone().map(|id| self.vhost_status(id, wired, named)).collect(),
        }
    }

    fn mirror_status(&mut self, id: u32, mirror: &Mirror, wired: &Topology) -> MirrorStatus {
        let tap = wired.tap_of(id);
        let mut component = self.component_status(&mirror.component, wired);
        if tap.is_none() {
            "idle".clone_into(&mut component.state);
        }
        MirrorStatus { id, tap, component }
    }

    fn component_status(&mut self, component: &Component, wired: &Topology) -> ComponentStatus {
        let now = self.board.component(component.id).snapshot();
        let state = match (now.failed, self.board.core_of(component.id).is_some()) {
            (true, _) => "failed",
            (false, true) => "running",
            (false, false) => "incomplete",
        };
        let mut edges = |direction| -> Vec<EdgeStatus> {
            component
                .ends(direction)
                .iter()
                .map(|end| self.edge_status(component, direction, end, wired))
                .collect()
        };
        let (rx, tx) = (edges(Direction::Rx), edges(Direction::Tx));
        ComponentStatus {
            name: component.name.clone(),
            kind: component.kind,
            core: component.core,
            state: state.to_owned(),
            busy_percent: self.busy.percent.get(&component.id).copied().unwrap_or(0.0),
            rx_packets: now.rx_packets,
            tx_packets: now.tx_packets,
            copies: now.copies,
            segmented: now.segmented,
            checksummed: now.checksummed,
            held: now.held,
            drops: now.drops,
            rx,
            tx,
        }
    }

    fn edge_status(
        &mut self,
        component: &Component,
        direction: Direction,
        end: &Attachment,
        wired: &Topology,
    ) -> EdgeStatus {
        EdgeStatus {
            port: end.port.to_string(),
            vlan: vlan_text(end.vlan),
            closed: direction == Direction::Rx && wired.closes(component, end.port),
            counters: Counters::from(self.board.edge(component.id, (direction, end.port)).snapshot()),
        }
    }

    fn vhost_status(&self, id: u32, wired: &Topology, named: &NamedPorts) -> VhostStatus {
        let life = &self.vhost_lives[id as usize];
        let status = self.vhosts[id as usize].as_ref().map(VhostPort::status).or_else(|| life.last.clone());
        let status = status.expect("a port is open, or was, when its status was kept");
        let plug = self.topology.plugs().get(&id).map(|plugged| plugged.plug);
        let counters = |n: usize, now: Counters| {
            let mut sum = life.before[n].clone();
            sum.add(now);
            sum
        };
        let owners = named.each_ref().map(|named| queue_owners(id, named));
        let ring_use = |side: usize, queue: usize, ring: &spp_vhost::RingStatus| {
            let end = ([Direction::Tx, Direction::Rx][side], owners[side][queue]);
            let component = wired.user_of(end).map(|component| component.name.clone());
            RingUse { running: ring.running, packets: ring.packets, component }
        };
        let queue = |(n, queue): (usize, &spp_vhost::QueueStatus)| QueueStatus {
            to_guest: ring_use(0, n, &queue.to_guest),
            from_guest: ring_use(1, n, &queue.from_guest),
        };
        let queues = status.queues.iter().enumerate().map(queue).collect();
        VhostStatus {
            id,
            port: status.name,
            socket: status.path,
            role: role_text(status.role),
            state: status.state.to_string(),
            detail: status.detail,
            last_failure: status.last_failure,
            reconnects: status.reconnects,
            panics: status.panics + life.all_panics(),
            mtu: status.mtu,
            features: status.features.into_iter().map(str::to_owned).collect(),
            plug: plug.map(|plug| PlugStatus { mac: plug.mac, vlan: plug.vlan }),
            queues,
            to_guest: counters(0, status.to_guest.into()),
            from_guest: counters(1, status.from_guest.into()),
            resets: life.resets,
            memory: status.memory.into_iter().map(Into::into).collect(),
        }
    }

    fn ring_status(&self, number: usize, wired: &Topology) -> RingStatus {
        let port = PortName::Ring(number as u32);
        let depth = self.ring_depth(port).min(RING_SLOTS as u64);
        let user = |direction| wired.user_of((direction, port)).map(|component| component.name.clone());
        RingStatus {
            port: port.to_string(),
            slots: RING_SLOTS as u64,
            depth,
            from: user(Direction::Tx),
            to: user(Direction::Rx),
            packets: self.rings[number].tx.packets.get(),
            fused: self.board.running().fuses(port),
        }
    }
}

fn role_text(role: Role) -> String {
    match role {
        Role::Client => "client".to_owned(),
        Role::Server => "server".to_owned(),
    }
}
