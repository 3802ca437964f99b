//! `spp bind` and `spp unbind` against a node and its agent.

use std::process::{Output, Stdio};

use serde_json::Value;

use crate::host::Host;
use crate::mac;
use crate::support::server::Etcd;
use crate::support::until;

const NICS: &str = "null:#phys1#2#0xfe,null:#phys2#1#0x3c02";

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Exit code and the line on stderr.
fn failed(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bind_wires_flat_and_vlan_ports_and_unbind_leaves_no_trace() {
    let test = "bind_wires_flat_and_vlan_ports_and_unbind_leaves_no_trace";
    let Some(etcd) = Etcd::start(test).await else { return };
    let host = Host::started(&etcd, "spp4", NICS).await;
    let before = host.keys(&etcd).await;

    let web = host.bind(&["web", "--phys", "phys1", "--mac", &mac(1), "--json"]).output().unwrap();
    let expected = serde_json::json!({
        "port_id": "web", "host": "spp4", "physical_network": "phys1", "vhost_id": 0,
        "socket": "/tmp/sock0", "mac_address": mac(1),
    });
    assert_eq!(json(&web), expected);
    assert_eq!(host.plug_of(0), Some((mac(1), None)));
    let db = host.bind(&["db", "--phys", "phys2", "--mac", &mac(2), "--vlan", "100"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&db.stdout), "port db bound: vhost 2 of spp4, socket /tmp/sock2\n");
    assert_eq!(host.plug_of(2), Some((mac(2), Some(100))));
    let keys = host.keys(&etcd).await;
    let key = |key: &str| keys.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
    assert_eq!(key("vhost/phys2/2"), Some("db"));
    let info = format!("{{\"mac_address\": \"{}\", \"vhost_id\": 2, \"vlan_id\": 100}}", mac(2));
    assert_eq!(key("bind_port/db"), Some(info.as_str()));
    assert_eq!((key("action/db"), key("port_status/db")), (Some("plug"), Some("up")));

    // What can't be is refused and changes nothing.
    let refused = |args: &[&str]| failed(&host.bind(args).output().unwrap());
    let (code, line) = refused(&["web", "--phys", "phys1", "--mac", &mac(3)]);
    assert!(code == Some(4) && line.contains("unbind it first"), "{line}");
    let (code, line) = refused(&["x", "--phys", "phys2", "--mac", &mac(3)]);
    assert!(code == Some(4) && line.contains("all 1 are in use"), "{line}");
    let (code, line) = refused(&["x", "--phys", "phys9", "--mac", &mac(3)]);
    assert!(code == Some(4) && line.contains("it has phys1, phys2"), "{line}");
    assert_eq!(host.keys(&etcd).await, keys);

    let output = host.unbind(&["db", "--json"]).output().unwrap();
    let expected = serde_json::json!({"port_id": "db", "host": "spp4", "bound": false, "vhosts_free": [2]});
    assert_eq!(json(&output), expected);
    let output = host.unbind(&["web"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "port web unbound: vhost 0 is free\n");
    assert_eq!((host.plug_of(0), host.plug_of(2)), (None, None));
    let again = host.unbind(&["web"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&again.stdout), "port web unbound: it had no vhost\n");
    assert_eq!(host.keys(&etcd).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bind_without_an_agent_takes_everything_back() {
    let test = "bind_without_an_agent_takes_everything_back";
    let Some(etcd) = Etcd::start(test).await else { return };
    let mut host = Host::configured(&etcd, "spp4", NICS);
    let before = host.keys(&etcd).await;
    let late = host.bind(&["web", "--phys", "phys1", "--mac", &mac(1), "--wait-s", "1"]).output().unwrap();
    let (code, line) = failed(&late);
    assert!(code == Some(1) && line.contains("did not say up in time, nothing stays bound"), "{line}");
    assert_eq!(host.keys(&etcd).await, before);

    // The same on SIGTERM, and with an agent that is there but hangs.
    host.run().await;
    host.signal(rustix::process::Signal::STOP);
    let mut command = host.bind(&["web", "--phys", "phys1", "--mac", &mac(1)]);
    let child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    until("it is asked for", || async { host.keys(&etcd).await.len() > before.len() }).await;
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let (code, line) = failed(&child.wait_with_output().unwrap());
    assert!(code == Some(1) && line.contains("stopped, nothing stays bound"), "{line}");
    assert_eq!(host.keys(&etcd).await, before);
    host.signal(rustix::process::Signal::CONT);
    let bound = host.bind(&["web", "--phys", "phys1", "--mac", &mac(1)]).output().unwrap();
    assert!(bound.status.success(), "{bound:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unbind_without_an_agent_is_done_when_it_is_back() {
    let test = "unbind_without_an_agent_is_done_when_it_is_back";
    let Some(etcd) = Etcd::start(test).await else { return };
    let mut host = Host::started(&etcd, "spp4", NICS).await;
    let bound = host.bind(&["web", "--phys", "phys1", "--mac", &mac(1)]).output().unwrap();
    assert!(bound.status.success(), "{bound:?}");
    host.kill();
    let (code, line) = failed(&host.unbind(&["web", "--wait-s", "1"]).output().unwrap());
    assert!(code == Some(1) && line.contains("it will as soon as spp runs there"), "{line}");
    host.run().await;
    host.until_unused(&etcd).await;
    assert_eq!(host.plug_of(0), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binds_at_the_same_time_get_a_vhost_each() {
    let test = "binds_at_the_same_time_get_a_vhost_each";
    let Some(etcd) = Etcd::start(test).await else { return };
    let host = Host::started(&etcd, "spp4", "null:#phys1#4#0xffe").await;
    let bind = |n: usize| {
        let mut command = host.bind(&[&format!("p{n}"), "--phys", "phys1", "--mac", &mac(n), "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..6).map(bind).collect();
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let (bound, refused): (Vec<&Output>, Vec<&Output>) = outputs.iter().partition(|o| o.status.success());
    let mut vhosts: Vec<u64> = bound.iter().map(|o| json(o)["vhost_id"].as_u64().unwrap()).collect();
    vhosts.sort_unstable();
    assert_eq!(vhosts, [0, 1, 2, 3]);
    assert!(refused.iter().all(|o| o.status.code() == Some(4)), "{refused:?}");
    for n in 0..6 {
        assert!(host.unbind(&[&format!("p{n}")]).status().unwrap().success());
    }
    host.until_unused(&etcd).await;
}

#[test]
fn bind_without_etcd_exits_3() {
    let url = "http://127.0.0.1:1";
    let bind = ["bind", "a", "--etcd", url, "--host", "h", "--phys", "p", "--mac", "02:00:00:00:00:01"];
    for args in [&bind[..], &["unbind", "a", "--etcd", url, "--host", "h"]] {
        let (code, line) = failed(&crate::host::spp(args));
        assert!(code == Some(3) && line.contains("no etcd at http://127.0.0.1:1"), "{line}");
    }
}
