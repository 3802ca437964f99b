//! Components that share a guest by its queues: `vhost:0nq0` with one, `vhost:0nq1` with another.

use std::collections::BTreeMap;

use spp_pipeline::config::NodeConfig;
use spp_pipeline::names::PortName;
use spp_pipeline::node::{Node, NodeError};
use spp_pipeline::plan::VlanOp;
use spp_pipeline::topology::Direction;
use spp_vhost::guest::{Guest, TX_RING};

use crate::support::*;

const N_FLOWS: u16 = 64;

/// Frame `number` of a UDP flow to a guest, on a VLAN or not.
fn udp(dst: u8, vlan: Option<u16>, flow: u16, number: u32) -> Vec<u8> {
    let mut bytes = mac(dst).0.to_vec();
    bytes.extend(mac(0xee).0);
    bytes.extend(vlan.map_or(Vec::new(), |vid| [[0x81, 0], vid.to_be_bytes()].concat()));
    bytes.extend([8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend(flow.to_be_bytes());
    bytes.extend([0, 53, 0, 26, 0, 0]);
    bytes.extend(number.to_be_bytes());
    bytes.resize(64, 0);
    bytes
}

/// Flow and number of a frame with a tag of VLAN 100 or, `tagged` false, with none.
fn flow_of(frame: &[u8], tagged: bool) -> (u16, u32) {
    assert_eq!(frame[12..14] == [0x81, 0], tagged, "{frame:x?}");
    assert!(!tagged || frame[14..16] == [0, 100]);
    let at = if tagged { 38 } else { 34 };
    let number = frame[at + 8..at + 12].try_into().unwrap();
    (u16::from_be_bytes([frame[at], frame[at + 1]]), u32::from_be_bytes(number))
}

/// Two components each way for vhost 0, one for vhost 1.
fn start(site: &Site) -> Node {
    let forward = |core: usize, name: &str, rx: &str, tx: &str| serde_json::json!({"core": core, "type": "forward", "name": name, "rx_port": [rx], "tx_port": [tx]});
    let json = serde_json::json!({"vf": [{"num_vhost": 2, "physical_network": "p", "core_mask": "0x3ff",
        "pci_address": format!("vhost-user:{}", site.path("wire0").display()), "components": [
        forward(1, "t0a", "ring:0", "vhost:0nq0"), forward(2, "t0b", "ring:4", "vhost:0nq1"),
        forward(3, "r0a", "vhost:0nq0", "ring:1"), forward(4, "r0b", "vhost:0nq1", "ring:5"),
        forward(5, "t1", "ring:2", "vhost:1"), forward(6, "r1", "vhost:1", "ring:3"),
        {"core": 7, "type": "classifier", "name": "c", "rx_port": ["phy:0"],
         "tx_port": ["ring:0", "ring:2", "ring:4"]},
        {"core": 8, "type": "merge", "name": "m", "rx_port": ["ring:1", "ring:3", "ring:5"],
         "tx_port": ["phy:0"]}]}]});
    let config = NodeConfig::parse(json.to_string().as_bytes()).unwrap();
    assert_eq!(config.n_rings(), 6, "those that are named, beyond two for each vhost");
    Node::start(config, site.options()).unwrap()
}

/// What was sent and what came, flow by flow. In each of the guest's queues a flow's frames are in order; each frame comes once.
#[derive(Default)]
struct Ledger {
    sent: BTreeMap<u16, u32>,
    /// By flow and queue: the last number.
    last: BTreeMap<(u16, usize), u32>,
    seen: std::collections::BTreeSet<(u16, u32)>,
    by_queue: [usize; 2],
}

impl Ledger {
    fn next(&mut self, flow: u16) -> u32 {
        let number = self.sent.entry(flow).or_default();
        *number += 1;
        *number
    }

    fn came(&mut self, queue: usize, (flow, number): (u16, u32)) {
        assert!(self.seen.insert((flow, number)), "flow {flow} frame {number} came twice");
        let last = self.last.insert((flow, queue), number);
        assert!(
            last.is_none_or(|last| last < number),
            "flow {flow} on queue {queue}: {last:?}, then {number}"
        );
        self.by_queue[queue] += 1;
    }

    fn n_missing(&self) -> usize {
        self.sent.values().map(|n| *n as usize).sum::<usize>() - self.seen.len()
    }
}

/// A wave of every flow from the wire to the guest, all of which arrive.
fn wave_in(node: &mut Node, wire: &mut Guest, vm: &mut Guest, ledger: &mut Ledger) {
    for _ in 0..5 {
        for flow in 0..N_FLOWS {
            send(wire, &udp(0, Some(100), flow, ledger.next(flow)));
        }
        eventually(node, "the wave is with the guest", |_| {
            take(vm, ledger);
            ledger.n_missing() == 0
        });
    }
}

fn take(vm: &mut Guest, ledger: &mut Ledger) {
    let mut buf = Vec::new();
    for queue in 0..2 {
        while vm.receive_on(queue, &mut buf) {
            ledger.came(queue, flow_of(&buf, false));
        }
    }
}

/// A wave of every flow from the guest to the wire, each on its queue.
fn wave_out(node: &mut Node, wire: &mut Guest, vm: &mut Guest, ledger: &mut Ledger) {
    for flow in 0..N_FLOWS {
        let queue = usize::from(flow % 2);
        let frame = udp(0xee, None, flow, ledger.next(flow));
        eventually(node, "there is room", |_| vm.send_on(queue, &frame));
    }
    let mut buf = Vec::new();
    eventually(node, "the wave is on the wire", |_| {
        while wire.receive(&mut buf) {
            ledger.came(0, flow_of(&buf, true));
        }
        ledger.n_missing() == 0
    });
}

fn drops(node: &mut Node) -> u64 {
    let status = node.status();
    let components = status.vfs[0].components.iter().map(|c| c.drops.values().sum::<u64>());
    components.sum::<u64>() + status.vfs[0].vhosts.iter().map(|v| v.to_guest.total_drops()).sum::<u64>()
}

#[test]
fn two_components_serve_a_queue_each_of_one_guest() {
    let site = Site::new();
    let mut node = start(&site);
    node.plug(&plug(0, Some(100))).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest_with(&mut node, 0, |config| config.n_pairs = 2));
    let (mut inward, mut outward) = (Ledger::default(), Ledger::default());
    wave_in(&mut node, &mut wire, &mut vm, &mut inward);
    wave_out(&mut node, &mut wire, &mut vm, &mut outward);
    assert!(inward.by_queue.iter().all(|n| *n > 80), "{:?}", inward.by_queue);
    let n_queues_of = |flow| (0..2).filter(|queue| inward.last.contains_key(&(flow, *queue))).count();
    assert!((0..N_FLOWS).all(|flow| n_queues_of(flow) == 1), "a flow keeps to its queue");
    let status = node.status();
    let queues = &status.vfs[0].vhosts[0].queues;
    let to: Vec<_> =
        queues.iter().map(|queue| (queue.to_guest.component.as_deref(), queue.to_guest.packets)).collect();
    let n = inward.by_queue.map(|n| n as u64);
    assert_eq!(to, [(Some("t0a"), n[0]), (Some("t0b"), n[1])]);
    let from: Vec<_> = queues
        .iter()
        .map(|queue| (queue.from_guest.component.as_deref(), queue.from_guest.packets))
        .collect();
    assert_eq!(from, [(Some("r0a"), 32), (Some("r0b"), 32)]);
    assert_eq!(status.vfs[0].components[1].tx_packets, n[1]);
    // A group frame comes once, not once for each of them.
    let mut group = udp(0, Some(100), 1, inward.next(1));
    group[..6].copy_from_slice(&[0xff; 6]);
    send(&mut wire, &group);
    eventually(&mut node, "the broadcast comes", |_| {
        take(&mut vm, &mut inward);
        inward.n_missing() == 0
    });
    assert_silent(&mut vm);
    assert_eq!(drops(&mut node), 0);
}

#[test]
fn guest_with_fewer_queues_than_components_gets_all_its_frames() {
    let site = Site::new();
    let mut node = start(&site);
    node.plug(&plug(0, Some(100))).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest_with(&mut node, 0, |config| config.n_pairs = 2));
    let mut inward = Ledger::default();
    for round in 0..6 {
        let both = round % 2 == 0;
        vm.enable_ring(2, both).unwrap();
        vm.enable_ring(2 + TX_RING, both).unwrap();
        eventually(&mut node, "as many queues as are enabled", |node| {
            node.status().vfs[0].vhosts[0].queues[1].to_guest.running == both
        });
        let before = inward.by_queue;
        wave_in(&mut node, &mut wire, &mut vm, &mut inward);
        assert_eq!(inward.by_queue[1] > before[1], both, "{:?} {before:?}", inward.by_queue);
    }
    assert_eq!(drops(&mut node), 0, "{:#?}", node.status());
}

#[test]
fn queue_taken_from_its_component_and_given_back_under_traffic_loses_no_frame() {
    let site = Site::new();
    let mut node = start(&site);
    node.plug(&plug(0, Some(100))).unwrap();
    let (mut wire, mut vm) = (site.wire("wire0"), site.guest_with(&mut node, 0, |config| config.n_pairs = 2));
    let (mut inward, mut outward) = (Ledger::default(), Ledger::default());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let queue = PortName::VhostQueue(0, 1);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let (mut flow, mut buf) = (0, Vec::new());
            let start = std::time::Instant::now();
            let mut over = false;
            while !over || inward.n_missing() + outward.n_missing() > 0 {
                over = over || stop.load(std::sync::atomic::Ordering::Relaxed);
                assert!(
                    start.elapsed() < 2 * DEADLINE,
                    "missing {} in, {} out",
                    inward.n_missing(),
                    outward.n_missing()
                );
                flow = (flow + 1) % N_FLOWS;
                if !over && inward.n_missing() < 100 {
                    let number = inward.next(flow);
                    send(&mut wire, &udp(0, Some(100), flow, number));
                }
                if !over && outward.n_missing() < 100 {
                    let number = outward.next(flow);
                    while !vm.send_on(usize::from(flow % 2), &udp(0xee, None, flow, number)) {
                        assert!(start.elapsed() < 2 * DEADLINE, "no room");
                        std::thread::yield_now();
                    }
                }
                take(&mut vm, &mut inward);
                while wire.receive(&mut buf) {
                    outward.came(0, flow_of(&buf, true));
                }
            }
        });
        for round in 0..10 {
            node.port_detach(1, "t0b", queue, Direction::Tx).unwrap();
            node.port_detach(1, "r0b", queue, Direction::Rx).unwrap();
            let status = node.status();
            assert_eq!(status.vfs[0].vhosts[0].queues[1].from_guest.component.as_deref(), Some("r0a"));
            // In some rounds the rest goes to a component by the port's own name meanwhile.
            if round % 3 == 0 {
                node.component_start(1, "rest", 9, spp_pipeline::names::ComponentKind::Forward).unwrap();
                node.port_attach(1, "rest", PortName::Vhost(0), Direction::Rx, VlanOp::None).unwrap();
                node.component_stop(1, "rest").unwrap();
            }
            (0..20).for_each(|_| {
                node.tick();
                std::thread::sleep(std::time::Duration::from_millis(1));
            });
            node.port_attach(1, "t0b", queue, Direction::Tx, VlanOp::None).unwrap();
            node.port_attach(1, "r0b", queue, Direction::Rx, VlanOp::None).unwrap();
            (0..20).for_each(|_| {
                node.tick();
                std::thread::sleep(std::time::Duration::from_millis(1));
            });
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        traffic.join().unwrap();
    });
    assert!(inward.seen.len() > 1000 && inward.by_queue[1] > 100, "{:?}", inward.by_queue);
    assert_eq!(drops(&mut node), 0, "{:#?}", node.status());
}

#[test]
fn queues_that_a_port_does_not_have_are_refused_in_words() {
    let site = Site::new();
    let mut node = start(&site);
    let refusal = |node: &mut Node, port, what: &str| {
        let error = node.port_attach(1, "m", port, Direction::Rx, VlanOp::None).unwrap_err();
        assert!(matches!(&error, NodeError::Edit(edit) if edit.what.contains(what)), "{error}");
    };
    refusal(
        &mut node,
        PortName::VhostQueue(0, 16),
        "there is no vhost:0nq16: vhost:0 has 16 queue pairs, nq0 to nq15",
    );
    refusal(&mut node, PortName::VhostQueue(2, 0), "there is no vhost:2nq0");
    refusal(&mut node, PortName::PhyQueue(0, 1), "phy:0 was started with 1 queue pair");
    refusal(&mut node, PortName::VhostQueue(0, 1), "vhost:0nq1 is in use by r0b");
    drop(node);
    let mut config = NodeConfig::from_mappings("null:#p#1#0x3e").unwrap();
    let mut components = config.components(0).unwrap();
    components[2].rx[0] = PortName::PhyQueue(0, 2);
    config.vfs[0].components = Some(components);
    let error = Node::start(config, site.options()).map(drop).unwrap_err().to_string();
    assert!(error.contains("has 1 queue pair(s), and the configuration names 3"), "{error}");
}
