//! virtio-net with several pairs of queues, on devices that are not ours, behind a real kernel's VFIO and a virtual
//! IOMMU: the host's kernel talks to `nic_echo` in the machine over taps of two queues. The kernel leaves checksums
//! undone, and takes frames whose checksums are undone: the header in front of a frame is believed both ways.

#[path = "support/lab/mod.rs"]
mod lab;

use std::path::Path;
use std::time::Duration;

use lab::machine::{Builder, Machine};
use lab::netns::NetNs;
use lab::{Lab, driver_example, skipped, wait_for};

const DEADLINE: Duration = Duration::from_secs(60);
const N_PAIRS: usize = 2;
const N_FLOWS: usize = 32;

struct Device {
    /// QEMU's options besides those that all have.
    options: &'static str,
    /// Feature bits the driver must have accepted.
    accepts: &'static [u32],
    /// Payloads.
    sizes: &'static [usize],
}

const DEVICES: [Device; 5] = [
    Device { options: "mq=on", accepts: &[0, 1, 11, 12, 17, 18, 22], sizes: &[1, 1400, 8900] },
    Device { options: "mq=on,packed=on", accepts: &[0, 1, 11, 12, 17, 22, 34], sizes: &[1, 1400, 8900] },
    Device { options: "mq=on,rss=on", accepts: &[0, 1, 17, 22, 60], sizes: &[1, 1400, 8900] },
    // Each frame in one buffer, or the driver accepts no completions in order.
    Device { options: "mq=on,in_order=on,mrg_rxbuf=off", accepts: &[0, 1, 17, 22, 35], sizes: &[1, 1400] },
    Device {
        options: "mq=on,rss=on,packed=on,in_order=on,mrg_rxbuf=off",
        accepts: &[0, 1, 17, 22, 34, 35, 60],
        sizes: &[1, 1400],
    },
];

/// Sends to the device from many ports and takes each answer back at the port it belongs to: in waves of all flows.
const FLOWS: &str = r#"
import socket, sys
peer, n_flows, size, waves = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sockets = []
for n in range(n_flows):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", 21000 + n))
    s.settimeout(20)
    sockets.append(s)
for wave in range(waves):
    payload = lambda n: (f"{wave} {n} " * size)[:size].encode()
    for n, s in enumerate(sockets):
        s.sendto(payload(n), (peer, 4243))
    for n, s in enumerate(sockets):
        data, sender = s.recvfrom(65536)
        assert (data, sender) == (payload(n), (peer, 4243)), (wave, n, len(data), sender)
"#;

fn mac(n: usize) -> String {
    format!("52:54:00:00:01:0{n}")
}

/// A tap of several queues for each device, with an address on it and the device's address known.
fn taps(dir: &Path) -> Result<NetNs, String> {
    let netns = NetNs::new(dir)?;
    let lines = (0..DEVICES.len()).map(|n| {
        format!(
            "ip tuntap add mq{n} mode tap multi_queue vnet_hdr
             ip addr add 10.9.{n}.1/24 dev mq{n}
             ip link set mq{n} mtu 9000 up
             ip neigh add 10.9.{n}.2 lladdr {} dev mq{n}\n",
            mac(n)
        )
    });
    let output = netns.sh(&lines.collect::<String>()).map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(netns),
        false => Err(format!("no taps here: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn boot(lab: &Lab, dir: &Path, netns: &NetNs) -> Machine {
    let echo = driver_example("nic_echo");
    let mut builder =
        Builder::new(lab, "queues").memory_mib(512).viommu().netns(netns).program("bin/nic_echo", &echo);
    for (n, Device { options, .. }) in DEVICES.iter().enumerate() {
        let device = format!("virtio-net-pci,iommu_platform=on,disable-legacy=on,ats=on,vectors=6,{options}");
        let netdev = format!("tap,id=n{n},ifname=mq{n},script=no,downscript=no,vhost=off,queues={N_PAIRS}");
        builder = builder.nic_at(&device, &format!("n{n}"), &mac(n), netdev);
    }
    builder.boot(dir)
}

fn log_says(machine: &mut Machine, what: &str, n_times: usize) {
    let script =
        format!("test $(grep -c '{what}' /run/echo/log) -ge {n_times} || {{ cat /run/echo/log; false; }}");
    machine.wait_sh(&format!("{what:?}, {n_times} times"), DEADLINE, &script);
}

fn try_flows(netns: &NetNs, script: &Path, n: usize, n_flows: usize, size: usize) -> Result<(), String> {
    let line = format!("python3 {} 10.9.{n}.2 {n_flows} {size} 4", script.display());
    let output = netns.sh(&line).map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Every answer comes back whole, from frames of one byte to jumbo frames over several buffers.
fn flows(machine: &mut Machine, netns: &NetNs, script: &Path, n: usize) {
    for size in DEVICES[n].sizes {
        if let Err(error) = try_flows(netns, script, n, N_FLOWS, *size) {
            let log = stop_echo(machine);
            panic!("{}, {size} bytes: {error}\n{log}", DEVICES[n].options);
        }
    }
}

fn stop_echo(machine: &mut Machine) -> String {
    machine.sh("touch /run/echo/stop");
    log_says(machine, "buffers out: 0", 1);
    machine.sh("cat /run/echo/log")
}

/// The last value of a counter of device `n`.
fn counter(log: &str, n: usize, name: &str) -> u64 {
    let lead = format!("nic {n}: counter {name} ");
    let value = log.lines().rev().find_map(|line| line.strip_prefix(&lead));
    value.map_or(0, |value| value.parse().expect("a number"))
}

/// Packets of the last queues of one direction of device `n`, when it stopped for the `stop`th time.
fn packets(log: &str, n: usize, half: &str, stop: usize) -> Vec<u64> {
    let lead = format!("nic {n}: {half} ");
    let lines = log.lines().filter(|line| line.starts_with(&lead)).skip(stop * N_PAIRS).take(N_PAIRS);
    lines
        .map(|line| {
            assert!(line.contains("drops: {}"), "{line}");
            let number = line.split("packets: ").nth(1).and_then(|rest| rest.split(',').next());
            number.expect("a line of counters").parse().expect("a number")
        })
        .collect()
}

#[test]
fn all_queue_pairs_of_virtio_net_work_behind_real_vfio_and_after_a_restart() {
    let name = "all_queue_pairs_of_virtio_net_work_behind_real_vfio_and_after_a_restart";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let netns = match taps(dir.path()) {
        Ok(netns) => netns,
        Err(reason) => return skipped(name, &reason),
    };
    let script = dir.path().join("flows.py");
    std::fs::write(&script, FLOWS).expect("scratch space");
    let mut machine = boot(&lab, dir.path(), &netns);
    machine.sh("echo 20 > /proc/sys/vm/nr_hugepages; test $(cat /proc/sys/vm/nr_hugepages) -ge 15");
    let addresses: Vec<String> =
        (1..=DEVICES.len()).map(|bus| format!("0000:0{bus}:00.0/{N_PAIRS}")).collect();
    let echo =
        format!("mkdir -p /run/echo; nic_echo /run/echo {} >/run/echo/log 2>&1 &", addresses.join(" "));
    machine.sh(&format!("{echo} sleep 0.1"));
    log_says(&mut machine, "link Up", DEVICES.len());

    for start in 1..=2 {
        for n in 0..DEVICES.len() {
            wait_for("an answer", DEADLINE, || try_flows(&netns, &script, n, 1, 1));
            flows(&mut machine, &netns, &script, n);
        }
        if start == 1 {
            (0..DEVICES.len()).for_each(|n| drop(machine.sh(&format!("touch /run/echo/restart-{n}"))));
            log_says(&mut machine, "started", 2 * DEVICES.len());
            log_says(&mut machine, "link Up", 2 * DEVICES.len());
        }
    }
    let log = stop_echo(&mut machine);
    println!("{log}");
    for (n, Device { options, accepts, .. }) in DEVICES.iter().enumerate() {
        let accepted = counter(&log, n, "driver_features");
        let missing: Vec<_> = accepts.iter().filter(|bit| accepted >> **bit & 1 == 0).collect();
        assert!(missing.is_empty(), "{options}: {missing:?} of {accepted:#x}\n{log}");
        for half in ["rx", "tx"] {
            let (before, after) = (packets(&log, n, half, 0), packets(&log, n, half, 1));
            let each: Vec<_> =
                before.iter().zip(&after).map(|(before, after)| (*before, after - before)).collect();
            assert!(
                each.len() == N_PAIRS && each.iter().all(|(a, b)| *a > 0 && *b > 0),
                "{options} {half}: {each:?}"
            );
        }
        assert!(counter(&log, n, "rx_checksums_undone") > 0, "{options}\n{log}");
        assert_eq!(counter(&log, n, "rss_refusals"), 0, "{options}\n{log}");
    }
    assert!(!log.contains("error") && !log.contains("fault:"), "{log}");
    let faults =
        machine.run("dmesg | grep -i -e 'DMAR:.*fault' -e 'DMA Read' -e 'DMA Write' -e 'BUG:' -e 'Oops'");
    assert_eq!(faults.text, "", "the kernel saw stray DMA or worse");
}
