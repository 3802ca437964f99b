//! What idle cores cost: the round trip of a frame that comes after 2 ms of nothing, by what the polling thread does meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::stats::{DropReason, QueueStats};
use spp_pipeline::idle::IdlePolicy;
use spp_pipeline::plan::*;
use spp_pipeline::stats::ComponentStats;
use spp_pipeline::worker::{Worker, WorkerConfig};
use spp_vhost::{PortConfig, Role, VhostPort};

use super::latency::{PARTS, RoundTrips};
use crate::cpu::Watched;
use crate::port::Backend;
use crate::runner::{Case, Plan, Result, Side};

const DEADLINE: Duration = Duration::from_secs(10);
/// Long enough for each policy to be as deep asleep as it gets.
const GAP: Duration = Duration::from_millis(2);

/// Nanoseconds, by policy and percentile; there is no baseline.
pub fn measure(plan: &Plan, done: &mut dyn FnMut(Case)) {
    for text in ["spin", "pause", "sleep-max=50", "sleep-max=1000"] {
        for (name, part) in PARTS.iter().take(2) {
            let case = Case::new(
                "idle",
                format!("--idle {text}, round trip after 2 ms of nothing, {name}"),
                "ns",
                None,
            );
            let none = Err("no counterpart".to_owned());
            done(case.less_is_better().measure(plan, ours(plan, text, *part), none));
        }
    }
}

fn ours(plan: &Plan, policy: &str, part: f64) -> Result<Box<dyn Side>> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let socket = dir.path().join("sock0");
    let policy: IdlePolicy = policy.parse().map_err(|error| format!("{error}"))?;
    let backend = Echo::start(plan.backend_cpu, policy, socket.clone())?;
    Ok(Box::new(RoundTrips::new(plan, part, backend, &socket, dir)?.after(GAP)))
}

/// A worker as a node has them, which sends everything back.
struct Echo {
    worker: Option<Worker>,
    port: Option<VhostPort>,
}

impl Echo {
    fn start(cpu: usize, idle: IdlePolicy, socket: PathBuf) -> Result<Echo> {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 4096 }).map_err(|e| e.to_string())?;
        let opened = VhostPort::open(PortConfig::new("vhost", socket, Role::Server), &pool);
        let (port, to_guest, from_guest) = opened.map_err(|error| error.to_string())?;
        let config = WorkerConfig { core: cpu, fold: false, idle, name: "spp-core".to_owned() };
        let mut worker = Worker::spawn(config, &pool).map_err(|error| error.to_string())?;
        let full = WhenFull::Drop(DropReason::GuestRingFull);
        let vlan = VlanOp::None;
        let rx =
            RxEdge { slot: RxSlot(0), vlan, closed: false, from: Origin::Any, stats: QueueStats::shared() };
        let tx =
            TxEdge { slot: TxSlot(0), vlan, full, guest: None, sharing: None, stats: QueueStats::shared() };
        let echo = ComponentPlan {
            name: "echo".to_owned(),
            work: Work::Forward { rx, tx },
            stats: ComponentStats::shared(),
        };
        let change = Change {
            plan: CorePlan { generation: 1, components: vec![echo], ..CorePlan::default() },
            rx_in: vec![(RxSlot(0), Box::new(from_guest))],
            tx_in: vec![(TxSlot(0), Box::new(to_guest))],
            ..Change::default()
        };
        worker.change(change, DEADLINE).map_err(|error| error.to_string())?;
        Ok(Echo { worker: Some(worker), port: Some(port) })
    }
}

impl Backend for Echo {
    fn go(&mut self) -> Result<()> {
        Ok(())
    }

    fn mark(&mut self) -> Result<()> {
        Ok(())
    }

    fn cycles_per_packet(&mut self) -> Result<Option<f64>> {
        Ok(None)
    }

    fn halt(&mut self) -> Result<()> {
        Ok(())
    }

    /// One that sleeps has little of its CPU: that is no disturbance.
    fn threads(&self) -> Vec<Watched> {
        Vec::new()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        if let Some(port) = self.port.take() {
            // The worker serves its halves.
            port.close_with(|| std::thread::sleep(Duration::from_millis(1)));
        }
        if let Some(worker) = self.worker.take() {
            drop(worker.stop(DEADLINE));
        }
    }
}
