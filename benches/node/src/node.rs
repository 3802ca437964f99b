//! Our components between a wire and a VM, both vhost ports: a thread for each component, or one for all.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::ring_port::{RING_SLOTS, packet_ring};
use spp_drivers::stats::{DropReason, QueueStats};
use spp_drivers::{MacAddr, tsc};
use spp_pipeline::engine::Engine;
use spp_pipeline::plan::*;
use spp_pipeline::stats::ComponentStats;
use spp_pipeline::table::{Dst, TableBuilder};
use spp_pipeline::worker::{Worker, WorkerConfig};
use spp_vhost::{PortConfig, PortState, Role, VhostPort};

use crate::cpu::{self, Watched};
use crate::port::Backend;
use crate::runner::Result;

const DEADLINE: Duration = Duration::from_secs(10);

/// Who runs the components.
enum Runs {
    /// A folded worker each, as `spp run --fold-cores` has them; idle ones sleep.
    Apart(Vec<Worker>),
    /// One thread in turn, which can be told to pause.
    Together { on: Arc<AtomicBool>, quit: Arc<AtomicBool>, thread: Option<JoinHandle<()>> },
}

/// The components, running.
pub struct Node {
    ports: Vec<VhostPort>,
    runs: Runs,
    components: Vec<Arc<ComponentStats>>,
    mark: (u64, u64),
    _pool: Pool,
}

fn rx(slot: u16) -> RxEdge {
    let stats = QueueStats::shared();
    RxEdge { slot: RxSlot(slot), vlan: VlanOp::None, closed: false, from: Origin::Any, stats }
}

fn tx(slot: u16, full: WhenFull) -> TxEdge {
    let stats = QueueStats::shared();
    TxEdge { slot: TxSlot(slot), vlan: VlanOp::None, full, guest: None, sharing: None, stats }
}

/// One component with its halves, whose slots are numbered as the components are.
fn change(slot: u16, name: &str, work: Work, from: Box<dyn RxQueue>, to: Box<dyn TxQueue>) -> Change {
    let component = ComponentPlan { name: name.to_owned(), work, stats: ComponentStats::shared() };
    Change {
        plan: CorePlan { generation: 1, components: vec![component], ..CorePlan::default() },
        rx_in: vec![(RxSlot(slot), from)],
        tx_in: vec![(TxSlot(slot), to)],
        ..Change::default()
    }
}

impl Node {
    /// Listens on both sockets; frames from the wire to `mac` go to the VM.
    pub fn start(cpu: usize, apart: bool, wire: PathBuf, vm: PathBuf, mac: MacAddr) -> Result<Node> {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 8192 }).map_err(|e| e.to_string())?;
        let open = |path: PathBuf| {
            let config = PortConfig::new("vhost", path, Role::Server);
            VhostPort::open(config, &pool).map_err(|error| error.to_string())
        };
        let ((wire, wire_out, wire_in), (vm, vm_out, vm_in)) = (open(wire)?, open(vm)?);
        let ((to_vm, for_vm), (to_wire, for_wire)) = (packet_ring(RING_SLOTS), packet_ring(RING_SLOTS));
        let mut table = TableBuilder::new();
        table.add(None, Dst::Mac(mac), 0).map_err(|error| error.to_string())?;
        let waits =
            WhenFull::Wait { limit_ticks: tsc::ticks_per_second() / 10, then: DropReason::GuestRingFull };
        let drops = WhenFull::Drop(DropReason::RingFull);
        let classify = Work::Classify { rx: vec![rx(0)], tx: vec![tx(0, drops)], table: table.build() };
        let merge = Work::Merge { rx: vec![rx(3)], tx: tx(3, waits) };
        let changes = vec![
            change(0, "classifier", classify, Box::new(wire_in), Box::new(to_vm)),
            change(
                1,
                "tx",
                Work::Forward { rx: rx(1), tx: tx(1, waits) },
                Box::new(for_vm),
                Box::new(vm_out),
            ),
            change(
                2,
                "rx",
                Work::Forward { rx: rx(2), tx: tx(2, waits) },
                Box::new(vm_in),
                Box::new(to_wire),
            ),
            change(3, "merger", merge, Box::new(for_wire), Box::new(wire_out)),
        ];
        let of = |change: &Change| change.plan.components[0].stats.clone();
        let components = changes.iter().map(of).collect();
        let runs = if apart { run_apart(cpu, changes, &pool)? } else { run_together(cpu, changes, &pool)? };
        Ok(Node { ports: vec![wire, vm], runs, components, mark: (0, 0), _pool: pool })
    }

    /// Packets that came in from either end, and cycles of all turns that had packets.
    fn counted(&self) -> (u64, u64) {
        let [classifier, _, from_vm, _] = &self.components[..] else { return (0, 0) };
        let packets = classifier.rx_packets.get() + from_vm.rx_packets.get();
        (packets, self.components.iter().map(|component| component.cycles().useful).sum())
    }

    /// Waits until both ports run.
    pub fn wait_running(&self) -> Result<()> {
        for _ in 0..10_000 {
            if self.ports.iter().all(|port| port.status().state == PortState::Running) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err("the frontend did not start its rings within 10 s".to_owned())
    }
}

/// Folded workers are not pinned; started from a pinned thread they stay on its CPU.
fn run_apart(cpu: usize, changes: Vec<Change>, pool: &Pool) -> Result<Runs> {
    let pool = pool.clone();
    let start = move || -> Result<Vec<Worker>> {
        cpu::pin(cpu)?;
        let start = |change: Change| {
            let config =
                WorkerConfig { core: cpu, fold: true, idle: Default::default(), name: "spp-core".to_owned() };
            let mut worker = Worker::spawn(config, &pool).map_err(|error| error.to_string())?;
            worker.change(change, DEADLINE).map_err(|error| error.to_string())?;
            Ok(worker)
        };
        changes.into_iter().map(start).collect()
    };
    let workers = std::thread::spawn(start).join().map_err(|_| "a worker's start panicked".to_owned())??;
    Ok(Runs::Apart(workers))
}

fn run_together(cpu: usize, changes: Vec<Change>, pool: &Pool) -> Result<Runs> {
    let mut all = Change::default();
    all.plan.generation = 1;
    for mut change in changes {
        all.plan.components.append(&mut change.plan.components);
        all.rx_in.append(&mut change.rx_in);
        all.tx_in.append(&mut change.tx_in);
    }
    // The rings between them vanish, as in a node whose components share a core.
    all.plan.fused = [(0, 1), (2, 3)].map(|(tx, rx)| Fused { tx: TxSlot(tx), rx: RxSlot(rx) }).to_vec();
    all.plan.sort_by_flow();
    let (on, quit, pool) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)), pool.clone());
    let (is_on, shall_quit) = (on.clone(), quit.clone());
    let body = move || {
        let mut engine = Engine::new(&pool);
        engine.change(all);
        let pinned = cpu::pin(cpu);
        while pinned.is_ok() && !shall_quit.load(Ordering::Relaxed) {
            if is_on.load(Ordering::Relaxed) {
                (0..64).for_each(|_| {
                    engine.turn();
                });
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
            engine.poll_control();
        }
    };
    let thread = std::thread::Builder::new().name("spp-core".to_owned()).spawn(body);
    Ok(Runs::Together { on, quit, thread: Some(thread.map_err(|error| error.to_string())?) })
}

impl Backend for Node {
    fn go(&mut self) -> Result<()> {
        if let Runs::Together { on, .. } = &self.runs {
            on.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<()> {
        self.mark = self.counted();
        Ok(())
    }

    fn cycles_per_packet(&mut self) -> Result<Option<f64>> {
        let ((packets, cycles), (packets_then, cycles_then)) = (self.counted(), self.mark);
        let n = packets - packets_then;
        Ok((n > 0).then(|| (cycles - cycles_then) as f64 / n as f64))
    }

    fn halt(&mut self) -> Result<()> {
        if let Runs::Together { on, .. } = &self.runs {
            on.store(false, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }

    /// Workers that share a CPU wait for each other: that is no disturbance.
    fn threads(&self) -> Vec<Watched> {
        match self.runs {
            Runs::Apart(_) => Vec::new(),
            Runs::Together { .. } => Watched::named(std::process::id(), "spp-core"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for port in self.ports.drain(..) {
            // The halves' core serves them.
            port.close_with(|| std::thread::sleep(Duration::from_millis(1)));
        }
        match &mut self.runs {
            Runs::Apart(workers) => workers.drain(..).for_each(|worker| drop(worker.stop(DEADLINE))),
            Runs::Together { quit, thread, .. } => {
                quit.store(true, Ordering::Relaxed);
                if let Some(thread) = thread.take() {
                    let _ = thread.join();
                }
            }
        }
    }
}
