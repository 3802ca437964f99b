//! The agent against a real etcd server: exact keys, and everything etcd and the agent can suffer.
//!
//! Each test has a server of its own on loopback; without the `etcd` binary they are skipped.

#[path = "support/etcd/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions};
use spp_agent::{ConfigError, Name, PortState, SlotId};
use support::driver::{Driver, dump, values};
use support::node::{Agent, Moment, Node, config, configuration, put_config};
use support::proxy::Proxy;
use support::server::Etcd;
use support::{in_time, until};

const HOST: &str = "spp4";
const PORT: &str = "6160c9da-b2d5-4236-8413-7d646e5c0ae2";
const MAC: &str = "fa:16:3e:a0:da:db";
const CONFIGURATION: &str = r#"[{"num_vhost": 2, "core_mask": "0xfe", "pci_address": "00:04.0", "physical_network": "phys1"}, {"num_vhost": 2, "core_mask": "0xfc02", "pci_address": "00:05.0", "physical_network": "phys2"}]"#;

/// A server with the document's host on it, and the driver for it. None: skipped.
async fn lab(test: &str) -> Option<(Etcd, Driver)> {
    let etcd = Etcd::start(test).await?;
    put_config(&etcd.url(), HOST, CONFIGURATION).await;
    let driver = Driver::new(etcd.client().await, HOST);
    Some((etcd, driver))
}

fn slot(physnet: &str, vhost: u32) -> SlotId {
    SlotId { physnet: Name::new(physnet).unwrap(), vhost }
}

/// The document's first example, "just after construction".
fn document_unused() -> Vec<(String, String)> {
    let pairs = [
        ("configuration/spp4", CONFIGURATION),
        ("vhost/spp4/phys1/0", "None"),
        ("vhost/spp4/phys1/1", "None"),
        ("vhost/spp4/phys2/2", "None"),
        ("vhost/spp4/phys2/3", "None"),
    ];
    pairs.map(|(key, value)| (format!("/spp/openstack/{key}"), value.to_string())).into()
}

/// The document's second example, "one vhostuser using".
fn document_one_in_use() -> Vec<(String, String)> {
    let mut keys = document_unused();
    keys[1].1 = PORT.into();
    let bind_port = format!("{{\"vhost_id\": 0, \"mac_address\": \"{MAC}\"}}");
    for (family, value) in [("action", "plug"), ("bind_port", &bind_port), ("port_status", "up")] {
        keys.push((format!("/spp/openstack/{family}/spp4/{PORT}"), value.into()));
    }
    keys.sort();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_byte_for_byte_those_of_the_document() {
    let Some((etcd, mut driver)) = lab("keys_are_byte_for_byte_those_of_the_document").await else { return };
    assert_eq!(values(&mut driver.client, "/").await, document_unused());
    let node = Node::new();
    let agent = Agent::start(&etcd.url(), HOST, &node);
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    driver.until_up(PORT).await;
    assert_eq!(values(&mut driver.client, "/").await, document_one_in_use());
    assert_eq!(node.calls(), [format!("plug vhost 0 MAC {MAC}")]);
    driver.unbind(PORT).await;
    driver.until_gone(PORT).await;
    assert_eq!(values(&mut driver.client, "/").await, document_unused());
    assert!(node.wired().is_empty());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_other_hosts_are_untouched() {
    let Some((etcd, mut driver)) = lab("keys_of_other_hosts_are_untouched").await else { return };
    let mut others = Vec::new();
    for host in ["spp40", "spp", "SPP4"] {
        put_config(&etcd.url(), host, CONFIGURATION).await;
        let mut other = Driver::new(etcd.client().await, host);
        other.bind(PORT, ("phys1", 0), MAC, Some(5)).await;
        assert!(other.take("leaked", "phys2", 3).await);
        other.put("action", "orphan", "unplug").await;
        let prefix = |family: &str| format!("/spp/openstack/{family}/{host}");
        others.extend(["configuration", "vhost", "bind_port", "port_status", "action"].map(prefix));
    }
    let mut before = Vec::new();
    for prefix in &others {
        before.push(dump(&mut driver.client, &format!("{prefix}/")).await);
    }
    let node = Node::new();
    let mut settings = config(&etcd.url(), HOST);
    settings.timing.leak_grace = Duration::from_millis(300);
    let agent = Agent::with(settings, &node);
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    assert!(driver.take("leaked", "phys2", 3).await);
    driver.until_up(PORT).await;
    driver.unbind(PORT).await;
    driver.until_gone(PORT).await;
    let (client, key) = (driver.client.clone(), driver.key("vhost", "phys2/3"));
    until("our own leaked slot is collected", || {
        let (mut client, key) = (client.clone(), key.clone());
        async move { client.get(key, None).await.unwrap().kvs()[0].value() == b"None" }
    })
    .await;
    for (prefix, before) in others.iter().zip(before) {
        assert_eq!(dump(&mut driver.client, &format!("{prefix}/")).await, before);
    }
    assert_eq!(node.calls(), [format!("plug vhost 0 MAC {MAC}"), "unplug 0".into()]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_watcher_sees_up() {
    let Some((etcd, mut driver)) = lab("late_watcher_sees_up").await else { return };
    let node = Node::new();
    let agent = Agent::start(&etcd.url(), HOST, &node);
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    driver.until_up(PORT).await;
    // The driver starts to watch only now, without a start revision, and never reads the key.
    for _ in 0..3 {
        let mut watch = driver.client.watch(driver.key("port_status", PORT), None).await.unwrap();
        let seen = async {
            loop {
                let message = watch.message().await.unwrap().unwrap();
                if let Some(event) = message.events().first() {
                    assert_eq!(event.event_type(), EventType::Put);
                    return event.kv().unwrap().value().to_vec();
                }
            }
        };
        assert_eq!(in_time("a late watcher waits", seen).await, b"up");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_up_comes_after_unplug() {
    let Some((etcd, mut driver)) = lab("no_up_comes_after_unplug").await else { return };
    let node = Node::new();
    let agent = Agent::start(&etcd.url(), HOST, &node);
    for round in 0..30 {
        driver.bind(PORT, ("phys1", 0), MAC, None).await;
        if round % 2 == 0 {
            driver.until_up(PORT).await;
        }
        tokio::time::sleep(Duration::from_millis(round * 7 % 40)).await;
        driver.unbind(PORT).await;
        driver.until_gone(PORT).await;
    }
    // Longer than the next `up`s would have been due.
    tokio::time::sleep(Duration::from_millis(600)).await;
    agent.stop().await;
    let history = WatchOptions::new().with_prefix().with_start_revision(1);
    let mut watch = driver.client.watch("/spp/openstack/", Some(history)).await.unwrap();
    driver.put("action", "end", "of history").await;
    let mut unplug_asked = false;
    let mut n_up = 0;
    loop {
        let message = in_time("reading history", watch.message()).await.unwrap().unwrap();
        for event in message.events() {
            let kv = event.kv().unwrap();
            match (kv.key_str().unwrap().split('/').nth(3).unwrap(), kv.value()) {
                ("action", b"plug") => unplug_asked = false,
                ("action", b"unplug") => unplug_asked = true,
                ("action", b"of history") => {
                    assert!(n_up >= 15, "{n_up}");
                    return;
                }
                ("port_status", b"up") => {
                    assert!(!unplug_asked, "up after unplug");
                    n_up += 1;
                }
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_killed_and_restarted_is_taken_up_again() {
    let Some((mut etcd, mut driver)) = lab("etcd_killed_and_restarted_is_taken_up_again").await else {
        return;
    };
    let node = Node::new();
    let agent = Agent::start(&etcd.url(), HOST, &node);
    driver.bind("a", ("phys1", 0), MAC, None).await;
    driver.until_up("a").await;
    for round in 0..3 {
        etcd.kill();
        agent.until_disconnected().await;
        assert!(node.wired().contains_key(&0), "wiring lost with etcd");
        etcd.run().await;
        let mut driver = Driver::new(etcd.client().await, HOST);
        driver.bind("b", ("phys2", 2), "fa:16:3e:00:00:02", Some(100 + round)).await;
        driver.until_up("b").await;
        driver.unbind("b").await;
        driver.until_gone("b").await;
    }
    assert_eq!(node.calls().iter().filter(|call| call.contains("vhost 0") || *call == "unplug 0").count(), 1);
    assert!(agent.status.get().etcd.n_connects >= 4);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_compacted_while_away_is_no_loss() {
    let Some((etcd, mut driver)) = lab("history_compacted_while_away_is_no_loss").await else { return };
    let wire = Proxy::start(etcd.port()).await;
    let node = Node::new();
    let agent = Agent::start(&wire.url(), HOST, &node);
    driver.bind("a", ("phys1", 0), MAC, None).await;
    driver.bind("b", ("phys1", 1), "fa:16:3e:00:00:02", None).await;
    driver.until_up("a").await;
    driver.until_up("b").await;
    wire.cut();
    agent.until_disconnected().await;
    driver.unbind("a").await;
    driver.bind("c", ("phys2", 3), "fa:16:3e:00:00:03", Some(7)).await;
    let revision = driver.client.get("x", None).await.unwrap().header().unwrap().revision();
    driver.client.compact(revision, None).await.unwrap();
    wire.mend();
    driver.until_gone("a").await;
    driver.until_up("c").await;
    node.until_wired(&[1, 3]).await;
    assert_eq!(node.calls().iter().filter(|call| call.contains("vhost 1")).count(), 1, "b was touched");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_from_a_compacted_revision_says_so() {
    let Some((etcd, mut driver)) = lab("watch_from_a_compacted_revision_says_so").await else { return };
    let revision = driver.client.get("x", None).await.unwrap().header().unwrap().revision();
    driver.client.compact(revision, None).await.unwrap();
    let dialer = spp_agent::connect::Dialer::new(etcd.url().parse().unwrap());
    let keys = spp_agent::keys::HostKeys::new(Name::new(HOST).unwrap());
    let mut link = spp_agent::link::Link::dial(&dialer, keys).await.unwrap();
    let mut watch = link.watch(1).await.unwrap();
    let lost = loop {
        match in_time("the watch", watch.next()).await {
            Ok(changes) => assert!(changes.is_empty()),
            Err(lost) => break lost,
        }
    };
    assert!(matches!(lost, spp_agent::link::Lost::Compacted(_)), "{lost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_gone_silent_is_found_and_replaced() {
    let Some((etcd, mut driver)) = lab("connection_gone_silent_is_found_and_replaced").await else { return };
    let wire = Proxy::start(etcd.port()).await;
    let node = Node::new();
    let agent = Agent::start(&wire.url(), HOST, &node);
    agent.until_connected().await;
    wire.deaden();
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    driver.until_up(PORT).await;
    assert_eq!(agent.status.get().etcd.n_connects, 2);
    agent.stop().await;
}

/// Everything etcd knew is gone, and so is its revision: the node goes on as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wiped_etcd_takes_no_wiring_away() {
    let Some((mut etcd, mut driver)) = lab("wiped_etcd_takes_no_wiring_away").await else { return };
    let node = Node::new();
    let agent = Agent::start(&etcd.url(), HOST, &node);
    driver.bind("a", ("phys1", 0), MAC, None).await;
    driver.bind("b", ("phys1", 1), "fa:16:3e:00:00:02", None).await;
    driver.until_up("a").await;
    driver.until_up("b").await;
    etcd.wipe();
    agent.until_disconnected().await;
    etcd.run().await;
    put_config(&etcd.url(), HOST, CONFIGURATION).await;
    agent.until_connected().await;
    let mut driver = Driver::new(etcd.client().await, HOST);
    // The driver knows nothing of a and gives its vhost away; of b nobody says anything.
    driver.bind("c", ("phys1", 0), "fa:16:3e:00:00:03", None).await;
    driver.until_up("c").await;
    assert_eq!(node.wired()[&1].mac.to_string(), "fa:16:3e:00:00:02");
    assert_eq!(node.wired()[&0].mac.to_string(), "fa:16:3e:00:00:03");
    let kept =
        agent.status.get().ports.into_iter().find(|port| port.live.is_some_and(|plug| plug.vhost == 1));
    assert_eq!(kept.unwrap().state, PortState::Kept);
    agent.stop().await;
}

/// One life of a port, with the agent killed at `moment` of each half; true if the node dies with it.
async fn life_with_kill(etcd: &Etcd, driver: &mut Driver, moment: Moment, node_dies: bool) {
    let unused = values(&mut driver.client, "/").await;
    let mut node = Node::new();
    for step in ["bind", "unbind"] {
        let (killed, mut wait_killed) = tokio::sync::mpsc::unbounded_channel();
        let agent = Agent::start(&etcd.url(), HOST, &node);
        let abort = agent.task.abort_handle();
        node.set_hook(move |at| {
            if at == moment {
                abort.abort();
                let _ = killed.send(());
            }
        });
        let in_this_step = matches!(moment, Moment::BeforePlug | Moment::AfterPlug) == (step == "bind");
        match step {
            "bind" => driver.bind(PORT, ("phys1", 0), MAC, None).await,
            _ => driver.unbind(PORT).await,
        }
        if in_this_step {
            in_time("the kill", wait_killed.recv()).await;
        } else {
            agent.until_connected().await;
        }
        agent.kill().await;
        if node_dies {
            node = Node::new();
        }
        node.set_hook(|_| {});
        let agent = Agent::start(&etcd.url(), HOST, &node);
        match step {
            "bind" => driver.until_up(PORT).await,
            _ => driver.until_gone(PORT).await,
        }
        if step == "bind" {
            assert_eq!(node.wired()[&0].mac.to_string(), MAC);
            assert_eq!(values(&mut driver.client, "/").await, document_one_in_use());
        }
        agent.stop().await;
    }
    assert!(node.wired().is_empty());
    assert_eq!(values(&mut driver.client, "/").await, unused, "{moment:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_killed_in_the_middle_of_a_call_goes_on_after_restart() {
    let name = "agent_killed_in_the_middle_of_a_call_goes_on_after_restart";
    let Some((etcd, mut driver)) = lab(name).await else { return };
    for moment in [Moment::BeforePlug, Moment::AfterPlug, Moment::BeforeUnplug, Moment::AfterUnplug] {
        for node_dies in [false, true] {
            // A node that dies with the agent is unwired: there is no unplug call to be killed in.
            if node_dies && matches!(moment, Moment::BeforeUnplug | Moment::AfterUnplug) {
                continue;
            }
            life_with_kill(&etcd, &mut driver, moment, node_dies).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_killed_at_any_time_goes_on_after_restart() {
    let Some((etcd, mut driver)) = lab("agent_killed_at_any_time_goes_on_after_restart").await else {
        return;
    };
    let node = Node::new();
    for round in 0..40u64 {
        let agent = Agent::start(&etcd.url(), HOST, &node);
        let bound = round % 2 == 0;
        match bound {
            true => driver.bind(PORT, ("phys1", 0), MAC, None).await,
            false => driver.unbind(PORT).await,
        }
        // From before the listing to after the last transaction.
        tokio::time::sleep(Duration::from_micros(round / 2 * 400)).await;
        agent.kill().await;
        let agent = Agent::start(&etcd.url(), HOST, &node);
        match bound {
            true => driver.until_up(PORT).await,
            false => driver.until_gone(PORT).await,
        }
        node.until_wired(if bound { &[0] } else { &[] }).await;
        let want = if bound { document_one_in_use() } else { document_unused() };
        assert_eq!(values(&mut driver.client, "/").await, want, "round {round}");
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_ends_at_once_whatever_is_under_way() {
    let Some((mut etcd, mut driver)) = lab("stop_ends_at_once_whatever_is_under_way").await else { return };
    // While connected and idle.
    let agent = Agent::start(&etcd.url(), HOST, &Node::new());
    agent.until_connected().await;
    agent.stop().await;
    // While the node hangs in a call.
    let node = Node::new();
    let (entered, wait_entered) = std::sync::mpsc::channel();
    let (release, wait_release) = std::sync::mpsc::channel::<()>();
    let wait_release = std::sync::Mutex::new(wait_release);
    node.set_hook(move |_| {
        let _ = entered.send(());
        let _ = wait_release.lock().unwrap().recv();
    });
    let agent = Agent::start(&etcd.url(), HOST, &node);
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    tokio::task::spawn_blocking(move || wait_entered.recv_timeout(support::DEADLINE)).await.unwrap().unwrap();
    agent.stop().await;
    drop(release);
    // While the connection is dead.
    let wire = Proxy::start(etcd.port()).await;
    let agent = Agent::start(&wire.url(), HOST, &Node::new());
    agent.until_connected().await;
    wire.deaden();
    agent.stop().await;
    // While there is no etcd.
    let agent = Agent::start(&etcd.url(), HOST, &Node::new());
    agent.until_connected().await;
    etcd.kill();
    agent.until_disconnected().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_without_etcd_and_without_configuration_waits_for_both() {
    let Some(mut etcd) = Etcd::prepare("start_without_etcd_and_without_configuration_waits_for_both") else {
        return;
    };
    let url = etcd.url();
    let waiting = tokio::spawn(async move { configuration(&url, HOST).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    etcd.run().await;
    put_config(&etcd.url(), "spp40", "[40]").await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!waiting.is_finished());
    put_config(&etcd.url(), HOST, CONFIGURATION).await;
    let found = in_time("the configuration", waiting).await.unwrap();
    assert_eq!(found.json, CONFIGURATION.as_bytes());
    assert!(found.revision > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_refused_by_the_node_is_waited_out() {
    let Some((etcd, mut driver)) = lab("configuration_refused_by_the_node_is_waited_out").await else {
        return;
    };
    let refused = configuration(&etcd.url(), HOST).await;
    let (endpoints, host) = (etcd.url().parse().unwrap(), Name::new(HOST).unwrap());
    let next = tokio::spawn(async move {
        spp_agent::wait_for_configuration(&endpoints, &host, Some(refused.revision)).await
    });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!next.is_finished());
    driver.client.put("/spp/openstack/configuration/spp4", "[]", None).await.unwrap();
    assert_eq!(in_time("the next configuration", next).await.unwrap().json, b"[]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_changed_at_run_time_is_reported_and_changes_nothing() {
    let name = "configuration_changed_at_run_time_is_reported_and_changes_nothing";
    let Some((etcd, mut driver)) = lab(name).await else { return };
    let mut settings = config(&etcd.url(), HOST);
    settings.started_with = Some(configuration(&etcd.url(), HOST).await);
    let node = Node::new();
    let agent = Agent::with(settings, &node);
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    driver.until_up(PORT).await;
    assert!(!agent.status.get().configuration_changed);
    put_config(&etcd.url(), HOST, "[]").await;
    until("the change is seen", || async { agent.status.get().configuration_changed }).await;
    let key = "/spp/openstack/configuration/spp4";
    driver.client.put(key, CONFIGURATION, None).await.unwrap();
    until("the change back is seen", || async { !agent.status.get().configuration_changed }).await;
    driver.client.delete(key, None).await.unwrap();
    until("the deletion is seen", || async { agent.status.get().configuration_changed }).await;
    assert_eq!(node.calls().len(), 1);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_from_everywhere_stops_nobody() {
    let Some((etcd, mut driver)) = lab("garbage_from_everywhere_stops_nobody").await else { return };
    let big = vec![b'['; 1 << 20];
    for i in 0..6 {
        driver.put("bind_port", &format!("big{i}"), big.clone()).await;
        driver.put("action", &format!("big{i}"), "plug").await;
    }
    let node = Node::new();
    let agent = Agent::start(&etcd.url(), HOST, &node);
    let garbage: [&[u8]; 6] = [b"", b"\xff\xfe\x00", b"{", b"[]", br#"{"vhost_id": 99999}"#, b"None"];
    for (i, value) in garbage.into_iter().enumerate() {
        driver.put("bind_port", &format!("g{i}"), value).await;
        driver.put("action", &format!("g{i}"), "plug").await;
        driver.put("action", &format!("h{i}"), value).await;
        driver.put("port_status", &format!("i{i}"), value).await;
        driver.put("vhost", &format!("phys1/x{i}"), value).await;
        driver.put("vhost", "phys2/3", value).await;
        driver.put("action", &format!("slash/{i}"), "plug").await;
    }
    for i in 0..500 {
        driver.put("action", &format!("flood{}", i % 50), ["plug", "unplug", "?"][i % 3]).await;
    }
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    driver.until_up(PORT).await;
    assert_eq!(node.wired().len(), 1);
    assert_eq!(agent.status.get().etcd.n_connects, 1);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_endpoint_is_used_when_the_first_is_dead() {
    let Some((etcd, mut driver)) = lab("second_endpoint_is_used_when_the_first_is_dead").await else {
        return;
    };
    let dead = Etcd::prepare("second_endpoint_is_used_when_the_first_is_dead").unwrap();
    let both = format!("{},{}", dead.url(), etcd.url());
    let node = Node::new();
    let agent = Agent::start(&both, HOST, &node);
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    driver.until_up(PORT).await;
    assert_eq!(agent.status.get().etcd.endpoint, etcd.url());
    agent.stop().await;
    assert!(
        !spp_agent::config_show(&both.parse().unwrap(), &Name::new(HOST).unwrap()).await.unwrap().is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_put_show_and_destroy_leave_used_slots_and_other_hosts_alone() {
    let name = "config_put_show_and_destroy_leave_used_slots_and_other_hosts_alone";
    let Some((etcd, mut driver)) = lab(name).await else { return };
    put_config(&etcd.url(), "spp40", CONFIGURATION).await;
    let (endpoints, host) = (etcd.url().parse().unwrap(), Name::new(HOST).unwrap());
    assert!(driver.take(PORT, "phys2", 3).await);
    let wider = [slot("phys1", 0), slot("phys1", 1), slot("phys2", 2), slot("phys2", 3), slot("phys2", 4)];
    let report = spp_agent::config_put(&endpoints, &host, "[1]", &wider, false).await.unwrap();
    assert_eq!((report.freed, report.kept), (vec![slot("phys2", 4)], vec![slot("phys2", 3)]));
    let narrower = &wider[..2];
    let refused = spp_agent::config_put(&endpoints, &host, "[2]", narrower, false).await.unwrap_err();
    assert!(matches!(&refused, ConfigError::InUse(slots) if slots[0].0 == slot("phys2", 3)), "{refused}");
    assert!(spp_agent::config_put(&endpoints, &host, "[2", &wider, false).await.is_err());
    let shown = spp_agent::config_show(&endpoints, &host).await.unwrap();
    assert_eq!((shown.len(), shown[0].value.as_str()), (6, "[1]"));
    spp_agent::config_put(&endpoints, &host, "[2]", narrower, true).await.unwrap();
    assert_eq!(spp_agent::config_show(&endpoints, &host).await.unwrap().len(), 3);
    for family in ["mirror", "tap_info", "tap_action", "tap_status"] {
        driver.put(family, "0", "None").await;
    }
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    let others = dump(&mut driver.client, "/spp/openstack/vhost/spp40/").await;
    assert_eq!(spp_agent::config_destroy(&endpoints, &host).await.unwrap(), 3 + 4 + 2);
    let left = values(&mut driver.client, "/").await;
    assert!(left.iter().all(|(key, _)| key.contains("/spp40")), "{left:?}");
    assert_eq!(dump(&mut driver.client, "/spp/openstack/vhost/spp40/").await, others);
    assert_eq!(left.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_one_clear_line() {
    let Some(etcd) = Etcd::prepare("nobody_there_is_one_clear_line") else { return };
    let endpoints = etcd.url().parse().unwrap();
    let error = spp_agent::config_show(&endpoints, &Name::new(HOST).unwrap()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("no etcd at {}", etcd.url())) && !error.contains('\n'), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaked_slot_is_given_back_and_can_be_bound_again() {
    let Some((etcd, mut driver)) = lab("leaked_slot_is_given_back_and_can_be_bound_again").await else {
        return;
    };
    assert!(driver.take("timed-out", "phys1", 0).await);
    let node = Node::new();
    let mut settings = config(&etcd.url(), HOST);
    settings.timing.leak_grace = Duration::from_millis(200);
    let agent = Agent::with(settings, &node);
    let (client, key) = (driver.client.clone(), driver.key("vhost", "phys1/0"));
    until("the slot is free", || {
        let (mut client, key) = (client.clone(), key.clone());
        async move { client.get(key, None).await.unwrap().kvs()[0].value() == b"None" }
    })
    .await;
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    driver.until_up(PORT).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_vhosts_at_once_are_wired_and_unwired_ten_times() {
    let Some((etcd, mut driver)) = lab("all_vhosts_at_once_are_wired_and_unwired_ten_times").await else {
        return;
    };
    let node: Arc<Node> = Node::new();
    let agent = Agent::start(&etcd.url(), HOST, &node);
    agent.until_connected().await;
    for round in 0..10 {
        for vhost in 0..4 {
            let physnet = if vhost < 2 { "phys1" } else { "phys2" };
            let mac = format!("fa:16:3e:00:{round:02x}:{vhost:02x}");
            driver.bind(&format!("p{vhost}"), (physnet, vhost), &mac, None).await;
        }
        node.until_wired(&[0, 1, 2, 3]).await;
        for vhost in 0..4 {
            driver.unbind(&format!("p{vhost}")).await;
        }
        for vhost in 0..4 {
            driver.until_gone(&format!("p{vhost}")).await;
        }
        node.until_wired(&[]).await;
    }
    assert_eq!(node.calls().len(), 80);
    assert_eq!(values(&mut driver.client, "/").await, document_unused());
    agent.stop().await;
}
