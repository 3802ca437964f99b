//! Waiting for the configuration, writing it, its change at run time.

use super::*;

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
