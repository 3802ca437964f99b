//! Backends under attack: our node, testpmd, anything a command starts, or a process that runs already.
//!
//! Each has a port that is attacked and one whose traffic must not notice. Ours has a software wire as well, and
//! says what it counted; of others only what comes out of their ports is seen.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::frontend::until;
use crate::message::Connection;
use crate::process::Process;
use crate::traffic::{NEIGHBOUR_MAC, VICTIM_MAC};

/// How long a backend may take to come up.
const START: Duration = Duration::from_secs(60);

/// Who listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// The backend listens, we connect.
    Client,
    /// We listen, the backend connects.
    Server,
}

/// A socket path, and the listener behind it if that is us.
pub struct Port {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Port {
    /// A port at `path`.
    pub fn new(path: &Path, role: Role) -> std::io::Result<Port> {
        let listener = match role {
            Role::Client => None,
            Role::Server => {
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Some(listener)
            }
        };
        Ok(Port { path: path.to_owned(), listener })
    }

    /// A connection, as soon as the backend is there for one.
    pub fn connect(&self, time: Duration) -> std::io::Result<Connection> {
        let deadline = Instant::now() + time;
        loop {
            let got = match &self.listener {
                None => UnixStream::connect(&self.path),
                Some(listener) => listener.accept().map(|(stream, _)| stream),
            };
            match got {
                Ok(stream) => {
                    stream.set_nonblocking(false)?;
                    return Connection::new(stream);
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// A second socket to the same place, without waiting: `None` where only the backend could connect.
    pub fn connect_again(&self) -> Option<std::io::Result<UnixStream>> {
        self.listener.is_none().then(|| UnixStream::connect(&self.path))
    }
}

/// Frames and drops of the attacked port, as the backend counts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// `running`, `failed: reason`, ...
    pub state: String,
    /// Drops by reason: to the guest, from the guest.
    pub drops: [BTreeMap<String, u64>; 2],
}

/// Which way a frame went when it was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the attacked guest.
    ToGuest = 0,
    /// From it.
    FromGuest = 1,
}

impl View {
    /// Drops for any of `reasons`.
    pub fn drops(&self, way: Way, reasons: &[&str]) -> u64 {
        reasons.iter().filter_map(|reason| self.drops[way as usize].get(*reason)).sum()
    }
}

/// How to get a backend.
#[derive(Debug, Clone)]
pub enum Spec {
    /// Our node: the binary.
    Spp {
        /// Path of `spp`.
        binary: PathBuf,
        /// Who listens on the guests' sockets.
        role: Role,
    },
    /// Debian's testpmd with two vhost ports that loop.
    Testpmd,
    /// Any other.
    Other {
        /// Socket of the port to attack.
        socket: PathBuf,
        /// Socket of a port that loops, for the neighbour.
        neighbour: Option<PathBuf>,
        /// Who listens.
        role: Role,
        /// A process that runs already.
        pid: Option<u32>,
        /// A shell command that starts it.
        command: Option<String>,
    },
}

impl Spec {
    fn name(&self) -> &'static str {
        match self {
            Spec::Spp { .. } => "spp",
            Spec::Testpmd => "testpmd",
            Spec::Other { .. } => "backend",
        }
    }
}

/// A running backend.
pub struct Backend {
    /// Its process, when it is known.
    pub process: Option<Process>,
    /// The port under attack.
    pub victim: Port,
    /// The neighbour's port.
    pub neighbour: Option<Port>,
    /// The wire, where ports don't loop.
    pub wire: Option<Port>,
    child: Option<Child>,
    status: Option<(PathBuf, String)>,
    log: Option<PathBuf>,
    _dir: TempDir,
}

impl Backend {
    /// Starts it, or finds it.
    pub fn start(spec: &Spec) -> std::io::Result<Backend> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        match spec {
            Spec::Spp { binary, role } => {
                let ports = [Port::new(&at("sock0"), *role)?, Port::new(&at("sock1"), *role)?];
                let wire = Port::new(&at("wire"), Role::Client)?;
                let (command, api) = spp_command(binary, dir.path(), *role)?;
                let [victim, neighbour] = ports;
                let mut backend = Backend::spawn(command, victim, Some(neighbour), Some(wire), dir)?;
                backend.status = Some((binary.clone(), api));
                backend.plug()?;
                Ok(backend)
            }
            Spec::Testpmd => {
                let victim = Port::new(&at("sock0"), Role::Client)?;
                let neighbour = Port::new(&at("sock1"), Role::Client)?;
                let command = testpmd_command(&at("sock0"), &at("sock1"));
                Backend::spawn(command, victim, Some(neighbour), None, dir)
            }
            Spec::Other { socket, neighbour, role, pid, command } => {
                let victim = Port::new(socket, *role)?;
                let neighbour = neighbour.as_ref().map(|path| Port::new(path, *role)).transpose()?;
                if let Some(command) = command {
                    let mut shell = Command::new("sh");
                    shell.arg("-c").arg(format!("exec {command}"));
                    return Backend::spawn(shell, victim, neighbour, None, dir);
                }
                let process = pid.map(Process::new);
                let (wire, child, status, log) = (None, None, None, None);
                Ok(Backend { process, victim, neighbour, wire, child, status, log, _dir: dir })
            }
        }
    }

    fn spawn(
        command: Command,
        victim: Port,
        neighbour: Option<Port>,
        wire: Option<Port>,
        dir: TempDir,
    ) -> std::io::Result<Backend> {
        let log = dir.path().join("log");
        let file = File::create(&log)?;
        // testpmd ends when its input does, so that stays open; a group of its own keeps our signals away.
        let mut command = ended_with_us(&command);
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn()?;
        let process = Some(Process::new(child.id()));
        let (child, log) = (Some(child), Some(log));
        Ok(Backend { process, victim, neighbour, wire, child, status: None, log, _dir: dir })
    }

    /// Ours: waits for the API, and plugs both guests.
    fn plug(&self) -> std::io::Result<()> {
        let deadline = Instant::now() + START;
        for (vhost, mac) in [VICTIM_MAC, NEIGHBOUR_MAC].into_iter().enumerate() {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            while self.spp(&["plug", "--vhost", &vhost.to_string(), "--mac", &mac]).is_none() {
                if Instant::now() > deadline {
                    return Err(std::io::Error::other(format!(
                        "spp does not come up: {}",
                        self.last_words()
                    )));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Ours: the output of a command of the same binary, asked to speak to this node.
    fn spp(&self, args: &[&str]) -> Option<Vec<u8>> {
        let (binary, api) = self.status.as_ref()?;
        let output =
            Command::new(binary).args(args).args(["--api", api]).stdin(Stdio::null()).output().ok()?;
        output.status.success().then_some(output.stdout)
    }

    /// What the backend says about the attacked port; `None` when it can't be asked.
    pub fn view(&self) -> Option<View> {
        let status: Value = serde_json::from_slice(&self.spp(&["status", "--json"])?).ok()?;
        let vhosts = status.pointer("/vfs/0/vhosts")?.as_array()?;
        let port = vhosts.iter().find(|port| port["id"] == 0)?;
        let drops = |way: &str| serde_json::from_value(port[way]["drops"].clone()).unwrap_or_default();
        Some(View {
            state: port["state"].as_str()?.to_owned(),
            drops: [drops("to_guest"), drops("from_guest")],
        })
    }

    /// True when the backend can be asked.
    pub fn speaks(&self) -> bool {
        self.status.is_some()
    }

    /// Where our node serves its API.
    pub fn api_socket(&self) -> Option<PathBuf> {
        let (_, api) = self.status.as_ref()?;
        api.strip_prefix("unix:").map(PathBuf::from)
    }

    /// False once the process has ended; true where it isn't known.
    pub fn is_alive(&self) -> bool {
        self.process.is_none_or(Process::is_alive)
    }

    /// How it ended, if it was ours to wait for.
    pub fn epitaph(&mut self) -> String {
        let mut status = None;
        until(Duration::from_secs(2), || {
            status = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            status.is_some() || self.child.is_none()
        });
        status.map_or_else(|| "gone".to_owned(), |status| status.to_string())
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let text = self.log.as_ref().and_then(|log| std::fs::read(log).ok()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// All of its log.
    pub fn log(&self) -> String {
        let text = self.log.as_ref().and_then(|log| std::fs::read(log).ok()).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The same command, killed when we end in whatever way.
fn ended_with_us(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    wrapped
}

fn spp_command(binary: &Path, dir: &Path, role: Role) -> std::io::Result<(Command, String)> {
    let config = json!([{
        "num_vhost": 2,
        "pci_address": format!("vhost-user:{}", dir.join("wire").display()),
        "physical_network": "hostile",
        "core_mask": "0xfe",
    }]);
    std::fs::write(dir.join("node.json"), config.to_string())?;
    let api = format!("unix:{}", dir.join("api.sock").display());
    let mut command = Command::new(binary);
    command.args(["run", "--fold-cores", "--api", &api, "--vhost-mode"]);
    command.arg(if role == Role::Client { "server" } else { "client" });
    command.arg("--vhost-dir").arg(dir).arg("--config").arg(dir.join("node.json"));
    Ok((command, api))
}

/// One forwarding core for both ports, as a poll-mode thread of a switch serves several guests.
fn testpmd_command(victim: &Path, neighbour: &Path) -> Command {
    let mut command = Command::new("dpdk-testpmd");
    let vdev = |i: usize, path: &Path| format!("net_vhost{i},iface={},queues=1", path.display());
    command.args(["--lcores", "0@0,1@1", "--no-pci", "--no-huge", "-m", "512", "--no-telemetry"]);
    command.args(["--file-prefix", &format!("hostile{}", std::process::id())]);
    command.args(["--vdev", &vdev(0, victim), "--vdev", &vdev(1, neighbour)]);
    command.args(["--", "--no-mlockall", "--forward-mode=io", "--port-topology=loop"]);
    command.args(["--total-num-mbufs=16384", "--nb-cores=1", "--auto-start", "--stats-period=0"]);
    command
}

impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
