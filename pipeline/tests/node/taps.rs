//! Mirrors in a running node: what is watched loses nothing, who watches gets everything, and what is left is nothing.

use spp_pipeline::config::{MirrorConfig, NodeConfig};
use spp_pipeline::names::PortName;
use spp_pipeline::node::Node;
use spp_pipeline::topology::{Tap, Way};
use spp_vhost::guest::Guest;

use crate::support::*;

/// One wire with three vhosts, and two mirrors.
fn node(site: &Site) -> Node {
    let mut config = NodeConfig::from_mappings(&site.wire_mapping("wire0", "phys1#3#0x1ff")).unwrap();
    let mirror = |core, ring| MirrorConfig { core, ports: [PortName::Ring(ring), PortName::Ring(ring + 1)] };
    config.mirrors = vec![mirror(16, 6), mirror(17, 8)];
    Node::start(config, site.options()).unwrap()
}

const IN: Tap = Tap { mirror: 1, way: Way::In, source: 0, dest: 1 };
const OUT: Tap = Tap { mirror: 0, way: Way::Out, source: 0, dest: 1 };

/// One way, the other, both.
const CASES: [&[Tap]; 3] = [&[IN], &[OUT], &[IN, OUT]];

struct Lab {
    node: Node,
    wire: Guest,
    vm: Guest,
    watcher: Guest,
    site: Site,
}

impl Lab {
    fn new(vlan: Option<u16>) -> Lab {
        let site = Site::new();
        let mut node = node(&site);
        node.plug(&plug(0, vlan)).unwrap();
        node.plug(&plug(1, None)).unwrap();
        let (wire, vm, watcher) = (site.wire("wire0"), site.guest(&mut node, 0), site.guest(&mut node, 1));
        Lab { node, wire, vm, watcher, site }
    }

    fn tap(&mut self, taps: &[Tap]) {
        taps.iter().for_each(|tap| self.node.tap(tap).unwrap());
    }

    fn untap(&mut self, taps: &[Tap]) {
        taps.iter().for_each(|tap| self.node.untap(tap.mirror).unwrap());
    }

    /// Frames both ways, one at a time; `seen` says which of them the watcher gets.
    fn ping(&mut self, vlan: Option<u16>, ids: std::ops::Range<u32>, seen: [bool; 2]) {
        for id in ids {
            send(&mut self.wire, &frame(mac(0), vlan, id));
            assert_eq!(receive_id(&mut self.vm), (None, id));
            if seen[0] {
                assert_eq!(receive_id(&mut self.watcher), (None, id), "a copy of what the guest gets");
            }
            send(&mut self.vm, &frame(mac(0xee), None, id + 1000));
            assert_eq!(receive_id(&mut self.wire), (vlan, id + 1000));
            if seen[1] {
                assert_eq!(receive_id(&mut self.watcher), (None, id + 1000), "a copy of what it sent");
            }
        }
    }
}

#[test]
fn watcher_gets_what_is_tapped_and_nothing_before_and_after() {
    for vlan in [None, Some(100)] {
        let mut lab = Lab::new(vlan);
        for (taps, seen) in CASES.into_iter().zip([[true, false], [false, true], [true, true]]) {
            lab.ping(vlan, 0..10, [false; 2]);
            lab.tap(taps);
            lab.tap(taps);
            assert_eq!(lab.node.taps(), taps);
            lab.ping(vlan, 10..40, seen);
            lab.untap(taps);
            lab.untap(taps);
            lab.ping(vlan, 40..50, [false; 2]);
            assert_silent(&mut lab.watcher);
            assert!(lab.node.taps().is_empty());
        }
    }
}

#[test]
fn frames_on_their_way_are_neither_lost_nor_reordered_while_taps_come_and_go() {
    let mut lab = Lab::new(Some(100));
    let mut next = 0;
    let mut drained = Vec::new();
    for round in 0..30 {
        let taps = CASES[round % 3];
        let ids = next..next + 120;
        for id in ids.clone() {
            send(&mut lab.wire, &frame(mac(0), Some(100), id));
            send(&mut lab.vm, &frame(mac(0xee), None, id));
            match id - next {
                40 => lab.tap(taps),
                80 => lab.untap(taps),
                _ => {}
            }
        }
        for id in ids {
            assert_eq!(receive_id(&mut lab.vm), (None, id));
            assert_eq!(receive_id(&mut lab.wire), (Some(100), id));
        }
        while lab.watcher.receive(&mut drained) {}
        next += 120;
    }
}

#[test]
fn watcher_that_takes_nothing_costs_the_watched_guest_nothing() {
    let mut lab = Lab::new(None);
    lab.tap(&[IN, OUT]);
    // Far more than the rings and the watcher's queue hold; nobody reads there.
    for id in 0..6000u32 {
        send(&mut lab.wire, &frame(mac(0), None, id));
        assert_eq!(receive_id(&mut lab.vm), (None, id));
        send(&mut lab.vm, &frame(mac(0xee), None, id));
        assert_eq!(receive_id(&mut lab.wire), (None, id));
    }
    let status = lab.node.status();
    let edges: Vec<_> = status.mirrors.iter().map(|mirror| &mirror.component.tx).collect();
    assert!(edges.iter().all(|tx| tx[0].counters.total_drops() == 0), "originals: {edges:?}");
    let copies_lost = |n: usize| edges[n][1].counters.drops.get("ring_full").copied().unwrap_or(0);
    assert!(copies_lost(0) > 0 && copies_lost(1) > 0, "{edges:?}");
    // The last copy may still be on its way through its mirror.
    eventually(&mut lab.node, "every original and every copy is sent, dropped or held", |node| {
        node.status()
            .mirrors
            .iter()
            .map(|mirror| &mirror.component)
            .all(|c| c.rx_packets + c.copies == c.tx_packets + c.drops.values().sum::<u64>() + c.held)
    });
}

#[test]
fn unplug_of_either_port_ends_the_tap_and_frees_its_mirrors() {
    for gone in [0, 1] {
        let mut lab = Lab::new(Some(100));
        lab.tap(&[IN, OUT]);
        lab.ping(Some(100), 0..5, [true; 2]);
        lab.node.unplug(gone).unwrap();
        assert!(lab.node.taps().is_empty());
        if gone == 1 {
            lab.ping(Some(100), 5..10, [false; 2]);
        } else {
            send(&mut lab.wire, &frame(mac(1), None, 7));
            assert_eq!(receive_id(&mut lab.watcher), (None, 7), "the watcher has its own traffic");
        }
        lab.node.plug(&plug(gone, if gone == 0 { Some(100) } else { None })).unwrap();
        lab.tap(&[IN]);
        lab.ping(Some(100), 10..20, [true, false]);
    }
}

#[test]
fn replug_of_the_watched_port_keeps_its_tap() {
    let mut lab = Lab::new(Some(100));
    lab.tap(&[IN, OUT]);
    lab.node.plug(&plug(0, Some(200))).unwrap();
    lab.ping(Some(200), 0..10, [true; 2]);
}

#[test]
fn two_taps_of_one_port_see_the_same_and_one_can_go() {
    let mut lab = Lab::new(None);
    lab.node.plug(&plug(2, None)).unwrap();
    let mut second = lab.site.guest(&mut lab.node, 2);
    lab.tap(&[OUT, Tap { mirror: 1, dest: 2, ..OUT }]);
    lab.ping(None, 0..20, [false, true]);
    for id in 0..20 {
        assert_eq!(receive_id(&mut second), (None, id + 1000));
    }
    lab.untap(&[OUT]);
    lab.ping(None, 20..40, [false, false]);
    for id in 20..40 {
        assert_eq!(receive_id(&mut second), (None, id + 1000));
    }
}

#[test]
fn taps_leave_every_buffer_in_its_place() {
    let mut lab = Lab::new(Some(100));
    for round in 0..20 {
        let taps = CASES[round % 3];
        lab.tap(taps);
        for id in 0..100 {
            send(&mut lab.wire, &frame(mac(0), Some(100), id));
            send(&mut lab.vm, &frame(mac(0xee), None, id));
        }
        lab.untap(taps);
        for id in 0..100 {
            assert_eq!(receive_id(&mut lab.vm), (None, id));
            assert_eq!(receive_id(&mut lab.wire), (Some(100), id));
        }
    }
    let pool = lab.node.pool().clone();
    drop(lab);
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn status_shows_what_each_mirror_is_used_for() {
    let mut lab = Lab::new(None);
    let idle = lab.node.status();
    assert_eq!(idle.mirrors.len(), 2);
    assert!(idle.mirrors.iter().all(|mirror| mirror.tap.is_none() && mirror.component.state == "idle"));
    assert!(idle.warnings.is_empty(), "{:?}", idle.warnings);
    lab.tap(&[OUT]);
    lab.ping(None, 0..10, [false, true]);
    let status = lab.node.status();
    let mirror = &status.mirrors[0];
    assert_eq!(mirror.tap, Some(OUT));
    assert_eq!(serde_json::to_value(OUT.way).unwrap(), "out");
    let c = &mirror.component;
    assert_eq!((c.name.as_str(), c.core, c.state.as_str()), ("mirror_0", 16, "running"));
    assert_eq!((c.rx_packets, c.copies, c.tx_packets), (10, 10, 20));
    assert_eq!(
        (c.rx[0].port.as_str(), c.tx[0].port.as_str(), c.tx[1].port.as_str()),
        ("vhost:0", "ring:7", "ring:6")
    );
    assert_eq!(status.rings[6].from.as_deref(), Some("mirror_0"));
    assert_eq!(status.rings[6].to.as_deref(), Some("forward_1_tx"));
}
