//! Guests of one NIC reach each other inside the node, and only those who would have over the wire.

use spp_pipeline::config::NodeConfig;
use spp_pipeline::node::{Node, NodeOptions};
use spp_pipeline::topology::Plug;
use spp_vhost::guest::Guest;

use crate::support::*;

struct Lab {
    node: Node,
    wire: Guest,
    vms: Vec<Guest>,
    _site: Site,
}

const BROADCAST: spp_drivers::MacAddr = spp_drivers::MacAddr([0xff; 6]);

impl Lab {
    /// One NIC and a guest on each of these VLANs.
    fn new(vlans: &[Option<u16>], local_switching: bool) -> Lab {
        let site = Site::new();
        let mapping = site.wire_mapping("wire0", &format!("p#{}#0x1fff", vlans.len()));
        let options = NodeOptions { local_switching, ..site.options() };
        let mut node = Node::start(NodeConfig::from_mappings(&mapping).unwrap(), options).unwrap();
        for (vhost, &vlan) in (0..).zip(vlans) {
            node.plug(&plug(vhost, vlan)).unwrap();
        }
        let wire = site.wire("wire0");
        let vms = (0..vlans.len() as u32).map(|vhost| site.guest(&mut node, vhost)).collect();
        Lab { node, wire, vms, _site: site }
    }

    /// Sends from a guest, and checks who gets it: the wire (with this tag), these guests, and nobody else.
    fn check(&mut self, from: usize, frame: &[u8], at_wire: Option<Option<u16>>, at: &[usize]) {
        let (_, id) = parse(frame);
        send(&mut self.vms[from], frame);
        if let Some(vlan) = at_wire {
            assert_eq!(receive_id(&mut self.wire), (vlan, id));
        }
        for &vm in at {
            assert_eq!(receive_id(&mut self.vms[vm]), (None, id), "guest {vm} of frame {id}");
        }
        self.vms.iter_mut().chain([&mut self.wire]).for_each(assert_silent);
    }
}

#[test]
fn frames_between_guests_of_one_network_stay_inside() {
    for vlan in [None, Some(100)] {
        let mut lab = Lab::new(&[vlan, vlan], true);
        for id in 0..100 {
            send(&mut lab.vms[0], &frame(mac(1), None, id));
            assert_eq!(receive_id(&mut lab.vms[1]), (None, id));
            send(&mut lab.vms[1], &frame(mac(0), None, id));
            assert_eq!(receive_id(&mut lab.vms[0]), (None, id));
        }
        assert_silent(&mut lab.wire);
        // The wire goes on as before, both ways.
        send(&mut lab.vms[0], &frame(mac(0xee), None, 7));
        assert_eq!(receive_id(&mut lab.wire), (vlan, 7));
        send(&mut lab.wire, &frame(mac(1), vlan, 8));
        assert_eq!(receive_id(&mut lab.vms[1]), (None, 8));
    }
}

#[test]
fn only_guests_of_the_senders_own_network_are_reached_inside() {
    let mut lab = Lab::new(&[Some(100), Some(100), Some(200), None, None], true);
    lab.check(0, &frame(mac(1), None, 1), None, &[1]);
    lab.check(0, &frame(mac(2), None, 2), Some(Some(100)), &[]);
    lab.check(0, &frame(mac(3), None, 3), Some(Some(100)), &[]);
    lab.check(0, &frame(mac(0), None, 4), Some(Some(100)), &[]);
    lab.check(0, &frame(mac(0x77), None, 5), Some(Some(100)), &[]);
    lab.check(3, &frame(mac(4), None, 6), None, &[4]);
    lab.check(3, &frame(mac(1), Some(100), 7), Some(Some(100)), &[]);
    // The tag a guest writes itself is overwritten, as on the way to the wire.
    lab.check(0, &frame(mac(1), Some(200), 8), None, &[1]);
}

#[test]
fn group_frames_go_to_the_wire_and_to_the_other_guests_of_the_network() {
    let mut lab = Lab::new(&[Some(100), Some(100), Some(100), None, Some(200)], true);
    lab.check(0, &frame(BROADCAST, None, 1), Some(Some(100)), &[1, 2]);
    lab.check(2, &frame(BROADCAST, None, 2), Some(Some(100)), &[0, 1]);
    lab.check(3, &frame(BROADCAST, None, 3), Some(None), &[]);
    lab.check(4, &frame(BROADCAST, None, 4), Some(Some(200)), &[]);
    // A sender that lies about its address does not get its frame back either.
    let mut spoofed = frame(BROADCAST, None, 5);
    spoofed[6..12].copy_from_slice(&mac(1).0);
    lab.check(0, &spoofed, Some(Some(100)), &[1, 2]);
}

#[test]
fn switched_off_everything_goes_to_the_wire_as_in_spp() {
    let mut lab = Lab::new(&[Some(100), Some(100)], false);
    lab.check(0, &frame(mac(1), None, 1), Some(Some(100)), &[]);
    lab.check(0, &frame(BROADCAST, None, 2), Some(Some(100)), &[]);
    assert!(!lab.node.status().local_switching);
}

#[test]
fn unplugged_guest_is_no_longer_reached_inside_and_a_new_place_counts_at_once() {
    let mut lab = Lab::new(&[Some(100), Some(100), Some(100)], true);
    lab.check(0, &frame(mac(1), None, 1), None, &[1]);
    lab.node.unplug(1).unwrap();
    lab.check(0, &frame(mac(1), None, 2), Some(Some(100)), &[]);
    lab.node.plug(&Plug { vlan: Some(200), ..plug(1, None) }).unwrap();
    lab.check(0, &frame(mac(1), None, 3), Some(Some(100)), &[]);
    lab.node.plug(&Plug { mac: mac(9), vlan: Some(100), vhost: 1 }).unwrap();
    lab.check(0, &frame(mac(9), None, 4), None, &[1]);
    lab.check(0, &frame(mac(1), None, 5), Some(Some(100)), &[]);
    lab.node.unplug(0).unwrap();
    lab.check(1, &frame(mac(0), None, 6), Some(Some(100)), &[]);
    lab.check(1, &frame(mac(2), None, 7), None, &[2]);
    let status = lab.node.status();
    let edge = |component: usize| status.vfs[0].components[component].clone();
    assert_eq!(edge(6).rx.last().unwrap().port, "local:0");
    assert_eq!(edge(7).tx.last().unwrap().port, "local:0");
    assert_eq!(edge(7).tx.last().unwrap().counters.packets, 3);
}

#[test]
fn neighbours_lose_nothing_while_local_guests_come_and_go() {
    let mut lab = Lab::new(&[None, None, None], true);
    for round in 0..20u32 {
        for id in round * 100..round * 100 + 100 {
            send(&mut lab.vms[0], &frame(mac(1), None, id));
            match id % 50 {
                10 => lab.node.unplug(2).unwrap(),
                30 => lab.node.plug(&plug(2, (round % 2 == 0).then_some(5))).unwrap(),
                _ => {}
            }
        }
        for id in round * 100..round * 100 + 100 {
            assert_eq!(receive_id(&mut lab.vms[1]), (None, id));
        }
    }
    let pool = lab.node.pool().clone();
    drop(lab);
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn tapped_guest_is_watched_inside_too() {
    use spp_pipeline::config::MirrorConfig;
    use spp_pipeline::names::PortName;
    use spp_pipeline::topology::{Tap, Way};
    let site = Site::new();
    let mut config = NodeConfig::from_mappings(&site.wire_mapping("wire0", "p#3#0x1ff")).unwrap();
    config.mirrors = vec![MirrorConfig { core: 16, ports: [PortName::Ring(6), PortName::Ring(7)] }];
    let mut node = Node::start(config, site.options()).unwrap();
    for (vhost, vlan) in [(0, Some(100)), (1, Some(100)), (2, None)] {
        node.plug(&plug(vhost, vlan)).unwrap();
    }
    let mut vms: Vec<Guest> = (0..3).map(|vhost| site.guest(&mut node, vhost)).collect();
    let mut wire = site.wire("wire0");
    for way in [Way::Out, Way::In] {
        node.tap(&Tap { mirror: 0, way, source: if way == Way::Out { 0 } else { 1 }, dest: 2 }).unwrap();
        for id in 0..50 {
            for dst in [mac(1), BROADCAST] {
                send(&mut vms[0], &frame(dst, None, id));
                assert_eq!(receive_id(&mut vms[1]), (None, id));
                assert_eq!(receive_id(&mut vms[2]), (None, id));
            }
            assert_eq!(receive_id(&mut wire), (Some(100), id), "the broadcast");
        }
        node.untap(0).unwrap();
        vms.iter_mut().chain([&mut wire]).for_each(assert_silent);
    }
}
