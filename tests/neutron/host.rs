//! A compute node: `spp run` on software NICs, looked at through its command line and through etcd.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::driver::values;
use crate::support::server::Etcd;
use crate::support::until;

/// A host with keys in etcd; its node runs between [`Host::run`] and [`Host::kill`]. Killed when dropped.
pub struct Host {
    pub name: &'static str,
    url: String,
    dir: TempDir,
    process: Option<Child>,
    /// Variables its node is started with.
    variables: Vec<(&'static str, String)>,
}

impl Host {
    /// The keys of `spp config put MAPPINGS`, nothing running yet.
    pub fn configured(etcd: &Etcd, name: &'static str, mappings: &str) -> Host {
        let host = Host {
            name,
            url: etcd.url(),
            dir: tempfile::tempdir().unwrap(),
            process: None,
            variables: Vec::new(),
        };
        let output = host.config_put(&[mappings]);
        assert!(output.status.success(), "{output:?}");
        host
    }

    /// And its node up.
    pub async fn started(etcd: &Etcd, name: &'static str, mappings: &str) -> Host {
        let mut host = Host::configured(etcd, name, mappings);
        host.run().await;
        host
    }

    pub fn config_put(&self, args: &[&str]) -> Output {
        spp(&[&["config", "put", "--etcd", &self.url, "--host", self.name], args].concat())
    }

    /// Starts the node and waits until its agent watches.
    pub async fn run(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spp"));
        command.args([
            "run",
            "--etcd",
            &self.url,
            "--host",
            self.name,
            "--fold-cores",
            "--log-level",
            "info",
        ]);
        command.arg("--vhost-dir").arg(self.dir.path()).args(["--api", &self.api()]);
        command.envs(self.variables.iter().cloned());
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        self.process = Some(command.stderr(log).stdout(Stdio::null()).spawn().expect("spp starts"));
        until("the agent watches", || async {
            self.status().is_some_and(|status| status["agent"]["etcd"]["connected"] == true)
        })
        .await;
    }

    /// Its node is started with this variable from now on.
    pub fn set(&mut self, variable: &'static str, value: &str) {
        self.variables.push((variable, value.to_owned()));
    }

    /// What `spp agent status` writes.
    pub fn agent_status(&self, args: &[&str]) -> String {
        let output = spp(&[&["agent", "status", "--api", &self.api()], args].concat());
        String::from_utf8(output.stdout).expect("text")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Holds the node where it is, or lets it go on: an agent that hangs.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let process = self.process.as_ref().expect("the node runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(process), signal).expect("it runs");
    }

    fn api(&self) -> String {
        format!("unix:{}", self.dir.path().join("api.sock").display())
    }

    /// The directory of its vhost-user sockets.
    pub fn vhost_dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it has written to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// `spp status --json`; None while nobody answers.
    pub fn status(&self) -> Option<Value> {
        let output = spp(&["status", "--json", "--api", &self.api()]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// What is plugged into a vhost, as `(mac, vlan)`.
    pub fn plug_of(&self, vhost: usize) -> Option<(String, Option<u64>)> {
        let status = self.status().expect("the node answers");
        let vhosts = status["vfs"].as_array().unwrap().iter().flat_map(|vf| vf["vhosts"].as_array().unwrap());
        let plug = vhosts.clone().nth(vhost).expect("there is such a vhost")["plug"].clone();
        Some((plug["mac"].as_str()?.to_owned(), plug["vlan"].as_u64()))
    }

    /// All its keys but the configuration, without what they have in common.
    pub async fn keys(&self, etcd: &Etcd) -> Vec<(String, String)> {
        let mut client = etcd.client().await;
        let own = format!("/{}/", self.name);
        let keys = values(&mut client, "/spp/openstack/").await;
        let keys = keys.into_iter().filter(|(key, _)| key.contains(&own));
        keys.map(|(key, value)| (key.trim_start_matches("/spp/openstack/").replace(&own, "/"), value))
            .collect()
    }

    /// Until the keys are those of an unused host.
    pub async fn until_unused(&self, etcd: &Etcd) {
        until(&format!("{} is unused", self.name), || async {
            let keys = self.keys(etcd).await;
            keys.iter().all(|(key, value)| {
                (key.starts_with("vhost/") || key.starts_with("mirror/")) && value == "None"
            })
        })
        .await;
    }

    pub fn bind(&self, args: &[&str]) -> Command {
        self.command("bind", args)
    }

    pub fn unbind(&self, args: &[&str]) -> Command {
        self.command("unbind", args)
    }

    fn command(&self, word: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spp"));
        command.arg(word).args(args).args(["--etcd", &self.url, "--host", self.name]);
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            println!("log of {}:\n{}", self.name, self.log());
        }
    }
}

pub fn spp(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spp")).args(args).env_remove("SPP_API").output().expect("spp runs")
}

/// Where `.ci/setup --tests` puts the virtual environment.
pub fn venv() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("neutron")
}
