//! Two NICs of different families in one node at once, behind a real kernel's VFIO and a virtual IOMMU: the static release
//! `spp` with a virtio-net NIC and an igb, a VM behind each (Debian's virtio-user), the far ends of both cables in the test.
//! Frames of up to 9000 bytes; and the second queue of the igb has a classifier of its own.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::echo::{Echo, FAR, every_frame_returns_once};
use lab::frame::Frame;
use lab::inside::{assert_driven, exchange_counted, plug_echoes, start_node, start_vms, status, stop_node};
use lab::machine::{Builder, Machine};
use lab::status::component_packets;
use lab::testpmd::reserve_huge_pages;
use lab::wire::Wire;
use lab::{Lab, node, skipped, spp_binary};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
const CLASSIFIERS: [&str; 2] = ["first", "second"];
/// Enough that all with one queue would be an accident of one in ten thousand million.
const FLOWS: u8 = 32;
/// Headers of IPv4 and UDP, from an address and a port that make the flow; without a checksum of UDP.
const UDP: [u8; 28] =
    [0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0x66, 0xbd, 10, 0, 0, 1, 10, 0, 0, 2, 16, 0, 0, 9, 0, 26, 0, 0];

/// Address, port, driver, and counters of the card that say how many frames it received and sent.
const NICS: [(&str, &str, &str, &[&str]); 2] =
    [("0000:01:00.0", "phy:0", "virtio-net", &[]), ("0000:02:00.0", "phy:1", "igb", &["GPRC", "GPTC"])];

#[test]
fn frames_pass_two_families_in_one_node_both_ways_and_each_counts_its_own() {
    let name = "frames_pass_two_families_in_one_node_both_ways_and_each_counts_its_own";
    let lab = match Lab::with(&["dpdk-testpmd"]) {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let wires = ["one", "two"].map(|name| Wire::new(dir.path(), name).expect("a socket"));
    let mut machine = Builder::new(&lab, "families")
        .memory_mib(1536)
        .cpus(2)
        .viommu()
        .host_root()
        .program("bin/spp", spp_binary())
        .virtio_nic("n0", "52:54:00:00:00:01", &wires[0])
        .nic("igb", "n1", "52:54:00:00:00:02", &wires[1])
        .boot(dir.path());
    bring_up(&mut machine);
    let echoes = plug_echoes(&mut machine, &wires);
    for payload_len_bytes in [46, 1500, 9000] {
        every_frame_returns_once(&echoes, payload_len_bytes);
    }
    exchange_counted(&mut machine, &echoes, &NICS.map(|(_, port, _, names)| (port, names, 1)));
    both_queues_bring_flows(&mut machine, &echoes[1]);
    stop_node(&mut machine);
    let faults = machine.run("dmesg | grep -i -e 'DMAR:.*fault' -e 'BUG:' -e ' Oops:'");
    assert_eq!(faults.text, "", "the kernel saw stray DMA or worse");
}

/// The second NIC: its queues' classifiers meet again before its VM.
fn with_two_queues() -> Value {
    json!({"num_vhost": 1, "pci_address": "02:00.0", "physical_network": "phys1", "core_mask": "0x7e0", "components": [
        {"core": 6, "type": "merge", "name": "to_vm", "rx_port": ["ring:2", "ring:4"], "tx_port": ["vhost:1"]},
        {"core": 7, "type": "forward", "name": "from_vm", "rx_port": ["vhost:1"], "tx_port": ["ring:3"]},
        {"core": 8, "type": "classifier", "name": CLASSIFIERS[0], "rx_port": ["phy:1"], "tx_port": ["ring:2"]},
        {"core": 9, "type": "classifier", "name": CLASSIFIERS[1], "rx_port": ["phy:1nq1"], "tx_port": ["ring:4"]},
        {"core": 10, "type": "merge", "name": "to_wire", "rx_port": ["ring:3"], "tx_port": ["phy:1"]},
    ]})
}

/// Flows of UDP, which the card spreads: all come back, and each queue has brought some.
fn both_queues_bring_flows(machine: &mut Machine, echo: &Echo<'_>) {
    let packets = |machine: &mut Machine| {
        let status = status(machine);
        CLASSIFIERS.map(|name| component_packets(&status, name))
    };
    let before = packets(machine);
    for flow in 0..FLOWS {
        let mut payload = UDP.to_vec();
        // Addresses are what every card spreads by: the sender's, and the sum over the header with it.
        (payload[15], payload[11], payload[21]) = (flow, UDP[11] + UDP[15] - flow, flow);
        payload.resize(46, 0);
        let vlan = echo.vlan.map(|id| (id, 0));
        let frame = Frame { dst: echo.mac, src: FAR, vlan, ethertype: 0x0800, payload };
        echo.wire.send(&frame).expect("the NIC takes frames");
        assert_eq!(echo.wire.receive(PATIENCE), Some(frame.swapped()), "flow {flow}");
    }
    let after = packets(machine);
    let brought: Vec<u64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    assert_eq!(brought.iter().sum::<u64>(), u64::from(FLOWS), "{brought:?}");
    assert!(brought.iter().all(|n| *n > 0), "{brought:?}");
}

/// NICs to vfio-pci, node, and last the VMs, which wait for the node to connect.
fn bring_up(machine: &mut Machine) {
    reserve_huge_pages(machine, 192);
    machine.sh("spp nic bind 01:00.0; spp nic bind 02:00.0");
    let config = json!({"vf": [node::vf(0, "01:00.0", 1), with_two_queues()]});
    std::fs::write(machine.share().join("node.json"), config.to_string()).expect("it is ours");
    start_node(machine, "--config node.json");
    NICS.iter().for_each(|(address, port, driver, _)| assert_driven(machine, address, port, driver));
    start_vms(machine, NICS.len());
}
