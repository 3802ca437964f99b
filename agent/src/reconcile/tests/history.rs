//! Restarts of agent and node, and etcd coming back as another.

use super::*;
use crate::status::PortState;

#[test]
fn stale_wiring_at_start_is_removed_and_right_wiring_is_adopted() {
    let mut w = World::new();
    w.node.insert(1, plug(1, 9, None));
    w.node.insert(0, plug(0, 1, None));
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    assert_eq!(w.calls, ["unplug 1"]);
    assert_eq!(w.store.status(&name("a")), Some("up"));
    w.store.ask(&name("a"), "unplug");
    w.settle();
    assert!(w.node.is_empty());
}

#[test]
fn wiring_of_another_mac_at_start_is_corrected() {
    let mut w = World::new();
    w.node.insert(0, plug(0, 9, Some(5)));
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    assert_eq!(w.node[&0], plug(0, 1, None));
}

#[test]
fn restart_of_everything_wires_again_and_says_up_again() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, Some(7)));
    w.settle();
    w.agent = new_agent();
    w.view = View::default();
    w.node.clear();
    w.settle();
    assert_eq!((w.node[&0], w.n_up), (plug(0, 1, Some(7)), 2));
}

#[test]
fn wiped_host_keys_leave_the_wiring_alone() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    for key in w.store.listing().keys {
        w.store.delete(&key.key);
    }
    w.settle();
    w.pass(S(300));
    assert_eq!(w.node.len(), 1);
    assert_eq!(w.report("a").state, PortState::Kept);
}

/// Etcd comes back from a backup made before port a was bound.
fn world_restored_to_before_a() -> World {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.pass(S(60));
    w.store = Store::new();
    assert!(w.store.revision < w.view.revision());
    w.settle();
    w
}

#[test]
fn wiring_survives_etcd_going_back_to_before_it() {
    let mut w = world_restored_to_before_a();
    w.pass(S(600));
    assert_eq!(w.node.get(&0), Some(&plug(0, 1, None)));
    assert_eq!(w.report("a").state, PortState::Kept);
}

#[test]
fn port_bound_after_etcd_went_back_gets_the_vhost() {
    let mut w = world_restored_to_before_a();
    w.store.bind_all(&name("b"), &plug(0, 2, None));
    w.settle();
    assert_eq!(w.node.get(&0), Some(&plug(0, 2, None)));
    assert_eq!(w.store.status(&name("b")), Some("up"));
}

#[test]
fn keys_from_before_do_not_displace_wiring_when_etcd_goes_back() {
    let mut w = World::new();
    w.store.bind_all(&name("old"), &plug(0, 9, None));
    w.settle();
    w.store.ask(&name("old"), "unplug");
    w.settle();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.store = Store::new();
    w.store.bind_all(&name("old"), &plug(0, 9, None));
    w.settle();
    w.pass(S(600));
    assert_eq!(w.node.get(&0), Some(&plug(0, 1, None)));
    assert_eq!(w.report("old").why, "its keys are older than what is wired: etcd went back");
    // The driver writing again is proof.
    w.store.ask(&name("old"), "plug");
    w.settle();
    assert_eq!(w.node.get(&0), Some(&plug(0, 9, None)));
}

#[test]
fn port_whose_keys_survived_going_back_is_unplugged_as_always() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.pass(S(60));
    w.store = Store::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    assert_eq!(w.node.len(), 1);
    w.store.ask(&name("a"), "unplug");
    w.settle();
    assert!(w.node.is_empty());
    w.assert_gone("a", 0);
}

#[test]
fn node_that_forgot_its_wiring_is_wired_again() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.node.clear();
    w.pass(S(1));
    assert_eq!(w.node[&0], plug(0, 1, None));
}
