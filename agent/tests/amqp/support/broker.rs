//! A RabbitMQ of a test's own: own ports, name, cookie, data and port mapper; no system service is touched.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::certificates::{Authority, Files};
use super::{neutron, until};

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

pub const USER: &str = "neutron";
pub const PASSWORD: &str = "s@cret:1";

pub struct Broker {
    dir: TempDir,
    pub ca: Authority,
    server: Files,
    pub port: u16,
    pub tls_port: u16,
    dist_port: u16,
    epmd_port: u16,
    epmd: Child,
    child: Option<Child>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Broker {
    /// Everything but the server itself. None, with the reason said: it can't be run here.
    pub fn prepare(test: &str) -> Option<Broker> {
        if !Path::new(SERVER).exists() {
            println!("SKIPPED: {test}: there is no RabbitMQ (Debian package rabbitmq-server)");
            return None;
        }
        if neutron::python().is_none() {
            println!(
                "SKIPPED: {test}: there is no oslo.messaging below the target directory (.ci/setup --tests)"
            );
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::new(dir.path(), "broker-ca");
        let server = ca.issue("broker", &["localhost"]);
        let epmd_port = free_port();
        let epmd = Command::new("epmd")
            .args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (port, tls_port, dist_port) = (free_port(), free_port(), free_port());
        Some(Broker { dir, ca, server, port, tls_port, dist_port, epmd_port, epmd, child: None })
    }

    /// Runs it, and waits until it takes connections.
    pub async fn run(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let shown = |path: &Path| path.display().to_string();
        let conf = [
            format!("listeners.tcp.1 = 127.0.0.1:{}", self.port),
            format!("listeners.ssl.1 = 127.0.0.1:{}", self.tls_port),
            format!("default_user = {USER}"),
            format!("default_pass = {PASSWORD}"),
            format!("ssl_options.cacertfile = {}", shown(&self.ca.file)),
            format!("ssl_options.certfile = {}", shown(&self.server.cert)),
            format!("ssl_options.keyfile = {}", shown(&self.server.key)),
            "ssl_options.verify = verify_peer".into(),
            "ssl_options.fail_if_no_peer_cert = true".into(),
            String::new(),
        ];
        std::fs::write(path("rabbitmq.conf"), conf.join("\n")).unwrap();
        std::fs::write(path("plugins"), "[].\n").unwrap();
        std::fs::write(path("env"), "").unwrap();
        let log = std::fs::File::create(path("out")).unwrap();
        let child = Command::new(SERVER)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.dir.path())
            .env("LANG", "C.UTF-8")
            .env("RABBITMQ_NODENAME", format!("spp{}@localhost", self.port))
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1")
            .env("RABBITMQ_CONF_ENV_FILE", path("env"))
            .env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins"))
            .env("RABBITMQ_MNESIA_BASE", path("data"))
            .env("RABBITMQ_LOG_BASE", path("log"))
            .env("RABBITMQ_PID_FILE", path("pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let ports = [self.port, self.tls_port];
        until("the broker listens", || async {
            ports.iter().all(|&port| TcpStream::connect(("127.0.0.1", port)).is_ok())
        })
        .await;
    }

    /// `kill -9` of the server and what it started.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
        }
    }

    /// As neutron's configuration names it.
    pub fn transport_url(&self) -> String {
        self.transport_url_at(self.port)
    }

    /// The same behind something that listens at this port.
    pub fn transport_url_at(&self, port: u16) -> String {
        format!("rabbit://{USER}:s%40cret%3A1@127.0.0.1:{port}//")
    }

    /// A certificate the broker lets in.
    pub fn client_files(&self) -> Files {
        self.ca.issue("node", &[])
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        let _ = self.epmd.kill();
        let _ = self.epmd.wait();
    }
}
