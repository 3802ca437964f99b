//! Two Linux guests under QEMU with the offloads Linux uses by itself: one is a VM, the other plays the network behind
//! `vhost-user:`. Ping, TCP in bulk both ways over IPv4 and IPv6, UDP; flat and on a VLAN whose tag the second guest puts
//! on itself. What arrives is compared byte for byte, and no kernel counts a bad checksum. No guest ever
//! runs `ethtool`. [`ROWS`] says which pairs of drivers are tried.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::machine::{Builder, Machine};
use lab::process::Daemon;
use lab::status::vhost_state;
use lab::{Lab, skipped, spp_binary, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(180);
const MAC: &str = "fa:16:3e:00:00:0a";
const MAC_OF_WIRE: &str = "fa:16:3e:00:00:0b";
const BULK_MIB: u64 = 3;

/// One pair of guests: what is added to `-device virtio-net-pci` of each.
struct Row {
    name: &'static str,
    vm: &'static str,
    wire: &'static str,
    /// Both take long frames: nothing is to be cut up on the way.
    passes_through: bool,
}

const NO_OFFLOADS: &str = ",csum=off,host_tso4=off,host_tso6=off,host_ecn=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off";

const ROWS: [Row; 3] = [
    Row { name: "offloads on both sides", vm: "", wire: "", passes_through: true },
    Row { name: "no offloads on the wire's side", vm: "", wire: NO_OFFLOADS, passes_through: false },
    Row { name: "packed rings", vm: ",packed=on", wire: ",packed=on", passes_through: true },
];

#[test]
fn linux_guests_pass_bulk_tcp_and_udp_with_right_checksums_with_and_without_offloads() {
    let name = "linux_guests_pass_bulk_tcp_and_udp_with_right_checksums_with_and_without_offloads";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    for (number, row) in ROWS.iter().enumerate() {
        println!("--- {}", row.name);
        let dir = tempfile::tempdir().expect("scratch space");
        let mut pair = Pair::start(&lab, dir.path(), row);
        pair.flat();
        pair.vlan(100 + number);
        pair.check_counters(row);
    }
}

/// A node between two guests.
struct Pair {
    node: Node,
    vm: Machine,
    wire: Machine,
}

impl Pair {
    fn start(lab: &Lab, dir: &Path, row: &Row) -> Pair {
        let node = Node::start(dir);
        let chardev = |file: &str, how: &str| format!("socket,id=c0,path={},{how}", dir.join(file).display());
        let guest = |name: &str, chardev: String, mac: &str, options: &str| {
            Builder::new(lab, name).module("virtio_net").module("8021q").qemu_args([
                "-chardev",
                &chardev,
                "-netdev",
                "vhost-user,id=n0,chardev=c0",
                "-device",
                &format!("virtio-net-pci,netdev=n0,mac={mac},romfile={options}"),
            ])
        };
        let mut vm = guest("vm", chardev("sock0", "server=on,wait=off"), MAC, row.vm).start(dir);
        let mut wire = guest("peer", chardev("wire", "reconnect-ms=500"), MAC_OF_WIRE, row.wire).start(dir);
        vm.wait_up();
        wire.wait_up();
        for (guest, number) in [(&mut vm, 1), (&mut wire, 2)] {
            guest.sh(&format!(
                "ip link set eth0 up
                 ip addr add 10.77.0.{number}/24 dev eth0
                 ip -6 addr add fd00::{number}/64 dev eth0
                 dd if=/dev/urandom of=/run/data bs=1M count={BULK_MIB} 2>/dev/null"
            ));
        }
        node.wait_running();
        Pair { node, vm, wire }
    }

    fn flat(&mut self) {
        self.node.spp(&["plug", "--vhost", "0", "--mac", MAC]).expect("plug");
        self.traffic("10.77.0.1", "10.77.0.2");
        self.vm.wait_sh("IPv6", PATIENCE, "ping6 -c 1 -W 2 fd00::2");
        bulk(&mut self.vm, &mut self.wire, "fd00::2");
        self.node.spp(&["unplug", "--vhost", "0"]).expect("unplug");
    }

    /// The VM knows nothing of the VLAN; its peer tags what it sends, long frames included.
    fn vlan(&mut self, id: usize) {
        self.wire.sh(&format!(
            "ip addr del 10.77.0.2/24 dev eth0
             ip link add link eth0 name vlan type vlan id {id}
             ip addr add 10.77.0.2/24 dev vlan
             ip link set vlan up"
        ));
        self.node.spp(&["plug", "--vhost", "0", "--mac", MAC, "--vlan", &id.to_string()]).expect("plug");
        self.traffic("10.77.0.1", "10.77.0.2");
    }

    fn traffic(&mut self, vm: &str, wire: &str) {
        self.vm.wait_sh("ping", PATIENCE, &format!("ping -c 2 -W 2 {wire}"));
        bulk(&mut self.vm, &mut self.wire, wire);
        bulk(&mut self.wire, &mut self.vm, vm);
        probe(&mut self.vm, &mut self.wire, wire);
        probe(&mut self.wire, &mut self.vm, vm);
    }

    fn check_counters(&mut self, row: &Row) {
        for guest in [&mut self.vm, &mut self.wire] {
            let snmp = guest.sh("cat /proc/net/snmp /proc/net/snmp6");
            assert_eq!(counter(&snmp, "Tcp", "InCsumErrors"), 0, "{}: {snmp}", row.name);
            assert_eq!(counter(&snmp, "Udp", "InCsumErrors"), 0, "{}: {snmp}", row.name);
        }
        let status = self.node.status();
        let text = serde_json::to_string_pretty(&status).expect("it came as JSON");
        assert!(!text.contains("bad_offload"), "{}: {text}", row.name);
        let vf = &status["vfs"][0];
        let from_vm = &vf["vhosts"][0]["from_guest"];
        let (packets, bytes) = (from_vm["packets"].as_u64(), from_vm["bytes"].as_u64());
        let (Some(packets), Some(bytes)) = (packets, bytes) else { panic!("no counters: {text}") };
        // Acknowledgements are in there too: without long frames the mean could not come near this.
        assert!(bytes / packets > 1514, "{}: the VM sent no long frames: {text}", row.name);
        let sum = |key: &str| -> u64 {
            let components = vf["components"].as_array().expect("components");
            components.iter().map(|component| component[key].as_u64().unwrap_or(0)).sum()
        };
        if row.passes_through {
            assert_eq!((sum("segmented"), sum("checksummed")), (0, 0), "{}: {text}", row.name);
        } else {
            assert!(sum("segmented") > 0 && sum("checksummed") > 0, "{}: {text}", row.name);
        }
    }
}

/// Sends a file over TCP; it arrives as it was.
fn bulk(from: &mut Machine, to: &mut Machine, address: &str) {
    // The listener's input stays open, or it would hang up at once.
    to.sh(
        "rm -f /run/done; (sleep 600 | nc -l -p 5001 >/run/got; touch /run/done) >/dev/null 2>&1 & sleep 0.2",
    );
    let sent =
        from.wait_sh("TCP in bulk", PATIENCE, &format!("nc {address} 5001 </run/data && md5sum </run/data"));
    to.wait_sh("the end of the file", PATIENCE, "killall sleep; [ -e /run/done ]");
    assert_eq!(to.sh("md5sum </run/got"), sent, "to {address}");
}

/// Datagrams to a closed port: only one whose checksum is right is answered.
fn probe(from: &mut Machine, to: &mut Machine, address: &str) {
    let no_ports = |to: &mut Machine| counter(&to.sh("cat /proc/net/snmp"), "Udp", "NoPorts");
    let before = no_ports(to);
    for len in [46, 47, 1400] {
        from.sh(&format!("traceroute -n -m 1 -q 1 -w 5 {address} {len}"));
    }
    wait_for("three datagrams", PATIENCE, || match no_ports(to) - before {
        3.. => Ok(()),
        n => Err(format!("{n} came")),
    });
}

/// A counter of `/proc/net/snmp`: a line of names, then one of numbers.
fn counter(snmp: &str, protocol: &str, name: &str) -> u64 {
    let prefix = format!("{protocol}: ");
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix(&prefix));
    let (names, numbers) = (lines.next().expect("names"), lines.next().expect("numbers"));
    let index = names.split(' ').position(|n| n == name).expect("the kernel counts it");
    numbers.split(' ').nth(index).expect("as many numbers as names").parse().expect("a number")
}

/// `spp run --config` with the second guest as its NIC.
struct Node {
    process: Daemon,
    api: String,
}

impl Node {
    fn start(dir: &Path) -> Node {
        let config = dir.join("node.json");
        let vf = json!([{"num_vhost": 1, "pci_address": format!("vhost-user:{}", dir.join("wire").display()),
            "physical_network": "phys1", "core_mask": "0x1f"}]);
        std::fs::write(&config, vf.to_string()).expect("the scratch directory is ours");
        let api = format!("unix:{}", dir.join("api.sock").display());
        let (config, vhosts) = (config.display().to_string(), dir.display().to_string());
        let args = ["run", "--config", &config, "--vhost-dir", &vhosts, "--fold-cores", "--api", &api];
        let args = args.map(String::from);
        let process = Daemon::start("spp", spp_binary(), &args, &dir.join("spp.log")).expect("spp starts");
        let mut node = Node { process, api };
        wait_for("the node's API", PATIENCE, || {
            assert!(node.process.ended().is_none(), "{}", node.process.log());
            node.spp(&["status"]).map(drop)
        });
        node
    }

    fn spp(&self, args: &[&str]) -> Result<String, String> {
        let command = Command::new(spp_binary()).args(args).args(["--api", &self.api]).output();
        let output = command.map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.spp(&["status", "--json"]).expect("status")).expect("JSON")
    }

    fn wait_running(&self) {
        wait_for("vhost:0 to run", PATIENCE, || match vhost_state(&self.status(), 0) {
            Some("running") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}
