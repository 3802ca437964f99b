//! etcd as operators run it: several members, TLS both ways, users; and the key that shows who is alive.

use std::process::Command;

use spp_agent::{NodeKey, StatusCell, TlsFiles, config_put, config_show, node_key};

use super::*;
use crate::support::certificates::Authority;
use crate::support::cluster::{Cluster, PASSWORD, USER};

fn host() -> Name {
    Name::new(HOST).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_with_tls_and_users_serves_through_members_that_die_or_hang() {
    const TEST: &str = "cluster_with_tls_and_users_serves_through_members_that_die_or_hang";
    let Some(mut cluster) = Cluster::start(TEST).await else { return };
    let endpoints = cluster.endpoints();
    let slots = [slot("phys1", 0), slot("phys1", 1), slot("phys2", 2), slot("phys2", 3)];
    in_time("config put", config_put(&endpoints, &host(), CONFIGURATION, &slots, false)).await.unwrap();
    let node = Node::new();
    let agent = Agent::with(spp_agent::AgentConfig::new(endpoints.clone(), host(), None), &node);
    agent.until_connected().await;
    let mut driver = Driver::new(cluster.client().await, HOST);
    driver.bind("a", ("phys1", 0), MAC, None).await;
    driver.until_up("a").await;

    // The login expires between two pings and is renewed; the connection stays.
    tokio::time::sleep(Duration::from_secs(8)).await;
    driver.bind("b", ("phys1", 1), "fa:16:3e:00:00:02", None).await;
    driver.until_up("b").await;
    assert_eq!(agent.status.get().etcd.n_connects, 1, "{:?}", agent.status.get().etcd);

    let first = cluster.member(&agent.status.get().etcd.endpoint);
    cluster.kill(first);
    let mut driver = Driver::new(cluster.client().await, HOST);
    driver.bind("c", ("phys2", 2), "fa:16:3e:00:00:03", Some(7)).await;
    driver.until_up("c").await;
    let second = cluster.member(&agent.status.get().etcd.endpoint);
    assert_ne!(first, second);

    cluster.run(first);
    let mut driver = Driver::new(cluster.client().await, HOST);
    cluster.hang(second, true);
    until("the member that hangs is left", || async {
        let etcd = agent.status.get().etcd;
        etcd.connected && cluster.member(&etcd.endpoint) != second
    })
    .await;
    driver.client = cluster.client_without(second).await;
    driver.bind("d", ("phys2", 3), "fa:16:3e:00:00:04", None).await;
    driver.until_up("d").await;
    cluster.hang(second, false);
    assert_eq!(node.wired().len(), 4);
    assert!(!node.calls().iter().any(|call| call.starts_with("unplug")));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_let_in_is_told_what_to_do() {
    let Some(cluster) = Cluster::start("whoever_is_not_let_in_is_told_what_to_do").await else { return };
    let other = Authority::new(cluster.ca.file.parent().unwrap(), "other-ca");
    let good = cluster.endpoints();
    let error = async |endpoints: &Endpoints| {
        let shown = in_time("config show", config_show(endpoints, &host())).await;
        shown.map_err(|error| error.to_string()).unwrap_err()
    };
    use spp_agent::Endpoints;

    let wrong_ca = TlsFiles { ca: Some(other.file.clone()), ..cluster.tls_files() };
    let text = error(&good.clone().with_tls(wrong_ca)).await;
    assert!(text.contains("not signed by the CA of --etcd-ca"), "{text}");
    let no_certificate = TlsFiles { identity: None, ..cluster.tls_files() };
    let text = error(&good.clone().with_tls(no_certificate)).await;
    assert!(text.contains("--etcd-cert and --etcd-key"), "{text}");
    let foreign = other.issue("stranger", &[]);
    let foreign = TlsFiles { identity: Some((foreign.cert, foreign.key)), ..cluster.tls_files() };
    let text = error(&good.clone().with_tls(foreign)).await;
    assert!(text.contains("--etcd-cert and --etcd-key"), "{text}");
    let text = error(&good.clone().with_tls(TlsFiles::default())).await;
    assert!(text.contains("give it with --etcd-ca"), "{text}");
    let text = error(&good.clone().with_login(USER, spp_agent::Secret::new("wrong"))).await;
    assert!(text.contains("check --etcd-user") && !text.contains("wrong"), "{text}");
    let text = error(&good.clone().with_root("/elsewhere".parse().unwrap())).await;
    assert!(text.contains("grant the user's role"), "{text}");

    // The command line, with the password where others can't read it.
    let spp = |args: &[&str], password: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spp"));
        command.args(["config", "show", "--json", "--etcd", &cluster.urls(), "--host", HOST]);
        let files = cluster.tls_files();
        let (cert, key) = files.identity.unwrap();
        command
            .arg("--etcd-ca")
            .arg(files.ca.unwrap())
            .arg("--etcd-cert")
            .arg(cert)
            .arg("--etcd-key")
            .arg(key);
        command.args(args).env_remove("SPP_ETCD_PASSWORD");
        command.envs(password.map(|password| ("SPP_ETCD_PASSWORD", password)));
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    assert_eq!(spp(&["--etcd-user", USER], Some(PASSWORD)), (Some(0), "[]\n".into()));
    let (code, text) = spp(&["--etcd-user", USER], None);
    assert!(code == Some(2) && text.contains("SPP_ETCD_PASSWORD"), "{text}");
    let (code, text) = spp(&["--etcd-user", USER], Some("wrong"));
    assert!(code == Some(4) && text.contains("check --etcd-user"), "{text}");
    let (code, text) = spp(&[], None);
    assert!(code == Some(4) && text.contains("without --etcd-user"), "{text}");
    let file = cluster.ca.file.with_file_name("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let from_file = ["--etcd-user", USER, "--etcd-password-file", file.to_str().unwrap()];
    assert_eq!(spp(&from_file, None).0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_below_another_prefix_are_served_and_no_others() {
    let name = "keys_below_another_prefix_are_served_and_no_others";
    let Some(etcd) = Etcd::start(name).await else { return };
    let root: spp_agent::Root = "/cloud-7/spp".parse().unwrap();
    let endpoints = etcd.url().parse::<spp_agent::Endpoints>().unwrap().with_root(root);
    let slots = [slot("phys1", 0), slot("phys1", 1)];
    in_time("config put", config_put(&endpoints, &host(), CONFIGURATION, &slots, false)).await.unwrap();
    let node = Node::new();
    let agent = Agent::with(spp_agent::AgentConfig::new(endpoints, host(), None), &node);
    let mut client = etcd.client().await;
    let mut put = async |key: String, value: &str| {
        client.put(key, value, None).await.unwrap();
    };
    for root in ["/spp/openstack", "/cloud-7/spp/openstack"] {
        let vhost = if root.starts_with("/cloud") { 1 } else { 0 };
        put(format!("{root}/vhost/{HOST}/phys1/{vhost}"), "p").await;
        let bind_port = format!(r#"{{"vhost_id": {vhost}, "mac_address": "{MAC}"}}"#);
        put(format!("{root}/bind_port/{HOST}/p"), &bind_port).await;
        put(format!("{root}/action/{HOST}/p"), "plug").await;
    }
    node.until_wired(&[1]).await;
    let up = format!("/cloud-7/spp/openstack/port_status/{HOST}/p");
    until("up", || {
        let (mut client, up) = (client.clone(), up.clone());
        async move { client.get(up, None).await.unwrap().count() == 1 }
    })
    .await;
    agent.stop().await;
}

/// The value of the node's key, and the lease that keeps it.
async fn read(client: &mut etcd_client::Client) -> Option<(String, i64)> {
    let answer = client.get(format!("/spp-nodes/{HOST}"), None).await.ok()?;
    answer.kvs().first().map(|kv| (kv.value_str().unwrap().to_string(), kv.lease()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_key_lives_as_long_as_the_node() {
    let Some(mut etcd) = Etcd::start("node_key_lives_as_long_as_the_node").await else { return };
    let endpoints: spp_agent::Endpoints = etcd.url().parse().unwrap();
    let mut config = NodeKey::new(endpoints, "/spp-nodes/", host(), "1.2.3").unwrap();
    config.ttl = Duration::from_secs(2);
    let start = |config: &NodeKey| {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let status = StatusCell::default();
        let shutdown = async move { drop(stopped.await) };
        (stop, status.clone(), tokio::spawn(node_key::keep(config.clone(), status, shutdown)))
    };
    let mut client = etcd.client().await;
    let there = |client: &etcd_client::Client| {
        let mut client = client.clone();
        async move { read(&mut client).await }
    };

    let (stop, status, task) = start(&config);
    until("the key is there", || async { there(&client).await.is_some() }).await;
    let (value, lease) = read(&mut client).await.unwrap();
    assert_eq!(value, format!(r#"{{"host":"{HOST}","version":"1.2.3","address":"127.0.0.1"}}"#));
    assert_ne!(lease, 0);

    // Taken away by hand, its lease revoked, the server killed and restarted, or wiped: back again.
    client.delete(format!("/spp-nodes/{HOST}"), None).await.unwrap();
    until("the key is back", || async { there(&client).await.is_some() }).await;
    client.lease_revoke(lease).await.unwrap();
    until("the key has another lease", || async {
        there(&client).await.is_some_and(|(_, new)| new != lease)
    })
    .await;
    etcd.kill();
    until("the loss is noticed", || async { !status.get().node_key.unwrap().held }).await;
    etcd.wipe();
    etcd.run().await;
    let mut client = etcd.client().await;
    until("the key is back after the restart", || async { there(&client).await.is_some() }).await;
    until("and said to be", || async { status.get().node_key.unwrap().held }).await;

    // A node that dies leaves it to its time to live; a node that stops takes it with it.
    task.abort();
    let _ = task.await;
    assert!(read(&mut client).await.is_some());
    until("the key of the dead node is gone", || async { there(&client).await.is_none() }).await;
    drop(stop);
    let (stop, _, task) = start(&config);
    until("the key is there", || async { there(&client).await.is_some() }).await;
    stop.send(()).unwrap();
    in_time("the end", task).await.unwrap();
    assert_eq!(read(&mut client).await, None);
    assert!(NodeKey::new(config.endpoints, "nodes", host(), "").is_err());
}
