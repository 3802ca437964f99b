//! Every way a bind can go, against the small etcd and the agent's own reconciliation.

use super::*;
use crate::testing::{Store, name, slot};

fn request(physnet: &str) -> BindRequest {
    let mac = "fa:16:3e:00:00:01".parse().unwrap();
    BindRequest { port: name("a"), physnet: name(physnet), mac, vlan: Some(100) }
}

fn new_bind() -> Bind {
    Bind::new(name("h"), request("phys1"))
}

fn view(store: &Store) -> View {
    let mut view = View::default();
    view.relist(store.listing());
    view
}

fn txn<T: std::fmt::Debug>(step: Step<T>) -> KeyTxn {
    match step {
        Step::Try(txn) => txn,
        other => panic!("{other:?}"),
    }
}

/// One bind up to the wait for the agent.
fn asked(store: &mut Store) -> Bind {
    let mut bind = new_bind();
    let take = txn(bind.step(&view(store)).unwrap());
    store.txn(&take).unwrap();
    bind.answered(true);
    assert_eq!(bind.step(&view(store)).unwrap(), Step::Wait);
    bind
}

#[test]
fn bind_writes_the_drivers_keys_in_one_transaction_and_waits_for_up() {
    let mut store = Store::new();
    let before = store.revision;
    let mut bind = asked(&mut store);
    assert_eq!(store.revision, before + 1);
    assert_eq!(store.slot_value(0), Some("a"));
    assert_eq!(store.get(&Key::Action(name("a"))), Some("plug"));
    let info = r#"{"mac_address": "fa:16:3e:00:00:01", "vhost_id": 0, "vlan_id": 100}"#;
    assert_eq!(store.get(&Key::BindPort(name("a"))), Some(info));
    store.put(Key::PortStatus(name("a")), "up");
    assert_eq!(bind.step(&view(&store)).unwrap(), Step::Done(slot(0)));
}

#[test]
fn first_free_vhost_in_key_order_is_taken() {
    let mut store = Store::new();
    for vhost in [10, 11, 2, 9] {
        store.put(Key::Vhost(SlotId { physnet: name("phys7"), vhost }), FREE);
    }
    store.put(Key::Vhost(SlotId { physnet: name("phys7"), vhost: 10 }), "other");
    let mut bind = Bind::new(name("h"), request("phys7"));
    let take = txn(bind.step(&view(&store)).unwrap());
    assert_eq!(take.ops[0], KeyOp::Put(Key::Vhost(SlotId { physnet: name("phys7"), vhost: 11 }), "a".into()));
}

#[test]
fn vhost_lost_to_another_driver_leads_to_the_next() {
    let mut store = Store::new();
    let mut bind = new_bind();
    let take = txn(bind.step(&view(&store)).unwrap());
    assert!(store.take(&name("b"), 0));
    assert!(store.txn(&take).is_err());
    bind.answered(false);
    let take = txn(bind.step(&view(&store)).unwrap());
    store.txn(&take).unwrap();
    assert_eq!(store.slot_value(1), Some("a"));
    assert_eq!(store.slot_value(0), Some("b"));
}

#[test]
fn what_cannot_be_bound_is_refused_before_anything_is_written() {
    let mut store = Store::new();
    let refused = |store: &Store, physnet: &str| {
        Bind::new(name("h"), request(physnet)).step(&view(store)).unwrap_err().to_string()
    };
    assert_eq!(refused(&store, "phys3"), "host h has no physical network phys3: it has phys1, phys2");
    for (vhost, port) in [(0, "b"), (1, "c")] {
        assert!(store.take(&name(port), vhost));
    }
    assert_eq!(refused(&store, "phys1"), "host h has no free vhost on phys1: all 2 are in use");
    assert!(store.take(&name("a"), 2));
    assert_eq!(refused(&store, "phys2"), "port a is bound already: unbind it first");
    store.delete(&Key::Configuration);
    assert!(refused(&store, "phys1").contains("spp config put"));
}

#[test]
fn bind_whose_answer_was_lost_is_recognized() {
    let mut store = Store::new();
    let mut bind = new_bind();
    let take = txn(bind.step(&view(&store)).unwrap());
    store.txn(&take).unwrap();
    // No answer, a new connection.
    assert_eq!(bind.step(&view(&store)).unwrap(), Step::Wait);
    store.put(Key::PortStatus(name("a")), "up");
    assert_eq!(bind.step(&view(&store)).unwrap(), Step::Done(slot(0)));
}

#[test]
fn bind_whose_request_was_lost_is_tried_again() {
    let store = Store::new();
    let mut bind = new_bind();
    let take = txn(bind.step(&view(&store)).unwrap());
    assert_eq!(txn(bind.step(&view(&store)).unwrap()), take);
}

#[test]
fn up_of_another_life_is_not_taken_for_the_answer() {
    let mut store = Store::new();
    store.put(Key::PortStatus(name("a")), "up");
    let mut bind = asked(&mut store);
    assert_eq!(store.status(&name("a")), None);
    assert_eq!(bind.step(&view(&store)).unwrap(), Step::Wait);
}

#[test]
fn port_unplugged_by_somebody_else_is_reported() {
    let mut store = Store::new();
    let mut bind = asked(&mut store);
    store.ask(&name("a"), "unplug");
    assert!(matches!(bind.step(&view(&store)), Err(BindError::TakenBack(_))));
}

#[test]
fn bind_taken_back_leaves_no_key_with_or_without_the_agent() {
    for agent in [true, false] {
        let mut store = Store::new();
        let before: Vec<_> = store.listing().keys.into_iter().map(|kv| (kv.key, kv.value)).collect();
        let bind = asked(&mut store);
        let ask = txn(bind.ask_back(&view(&store)));
        store.txn(&ask).unwrap();
        assert_eq!(store.get(&Key::Action(name("a"))), Some("unplug"));
        assert_eq!(bind.ask_back(&view(&store)), Step::Wait);
        let take_back = bind.take_back(&view(&store)).unwrap();
        if agent {
            let subject = Subject::Port(name("a"));
            let state = HostState::read(&view(&store));
            let keys = &state.subjects[&subject];
            store.txn(&KeyTxn::clean(&subject, &keys.slots, keys.seen())).unwrap();
            assert!(store.txn(&take_back).is_err());
        } else {
            store.txn(&take_back).unwrap();
        }
        assert_eq!(bind.ask_back(&view(&store)), Step::Done(()));
        let after: Vec<_> = store.listing().keys.into_iter().map(|kv| (kv.key, kv.value)).collect();
        assert_eq!(before, after);
    }
}

#[test]
fn taking_back_leaves_what_somebody_else_made_of_the_port() {
    let mut store = Store::new();
    let bind = asked(&mut store);
    let mut plug = bind.plug(&slot(0));
    plug.vlan = None;
    store.bind(&name("a"), &plug);
    assert_eq!(bind.ask_back(&view(&store)), Step::Done(()));
    let fresh = new_bind();
    assert_eq!(fresh.ask_back(&view(&store)), Step::Done(()));
}

#[test]
fn unbind_asks_once_and_waits_until_every_key_is_gone() {
    let mut store = Store::new();
    store.bind_all(&name("a"), &new_bind().plug(&slot(0)));
    let mut unbind = Unbind::new(name("a"));
    let ask = txn(unbind.step(&view(&store)));
    store.txn(&ask).unwrap();
    assert_eq!(unbind.step(&view(&store)), Step::Wait);
    // As the old agent does it, key by key.
    store.put(Key::Vhost(slot(0)), FREE);
    for key in [Key::BindPort(name("a")), Key::Action(name("a"))] {
        assert_eq!(unbind.step(&view(&store)), Step::Wait);
        store.delete(&key);
    }
    assert_eq!(unbind.step(&view(&store)), Step::Done(vec![0]));
}

#[test]
fn unbind_of_a_port_without_keys_is_done_at_once() {
    assert_eq!(Unbind::new(name("a")).step(&view(&Store::new())), Step::Done(vec![]));
}

#[test]
fn unbind_asks_for_the_end_of_any_leftover() {
    let mut store = Store::new();
    assert!(store.take(&name("a"), 1));
    let mut unbind = Unbind::new(name("a"));
    let ask = txn(unbind.step(&view(&store)));
    assert_eq!(ask.ops, [KeyOp::Put(Key::Action(name("a")), "unplug".into())]);
}

#[test]
fn port_bound_again_right_after_its_unbind_is_left_alone() {
    let mut store = Store::new();
    store.bind_all(&name("a"), &new_bind().plug(&slot(0)));
    let mut unbind = Unbind::new(name("a"));
    let ask = txn(unbind.step(&view(&store)));
    store.txn(&ask).unwrap();
    assert_eq!(unbind.step(&view(&store)), Step::Wait);
    store.ask(&name("a"), "plug");
    assert_eq!(unbind.step(&view(&store)), Step::Done(vec![0]));
}
