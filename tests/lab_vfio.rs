//! The whole chain on two NICs of different families at once: a Debian kernel with a virtual IOMMU, the static release
//! `spp` on a virtio-net NIC and an igb, both under vfio-pci, a real etcd for the keys, Debian's virtio-user as the VMs behind
//! `/tmp/sock0` to `/tmp/sock2`, and the far ends of both networks played by the test.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::echo::{Echo, FAR, SILENCE, every_frame_returns_once};
use lab::frame::{Frame, Mac};
use lab::inside::{assert_driven, exchange_counted, start_node, start_vms, status, stop_node, wait_running};
use lab::machine::{Builder, Machine};
use lab::status::drops;
use lab::testpmd::{Testpmd, reserve_huge_pages};
use lab::wire::Wire;
use lab::{Lab, skipped, spp_binary, wait_for};
use std::time::Duration;

const VLAN: u16 = 100;
const PATIENCE: Duration = Duration::from_secs(120);

/// A VM as the mechanism driver binds it.
struct Vm {
    port: &'static str,
    network: &'static str,
    vhost: u32,
    mac: Mac,
    vlan: Option<u16>,
}

const FLAT: Vm = Vm {
    port: "11111111-aaaa-4bbb-8ccc-000000000001",
    network: "phys1",
    vhost: 0,
    mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 0x01]),
    vlan: None,
};
const TAGGED: Vm = Vm {
    port: "22222222-aaaa-4bbb-8ccc-000000000002",
    network: "phys1",
    vhost: 1,
    mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 0x02]),
    vlan: Some(VLAN),
};
/// The one behind the other NIC.
const OTHER: Vm = Vm {
    port: "33333333-aaaa-4bbb-8ccc-000000000003",
    network: "phys2",
    vhost: 2,
    mac: Mac([0xfa, 0x16, 0x3e, 0, 0, 0x03]),
    vlan: None,
};
const VHOSTS: [u32; 3] = [FLAT.vhost, TAGGED.vhost, OTHER.vhost];
/// Address, port and driver of each NIC.
const NICS: [(&str, &str, &str); 2] =
    [("0000:01:00.0", "phy:0", "virtio-net"), ("0000:02:00.0", "phy:1", "igb")];

impl Vm {
    fn behind<'a>(&self, wire: &'a Wire) -> Echo<'a> {
        Echo { wire, mac: self.mac, vlan: self.vlan }
    }
}

#[test]
fn frames_travel_two_nics_to_vms_and_back_while_plugged_and_not_after() {
    let name = "frames_travel_two_nics_to_vms_and_back_while_plugged_and_not_after";
    let lab = match Lab::with(&["dpdk-testpmd", "etcd", "etcdctl"]) {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let [wire, other_wire] = ["wire", "other"].map(|name| Wire::new(dir.path(), name).expect("a socket"));
    let mut machine = Builder::new(&lab, "node")
        .memory_mib(1536)
        .cpus(2)
        .viommu()
        .host_root()
        .program("bin/spp", spp_binary())
        .virtio_nic("n0", "52:54:00:00:00:01", &wire)
        .nic("igb", "n1", "52:54:00:00:00:02", &other_wire)
        .boot(dir.path());
    let testpmd = bring_up(&mut machine);

    let all = [FLAT.behind(&wire), TAGGED.behind(&wire), OTHER.behind(&other_wire)];
    [FLAT, TAGGED, OTHER].iter().for_each(|vm| plug(&mut machine, vm));
    for payload_len_bytes in [46, 1500] {
        every_frame_returns_once(&all, payload_len_bytes);
    }
    both_nics_count_each_frame_once(&mut machine, &all);
    vlan_vm_sees_no_tags(&mut machine, &testpmd);
    frames_for_nobody_stay_out(&wire);
    killed_node_comes_back_wired(&mut machine, &all);

    unplug(&mut machine, &FLAT);
    stays_silent(&all[0]);
    every_frame_returns_once(&all[1..], 46);
    unplug(&mut machine, &TAGGED);
    unplug(&mut machine, &OTHER);
    stays_silent(&all[1]);
    stays_silent(&all[2]);
    unplugged_vm_reaches_the_wire_only_after_plug(&mut machine, &testpmd, &wire);

    stops_cleanly(&mut machine);
}

/// NICs to vfio-pci, etcd, configuration, node, and last the VMs' side, which waits for the node to connect.
fn bring_up(machine: &mut Machine) -> Testpmd {
    reserve_huge_pages(machine, 192);
    std::fs::write(machine.share().join("driver.sh"), include_str!("support/lab/driver.sh"))
        .expect("the shared folder is ours");
    machine.sh("spp nic bind 01:00.0; spp nic bind 02:00.0");
    machine.sh("etcd --data-dir /run/etcd --log-level error >/run/lab/etcd.log 2>&1 &");
    machine.wait_sh("etcd", PATIENCE, "etcdctl endpoint health");
    machine.sh(
        "spp config put --etcd http://127.0.0.1:2379 --host lab '01:00.0#phys1#2#0x7f,02:00.0#phys2#1#0xf80'
         . ./driver.sh
         key_is vhost/lab/phys1/0 None
         key_is vhost/lab/phys1/1 None
         key_is vhost/lab/phys2/2 None",
    );
    start_with_etcd(machine);
    NICS.iter().for_each(|(address, port, driver)| assert_driven(machine, address, port, driver));
    let testpmd = start_vms(machine, VHOSTS.len());
    testpmd.type_line(machine, "set verbose 1");
    testpmd
}

fn start_with_etcd(machine: &mut Machine) {
    start_node(machine, "--etcd http://127.0.0.1:2379 --host lab");
}

/// To each VM the same number of frames, so many times through each NIC as it has VMs, by queues and by card.
fn both_nics_count_each_frame_once(machine: &mut Machine, all: &[Echo<'_>; 3]) {
    exchange_counted(machine, all, &[("phy:0", &[], 2), ("phy:1", &["GPRC", "GPTC"], 1)]);
}

/// `kill -9` with the NICs' queues full of buffers: a new node takes the NICs and the VMs back, and what was plugged
/// is plugged again from the keys alone.
fn killed_node_comes_back_wired(machine: &mut Machine, all: &[Echo<'_>]) {
    machine.sh("kill -9 $(cat /run/spp.pid)");
    stays_silent(&all[0]);
    start_with_etcd(machine);
    wait_running(machine, &VHOSTS);
    every_frame_returns_once(all, 46);
}

fn plug(machine: &mut Machine, Vm { port, network, vhost, mac, vlan }: &Vm) {
    let vlan = vlan.map_or(String::new(), |id| format!(", \"vlan_id\": {id}"));
    let bind = format!("{{\"vhost_id\": {vhost}, \"mac_address\": \"{mac}\"{vlan}}}");
    machine.sh(&format!(". ./driver.sh; bind_port {port} {network} {vhost} '{bind}'"));
}

fn unplug(machine: &mut Machine, Vm { port, network, vhost, .. }: &Vm) {
    machine.sh(&format!(". ./driver.sh; unbind_port {port} {network} {vhost}"));
}

/// testpmd's verbose mode names the EtherType of every frame the VM receives.
fn vlan_vm_sees_no_tags(machine: &mut Machine, testpmd: &Testpmd) {
    let seen = testpmd.log(machine).to_lowercase();
    let to_vlan_vm: Vec<&str> =
        seen.lines().filter(|line| line.contains(&format!("dst={}", TAGGED.mac))).collect();
    assert!(to_vlan_vm.len() > 50, "testpmd saw too little: {seen}");
    for line in to_vlan_vm {
        assert!(line.contains("type=0x88b5"), "not an untagged frame: {line}");
    }
}

/// Right address in the wrong VLAN or on the wrong NIC, and an address nobody has.
fn frames_for_nobody_stay_out(wire: &Wire) {
    let stranger = Mac([0xfa, 0x16, 0x3e, 0, 0, 0x99]);
    let nobody = [
        (FLAT.mac, Some(VLAN)),
        (TAGGED.mac, None),
        (TAGGED.mac, Some(VLAN + 1)),
        (OTHER.mac, None),
        (stranger, None),
        (stranger, Some(VLAN)),
    ];
    for (mac, vlan) in nobody {
        send_some(&Echo { wire, mac, vlan });
    }
    assert_eq!(wire.drain(SILENCE), [], "answers of nobody's");
}

fn send_some(echo: &Echo<'_>) {
    for number in 0..4 {
        let frame = Frame::numbered(echo.mac, FAR, echo.vlan, number, 46);
        echo.wire.send(&frame).expect("the NIC takes frames");
    }
}

fn stays_silent(echo: &Echo<'_>) {
    send_some(echo);
    assert_eq!(echo.wire.drain(SILENCE), [], "answers from {} in VLAN {:?}", echo.mac, echo.vlan);
}

/// A VM that never stops sending: silence and a growing `unplugged` counter before the plug, only tagged frames after.
fn unplugged_vm_reaches_the_wire_only_after_plug(machine: &mut Machine, testpmd: &Testpmd, wire: &Wire) {
    for line in ["stop", "set verbose 0", "set portlist 1", "set fwd txonly", "start"] {
        testpmd.type_line(machine, line);
    }
    let before = drops(&status(machine), "unplugged");
    wait_for("frames dropped as unplugged", PATIENCE, || match drops(&status(machine), "unplugged") {
        now if now > before => Ok(()),
        now => Err(format!("{now} drops as before")),
    });
    assert_eq!(wire.drain(SILENCE), [], "an unplugged VM reached the wire");

    plug(machine, &TAGGED);
    let frame = wire.receive(PATIENCE).expect("a plugged VM reaches the wire");
    let frames = wire.drain(SILENCE);
    for frame in [frame].into_iter().chain(frames) {
        assert_eq!(frame.vlan, Some((VLAN, 0)), "{frame:?}");
    }

    unplug(machine, &TAGGED);
    // What was under way when the plan changed.
    wire.drain(SILENCE);
    assert_eq!(wire.drain(SILENCE), [], "an unplugged VM reached the wire");
}

/// SIGTERM ends the node with status 0, the NICs go back to what drove them before, and no DMA ever left its mapping.
fn stops_cleanly(machine: &mut Machine) {
    stop_node(machine);
    let after = machine.sh("spp nic unbind 01:00.0; readlink /sys/bus/pci/devices/0000:01:00.0/driver");
    assert!(after.trim_end().ends_with("/virtio-pci"), "{after}");
    machine.sh("spp nic unbind 02:00.0; ! [ -e /sys/bus/pci/devices/0000:02:00.0/driver ]");
    let kernel = machine.sh("dmesg");
    let faults: Vec<&str> =
        kernel.lines().filter(|line| line.contains("DMAR") && line.contains("fault")).collect();
    assert!(faults.is_empty(), "{faults:?}");
}
