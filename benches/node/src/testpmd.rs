//! Debian's `dpdk-testpmd`, driven through its prompt: as a frontend (virtio-user) and as the baseline (vhost).

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::cpu::Watched;
use crate::runner::Result;

const DEADLINE: Duration = Duration::from_secs(30);
/// Name of the thread that polls, from DPDK 22.11 on and before.
const POLLING: &[&str] = &["lcore-worker", "dpdk-worker"];

/// Options of any DPDK program here: memory, no devices of the machine's own, no files that collide.
pub fn eal(lcores: &str, memory_mib: u32) -> Vec<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("sppb{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut args = vec!["--lcores".to_owned(), lcores.to_owned(), "-m".to_owned(), memory_mib.to_string()];
    args.extend(["--no-pci", "--no-telemetry", "--file-prefix", &prefix].map(str::to_owned));
    if huge_pages_mib() >= 4 * memory_mib {
        args.push("--single-file-segments".to_owned());
    } else {
        args.push("--no-huge".to_owned());
    }
    args
}

/// Where huge pages are files.
fn hugetlbfs() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.find_map(|of| (of.get(2) == Some(&"hugetlbfs")).then(|| PathBuf::from(of[1])))
}

/// Removes what a DPDK program that was killed has left in huge pages, which nobody else could use.
fn free_huge_pages(file_prefix: &str) {
    let files = hugetlbfs().and_then(|dir| std::fs::read_dir(dir).ok());
    for file in files.into_iter().flatten().flatten() {
        if file.file_name().to_string_lossy().starts_with(&format!("{file_prefix}map_")) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

/// Free huge pages that DPDK could use, in MiB.
pub fn huge_pages_mib() -> u32 {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = memory.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    let free: u32 = free.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    if hugetlbfs().is_some() { 2 * free } else { 0 }
}

/// A process that answers lines with lines.
pub struct Talker {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    name: String,
    /// DPDK's word for the files of one program.
    file_prefix: Option<String>,
}

impl Talker {
    /// Starts a program that dies with us.
    pub fn spawn(name: &str, program: &std::ffi::OsStr, args: &[String]) -> Result<Talker> {
        let error = |what: std::io::Error| format!("{name} does not start: {what}");
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "stdbuf", "-oL"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(error)?;
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (tx, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(std::io::Result::ok).all(|line| tx.send(line).is_ok())
        });
        let file_prefix = args.iter().skip_while(|arg| *arg != "--file-prefix").nth(1).cloned();
        Ok(Talker { child, input, lines, name: name.to_owned(), file_prefix })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends one line.
    pub fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").map_err(|_| format!("{} has ended", self.name))
    }

    /// Waits for a line with `what` in it.
    pub fn wait_for(&mut self, what: &str) -> Result<String> {
        let end = Instant::now() + DEADLINE;
        let mut last = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(what) => return Ok(line),
                Ok(line) => last.push(line),
                Err(_) => {
                    let tail = last.split_off(last.len().saturating_sub(5)).join(" | ");
                    return Err(format!("{} never said '{what}', but: {tail}", self.name));
                }
            }
        }
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.file_prefix.iter().for_each(|prefix| free_huge_pages(prefix));
    }
}

/// A running testpmd.
pub struct Testpmd {
    talker: Talker,
    n_ports: usize,
    threads: Vec<Watched>,
}

impl Testpmd {
    /// Starts it with these devices and options; its polling thread is on the first CPU, its prompt on the second, so that
    /// a question does not take the CPU from who is measured.
    pub fn start(
        name: &str,
        [cpu, prompt_cpu]: [usize; 2],
        vdevs: &[String],
        options: &[&str],
    ) -> Result<Testpmd> {
        if Command::new("dpdk-testpmd").arg("--version").output().is_err() {
            return Err("dpdk-testpmd is not installed (Debian package dpdk-dev)".to_owned());
        }
        let mut args = eal(&format!("0@{prompt_cpu},1@{cpu}"), 256);
        vdevs.iter().for_each(|vdev| args.extend(["--vdev".to_owned(), vdev.clone()]));
        args.extend(["--", "-i", "--no-mlockall", "--total-num-mbufs=8192"].map(str::to_owned));
        args.extend(options.iter().map(|option| (*option).to_owned()));
        let mut talker = Talker::spawn(name, "dpdk-testpmd".as_ref(), &args)?;
        talker.say("show port summary all")?;
        talker.wait_for("Number of available ports")?;
        let threads = POLLING.iter().flat_map(|name| Watched::named(talker.pid(), name)).collect();
        Ok(Testpmd { talker, n_ports: vdevs.len(), threads })
    }

    /// The polling threads.
    pub fn threads(&self) -> Vec<Watched> {
        self.threads.clone()
    }

    /// Types a line at its prompt.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.talker.say(line)
    }

    /// Packets received on all ports since its start.
    pub fn received(&mut self) -> Result<u64> {
        self.say("show port stats all")?;
        let mut sum = 0;
        for _ in 0..self.n_ports {
            let line = self.talker.wait_for("RX-packets:")?;
            self.talker.wait_for("TX-errors:")?;
            let number = line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
            sum += number.ok_or_else(|| format!("testpmd says {line}"))?;
        }
        Ok(sum)
    }

    /// Cycles of turns with packets, per packet, since "clear fwd stats all".
    pub fn cycles_per_packet(&mut self) -> Result<f64> {
        self.say("show fwd stats all")?;
        let line = self.talker.wait_for("CPU cycles/packet=")?;
        let number = line.split("CPU cycles/packet=").nth(1).and_then(|rest| rest.split_whitespace().next());
        number.and_then(|n| n.parse().ok()).ok_or_else(|| format!("testpmd says {line}"))
    }

    /// Stops forwarding and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        self.say("stop")?;
        self.talker.wait_for("Done.").map(drop)
    }
}
