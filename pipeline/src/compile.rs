//! From a [`Topology`] to what each core runs, and from one such wiring to the next.
//!
//! Pure: no queues, no threads. [`Wiring::compile`] says what should be; [`steps`] says in which order
//! the cores have to change so that no end of a port is ever on two of them, nothing is let through
//! before its way is complete, and nothing is taken apart before the flow into it has stopped.

use std::collections::{BTreeMap, BTreeSet};

use spp_vhost::MAX_PAIRS;

use crate::names::{ComponentKind, PortName};
use crate::plan::VlanOp;
use crate::table::Dst;
use crate::topology::{Attachment, Component, ComponentId, Direction, Entry, Plug, PortEnd, Topology};

/// What all cores run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wiring {
    /// By core number; cores without a component that can run are absent.
    pub cores: BTreeMap<usize, Vec<Running>>,
}

/// A component with all it needs to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Identity of the component.
    pub id: ComponentId,
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ComponentKind,
    /// Inputs.
    pub rx: Vec<Input>,
    /// Outputs.
    pub tx: Vec<Output>,
    /// Classifier entries in force.
    pub entries: Vec<Entry>,
}

/// An input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// The port.
    pub port: PortName,
    /// Done to each frame first.
    pub vlan: VlanOp,
    /// Frames are taken and dropped.
    pub closed: bool,
    /// The plugged guest whose frames these are, and nobody else's.
    pub guest: Option<Plug>,
}

/// An output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// The port.
    pub port: PortName,
    /// Done to each frame last.
    pub vlan: VlanOp,
    /// The vhost whose guest gets these frames, and nobody else.
    pub guest: Option<u32>,
    /// A classifier's output that shares a guest with others.
    pub share: Option<Share>,
}

/// An output's part in the frames of one guest, which a classifier spreads over several outputs by flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The guest's vhost.
    pub vhost: u32,
    /// The port its frames get to the guest by; `None` when they get nowhere at present.
    pub by: Option<PortName>,
}

/// One change of one core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The core.
    pub core: usize,
    /// What it runs from now on.
    pub components: Vec<Running>,
    /// Ends of ports that leave it.
    pub take: Vec<PortEnd>,
    /// Ends of ports that come to it.
    pub give: Vec<PortEnd>,
}

impl Running {
    /// The ends of ports it needs.
    pub fn ends(&self) -> impl Iterator<Item = PortEnd> + '_ {
        let rx = self.rx.iter().map(|rx| (Direction::Rx, rx.port));
        rx.chain(self.tx.iter().map(|tx| (Direction::Tx, tx.port)))
    }

    /// A component whose ports are not complete does not run. A mirror without input sends what it still holds.
    fn is_complete(&self) -> bool {
        match self.kind {
            ComponentKind::Mirror => self.tx.len() == 2,
            _ => {
                // The local ring alone is no work: without a NIC its two ends are idle.
                let real = |port: PortName| !matches!(port, PortName::Local(_));
                self.rx.iter().any(|rx| real(rx.port)) && self.tx.iter().any(|tx| real(tx.port))
            }
        }
    }

    /// True for a forward between two guests that does nothing to frames: they can be copied once, from the one's memory into the other's.
    pub fn is_direct(&self) -> bool {
        let (rx, tx) = (self.rx.as_slice(), self.tx.as_slice());
        let ([Input { port: from, vlan: VlanOp::None, .. }], [Output { port: to, vlan: VlanOp::None, .. }]) =
            (rx, tx)
        else {
            return false;
        };
        self.kind == ComponentKind::Forward && from.vhost().is_some() && to.vhost().is_some()
    }

    /// True when two of the guests it takes from are in one VLAN.
    pub fn has_neighbours(&self) -> bool {
        let mut plugs = self.rx.iter().filter_map(|rx| rx.guest);
        plugs.any(|one| {
            let mut others = self.rx.iter().filter_map(|rx| rx.guest);
            others.any(|other| other.vhost != one.vhost && other.vlan == one.vlan)
        })
    }

    /// Entries as (VLAN, destination, index of the output). Outputs that share a guest count as the first of them: it
    /// spreads what comes to any.
    pub fn indexed_entries(&self) -> impl Iterator<Item = (Option<u16>, Dst, usize)> + '_ {
        let guest = |tx: &Output| tx.share.map(|share| share.vhost);
        self.entries.iter().filter_map(move |entry| {
            let index = self.tx.iter().position(|tx| tx.port == entry.port)?;
            let shares = |tx: &Output| guest(tx).is_some() && guest(tx) == guest(&self.tx[index]);
            let first = self.tx.iter().position(shares).unwrap_or(index);
            Some((entry.vid, entry.dst, first))
        })
    }

    /// This component without the ends that `have` lacks, and without anything that `before`, what
    /// runs now, does not let through: its new entries and newly opened gates.
    fn held_back(&self, before: &Running, have: &BTreeSet<PortEnd>) -> Running {
        let mut held = self.clone();
        held.rx.retain(|rx| have.contains(&(Direction::Rx, rx.port)));
        held.tx.retain(|tx| have.contains(&(Direction::Tx, tx.port)));
        held.entries
            .retain(|entry| before.entries.contains(entry) && held.tx.iter().any(|tx| tx.port == entry.port));
        for rx in &mut held.rx {
            let was_closed = before.rx.iter().any(|old| old.port == rx.port && old.closed);
            rx.closed |= was_closed;
        }
        held
    }
}

fn running(topology: &Topology, component: &Component, missing: &BTreeSet<PortName>) -> Running {
    let there = |attachment: &&Attachment| !missing.contains(&attachment.port);
    let guest = |direction, port| topology.guest_at((direction, port));
    let tx = component.tx.iter().filter(there).map(|tx| {
        let guest = guest(Direction::Tx, tx.port).map(|plug| plug.vhost);
        Output { port: tx.port, vlan: tx.vlan, guest, share: None }
    });
    let tx: Vec<Output> = tx.collect();
    let rx = component.rx.iter().filter(there);
    let rx = rx.map(|rx| {
        let (port, closed) = (rx.port, topology.closes(component, rx.port));
        Input { port, vlan: rx.vlan, closed, guest: guest(Direction::Rx, port) }
    });
    let own = |entry: &&Entry| tx.iter().any(|tx| tx.port == entry.port);
    let entries = match component.kind {
        ComponentKind::Classifier => {
            let vf = topology.vf_of(component.id);
            vf.map_or(Vec::new(), |vf| vf.entries.iter().filter(own).copied().collect())
        }
        _ => Vec::new(),
    };
    let (id, name, kind) = (component.id, component.name.clone(), component.kind);
    Running { id, name, kind, rx: rx.collect(), tx, entries }
}

/// The core that a folded component is run on: the lowest of those of its NIC's components on the same way, to the guests or
/// from them, so that the rings on a way connect components of one core. A mirror keeps its own.
fn folded_core(topology: &Topology, component: &Component) -> usize {
    let is_to_guests = |component: &Component| match component.kind {
        ComponentKind::Classifier => true,
        ComponentKind::Merge | ComponentKind::Mirror => false,
        ComponentKind::Forward => component.tx.iter().any(|tx| tx.port.vhost().is_some()),
    };
    let Some(vf) = topology.vf_of(component.id) else { return component.core };
    let alike = vf.components.iter().filter(|other| is_to_guests(other) == is_to_guests(component));
    alike.map(|other| other.core).min().unwrap_or(component.core)
}

impl Wiring {
    /// What `topology` asks for. Ports in `missing` (their device is down) count as not attached.
    pub fn compile(topology: &Topology, missing: &BTreeSet<PortName>) -> Wiring {
        Wiring::place(topology, missing, |component| component.core)
    }

    /// As [`compile`](Self::compile), on few cores: two for each NIC, one for each way.
    pub fn compile_folded(topology: &Topology, missing: &BTreeSet<PortName>) -> Wiring {
        Wiring::place(topology, missing, |component| folded_core(topology, component))
    }

    fn place(
        topology: &Topology,
        missing: &BTreeSet<PortName>,
        core: impl Fn(&Component) -> usize,
    ) -> Wiring {
        let configured = topology;
        let topology = topology.in_force();
        let mut cores: BTreeMap<usize, Vec<Running>> = BTreeMap::new();
        for component in topology.components() {
            let running = running(&topology, component, missing);
            if running.is_complete() {
                // A tap must not move what it watches: the wiring without taps tells where.
                let untapped = configured.components().find(|other| other.id == component.id);
                let place = untapped.map_or(component.core, &core);
                cores.entry(place).or_default().push(running);
            }
        }
        let mut wiring = Wiring { cores };
        wiring.share_guests();
        wiring
    }

    /// Marks the outputs of classifiers that lead to one guest.
    fn share_guests(&mut self) {
        let inputs: BTreeMap<PortName, Option<PortName>> = self.all().flat_map(ways).collect();
        for running in self.cores.values_mut().flatten().filter(|c| c.kind == ComponentKind::Classifier) {
            let shares: Vec<Option<Share>> = running.tx.iter().map(|tx| share(tx, &inputs)).collect();
            for (tx, share) in running.tx.iter_mut().zip(&shares) {
                let vhost = |share: &Option<Share>| share.map(|share| share.vhost);
                let n_alike = shares.iter().filter(|other| vhost(other) == vhost(share)).count();
                tx.share = share.filter(|_| n_alike > 1);
            }
        }
    }

    /// The core that runs a component.
    pub fn core_of(&self, id: ComponentId) -> Option<usize> {
        let has = |components: &[Running]| components.iter().any(|running| running.id == id);
        self.cores.iter().find(|(_, components)| has(components)).map(|(&core, _)| core)
    }

    /// The components of all cores.
    pub fn all(&self) -> impl Iterator<Item = &Running> {
        self.cores.values().flatten()
    }

    /// Ports that components have in one direction.
    pub fn ports(&self, direction: Direction) -> BTreeSet<PortName> {
        self.all().flat_map(Running::ends).filter(|end| end.0 == direction).map(|end| end.1).collect()
    }

    /// This wiring, in which nothing is spread to `ports` any more.
    pub fn without_shares(&self, ports: &BTreeSet<PortName>) -> Wiring {
        let mut wiring = self.clone();
        let outputs = wiring.cores.values_mut().flatten().flat_map(|running| &mut running.tx);
        for share in outputs.filter_map(|tx| tx.share.as_mut()) {
            share.by = share.by.filter(|port| !ports.contains(port));
        }
        wiring
    }

    /// Queues of vhosts that components have by name.
    pub fn named_queues(&self) -> BTreeSet<PortEnd> {
        let ends = self.all().flat_map(Running::ends);
        ends.filter(|(_, port)| matches!(port, PortName::VhostQueue(..))).collect()
    }

    /// What one core runs.
    pub fn on(&self, core: usize) -> &[Running] {
        self.cores.get(&core).map_or(&[], Vec::as_slice)
    }

    /// The ends of ports on one core.
    pub fn ends_on(&self, core: usize) -> BTreeSet<PortEnd> {
        self.on(core).iter().flat_map(Running::ends).collect()
    }

    /// True for a ring with both ends on one core.
    pub fn fuses(&self, ring: PortName) -> bool {
        let core_of = |direction| {
            let has = |(_, running): &(&usize, &Vec<Running>)| {
                running.iter().flat_map(Running::ends).any(|end| end == (direction, ring))
            };
            self.cores.iter().find(has).map(|(core, _)| core)
        };
        ring.is_ring() && core_of(Direction::Tx).is_some() && core_of(Direction::Tx) == core_of(Direction::Rx)
    }

    /// Takes a step.
    pub fn apply(&mut self, step: &Step) {
        if step.components.is_empty() {
            self.cores.remove(&step.core);
        } else {
            self.cores.insert(step.core, step.components.clone());
        }
    }
}

/// Where packets go that a component takes from each of its inputs: to its one output, if there is one that gets all.
fn ways(running: &Running) -> impl Iterator<Item = (PortName, Option<PortName>)> + '_ {
    let original = running.tx.iter().find(|tx| !matches!(tx.port, PortName::Local(_))).map(|tx| tx.port);
    let to = original.filter(|_| running.kind != ComponentKind::Classifier);
    running.rx.iter().map(move |rx| (rx.port, to))
}

/// Whose frames an output carries, and how they get there.
fn share(tx: &Output, inputs: &BTreeMap<PortName, Option<PortName>>) -> Option<Share> {
    let mut by = tx.port;
    // As many steps as there are components end any walk in circles.
    for _ in 0..=inputs.len() {
        if let Some(vhost) = by.vhost() {
            return Some(Share { vhost, by: Some(by) });
        }
        match inputs.get(&by) {
            Some(Some(next)) => by = *next,
            _ => break,
        }
    }
    tx.guest.map(|vhost| Share { vhost, by: None })
}

/// Which of a vhost's ports has each queue in one direction, with `named` the ports that run: a queue that is there by its
/// own name has it, else the vhost's whole port, else, while that has no component, the others in turns.
pub fn queue_owners(vhost: u32, named: &BTreeSet<PortName>) -> [PortName; MAX_PAIRS] {
    let (rest, queues) =
        (PortName::Vhost(vhost), PortName::VhostQueue(vhost, 0)..=PortName::VhostQueue(vhost, u16::MAX));
    let queues: Vec<PortName> = named.range(queues).copied().collect();
    std::array::from_fn(|queue| {
        let own = PortName::VhostQueue(vhost, queue as u16);
        match () {
            () if named.contains(&own) => own,
            () if queues.is_empty() || named.contains(&rest) => rest,
            () => queues[queue % queues.len()],
        }
    })
}

/// The steps from what runs to what is wanted. First everything that stops flow, from where packets come
/// in (classifiers) to where they leave (mergers); every end that moves is off its old core then.
/// After that everything that starts flow, the other way round: a merger has its tag
/// before the classifier has the entry.
pub fn steps(running: &Wiring, wanted: &Wiring) -> Vec<Step> {
    let cores: BTreeSet<usize> = running.cores.keys().chain(wanted.cores.keys()).copied().collect();
    let mut order: Vec<usize> = cores.into_iter().collect();
    order.sort_by_key(|&core| (downstream(running.on(core)).max(downstream(wanted.on(core))), core));
    let mut now = running.clone();
    let mut steps = Vec::new();
    for &core in &order {
        let held = held_back(&now, wanted, core);
        if stops_something(now.on(core), &held) {
            push(&mut steps, &mut now, core, held);
        }
    }
    for &core in order.iter().rev() {
        if now.on(core) != wanted.on(core) {
            push(&mut steps, &mut now, core, wanted.on(core).to_vec());
        }
    }
    steps
}

/// How near to the place where packets leave: classifiers 0, forwarders and mirrors 1, mergers 2.
fn downstream(components: &[Running]) -> u8 {
    let rank = |component: &Running| match component.kind {
        ComponentKind::Classifier => 0,
        ComponentKind::Forward | ComponentKind::Mirror => 1,
        ComponentKind::Merge => 2,
    };
    components.iter().map(rank).max().unwrap_or(0)
}

/// What a core can run of what is wanted, with what it has and nothing newly let through.
fn held_back(now: &Wiring, wanted: &Wiring, core: usize) -> Vec<Running> {
    let have = now.ends_on(core);
    let wanted = wanted.on(core).iter();
    let kept = wanted.filter_map(|component| {
        let before = now.on(core).iter().find(|old| old.id == component.id)?;
        Some(component.held_back(before, &have))
    });
    kept.filter(Running::is_complete).collect()
}

/// True when `held` runs less than `now`: a component, an end or an entry is gone, or a gate closed.
fn stops_something(now: &[Running], held: &[Running]) -> bool {
    now.iter().any(|old| {
        let Some(new) = held.iter().find(|new| new.id == old.id) else { return true };
        let closes =
            |rx: &Input| new.rx.iter().any(|other| other.port == rx.port && other.closed && !rx.closed);
        old.ends().any(|end| !new.ends().any(|other| other == end))
            || old.entries.iter().any(|entry| !new.entries.contains(entry))
            || old.rx.iter().any(closes)
    })
}

fn push(steps: &mut Vec<Step>, now: &mut Wiring, core: usize, components: Vec<Running>) {
    let had = now.ends_on(core);
    let step = Step { core, components, take: Vec::new(), give: Vec::new() };
    now.apply(&step);
    let has = now.ends_on(core);
    let (take, give) = (had.difference(&has).copied().collect(), has.difference(&had).copied().collect());
    steps.push(Step { take, give, ..step });
}

#[cfg(test)]
mod tests;
