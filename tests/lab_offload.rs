//! Two Linux guests under QEMU with a NIC each for every row of [`ROWS`]: one guest is a VM, the other plays the networks behind
//! `vhost-user:`. Ping, bulk TCP both ways over IPv4 and IPv6, bulk UDP, over one queue and four; flat and on a VLAN whose tag the
//! second guest puts on itself. What arrives is compared by its hash, and no kernel counts a bad checksum.
//! No guest ever runs `ethtool -K`.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::machine::{Builder, Machine};
use lab::node::{Node, vf};
use lab::transfer::{self, Tools, counter, probe, tcp, udp};
use lab::{Lab, skipped};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(180);
/// Of each file, one for each flow.
const BULK_KIB: u64 = 1024;

/// One NIC of each guest, joined by one NIC of the node.
struct Row {
    n_queues: usize,
    packed: bool,
    /// Of the VM, and of its network.
    offloads: [bool; 2],
}

const fn row(n_queues: usize, packed: bool, offloads: [bool; 2]) -> Row {
    Row { n_queues, packed, offloads }
}

const ALL: [bool; 2] = [true, true];
const NONE: [bool; 2] = [false, false];
const VM_ONLY: [bool; 2] = [true, false];

const ROWS: [Row; 10] = [
    row(1, false, ALL),
    row(1, false, NONE),
    row(1, false, VM_ONLY),
    row(1, true, ALL),
    row(1, true, NONE),
    row(4, false, ALL),
    row(4, false, NONE),
    row(4, true, ALL),
    row(4, true, NONE),
    row(4, true, VM_ONLY),
];

impl Row {
    /// What QEMU is to offer to one of the two guests.
    fn options(&self, guest: usize) -> String {
        const OFF: &str = ",csum=off,host_tso4=off,host_tso6=off,host_ecn=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off";
        let mut options = String::new();
        options += if self.packed { ",packed=on" } else { "" };
        options += if self.n_queues > 1 { ",mq=on,vectors=10" } else { "" };
        options + if self.offloads[guest] { "" } else { OFF }
    }

    fn name(&self) -> String {
        let ring = if self.packed { "packed" } else { "split" };
        let [vm, wire] = self.offloads.map(|on| if on { "with" } else { "without" });
        format!("{} queues, {ring} rings, VM {vm} offloads, its network {wire}", self.n_queues)
    }

    /// Several flows, where there are queues to spread them over.
    fn n_flows(&self) -> usize {
        if self.n_queues > 1 { 6 } else { 1 }
    }
}

#[test]
fn linux_guests_pass_bulk_tcp_and_udp_with_right_checksums_over_one_queue_and_four() {
    let name = "linux_guests_pass_bulk_tcp_and_udp_with_right_checksums_over_one_queue_and_four";
    let lab = match Lab::find() {
        Ok(lab) => lab,
        Err(reason) => return skipped(name, &reason),
    };
    let tools = match Tools::find() {
        Ok(tools) => tools,
        Err(reason) => return skipped(name, &reason),
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let mut pair = Pair::start(&lab, dir.path(), &tools);
    for (number, row) in ROWS.iter().enumerate() {
        println!("--- {}", row.name());
        pair.flat(number, row);
        pair.vlan(number, row);
        pair.check_counters(number, row);
    }
}

/// The VM's address on a row's network, or its peer's.
fn ip(number: usize, guest: usize) -> String {
    format!("10.77.{number}.{}", guest + 1)
}

fn mac(number: usize, guest: usize) -> String {
    format!("fa:16:3e:00:{number:02x}:{:02x}", guest + 1)
}

/// A node between two guests.
struct Pair {
    node: Node,
    vm: Machine,
    wire: Machine,
}

impl Pair {
    fn start(lab: &Lab, dir: &Path, tools: &Tools) -> Pair {
        let path = |name: &str, number: usize| dir.join(format!("{name}{number}")).display().to_string();
        let nic = |number| vf(number, &format!("vhost-user:{}", path("wire", number)), 1);
        let node = Node::start(dir, &(0..ROWS.len()).map(nic).collect::<Vec<_>>(), None);
        let guest = |which: usize, name: &str, socket: &str, how: &str| {
            let mut builder = Builder::new(lab, name).cpus(2).memory_mib(384);
            builder = builder.module("virtio_net").module("8021q");
            builder = tools.put_into(builder);
            for (number, row) in ROWS.iter().enumerate() {
                let (mac, options) = (mac(number, which), row.options(which));
                builder = builder.qemu_args([
                    "-chardev",
                    &format!("socket,id=c{number},path={},{how}", path(socket, number)),
                    "-netdev",
                    &format!("vhost-user,id=n{number},chardev=c{number},queues={}", row.n_queues),
                    "-device",
                    &format!("virtio-net-pci,netdev=n{number},mac={mac},romfile={options}"),
                ]);
            }
            builder.start(dir)
        };
        let mut vm = guest(0, "vm", "sock", "server=on,wait=off");
        let mut wire = guest(1, "peer", "wire", "reconnect-ms=500");
        vm.wait_up();
        wire.wait_up();
        for (which, guest) in [&mut vm, &mut wire].into_iter().enumerate() {
            transfer::prepare(guest, BULK_KIB);
            let mut script = String::new();
            for number in 0..ROWS.len() {
                script += &format!(
                    "nic=$(grep -l {} /sys/class/net/*/address | cut -d/ -f5)
                     ip link set $nic name row{number}
                     ip link set row{number} up
                     ip addr add {}/24 dev row{number}
                     ip -6 addr add fd00:{number}::{}/64 dev row{number}\n",
                    mac(number, which),
                    ip(number, which),
                    which + 1
                );
            }
            guest.sh(&script);
        }
        (0..ROWS.len()).for_each(|number| node.wait_running(number));
        Pair { node, vm, wire }
    }

    fn set_queues(&mut self, number: usize, n_queues: usize) {
        for guest in [&mut self.vm, &mut self.wire] {
            guest.sh(&format!("ethtool -L row{number} combined {n_queues}"));
        }
    }

    fn flat(&mut self, number: usize, row: &Row) {
        self.node.plug(number, &mac(number, 0), None);
        if row.n_queues > 1 {
            self.set_queues(number, row.n_queues);
        }
        self.traffic(number, row);
        let ipv6 = format!("fd00:{number}::2");
        self.vm.wait_sh("IPv6", PATIENCE, &format!("ping6 -c 1 -W 2 {ipv6}"));
        // In this order, a segment that is counted is among the packets.
        let (packets, segments) = (self.packets_from_vm(number), self.segments_of_vm());
        tcp(&mut self.vm, &mut self.wire, &ipv6, row.n_flows());
        let segments = self.segments_of_vm() - segments;
        let packets = self.packets_from_vm(number) - packets;
        // How long they are is for the VM's kernel to choose; that there were some shows in more segments than packets.
        println!("{segments} segments in {packets} packets");
        assert_eq!(segments > packets, row.offloads[0], "{}: {segments} segments in {packets}", row.name());
        if row.n_queues > 1 {
            self.check_queues(number);
        }
        self.node.unplug(number);
    }

    /// The VM knows nothing of the VLAN; its peer tags what it sends, long frames included.
    fn vlan(&mut self, number: usize, row: &Row) {
        let (id, address) = (100 + number as u16, ip(number, 1));
        self.wire.sh(&format!(
            "ip addr del {address}/24 dev row{number}
             ip link add link row{number} name vlan{number} type vlan id {id}
             ip addr add {address}/24 dev vlan{number}
             ip link set vlan{number} up"
        ));
        self.node.plug(number, &mac(number, 0), Some(id));
        if row.n_queues > 1 {
            // Fewer than there are: the rest is switched off under traffic.
            self.set_queues(number, row.n_queues - 1);
        }
        self.traffic(number, row);
    }

    fn traffic(&mut self, number: usize, row: &Row) {
        let (vm, wire, n_flows) = (ip(number, 0), ip(number, 1), row.n_flows());
        self.vm.wait_sh("ping", PATIENCE, &format!("ping -c 2 -W 2 {wire}"));
        tcp(&mut self.vm, &mut self.wire, &wire, n_flows);
        tcp(&mut self.wire, &mut self.vm, &vm, n_flows);
        udp(&mut self.vm, &mut self.wire, &wire, n_flows);
        udp(&mut self.wire, &mut self.vm, &vm, n_flows);
        probe(&mut self.vm, &mut self.wire, &wire);
        probe(&mut self.wire, &mut self.vm, &vm);
    }

    fn packets_from_vm(&self, number: usize) -> u64 {
        self.node.vhost(number)["from_guest"]["packets"].as_u64().expect("a counter")
    }

    /// TCP segments as the VM's kernel counts them: several in a long frame.
    fn segments_of_vm(&mut self) -> u64 {
        counter(&self.vm.sh("cat /proc/net/snmp"), "Tcp", "OutSegs")
    }

    /// More than one queue carried packets, in both directions, as the VM's own driver counts them.
    fn check_queues(&mut self, number: usize) {
        let text = self.vm.sh(&format!("ethtool -S row{number}"));
        for way in ["rx", "tx"] {
            let counted = |line: &str| {
                let (name, packets) = line.trim().split_once("_packets: ")?;
                name.strip_prefix(way)?.strip_prefix("_queue_")?.parse::<u32>().ok()?;
                packets.parse::<u64>().ok()
            };
            let carried: Vec<u64> = text.lines().filter_map(counted).collect();
            println!("{way}, packets by queue: {carried:?}");
            let n_used = carried.iter().filter(|&&packets| packets > 100).count();
            assert!(n_used > 1, "{way}: {text}");
        }
    }

    fn check_counters(&mut self, number: usize, row: &Row) {
        for guest in [&mut self.vm, &mut self.wire] {
            let snmp = guest.sh("cat /proc/net/snmp /proc/net/snmp6");
            assert_eq!(counter(&snmp, "Tcp", "InCsumErrors"), 0, "{}: {snmp}", row.name());
            assert_eq!(counter(&snmp, "Udp", "InCsumErrors"), 0, "{}: {snmp}", row.name());
        }
        let vf = &self.node.status()["vfs"][number];
        let text = serde_json::to_string_pretty(vf).expect("it came as JSON");
        assert!(!text.contains("bad_offload"), "{}: {text}", row.name());
        let sum = |key: &str| -> u64 {
            let components = vf["components"].as_array().expect("components");
            components.iter().map(|component: &Value| component[key].as_u64().unwrap_or(0)).sum()
        };
        let [vm, wire] = row.offloads;
        let in_software = (sum("segmented") > 0, sum("checksummed") > 0);
        assert_eq!(in_software, (vm && !wire, vm && !wire), "{}: {text}", row.name());
    }
}
