//! Every NIC driver on a device that is not ours, behind a real kernel's VFIO and a virtual IOMMU, all of them in one
//! process: frames of all sizes and bursts both ways, checksums, link, restart under load, registers switched off under a
//! driver, bind and unbind.
//! A family is one row of [`FAMILIES`]. The program inside is the example `nic_echo` of the drivers.

#[path = "support/lab/mod.rs"]
mod lab;

use std::path::Path;
use std::time::{Duration, Instant};

use lab::frame::{Frame, Mac};
use lab::machine::{Builder, Machine};
use lab::qmp::Qmp;
use lab::wire::Wire;
use lab::{Lab, driver_example, skipped, wait_for};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(60);
const FAR: Mac = Mac([2, 0, 0, 0, 0, 9]);
/// An address besides their own that all NICs are told to let in.
const FURTHER: Mac = Mac([2, 0, 0, 0, 0, 0x77]);
const STRANGER: Mac = Mac([2, 0, 0, 0, 0, 0x78]);
/// Payloads of frames of 64 and 65 bytes with FCS, and the longest without and with jumbo frames.
const PAYLOADS: [usize; 4] = [46, 47, 1500, 9000];
const BURSTS: [usize; 5] = [1, 31, 32, 33, 1000];

struct Family {
    driver: &'static str,
    /// QEMU's device.
    device: &'static str,
    /// It checks and completes checksums, in this model too.
    checks: bool,
    /// It takes tags off, and inserts them.
    tags: [bool; 2],
    /// Counters of its own that say how many frames it received and sent.
    counts: Option<[&'static str; 2]>,
}

const FAMILIES: &[Family] = &[
    Family {
        driver: "virtio-net",
        device: "virtio-net-pci,iommu_platform=on,disable-legacy=on,ats=on",
        checks: false,
        tags: [false, false],
        counts: None,
    },
    Family {
        driver: "virtio-net, packed",
        device: "virtio-net-pci,iommu_platform=on,disable-legacy=on,ats=on,packed=on",
        checks: false,
        tags: [false, false],
        counts: None,
    },
    Family {
        driver: "e1000e",
        device: "e1000e",
        checks: true,
        tags: [true, true],
        counts: Some(["GPRC", "GPTC"]),
    },
    Family { driver: "igb", device: "igb", checks: true, tags: [true, true], counts: Some(["GPRC", "GPTC"]) },
    Family {
        driver: "igbvf",
        device: "igb",
        checks: true,
        tags: [true, false],
        counts: Some(["VFGPRC", "VFGPTC"]),
    },
    Family {
        driver: "e1000",
        device: "e1000-82545em",
        checks: false,
        tags: [true, true],
        counts: Some(["GPRC", "GPTC"]),
    },
    Family {
        driver: "e1000, 82540EM",
        device: "e1000",
        checks: false,
        tags: [true, true],
        counts: Some(["GPRC", "GPTC"]),
    },
    Family {
        driver: "vmxnet3",
        device: "vmxnet3",
        checks: false,
        tags: [true, true],
        counts: Some(["ucastPktsRxOK", "ucastPktsTxOK"]),
    },
];

impl Family {
    /// It is a virtual function of the device, which itself the guest's kernel drives.
    fn is_virtual_function(&self) -> bool {
        self.driver.ends_with("vf")
    }
}

/// One NIC at its cable.
struct Row<'a> {
    family: &'a Family,
    n: usize,
    mac: Mac,
    wire: Wire,
    sent: u32,
    /// The tag all frames come back with.
    retag: Option<(u16, u8)>,
}

impl Row<'_> {
    /// Sends `n` frames and takes as many back: each exactly once, in order. What the program saw of them
    /// is told when they don't come.
    fn burst(&mut self, machine: &mut Machine, n: usize, payload_len: usize) {
        if let Err(what) = self.try_burst(n, payload_len) {
            panic!("{}: {what}\n{}", self.family.driver, stop_echo(machine));
        }
    }

    fn try_burst(&mut self, n: usize, payload_len: usize) -> Result<(), String> {
        let first = self.sent;
        for number in first..first + n as u32 {
            let vlan = (number % 3 == 2).then_some(100);
            let frame = Frame::numbered(self.mac, FAR, vlan, number, payload_len);
            self.wire.send(&frame).expect("the wire takes it");
        }
        self.sent += n as u32;
        for number in first..self.sent {
            let vlan = (number % 3 == 2).then_some(100);
            let mut wanted = Frame::numbered(self.mac, FAR, vlan, number, payload_len).swapped();
            wanted.vlan = self.retag.or(wanted.vlan);
            let seen = self.wire.receive(DEADLINE);
            if seen.as_ref() != Some(&wanted) {
                let number = number - first;
                let seen = seen.map(|frame| (frame.vlan, frame.payload.len(), frame.payload[..4].to_vec()));
                return Err(format!("frame {number} of {n} with {payload_len} bytes: {seen:?}"));
            }
        }
        Ok(())
    }

    fn nothing_more(&self) {
        let more = self.wire.drain(Duration::from_millis(100));
        assert!(more.is_empty(), "{}: {} frames too many", self.family.driver, more.len());
    }

    /// Until a frame comes back: the device is up. Its copies are taken off the wire.
    fn wait_up(&mut self) {
        let probe = Frame::numbered(self.mac, FAR, None, u32::MAX, 46);
        if let Err(error) = self.wire.probe(&probe, &probe.swapped(), DEADLINE) {
            panic!("{}: {error}", self.family.driver);
        }
        self.wire.drain(Duration::from_millis(300));
    }
}

impl Row<'_> {
    /// Its own address and the further one that the program wants; not a stranger's.
    fn only_its_addresses_pass(&self) {
        let driver = self.family.driver;
        let frame = |mac| Frame::numbered(mac, FAR, None, 0, 46);
        for (mac, passes) in [(self.mac, true), (STRANGER, false), (FURTHER, true)] {
            self.wire.send(&frame(mac)).expect("the wire takes it");
            if passes {
                // Whatever had been let in before it would come back before it.
                assert_eq!(self.wire.receive(DEADLINE), Some(frame(mac).swapped()), "{driver}");
            }
        }
        self.nothing_more();
    }
}

fn log_says(machine: &mut Machine, what: &str, n_times: usize) {
    let script =
        format!("test $(grep -c '{what}' /run/echo/log) -ge {n_times} || {{ cat /run/echo/log; false; }}");
    machine.wait_sh(&format!("{what:?}, {n_times} times"), DEADLINE, &script);
}

/// A UDP frame whose checksum is right, or wrong by one; to the port whose frames leave with it undone.
fn udp(dst: Mac, right: bool) -> Frame {
    let payload: Vec<u8> = (0..101).collect();
    let mut ip = vec![0x45, 0, 0, 129, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = [4000u16.to_be_bytes(), 4242u16.to_be_bytes(), 109u16.to_be_bytes(), [0, 0]].concat();
    udp.extend(payload);
    let pseudo = [&ip[12..20], &[0, 17, 0, 109], &udp].concat();
    let sum = checksum(&pseudo) ^ u16::from(!right);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    Frame { dst, src: FAR, vlan: None, ethertype: 0x0800, payload: [ip, udp].concat() }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0)));
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Checksums are checked on the way in and completed on the way out.
fn checksums(row: &Row<'_>) {
    for right in [true, false] {
        row.wire.send(&udp(row.mac, right)).expect("the wire takes it");
        let back = row.wire.receive(DEADLINE);
        assert_eq!(back, Some(udp(row.mac, true).swapped()), "{}", row.family.driver);
    }
}

fn set_link(qmp: &mut Qmp, n: usize, up: bool) {
    qmp.run("set_link", json!({"name": format!("n{n}"), "up": up}));
}

fn boot(lab: &Lab, dir: &Path, rows: &[Row<'_>]) -> Machine {
    let echo = driver_example("nic_echo");
    let mut builder = Builder::new(lab, "nics").memory_mib(512).viommu().program("bin/nic_echo", &echo);
    if rows.iter().any(|row| row.family.is_virtual_function()) {
        builder = builder.module("igb");
    }
    for row in rows {
        builder = builder.nic(row.family.device, &format!("n{}", row.n), &row.mac.to_string(), &row.wire);
    }
    builder
        .qemu_args(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", dir.join("qmp").display())])
        .boot(dir)
}

/// Has the guest's kernel make one virtual function of each card that a row is one of; what there is to echo.
fn addresses(machine: &mut Machine, rows: &[Row<'_>]) -> Vec<String> {
    let address = |row: &Row<'_>| {
        let card = format!("0000:0{}:00.0", row.n + 1);
        if !row.family.is_virtual_function() {
            return card;
        }
        let function = machine.sh(&format!(
            "cd /sys/bus/pci/devices/{card}
             echo 1 >sriov_numvfs
             echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 # the card itself says nothing
             ip link set $(ls net) up
             basename $(readlink virtfn0)"
        ));
        function.trim().to_owned()
    };
    rows.iter().map(address).collect()
}

/// The program wants three huge pages for each NIC.
fn start_echo(machine: &mut Machine, addresses: &[String]) {
    machine.sh("echo 32 > /proc/sys/vm/nr_hugepages; test $(cat /proc/sys/vm/nr_hugepages) -ge 21");
    let script = "mkdir -p /run/echo; rm -f /run/echo/stop /run/echo/log; nic_echo /run/echo";
    machine.sh(&format!("{script} {} >/run/echo/log 2>&1 & sleep 0.1", addresses.join(" ")));
}

/// A virtual function has the address that its driver chose.
fn learn_addresses(machine: &mut Machine, rows: &mut [Row<'_>]) {
    let log = machine.sh("cat /run/echo/log");
    for row in rows.iter_mut().filter(|row| row.family.is_virtual_function()) {
        let lead = format!("nic {}: {} mac Some(", row.n, row.family.driver);
        let mac = log.lines().find_map(|line| line.strip_prefix(&lead)?.strip_suffix(')')?.parse().ok());
        row.mac = mac.expect("the program says which address");
    }
}

fn stop_echo(machine: &mut Machine) -> String {
    machine.sh("touch /run/echo/stop");
    log_says(machine, "buffers out: 0", 1);
    machine.sh("cat /run/echo/log")
}

fn counter(log: &str, n: usize, name: &str) -> u64 {
    let lead = format!("nic {n}: counter {name} ");
    let of_all_starts = log.lines().rev().find_map(|line| line.strip_prefix(&lead));
    of_all_starts.map_or(0, |value| value.parse().expect("a number"))
}

#[test]
fn every_family_moves_frames_exactly_behind_real_vfio() {
    let name = "every_family_moves_frames_exactly_behind_real_vfio";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let row = |(n, family)| {
        let mac = Mac([0x52, 0x54, 0, 0, 0, n as u8 + 1]);
        let wire = Wire::new(dir.path(), &format!("wire{n}")).expect("a socket");
        Row { family, n, mac, wire, sent: 0, retag: None }
    };
    let mut rows: Vec<Row<'_>> = FAMILIES.iter().enumerate().map(row).collect();
    let mut machine = boot(&lab, dir.path(), &rows);
    let addresses = addresses(&mut machine, &rows);
    start_echo(&mut machine, &addresses);
    log_says(&mut machine, "started", rows.len());
    learn_addresses(&mut machine, &mut rows);
    log_says(&mut machine, "link Up", rows.len());
    rows.iter_mut().for_each(Row::wait_up);
    // From here on every frame is counted: the last start of each device sees these and no others.
    for n in 0..rows.len() {
        machine.sh(&format!("touch /run/echo/restart-{n}"));
    }
    log_says(&mut machine, "started", 2 * rows.len());
    log_says(&mut machine, "link Up", 2 * rows.len());
    exact_traffic(&mut machine, &mut rows);

    let mut qmp = wait_for("QEMU's monitor", DEADLINE, || Qmp::connect(&dir.path().join("qmp")));
    for n in 0..rows.len() {
        set_link(&mut qmp, n, false);
    }
    log_says(&mut machine, "link Down", rows.len());
    for n in 0..rows.len() {
        set_link(&mut qmp, n, true);
    }
    log_says(&mut machine, "link Up", 4 * rows.len());
    rows.iter_mut().for_each(Row::wait_up);

    reset_under_load(&mut machine, &mut rows);
    registers_vanish(&mut machine, &mut rows);
    let log = stop_echo(&mut machine);
    println!("{log}");
    for (n, row) in rows.iter().enumerate().filter(|(_, row)| row.family.checks) {
        assert!(counter(&log, n, "link_interrupts") > 0, "{}: {log}", row.family.driver);
    }

    for (n, _) in rows.iter().enumerate().filter(|(_, row)| row.family.is_virtual_function()) {
        let [refusals, starts] = ["pf_refusals", "starts"].map(|name| counter(&log, n, name));
        assert_eq!(refusals, starts, "Linux refuses to be promiscuous for it, and grants all else: {log}");
    }
    for (n, row) in rows.iter().enumerate() {
        let accepted = counter(&log, n, "driver_features");
        let packed = row.family.device.contains("packed=on");
        assert_eq!(accepted >> 34 & 1 == 1, packed, "{}: {accepted:#x}", row.family.driver);
    }

    // Given back, and taken again.
    start_echo(&mut machine, &addresses);
    log_says(&mut machine, "link Up", rows.len());
    learn_addresses(&mut machine, &mut rows);
    rows.iter_mut().for_each(Row::wait_up);
    rows.iter_mut().for_each(|row| row.burst(&mut machine, 33, 1500));
    let n_retagged = retagged_traffic(&mut machine, &mut rows);
    let log = stop_echo(&mut machine);
    for (n, row) in rows.iter().enumerate() {
        let by_card = ["rx_tags_stripped", "tx_tags_inserted"].map(|name| counter(&log, n, name));
        let wanted = [0, 1].map(|side| if row.family.tags[side] { n_retagged[side] } else { 0 });
        assert_eq!(by_card, wanted, "{}: {log}", row.family.driver);
    }
    assert!(!log.contains("error") && !log.contains("fault:"), "{log}");
    let faults =
        machine.run("dmesg | grep -i -e 'DMAR:.*fault' -e 'DMA Read' -e 'DMA Write' -e 'BUG:' -e 'Oops'");
    assert_eq!(faults.text, "", "the kernel saw stray DMA or worse");
}

/// All sizes and bursts; then the counters of queues and cards say the same.
fn exact_traffic(machine: &mut Machine, rows: &mut [Row<'_>]) {
    for row in rows.iter_mut() {
        for payload_len in PAYLOADS {
            row.burst(machine, 32, payload_len);
        }
        for burst in BURSTS {
            row.burst(machine, burst, 46);
        }
        checksums(row);
        row.nothing_more();
    }
    for n in 0..rows.len() {
        machine.sh(&format!("touch /run/echo/restart-{n}"));
    }
    log_says(machine, "started", 3 * rows.len());
    log_says(machine, "link Up", 3 * rows.len());
    let log = machine.sh("cat /run/echo/log");
    for (n, row) in rows.iter().enumerate() {
        let driver = row.family.driver;
        let n_frames = (32 * PAYLOADS.len() + BURSTS.iter().sum::<usize>() + 2) as u64;
        for half in ["rx", "tx"] {
            let moved = |line: &&str| line.starts_with(&format!("nic {n}: {half} "));
            let (first, last) = (log.lines().find(moved), log.lines().rfind(moved));
            assert_eq!(packets(last) - packets(first), n_frames, "{driver} {half}: {log}");
            assert!(last.is_some_and(|line| line.contains("drops: {}")), "{driver} {half}: {last:?}");
        }
        for name in row.family.counts.iter().flatten() {
            let lead = format!("nic {n}: counter {name} ");
            let of_starts: Vec<u64> =
                log.lines().filter_map(|line| line.strip_prefix(&lead)?.parse().ok()).collect();
            assert_eq!(of_starts[1] - of_starts[0], n_frames, "{driver} {name}: {log}");
        }
        if row.family.checks {
            assert_eq!(counter(&log, n, "rx_checksums_right"), 1, "{driver}: {log}");
            assert_eq!(counter(&log, n, "rx_checksums_wrong"), 1, "{driver}: {log}");
        }
    }
}

/// Memory decoding goes off under the driver: all registers read as ones. It notices, starts the card anew, and lets in
/// what it let in before and nothing else.
fn registers_vanish(machine: &mut Machine, rows: &mut [Row<'_>]) {
    let n_started = |machine: &mut Machine| -> usize {
        let count = machine.sh("grep -c started /run/echo/log");
        count.trim().parse().expect("a number")
    };
    for row in rows.iter_mut().filter(|row| ["e1000e", "igb"].contains(&row.family.driver)) {
        let n = row.n;
        machine.sh(&format!("touch /run/echo/filter-{n}"));
        log_says(machine, &format!("nic {n}: filters"), 1);
        row.only_its_addresses_pass();

        let before = n_started(machine);
        machine.sh(&format!("touch /run/echo/vanish-{n}"));
        log_says(machine, &format!("nic {n}: fault: its registers read all ones"), 1);
        log_says(machine, "started", before + 1);
        row.wait_up();
        row.only_its_addresses_pass();
        row.burst(machine, 33, 1500);
    }
}

/// Every frame comes back with one tag in place of the one it may have, from all families alike, whoever does it. How many had
/// one, and how many got one.
fn retagged_traffic(machine: &mut Machine, rows: &mut [Row<'_>]) -> [u64; 2] {
    for n in 0..rows.len() {
        machine.sh(&format!("touch /run/echo/retag-{n}"));
    }
    log_says(machine, "retags", rows.len());
    for row in rows.iter_mut() {
        // Every third from here on has a tag, of another priority.
        (row.retag, row.sent) = (Some((100, 5)), 0);
        for payload_len in PAYLOADS {
            row.burst(machine, 33, payload_len);
        }
        row.nothing_more();
    }
    let n_frames = 33 * PAYLOADS.len() as u64;
    [n_frames / 3, n_frames]
}

/// The packets in a line of queue counters.
fn packets(line: Option<&str>) -> u64 {
    let number = line.and_then(|line| line.split("packets: ").nth(1)?.split(',').next()?.parse().ok());
    number.expect("a line of counters")
}

/// Frames flow while each device is started anew; afterwards all is exact again.
fn reset_under_load(machine: &mut Machine, rows: &mut [Row<'_>]) {
    for round in 0..2 {
        for (n, row) in rows.iter_mut().enumerate() {
            machine.sh(&format!("touch /run/echo/restart-{n}"));
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                let frame = Frame::numbered(row.mac, FAR, None, row.sent, 1000);
                // The NIC takes none while it is down; they wait, or the socket is full.
                let _ = row.wire.send(&frame);
            }
        }
        log_says(machine, "started", (4 + round) * rows.len());
    }
    for row in rows {
        row.wait_up();
        row.wire.drain(Duration::from_millis(500));
        row.burst(machine, 33, 1500);
    }
}
