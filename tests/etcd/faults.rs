//! Etcd dies, goes back, forgets; connections die; the agent dies.

use super::*;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wiped_etcd_takes_no_wiring_away_when_the_node_is_slow_to_say_what_is_wired() {
    let name = "wiped_etcd_takes_no_wiring_away_when_the_node_is_slow_to_say_what_is_wired";
    let Some((mut etcd, mut driver)) = lab(name).await else { return };
    let node = Node::new();
    let agent = Agent::start(&etcd.url(), HOST, &node);
    driver.bind(PORT, ("phys1", 0), MAC, None).await;
    driver.until_up(PORT).await;
    etcd.wipe();
    agent.until_disconnected().await;
    node.set_mute(true);
    etcd.run().await;
    put_config(&etcd.url(), HOST, CONFIGURATION).await;
    let went_back = || agent.status.get().etcd.last_error.is_some_and(|error| error.contains("went back"));
    until("the agent knows", || async { went_back() }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.set_mute(false);
    agent.until_connected().await;
    // A port of its own shows that the agent has acted since.
    let mut driver = Driver::new(etcd.client().await, HOST);
    driver.bind("b", ("phys1", 1), "fa:16:3e:00:00:02", None).await;
    driver.until_up("b").await;
    node.until_wired(&[0, 1]).await;
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
