//! P3 and P4: the components between a wire and a VM, against the same built on libdpdk.

use std::path::PathBuf;

use spp_drivers::MacAddr;

use crate::dpdk::Program;
use crate::node::Node;
use crate::rows::vhost::{FASTEST, Load, MERGEABLE, Pair, frontend};
use crate::runner::{Case, Plan, Result, Side};
use crate::testpmd::{Testpmd, eal};

const VM: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xaa]);
/// How frontends are, and the length of frames. What is there for both, the components, is what limits only behind the fast
/// ones: two mergeable ports keep the frontend's CPU busier than all of ours.
const SHAPES: &[(&str, &str, u32)] = &[
    ("mergeable, 64 B", MERGEABLE, 64),
    ("in order, vectorized, 64 B", FASTEST, 64),
    ("mergeable, 1500 B", MERGEABLE, 1500),
];

/// P3.
pub fn apart(plan: &Plan, done: &mut dyn FnMut(Case)) {
    measure("P3", "node, a thread for each component, one CPU", 1.3, true, plan, done);
}

/// P4.
pub fn together(plan: &Plan, done: &mut dyn FnMut(Case)) {
    measure("P4", "node, fused: all components on one thread", 2.0, false, plan, done);
}

fn measure(row: &'static str, name: &str, target: f64, apart: bool, plan: &Plan, done: &mut dyn FnMut(Case)) {
    for (shape, devargs, len) in &SHAPES[..if plan.quick { 2 } else { SHAPES.len() }] {
        let case = Case::new(row, format!("{name}, {shape}"), "Mpkt/s", Some(target));
        let ends = |sockets: &[PathBuf; 2]| both_ends(plan, sockets, devargs, *len);
        done(case.measure(plan, ours(plan, apart, &ends), baseline(plan, apart, &ends)));
    }
}

fn sockets() -> Result<(tempfile::TempDir, [PathBuf; 2])> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let sockets = ["wire", "vm"].map(|name| dir.path().join(name));
    Ok((dir, sockets))
}

/// Port 0 is the network, port 1 the VM: what one receives the other sends.
fn both_ends(plan: &Plan, sockets: &[PathBuf; 2], devargs: &str, len: u32) -> Result<Testpmd> {
    let peer = format!("--eth-peer=0,{VM}");
    frontend(plan.frontend_first(), sockets, devargs, len, Load::Closed, &[&peer])
}

type Ends<'a> = &'a dyn Fn(&[PathBuf; 2]) -> Result<Testpmd>;

fn ours(plan: &Plan, apart: bool, ends: Ends<'_>) -> Result<Box<dyn Side>> {
    let (dir, sockets) = sockets()?;
    let [wire, vm] = sockets.clone();
    let backend = Node::start(plan.backend_cpu, apart, wire, vm, VM)?;
    let frontend = ends(&sockets)?;
    backend.wait_running()?;
    Ok(Box::new(Pair { frontend, backend, load: Load::Closed, _dir: dir }))
}

fn baseline(plan: &Plan, apart: bool, ends: Ends<'_>) -> Result<Box<dyn Side>> {
    let (dir, sockets) = sockets()?;
    let [cpu, prompt_cpu] = plan.backend_first();
    let n_workers = if apart { 4 } else { 1 };
    let workers = (1..=n_workers).map(|lcore| format!("{lcore}@{cpu}"));
    let lcores: Vec<String> = std::iter::once(format!("0@{prompt_cpu}")).chain(workers).collect();
    let mut args = eal(&lcores.join(","), 256);
    for (n, path) in sockets.iter().enumerate() {
        args.extend(["--vdev".to_owned(), format!("net_vhost{n},iface={},queues=1", path.display())]);
    }
    let backend = Program::start("pipeline", args, &[VM.to_string()], !apart)?;
    let frontend = ends(&sockets)?;
    Ok(Box::new(Pair { frontend, backend, load: Load::Closed, _dir: dir }))
}
