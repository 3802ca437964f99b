//! P9: how soon a fresh `spp run` forwards, and what it weighs. Limits, not comparisons: the baseline has no such program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use spp_vhost::Role;
use spp_vhost::guest::{Guest, GuestConfig};
use tempfile::TempDir;

use crate::runner::{Case, Plan, Reading, Result, Side};

const DEADLINE: Duration = Duration::from_secs(20);
const VM: &str = "02:00:00:00:00:aa";

#[derive(Clone, Copy)]
enum What {
    SizeMib,
    StartMs,
    MemoryMib,
}

/// Three limits.
pub fn measure(plan: &Plan, done: &mut dyn FnMut(Case)) {
    let few = Plan { n_samples: plan.n_samples.min(3), ..*plan };
    for (name, unit, what) in [
        ("size of the binary, limit 12", "MiB", What::SizeMib),
        ("start to first frame forwarded, limit 300", "ms", What::StartMs),
        ("memory with 2 NICs and 8 vhosts, limit 256", "MiB", What::MemoryMib),
    ] {
        let ours = spp(plan).map(|spp| Box::new(Ours { spp, what }) as Box<dyn Side>);
        let none = Err("none has such a program".to_owned());
        done(Case::new("P9", name, unit, None).less_is_better().measure(&few, ours, none));
    }
}

/// What `SPP_BIN` names, or was built for this run, or else the last release build of `spp`.
fn spp(plan: &Plan) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    let usual = target.join("x86_64-unknown-linux-gnu/release/spp");
    let built = plan.spp.map_or(usual, PathBuf::from);
    let path = std::env::var_os("SPP_BIN").map_or(built, PathBuf::from);
    if path.is_file() { Ok(path) } else { Err("build spp first: cargo build --release --bin spp".to_owned()) }
}

struct Ours {
    spp: PathBuf,
    what: What,
}

impl Side for Ours {
    fn sample(&mut self, _window: Duration) -> Result<Reading> {
        let value = match self.what {
            What::SizeMib => {
                let file = std::fs::metadata(&self.spp).map_err(|error| error.to_string())?;
                file.len() as f64 / 1_048_576.0
            }
            What::StartMs => first_frame_ms(&self.spp)?,
            What::MemoryMib => memory_mib(&self.spp)?,
        };
        Ok(Reading { value, cycles_per_packet: None, cpu_share: 1.0 })
    }
}

/// `spp run` in a directory of its own; ended when dropped.
struct Node {
    dir: TempDir,
    process: Child,
}

impl Node {
    fn start(spp: &Path, nics: &[(&str, u32)]) -> Result<Node> {
        let text = |error: std::io::Error| error.to_string();
        let dir = tempfile::tempdir().map_err(text)?;
        let vf = |(n, (address, n_vhost)): (usize, &(&str, u32))| {
            let address = address.replace("DIR", &dir.path().display().to_string());
            serde_json::json!({ "num_vhost": n_vhost, "pci_address": address,
                "physical_network": format!("phys{n}"), "core_mask": format!("{:#x}", 0xffff_u64 << (16 * n)) })
        };
        let config: Vec<_> = nics.iter().enumerate().map(vf).collect();
        std::fs::write(dir.path().join("node.json"), serde_json::json!(config).to_string()).map_err(text)?;
        let mut command = Command::new(spp);
        command.args(["run", "--fold-cores", "--config"]).arg(dir.path().join("node.json"));
        command.arg("--vhost-dir").arg(dir.path()).arg("--state-dir").arg(dir.path());
        command.arg("--api").arg(api(&dir));
        let process = command.stderr(Stdio::null()).spawn().map_err(text)?;
        Ok(Node { dir, process })
    }

    /// Plugs the VM as soon as the node takes it.
    fn plug(&self, spp: &Path) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            let mut plug = Command::new(spp);
            plug.args(["plug", "--vhost", "0", "--mac", VM, "--api", &api(&self.dir)]);
            if plug.stderr(Stdio::null()).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err("the node took no plug".to_owned())
    }
}

fn api(dir: &TempDir) -> String {
    format!("unix:{}/api.sock", dir.path().display())
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// From the start of the process until a frame of the VM arrives on the wire, plug included.
fn first_frame_ms(spp: &Path) -> Result<f64> {
    let start = Instant::now();
    let node = Node::start(spp, &[("vhost-user:DIR/wire", 1)])?;
    let attach = |socket: PathBuf, role: Role| {
        std::thread::spawn(move || Guest::attach(GuestConfig::new(socket, role), DEADLINE))
    };
    let dir = node.dir.path();
    let guests = [attach(dir.join("wire"), Role::Client), attach(dir.join("sock0"), Role::Server)];
    node.plug(spp)?;
    let [wire, vm] = guests.map(|guest| guest.join().map_err(|_| "a guest panicked".to_owned()));
    let (mut wire, mut vm) = (wire?.map_err(|e| e.to_string())?, vm?.map_err(|e| e.to_string())?);
    let mut frame = [0xff; 64];
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0xaa]);
    while wire.receive_burst(1, |_| ()) == 0 {
        vm.send(&frame);
        std::thread::sleep(Duration::from_micros(200));
        if start.elapsed() > DEADLINE {
            return Err("no frame was forwarded".to_owned());
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

/// Resident memory of a node that is up, shared memory included.
fn memory_mib(spp: &Path) -> Result<f64> {
    let node = Node::start(spp, &[("null:", 4), ("null:", 4)])?;
    node.plug(spp)?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.id())).unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kib: f64 = rss.and_then(|n| n.parse().ok()).ok_or("no VmRSS in /proc")?;
    Ok(kib / 1024.0)
}
