//! Where every queue half is: on a worker, in one of its slots, or parked here. Carries out the steps
//! from one wiring to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use spp_drivers::Burst;
use spp_drivers::dma::Pool;
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::stats::{DropReason, QueueStats, SharedStats};
use spp_drivers::tsc;
use spp_vhost::Live;

use super::{NodeError, NodeOptions};
use crate::compile::{Input, Running, Share, Step, Wiring, steps};
use crate::idle::IdlePolicy;
use crate::names::{ComponentKind, PortName};
use crate::plan::{
    Change, ComponentPlan, CorePlan, Done, Fused, Member, Origin, RxEdge, RxSlot, Sharing, TxEdge, TxSlot,
    WhenFull, Work,
};
use crate::stats::{ComponentStats, Cycles};
use crate::table::{Dst, TableBuilder};
use crate::topology::{ComponentId, Direction, PortEnd, Topology};
use crate::worker::{Worker, WorkerConfig, WorkerError};

/// How long forwarders and mergers wait for a full output before they drop. Far above the time a guest
/// or a folded worker is scheduled away, far below what a TCP sender takes for a dead peer.
const FULL_WAIT: Duration = Duration::from_millis(100);

/// Queue halves no core polls.
#[derive(Default)]
pub(super) struct Parked {
    pub rx: BTreeMap<PortName, Box<dyn RxQueue>>,
    pub tx: BTreeMap<PortName, Box<dyn TxQueue>>,
}

/// Halves that are taken out of the node for good.
pub(super) struct Halves {
    pub rx: Vec<Box<dyn RxQueue>>,
    pub tx: Vec<Box<dyn TxQueue>>,
}

impl Parked {
    /// Takes out the halves of these ports, as far as they are here.
    pub fn take_all(&mut self, ports: impl Iterator<Item = PortName>) -> Halves {
        let (mut rx, mut tx) = (Vec::new(), Vec::new());
        for port in ports {
            rx.extend(self.rx.remove(&port));
            tx.extend(self.tx.remove(&port));
        }
        Halves { rx, tx }
    }

    fn has(&self, (direction, port): PortEnd) -> bool {
        match direction {
            Direction::Rx => self.rx.contains_key(&port),
            Direction::Tx => self.tx.contains_key(&port),
        }
    }
}

/// Which port is in which slot of a worker.
#[derive(Default, Clone)]
struct Slots {
    rx: Vec<Option<PortName>>,
    tx: Vec<Option<PortName>>,
}

impl Slots {
    fn of(&mut self, direction: Direction) -> &mut Vec<Option<PortName>> {
        match direction {
            Direction::Rx => &mut self.rx,
            Direction::Tx => &mut self.tx,
        }
    }

    fn find(&mut self, (direction, port): PortEnd) -> u16 {
        let slot = self.of(direction).iter().position(|held| *held == Some(port));
        slot.expect("a step takes, and a plan names, only ends that are on the core") as u16
    }

    /// The rings that have both ends here.
    fn fused(&self) -> Vec<Fused> {
        let rings =
            (0..).zip(&self.tx).filter_map(|(slot, port)| Some((slot, port.filter(PortName::is_ring)?)));
        let fused = rings.filter_map(|(tx, ring)| {
            let rx = self.rx.iter().position(|port| *port == Some(ring))?;
            Some(Fused { tx: TxSlot(tx), rx: RxSlot(rx as u16) })
        });
        fused.collect()
    }

    fn leave(&mut self, end: PortEnd) -> u16 {
        let slot = self.find(end);
        self.of(end.0)[usize::from(slot)] = None;
        slot
    }

    /// The lowest free slot.
    fn enter(&mut self, (direction, port): PortEnd) -> u16 {
        let slots = self.of(direction);
        let slot = slots.iter().position(Option::is_none).unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        slots[slot] = Some(port);
        u16::try_from(slot).expect("a core has fewer than 65,536 ports of one direction")
    }
}

struct Core {
    worker: Worker,
    slots: Slots,
    /// For each change not acknowledged yet, the slots as they were before it.
    open: BTreeMap<u64, Slots>,
}

/// Workers, their slots, and the halves in none of them.
pub(super) struct Switchboard {
    pool: Pool,
    fold: bool,
    idle: IdlePolicy,
    deadline: Duration,
    cores: BTreeMap<usize, Core>,
    pub parked: Parked,
    running: Wiring,
    generation: u64,
    edge_stats: BTreeMap<(ComponentId, PortEnd), SharedStats>,
    component_stats: BTreeMap<ComponentId, Arc<ComponentStats>>,
    /// Ports whose halves ended with their worker.
    lost: BTreeSet<PortName>,
    /// Whether guests take packets from the ports of vhosts, and from their queues.
    pub live: BTreeMap<PortName, Live>,
}

impl Switchboard {
    pub fn new(pool: &Pool, options: &NodeOptions) -> Switchboard {
        Switchboard {
            pool: pool.clone(),
            fold: options.fold_cores,
            idle: options.idle,
            deadline: options.change_deadline,
            cores: BTreeMap::new(),
            parked: Parked::default(),
            running: Wiring::default(),
            generation: 0,
            edge_stats: BTreeMap::new(),
            component_stats: BTreeMap::new(),
            lost: BTreeSet::new(),
            live: BTreeMap::new(),
        }
    }

    /// What the cores run.
    pub fn running(&self) -> &Wiring {
        &self.running
    }

    /// Makes the cores run `wanted`. Threads that are needed are started before anything changes, and
    /// threads with nothing left to do are ended.
    pub fn settle(&mut self, wanted: &Wiring) -> Result<(), NodeError> {
        for &core in wanted.cores.keys() {
            self.ensure_core(core)?;
        }
        for step in steps(&self.running, wanted) {
            self.take(step)?;
        }
        self.retire_idle();
        Ok(())
    }

    /// Ends threads with nothing left to do. One that still owes an acknowledgement is left for later.
    fn retire_idle(&mut self) {
        let idle = |(&number, core): (&usize, &Core)| {
            (core.open.is_empty() && self.running.on(number).is_empty()).then_some(number)
        };
        let idle: Vec<usize> = self.cores.iter().filter_map(idle).collect();
        idle.into_iter().for_each(|number| self.retire(number));
    }

    fn ensure_core(&mut self, core: usize) -> Result<(), NodeError> {
        if !self.cores.contains_key(&core) {
            let name = format!("spp-core-{core}");
            let config = WorkerConfig { core, fold: self.fold, idle: self.idle, name };
            let worker = Worker::spawn(config, &self.pool)?;
            self.cores.insert(core, Core { worker, slots: Slots::default(), open: BTreeMap::new() });
        }
        Ok(())
    }

    fn take(&mut self, step: Step) -> Result<(), NodeError> {
        if let Some((_, port)) = step.give.iter().find(|&&end| !self.parked.has(end)) {
            return Err(NodeError::Held(*port));
        }
        let builders = step.components.iter().map(table).collect::<Result<Vec<_>, _>>()?;
        self.generation += 1;
        let generation = self.generation;
        let core = self.cores.get_mut(&step.core).expect("settle starts the cores it needs");
        let before = core.slots.clone();
        let mut change = Change::default();
        for &end in &step.take {
            let slot = core.slots.leave(end);
            match end.0 {
                Direction::Rx => change.rx_out.push(RxSlot(slot)),
                Direction::Tx => change.tx_out.push(TxSlot(slot)),
            }
        }
        for &end in &step.give {
            let slot = core.slots.enter(end);
            match end.0 {
                Direction::Rx => {
                    change.rx_in.extend(self.parked.rx.remove(&end.1).map(|half| (RxSlot(slot), half)))
                }
                Direction::Tx => {
                    change.tx_in.extend(self.parked.tx.remove(&end.1).map(|half| (TxSlot(slot), half)))
                }
            }
        }
        let mut slots = core.slots.clone();
        core.open.insert(generation, before);
        let components = step.components.iter().zip(builders);
        let components =
            components.map(|(running, table)| self.component_plan(running, table, &mut slots)).collect();
        change.plan = CorePlan { generation, components, fused: slots.fused() };
        change.plan.sort_by_flow();
        self.running.apply(&step);
        self.send(step.core, change)
    }

    fn send(&mut self, number: usize, change: Change) -> Result<(), NodeError> {
        let core = self.cores.get_mut(&number).expect("the caller has just used it");
        let result = core.worker.change(change, self.deadline);
        let mut came_back = core.worker.late();
        let error = match result {
            Ok(done) => {
                came_back.push(done);
                None
            }
            Err(error) => Some(error),
        };
        for done in came_back {
            bank(&mut self.parked, core, done);
        }
        if let Some(WorkerError::Gone { .. }) = error {
            self.bury(number);
        }
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    /// A worker thread has ended, which is a bug of ours: its halves are gone with it.
    fn bury(&mut self, number: usize) {
        if let Some(core) = self.cores.remove(&number) {
            let Slots { rx, tx } = core.slots;
            let ports: BTreeSet<PortName> = rx.into_iter().chain(tx).flatten().collect();
            tracing::error!(core = number, ?ports, "worker thread has ended: its ports are out of service");
            self.lost.extend(ports);
        }
        self.running.cores.remove(&number);
    }

    fn retire(&mut self, number: usize) {
        let Some(mut core) = self.cores.remove(&number) else { return };
        for done in core.worker.late() {
            bank(&mut self.parked, &mut core, done);
        }
        let Core { worker, slots, open } = core;
        match worker.stop(self.deadline) {
            Ok(done) => park_all(&mut self.parked, slots, done),
            Err(error) => {
                tracing::error!(%error, "worker thread did not stop");
                let unanswered = open.into_values().chain([slots]);
                self.lost.extend(unanswered.flat_map(|slots| slots.rx.into_iter().chain(slots.tx)).flatten());
            }
        }
    }

    fn component_plan(&mut self, running: &Running, table: TableBuilder, slots: &mut Slots) -> ComponentPlan {
        let mut rx = Vec::new();
        for input in &running.rx {
            let end = (Direction::Rx, input.port);
            let (slot, stats) = (RxSlot(slots.find(end)), self.edge(running.id, end));
            rx.push(RxEdge { slot, vlan: input.vlan, closed: input.closed, from: source(input), stats });
        }
        let (mut tx, mut local) = (Vec::new(), None);
        for output in &running.tx {
            let end = (Direction::Tx, output.port);
            let (slot, stats) = (TxSlot(slots.find(end)), self.edge(running.id, end));
            let (full, guest) =
                (when_full(running.kind, output.port), output.guest.map(|vhost| vhost as u16));
            let sharing = output.share.map(|share| Box::new(self.sharing(running, share.vhost)));
            let edge = TxEdge { slot, vlan: output.vlan, full, guest, sharing, stats };
            match output.port {
                PortName::Local(_) => local = Some(edge),
                _ => tx.push(edge),
            }
        }
        const COMPLETE: &str = "only complete components are compiled";
        let mut pop = || tx.pop().expect(COMPLETE);
        let work = match running.kind {
            ComponentKind::Forward => {
                let (rx, tx) = (rx.pop().expect(COMPLETE), pop());
                if running.is_direct() { Work::Direct { rx, tx } } else { Work::Forward { rx, tx } }
            }
            ComponentKind::Merge => match (local, running.has_neighbours()) {
                (Some(local), true) => Work::MergeLocal { rx, tx: [pop(), local], guests: table.build() },
                _ => Work::Merge { rx, tx: pop() },
            },
            ComponentKind::Classifier => Work::Classify { rx, tx, table: table.build() },
            ComponentKind::Mirror => {
                // Who watches never holds up what is watched.
                let (copy, original) = (pop(), pop());
                Work::Mirror {
                    rx,
                    tx: [original, TxEdge { full: WhenFull::Drop(DropReason::RingFull), ..copy }],
                }
            }
        };
        ComponentPlan { name: running.name.clone(), work, stats: self.component(running.id) }
    }

    /// The outputs a classifier spreads a guest's packets over: those by which they get there.
    fn sharing(&self, classifier: &Running, vhost: u32) -> Sharing {
        let shares = classifier.tx.iter().map(|tx| tx.share.filter(|share| share.vhost == vhost));
        let all: Vec<(u16, Share)> = (0..).zip(shares).filter_map(|(n, share)| Some((n, share?))).collect();
        let live = |share: &Share| share.by.and_then(|port| self.live.get(&port)).cloned();
        let members = all.iter().filter_map(|(output, share)| {
            let output = *output;
            live(share).map(|live| Member { output, live })
        });
        let mut members: Vec<Member> = members.collect();
        if members.is_empty() {
            let dead = Live::default();
            members.extend(all.first().map(|(output, _)| Member { output: *output, live: dead }));
        }
        Sharing::new(members)
    }

    /// The counters of a component.
    pub fn component(&mut self, id: ComponentId) -> Arc<ComponentStats> {
        self.component_stats.entry(id).or_insert_with(ComponentStats::shared).clone()
    }

    /// The counters of one port of a component.
    pub fn edge(&mut self, id: ComponentId, end: PortEnd) -> SharedStats {
        self.edge_stats.entry((id, end)).or_insert_with(QueueStats::shared).clone()
    }

    /// Drops the counters of components that are no more.
    pub fn forget_all_but(&mut self, topology: &Topology) {
        let live: BTreeSet<ComponentId> = topology.components().map(|component| component.id).collect();
        self.component_stats.retain(|id, _| live.contains(id));
        self.edge_stats.retain(|(id, _), _| live.contains(id));
    }

    /// The core that runs the component: its own, or with folded cores the one it shares.
    pub fn core_of(&self, id: ComponentId) -> Option<usize> {
        self.running.core_of(id)
    }

    /// Where a core's cycles went, for all cores.
    pub fn busy(&self) -> impl Iterator<Item = (usize, Cycles)> + '_ {
        self.cores.iter().map(|(&number, core)| (number, core.worker.busy()))
    }

    /// Ports whose halves are gone.
    pub fn lost(&self) -> impl Iterator<Item = PortName> + '_ {
        self.lost.iter().copied()
    }

    /// True when both ends of a port are parked, or never come back.
    pub fn gives_back(&self, port: PortName) -> bool {
        let both =
            [Direction::Rx, Direction::Tx].into_iter().all(|direction| self.parked.has((direction, port)));
        both || self.lost.contains(&port)
    }

    /// A port has new halves in the place of lost ones.
    pub fn found(&mut self, port: PortName) {
        self.lost.remove(&port);
    }

    /// True when somebody waits for the next tick: the control side of a parked port, or a late acknowledgement.
    pub fn is_waited_for(&self) -> bool {
        let served = |port: &PortName| !matches!(port, PortName::Ring(_) | PortName::Local(_));
        self.parked.rx.keys().chain(self.parked.tx.keys()).any(served)
            || self.cores.values().any(|core| !core.open.is_empty())
    }

    /// Serves the control side of parked halves and takes in late acknowledgements.
    pub fn tick(&mut self) {
        self.parked.rx.values_mut().for_each(|half| half.poll_control());
        self.parked.tx.values_mut().for_each(|half| half.poll_control());
        let mut any_late = false;
        for core in self.cores.values_mut().filter(|core| !core.open.is_empty()) {
            for done in core.worker.late() {
                bank(&mut self.parked, core, done);
                any_late = true;
            }
        }
        if any_late {
            self.retire_idle();
        }
    }

    /// Gives a core the plan it has once more: components that failed get another try.
    pub fn replay(&mut self, core: usize) -> Result<(), NodeError> {
        let components = self.running.on(core).to_vec();
        self.take(Step { core, components, take: Vec::new(), give: Vec::new() })
    }

    /// Frees the frames left in a ring that no core has; they count as dropped at its receiving end.
    pub fn purge(&mut self, ring: PortName) {
        if let Some(half) = self.parked.rx.get_mut(&ring) {
            let (mut cache, mut left) = (self.pool.cache(), Burst::new());
            while half.rx_burst(&mut cache, &mut left) > 0 {
                half.stats().dropped(DropReason::ComponentGone, left.free_all(&mut cache));
            }
        }
    }

    /// Ends all workers and returns all halves.
    pub fn stop(&mut self) -> Parked {
        let numbers: Vec<usize> = self.cores.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.retire(number));
        self.running = Wiring::default();
        std::mem::take(&mut self.parked)
    }
}

/// A classifier's entries, or the guests a merge component takes from.
fn table(running: &Running) -> Result<TableBuilder, NodeError> {
    let mut table = TableBuilder::new();
    for (vid, dst, index) in running.indexed_entries() {
        table.add(vid, dst, index)?;
    }
    if running.kind == ComponentKind::Merge {
        for plug in running.rx.iter().filter_map(|rx| rx.guest) {
            table.add(plug.vlan, Dst::Mac(plug.mac), plug.vhost as usize)?;
        }
    }
    Ok(table)
}

fn source(input: &Input) -> Origin {
    match (input.port, input.guest) {
        (PortName::Local(_), _) => Origin::Local,
        (_, Some(plug)) => Origin::Guest { id: plug.vhost as u16, vid: plug.vlan.unwrap_or(0) },
        (_, None) => Origin::Any,
    }
}

/// Puts what an acknowledgement brought back where it belongs.
fn bank(parked: &mut Parked, core: &mut Core, done: Done) {
    let slots = core.open.remove(&done.generation).expect("each change is acknowledged once");
    park_all(parked, slots, done);
}

fn park_all(parked: &mut Parked, slots: Slots, done: Done) {
    const KNOWN: &str = "a half comes back from a slot it was put into";
    let port = |slots: &[Option<PortName>], slot: u16| slots[usize::from(slot)].expect(KNOWN);
    parked.rx.extend(done.rx_out.into_iter().map(|(slot, half)| (port(&slots.rx, slot.0), half)));
    parked.tx.extend(done.tx_out.into_iter().map(|(slot, half)| (port(&slots.tx, slot.0), half)));
}

/// Classifiers never let one output hold up the others; forwarders and mergers wait a while.
fn when_full(kind: ComponentKind, port: PortName) -> WhenFull {
    let reason = match port {
        PortName::Ring(_) => DropReason::RingFull,
        PortName::Local(_) => return WhenFull::Drop(DropReason::LocalRingFull),
        PortName::Vhost(_) | PortName::VhostQueue(..) => DropReason::GuestRingFull,
        PortName::Phy(_) | PortName::PhyQueue(..) => DropReason::TxTimeout,
    };
    match kind {
        ComponentKind::Classifier => WhenFull::Drop(reason),
        ComponentKind::Forward | ComponentKind::Merge | ComponentKind::Mirror => {
            WhenFull::Wait { limit_ticks: tsc::ticks(FULL_WAIT), then: reason }
        }
    }
}
