//! What drivers and agents that died between two steps leave behind.

use super::*;
use crate::keys::FREE;
use crate::status::PortState;
use crate::testing::slot;

#[test]
fn plug_without_bind_port_waits_then_is_reported_then_collected() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 0));
    w.store.ask(&name("a"), "plug");
    w.settle();
    assert_eq!(w.report("a").state, PortState::Waiting);
    w.pass(S(3));
    assert_eq!(w.report("a").state, PortState::Refused);
    assert_eq!(w.report("a").why, "plug asked for, but no bind_port");
    assert_eq!(w.store.keys_of(&name("a")), 1);
    w.pass(S(60));
    w.assert_gone("a", 0);
    assert_eq!(w.store.slot_value(0), Some(FREE));
}

#[test]
fn leaked_slot_is_collected_after_the_grace_and_not_before() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 3));
    w.settle();
    w.pass(S(59));
    assert_eq!(w.store.slot_value(3), Some("a"));
    w.pass(S(2));
    assert_eq!(w.store.slot_value(3), Some(FREE));
}

#[test]
fn slot_taken_again_gets_its_grace_again() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 3));
    w.settle();
    w.pass(S(50));
    w.store.put(Key::Vhost(slot(3)), "a");
    w.settle();
    w.pass(S(50));
    assert_eq!(w.store.slot_value(3), Some("a"));
    w.agent.restart_grace();
    w.pass(S(50));
    assert_eq!(w.store.slot_value(3), Some("a"));
}

#[test]
fn slot_whose_port_binds_at_the_last_moment_is_not_collected() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 3));
    w.settle();
    w.now += S(61);
    let plan = w.agent.plan(w.now, &w.view, &[]);
    assert!(matches!(plan.actions[..], [Action::Release { .. }]));
    w.store.bind(&name("a"), &plug(3, 1, None));
    assert!(!w.act(plan.actions[0].clone()));
    assert_eq!(w.store.slot_value(3), Some("a"));
}

#[test]
fn garbled_slot_is_collected() {
    let mut w = World::new();
    w.store.put(Key::Vhost(slot(1)), "no/port");
    w.settle();
    w.pass(S(61));
    assert_eq!(w.store.slot_value(1), Some(FREE));
}

#[test]
fn second_slot_of_a_port_bound_elsewhere_is_collected() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 0));
    w.store.bind_all(&name("a"), &plug(1, 1, None));
    w.settle();
    w.pass(S(61));
    assert_eq!((w.store.slot_value(0), w.store.slot_value(1)), (Some(FREE), Some("a")));
}

#[test]
fn bind_port_the_driver_never_asked_to_plug_is_collected() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 0));
    w.store.bind(&name("a"), &plug(0, 1, None));
    w.settle();
    assert_eq!(w.report("a").state, PortState::Waiting);
    w.pass(S(61));
    w.assert_gone("a", 0);
}

#[test]
fn every_leftover_of_a_half_done_unplug_is_cleaned_at_start() {
    // The old agent freed the slot, then deleted key by key.
    for n_deleted in 0..3 {
        let mut w = World::new();
        w.store.bind_all(&name("a"), &plug(0, 1, None));
        w.store.put(Key::PortStatus(name("a")), "up");
        w.store.ask(&name("a"), "unplug");
        w.store.put(Key::Vhost(slot(0)), FREE);
        let in_order = [Key::BindPort(name("a")), Key::Action(name("a")), Key::PortStatus(name("a"))];
        in_order[..n_deleted].iter().for_each(|key| w.store.delete(key));
        w.settle();
        w.assert_gone("a", 0);
        assert_eq!(w.store.slot_value(0), Some(FREE));
    }
}
