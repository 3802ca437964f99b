//! The 82599 model judged by drivers that are not ours: served over vfio-user to QEMU, the Linux kernel's ixgbe and DPDK's
//! drive it in the guest, once as a backplane card (8086:10f7) and once as one with an SFP+ module (8086:10fb). Then
//! the whole `spp` drives both through the same guest's VFIO.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::echo::{Echo, every_frame_returns_once};
use lab::frame::{Frame, Mac};
use lab::inside::{
    assert_driven, exchange_counted, nic_listed, nic_stats, plug_echoes, start_node, start_vms, stop_node,
    wait_nic_link,
};
use lab::machine::{Builder, Machine};
use lab::node;
use lab::process::Daemon;
use lab::testpmd::{Testpmd, reserve_huge_pages};
use lab::wire::Wire;
use lab::{Lab, skipped, spp_binary, wait_for};
use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const BACKPLANE: &str = "0000:01:00.0";
const SFP: &str = "0000:02:00.0";
const SECONDS_20: Duration = Duration::from_secs(20);

/// The lab with QEMU 11 instead of the machine's own.
fn lab() -> Result<Lab, String> {
    let mut lab = Lab::with(&["dpdk-testpmd", "ethtool"])?;
    let kernel = lab.vmlinuz.parent().expect("the kernel is in a directory");
    let dir = kernel.parent().expect("the lab is a directory");
    if !dir.join("qemu11/complete").exists() {
        return Err(format!("no QEMU 11 in {}, run .ci/setup --tests", dir.display()));
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

#[test]
fn other_drivers_and_the_whole_node_pass_traffic_over_the_82599_model() {
    let name = "other_drivers_and_the_whole_node_pass_traffic_over_the_82599_model";
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
        .program("bin/spp", spp_binary())
        .qemu_args(a.qemu_args(1))
        .qemu_args(b.qemu_args(2))
        .boot(dir.path());
    linux(&mut machine, &a, &b);
    bind_to_vfio(&mut machine);
    let wires = [a.wire(), b.wire()];
    dpdk(&mut machine, &wires);
    spp(&mut machine, [&a, &b], &wires);
    a.assert_no_violation();
    b.assert_no_violation();
    let faults =
        machine.run("dmesg | grep -i -e 'DMAR:.*fault' -e 'DMA Read' -e 'DMA Write' -e 'BUG:' -e ' Oops:'");
    assert_eq!(faults.text, "", "the kernel saw stray DMA or worse");
}

/// The kernel's ixgbe on both cards, joined by their wire.
fn linux(machine: &mut Machine, a: &Card, b: &Card) {
    for (namespace, address, ip) in [("a", BACKPLANE, 1), ("b", SFP, 2)] {
        machine.sh(&format!(
            "ip netns add {namespace}
             # No neighbour discovery of its own before the other side is up.
             ip netns exec {namespace} sh -c 'echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6'
             ip netns exec {namespace} sh -c 'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6'
             nic=$(ls /sys/bus/pci/devices/{address}/net)
             ip link set $nic netns {namespace} name nic
             ip netns exec {namespace} ip addr add 10.0.0.{ip}/24 dev nic
             ip netns exec {namespace} ip link set nic mtu 9000 up"
        ));
    }
    for namespace in ["a", "b"] {
        wait_link(machine, namespace, "yes");
        let speed = machine.sh(&format!("ip netns exec {namespace} ethtool nic"));
        assert!(speed.contains("Speed: 10000Mb/s"), "{speed}");
    }
    let log = machine.sh("dmesg | grep ixgbe");
    assert!(log.contains("SFP+: 5"), "an SR module in the first port's cage:\n{log}");

    // Both ways, small and over several receive buffers.
    for (namespace, to) in [("a", 2), ("b", 1)] {
        for size in [56, 8900] {
            let script = format!("ip netns exec {namespace} busybox ping -c 3 -w 60 -s {size} 10.0.0.{to}");
            assert!(machine.sh(&script).contains("3 packets received"));
        }
    }
    // Bulk: what leaves is segmented and check-summed by one card, what arrives is verified by the other.
    machine.sh(
        "head -c 3000000 /dev/urandom >/run/bulk
         # Its input stays open: at its end nc would close the connection under the sender.
         mkfifo /run/open
         ip netns exec b busybox nc -l -p 5000 <>/run/open >/run/arrived & listener=$!
         for try in $(seq 50); do ip netns exec b busybox netstat -ltn | grep -q :5000 && break; sleep 0.1; done
         ip netns exec a busybox nc 10.0.0.2 5000 </run/bulk
         wait $listener
         cmp /run/bulk /run/arrived",
    );
    // Once nothing moves: what one card's registers say it sent is what the other's say it received. The driver reads
    // them every two seconds.
    let (of_a, of_b) = wait_for("the counters", Duration::from_secs(60), || {
        let (of_a, of_b) = (counters(machine, "a"), counters(machine, "b"));
        let pairs = [(&of_a, &of_b), (&of_b, &of_a)];
        let agree = pairs.iter().all(|(sent, received)| {
            sent["tx_pkts_nic"] == received["rx_pkts_nic"]
                && sent["tx_bytes_nic"] == received["rx_bytes_nic"]
                && received["rx_packets"] == received["rx_pkts_nic"]
                && sent["tx_bytes_nic"] >= sent["tx_bytes"]
        });
        if agree { Ok((of_a, of_b)) } else { Err(format!("{of_a:?} {of_b:?}")) }
    });
    assert!(of_a["tx_bytes_nic"] > 3_000_000, "{of_a:?}");
    for of in [&of_a, &of_b] {
        assert_eq!((of["rx_csum_offload_errors"], of["rx_errors"]), (0, 0), "{of:?}");
    }

    // The cable: the interrupt brings the news.
    for (command, link) in
        [("cable out", "no"), ("cable in", "yes"), ("module none", "no"), ("module sr", "yes")]
    {
        b.tell(command);
        wait_link(machine, "b", link);
    }
    a.assert_no_violation();
    b.assert_no_violation();
}

fn wait_link(machine: &mut Machine, namespace: &str, link: &str) {
    let script = format!("ip netns exec {namespace} ethtool nic | grep 'Link detected: {link}'");
    machine.wait_sh("the link", Duration::from_secs(60), &script);
}

/// What `ethtool -S` says.
fn counters(machine: &mut Machine, namespace: &str) -> HashMap<String, u64> {
    let text = machine.sh(&format!("ip netns exec {namespace} ethtool -S nic"));
    let pairs = text.lines().filter_map(|line| line.trim().split_once(": "));
    pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

/// Takes both cards away from the kernel's driver and gives them to vfio-pci.
fn bind_to_vfio(machine: &mut Machine) {
    for address in [BACKPLANE, SFP] {
        machine.sh(&format!(
            "cd /sys/bus/pci/devices/{address}
             echo {address} >driver/unbind
             echo vfio-pci >driver_override
             echo {address} >/sys/bus/pci/drivers_probe
             [ $(basename $(readlink driver)) = vfio-pci ]
             [ $(ls iommu_group/devices | wc -l) = 1 ]"
        ));
    }
}

/// DPDK's ixgbe between the two cards, whose wires now lead to the test.
fn dpdk(machine: &mut Machine, [at_a, at_b]: &[Wire; 2]) {
    reserve_huge_pages(machine, 192);
    let testpmd = Testpmd::start(
        machine,
        "nic",
        "-a 01:00.0 -a 02:00.0",
        "--forward-mode=io --auto-start --rxd=256 --txd=256",
    );
    let (far, vm) = (Mac([2, 0, 0, 0, 0, 0xfe]), Mac([2, 0, 0, 0, 0, 1]));
    let first = Frame::numbered(vm, far, None, 0, 46);
    let passed = at_a_to_b(at_a, at_b, &first);
    passed.unwrap_or_else(|error| panic!("{error}\n{}", testpmd.log(machine)));
    at_b.drain(Duration::from_secs(1));
    for (from, to) in [(at_a, at_b), (at_b, at_a)] {
        for number in 1..=64 {
            let vlan = (number % 2 == 0).then_some(100);
            let frame = Frame::numbered(vm, far, vlan, number, if number % 3 == 0 { 1400 } else { 46 });
            from.send(&frame).expect("the card listens");
            let got = to.receive(Duration::from_secs(30));
            assert_eq!(got.as_ref(), Some(&frame), "frame {number}");
        }
    }
    testpmd.type_line(machine, "quit");
    machine.wait_sh("testpmd's end", Duration::from_secs(60), "grep -q '^Bye' nic.log");
    machine.sh("rm -f /dev/hugepages/*");
}

/// Sends until the frame comes out at the other side.
fn at_a_to_b(from: &Wire, to: &Wire, frame: &Frame) -> Result<(), String> {
    for _ in 0..240 {
        from.send(frame).map_err(|e| e.to_string())?;
        if to.receive(Duration::from_millis(500)).is_some_and(|seen| seen == *frame) {
            return Ok(());
        }
    }
    Err("no frame comes out".into())
}

/// The static release `spp` with both cards, each with a VM behind it that sends every frame back.
fn spp(machine: &mut Machine, cards: [&Card; 2], wires: &[Wire; 2]) {
    let vfs = [0, 1].map(|n| node::vf(n, &format!("0{}:00.0", n + 1), 1));
    std::fs::write(machine.share().join("node.json"), serde_json::json!(vfs).to_string())
        .expect("it is ours");
    start_node(machine, "--config node.json");
    for (n, address) in [BACKPLANE, SFP].iter().enumerate() {
        let port = format!("phy:{n}");
        assert_driven(machine, address, &port, "ixgbe");
        wait_nic_link(machine, &port, "up, 10000 Mbit/s");
    }
    let vms = start_vms(machine, 2);
    let echoes = plug_echoes(machine, wires);
    for payload_len_bytes in [46, 1500] {
        every_frame_returns_once(&echoes, payload_len_bytes);
    }
    let names = &["GPRC", "GPTC", "QPRC", "QPTC"];
    exchange_counted(machine, &echoes, &["phy:0", "phy:1"].map(|port| (port, &names[..], 1)));

    for (n, command, link) in [
        (0, "cable out", "down: no carrier"),
        (0, "cable in", "up, 10000 Mbit/s"),
        (1, "module none", "down: no SFP+ module"),
        (1, "module sr", "up, 10000 Mbit/s"),
    ] {
        cards[n].tell(command);
        wait_nic_link(machine, &format!("phy:{n}"), link);
    }
    every_frame_returns_once(&echoes, 46);

    hung_card_is_started_anew(machine, cards[1], &echoes);
    stop_node(machine);
    vms.type_line(machine, "quit");
    assert!(nic_listed(machine, SFP)["port"].is_null(), "no node has it any more");
}

/// One card stops sending; the watchdog has it started anew, and it sends again. The other one never notices.
fn hung_card_is_started_anew(machine: &mut Machine, card: &Card, echoes: &[Echo<'_>; 2]) {
    let restarts =
        |machine: &mut Machine, port| nic_stats(machine, port)["restarts"].as_u64().expect("a number");
    let before = ["phy:0", "phy:1"].map(|port| restarts(machine, port));
    card.tell("fault tx-hang");
    wait_for("the watchdog", Duration::from_secs(60), || {
        something_to_send(&echoes[1]);
        if restarts(machine, "phy:1") > before[1] { Ok(()) } else { Err("not yet".to_owned()) }
    });
    card.tell("fault none");
    every_frame_returns_once(echoes, 46);
    assert_eq!(restarts(machine, "phy:0"), before[0]);
}

/// Something for the card to send.
fn something_to_send(echo: &Echo<'_>) {
    let frame = Frame::numbered(echo.mac, lab::echo::FAR, echo.vlan, 0, 46);
    echo.wire.send(&frame).expect("the card listens");
}
