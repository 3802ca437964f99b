//! P3 and P4: the components between a wire and a VM, against the same built on libdpdk.

use std::path::PathBuf;

use spp_drivers::MacAddr;

use crate::cpu::Watched;
use crate::dpdk;
use crate::node::Node;
use crate::port::Backend;
use crate::rows::vhost::{Load, Pair, frontend};
use crate::runner::{Case, Plan, Result, Side};
use crate::testpmd::{Talker, eal};

const VM: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xaa]);
const VIRTIO_USER: &str = "packed_vq=0,mrg_rxbuf=1,in_order=0";

/// P3.
pub fn apart(plan: &Plan, done: &mut dyn FnMut(Case)) {
    measure("P3", "node, a thread for each component, one CPU", 1.3, true, plan, done);
}

/// P4.
pub fn together(plan: &Plan, done: &mut dyn FnMut(Case)) {
    measure("P4", "node, fused: all components on one thread", 2.0, false, plan, done);
}

fn measure(row: &'static str, name: &str, target: f64, apart: bool, plan: &Plan, done: &mut dyn FnMut(Case)) {
    for len in if plan.quick { &[64][..] } else { &[64, 1500] } {
        let case = Case::new(row, format!("{name}, {len} B"), "Mpkt/s", Some(target));
        done(case.measure(plan, ours(plan, apart, *len), baseline(plan, apart, *len)));
    }
}

fn sockets() -> Result<(tempfile::TempDir, [PathBuf; 2])> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let sockets = ["wire", "vm"].map(|name| dir.path().join(name));
    Ok((dir, sockets))
}

/// Port 0 is the network, port 1 the VM: what one receives the other sends.
fn both_ends(plan: &Plan, sockets: &[PathBuf; 2], len: u32) -> Result<crate::testpmd::Testpmd> {
    let peer = format!("--eth-peer=0,{VM}");
    frontend(plan.frontend_first(), sockets, VIRTIO_USER, len, Load::Closed, &[&peer])
}

fn ours(plan: &Plan, apart: bool, len: u32) -> Result<Box<dyn Side>> {
    let (dir, sockets) = sockets()?;
    let [wire, vm] = sockets.clone();
    let backend = Node::start(plan.backend_cpu, apart, wire, vm, VM)?;
    let frontend = both_ends(plan, &sockets, len)?;
    backend.wait_running()?;
    Ok(Box::new(Pair { frontend, backend, load: Load::Closed, _dir: dir }))
}

fn baseline(plan: &Plan, apart: bool, len: u32) -> Result<Box<dyn Side>> {
    let (dir, sockets) = sockets()?;
    let [cpu, prompt_cpu] = plan.backend_first();
    let n_workers = if apart { 4 } else { 1 };
    let workers = (1..=n_workers).map(|lcore| format!("{lcore}@{cpu}"));
    let lcores: Vec<String> = std::iter::once(format!("0@{prompt_cpu}")).chain(workers).collect();
    let mut args = eal(&lcores.join(","), 256);
    for (n, path) in sockets.iter().enumerate() {
        args.extend(["--vdev".to_owned(), format!("net_vhost{n},iface={},queues=1", path.display())]);
    }
    let backend = Pipeline { talker: dpdk::start("pipeline", args, &[VM.to_string()])?, apart };
    let frontend = both_ends(plan, &sockets, len)?;
    Ok(Box::new(Pair { frontend, backend, load: Load::Closed, _dir: dir }))
}

/// `benches/dpdk-baseline/pipeline.c`.
struct Pipeline {
    talker: Talker,
    apart: bool,
}

impl Pipeline {
    fn tell(&mut self, line: &str) -> Result<()> {
        self.talker.say(line)?;
        self.talker.wait_for(" ").map(drop)
    }
}

impl Backend for Pipeline {
    fn go(&mut self) -> Result<()> {
        self.tell("go")
    }

    fn mark(&mut self) -> Result<()> {
        Ok(())
    }

    fn cycles_per_packet(&mut self) -> Result<Option<f64>> {
        Ok(None)
    }

    fn halt(&mut self) -> Result<()> {
        self.tell("stop")
    }

    /// Threads that share a CPU wait for each other: that is no disturbance.
    fn threads(&self) -> Vec<Watched> {
        if self.apart { Vec::new() } else { Watched::named(self.talker.pid(), "lcore-worker") }
    }
}
