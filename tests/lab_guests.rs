//! Two Linux guests under QEMU ping each other through one node: guest, vhost-user, node, tap, bridge, tap, node,
//! vhost-user, guest. QEMU listens on the vhost-user sockets, as OpenStack has it, and the taps are joined by a bridge
//! in a network namespace of the test's own. Then the node is killed, then a guest.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::machine::{Builder, Machine};
use lab::netns::NetNs;
use lab::process::Daemon;
use lab::status::vhost_state;
use lab::{Lab, skipped, spp_binary, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(180);
const MACS: [&str; 2] = ["fa:16:3e:00:00:0a", "fa:16:3e:00:00:0b"];
const PING_B: &str = "ping -c 3 -W 2 10.77.0.2";

#[test]
fn guests_ping_through_the_node_and_survive_kills_of_node_and_guest() {
    let name = "guests_ping_through_the_node_and_survive_kills_of_node_and_guest";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let dir = dir.path();
    let netns = match joined_taps(dir) {
        Ok(netns) => netns,
        Err(reason) => return skipped(name, &reason),
    };

    let mut node = Node::start(&netns, dir);
    // QEMU waits for its back end before it starts the guest, so both boot side by side against a running node.
    let mut a = guest(&lab, dir, 0);
    let mut b = guest(&lab, dir, 1);
    for (number, guest) in [&mut a, &mut b].into_iter().enumerate() {
        guest.wait_up();
        configure(guest, number);
        node.wait_running(number);
    }

    node.plug_both(None);
    a.wait_sh("the first ping", PATIENCE, PING_B);
    node.unplug_both();
    wait_for_silence(&mut a, "after unplug");
    node.plug_both(Some(100));
    a.wait_sh("ping over a VLAN", PATIENCE, PING_B);

    node.kill();
    wait_for_silence(&mut a, "without a node");
    node = Node::start(&netns, dir);
    node.wait_running(0);
    node.wait_running(1);
    node.plug_both(None);
    a.wait_sh("ping after the node's restart", PATIENCE, PING_B);

    b.kill();
    wait_for_silence(&mut a, "without its peer");
    b = guest(&lab, dir, 1);
    b.wait_up();
    configure(&mut b, 1);
    node.wait_running(1);
    a.wait_sh("ping after the guest's restart", PATIENCE, PING_B);
    b.wait_sh("ping the other way", PATIENCE, "ping -c 3 -W 2 10.77.0.1");
}

/// Two taps under one bridge. The error says why this machine cannot have them.
fn joined_taps(dir: &Path) -> Result<NetNs, String> {
    let netns = NetNs::new(dir)?;
    let output = netns
        .sh("ip link add lab0 type bridge
             ip link set lab0 up
             for tap in tapa tapb; do
                 ip tuntap add $tap mode tap
                 ip link set $tap master lab0 up
             done")
        .map_err(|error| format!("nsenter does not start: {error}"))?;
    match output.status.success() {
        true => Ok(netns),
        false => Err(format!("no taps and bridge here: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn guest(lab: &Lab, dir: &Path, number: usize) -> Machine {
    let socket = dir.join(format!("sock{number}"));
    Builder::new(lab, &format!("guest{number}"))
        .module("virtio_net")
        .qemu_args([
            "-chardev",
            &format!("socket,id=c0,path={},server=on,wait=off", socket.display()),
            "-netdev",
            "vhost-user,id=n0,chardev=c0",
            "-device",
            &format!("virtio-net-pci,netdev=n0,mac={},romfile=", MACS[number]),
        ])
        .start(dir)
}

fn configure(guest: &mut Machine, number: usize) {
    guest.sh(&format!("ip addr add 10.77.0.{}/24 dev eth0; ip link set eth0 up", number + 1));
}

/// Three pings get no answer at all: what went through the node before does not find another way.
fn wait_for_silence(guest: &mut Machine, when: &str) {
    wait_for(&format!("silence {when}"), PATIENCE, || match guest.run(PING_B).status {
        0 => Err("ping is answered".to_owned()),
        _ => Ok(()),
    });
}

/// `spp run --config` in the namespace, and the command line to talk to it.
struct Node {
    process: Daemon,
    api: String,
}

impl Node {
    fn start(netns: &NetNs, dir: &Path) -> Node {
        let config = dir.join("node.json");
        let vf = |tap: &str, phys: &str, mask: &str| json!({"num_vhost": 1, "pci_address": format!("tap:{tap}"), "physical_network": phys, "core_mask": mask});
        let both = json!([vf("tapa", "phys1", "0x1f"), vf("tapb", "phys2", "0x3e0")]);
        std::fs::write(&config, both.to_string()).expect("the scratch directory is ours");
        let api = format!("unix:{}", dir.join("api.sock").display());
        let args = [
            "run",
            "--config",
            &config.display().to_string(),
            "--vhost-dir",
            &dir.display().to_string(),
            "--fold-cores",
            "--api",
            &api,
        ]
        .map(String::from);
        let process = netns.start("spp", spp_binary(), &args, &dir.join("spp.log")).expect("spp starts");
        let mut node = Node { process, api };
        wait_for("the node's API", PATIENCE, || {
            assert!(node.process.ended().is_none(), "{}", node.process.log());
            node.spp(&["status"]).map(drop)
        });
        node
    }

    /// Runs a subcommand against this node.
    fn spp(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new(spp_binary())
            .args(args)
            .args(["--api", &self.api])
            .output()
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn wait_running(&self, vhost: usize) {
        wait_for(&format!("vhost:{vhost} to run"), PATIENCE, || {
            let status: Value =
                serde_json::from_str(&self.spp(&["status", "--json"])?).map_err(|e| e.to_string())?;
            match vhost_state(&status, vhost as u32) {
                Some("running") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    fn plug_both(&self, vlan: Option<u16>) {
        for (vhost, mac) in MACS.into_iter().enumerate() {
            let vhost = vhost.to_string();
            let vlan = vlan.map(|id| id.to_string());
            let mut args = vec!["plug", "--vhost", &vhost, "--mac", mac];
            if let Some(id) = &vlan {
                args.extend(["--vlan", id]);
            }
            self.spp(&args).expect("plug");
        }
    }

    fn unplug_both(&self) {
        for vhost in ["0", "1"] {
            self.spp(&["unplug", "--vhost", vhost]).expect("unplug");
        }
    }

    fn kill(&mut self) {
        self.process.kill();
    }
}
