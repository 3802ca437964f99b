//! PCI functions under a real kernel's VFIO: binding, opening, registers, interrupts, tear-down, and every refusal
//! that can be had without special hardware. The program inside is the example `vfio_probe` of the drivers.

#[path = "support/lab/mod.rs"]
mod lab;

use std::path::PathBuf;
use std::process::Command;

use lab::machine::{Builder, Machine};
use lab::wire::Wire;
use lab::{Lab, skipped};

/// Builds the example; cargo says where it went.
fn probe_binary() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "-p", "spp-drivers", "--example", "vfio_probe", "--message-format=json", "--quiet"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == "vfio_probe";
        message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
    };
    lines.lines().find_map(executable).expect("cargo names the executable")
}

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
    let probe = probe_binary();
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
