//! A sample of the simulation's crash points on the real thing: `spp run` killed with `kill -9` around
//! each step of a port's life, against a real etcd.

use std::time::Instant;

use serde_json::Value;

use super::binary::{Spp, put_mappings};
use super::*;

/// How long after the control node's step the node is killed, in microseconds: before it hears of it,
/// while it wires, around its transaction, after it.
const KILL_AFTER_US: [u64; 6] = [0, 500, 1_500, 3_000, 6_000, 40_000];

async fn until_plugged(spp: &Spp<'_>, plug: &Value) {
    until("the vhost is plugged as asked", || async { spp.plug_of(0).as_ref() == Some(plug) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_killed_around_every_step_of_a_port_ends_as_if_it_had_not_been() {
    const TEST: &str = "node_killed_around_every_step_of_a_port_ends_as_if_it_had_not_been";
    let Some(etcd) = Etcd::start(TEST).await else { return };
    let mut driver = Driver::new(etcd.client().await, HOST);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(put_mappings(&etcd.url(), "null:#phys1#2#0xfe"), Some(0));
    let unused = values(&mut driver.client, "/").await;
    let mut spp = Spp::run(&etcd.url(), dir.path());
    for (round, after_us) in KILL_AFTER_US.into_iter().enumerate() {
        let vlan = (round % 2 == 0).then_some(100 + round as u16);
        let plug = serde_json::json!({"mac": MAC, "vlan": vlan});
        let after = Duration::from_micros(after_us);
        let began = Instant::now();

        driver.bind(PORT, ("phys1", 0), MAC, vlan).await;
        tokio::time::sleep(after).await;
        drop(spp);
        spp = Spp::run(&etcd.url(), dir.path());
        until_plugged(&spp, &plug).await;
        driver.until_up(PORT).await;

        driver.unbind(PORT).await;
        tokio::time::sleep(after).await;
        drop(spp);
        // Even rounds: the next port comes while the node is away.
        if round % 2 == 0 {
            driver.bind("next", ("phys1", 1), "fa:16:3e:00:00:02", None).await;
        }
        spp = Spp::run(&etcd.url(), dir.path());
        driver.until_gone(PORT).await;
        until("nothing is plugged there", || async { spp.plug_of(0) == Some(Value::Null) }).await;
        if round % 2 == 0 {
            driver.until_up("next").await;
            driver.unbind("next").await;
            driver.until_gone("next").await;
        }
        assert_eq!(values(&mut driver.client, "/").await, unused, "killed {after:?} after each step");
        println!("killed {after:?} after each step: both lives done in {:?}", began.elapsed());
    }
    assert_eq!(spp.stop().await, Some(0));
}
