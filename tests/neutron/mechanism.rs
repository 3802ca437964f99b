//! The mechanism driver's binds and deletes, as ML2 asks for them, against nodes and their agents.

use serde_json::json;

use crate::control::{Control, bind};
use crate::host::Host;
use crate::support::server::Etcd;
use crate::support::until;
use crate::{mac, port};

const NICS: &str = "null:#phys1#2#0xfe,null:#phys2#1#0x3c02";

/// An etcd, the drivers on it. None: skipped.
async fn lab(test: &str) -> Option<(Etcd, Control)> {
    let etcd = Etcd::start(test).await?;
    let control = Control::start(test, &etcd)?;
    Some((etcd, control))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_flat_and_vlan_ports_are_wired_deleted_and_bound_again() {
    let test = "drivers_flat_and_vlan_ports_are_wired_deleted_and_bound_again";
    let Some((etcd, mut control)) = lab(test).await else { return };
    let host = Host::started(&etcd, "spp4", NICS).await;
    let before = host.keys(&etcd).await;
    for round in 0..3 {
        let (flat, vlan) = (mac(10 * round + 1), mac(10 * round + 2));
        assert_eq!(control.bind(bind("spp4", &port(1), &flat, "phys1", None)), Some(0));
        assert_eq!(control.bind(bind("spp4", &port(2), &vlan, "phys2", Some(100))), Some(2));
        assert_eq!((host.plug_of(0), host.plug_of(2)), (Some((flat, None)), Some((vlan, Some(100)))));
        control.delete("spp4", &port(1));
        // The host of a port that is not deleted is cleared when its VM moves away.
        let moved = json!({"do": "update", "port": port(2), "original_host": "spp4",
                           "original_vif_type": "vhostuser"});
        control.call(moved).unwrap();
        host.until_unused(&etcd).await;
        assert_eq!((host.plug_of(0), host.plug_of(2)), (None, None));
    }
    assert_eq!(host.keys(&etcd).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn driver_does_not_bind_where_it_cannot_and_leaves_no_keys() {
    let test = "driver_does_not_bind_where_it_cannot_and_leaves_no_keys";
    let Some((etcd, mut control)) = lab(test).await else { return };
    let host = Host::configured(&etcd, "spp4", NICS);
    let before = host.keys(&etcd).await;
    let at = |host, physnet, vlan| bind(host, &port(1), &mac(1), physnet, vlan);
    assert_eq!(control.bind(at("nowhere", "phys1", None)), None);
    assert_eq!(control.bind(at("spp4", "phys9", Some(7))), None);
    let mut dead = at("spp4", "phys1", None);
    dead["agent_alive"] = false.into();
    assert_eq!(control.bind(dead), None);
    let mut tunnel = at("spp4", "phys1", None);
    tunnel["segments"][0]["network_type"] = "vxlan".into();
    assert_eq!(control.bind(tunnel), None);
    assert_eq!(host.keys(&etcd).await, before);
    // Why `spp config put` writes the later shape unless told not to.
    assert!(host.config_put(&["--list-form", NICS]).status.success());
    assert_eq!(control.call(at("spp4", "phys1", None)), Err("TypeError".into()));
    assert_eq!(host.keys(&etcd).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vhosts_run_out_and_are_bound_again_once_deleted() {
    let test = "vhosts_run_out_and_are_bound_again_once_deleted";
    let Some((etcd, mut control)) = lab(test).await else { return };
    let host = Host::started(&etcd, "spp4", NICS).await;
    let ask = |n| bind("spp4", &port(n), &mac(n), "phys1", Some(100 + n as u16));
    // At the same time, as neutron's workers do.
    let tickets = [1, 2, 3].map(|n| control.send(ask(n)));
    let mut vhosts = tickets.map(|ticket| control.bound(ticket));
    let loser = 1 + vhosts.iter().position(Option::is_none).expect("there are two vhosts for three ports");
    let winner = 1 + vhosts.iter().position(Option::is_some).expect("two are bound");
    let freed = vhosts[winner - 1];
    vhosts.sort_unstable();
    assert_eq!(vhosts, [None, Some(0), Some(1)]);
    assert!(host.keys(&etcd).await.iter().all(|(key, _)| !key.contains(&port(loser))));
    control.delete("spp4", &port(loser));
    control.delete("spp4", &port(winner));
    until("a vhost is free", || async {
        let keys = host.keys(&etcd).await;
        keys.iter().any(|(key, value)| key.starts_with("vhost/phys1/") && value == "None")
    })
    .await;
    assert_eq!(control.bind(ask(loser)), freed);
    for n in 1..4 {
        control.delete("spp4", &port(n));
    }
    host.until_unused(&etcd).await;
}

/// The driver starts to watch only after it has asked, from now on and not from then; 6 of 100 binds are lost
/// with an agent that answers once and fast.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_watch_of_the_driver_always_sees_up() {
    let test = "late_watch_of_the_driver_always_sees_up";
    let Some((etcd, mut control)) = lab(test).await else { return };
    let host = Host::started(&etcd, "spp4", "null:#phys1#4#0xffe").await;
    for round in 0..15 {
        let tickets = [1, 2, 3, 4].map(|n| control.send(bind("spp4", &port(n), &mac(n), "phys1", None)));
        for ticket in tickets {
            assert!(control.bound(ticket).is_some(), "round {round}: the driver has not seen up");
        }
        for n in 1..5 {
            control.delete("spp4", &port(n));
        }
        host.until_unused(&etcd).await;
    }
}

/// However late: here by up to half a minute, on a control node that is too busy. No guest comes meanwhile, since it
/// is the driver's answer that has it started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn driver_that_starts_its_watch_much_too_late_sees_up() {
    let test = "driver_that_starts_its_watch_much_too_late_sees_up";
    let Some((etcd, mut control)) = lab(test).await else { return };
    let host = Host::started(&etcd, "spp4", "null:#phys1#4#0xffe").await;
    let late_s = [0.5, 7.0, 16.0, 30.0];
    let tickets = [1, 2, 3, 4].map(|n| {
        let mut ask = bind("spp4", &port(n), &mac(n), "phys1", None);
        ask["watch_late_s"] = late_s[n - 1].into();
        control.send(ask)
    });
    for (ticket, late_s) in tickets.into_iter().zip(late_s) {
        assert!(control.bound(ticket).is_some(), "{late_s} s late: the driver has not seen up");
    }
    for n in 1..5 {
        control.delete("spp4", &port(n));
    }
    host.until_unused(&etcd).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timed_out_bind_can_be_deleted_and_bound_once_the_agent_is_there() {
    let test = "timed_out_bind_can_be_deleted_and_bound_once_the_agent_is_there";
    let Some((etcd, mut control)) = lab(test).await else { return };
    let mut host = Host::configured(&etcd, "spp4", NICS);
    let ask = bind("spp4", &port(1), &mac(1), "phys1", Some(100));
    // Neutron thinks the agent alive; it is not. Neutron's own retry gets nowhere: bind_port is there.
    assert_eq!(control.bind(ask.clone()), None);
    assert_eq!(control.bind(ask.clone()), None);
    assert_eq!(host.keys(&etcd).await.len(), 5);
    let delete = json!({"do": "delete", "host": "spp4", "port": port(1), "vif_type": "binding_failed"});
    control.call(delete).unwrap();
    // The agent finds the unplug of a port it has never plugged.
    host.run().await;
    host.until_unused(&etcd).await;
    assert_eq!(control.bind(ask), Some(0));
    assert_eq!(host.plug_of(0), Some((mac(1), Some(100))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binds_and_deletes_while_the_agent_is_away_are_done_when_it_is_back() {
    let test = "binds_and_deletes_while_the_agent_is_away_are_done_when_it_is_back";
    let Some((etcd, mut control)) = lab(test).await else { return };
    let mut host = Host::started(&etcd, "spp4", NICS).await;
    assert_eq!(control.bind(bind("spp4", &port(1), &mac(1), "phys1", None)), Some(0));
    assert_eq!(control.bind(bind("spp4", &port(2), &mac(2), "phys2", None)), Some(2));
    // It hangs for a while, well within the driver's patience.
    host.signal(rustix::process::Signal::STOP);
    let ticket = control.send(bind("spp4", &port(3), &mac(3), "phys1", Some(300)));
    until("the driver has asked", || async {
        host.keys(&etcd).await.iter().any(|(key, _)| *key == format!("action/{}", port(3)))
    })
    .await;
    host.signal(rustix::process::Signal::CONT);
    assert_eq!(control.bound(ticket), Some(1));
    // It is killed, and one of its ports deleted meanwhile.
    host.kill();
    control.delete("spp4", &port(1));
    host.run().await;
    let expected = [None, Some((mac(3), Some(300))), Some((mac(2), None))];
    until("everything is as neutron has it", || async { [0, 1, 2].map(|v| host.plug_of(v)) == expected })
        .await;
    assert_eq!(control.bind(bind("spp4", &port(1), &mac(1), "phys1", None)), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn driver_and_spp_bind_share_a_host() {
    let test = "driver_and_spp_bind_share_a_host";
    let Some((etcd, mut control)) = lab(test).await else { return };
    let host = Host::started(&etcd, "spp4", NICS).await;
    assert_eq!(control.bind(bind("spp4", &port(1), &mac(1), "phys1", None)), Some(0));
    let ours = host.bind(&["web", "--phys", "phys1", "--mac", &mac(2), "--vlan", "200"]).output().unwrap();
    assert!(ours.status.success(), "{ours:?}");
    assert_eq!(host.plug_of(1), Some((mac(2), Some(200))));
    // Neither takes the other's.
    assert_eq!(control.bind(bind("spp4", "web", &mac(3), "phys1", None)), None);
    let theirs = host.bind(&[&port(1), "--phys", "phys1", "--mac", &mac(3)]).output().unwrap();
    assert_eq!(theirs.status.code(), Some(4), "{theirs:?}");
    assert_eq!(control.bind(bind("spp4", &port(2), &mac(4), "phys1", None)), None);
    // Each can end what the other began.
    control.delete("spp4", "web");
    assert!(host.unbind(&[&port(1)]).status().unwrap().success());
    host.until_unused(&etcd).await;
}
