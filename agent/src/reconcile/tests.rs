//! Every case of the contract, one by one, on a small etcd and a node that records.

use std::collections::BTreeMap;

use super::*;
use crate::keys::FREE;
use crate::testing::{Store, bind_port_text, layout, name, plug, slot};
use crate::view::History;

const S: fn(u64) -> Duration = Duration::from_secs;

struct World {
    now: Duration,
    store: Store,
    view: View,
    node: BTreeMap<u32, Plug>,
    /// Every call the node got, in words.
    calls: Vec<String>,
    refuse: bool,
    agent: Reconciler,
    n_up: usize,
    last: Plan,
}

impl World {
    fn new() -> World {
        World {
            now: S(100),
            store: Store::new(),
            view: View::default(),
            node: BTreeMap::new(),
            calls: Vec::new(),
            refuse: false,
            agent: Reconciler::new(layout(), Timing::default()),
            n_up: 0,
            last: Plan::default(),
        }
    }

    fn live(&self) -> Vec<Plug> {
        self.node.values().copied().collect()
    }

    fn list(&mut self) {
        if self.view.relist(self.store.listing()) == History::Broken {
            let (revision, live) = (self.view.revision(), self.live());
            self.agent.history_broken(revision, &live);
        }
    }

    fn node_call(
        &mut self,
        call: String,
        change: impl FnOnce(&mut BTreeMap<u32, Plug>),
    ) -> Result<(), String> {
        self.calls.push(call);
        if self.refuse {
            return Err("no".into());
        }
        change(&mut self.node);
        Ok(())
    }

    fn txn(&mut self, txn: &KeyTxn) -> bool {
        match self.store.txn(txn) {
            Ok(revision) => self.view.apply_txn(txn, revision),
            Err(changes) => {
                for change in changes {
                    self.view.apply(change);
                }
                return false;
            }
        }
        true
    }

    /// Carries one action out. False: plan again.
    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Plug { port, plug } => {
                let result = self.node_call(format!("plug {plug}"), |node| _ = node.insert(plug.vhost, plug));
                self.agent.plugged(&port, &plug, result.clone(), self.now);
                result.is_ok()
            }
            Action::Unplug { vhost, .. } => {
                let result = self.node_call(format!("unplug {vhost}"), |node| _ = node.remove(&vhost));
                self.agent.unplugged(vhost, result.clone(), self.now);
                result.is_ok()
            }
            Action::PutUp { port, txn } => {
                let done = self.txn(&txn);
                if done {
                    self.n_up += 1;
                    self.agent.said_up(&port, self.now);
                }
                done
            }
            Action::Clean { txn, .. } | Action::Release { txn, .. } => self.txn(&txn),
        }
    }

    /// Lists, then plans and acts until there is nothing to do.
    fn settle(&mut self) {
        self.list();
        for _ in 0..50 {
            let live = self.live();
            self.last = self.agent.plan(self.now, &self.view, &live);
            if self.last.actions.is_empty() {
                return;
            }
            for action in self.last.actions.clone() {
                if !self.act(action) {
                    break;
                }
            }
        }
        panic!("does not settle: {:?}", self.last.actions);
    }

    /// Lets time pass, waking as often as the plan asks to.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(wake_at) = self.last.wake_at.filter(|at| *at <= end) {
            assert!(wake_at > self.now, "asks to be woken in the past");
            self.now = wake_at;
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    fn report(&self, port: &str) -> &PortReport {
        self.last
            .ports
            .iter()
            .find(|report| report.port.as_ref().is_some_and(|p| p.as_str() == port))
            .unwrap()
    }

    fn assert_gone(&self, port: &str, vhost: u32) {
        assert_eq!(self.store.keys_of(&name(port)), 0);
        assert_ne!(self.store.slot_value(vhost), Some(port));
        assert!(!self.agent.owners.values().any(|owner| owner.as_str() == port));
    }
}

use crate::status::PortState;

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
    w.agent = Reconciler::new(layout(), Timing::default());
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
    w.agent = Reconciler::new(layout(), Timing::default());
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
    w.agent = Reconciler::new(layout(), Timing::default());
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
fn node_that_forgot_its_wiring_is_wired_again() {
    let mut w = World::new();
    w.store.bind_all(&name("a"), &plug(0, 1, None));
    w.settle();
    w.node.clear();
    w.pass(S(1));
    assert_eq!(w.node[&0], plug(0, 1, None));
}

#[test]
fn numbers_as_text_are_wired_and_remarked_on() {
    let mut w = World::new();
    assert!(w.store.take(&name("a"), 0));
    let text = bind_port_text(&plug(0, 1, None)).replace(": 0", ": \"0\"");
    w.store.put(Key::BindPort(name("a")), text);
    w.store.ask(&name("a"), "plug");
    w.settle();
    assert_eq!(w.report("a").state, PortState::Up);
    assert_eq!(w.report("a").why, "bind_port has numbers written as text");
}
