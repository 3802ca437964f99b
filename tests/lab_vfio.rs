//! The whole chain on a NIC: a Debian kernel with a virtual IOMMU, the static release `spp` on a virtio-net NIC under
//! vfio-pci, a real etcd for the keys, Debian's virtio-user as the VMs behind `/tmp/sock0` and `/tmp/sock1`, and the
//! network's far end played by the test.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::frame::{Frame, Mac};
use lab::machine::{Builder, Machine};
use lab::status::{drops, vhost_state};
use lab::testpmd::{Testpmd, reserve_huge_pages};
use lab::wire::Wire;
use lab::{Lab, skipped, spp_binary, wait_for};
use serde_json::Value;
use std::time::Duration;

const FAR: Mac = Mac([0x02, 0, 0, 0, 0, 0xfe]);
const FLAT_VM: Mac = Mac([0xfa, 0x16, 0x3e, 0, 0, 0x01]);
const VLAN_VM: Mac = Mac([0xfa, 0x16, 0x3e, 0, 0, 0x02]);
const VLAN: u16 = 100;
const FLAT_PORT: &str = "11111111-aaaa-4bbb-8ccc-000000000001";
const VLAN_PORT: &str = "22222222-aaaa-4bbb-8ccc-000000000002";
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits this long before it believes that nothing comes.
const SILENCE: Duration = Duration::from_secs(3);

#[test]
fn frames_travel_nic_to_vm_and_back_while_plugged_and_not_after() {
    let name = "frames_travel_nic_to_vm_and_back_while_plugged_and_not_after";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    for program in ["dpdk-testpmd", "etcd", "etcdctl"] {
        if lab::program(program).is_none() {
            return skipped(name, &format!("no {program} here, run .ci/setup --tests"));
        }
    }
    let dir = tempfile::tempdir().expect("scratch space");
    let wire = Wire::new(dir.path(), "wire").expect("a datagram socket");
    let mut machine = Builder::new(&lab, "node")
        .memory_mib(1536)
        .cpus(2)
        .viommu()
        .host_root()
        .program("bin/spp", spp_binary())
        .virtio_nic("n0", "52:54:00:00:00:01", &wire)
        .boot(dir.path());
    let testpmd = bring_up(&mut machine);

    plug(&mut machine, FLAT_PORT, 0, FLAT_VM, None);
    plug(&mut machine, VLAN_PORT, 1, VLAN_VM, Some(VLAN));
    every_frame_returns_once(&wire, FLAT_VM, None, 46);
    every_frame_returns_once(&wire, VLAN_VM, Some(VLAN), 46);
    every_frame_returns_once(&wire, FLAT_VM, None, 1500);
    every_frame_returns_once(&wire, VLAN_VM, Some(VLAN), 1500);
    vlan_vm_sees_no_tags(&mut machine, &testpmd);
    frames_for_nobody_stay_out(&wire);
    killed_node_comes_back_wired(&mut machine, &wire);

    unplug(&mut machine, FLAT_PORT, 0);
    stays_silent(&wire, FLAT_VM, None);
    every_frame_returns_once(&wire, VLAN_VM, Some(VLAN), 46);
    unplug(&mut machine, VLAN_PORT, 1);
    stays_silent(&wire, VLAN_VM, Some(VLAN));
    unplugged_vm_reaches_the_wire_only_after_plug(&mut machine, &testpmd, &wire);

    stops_cleanly(&mut machine);
}

/// NIC to vfio-pci, etcd, configuration, node, and last the VMs' side, which waits for the node to connect.
fn bring_up(machine: &mut Machine) -> Testpmd {
    reserve_huge_pages(machine, 192);
    std::fs::write(machine.share().join("driver.sh"), include_str!("support/lab/driver.sh"))
        .expect("the shared folder is ours");
    let bound = machine.sh("spp nic bind 01:00.0; spp nic list");
    assert!(bound.contains("vfio-pci"), "{bound}");
    machine.sh("etcd --data-dir /run/etcd --log-level error >/run/lab/etcd.log 2>&1 &");
    machine.wait_sh("etcd", PATIENCE, "etcdctl endpoint health");
    machine.sh("spp config put --etcd http://127.0.0.1:2379 --host lab '01:00.0#phys1#2#0x7f'
         . ./driver.sh
         key_is vhost/lab/phys1/0 None
         key_is vhost/lab/phys1/1 None");
    start_node(machine);
    let testpmd = Testpmd::start(
        machine,
        "vms",
        "--single-file-segments --no-pci --vdev net_virtio_user0,path=/tmp/sock0,server=1,queues=1 \
         --vdev net_virtio_user1,path=/tmp/sock1,server=1,queues=1",
        "--forward-mode=macswap --port-topology=loop --auto-start",
    );
    testpmd.type_line(machine, "set verbose 1");
    wait_running(machine);
    testpmd
}

fn start_node(machine: &mut Machine) {
    machine.sh("rm -f /run/spp.exit
         (spp run --etcd http://127.0.0.1:2379 --host lab --fold-cores >>/run/lab/spp.log 2>&1 &
          echo $! >/run/spp.pid; wait $! && echo 0 >/run/spp.exit || echo $? >/run/spp.exit) >/dev/null 2>&1 &");
    machine.wait_sh("the node's API", PATIENCE, "cat spp.log; spp status");
}

fn wait_running(machine: &mut Machine) {
    for vhost in [0, 1] {
        wait_for("the VMs' rings to run", PATIENCE, || match vhost_state(&status(machine), vhost) {
            Some("running") => Ok(()),
            other => Err(format!("vhost:{vhost} is {other:?}")),
        });
    }
}

/// `kill -9` with the NIC's queues full of buffers: a new node takes the NIC and the VMs back, and what was plugged
/// is plugged again from the keys alone.
fn killed_node_comes_back_wired(machine: &mut Machine, wire: &Wire) {
    machine.sh("kill -9 $(cat /run/spp.pid)");
    stays_silent(wire, FLAT_VM, None);
    start_node(machine);
    wait_running(machine);
    every_frame_returns_once(wire, FLAT_VM, None, 46);
    every_frame_returns_once(wire, VLAN_VM, Some(VLAN), 46);
}

fn status(machine: &mut Machine) -> Value {
    serde_json::from_str(&machine.sh("spp status --json")).expect("status is JSON")
}

fn plug(machine: &mut Machine, port: &str, vhost: u32, mac: Mac, vlan: Option<u16>) {
    let vlan = vlan.map_or(String::new(), |id| format!(", \"vlan_id\": {id}"));
    let bind = format!("{{\"vhost_id\": {vhost}, \"mac_address\": \"{mac}\"{vlan}}}");
    machine.sh(&format!(". ./driver.sh; bind_port {port} phys1 {vhost} '{bind}'"));
}

fn unplug(machine: &mut Machine, port: &str, vhost: u32) {
    machine.sh(&format!(". ./driver.sh; unbind_port {port} phys1 {vhost}"));
}

/// Fifty numbered frames, at most eight under way at a time: all come back swapped, in order, none twice.
fn every_frame_returns_once(wire: &Wire, vm: Mac, vlan: Option<u16>, payload_len_bytes: usize) {
    let first = Frame::numbered(vm, FAR, vlan, 0, payload_len_bytes);
    wire.probe(&first, &first.swapped(), PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    // Answers to further copies of the probe.
    wire.drain(SILENCE);
    let frames: Vec<Frame> =
        (1..=50).map(|number| Frame::numbered(vm, FAR, vlan, number, payload_len_bytes)).collect();
    let mut returned = Vec::new();
    for (at, frame) in frames.iter().enumerate() {
        wire.send(frame).expect("the NIC takes frames");
        while at + 1 - returned.len() >= 8 {
            let seen = wire.receive(PATIENCE);
            returned.push(seen.unwrap_or_else(|| panic!("lost after {} frames", returned.len())));
        }
    }
    while returned.len() < frames.len() {
        let seen = wire.receive(PATIENCE);
        returned.push(seen.unwrap_or_else(|| panic!("lost after {} frames", returned.len())));
    }
    let expected: Vec<Frame> = frames.iter().map(Frame::swapped).collect();
    assert_eq!(returned, expected);
    assert_eq!(wire.drain(SILENCE), [], "frames came back twice");
}

/// testpmd's verbose mode names the EtherType of every frame the VM receives.
fn vlan_vm_sees_no_tags(machine: &mut Machine, testpmd: &Testpmd) {
    let seen = testpmd.log(machine).to_lowercase();
    let to_vlan_vm: Vec<&str> =
        seen.lines().filter(|line| line.contains(&format!("dst={VLAN_VM}"))).collect();
    assert!(to_vlan_vm.len() > 50, "testpmd saw too little: {seen}");
    for line in to_vlan_vm {
        assert!(line.contains("type=0x88b5"), "not an untagged frame: {line}");
    }
}

/// Right address in the wrong VLAN, and an address nobody has.
fn frames_for_nobody_stay_out(wire: &Wire) {
    let stranger = Mac([0xfa, 0x16, 0x3e, 0, 0, 0x99]);
    for (vm, vlan) in [
        (FLAT_VM, Some(VLAN)),
        (VLAN_VM, None),
        (VLAN_VM, Some(VLAN + 1)),
        (stranger, None),
        (stranger, Some(VLAN)),
    ] {
        stays_silent(wire, vm, vlan);
    }
}

fn stays_silent(wire: &Wire, vm: Mac, vlan: Option<u16>) {
    for number in 0..4 {
        let frame = Frame::numbered(vm, FAR, vlan, number, 46);
        wire.send(&frame).expect("the NIC takes frames");
    }
    assert_eq!(wire.drain(SILENCE), [], "answers from {vm} in VLAN {vlan:?}");
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

    plug(machine, VLAN_PORT, 1, VLAN_VM, Some(VLAN));
    let frame = wire.receive(PATIENCE).expect("a plugged VM reaches the wire");
    let frames = wire.drain(SILENCE);
    for frame in [frame].into_iter().chain(frames) {
        assert_eq!(frame.vlan, Some((VLAN, 0)), "{frame:?}");
    }

    unplug(machine, VLAN_PORT, 1);
    // What was under way when the plan changed.
    wire.drain(SILENCE);
    assert_eq!(wire.drain(SILENCE), [], "an unplugged VM reached the wire");
}

/// SIGTERM ends the node with status 0, the NIC goes back to its kernel driver, and no DMA ever left its mapping.
fn stops_cleanly(machine: &mut Machine) {
    machine.sh("kill $(cat /run/spp.pid)
         for _ in $(seq 300); do
             [ -s /run/spp.exit ] && exit $(cat /run/spp.exit)
             sleep 0.1
         done
         echo 'still there after SIGTERM'; exit 1");
    let after = machine.sh("spp nic unbind 01:00.0; readlink /sys/bus/pci/devices/0000:01:00.0/driver");
    assert!(after.trim_end().ends_with("/virtio-pci"), "{after}");
    let kernel = machine.sh("dmesg");
    let faults: Vec<&str> =
        kernel.lines().filter(|line| line.contains("DMAR") && line.contains("fault")).collect();
    assert!(faults.is_empty(), "{faults:?}");
}
