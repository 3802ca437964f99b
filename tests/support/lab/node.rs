//! `spp run --config` as a process, and the command line to talk to it.

use super::netns::NetNs;
use super::process::Daemon;
use super::status::vhost_state;
use super::{spp_binary, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(180);

/// A running node.
pub struct Node {
    process: Daemon,
    api: String,
}

/// One NIC of a node's configuration. Its cores come behind those of `number` others.
pub fn vf(number: usize, nic: &str, n_vhosts: usize) -> Value {
    let n_cores = 3 + 2 * n_vhosts;
    let mask = ((1_u128 << n_cores) - 1) << (number * n_cores);
    json!({"num_vhost": n_vhosts, "pci_address": nic, "physical_network": format!("phys{number}"),
        "core_mask": format!("{mask:#x}")})
}

impl Node {
    /// Starts it in `dir`, where its sockets, log and state are too, and waits for its API. In a namespace, or outside.
    ///
    /// # Panics
    /// If it ends or does not answer.
    pub fn start(dir: &Path, vfs: &[Value], netns: Option<&NetNs>) -> Node {
        let path = |name: &str| dir.join(name).display().to_string();
        let (config, api) = (path("node.json"), format!("unix:{}", path("api.sock")));
        std::fs::write(&config, json!(vfs).to_string()).expect("the scratch directory is ours");
        let (vhosts, state) = (path(""), path("state"));
        let args = ["run", "--fold-cores", "--config", &config, "--vhost-dir", &vhosts];
        let args = args.into_iter().chain(["--state-dir", &state, "--api", &api]);
        let args: Vec<String> = args.map(String::from).collect();
        let log = dir.join("spp.log");
        let process = match netns {
            Some(netns) => netns.start("spp", spp_binary(), &args, &log),
            None => Daemon::start("spp", spp_binary(), &args, &log),
        };
        let mut node = Node { process: process.expect("spp starts"), api };
        wait_for("the node's API", PATIENCE, || {
            assert!(node.process.ended().is_none(), "{}", node.process.log());
            node.spp(&["status"]).map(drop)
        });
        node
    }

    /// Runs a subcommand against this node: what it says, or why it failed.
    pub fn spp(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new(spp_binary()).args(args).args(["--api", &self.api]).output();
        let output = output.map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// `spp status --json`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.spp(&["status", "--json"]).expect("the node answers")).expect("JSON")
    }

    /// What it says of one vhost port.
    pub fn vhost(&self, vhost: usize) -> Value {
        let status = self.status();
        let vfs = status["vfs"].as_array().expect("NICs");
        let mut vhosts = vfs.iter().flat_map(|vf| vf["vhosts"].as_array().expect("ports"));
        vhosts.find(|port| port["id"] == vhost).expect("the port is configured").clone()
    }

    /// Waits until frames can pass a vhost port.
    pub fn wait_running(&self, vhost: usize) {
        self.wait_state(vhost, "running");
    }

    /// Waits for a vhost port to be in this state.
    pub fn wait_state(&self, vhost: usize, state: &str) {
        wait_for(&format!("vhost:{vhost} to be {state}"), PATIENCE, || {
            match vhost_state(&self.status(), vhost as u32) {
                Some(now) if now == state => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// Plugs a vhost port.
    pub fn plug(&self, vhost: usize, mac: &str, vlan: Option<u16>) {
        let (vhost, vlan) = (vhost.to_string(), vlan.map(|id| id.to_string()));
        let mut args = vec!["plug", "--vhost", &vhost, "--mac", mac];
        args.extend(vlan.iter().flat_map(|id| ["--vlan", id]));
        self.spp(&args).expect("plug");
    }

    /// Unplugs it.
    pub fn unplug(&self, vhost: usize) {
        self.spp(&["unplug", "--vhost", &vhost.to_string()]).expect("unplug");
    }

    /// Asks it to end; when it has, all it wrote.
    ///
    /// # Panics
    /// If it does not end, or badly.
    pub fn stop(mut self) -> String {
        let asked = Command::new("kill").arg(self.process.pid().to_string()).status();
        assert!(asked.is_ok_and(|status| status.success()), "the node lives");
        let status = wait_for("the node to end", PATIENCE, || self.process.ended().ok_or("it runs".into()));
        assert!(status.success(), "{status}: {}", self.process.log());
        self.process.log()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}
