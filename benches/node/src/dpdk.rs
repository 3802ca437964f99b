//! Our own small programs on libdpdk, `benches/dpdk-baseline/*.c`, built once per run with what `pkg-config` says.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::cpu::Watched;
use crate::port::Backend;
use crate::runner::Result;
use crate::testpmd::Talker;

fn pkg_config(what: &str) -> Result<Vec<String>> {
    let missing = || "libdpdk is not installed (Debian packages libdpdk-dev and pkg-config)".to_owned();
    let output = Command::new("pkg-config").args([what, "libdpdk"]).output().map_err(|_| missing())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text.split_whitespace().map(str::to_owned).collect())
    } else {
        Err(missing())
    }
}

fn build(name: &str) -> Result<PathBuf> {
    static DIR: OnceLock<Option<TempDir>> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().ok()).as_ref().ok_or("no temporary directory")?;
    let program = dir.path().join(name);
    if program.is_file() {
        return Ok(program);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../dpdk-baseline/{name}.c"));
    let output = Command::new("gcc")
        .args(["-O3", "-march=native"])
        .args(pkg_config("--cflags")?)
        .arg(source)
        .arg("-o")
        .arg(&program)
        .args(pkg_config("--libs")?)
        .output()
        .map_err(|error| format!("gcc does not start: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(program) } else { Err(format!("{name}.c does not build: {said}")) }
}

/// Builds and starts one, and waits until it is ready.
pub fn start(name: &str, eal: Vec<String>, args: &[String]) -> Result<Talker> {
    let mut all = eal;
    all.push("--".to_owned());
    all.extend_from_slice(args);
    let mut talker = Talker::spawn(name, build(name)?.as_os_str(), &all)?;
    talker.wait_for("ready")?;
    Ok(talker)
}

/// One that forwards between its ports: `pipeline.c`, `bare.c`.
pub struct Program {
    talker: Talker,
    /// Its polling threads have CPUs to themselves. Threads that share one wait for each other: that is no disturbance.
    alone: bool,
    mark: (u64, u64),
}

impl Program {
    /// As [`start`].
    pub fn start(name: &str, eal: Vec<String>, args: &[String], alone: bool) -> Result<Program> {
        Ok(Program { talker: start(name, eal, args)?, alone, mark: Default::default() })
    }

    /// Packets that came in and cycles they took, up to when the line was obeyed.
    fn tell(&mut self, line: &str) -> Result<(u64, u64)> {
        self.talker.say(line)?;
        let answer = self.talker.wait_for(" ")?;
        let numbers: Vec<u64> = answer.split(' ').filter_map(|number| number.parse().ok()).collect();
        match numbers[..] {
            [from_wire, from_vm, _drops, cycles] => Ok((from_wire + from_vm, cycles)),
            _ => Err(format!("the baseline's program said nonsense: {answer}")),
        }
    }
}

impl Backend for Program {
    fn go(&mut self) -> Result<()> {
        self.tell("go").map(drop)
    }

    fn mark(&mut self) -> Result<()> {
        self.mark = self.tell("stats")?;
        Ok(())
    }

    fn cycles_per_packet(&mut self) -> Result<Option<f64>> {
        let ((packets, cycles), (packets_then, cycles_then)) = (self.tell("stats")?, self.mark);
        let n = packets - packets_then;
        Ok((n > 0).then(|| (cycles - cycles_then) as f64 / n as f64))
    }

    fn halt(&mut self) -> Result<()> {
        self.tell("stop").map(drop)
    }

    fn threads(&self) -> Vec<Watched> {
        if self.alone { Watched::named(self.talker.pid(), "lcore-worker") } else { Vec::new() }
    }
}
