//! P1, P2 and P5: vhost ports against testpmd's, with testpmd's virtio-user as frontend.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cpu::{Watched, smallest_share};
use crate::dpdk::Program;
use crate::port::{Backend, Job, Ours};
use crate::runner::{Case, Plan, Reading, Result, Side};
use crate::testpmd::{Testpmd, eal};

/// Bursts of 32 that go round in a closed loop: fewer than the 256 entries of a ring hold.
const LOOP_BURSTS: u32 = 6;
/// From the word to forward until traffic is as it will be.
pub(super) const WARM_UP: Duration = Duration::from_millis(40);

/// How the frontend makes traffic.
#[derive(Clone, Copy, PartialEq)]
pub enum Load {
    /// What comes back is sent again.
    Closed,
    /// It sends as fast as it can, and throws away what comes back.
    Open,
    /// One frame in flight; what is measured is the mean round trip in nanoseconds.
    One,
}

struct Shape {
    name: &'static str,
    devargs: &'static str,
    len: u32,
    load: Load,
    target: f64,
    cycles_target: Option<f64>,
}

const PLAIN: &str = "packed_vq=0,mrg_rxbuf=0,in_order=0";
pub(super) const FASTEST: &str = "packed_vq=0,mrg_rxbuf=0,in_order=1,vectorized=1";
pub(super) const MERGEABLE: &str = "packed_vq=0,mrg_rxbuf=1,in_order=0";
const PACKED: &str = "packed_vq=1,mrg_rxbuf=0,in_order=0";
const PACKED_MERGEABLE: &str = "packed_vq=1,mrg_rxbuf=1,in_order=0";
const PACKED_FASTEST: &str = "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1";

const fn shape(name: &'static str, devargs: &'static str, len: u32, target: f64, cycles: f64) -> Shape {
    let cycles_target = if len == 64 { Some(cycles) } else { None };
    Shape { name, devargs, len, load: Load::Closed, target, cycles_target }
}

const SPLIT_SHAPES: &[Shape] = &[
    shape("split, plain, 64 B", PLAIN, 64, 1.4, 0.3),
    shape("split, in order, vectorized, 64 B", FASTEST, 64, 1.7, 0.3),
    shape("split, mergeable, 64 B", MERGEABLE, 64, 1.35, 0.3),
    shape("split, plain, 1500 B", PLAIN, 1500, 1.5, 0.3),
    shape("split, in order, vectorized, 1500 B", FASTEST, 1500, 1.5, 0.3),
    shape("split, mergeable, 1500 B", MERGEABLE, 1500, 1.5, 0.3),
    Shape { load: Load::Open, ..shape("split, plain, 64 B, open loop", PLAIN, 64, 1.4, 0.3) },
    Shape { load: Load::Open, ..shape("split, mergeable, 64 B, open loop", MERGEABLE, 64, 1.35, 0.3) },
];

const PACKED_SHAPES: &[Shape] = &[
    shape("packed, plain, 64 B", PACKED, 64, 1.2, 0.6),
    shape("packed, mergeable, 64 B", PACKED_MERGEABLE, 64, 1.2, 0.6),
    shape("packed, in order, vectorized, 64 B", PACKED_FASTEST, 64, 1.2, 0.6),
    shape("packed, plain, 1500 B", PACKED, 1500, 1.2, 0.6),
    Shape { load: Load::Open, ..shape("packed, plain, 64 B, open loop", PACKED, 64, 1.2, 0.6) },
];

/// P1.
pub fn split(plan: &Plan, done: &mut dyn FnMut(Case)) {
    one_port("P1", SPLIT_SHAPES, plan, done);
}

/// P2.
pub fn packed(plan: &Plan, done: &mut dyn FnMut(Case)) {
    one_port("P2", PACKED_SHAPES, plan, done);
}

fn one_port(row: &'static str, shapes: &[Shape], plan: &Plan, done: &mut dyn FnMut(Case)) {
    let n = if plan.quick { 3 } else { shapes.len() };
    for shape in &shapes[..n] {
        let case = Case::new(row, format!("MAC swap, {}", shape.name), "Mpkt/s", Some(shape.target));
        let case = Case { cycles_target: shape.cycles_target, ..case };
        let (ours, theirs) = (side(plan, shape, Job::MacSwap, true), side(plan, shape, Job::MacSwap, false));
        done(case.measure(plan, ours, theirs));
    }
}

/// Beside a walk in C that does nothing for a packet but what can't be left out, `benches/dpdk-baseline/bare.c`: what checks,
/// counters and pools cost is to be less than what asking for lines ahead gains.
pub fn bare_walk(plan: &Plan, done: &mut dyn FnMut(Case)) {
    for (name, devargs) in [("plain", PLAIN), ("in order, vectorized", FASTEST)] {
        let shape = shape("", devargs, 64, 1.0, 1.0);
        let name = format!("MAC swap, split, {name}, 64 B, beside a walk without any checks");
        let theirs = bare(plan, &shape);
        done(Case::new("bare", name, "Mpkt/s", None).measure(
            plan,
            side(plan, &shape, Job::MacSwap, true),
            theirs,
        ));
    }
}

fn bare(plan: &Plan, shape: &Shape) -> Result<Box<dyn Side>> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let socket = dir.path().join("sock0");
    let [cpu, prompt_cpu] = plan.backend_first();
    let args = eal(&format!("0@{prompt_cpu},1@{cpu}"), 64);
    let backend = Program::start("bare", args, &[socket.display().to_string()], true)?;
    let frontend = frontend(plan.frontend_first(), &[socket], shape.devargs, shape.len, shape.load, &[])?;
    Ok(Box::new(Pair { frontend, backend, load: shape.load, _dir: dir }))
}

/// P8's mean; its percentiles are in [`latency`](super::latency).
pub fn round_trip(plan: &Plan, done: &mut dyn FnMut(Case)) {
    let shape = Shape { load: Load::One, ..shape("", PLAIN, 64, 1.0, 1.0) };
    let case =
        Case::new("P8", "round trip of one 64 B frame, mean, testpmd", "ns", Some(1.0)).less_is_better();
    let (ours, theirs) = (side(plan, &shape, Job::MacSwap, true), side(plan, &shape, Job::MacSwap, false));
    done(case.measure(plan, ours, theirs));
}

/// P5, and P1's guest to guest: copied once, as a forward between two guests does it, and through buffers.
pub fn guest_to_guest(plan: &Plan, done: &mut dyn FnMut(Case)) {
    const ONCE: Job = Job::Cross;
    const TWICE: Job = Job::CrossBuffered;
    let shapes = [
        (ONCE, shape("split, mergeable, 64 B", MERGEABLE, 64, 1.5, 0.3)),
        (ONCE, shape("split, mergeable, 1500 B", MERGEABLE, 1500, 2.5, 0.3)),
        (ONCE, shape("split, plain, 64 B", PLAIN, 64, 1.5, 0.3)),
        (ONCE, shape("split, plain, 1500 B", PLAIN, 1500, 2.5, 0.3)),
        (ONCE, shape("packed, mergeable, 1500 B", PACKED_MERGEABLE, 1500, 2.5, 0.3)),
        (TWICE, shape("split, mergeable, 64 B", MERGEABLE, 64, 1.5, 0.3)),
        (TWICE, shape("split, mergeable, 1500 B", MERGEABLE, 1500, 1.5, 0.3)),
    ];
    let n = if plan.quick { 2 } else { shapes.len() };
    for (job, shape) in &shapes[..n] {
        let how = if *job == ONCE { "copied once" } else { "through buffers" };
        let case =
            Case::new("P5", format!("guest to guest, {how}, {}", shape.name), "Mpkt/s", Some(shape.target));
        let (ours, theirs) = (side(plan, shape, *job, true), side(plan, shape, *job, false));
        done(case.measure(plan, ours, theirs));
    }
}

fn side(plan: &Plan, shape: &Shape, job: Job, ours: bool) -> Result<Box<dyn Side>> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let n_ports = job.n_ports();
    let sockets: Vec<PathBuf> = (0..n_ports).map(|n| dir.path().join(format!("sock{n}"))).collect();
    let frontend = |sockets: &[PathBuf]| {
        frontend(plan.frontend_first(), sockets, shape.devargs, shape.len, shape.load, &[])
    };
    if ours {
        let backend = Ours::start(plan.backend_cpu, job, &sockets)?;
        let frontend = frontend(&sockets)?;
        backend.wait_running(n_ports)?;
        return Ok(Box::new(Pair { frontend, backend, load: shape.load, _dir: dir }));
    }
    let backend = Baseline::start(plan.backend_first(), job, &sockets)?;
    let frontend = frontend(&sockets)?;
    Ok(Box::new(Pair { frontend, backend, load: shape.load, _dir: dir }))
}

/// A testpmd with a virtio-user port for each socket.
pub fn frontend(
    cpus: [usize; 2],
    sockets: &[PathBuf],
    devargs: &str,
    len: u32,
    load: Load,
    more: &[&str],
) -> Result<Testpmd> {
    let vdev = |(n, path): (usize, &PathBuf)| {
        format!("net_virtio_user{n},path={},queues=1,queue_size=256,{devargs}", path.display())
    };
    let vdevs: Vec<String> = sockets.iter().enumerate().map(vdev).collect();
    let mode = if load == Load::Open { "--forward-mode=flowgen" } else { "--forward-mode=io" };
    let len = format!("--txpkts={len}");
    let mut options = vec![mode, &len, "--nb-cores=1"];
    if load == Load::One {
        options.push("--burst=1");
    }
    options.extend(more);
    Testpmd::start("frontend", cpus, &vdevs, &options)
}

/// The baseline: testpmd with vhost ports.
pub(super) struct Baseline(Testpmd);

impl Baseline {
    pub(super) fn start(cpus: [usize; 2], job: Job, sockets: &[PathBuf]) -> Result<Baseline> {
        let vdev = |(n, path): (usize, &PathBuf)| format!("net_vhost{n},iface={},queues=1", path.display());
        let vdevs: Vec<String> = sockets.iter().enumerate().map(vdev).collect();
        let mode = if job == Job::MacSwap { "--forward-mode=macswap" } else { "--forward-mode=io" };
        Testpmd::start("testpmd's vhost", cpus, &vdevs, &[mode, "--nb-cores=1", "--record-core-cycles"])
            .map(Baseline)
    }
}

impl Backend for Baseline {
    fn go(&mut self) -> Result<()> {
        self.0.say("start")
    }

    fn mark(&mut self) -> Result<()> {
        self.0.say("clear fwd stats all")
    }

    fn cycles_per_packet(&mut self) -> Result<Option<f64>> {
        self.0.cycles_per_packet().map(Some)
    }

    fn halt(&mut self) -> Result<()> {
        self.0.stop()
    }

    fn threads(&self) -> Vec<Watched> {
        self.0.threads()
    }
}

/// A backend and its frontend.
pub struct Pair<B> {
    /// Started second, dropped first.
    pub frontend: Testpmd,
    /// What is measured.
    pub backend: B,
    /// What the frontend does.
    pub load: Load,
    /// Where their sockets are.
    pub _dir: TempDir,
}

impl<B: Backend> Side for Pair<B> {
    fn sample(&mut self, window: Duration) -> Result<Reading> {
        self.backend.go()?;
        match self.load {
            Load::Closed => self.frontend.say(&format!("start tx_first {LOOP_BURSTS}"))?,
            Load::Open => self.frontend.say("start")?,
            Load::One => self.frontend.say("start tx_first 1")?,
        }
        std::thread::sleep(WARM_UP);
        let mut threads = self.backend.threads();
        threads.extend(self.frontend.threads());
        threads.iter_mut().for_each(Watched::restart);
        self.backend.mark()?;
        let before = self.frontend.received()?;
        let start = Instant::now();
        std::thread::sleep(window);
        let n = self.frontend.received()? - before;
        let seconds = start.elapsed().as_secs_f64();
        let cpu_share = smallest_share(&threads);
        let cycles_per_packet = self.backend.cycles_per_packet()?;
        self.frontend.stop()?;
        self.backend.halt()?;
        if n == 0 {
            return Err("no packet came back".to_owned());
        }
        let value = if self.load == Load::One { seconds * 1e9 / n as f64 } else { n as f64 / seconds / 1e6 };
        Ok(Reading { value, cycles_per_packet, cpu_share })
    }
}
