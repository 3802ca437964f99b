//! Wiring, rewiring, and when `up` is said.

use super::*;
use crate::keys::FREE;
use crate::status::PortState;
use crate::testing::slot;

#[test]
fn plug_wires_and_then_says_up() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    assert_eq!(w.node[&0], plug(0, 1, None));
    assert_eq!(w.store.status(&name("a")), Some("up"));
    assert_eq!(w.report("a").state, PortState::Up);
    assert_eq!(w.store.slot_value(0), Some("a"));
}

#[test]
fn up_is_repeated_on_schedule_and_then_no_more() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.pass(S(31));
    assert_eq!(w.n_up, Timing::default().up_offsets.len());
    w.pass(S(600));
    assert_eq!(w.n_up, Timing::default().up_offsets.len());
    assert_eq!(w.calls.len(), 1);
}

#[test]
fn up_is_said_more_often_and_for_longer_to_a_driver_that_was_slow_to_ask() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 0));
    w.store.bind(&name("a"), &plug(0, 1, None));
    w.settle();
    w.pass(S(2));
    w.store.ask(&name("a"), "plug");
    w.settle();
    w.pass(S(40));
    assert_eq!(w.n_up, Timing::default().patient_up_offsets.len());
    assert_eq!(w.calls.len(), 1);
}

#[test]
fn up_is_said_only_after_the_node_has_wired_it() {
    let mut w = World::new();
    w.refuse = true;
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.pass(S(5));
    assert_eq!(w.store.status(&name("a")), None);
    assert_eq!((w.report("a").state, w.report("a").why.as_str()), (PortState::Wiring, "no"));
    w.refuse = false;
    w.pass(S(31));
    assert_eq!(w.store.status(&name("a")), Some("up"));
}

#[test]
fn a_node_that_refuses_is_asked_with_growing_pauses() {
    let mut w = World::new();
    w.refuse = true;
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.pass(S(300));
    assert!((10..25).contains(&w.calls.len()), "{}", w.calls.len());
}

#[test]
fn new_owner_waits_until_the_last_one_is_unwired() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.refuse_unplug = true;
    w.store.put(Key::Vhost(slot(0)), FREE);
    w.store.bind_all(&name("b"), &plug(0, 2, None));
    w.settle();
    w.pass(S(10));
    assert_eq!((w.node[&0], w.store.status(&name("b"))), (plug(0, 1, None), None));
    w.refuse_unplug = false;
    w.pass(S(31));
    assert_eq!((w.node[&0], w.store.status(&name("b"))), (plug(0, 2, None), Some("up")));
}

#[test]
fn replug_with_another_mac_rewires_and_says_up_again() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.pass(S(60));
    let n_up = w.n_up;
    w.store.bind(&name("a"), &plug(0, 2, None));
    w.store.ask(&name("a"), "plug");
    w.settle();
    assert_eq!(w.node[&0], plug(0, 2, None));
    assert_eq!(w.calls.len(), 2);
    assert_eq!(w.n_up, n_up + 1);
}

#[test]
fn replug_with_the_same_mac_in_another_vlan_rewires() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, Some(100)));
    w.settle();
    w.store.bind(&name("a"), &plug(0, 1, Some(200)));
    w.settle();
    assert_eq!(w.node[&0], plug(0, 1, Some(200)));
}

#[test]
fn plug_again_without_a_change_says_up_again_and_rewires_nothing() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.pass(S(60));
    let n_up = w.n_up;
    w.store.ask(&name("a"), "plug");
    w.settle();
    assert_eq!((w.calls.len(), w.n_up), (1, n_up + 1));
}

#[test]
fn no_up_when_the_request_changed_behind_our_back() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.list();
    let plan = w.agent.plan(w.now, &w.view, &[]);
    assert!(w.act(plan.actions[0].clone()));
    w.store.ask(&name("a"), "unplug");
    let live = w.live();
    let plan = w.agent.plan(w.now, &w.view, &live);
    assert!(matches!(plan.actions[0], Action::PutUp { .. }));
    assert!(!w.act(plan.actions[0].clone()));
    assert_eq!(w.store.status(&name("a")), None);
    w.settle();
    w.assert_gone("a", 0);
}

#[test]
fn plug_whose_bind_port_comes_late_is_wired() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 0));
    w.store.ask(&name("a"), "plug");
    w.settle();
    w.pass(S(1));
    w.store.bind(&name("a"), &plug(0, 1, None));
    w.settle();
    assert_eq!(w.report("a").state, PortState::Up);
}
