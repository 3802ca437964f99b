//! Two NICs of different families in one node at once, behind a real kernel's VFIO and a virtual IOMMU: the static release
//! `spp` with a virtio-net NIC and an igb, a VM behind each (Debian's virtio-user), the far ends of both cables in the test.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::echo::{Echo, FRAMES, every_frame_returns_once, exchange};
use lab::frame::Mac;
use lab::inside::{Counts, nic_listed, start_node, stop_node, wait_running};
use lab::machine::{Builder, Machine};
use lab::testpmd::{Testpmd, reserve_huge_pages};
use lab::wire::Wire;
use lab::{Lab, node, skipped, spp_binary, wait_for};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
/// Address, port, driver, and counters of the card that say how many frames it received and sent.
const NICS: [(&str, &str, &str, &[&str]); 2] =
    [("0000:01:00.0", "phy:0", "virtio-net", &[]), ("0000:02:00.0", "phy:1", "igb", &["GPRC", "GPTC"])];

#[test]
fn frames_pass_two_families_in_one_node_both_ways_and_each_counts_its_own() {
    let name = "frames_pass_two_families_in_one_node_both_ways_and_each_counts_its_own";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    if lab::program("dpdk-testpmd").is_none() {
        return skipped(name, "no dpdk-testpmd here, run .ci/setup --tests");
    }
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
    // The second one in a VLAN.
    let echoes: [Echo<'_>; 2] = std::array::from_fn(|n| {
        let mac = Mac([0xfa, 0x16, 0x3e, 0, 0, n as u8]);
        let vlan = (n == 1).then_some(100);
        let tag = vlan.map_or(String::new(), |vlan| format!("--vlan {vlan}"));
        machine.sh(&format!("spp plug --vhost {n} --mac {mac} {tag}"));
        Echo { wire: &wires[n], mac, vlan }
    });
    for payload_len_bytes in [46, 1500] {
        every_frame_returns_once(&echoes, payload_len_bytes);
    }
    let nics = NICS.map(|(_, port, _, names)| (port, names));
    let wanted = Counts::of(&mut machine, &nics).plus(&[FRAMES.into(); 2]);
    exchange(&echoes, 46);
    wait_for("the counters", PATIENCE, || match Counts::of(&mut machine, &nics) {
        now if now == wanted => Ok(()),
        now => Err(format!("{now:?}, not {wanted:?}")),
    });
    stop_node(&mut machine);
    let faults = machine.run("dmesg | grep -i -e 'DMAR:.*fault' -e 'BUG:' -e ' Oops:'");
    assert_eq!(faults.text, "", "the kernel saw stray DMA or worse");
}

/// NICs to vfio-pci, node, and last the VMs, which wait for the node to connect.
fn bring_up(machine: &mut Machine) {
    reserve_huge_pages(machine, 192);
    machine.sh("spp nic bind 01:00.0; spp nic bind 02:00.0");
    let vfs = [0, 1].map(|n| node::vf(n, &format!("0{}:00.0", n + 1), 1));
    std::fs::write(machine.share().join("node.json"), serde_json::json!(vfs).to_string())
        .expect("it is ours");
    start_node(machine, "--config node.json");
    for (address, port, driver, _) in NICS {
        let nic = nic_listed(machine, address);
        assert_eq!((&nic["spp_driver"], &nic["port"]), (&driver.into(), &port.into()), "{nic}");
        assert_eq!((&nic["kernel_driver"], &nic["drivable"]), (&"vfio-pci".into(), &true.into()), "{nic}");
        assert!(nic["iommu_group"].is_u64(), "{nic}");
    }
    Testpmd::start(
        machine,
        "vms",
        "--single-file-segments --no-pci --vdev net_virtio_user0,path=/tmp/sock0,server=1,queues=1 \
         --vdev net_virtio_user1,path=/tmp/sock1,server=1,queues=1",
        "--forward-mode=macswap --port-topology=loop --auto-start",
    );
    wait_running(machine, &[0, 1]);
}
