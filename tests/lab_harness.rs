//! The lab itself, proven with nothing of ours inside: its pure parts, and a machine in which Debian's DPDK drives the
//! same NIC behind the same IOMMU that `lab_vfio` gives to `spp`. If this fails, look at the lab first.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::frame::{Frame, Mac};
use lab::initramfs::{Archive, EXECUTABLE, load_order};
use lab::machine::Builder;
use lab::testpmd::{Testpmd, reserve_huge_pages};
use lab::wire::Wire;
use lab::{Lab, skipped};
use std::time::Duration;

#[test]
fn tagged_frame_survives_a_round_trip() {
    let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let frame = Frame::numbered(a, b, Some(100), 7, 46);
    let bytes = frame.to_bytes();
    assert_eq!(bytes.len(), 6 + 6 + 4 + 2 + 46);
    assert_eq!(bytes[12..18], [0x81, 0x00, 0, 100, 0x88, 0xb5]);
    assert_eq!(Frame::parse(&bytes), Some(frame));
}

#[test]
fn header_cut_short_is_refused() {
    let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let bytes = Frame::numbered(a, b, Some(100), 7, 46).to_bytes();
    assert_eq!(Frame::parse(&bytes[..17]), None);
    assert_eq!(Frame::parse(&bytes[..13]), None);
}

#[test]
fn modules_come_after_what_they_need_and_once() {
    let dep = "k/a-b.ko: k/c.ko k/d.ko\nk/c.ko: k/d.ko\nk/d.ko:\nk/e.ko: k/d.ko\n";
    assert_eq!(load_order(dep, &["a_b", "e"]), Ok(vec!["k/d.ko", "k/c.ko", "k/a-b.ko", "k/e.ko"]));
    assert!(load_order(dep, &["f"]).is_err());
}

#[test]
fn archive_entries_are_padded_to_four_bytes() {
    let mut archive = Archive::new();
    archive.entry("abc", EXECUTABLE, b"12345");
    let bytes = archive.finish();
    assert_eq!(bytes.len() % 4, 0);
    assert_eq!(&bytes[..6], b"070701");
    assert_eq!(&bytes[110..114], b"abc\0");
    assert_eq!(&bytes[116..124], b"12345\0\0\0");
    assert_eq!(&bytes[124..130], b"070701");
}

#[test]
fn script_status_and_output_come_back() {
    let name = "script_status_and_output_come_back";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let mut machine = Builder::new(&lab, "scripts").boot(dir.path());
    let output = machine.run("echo out; echo err >&2; exit 7");
    assert_eq!((output.status, output.text.as_str()), (7, "out\nerr\n"));
    assert!(machine.sh("uname -r").contains("amd64"));
    assert!(machine.console().is_empty(), "{}", machine.console());
}

#[test]
fn frames_pass_a_foreign_driver_behind_the_iommu() {
    let name = "frames_pass_a_foreign_driver_behind_the_iommu";
    let lab = match Lab::with(&["dpdk-testpmd"]) {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let wire = Wire::new(dir.path(), "wire").expect("a datagram socket");
    let mut machine = Builder::new(&lab, "foreign")
        .memory_mib(1536)
        .cpus(2)
        .viommu()
        .host_root()
        .virtio_nic("n0", "52:54:00:00:00:01", &wire)
        .boot(dir.path());
    machine.sh("cd /sys/bus/pci/devices/0000:01:00.0
         echo 0000:01:00.0 >driver/unbind
         echo vfio-pci >driver_override
         echo 0000:01:00.0 >/sys/bus/pci/drivers_probe
         [ $(basename $(readlink driver)) = vfio-pci ]
         [ $(ls iommu_group/devices | wc -l) = 1 ]");
    reserve_huge_pages(&mut machine, 128);
    let testpmd = Testpmd::start(&mut machine, "nic", "-a 01:00.0", "--forward-mode=macswap --auto-start");
    let (far, vm) = (Mac([2, 0, 0, 0, 0, 0xfe]), Mac([2, 0, 0, 0, 0, 1]));
    for (number, vlan) in [(1, None), (2, Some(100))] {
        let frame = Frame::numbered(vm, far, vlan, number, 46);
        wire.probe(&frame, &frame.swapped(), Duration::from_secs(240))
            .unwrap_or_else(|error| panic!("{error}\n{}", testpmd.log(&mut machine)));
    }
}
