//! The virtio-net driver on QEMU's device, behind a real kernel's VFIO and a virtual IOMMU: traffic, link, restart.
//! The program inside is the example `virtio_echo` of the drivers.

#[path = "support/lab/mod.rs"]
mod lab;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use lab::frame::{Frame, Mac};
use lab::machine::{Builder, Machine};
use lab::wire::Wire;
use lab::{Lab, driver_example, skipped};

const NIC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const FAR: Mac = Mac([2, 0, 0, 0, 0, 9]);
const DEADLINE: Duration = Duration::from_secs(60);

/// Tells QEMU to plug or pull the cable.
fn set_link(qmp: &Path, up: bool) {
    let mut socket = UnixStream::connect(qmp).expect("QEMU listens for its monitor");
    let link = format!(r#"{{"execute":"set_link","arguments":{{"name":"n0","up":{up}}}}}"#);
    write!(socket, "{}\n{link}\n", r#"{"execute":"qmp_capabilities"}"#).expect("QEMU reads");
    // The answers are not of interest, but closing at once would lose the command.
    std::thread::sleep(Duration::from_millis(500));
}

fn log_says(machine: &mut Machine, what: &str, n_times: usize) {
    let script =
        format!("test $(grep -c '{what}' /run/echo/log) -ge {n_times} || {{ cat /run/echo/log; false; }}");
    machine.wait_sh(&format!("{what:?}, {n_times} times"), DEADLINE, &script);
}

/// Each frame comes back before the next leaves: the datagram queue of the wire is short.
fn echo_all(wire: &Wire, first: u32, payload_lens: &[usize]) {
    for (n, &len) in payload_lens.iter().enumerate() {
        let vlan = (n % 3 == 2).then_some(100);
        let frame = Frame::numbered(NIC, FAR, vlan, first + n as u32, len);
        if let Err(error) = wire.probe(&frame, &frame.swapped(), DEADLINE) {
            panic!("frame {n} of {len} bytes: {error}");
        }
    }
}

#[test]
fn frames_come_back_from_a_real_device_over_link_loss_and_restart() {
    let name = "frames_come_back_from_a_real_device_over_link_loss_and_restart";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let wire = Wire::new(dir.path(), "wire").expect("a socket");
    let (echo, qmp) = (driver_example("virtio_echo"), dir.path().join("qmp"));
    let mut machine = Builder::new(&lab, "virtio")
        .memory_mib(512)
        .viommu()
        .program("bin/virtio_echo", &echo)
        .virtio_nic("n0", "52:54:00:00:00:01", &wire)
        .qemu_args(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", qmp.display())])
        .boot(dir.path());
    machine.sh("mkdir -p /run/echo; virtio_echo 0000:01:00.0 /run/echo >/run/echo/log 2>&1 & sleep 1");
    log_says(&mut machine, "link: Up", 1);

    let lens: Vec<usize> = (0..300).map(|n| [50, 51, 1000, 1500][n % 4]).collect();
    echo_all(&wire, 0, &lens);
    // Not for the NIC's own address: promiscuous mode lets it in.
    let stranger = Frame::numbered(Mac([2, 0, 0, 0, 0, 77]), FAR, None, 5000, 100);
    wire.probe(&stranger, &stranger.swapped(), DEADLINE).expect("promiscuous mode");

    set_link(&qmp, false);
    log_says(&mut machine, "link: Down", 1);
    set_link(&qmp, true);
    log_says(&mut machine, "link: Up", 2);
    echo_all(&wire, 10_000, &[50; 20]);

    for n in 2..4 {
        machine.sh("touch /run/echo/restart");
        log_says(&mut machine, "started", n);
        echo_all(&wire, 20_000 * n as u32, &[50, 1500, 1000]);
    }
    machine.sh("touch /run/echo/stop");
    log_says(&mut machine, "buffers out: 0", 1);
    let log = machine.sh("cat /run/echo/log");
    println!("{log}");
    assert!(log.contains("mac: Some(52:54:00:00:00:01)") && !log.contains("error"), "{log}");
    let faults =
        machine.run("dmesg | grep -i -e 'DMAR:.*fault' -e 'DMA Read' -e 'DMA Write' -e 'BUG:' -e 'Oops'");
    assert_eq!(faults.text, "", "the kernel saw stray DMA or worse");
}
