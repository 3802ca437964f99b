//! PCI functions under a real kernel's VFIO: binding, opening, registers, interrupts, tear-down, and every refusal
//! that can be had without special hardware. The program inside is the example `vfio_probe` of the drivers.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::machine::{Builder, Machine};
use lab::wire::Wire;
use lab::{Lab, driver_example, skipped};

fn says(machine: &mut Machine, script: &str, words: &[&str]) {
    let output = machine.run(script);
    for word in words {
        assert!(output.text.contains(word), "{script} does not say {word:?}:\n{}", output.text);
    }
}

#[test]
fn function_lives_and_ends_under_a_real_kernel() {
    let name = "function_lives_and_ends_under_a_real_kernel";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let (one, two) =
        (Wire::new(dir.path(), "one").expect("a socket"), Wire::new(dir.path(), "two").expect("a socket"));
    let probe = driver_example("vfio_probe");
    let mut machine = Builder::new(&lab, "function")
        .memory_mib(512)
        .viommu()
        .program("bin/vfio_probe", &probe)
        .virtio_nic("n0", "52:54:00:00:00:01", &one)
        .virtio_nic("n1", "52:54:00:00:00:02", &two)
        .boot(dir.path());
    let (a, b) = ("0000:01:00.0", "0000:02:00.0");

    says(&mut machine, "vfio_probe list", &["spp_driver: Some(\"virtio-net\")", "iommu_group: Some("]);
    says(&mut machine, &format!("vfio_probe open {a}"), &["not to vfio-pci", &format!("spp nic bind {a}")]);
    for nic in [a, b] {
        says(&mut machine, &format!("vfio_probe bind {nic} /run/state"), &["From("]);
        says(&mut machine, &format!("vfio_probe bind {nic} /run/state"), &["Already"]);
    }
    let output = machine.sh(&format!("vfio_probe open {a} {b}"));
    for line in [
        "0000:01:00.0 mac: 52:54:00:00:00:01",
        "0000:02:00.0 mac: 52:54:00:00:00:02",
        "0000:01:00.0 bar: mapped",
        "0000:02:00.0 vectors: 2",
        "0000:02:00.0 removal requested: false",
        "buffers out: 0",
    ] {
        assert!(output.contains(line), "no {line:?} in\n{output}");
    }
    assert_eq!(output.matches("mac: 52:54").count(), 4, "two functions, twice:\n{output}");

    // A second process meets a busy group, and gets it once the first is gone.
    says(
        &mut machine,
        &format!(
            "group=$(basename $(readlink /sys/bus/pci/devices/{a}/iommu_group))
             exec 9<>/dev/vfio/$group
             vfio_probe open {a}
             vfio_probe unbind {a} /run/state
             exec 9>&-
             vfio_probe open {a}"
        ),
        &["in use by another process", "in use by a running process", "mac: 52:54:00:00:00:01"],
    );
    for nic in [a, b] {
        says(&mut machine, &format!("vfio_probe unbind {nic} /run/state"), &["Unbound("]);
        says(&mut machine, &format!("vfio_probe unbind {nic} /run/state"), &["not bound to vfio-pci"]);
    }
    let faults =
        machine.run("dmesg | grep -i -e 'DMAR:.*fault' -e 'DMA Read' -e 'DMA Write' -e 'BUG:' -e 'Oops'");
    assert_eq!(faults.text, "", "the kernel saw stray DMA or worse");
}

/// A user who may nothing, with little locked memory.
const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

#[test]
fn refusals_of_a_real_kernel_name_their_remedy() {
    let name = "refusals_of_a_real_kernel_name_their_remedy";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let wire = Wire::new(dir.path(), "wire").expect("a socket");
    let probe = driver_example("vfio_probe");
    let shared = "virtio-net-pci,bus=shared,iommu_platform=on,disable-legacy=on,romfile=";
    let mut machine = Builder::new(&lab, "refusals")
        .memory_mib(512)
        .viommu()
        .host_root()
        .program("bin/vfio_probe", &probe)
        .virtio_nic("n0", "52:54:00:00:00:01", &wire)
        // Two functions that could reach each other behind the IOMMU's back: one group.
        .qemu_args(["-device", "pcie-root-port,id=shared,chassis=9,slot=9,disable-acs=on"])
        .qemu_args(["-netdev", "hubport,id=h0,hubid=7", "-netdev", "hubport,id=h1,hubid=7"])
        .qemu_args(["-device".to_owned(), format!("{shared},netdev=h0,addr=0.0,multifunction=on")])
        .qemu_args(["-device".to_owned(), format!("{shared},netdev=h1,addr=0.1")])
        .boot(dir.path());
    let (alone, first) = ("0000:01:00.0", "0000:02:00.0");

    machine.sh(&format!("vfio_probe bind {first} /run/state"));
    says(
        &mut machine,
        &format!("vfio_probe open {first}"),
        &["not viable", "0000:02:00.1 (virtio-pci) is in the same group"],
    );
    machine.sh("vfio_probe bind 0000:02:00.1 /run/state");
    says(&mut machine, &format!("vfio_probe open {first}"), &["0000:02:00.0 mac: ", "buffers out: 0"]);

    machine.sh(&format!("vfio_probe bind {alone} /run/state"));
    let open = format!("{NOBODY} vfio_probe open {alone}");
    says(&mut machine, &open, &["no permission to open /dev/vfio/"]);
    machine.sh(&format!(
        "chown 65534 /dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{alone}/iommu_group))"
    ));
    says(
        &mut machine,
        &format!("ulimit -l 64; {open}"),
        &["limit on locked memory (64 KiB)", "LimitMEMLOCK=infinity"],
    );
    says(
        &mut machine,
        &format!("ulimit -l unlimited; {open}"),
        &["mac: 52:54:00:00:00:01", "buffers out: 0"],
    );

    // Killed while it holds the function: the kernel cleans up, and the next one gets a working function.
    machine.sh(&format!(
        "vfio_probe hold {alone} >/run/killed 2>&1 &
         holder=$!
         for i in $(seq 200); do grep -q held /run/killed && break; sleep 0.1; done
         grep -q held /run/killed
         kill -9 $holder
         wait $holder || true"
    ));
    says(&mut machine, &format!("vfio_probe open {alone}"), &["mac: 52:54:00:00:00:01"]);

    // Unplugged under a process that holds it.
    let log = machine.sh(&format!(
        "vfio_probe hold {alone} >/run/unplugged 2>&1 &
         holder=$!
         for i in $(seq 200); do grep -q held /run/unplugged && break; sleep 0.1; done
         echo 1 >/sys/bus/pci/devices/{alone}/remove
         wait $holder
         cat /run/unplugged
         test ! -e /sys/bus/pci/devices/{alone}"
    ));
    assert!(log.contains("given back, buffers out: 0"), "{log}");
    let faults =
        machine.run("dmesg | grep -i -e 'DMAR:.*fault' -e 'DMA Read' -e 'DMA Write' -e 'BUG:' -e 'Oops'");
    assert_eq!(faults.text, "", "the kernel saw stray DMA or worse");
}
