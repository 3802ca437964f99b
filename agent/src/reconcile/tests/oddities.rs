//! Garbage, contradictions and hands in the keys.

use super::*;
use crate::keys::{BindPort, FREE, SlotId};
use crate::status::PortState;
use crate::testing::slot;

#[test]
fn of_two_ports_that_name_one_vhost_the_holder_of_its_key_is_wired() {
    let mut w = World::new();
    w.store.bind(&name("a"), &plug(0, 1, None));
    w.store.ask(&name("a"), "plug");
    w.store.bind_all(&name("b"), &plug(0, 2, None));
    w.settle();
    assert_eq!(w.node[&0], plug(0, 2, None));
    assert_eq!(w.report("a").state, PortState::Refused);
    assert_eq!(w.report("a").why, "vhost 0 belongs to port b");
    assert_eq!(w.store.status(&name("a")), None);
}

#[test]
fn unknown_vhost_is_refused_and_can_be_unplugged() {
    let mut w = World::new();
    w.store.put(Key::Vhost(SlotId { physnet: name("phys9"), vhost: 77 }), "a");
    w.store.bind(&name("a"), &plug(77, 1, None));
    w.store.ask(&name("a"), "plug");
    w.settle();
    assert_eq!(w.report("a").why, "vhost 77 does not exist on this host");
    assert!(w.calls.is_empty());
    w.store.ask(&name("a"), "unplug");
    w.settle();
    assert_eq!(w.store.get(&Key::Vhost(SlotId { physnet: name("phys9"), vhost: 77 })), Some(FREE));
    assert_eq!(w.store.keys_of(&name("a")), 0);
}

#[test]
fn port_that_does_not_hold_its_slot_is_not_wired() {
    let mut w = World::new();
    w.store.bind(&name("a"), &plug(0, 1, None));
    w.store.ask(&name("a"), "plug");
    w.settle();
    assert!(w.calls.is_empty());
    assert_eq!(w.report("a").state, PortState::Refused);
}

#[test]
fn garbage_values_are_reported_and_harm_no_other_port() {
    let mut w = World::new();
    for (i, garbage) in [&b"{"[..], b"\xff\xfe", b"", b"[1]", br#"{"vhost_id": 1}"#].iter().enumerate() {
        let port = name(&format!("bad{i}"));
        w.store.put(Key::BindPort(port.clone()), garbage);
        w.store.ask(&port, "plug");
    }
    w.store.bind_all(&name("good"), &plug(0, 1, None));
    w.settle();
    assert_eq!(w.report("good").state, PortState::Up);
    for i in 0..5 {
        assert_eq!(w.report(&format!("bad{i}")).state, PortState::Refused);
        w.store.ask(&name(&format!("bad{i}")), "unplug");
    }
    w.settle();
    assert_eq!(w.last.ports.len(), 1);
}

#[test]
fn bind_port_turned_into_garbage_leaves_the_wiring() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.store.put(Key::BindPort(name("a")), "{");
    w.settle();
    w.pass(S(300));
    assert_eq!((w.calls.len(), w.report("a").state), (1, PortState::Kept));
}

#[test]
fn action_that_is_neither_word_changes_nothing() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 0));
    w.store.bind(&name("a"), &plug(0, 1, None));
    w.store.ask(&name("a"), "Plug");
    w.settle();
    assert!(w.calls.is_empty());
    assert_eq!(w.report("a").why, "action says neither plug nor unplug");
    w.store.ask(&name("a"), "plug");
    w.settle();
    w.store.ask(&name("a"), "remove");
    w.settle();
    w.pass(S(300));
    assert_eq!(w.node[&0], plug(0, 1, None));
}

#[test]
fn vanished_action_keeps_the_wiring_and_a_restart_restores_it() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.store.delete(&Key::Action(name("a")));
    w.settle();
    let n_up = w.n_up;
    w.pass(S(300));
    assert_eq!((w.node[&0], w.n_up, w.report("a").state), (plug(0, 1, None), n_up, PortState::Wired));
    w.agent = new_agent();
    w.node.clear();
    w.settle();
    assert_eq!((w.node[&0], w.n_up), (plug(0, 1, None), n_up));
}

#[test]
fn vanished_bind_port_takes_the_wiring_away() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.store.delete(&Key::Action(name("a")));
    w.store.delete(&Key::BindPort(name("a")));
    w.settle();
    assert!(w.node.is_empty());
    assert_eq!(w.store.status(&name("a")), None);
    w.pass(S(61));
    assert_eq!(w.store.slot_value(0), Some(FREE));
}

#[test]
fn slot_freed_by_hand_keeps_the_wiring_until_another_port_has_it() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.store.put(Key::Vhost(slot(0)), FREE);
    w.settle();
    w.pass(S(300));
    assert_eq!((w.node[&0], w.report("a").state), (plug(0, 1, None), PortState::Kept));
    w.store.bind_all(&name("b"), &plug(0, 2, None));
    w.settle();
    assert_eq!((w.node[&0], w.report("b").state), (plug(0, 2, None), PortState::Up));
}

#[test]
fn port_that_moves_to_another_vhost_leaves_the_old_one() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.store.bind_all(&name("a"), &plug(1, 1, None));
    w.settle();
    assert_eq!(w.node.keys().copied().collect::<Vec<_>>(), [1]);
    w.pass(S(61));
    assert_eq!(w.store.slot_value(0), Some(FREE));
}

#[test]
fn port_status_that_was_deleted_is_put_again() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.pass(S(60));
    w.store.delete(&Key::PortStatus(name("a")));
    w.settle();
    assert_eq!(w.store.status(&name("a")), Some("up"));
}

#[test]
fn numbers_as_text_are_wired_and_remarked_on() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 0));
    let text = BindPort::write(&plug(0, 1, None)).replace(": 0", ": \"0\"");
    w.store.put(Key::BindPort(name("a")), text);
    w.store.ask(&name("a"), "plug");
    w.settle();
    assert_eq!(w.report("a").state, PortState::Up);
    assert_eq!(w.report("a").why, "bind_port has numbers written as text");
}
