//! The simulator of a site, for the example's command line and for the test of a small site.
//!
//! [`measure`] goes through the phases one after the other, each with a deadline: keys written, agents started, agents
//! idle, ports plugged and unplugged, etcd killed. Everything but etcd runs as tasks of one runtime.

mod churn;
mod etcd;
mod herd;
mod metrics;
mod outcome;
mod plot;
mod site;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use spp_agent::reconcile::Timing;
use tokio::time::{sleep, timeout};

pub use outcome::Outcome;
pub use plot::svg;

use etcd::Etcd;
use herd::Herd;
use metrics::{Metrics, Process};
use outcome::{Idle, Memory};
use site::Site;

/// How long etcd is away.
const OUTAGE: Duration = Duration::from_secs(3);

/// How long agents are watched doing nothing; twice the time between two pings.
const IDLE: Duration = Duration::from_secs(6);

/// What is to be measured.
pub struct Plan {
    pub hosts: usize,
    /// Vhosts of each host.
    pub ports: u32,
    /// Of these, bound before the agents start.
    pub resident: u32,
    /// Plugs per second.
    pub rate: u32,
    /// How long ports are plugged.
    pub seconds: u64,
    /// The agents' times. A port stays until its last `up` is said.
    pub timing: Timing,
    /// Where etcd's data is; None: the system's temporary directory.
    pub data_dir: Option<PathBuf>,
    /// Told how far it is.
    pub say: Box<dyn Fn(&str) + Send + Sync>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            hosts: 20,
            ports: 8,
            resident: 2,
            rate: 20,
            seconds: 4,
            timing: Timing::default(),
            data_dir: None,
            say: Box::new(|_| {}),
        }
    }
}

impl Plan {
    /// How long a port stays: until the agent has said all its `up`s.
    fn stay(&self) -> Duration {
        self.timing.up_offsets.last().copied().unwrap_or_default() + Duration::from_secs(1)
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Nothing to run.
    #[error("there is no etcd binary: install Debian's etcd-server")]
    NoEtcd,
    /// A phase did not end.
    #[error("{what} took longer than {deadline:?}")]
    Late {
        /// Which.
        what: String,
        /// Its time.
        deadline: Duration,
    },
    /// A request of the simulator's own failed.
    #[error("etcd: {0}")]
    Etcd(#[from] etcd_client::Error),
    /// The machine refuses.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

/// One phase.
async fn within<T>(
    what: &str,
    deadline: Duration,
    phase: impl Future<Output = Result<T, FleetError>>,
) -> Result<T, FleetError> {
    let late = |_| Err(FleetError::Late { what: what.into(), deadline });
    timeout(deadline, phase).await.unwrap_or_else(late)
}

const MINUTE: Duration = Duration::from_secs(60);

/// Measures.
pub async fn measure(plan: &Plan) -> Result<Outcome, FleetError> {
    let say = |text: &str| (plan.say)(text);
    let mut etcd = within("etcd's start", MINUTE, Etcd::start(plan.data_dir.as_deref())).await?;
    let client = etcd.client().await?;
    let written = site::write_keys(&client, plan);
    let n_keys = within("writing the keys", MINUTE, written).await?;
    // Each read of etcd 3.4 copies a buffer as large as its largest batch of writes since it was started: not ours.
    etcd.kill();
    within("etcd's second start", MINUTE, etcd.run()).await?;
    say(&format!("{n_keys} keys of {} hosts written", plan.hosts));

    let before = (Process::this(), Process::read(etcd.pid()));
    let site = Site::start(&etcd.endpoints(), plan);
    let start = within("the first connecting", MINUTE, herd::all_connected(&site, &say)).await?;
    say(&format!("all agents connected after {:.1} s", start.all_connected_s));
    let stay = plan.stay() + Duration::from_secs(1);
    within("wiring the resident ports", MINUTE, async {
        sleep(stay).await;
        while !site.all_in_order() {
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    })
    .await?;
    say("resident ports are wired and said to be up");
    let idle = within("idling", MINUTE, idle(&etcd, plan)).await?;
    let per_agent = |kib: u64, before: u64| kib.saturating_sub(before) as f64 / plan.hosts as f64;
    let memory = Memory {
        agent_kib: per_agent(Process::this().resident_kib, before.0.resident_kib),
        etcd_kib: per_agent(Process::read(etcd.pid()).resident_kib, before.1.resident_kib),
    };
    say("plugging and unplugging");
    let allowed = Duration::from_secs(plan.seconds) + plan.stay() + MINUTE;
    let churn = within("plugging and unplugging", allowed, churn::churn(&etcd, &site, plan)).await?;
    say("all plugged and unplugged; etcd is killed");

    let etcd_restart = within("coming back to etcd", MINUTE, restart(&mut etcd, &site, &say)).await?;
    say(&format!("all agents back {:.1} s after etcd", etcd_restart.all_connected_s));
    let n_in_order_after_restart = site.n_in_order();
    Ok(Outcome {
        hosts: plan.hosts,
        ports_per_host: plan.ports,
        resident_per_host: plan.resident,
        idle,
        memory,
        start,
        churn,
        etcd_restart,
        n_in_order_after_restart,
    })
}

async fn idle(etcd: &Etcd, plan: &Plan) -> Result<Idle, FleetError> {
    let before = Metrics::read(etcd.port()).await?;
    let cpu = (Process::this(), Process::read(etcd.pid()));
    sleep(IDLE).await;
    let after = Metrics::read(etcd.port()).await?;
    let per_agent = |total: f64| total / plan.hosts as f64;
    let seconds = IDLE.as_secs_f64();
    Ok(Idle {
        requests_per_agent_per_s: per_agent(after.requests() - before.requests()) / seconds,
        watchers_per_agent: per_agent(after.watchers),
        streams_per_agent: per_agent(after.streams),
        agents_cpus: (Process::this().cpu_s - cpu.0.cpu_s) / seconds,
        etcd_cpus: (Process::read(etcd.pid()).cpu_s - cpu.1.cpu_s) / seconds,
    })
}

async fn restart(etcd: &mut Etcd, site: &Site, say: &dyn Fn(&str)) -> Result<Herd, FleetError> {
    let watched = herd::Watched::begin(site);
    let away = async {
        etcd.kill();
        sleep(OUTAGE).await;
        etcd.run().await?;
        watched.etcd_is_back();
        Ok(())
    };
    let (away, herd) = tokio::join!(away, watched.all_connected_anew(say));
    away.map(|()| herd)
}
