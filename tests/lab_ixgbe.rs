//! The 82599 model judged by drivers that are not ours: served over vfio-user to QEMU, the Linux kernel's ixgbe and DPDK's
//! drive it in the guest, once as a backplane card (8086:10f7) and once as one with an SFP+ module (8086:10fb).

#[path = "support/lab/mod.rs"]
mod lab;

use lab::frame::{Frame, Mac};
use lab::machine::{Builder, Machine};
use lab::process::Daemon;
use lab::testpmd::{Testpmd, reserve_huge_pages};
use lab::wire::Wire;
use lab::{Lab, skipped, wait_for};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const BACKPLANE: &str = "0000:01:00.0";
const SFP: &str = "0000:02:00.0";
const SECONDS_20: Duration = Duration::from_secs(20);

/// The lab with QEMU 11 instead of the machine's own.
fn lab() -> Result<Lab, String> {
    let mut lab = Lab::find()?;
    let kernel = lab.vmlinuz.parent().expect("the kernel is in a directory");
    let dir = kernel.parent().expect("the lab is a directory");
    if !dir.join("qemu11/complete").exists() {
        return Err(format!("no QEMU 11 in {}, run .ci/setup --tests", dir.display()));
    }
    for program in ["dpdk-testpmd", "ethtool"] {
        lab::program(program).ok_or_else(|| format!("no {program} here, run .ci/setup --tests"))?;
    }
    lab.qemu = dir.join("qemu11.sh");
    Ok(lab)
}

/// Builds the device server and names it.
fn server_binary() -> PathBuf {
    let status = Command::new(env!("CARGO"))
        .args(["build", "-p", "nic-server", "--quiet"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the device server does not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join(target);
    let places = [
        "x86_64-unknown-linux-gnu/debug/nic_server",
        "debug/nic_server",
        "debug/nic-server",
        "x86_64-unknown-linux-gnu/debug/nic-server",
    ];
    places.iter().map(|place| target.join(place)).find(|file| file.is_file()).expect("cargo built it")
}

/// One card in a process of its own.
struct Card {
    process: Daemon,
    dir: PathBuf,
    name: &'static str,
    control: UnixDatagram,
}

impl Card {
    /// Starts it; its wire leads to the card named `peer`.
    fn start(server: &Path, dir: &Path, name: &'static str, device: &str, mac: &str, peer: &str) -> Card {
        let path = |suffix: &str| dir.join(format!("{name}-{suffix}")).display().to_string();
        let args = [
            ("--socket", path("vfio")),
            ("--device", device.to_owned()),
            ("--mac", mac.to_owned()),
            ("--wire-here", path("nic")),
            ("--wire-there", dir.join(format!("{peer}-nic")).display().to_string()),
            ("--control", path("control")),
        ];
        let args: Vec<String> =
            args.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect();
        let log = dir.join(format!("{name}.log"));
        let process = Daemon::start(name, server, &args, &log).expect("the device server starts");
        let control = UnixDatagram::unbound().expect("a socket");
        let card = Card { process, dir: dir.to_owned(), name, control };
        wait_for("the device server", SECONDS_20, || card.said("serving"));
        card
    }

    fn said(&self, word: &str) -> Result<String, String> {
        let log = self.process.log();
        let line = log.lines().rev().find(|line| line.starts_with(word));
        line.map(str::to_owned).ok_or(log.clone())
    }

    /// Gives a command and returns the answer.
    fn tell(&self, command: &str) -> String {
        let before = self.process.log().lines().count();
        let to = self.dir.join(format!("{}-control", self.name));
        self.control.send_to(command.as_bytes(), to).expect("the card listens");
        wait_for(command, SECONDS_20, || {
            let log = self.process.log();
            log.lines().nth(before).map(str::to_owned).ok_or_else(|| "no answer".to_owned())
        })
    }

    /// Plugs the wire into the test's end.
    fn wire(&self) -> Wire {
        let wire = Wire::new(&self.dir, self.name).expect("a socket");
        self.tell(&format!("wire {}", self.dir.join(format!("{}-far", self.name)).display()));
        wire
    }

    fn assert_no_violation(&self) {
        let state = self.tell("state");
        assert!(state.ends_with("violations []"), "{}: {state}", self.name);
    }

    fn qemu_args(&self, slot: u32) -> [String; 4] {
        let socket = self.dir.join(format!("{}-vfio", self.name));
        let device = format!(
            r#"{{"driver":"vfio-user-pci","bus":"rp{slot}","socket":{{"type":"unix","path":"{}"}}}}"#,
            socket.display()
        );
        let port = format!("pcie-root-port,id=rp{slot},chassis={slot},slot={slot}");
        ["-device".to_owned(), port, "-device".to_owned(), device]
    }
}

/// The number behind `name:` in what `ethtool -S` says of an interface.
fn counter(machine: &mut Machine, namespace: &str, name: &str) -> u64 {
    let text = machine.sh(&format!("ip netns exec {namespace} ethtool -S nic"));
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

#[test]
fn other_drivers_pass_traffic_over_the_82599_model() {
    let name = "other_drivers_pass_traffic_over_the_82599_model";
    let lab = match lab() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let server = server_binary();
    let a = Card::start(&server, dir.path(), "a", "10f7", "02:00:00:82:59:01", "b");
    let b = Card::start(&server, dir.path(), "b", "10fb", "02:00:00:82:59:02", "a");
    let mut machine = Builder::new(&lab, "ixgbe")
        .memory_mib(1536)
        .cpus(2)
        .viommu()
        .host_root()
        .module("ixgbe")
        .qemu_args(a.qemu_args(1))
        .qemu_args(b.qemu_args(2))
        .boot(dir.path());
    linux(&mut machine, &a, &b);
}

/// The kernel's ixgbe on both cards, joined by their wire.
fn linux(machine: &mut Machine, a: &Card, b: &Card) {
    for (namespace, address, ip) in [("a", BACKPLANE, 1), ("b", SFP, 2)] {
        println!(
            "{}",
            machine.run("dmesg | grep -i ixgbe; ip link; lspci -n 2>/dev/null; ls /sys/bus/pci/devices").text
        );
        machine.sh(&format!(
            "ip netns add {namespace}
             nic=$(ls /sys/bus/pci/devices/{address}/net)
             ip link set $nic netns {namespace} name nic
             ip netns exec {namespace} ip addr add 10.0.0.{ip}/24 dev nic
             ip netns exec {namespace} ip link set nic up"
        ));
    }
    for namespace in ["a", "b"] {
        machine.wait_sh(
            "carrier",
            Duration::from_secs(60),
            &format!(
                "ip netns exec {namespace} ethtool nic | tee /run/lab/{namespace}.ethtool
                      ip netns exec {namespace} ip link show dev nic | grep -q LOWER_UP"
            ),
        );
    }
    println!("{}", machine.sh("cat a.ethtool b.ethtool; dmesg | grep ixgbe"));
    println!(
        "{}",
        machine
            .run("ip netns exec a busybox ping -c 5 -w 60 10.0.0.2; ip netns exec b ping -c 5 10.0.0.1")
            .text
    );
    println!("{}", machine.run("ip netns exec a ethtool -S nic | grep -v ': 0$'; ip netns exec b ethtool -S nic | grep -v ': 0$'").text);
    println!("{} {}", a.tell("state"), b.tell("state"));
}
