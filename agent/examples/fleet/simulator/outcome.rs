//! The figures.

use serde::Serialize;

use super::churn::Churn;
use super::herd::Herd;

/// How long something took, in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Times {
    pub n: usize,
    pub median_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// All of them, in order.
    #[serde(skip)]
    pub all_ms: Vec<f64>,
}

impl Times {
    pub fn of(times_ms: impl Iterator<Item = f64>) -> Times {
        let mut all_ms: Vec<f64> = times_ms.collect();
        all_ms.sort_by(f64::total_cmp);
        let n = all_ms.len();
        let at = |share: f64| {
            let rank = ((n as f64 * share).ceil() as usize).max(1);
            all_ms.get(rank - 1).copied().unwrap_or(f64::NAN)
        };
        Times { n, median_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0), all_ms }
    }

    fn text(&self) -> String {
        format!(
            "median {:.1} ms, p99 {:.1} ms, max {:.1} ms (of {})",
            self.median_ms, self.p99_ms, self.max_ms, self.n
        )
    }
}

/// What agents cost that do nothing.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Idle {
    pub requests_per_agent_per_s: f64,
    /// Key ranges watched, by etcd's own count.
    pub watchers_per_agent: f64,
    /// Streams these come over, by etcd's own count.
    pub streams_per_agent: f64,
    /// Processors busy with all agents, and with etcd.
    pub agents_cpus: f64,
    pub etcd_cpus: f64,
}

/// Memory for each agent, connected and idle, its resident ports up.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Memory {
    /// In the agents' process.
    pub agent_kib: f64,
    /// In etcd.
    pub etcd_kib: f64,
}

/// All that was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    pub hosts: usize,
    pub ports_per_host: u32,
    pub resident_per_host: u32,
    pub idle: Idle,
    pub memory: Memory,
    /// All agents started at once.
    pub start: Herd,
    pub churn: Churn,
    /// Etcd killed under all of them, started again after 3 s.
    pub etcd_restart: Herd,
    /// Hosts whose resident ports are up after that, and no others.
    pub n_in_order_after_restart: usize,
}

fn herd(herd: &Herd) -> String {
    format!(
        "all connected after {:.1} s; in 100 ms at most {} dials, {} connects; {} lost it again",
        herd.all_connected_s, herd.peak_dials_per_100_ms, herd.peak_connects_per_100_ms, herd.n_lost_again
    )
}

impl Outcome {
    /// For people.
    pub fn text(&self) -> String {
        let (idle, memory, churn) = (&self.idle, &self.memory, &self.churn);
        let mut lines = vec![
            format!(
                "{} hosts of {} ports, {} of them bound all the time; {} plugs at {:.0}/s",
                self.hosts, self.ports_per_host, self.resident_per_host, churn.n_plugs, churn.plugs_per_s
            ),
            format!("plug to up       {}", churn.plug_to_up.text()),
            format!("  to wired       {}", churn.plug_to_wired.text()),
            format!("  whole bind     {}", churn.bind_call.text()),
            format!("unplug to gone   {}", churn.unplug_to_gone.text()),
            format!("failed           {}, leaked keys {}", churn.n_failed, churn.n_leaked),
            format!(
                "agent            {:.2} writes for a plug (at most {}), {:.2} for an unplug",
                churn.agent_writes_per_plug, churn.agent_writes_per_plug_max, churn.agent_writes_per_unplug
            ),
            format!(
                "driver           {:.2} writes for a plug, {:.2} for an unplug; for each {:.2} listings, {:.2} watches",
                churn.driver_writes_per_plug,
                churn.driver_writes_per_unplug,
                churn.listings_per_driver_call,
                churn.watches_per_driver_call
            ),
            format!(
                "etcd's count     {:.2} writes for plug and unplug together",
                churn.writes_per_plug_and_unplug_by_etcd
            ),
            format!(
                "busy processors  plugging: agents and drivers {:.2}, etcd {:.2}; idle: {:.2}, {:.2}",
                churn.agents_cpus, churn.etcd_cpus, idle.agents_cpus, idle.etcd_cpus
            ),
            format!(
                "idle agent       {:.2} requests/s, {:.2} streams with {:.2} watched ranges, {:.0} KiB; {:.0} KiB in etcd",
                idle.requests_per_agent_per_s,
                idle.streams_per_agent,
                idle.watchers_per_agent,
                memory.agent_kib,
                memory.etcd_kib
            ),
            format!("all started      {}", herd(&self.start)),
            format!("etcd restarted   {}", herd(&self.etcd_restart)),
            format!("                 {} hosts in order after it", self.n_in_order_after_restart),
            format!(
                "machine          load average {:.1}, 99 % of etcd's log writes on disk within {:.0} ms",
                churn.load_average, churn.disk_sync_p99_ms
            ),
        ];
        lines.extend(churn.failures.iter().map(|failure| format!("failed           {failure}")));
        lines.join("\n")
    }
}
