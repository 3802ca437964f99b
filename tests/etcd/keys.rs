//! What is written where: exact bytes, other hosts, garbage, repetition.

use super::*;

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
    // The driver starts to watch only now, without a start revision, and never reads the key. Then seven
    // seconds later; and once more, one that was slow before.
    for late in 0..3 {
        match late {
            0 => {}
            1 => tokio::time::sleep(Duration::from_secs(7)).await,
            _ => {
                assert!(driver.take("slow", "phys1", 1).await);
                let bound = "{\"vhost_id\": 1, \"mac_address\": \"fa:16:3e:00:00:02\"}";
                driver.put("bind_port", "slow", bound).await;
                tokio::time::sleep(Duration::from_millis(1500)).await;
                driver.put("action", "slow", "plug").await;
                tokio::time::sleep(Duration::from_secs(7)).await;
            }
        }
        let port = if late == 2 { "slow" } else { PORT };
        let mut watch = driver.client.watch(driver.key("port_status", port), None).await.unwrap();
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
