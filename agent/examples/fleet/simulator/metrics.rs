//! What etcd counts about itself (`/metrics`), and what the kernel counts about a process.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::FleetError;

/// How long etcd may take to count.
const DEADLINE: Duration = Duration::from_secs(10);

/// Requests etcd was asked, and what it holds for its clients.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Requests by method: Range, Put, Txn, Watch and so on.
    methods: BTreeMap<String, f64>,
    /// Ranges of keys that are watched.
    pub watchers: f64,
    /// Streams they come over.
    pub streams: f64,
    /// Log writes that reached the disk within a time (seconds, cumulated counts).
    syncs: Vec<(f64, f64)>,
}

impl Metrics {
    /// Asks the server on loopback.
    pub async fn read(port: u16) -> Result<Metrics, FleetError> {
        let read = async {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok(Metrics::parse(&text))
        };
        let late = |_| FleetError::Late { what: "reading etcd's metrics".into(), deadline: DEADLINE };
        let failed = |error| FleetError::System("etcd's metrics", error);
        timeout(DEADLINE, read).await.map_err(late)?.map_err(failed)
    }

    fn parse(text: &str) -> Metrics {
        let mut metrics = Metrics::default();
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let label = |key: &str| {
                let (_, rest) = name.split_once(&format!("{key}=\""))?;
                Some(rest.split('"').next().unwrap_or_default())
            };
            if name.starts_with("grpc_server_started_total{") {
                *metrics.methods.entry(label("grpc_method").unwrap_or_default().into()).or_default() += value;
            } else if name.starts_with("etcd_disk_wal_fsync_duration_seconds_bucket{") {
                let within = label("le").and_then(|le| le.parse().ok());
                metrics.syncs.push((within.unwrap_or(f64::INFINITY), value));
            }
            match name {
                "etcd_debugging_mvcc_watcher_total" => metrics.watchers = value,
                "etcd_debugging_mvcc_watch_stream_total" => metrics.streams = value,
                _ => {}
            }
        }
        metrics
    }

    /// Requests of one method.
    pub fn of(&self, method: &str) -> f64 {
        self.methods.get(method).copied().unwrap_or_default()
    }

    /// Reads, writes and transactions.
    pub fn requests(&self) -> f64 {
        ["Range", "Put", "DeleteRange", "Txn"].iter().map(|method| self.of(method)).sum()
    }

    /// 99 % of the log writes since `before` reached the disk within this time, in milliseconds: the
    /// upper end of etcd's own step.
    pub fn sync_p99_ms(&self, before: &Metrics) -> f64 {
        let counts = self.syncs.iter().zip(&before.syncs).map(|(now, then)| (now.0, now.1 - then.1));
        let counts: Vec<(f64, f64)> = counts.collect();
        let total = counts.last().map_or(0.0, |(_, count)| *count);
        let reached = counts.iter().find(|(_, count)| *count >= total * 0.99);
        reached.map_or(f64::NAN, |(within, _)| within * 1e3)
    }
}

/// A process, at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Memory, in KiB.
    pub resident_kib: u64,
    /// Processor time used so far, in seconds.
    pub cpu_s: f64,
}

impl Process {
    pub fn this() -> Process {
        Process::read(std::process::id())
    }

    /// Nothing at all for a process that is gone.
    pub fn read(pid: u32) -> Process {
        let file = |name| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let status = file("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        // The name, which may have blanks, ends in a bracket; then proc(5) counts from field 3.
        let stat = file("stat");
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let cpu_s = ticks / rustix::param::clock_ticks_per_second() as f64;
        Process { resident_kib: resident.unwrap_or_default(), cpu_s }
    }
}

/// The machine's load average over a minute.
pub fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}
