//! Unwiring, giving the slot back, and never before time.

use super::*;
use crate::keys::FREE;
use crate::testing::slot;

#[test]
fn unplug_unwires_and_removes_all_keys_and_gives_the_slot_back() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(2, 1, Some(100)));
    w.settle();
    w.store.ask(&name("a"), "unplug");
    w.settle();
    assert!(w.node.is_empty());
    w.assert_gone("a", 2);
    assert_eq!(w.store.slot_value(2), Some(FREE));
    let n_up = w.n_up;
    w.pass(S(60));
    assert_eq!((w.n_up, w.store.status(&name("a"))), (n_up, None));
}

#[test]
fn unplug_and_release_happen_in_one_transaction() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.store.ask(&name("a"), "unplug");
    let before = w.store.revision;
    w.settle();
    assert_eq!(w.store.revision, before + 1);
    assert_eq!(w.store.log.iter().filter(|change| change.revision > before).count(), 4);
}

#[test]
fn slot_is_not_given_back_while_the_node_cannot_unwire() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.refuse = true;
    w.store.ask(&name("a"), "unplug");
    w.settle();
    w.pass(S(200));
    assert_eq!(w.store.slot_value(0), Some("a"));
    w.refuse = false;
    w.pass(S(31));
    w.assert_gone("a", 0);
}

#[test]
fn slot_is_not_given_back_while_wired_for_a_port_not_known_any_more() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.agent = new_agent();
    w.refuse = true;
    w.store.delete(&Key::BindPort(name("a")));
    w.store.delete(&Key::Action(name("a")));
    w.settle();
    w.pass(S(200));
    assert_eq!(w.store.slot_value(0), Some("a"));
    w.refuse = false;
    w.pass(S(120));
    assert_eq!(w.store.slot_value(0), Some(FREE));
}

#[test]
fn keys_are_not_removed_before_the_wiring_even_when_the_slot_is_gone() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.store.put(Key::Vhost(slot(0)), FREE);
    w.store.ask(&name("a"), "unplug");
    w.refuse_unplug = true;
    w.settle();
    assert_eq!(w.store.keys_of(&name("a")), 3);
    w.refuse_unplug = false;
    w.pass(S(31));
    w.assert_gone("a", 0);
}

#[test]
fn slot_is_not_given_back_while_another_port_is_still_wired_there() {
    let mut w = World::new();
    w.store.bind_all(&name("b"), &plug(0, 2, None));
    w.settle();
    w.refuse_unplug = true;
    w.store.put(Key::Vhost(slot(0)), "a");
    w.store.ask(&name("a"), "unplug");
    w.settle();
    w.pass(S(100));
    assert_eq!(w.store.slot_value(0), Some("a"));
    w.refuse_unplug = false;
    w.pass(S(31));
    w.assert_gone("a", 0);
}

#[test]
fn stale_unplug_leaves_the_new_owner_of_the_vhost_alone() {
    let mut w = World::new();
    let (a, b) = (name("a"), name("b"));
    w.store.bind_all(&b, &plug(0, 2, None));
    w.settle();
    w.store.bind(&a, &plug(0, 1, None));
    w.store.ask(&a, "unplug");
    w.settle();
    assert_eq!(w.node[&0], plug(0, 2, None));
    assert_eq!(w.store.slot_value(0), Some("b"));
    assert_eq!(w.store.keys_of(&a), 0);
    assert_eq!(w.store.keys_of(&b), 3);
}

#[test]
fn unplug_of_a_port_whose_vhost_was_taken_over_makes_room_for_the_new_owner() {
    let mut w = World::new();
    let (a, b) = (name("a"), name("b"));
    w.store.bind_all(&a, &plug(0, 1, None));
    w.settle();
    w.store.put(Key::Vhost(slot(0)), FREE);
    w.store.bind_all(&b, &plug(0, 2, None));
    w.store.ask(&a, "unplug");
    w.settle();
    assert_eq!(
        w.calls,
        ["plug vhost 0 MAC fa:16:3e:00:00:01", "unplug 0", "plug vhost 0 MAC fa:16:3e:00:00:02"]
    );
    assert_eq!((w.store.keys_of(&a), w.store.slot_value(0)), (0, Some("b")));
    assert_eq!(w.store.status(&b), Some("up"));
}

#[test]
fn unplug_squeezed_onto_plug_wires_nothing_and_says_nothing() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.store.ask(&name("a"), "unplug");
    w.settle();
    assert_eq!((w.calls.len(), w.n_up), (0, 0));
    w.assert_gone("a", 0);
}

#[test]
fn unplug_of_a_port_never_plugged_cleans_its_keys() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 1));
    w.store.ask(&name("a"), "unplug");
    w.settle();
    w.assert_gone("a", 1);
    w.store.ask(&name("ghost"), "unplug");
    w.settle();
    w.assert_gone("ghost", 0);
    assert!(w.calls.is_empty());
}

#[test]
fn rebind_right_after_unbind_is_wired_again() {
    let mut w = World::new();
    for mac in 1..20 {
        w.store.bind_all(&name("a"), &plug(0, mac, None));
        w.settle();
        assert_eq!(w.node[&0].mac.0[5], mac);
        w.store.ask(&name("a"), "unplug");
        w.settle();
        w.assert_gone("a", 0);
    }
}

#[test]
fn clean_does_not_remove_a_request_that_came_in_between() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.store.ask(&name("a"), "unplug");
    w.list();
    let plan = w.agent.plan(w.now, &w.view, &[]);
    w.store.ask(&name("a"), "plug");
    assert!(!w.act(plan.actions[0].clone()));
    assert_eq!(w.store.keys_of(&name("a")), 2);
    w.settle();
    assert_eq!(w.store.status(&name("a")), Some("up"));
}

#[test]
fn clean_goes_on_without_the_slot_when_another_port_has_it() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.store.ask(&name("a"), "unplug");
    w.list();
    let plan = w.agent.plan(w.now, &w.view, &[]);
    w.store.put(Key::Vhost(slot(0)), "b");
    assert!(!w.act(plan.actions[0].clone()));
    w.settle();
    assert_eq!((w.store.keys_of(&name("a")), w.store.slot_value(0)), (0, Some("b")));
}
