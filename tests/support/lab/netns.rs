//! A network namespace of the test's own, held open by a sleeping process.

use super::process::Daemon;
use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

/// The namespace; it vanishes with everything in it when this is dropped.
pub struct NetNs {
    holder: Daemon,
    enter: Vec<String>,
}

impl NetNs {
    /// Makes the namespace: as root a plain one, otherwise inside a user namespace in which we are root.
    /// The error says why this machine does not allow it.
    pub fn new(dir: &Path) -> Result<NetNs, String> {
        let own = |path: &str| std::fs::read_link(path).map_err(|error| format!("{path}: {error}"));
        let root = is_root();
        let kinds: &[&str] = if root { &["--net"] } else { &["--user", "--map-root-user", "--net"] };
        let args: Vec<String> = kinds.iter().chain(&["sleep", "infinity"]).map(|&s| s.into()).collect();
        let mut holder =
            Daemon::start("namespace holder", Path::new("unshare"), &args, &dir.join("netns.log"))
                .map_err(|error| format!("unshare does not start: {error}"))?;
        let (theirs, ours) = (format!("/proc/{}/ns/net", holder.pid()), own("/proc/self/ns/net")?);
        for _ in 0..100 {
            if let Some(status) = holder.ended() {
                return Err(format!("no network namespace here ({status}): {}", holder.log().trim()));
            }
            // The holder has left our namespace and runs `sleep` once both have happened.
            let asleep = std::fs::read_to_string(format!("/proc/{}/comm", holder.pid()))
                .is_ok_and(|comm| comm.trim() == "sleep");
            if asleep && own(&theirs)? != ours {
                let mut enter: Vec<String> =
                    vec!["--target".into(), holder.pid().to_string(), "--net".into()];
                if !root {
                    enter.extend(["--user".into(), "--preserve-credentials".into()]);
                }
                return Ok(NetNs { holder, enter });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err("the process that should hold the namespace did not get there in 5 s".into())
    }

    /// Runs a shell script inside and waits for it.
    pub fn sh(&self, script: &str) -> io::Result<Output> {
        Command::new("nsenter").args(&self.enter).args(["sh", "-ec", script]).output()
    }

    /// Starts a background process inside.
    pub fn start(&self, name: &str, program: &Path, args: &[String], log: &Path) -> io::Result<Daemon> {
        let mut all = self.enter.clone();
        all.push(program.display().to_string());
        all.extend_from_slice(args);
        Daemon::start(name, Path::new("nsenter"), &all, log)
    }
}

/// Whether the test runs with root's user id.
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .filter_map(|line| line.strip_prefix("Uid:"))
        .any(|ids| ids.split_whitespace().nth(1) == Some("0"))
}
