//! What etcd can suffer, and what can stand in it: each at every command of a port's life.

use std::time::Duration;

use crate::dataplane::Plug;
use crate::keys::{FREE, Family, Key};
use crate::status::PortState;
use crate::testing::{name, plug, slot};

use super::world::World;

const S: fn(u64) -> Duration = Duration::from_secs;

fn flat() -> Plug {
    plug(0, 1, None)
}

/// Binds a, then b; unplugs a. `trouble` strikes before the given command.
fn life_with(at: usize, trouble: fn(&mut World)) -> World {
    let mut world = World::new();
    let strike = |world: &mut World, event: &mut dyn FnMut(&mut World)| {
        event(world);
        loop {
            if world.trace.len() == at {
                trouble(world);
            }
            let waits = !world.step();
            if waits {
                break;
            }
        }
    };
    strike(&mut world, &mut |_| {});
    for (port, plug) in [("a", flat()), ("b", plug(1, 2, Some(100)))] {
        strike(&mut world, &mut |world| assert!(world.take(port, plug.vhost)));
        strike(&mut world, &mut |world| world.bind(port, plug));
        strike(&mut world, &mut |world| world.ask(port, "plug"));
    }
    strike(&mut world, &mut |world| world.ask("a", "unplug"));
    world
}

/// The life ends the same wherever `trouble` strikes.
fn everywhere(trouble: fn(&mut World)) {
    let n = life_with(usize::MAX, trouble).trace.len();
    for at in 0..=n {
        let run = std::panic::catch_unwind(|| {
            let mut world = life_with(at, trouble);
            world.settle();
            world.assert_up("b", plug(1, 2, Some(100)));
            assert_eq!(world.node.wired.len(), 1);
            assert_eq!(world.store.slot_value(0), Some(FREE));
            assert_eq!(world.store.keys_of(&name("a")), 0);
        });
        run.unwrap_or_else(|_| panic!("trouble before command {at}"));
    }
}

#[test]
fn compaction_while_away_is_listed_again() {
    everywhere(|world| {
        world.cut();
        world.store.put(Key::Configuration, "[]");
        world.store.compacted = world.store.revision;
    });
}

#[test]
fn compaction_between_listing_and_watch_is_listed_again() {
    everywhere(|world| {
        world.store.put(Key::Configuration, "[]");
        world.store.compacted = world.store.revision;
    });
}

#[test]
fn member_restart_is_reconnected() {
    everywhere(World::cut);
}

#[test]
fn partition_of_30_s_while_plug_arrives_ends_up_and_takes_no_wiring_away() {
    for held in [0, 1, 15, 30, 90] {
        let mut world = World::new();
        world.pump();
        world.bind_all("a", flat());
        let changes = world.node.n_changes;
        world.etcd_up = false;
        world.cut();
        assert!(world.take("b", 1));
        world.bind("b", plug(1, 2, Some(100)));
        world.ask("b", "plug");
        world.pass(S(held));
        assert_eq!(world.node.n_changes, changes, "wiring was touched without etcd");
        assert!(!world.status.get().etcd.connected);
        world.etcd_up = true;
        world.pass(S(10));
        world.assert_up("b", plug(1, 2, Some(100)));
        world.assert_up("a", flat());
        assert_eq!(world.node.n_changes, changes + 1);
    }
}

/// A backup of before port a is restored while a is wired: `etcdctl snapshot restore` makes another
/// cluster, a copied data directory the same one at a lower revision.
#[test]
fn revision_that_goes_back_takes_no_wiring_away() {
    for (cluster_id, later) in [(2, 0), (2, 50), (1, 0)] {
        let mut world = World::new();
        world.pump();
        let backup = world.store.clone();
        world.bind_all("a", flat());
        world.honest = false;
        world.cut();
        world.store = backup;
        world.store.cluster_id = cluster_id;
        for _ in 0..later {
            world.store.put(Key::Configuration, "[]");
        }
        world.pass(S(300));
        assert_eq!(world.node.wired.get(&0), Some(&flat()), "wiring taken away without proof");
        let ports = world.status.get().ports;
        assert!(ports.iter().any(|port| port.state == PortState::Kept), "{ports:?}");
        // Whoever gets the vhost now has it for itself.
        world.bind_all("b", plug(0, 5, None));
        world.settle();
        world.assert_up("b", plug(0, 5, None));
    }
}

#[test]
fn keys_wiped_and_written_again_take_no_wiring_away() {
    let mut world = World::new();
    world.pump();
    world.bind_all("a", flat());
    world.honest = false;
    for kv in world.store.listing().keys {
        world.store.delete(&kv.key);
    }
    world.pass(S(300));
    assert_eq!(world.node.wired.get(&0), Some(&flat()));
}

/// Lost events are found by the next listing; doubled and old ones change nothing.
#[test]
fn watch_event_lost_is_made_up_for_by_the_next_listing() {
    for family in 0..Family::ALL.len() as u8 {
        let mut world = World::new();
        world.pump();
        world.take("a", 0);
        world.bind("a", flat());
        world.ask("a", "plug");
        if world.news().contains(&family) {
            world.lose_news(family);
        }
        world.pass(S(70));
        world.assert_up("a", flat());
    }
}

#[test]
fn watch_events_doubled_change_nothing() {
    let mut world = World::new();
    world.pump();
    world.take("a", 0);
    world.bind("a", flat());
    world.ask("a", "plug");
    loop {
        match world.news().first() {
            Some(family) => world.deliver_doubled(*family),
            None if world.step() => {}
            None => break,
        }
    }
    world.assert_up("a", flat());
    assert_eq!((world.node.n_changes, world.ups.len()), (1, 1));
}

/// One port with this bind_port, beside an honest one.
fn garbage(value: &[u8]) -> World {
    let mut world = World::new();
    world.honest = false;
    world.pump();
    world.bind_all("good", plug(1, 2, None));
    world.take("bad", 0);
    world.store.put(Key::BindPort(name("bad")), value);
    world.ask("bad", "plug");
    world.pump();
    world.pass(S(5));
    world.assert_up("good", plug(1, 2, None));
    world
}

/// Refused with a reason, nothing wired, no `up`, and an unplug takes it all away.
fn is_refused(value: &[u8]) {
    let mut world = garbage(value);
    let text = String::from_utf8_lossy(value).into_owned();
    assert!(!world.node.wired.contains_key(&0), "{text}");
    assert_eq!(world.store.status(&name("bad")), None, "{text}");
    let ports = world.status.get().ports;
    let bad = ports.iter().find(|port| port.port == Some(name("bad"))).expect("it is reported");
    assert_eq!(bad.state, PortState::Refused, "{text}");
    assert!(!bad.why.is_empty(), "{text}");
    world.ask("bad", "unplug");
    world.settle();
    assert_eq!(world.store.get(&Key::Vhost(slot(0))), Some(FREE), "{text}");
    assert_eq!(world.store.keys_of(&name("bad")), 0, "{text}");
}

#[test]
fn bind_port_that_is_not_json_is_refused() {
    let all: [&[u8]; 7] = [b"", b"None", b"{", b"[]", b"\xff\xfe\x00", b"7", &[b'['; 5000]];
    all.into_iter().for_each(is_refused);
}

#[test]
fn bind_port_without_mac_is_refused() {
    is_refused(br#"{"vhost_id": 0}"#);
    is_refused(br#"{"vhost_id": 0, "mac_address": null}"#);
    is_refused(br#"{"vhost_id": 0, "mac_address": "fa:16:3e:a0:da"}"#);
}

#[test]
fn bind_port_with_vhost_id_out_of_range_is_refused() {
    for vhost in ["4", "99999", "-1", "0.5", "4294967296", "null", "\"x\""] {
        is_refused(format!(r#"{{"vhost_id": {vhost}, "mac_address": "fa:16:3e:a0:da:db"}}"#).as_bytes());
    }
}

#[test]
fn duplicate_vhost_id_over_two_ports_serves_the_holder_of_the_slot() {
    let mut world = World::new();
    world.pump();
    world.bind_all("holder", flat());
    world.honest = false;
    world.bind("other", plug(0, 7, None));
    world.ask("other", "plug");
    world.settle();
    world.assert_up("holder", flat());
    assert_eq!(world.store.status(&name("other")), None);
}

#[test]
fn bind_port_with_upper_case_mac_is_wired() {
    let world = garbage(br#"{"vhost_id": 0, "mac_address": "FA:16:3E:00:00:01"}"#);
    world.assert_up("bad", flat());
}

#[test]
fn bind_port_with_vlan_id_as_text_is_wired_with_that_vlan() {
    let world = garbage(br#"{"vhost_id": 0, "mac_address": "fa:16:3e:00:00:01", "vlan_id": "100"}"#);
    world.assert_up("bad", plug(0, 1, Some(100)));
}

#[test]
fn bind_port_with_vlan_id_out_of_range_is_refused() {
    for vlan in ["0", "4095", "-1", "\"x\"", "1e2", "[]"] {
        let value = format!(r#"{{"vhost_id": 0, "mac_address": "fa:16:3e:00:00:01", "vlan_id": {vlan}}}"#);
        is_refused(value.as_bytes());
    }
}
