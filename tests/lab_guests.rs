//! Two Linux guests under QEMU ping each other through one node: guest, vhost-user, node, tap, bridge, tap, node,
//! vhost-user, guest. QEMU listens on the vhost-user sockets, as OpenStack has it, and the taps are joined by a bridge
//! in a network namespace of the test's own. Then the node is killed, then a guest.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::machine::{Builder, Machine};
use lab::netns::NetNs;
use lab::node::{Node, vf};
use lab::{Lab, skipped, wait_for};
use std::path::Path;
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

    let start = || Node::start(dir, &[vf(0, "tap:tapa", 1), vf(1, "tap:tapb", 1)], Some(&netns));
    let mut node = start();
    // QEMU waits for its back end before it starts the guest, so both boot side by side against a running node.
    let mut a = guest(&lab, dir, 0);
    let mut b = guest(&lab, dir, 1);
    for (number, guest) in [&mut a, &mut b].into_iter().enumerate() {
        guest.wait_up();
        configure(guest, number);
        node.wait_running(number);
    }

    plug_both(&node, None);
    a.wait_sh("the first ping", PATIENCE, PING_B);
    (0..2).for_each(|vhost| node.unplug(vhost));
    wait_for_silence(&mut a, "after unplug");
    plug_both(&node, Some(100));
    a.wait_sh("ping over a VLAN", PATIENCE, PING_B);

    node.kill();
    wait_for_silence(&mut a, "without a node");
    node = start();
    node.wait_running(0);
    node.wait_running(1);
    plug_both(&node, None);
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

fn plug_both(node: &Node, vlan: Option<u16>) {
    for (vhost, mac) in MACS.into_iter().enumerate() {
        node.plug(vhost, mac, vlan);
    }
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
