//! The control node: binds and unbinds ports at a steady rate over one connection with the code of `spp bind` and `spp unbind`, while an
//! observer, a watch on all hosts' keys, notes when who wrote what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use serde::Serialize;
use spp_agent::{BindRequest, ControlNode, Name};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::etcd::Etcd;
use super::metrics::{Metrics, Process, load_average};
use super::outcome::Times;
use super::site::{self, PHYSNET, ROOT, Site};
use super::{FleetError, Plan};

/// How long a driver waits.
const DRIVER_DEADLINE: Duration = Duration::from_secs(20);

/// How many failures are told in words.
const FAILURES_MAX: usize = 5;

/// What plugging and unplugging came to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Churn {
    pub n_plugs: usize,
    /// Over the time in which ports were plugged.
    pub plugs_per_s: f64,
    /// Binds and unbinds that failed or were not answered, and why some of them were.
    pub n_failed: usize,
    pub failures: Vec<String>,
    /// Ports of these that have keys or a slot at the end.
    pub n_leaked: usize,
    /// From `action` = `plug` to the first `up`, both as the observer saw them.
    pub plug_to_up: Times,
    /// From `action` = `plug`, as the observer saw it, until the node was told: the first part of that.
    pub plug_to_wired: Times,
    /// a bind as a whole: listing, watching, writing, waiting for `up`.
    pub bind_call: Times,
    /// From `action` = `unplug` until it is gone, both as the observer saw them.
    pub unplug_to_gone: Times,
    /// Writes by the agents for a plug: `up`, each time it is said; and the most for any port.
    pub agent_writes_per_plug: f64,
    pub agent_writes_per_plug_max: u32,
    /// Writes by the agents for an unplug.
    pub agent_writes_per_unplug: f64,
    /// Writes by the driver for a plug.
    pub driver_writes_per_plug: f64,
    /// Writes by the driver for an unplug.
    pub driver_writes_per_unplug: f64,
    /// All writes for the life of a port, by etcd's revision: nobody wrote anything else.
    pub writes_per_plug_and_unplug_by_etcd: f64,
    /// Transactions by etcd's count that wrote nothing, for each of the driver's calls: one listing by each, and those of
    /// each agent once a minute.
    pub listings_per_driver_call: f64,
    /// Watch streams opened for each of the driver's calls.
    pub watches_per_driver_call: f64,
    /// Processors busy with the agents and the control node, and with etcd.
    pub agents_cpus: f64,
    pub etcd_cpus: f64,
    /// 99 % of etcd's log writes reached the disk within this time (its own count, in its own steps).
    pub disk_sync_p99_ms: f64,
    /// Load average of the machine over the last minute.
    pub load_average: f64,
}

/// What became of one port, as the observer saw it.
#[derive(Debug, Clone, Copy, Default)]
struct Course {
    plugged: Option<Instant>,
    up: Option<Instant>,
    n_ups: u32,
    unplugged: Option<Instant>,
    gone: Option<Instant>,
}

/// What the observer saw.
#[derive(Default)]
struct Seen {
    courses: HashMap<String, Course>,
    revision: i64,
    n_plugs: u64,
    n_ups: u64,
    n_unplugs: u64,
    n_gone: u64,
}

/// What the driver has to say of one port.
struct Life {
    bind_ms: f64,
    wired: Option<(String, Instant)>,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().expect("nobody panics with it")
}

/// Plugs for the plan's time, unplugs each port after its stay.
pub async fn churn(etcd: &Etcd, site: &Site, plan: &Plan) -> Result<Churn, FleetError> {
    let mut client = etcd.client().await?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let options = WatchOptions::new().with_prefix();
    let stream = etcd.watching_client().await?.watch(ROOT, Some(options)).await?;
    let mut observer = JoinSet::new();
    observer.spawn(observe(stream, seen.clone()));

    let first_revision = revision(&mut client).await?;
    let (metrics, cpu) = (Metrics::read(etcd.port()).await?, [Process::this(), Process::read(etcd.pid())]);
    let began = Instant::now();
    let lives = live(&ControlNode::new(etcd.endpoints()), site, plan).await;
    let seconds = began.elapsed().as_secs_f64();
    let last_revision = revision(&mut client).await?;
    while lock(&seen).revision < last_revision {
        sleep(Duration::from_millis(20)).await;
    }
    let after = Metrics::read(etcd.port()).await?;
    let n_leaked = leaked(&mut client).await?;

    let seen = std::mem::take(&mut *lock(&seen));
    let share = |part: u64, of: u64| part as f64 / (of as f64).max(1.0);
    let n_writes = (last_revision - first_revision) as u64;
    let n_calls = (2 * lives.n_begun) as u64;
    let busy = |now: Process, then: Process| (now.cpu_s - then.cpu_s) / seconds;
    let mut churn = Churn {
        n_plugs: lives.n_begun,
        plugs_per_s: lives.n_begun as f64 / lives.plugging_s,
        n_failed: lives.failures.len(),
        failures: lives.failures.iter().take(FAILURES_MAX).cloned().collect(),
        n_leaked,
        agent_writes_per_plug: share(seen.n_ups, seen.n_plugs),
        agent_writes_per_plug_max: seen.courses.values().map(|course| course.n_ups).max().unwrap_or_default(),
        agent_writes_per_unplug: share(seen.n_gone, seen.n_unplugs),
        driver_writes_per_plug: share(seen.n_plugs, lives.n_begun as u64),
        driver_writes_per_unplug: share(seen.n_unplugs, lives.n_begun as u64),
        writes_per_plug_and_unplug_by_etcd: share(n_writes, lives.n_begun as u64),
        listings_per_driver_call: (after.of("Txn") - metrics.of("Txn") - n_writes as f64)
            / n_calls.max(1) as f64,
        watches_per_driver_call: (after.of("Watch") - metrics.of("Watch")) / n_calls.max(1) as f64,
        agents_cpus: busy(Process::this(), cpu[0]),
        etcd_cpus: busy(Process::read(etcd.pid()), cpu[1]),
        disk_sync_p99_ms: after.sync_p99_ms(&metrics),
        load_average: load_average(),
        ..Churn::default()
    };
    churn.time(&lives.done, &seen.courses);
    Ok(churn)
}

impl Churn {
    fn time(&mut self, lives: &[Life], courses: &HashMap<String, Course>) {
        let ms = |from: Option<Instant>, to: Option<Instant>| {
            Some(to?.saturating_duration_since(from?).as_secs_f64() * 1e3)
        };
        let wired = |life: &Life| {
            let (port, at) = life.wired.as_ref()?;
            ms(courses.get(port)?.plugged, Some(*at))
        };
        self.plug_to_up = Times::of(courses.values().filter_map(|course| ms(course.plugged, course.up)));
        self.unplug_to_gone =
            Times::of(courses.values().filter_map(|course| ms(course.unplugged, course.gone)));
        self.plug_to_wired = Times::of(lives.iter().filter_map(wired));
        self.bind_call = Times::of(lives.iter().map(|life| life.bind_ms));
    }
}

async fn revision(client: &mut Client) -> Result<i64, FleetError> {
    Ok(client.get(ROOT, None).await?.header().map_or(0, |header| header.revision()))
}

/// Keys that name one of our ports.
async fn leaked(client: &mut Client) -> Result<usize, FleetError> {
    let options = etcd_client::GetOptions::new().with_prefix();
    let answer = client.get(ROOT, Some(options)).await?;
    let ours = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(PORT_PREFIX);
    Ok(answer.kvs().iter().filter(|kv| ours(kv.key()) || ours(kv.value())).count())
}

const PORT_PREFIX: &str = "churn-";

/// What came of the driver's calls.
#[derive(Default)]
struct Lives {
    n_begun: usize,
    plugging_s: f64,
    done: Vec<Life>,
    failures: Vec<String>,
}

async fn live(control: &ControlNode, site: &Site, plan: &Plan) -> Lives {
    let n_plugs = (u64::from(plan.rate) * plan.seconds) as usize;
    let mut lives = Lives::default();
    let mut tasks = JoinSet::new();
    let mut ticks = interval(Duration::from_secs_f64(1.0 / f64::from(plan.rate)));
    let began = Instant::now();
    while lives.n_begun < n_plugs {
        ticks.tick().await;
        // All hosts in turn, in an order that jumps about.
        let n = lives.n_begun.wrapping_mul(7919) % plan.hosts;
        let life = life(control.clone(), lives.n_begun, n, site.hosts[n].node.clone(), plan.stay());
        tasks.spawn(life);
        lives.n_begun += 1;
        if lives.n_begun % (plan.rate as usize * 5) == 0 {
            (plan.say)(&format!("{} of {n_plugs} plugs begun", lives.n_begun));
        }
    }
    lives.plugging_s = began.elapsed().as_secs_f64();
    while let Some(life) = tasks.join_next().await {
        match life.expect("a driver does not panic") {
            Ok(life) => lives.done.push(life),
            Err(failure) => lives.failures.push(failure),
        }
    }
    lives
}

/// One port: bound, left alone, unbound.
async fn life(
    control: ControlNode,
    idx: usize,
    n: usize,
    node: Arc<site::NoNode>,
    stay: Duration,
) -> Result<Life, String> {
    let host = site::name(n);
    let name = |text: &str| Name::new(text).expect("it is a name");
    let port = name(&format!("{PORT_PREFIX}{idx}"));
    let mac = site::mac(n, 0x8000 + idx as u32 % 0x8000).parse().expect("it is a mac address");
    let request = BindRequest { port: port.clone(), physnet: name(PHYSNET), mac, vlan: Some(100) };
    let began = Instant::now();
    let never = std::future::pending();
    let bound = control.bind(&host, request, DRIVER_DEADLINE, never).await;
    let bind_ms = began.elapsed().as_secs_f64() * 1e3;
    let slot = bound.map_err(|error| error.to_string())?;
    let wired = node.wired_at(slot.vhost).map(|at| (format!("{host}/{port}"), at));
    sleep(stay).await;
    let unbound = control.unbind(&host, &port, DRIVER_DEADLINE).await;
    let freed = unbound.map_err(|error| error.to_string())?;
    match freed == [slot.vhost] {
        true => Ok(Life { bind_ms, wired }),
        false => Err(format!("port {port} had vhost {}, gave back {freed:?}", slot.vhost)),
    }
}

async fn observe(mut stream: WatchStream, seen: Arc<Mutex<Seen>>) {
    while let Ok(Some(message)) = stream.message().await {
        let now = Instant::now();
        let mut seen = lock(&seen);
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            seen.revision = seen.revision.max(kv.mod_revision());
            let key = String::from_utf8_lossy(kv.key());
            let Some((family, port)) = key.strip_prefix(ROOT).and_then(|key| key.split_once('/')) else {
                continue;
            };
            if !port.contains(PORT_PREFIX) {
                continue;
            }
            seen.note(family, port, event.event_type(), kv.value(), now);
        }
    }
}

impl Seen {
    fn note(&mut self, family: &str, port: &str, change: EventType, value: &[u8], now: Instant) {
        let course = self.courses.entry(port.to_string()).or_default();
        match (family, change, value) {
            ("action", EventType::Put, b"plug") => {
                course.plugged = Some(now);
                self.n_plugs += 1;
            }
            ("action", EventType::Put, b"unplug") => {
                course.unplugged = Some(now);
                self.n_unplugs += 1;
            }
            ("action", EventType::Delete, _) => {
                course.gone = Some(now);
                self.n_gone += 1;
            }
            ("port_status", EventType::Put, _) => {
                course.up.get_or_insert(now);
                course.n_ups += 1;
                self.n_ups += 1;
            }
            _ => {}
        }
    }
}
