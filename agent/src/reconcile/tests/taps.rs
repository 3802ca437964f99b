//! Taps: copies of a port's frames to another port.

use super::*;
use crate::dataplane::TapDirection::{In, Out};
use crate::keys::{FREE, TapId};
use crate::status::PortState;
use crate::testing::slot;

const IN: [Option<u32>; 2] = [Some(0), None];
const OUT: [Option<u32>; 2] = [None, Some(1)];
const BOTH: [Option<u32>; 2] = [Some(0), Some(1)];

fn tap(mirror: u32, direction: crate::TapDirection, source: u32, service: u32) -> Tap {
    Tap { mirror, direction, source, service }
}

fn t() -> TapId {
    name("t")
}

/// Ports s on vhost 0 and d on vhost 2, wired.
fn two_ports() -> World {
    let mut w = World::new();
    w.store.bind_all(&name("s"), &plug(0, 1, Some(100)));
    w.store.bind_all(&name("d"), &plug(2, 2, None));
    w.settle();
    w.calls.clear();
    w
}

/// And s tapped to d.
fn tapped(mirrors: [Option<u32>; 2]) -> World {
    let mut w = two_ports();
    w.store.tap_all(&t(), ("s", "d"), mirrors);
    w.settle();
    assert_eq!(w.store.tap_status(&t()), Some("up"));
    w.calls.clear();
    w
}

impl World {
    fn tap_report(&self) -> &TapReport {
        self.last.taps.iter().find(|report| report.tap.as_ref() == Some(&t())).unwrap()
    }

    fn assert_tap_gone(&self) {
        assert!(self.taps.is_empty());
        assert_eq!(self.store.keys_of_tap(&t()), 0);
        for mirror in 0..N_MIRRORS {
            assert_eq!(self.store.mirror_value(mirror), Some(FREE));
        }
        assert!(self.last.taps.is_empty());
    }
}

#[test]
fn each_direction_is_tapped_by_its_mirror_and_then_says_up() {
    for (mirrors, taps) in [
        (IN, vec![tap(0, In, 0, 2)]),
        (OUT, vec![tap(1, Out, 0, 2)]),
        (BOTH, vec![tap(0, In, 0, 2), tap(1, Out, 0, 2)]),
    ] {
        let w = tapped(mirrors);
        assert_eq!(w.taps.values().copied().collect::<Vec<_>>(), taps);
        assert_eq!(w.tap_report().state, PortState::Up);
        assert_eq!(w.tap_report().live, taps);
    }
}

#[test]
fn tap_says_up_for_as_long_as_its_driver_may_start_to_watch() {
    let mut w = two_ports();
    w.pass(S(60));
    let n_up = w.n_up;
    w.store.tap_all(&t(), ("s", "d"), BOTH);
    w.settle();
    w.pass(S(31));
    assert_eq!(w.n_up - n_up, Timing::default().up_offsets.len());
    w.pass(S(600));
    assert_eq!(w.n_up - n_up, Timing::default().up_offsets.len());
}

#[test]
fn unplug_makes_the_mirrors_idle_and_gives_them_back_in_one_transaction() {
    for mirrors in [IN, OUT, BOTH] {
        let mut w = tapped(mirrors);
        w.store.ask_tap(&t(), "unplug");
        let before = w.store.revision;
        w.settle();
        assert_eq!(w.store.revision, before + 1);
        w.assert_tap_gone();
        assert_eq!(w.node.len(), 2);
        let n_up = w.n_up;
        w.pass(S(60));
        assert_eq!((w.n_up, w.store.tap_status(&t())), (n_up + 2 * remaining_port_ups(), None));
    }
}

/// `up`s of a port that are still to come after the first.
fn remaining_port_ups() -> usize {
    Timing::default().up_offsets.len() - 1
}

#[test]
fn unplug_of_either_port_removes_the_tap_before_the_port() {
    for (port, vhost) in [("s", 0), ("d", 2)] {
        let mut w = tapped(BOTH);
        w.store.ask(&name(port), "unplug");
        w.settle();
        w.assert_tap_gone();
        w.assert_gone(port, vhost);
        assert_eq!(w.calls, ["untap 0".to_string(), "untap 1".into(), format!("unplug {vhost}")]);
        assert_eq!(w.node.len(), 1);
    }
}

#[test]
fn tap_of_an_unplugged_port_leaves_no_keys_even_if_the_agent_dies_anywhere() {
    for n_actions in 0..6 {
        let mut w = tapped(BOTH);
        w.store.ask(&name("d"), "unplug");
        let mut n_done = 0;
        while n_done < n_actions {
            w.list();
            let live = w.live();
            let plan = w.agent.plan(w.now, &w.view, &live);
            let Some(action) = plan.actions.first() else { break };
            assert!(w.act(action.clone()));
            n_done += 1;
        }
        w.agent = new_agent();
        w.view = View::default();
        w.settle();
        w.assert_tap_gone();
        w.assert_gone("d", 2);
    }
}

#[test]
fn vhost_is_not_given_back_while_a_mirror_cannot_be_stopped() {
    let mut w = tapped(BOTH);
    w.refuse_untap = true;
    w.store.ask(&name("d"), "unplug");
    w.settle();
    w.pass(S(200));
    assert_eq!((w.store.slot_value(2), w.node.len()), (Some("d"), 2));
    assert_eq!(w.store.mirror_value(0), Some("t"));
    w.refuse_untap = false;
    w.pass(S(31));
    w.assert_tap_gone();
    w.assert_gone("d", 2);
}

#[test]
fn tap_waits_for_both_its_ports_and_says_what_for() {
    let mut w = World::new();
    w.store.tap_all(&t(), ("s", "d"), BOTH);
    w.settle();
    assert_eq!(w.tap_report().state, PortState::Waiting);
    assert_eq!(w.tap_report().why, "its source port s is not wired");
    w.store.bind_all(&name("s"), &plug(0, 1, None));
    w.settle();
    assert_eq!(w.tap_report().why, "its service port d is not wired");
    assert_eq!(w.store.tap_status(&t()), None);
    w.store.bind_all(&name("d"), &plug(2, 2, None));
    w.settle();
    assert_eq!((w.taps.len(), w.store.tap_status(&t())), (2, Some("up")));
}

#[test]
fn tap_of_ports_that_never_come_is_collected_after_the_grace() {
    let mut w = World::new();
    w.store.tap_all(&t(), ("s", "d"), BOTH);
    w.settle();
    w.pass(S(59));
    assert_eq!(w.store.keys_of_tap(&t()), 2);
    w.pass(S(2));
    w.assert_tap_gone();
}

#[test]
fn tapped_port_that_is_gone_and_back_is_not_tapped_until_asked_again() {
    let mut w = tapped(IN);
    w.store.ask(&name("s"), "unplug");
    w.settle();
    w.store.bind_all(&name("s"), &plug(0, 1, Some(100)));
    w.settle();
    w.pass(S(120));
    w.assert_tap_gone();
    w.store.tap_all(&t(), ("s", "d"), IN);
    w.settle();
    assert_eq!(w.taps.len(), 1);
}

#[test]
fn port_that_moves_takes_its_tap_along() {
    let mut w = tapped(BOTH);
    w.store.bind_all(&name("s"), &plug(1, 1, None));
    w.settle();
    assert_eq!(w.node.keys().copied().collect::<Vec<_>>(), [1, 2]);
    let taps: Vec<Tap> = w.taps.values().copied().collect();
    assert_eq!(taps, [tap(0, In, 1, 2), tap(1, Out, 1, 2)]);
}

#[test]
fn tap_stays_while_its_port_is_wired_anew_with_another_vlan() {
    let mut w = tapped(IN);
    w.store.bind(&name("s"), &plug(0, 1, Some(200)));
    w.settle();
    assert_eq!(w.calls, ["plug vhost 0 MAC fa:16:3e:00:00:01 VLAN 200"]);
    assert_eq!(w.taps.len(), 1);
}

#[test]
fn next_owner_of_a_tapped_vhost_is_wired_only_after_the_tap_is_gone() {
    let mut w = tapped(BOTH);
    w.store.put(Key::Vhost(slot(0)), FREE);
    w.store.bind_all(&name("b"), &plug(0, 9, None));
    w.settle();
    assert_eq!(w.calls, ["untap 0", "untap 1", "unplug 0", "plug vhost 0 MAC fa:16:3e:00:00:09"]);
    assert!(w.taps.is_empty());
    assert_eq!(w.tap_report().state, PortState::Waiting);
}

#[test]
fn wiring_found_at_start_is_not_changed_before_the_stale_tap_on_it_is_gone() {
    let mut w = World::new();
    w.node.insert(0, plug(0, 9, None));
    w.node.insert(2, plug(2, 2, None));
    w.taps.insert(1, tap(1, Out, 0, 2));
    w.store.bind_all(&name("s"), &plug(0, 1, None));
    w.store.bind_all(&name("d"), &plug(2, 2, None));
    w.refuse_untap = true;
    w.settle();
    assert_eq!(w.node[&0], plug(0, 9, None));
    w.refuse_untap = false;
    w.pass(S(31));
    assert_eq!((w.node[&0], w.taps.len()), (plug(0, 1, None), 0));
}

#[test]
fn restart_of_the_agent_adopts_a_running_tap_and_says_up_again() {
    let mut w = tapped(BOTH);
    w.agent = new_agent();
    w.view = View::default();
    let n_up = w.n_up;
    w.settle();
    assert!(w.calls.is_empty(), "{:?}", w.calls);
    assert_eq!(w.n_up, n_up + 3);
    w.store.ask_tap(&t(), "unplug");
    w.settle();
    w.assert_tap_gone();
}

#[test]
fn restart_of_everything_wires_ports_first_and_then_the_tap() {
    let mut w = tapped(IN);
    w.agent = new_agent();
    w.view = View::default();
    w.taps.clear();
    w.node.clear();
    w.settle();
    assert_eq!(w.calls.len(), 3);
    assert!(w.calls[2].starts_with("tap mirror 0"), "{:?}", w.calls);
}

#[test]
fn stale_mirror_at_start_is_made_idle() {
    let mut w = two_ports();
    w.taps.insert(1, tap(1, In, 2, 0));
    w.settle();
    assert_eq!(w.calls, ["untap 1"]);
}

#[test]
fn mirror_at_work_between_other_ports_is_stopped_and_started_right() {
    let mut w = two_ports();
    w.taps.insert(0, tap(0, In, 2, 0));
    w.store.tap_all(&t(), ("s", "d"), IN);
    w.settle();
    assert_eq!(w.calls, ["untap 0", "tap mirror 0: frames to vhost 0 also to vhost 2"]);
}

#[test]
fn mirror_a_driver_took_and_never_used_is_given_back_after_the_grace() {
    let mut w = two_ports();
    assert!(w.store.take_mirror(&t(), 1));
    w.settle();
    w.pass(S(59));
    assert_eq!(w.store.mirror_value(1), Some("t"));
    w.pass(S(2));
    assert_eq!(w.store.mirror_value(1), Some(FREE));
}

#[test]
fn second_mirror_of_a_tap_that_asks_for_one_is_given_back() {
    let mut w = two_ports();
    assert!(w.store.take_mirror(&t(), 1));
    w.store.tap_all(&t(), ("s", "d"), IN);
    w.settle();
    w.pass(S(61));
    assert_eq!((w.store.mirror_value(0), w.store.mirror_value(1)), (Some("t"), Some(FREE)));
    assert_eq!(w.taps.len(), 1);
}

#[test]
fn tap_without_its_mirror_is_not_made() {
    let mut w = two_ports();
    w.store.describe_tap(&t(), ("s", "d"), IN);
    w.store.ask_tap(&t(), "plug");
    w.settle();
    assert_eq!(w.tap_report().why, "it does not hold the key of mirror 0");
    assert!(w.store.take_mirror(&name("other"), 0));
    w.settle();
    assert_eq!(w.tap_report().why, "mirror 0 belongs to tap other");
    w.store.describe_tap(&t(), ("s", "d"), [Some(7), None]);
    w.settle();
    assert_eq!(w.tap_report().why, "mirror 7 does not exist on this host");
    assert!(w.calls.is_empty());
    w.store.ask_tap(&t(), "unplug");
    w.settle();
    assert_eq!(w.store.keys_of_tap(&t()), 0);
}

#[test]
fn garbage_in_tap_keys_is_reported_and_harms_nobody() {
    let mut w = two_ports();
    for (i, garbage) in [&b"{"[..], b"\xff", b"", br#"{"source_port": "s"}"#].into_iter().enumerate() {
        w.store.put(Key::TapInfo(name(&format!("bad{i}"))), garbage);
        w.store.ask_tap(&name(&format!("bad{i}")), "plug");
    }
    w.store.tap_all(&t(), ("s", "d"), IN);
    w.settle();
    assert_eq!(w.tap_report().state, PortState::Up);
    assert_eq!(w.last.taps.iter().filter(|report| report.state == PortState::Refused).count(), 4);
    // A port can leave whatever the garbage says.
    w.store.ask(&name("s"), "unplug");
    w.settle();
    w.assert_gone("s", 0);
    for i in 0..4 {
        w.store.ask_tap(&name(&format!("bad{i}")), "unplug");
    }
    w.settle();
    w.assert_tap_gone();
}

#[test]
fn unplug_squeezed_onto_plug_taps_nothing() {
    let mut w = two_ports();
    w.store.tap_all(&t(), ("s", "d"), BOTH);
    w.store.ask_tap(&t(), "unplug");
    let n_up = w.n_up;
    w.settle();
    w.assert_tap_gone();
    assert_eq!((w.calls.len(), w.n_up), (0, n_up));
}

#[test]
fn no_up_for_a_tap_whose_port_is_on_its_way_out() {
    let mut w = tapped(IN);
    w.pass(S(60));
    w.refuse_untap = true;
    let n_up = w.n_up;
    w.store.delete(&Key::TapStatus(t()));
    w.store.put(Key::Vhost(slot(0)), FREE);
    w.store.bind_all(&name("b"), &plug(0, 9, None));
    w.settle();
    w.pass(S(60));
    assert_eq!((w.n_up, w.store.tap_status(&t())), (n_up, None));
}

#[test]
fn tap_survives_etcd_going_back_to_before_it() {
    let mut w = tapped(BOTH);
    w.pass(S(60));
    w.store = crate::testing::Store::new();
    w.settle();
    w.pass(S(600));
    assert_eq!((w.node.len(), w.taps.len()), (2, 2));
    // A new owner of either vhost ends it.
    w.store.bind_all(&name("b"), &plug(2, 9, None));
    w.settle();
    assert_eq!(w.taps.len(), 0);
    assert_eq!(w.node[&2], plug(2, 9, None));
}

#[test]
fn tap_a_node_refuses_is_tried_with_growing_pauses_and_says_why() {
    let mut w = two_ports();
    w.refuse = true;
    w.store.tap_all(&t(), ("s", "d"), IN);
    w.settle();
    w.pass(S(300));
    assert!((10..25).contains(&w.calls.len()), "{}", w.calls.len());
    assert_eq!((w.tap_report().state, w.tap_report().why.as_str()), (PortState::Wiring, "no"));
    assert_eq!(w.store.tap_status(&t()), None);
}
