//! A Linux guest migrates from one node to another while traffic runs. Both nodes stand on this machine, their wires
//! joined by a bridge. What the guest must not lose is data that its backend alone has written: TCP payload that waits
//! in receive buffers, because the programs it is for are stopped, and is read and checksummed only on the destination.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::machine::{Builder, Machine};
use lab::netns::NetNs;
use lab::node::{Node, vf};
use lab::process::Daemon;
use lab::qmp::Qmp;
use lab::{Lab, skipped, wait_for};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(180);
const MAC: &str = "fa:16:3e:00:00:0c";
const GUEST: &str = "10.77.0.1";
const MEMORY_MIB: u32 = 160;
/// Programs that hold data, and how much each: less than a TCP window that nobody reads from.
const N_HOLDERS: usize = 8;
const HELD_BYTES: usize = 40_000;

/// A shell on port 7000, and holders on ports 7100 and up, stopped before they accept anything.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
ip link set lo up
ip addr add 10.77.0.1/24 dev eth0
ip link set eth0 up
for i in 0 1 2 3 4 5 6 7; do
    nc -l -p $((7100 + i)) >/run/held.$i &
    echo $! >/run/pid.$i
done
sleep 1
for i in 0 1 2 3 4 5 6 7; do kill -STOP $(cat /run/pid.$i); done
echo up
while :; do nc -l -p 7000 -e /bin/sh; done
"#;

#[test]
fn guest_migrates_between_two_nodes_under_traffic_and_loses_nothing() {
    let name = "guest_migrates_between_two_nodes_under_traffic_and_loses_nothing";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let wire = match Wire::new(&lab, dir.path()) {
        Ok(wire) => wire,
        Err(reason) => return skipped(name, &reason),
    };
    let (a, b) = (OnTap::start(&wire, "a"), OnTap::start(&wire, "b"));
    let source = Guest::start(&lab, &a, None);
    wait_for("the guest's shell", PATIENCE, || wire.shell("echo ready").map(drop));
    a.node.wait_running(0);
    let traffic = wire.traffic();

    // Cancelled half-way: the guest goes on where it is, and nothing is logged any more.
    let half = Guest::start(&lab, &b, Some("half"));
    source.migrate(&half, 1 << 20);
    source.wait_for_migration("active", |info| info["ram"]["transferred"].as_u64() > Some(1 << 20));
    assert!(a.features().contains("log_all"), "{}", a.features());
    wire.hold(0..N_HOLDERS / 2);
    source.qmp().run("migrate_cancel", json!({}));
    source.wait_for_migration("cancelled", |_| true);
    drop(half);
    wire.tell("echo here still, after a cancelled migration");
    wait_for("the end of logging", PATIENCE, || match a.features() {
        features if features.contains("log_all") => Err(features),
        _ => Ok(()),
    });

    // And again, to the end. What arrives after the first pass over memory must be sent once more.
    let destination = Guest::start(&lab, &b, Some("whole"));
    source.migrate(&destination, 8 << 20);
    source.wait_for_migration("active", |info| info["ram"]["transferred"].as_u64() > Some(4 << 20));
    wire.hold(N_HOLDERS / 2..N_HOLDERS);
    traffic.stop();
    let before = b.received();
    source.qmp().run("migrate-set-parameters", json!({"max-bandwidth": 1u64 << 30, "downtime-limit": 2000}));
    source.wait_for_migration("completed", |_| true);
    b.node.wait_running(0);

    // Nobody has asked the guest anything: what is seen on B's wire is its announcement.
    wait_for("the guest's announcement on B's wire", PATIENCE, || {
        let seen = wire.is_behind("tapb");
        let sent = b.received() - before;
        if seen && sent > 0 { Ok(()) } else { Err(format!("{sent} frames from the guest, learned: {seen}")) }
    });
    drop(source);
    wire.tell("echo here, on the new node");
    wire.tell("for i in 0 1 2 3 4 5 6 7; do kill -CONT $(cat /run/pid.$i); done");
    for holder in 0..N_HOLDERS {
        let wanted = wire.checksum(&wire.held(holder));
        wait_for("what was held to be read whole", PATIENCE, || {
            let seen = wire.shell(&format!("sha256sum </run/held.{holder}"))?;
            if seen.contains(&wanted) {
                Ok(())
            } else {
                Err(format!("holder {holder}: {seen} is not {wanted}"))
            }
        });
    }
    drop(destination);
}

/// Two taps under one bridge, and this machine's end of it.
struct Wire {
    netns: NetNs,
    dir: PathBuf,
    busybox: PathBuf,
}

impl Wire {
    fn new(lab: &Lab, dir: &Path) -> Result<Wire, String> {
        let netns = NetNs::new(dir)?;
        let wire = Wire { netns, dir: dir.to_owned(), busybox: lab.busybox.clone() };
        wire.run(
            "ip link set lo up
             ip link add lab0 type bridge
             ip addr add 10.77.0.254/24 dev lab0
             ip link set lab0 up
             for tap in tapa tapb; do
                 ip tuntap add $tap mode tap
                 ip link set $tap master lab0 up
             done",
        )
        .map_err(|error| format!("no taps and bridge here: {error}"))?;
        for holder in 0..N_HOLDERS {
            let bytes: Vec<u8> = (0..HELD_BYTES).map(|i| (i * 7 + i / 251 + holder * 31) as u8).collect();
            std::fs::write(wire.held(holder), bytes).map_err(|error| error.to_string())?;
        }
        Ok(wire)
    }

    /// Runs a script at this end; what it wrote.
    fn run(&self, script: &str) -> Result<String, String> {
        let output = self.netns.sh(script).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(text),
            false => Err(format!("{} {text}{}", output.status, String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Runs a command in the guest, over the network.
    fn shell(&self, command: &str) -> Result<String, String> {
        let busybox = self.busybox.display();
        let end = "lab-end-of-output";
        let said = self.run(&format!(
            "printf '%s\\n' '{command}' 'echo {end}' exit | timeout 20 {busybox} nc -w 5 {GUEST} 7000 || true"
        ))?;
        said.strip_suffix(&format!("{end}\n")).map(str::to_owned).ok_or(format!("the guest said {said:?}"))
    }

    /// As [`shell`](Self::shell), until the guest has done it: between two commands nobody listens there for a moment.
    fn tell(&self, command: &str) {
        wait_for(command, PATIENCE, || self.shell(command).map(drop));
    }

    /// The file with what a holder gets.
    fn held(&self, holder: usize) -> PathBuf {
        self.dir.join(format!("held.{holder}"))
    }

    fn checksum(&self, file: &Path) -> String {
        let sum = self
            .run(&format!("{} sha256sum <{}", self.busybox.display(), file.display()))
            .expect("busybox runs");
        sum.split_whitespace().next().expect("a sum").to_owned()
    }

    /// Sends each of these holders its data, and sees that it waits in the guest.
    fn hold(&self, holders: std::ops::Range<usize>) {
        for holder in holders {
            let (file, busybox, port) = (self.held(holder), self.busybox.display(), 7100 + holder);
            // The far end never answers: this one stays until it is told to go, which is when all is there.
            let mut sender = self
                .netns
                .start(
                    "sender",
                    Path::new("sh"),
                    &["-c".into(), format!("exec {busybox} nc {GUEST} {port} <{}", file.display())],
                    &self.dir.join("sender.log"),
                )
                .expect("nc starts");
            wait_for("data to wait in the guest", PATIENCE, || {
                let seen = self.shell(&format!("netstat -tn | grep :{port}"))?;
                let waits = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok());
                // The end of the stream counts as one byte more.
                match seen.lines().filter_map(waits).max() {
                    Some(n) if n >= HELD_BYTES => Ok(()),
                    other => Err(format!("{other:?} bytes in: {seen}")),
                }
            });
            sender.kill();
        }
    }

    /// Frames in both directions until it is stopped.
    fn traffic(&self) -> Traffic {
        let args = ["ping", "-i", "0.02", "-s", "1200", GUEST].map(String::from);
        let log = self.dir.join("ping.log");
        Traffic(self.netns.start("ping", &self.busybox, &args, &log).expect("ping starts"))
    }

    /// Whether the bridge has learned that the guest is behind this tap.
    fn is_behind(&self, tap: &str) -> bool {
        self.run(&format!("bridge fdb show dev {tap}")).is_ok_and(|table| table.contains(MAC))
    }
}

struct Traffic(Daemon);

impl Traffic {
    fn stop(mut self) {
        assert!(self.0.ended().is_none(), "ping ended: {}", self.0.log());
        self.0.kill();
        assert!(self.0.log().contains("bytes from"), "no answer at all: {}", self.0.log());
    }
}

/// One node with one vhost port, on one tap.
struct OnTap {
    node: Node,
    dir: PathBuf,
}

impl OnTap {
    fn start(wire: &Wire, name: &str) -> OnTap {
        let dir = wire.dir.join(name);
        std::fs::create_dir_all(&dir).expect("the scratch directory is ours");
        let node = Node::start(&dir, &[vf(0, &format!("tap:tap{name}"), 1)], Some(&wire.netns));
        node.plug(0, MAC, None);
        OnTap { node, dir }
    }

    /// Names of the negotiated features.
    fn features(&self) -> String {
        self.node.vhost(0)["features"].to_string()
    }

    /// Frames that came from the guest.
    fn received(&self) -> u64 {
        self.node.vhost(0)["from_guest"]["packets"].as_u64().expect("a counter")
    }
}

/// QEMU with the guest in it, or waiting for the guest to come.
struct Guest {
    machine: std::cell::RefCell<Machine>,
    qmp: std::cell::RefCell<Qmp>,
    incoming: PathBuf,
}

impl Guest {
    fn start(lab: &Lab, node: &OnTap, incoming: Option<&str>) -> Guest {
        let socket = node.dir.join("sock0");
        let from = node.dir.join(format!("{}.migration", incoming.unwrap_or("none")));
        let mut args = vec![
            "-chardev".to_owned(),
            format!("socket,id=c0,path={},server=on,wait=off", socket.display()),
            "-netdev".into(),
            "vhost-user,id=n0,chardev=c0".into(),
            "-device".into(),
            format!("virtio-net-pci,netdev=n0,mac={MAC},romfile="),
        ];
        if incoming.is_some() {
            args.extend(["-incoming".into(), format!("unix:{}", from.display())]);
        }
        let machine = Builder::new(lab, incoming.unwrap_or("source"))
            .own_init(INIT)
            .memory_mib(MEMORY_MIB)
            .module("virtio_net")
            .qemu_args(args)
            .start(&node.dir);
        let qmp = machine.qmp();
        Guest { machine: machine.into(), qmp: qmp.into(), incoming: from }
    }

    fn qmp(&self) -> std::cell::RefMut<'_, Qmp> {
        self.qmp.borrow_mut()
    }

    /// Starts to migrate at this many bytes a second.
    fn migrate(&self, to: &Guest, bandwidth: u64) {
        let mut qmp = self.qmp();
        qmp.run("migrate-set-parameters", json!({"max-bandwidth": bandwidth, "downtime-limit": 100}));
        qmp.run("migrate", json!({"uri": format!("unix:{}", to.incoming.display())}));
    }

    fn wait_for_migration(&self, status: &str, enough: impl Fn(&Value) -> bool) {
        wait_for(&format!("migration to be {status}"), PATIENCE, || {
            assert!(self.machine.borrow_mut().ended().is_none(), "QEMU ended");
            let info = self.qmp().run("query-migrate", json!({}));
            assert_ne!(info["status"], "failed", "{info}");
            if info["status"] == status && enough(&info) { Ok(()) } else { Err(info.to_string()) }
        });
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.machine.borrow_mut().kill();
    }
}
