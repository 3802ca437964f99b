//! Reports to neutron: the heartbeat against RabbitMQ and oslo.messaging's own RPC server, and against
//! brokers that hang or lie.

mod hostile;
mod support;

use spp_agent::TlsFiles;
use support::broker::Broker;
use support::neutron::Neutron;
use support::{HOST, Heartbeat, config, until};

/// One broker for all of it, since each takes seconds to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neutron_gets_reports_through_whatever_happens_to_the_broker() {
    const TEST: &str = "neutron_gets_reports_through_whatever_happens_to_the_broker";
    let Some(mut broker) = Broker::prepare(TEST) else { return };

    // No broker at start, then one without neutron, then neutron.
    let heartbeat = Heartbeat::start(&broker.transport_url());
    heartbeat.until_error("onnection refused").await;
    assert!(!heartbeat.get().connected);
    broker.run().await;
    heartbeat.until_error("no neutron-server has been here yet").await;
    let neutron = Neutron::start(&broker.transport_url());
    exact_report(&neutron);
    let later = neutron.next_state();
    assert_eq!(later.get("start_flag"), None, "{later}");
    until("the report is counted", || async { heartbeat.get().n_reports >= 2 }).await;
    let status = heartbeat.get();
    assert!(status.connected && status.last_error.is_none(), "{status:?}");
    assert_eq!(status.broker, format!("amqp://127.0.0.1:{}", broker.port));
    assert_eq!(status.last_report.unwrap().len(), "2026-11-22T10:16:43Z".len());

    // Neutron goes: the report comes back. Neutron returns: a first report again.
    drop(neutron);
    support::neutron::remove_queue(&broker.transport_url());
    heartbeat.until_error("nobody listens for reports").await;
    let neutron = Neutron::start(&broker.transport_url());
    neutron.next_start();

    // The broker is killed and restarted.
    broker.kill();
    until("the loss is noticed", || async { !heartbeat.get().connected }).await;
    drop(neutron);
    broker.run().await;
    let neutron = Neutron::start(&broker.transport_url());
    neutron.next_start();
    heartbeat.stop().await;

    refusals(&broker).await;
    tls(&broker, &neutron).await;
}

/// The first report, as the endpoint sees it.
fn exact_report(neutron: &Neutron) {
    let report = neutron.next();
    let context = &report["context"];
    assert_eq!(context["is_admin"], true);
    assert!(context["request_id"].as_str().unwrap().starts_with("req-"), "{context}");
    let args = report["args"].as_object().unwrap();
    assert_eq!(args.keys().collect::<Vec<_>>(), ["agent_state", "time"]);
    let time = args["time"].as_str().unwrap();
    assert!(time.len() == "2026-11-22T10:16:43.260349".len() && !time.ends_with('Z'), "{time}");
    let mut state = args["agent_state"]["agent_state"].clone();
    let uuid = state.as_object_mut().unwrap().remove("uuid").unwrap();
    assert_eq!(uuid.as_str().unwrap().len(), 36);
    let configurations = serde_json::json!({"spp_version": "1.2.3", "etcd_connected": false, "vhosts": {}});
    let want = serde_json::json!({
        "binary": "neutron-spp-agent", "host": HOST, "topic": "N/A", "agent_type": "SPP neutron agent",
        "configurations": configurations, "start_flag": true,
    });
    assert_eq!(state, want);
}

/// Who is not let in is told what to do, without the password.
async fn refusals(broker: &Broker) {
    let wrong_password = format!("rabbit://neutron:hunter2@127.0.0.1:{}//", broker.port);
    let heartbeat = Heartbeat::start(&wrong_password);
    heartbeat.until_error("check the user and the password of --amqp").await;
    assert!(!format!("{:?}", heartbeat.status.get()).contains("hunter2"));
    heartbeat.stop().await;
    let elsewhere = broker.transport_url().trim_end_matches('/').to_owned() + "/nowhere";
    let heartbeat = Heartbeat::start(&elsewhere);
    heartbeat.until_error("check the virtual host").await;
    heartbeat.stop().await;
    let plain_on_tls = Heartbeat::start(&format!("rabbit://u:p@127.0.0.1:{}", broker.tls_port));
    plain_on_tls.until_error("is TLS as it should be").await;
    plain_on_tls.stop().await;
}

async fn tls(broker: &Broker, neutron: &Neutron) {
    let (user, port) = ("neutron:s%40cret%3A1", broker.tls_port);
    // The first host does not answer: the second one does, by the name in its certificate.
    let url = format!("amqps://{user}@127.0.0.1:1,{user}@localhost:{port}//");
    let files = broker.client_files();
    let identity = Some((files.cert, files.key));
    let good = TlsFiles { ca: Some(broker.ca.file.clone()), identity };
    let heartbeat = Heartbeat::with(config(&url, good.clone()));
    neutron.next_start();
    assert!(heartbeat.get().broker.starts_with("amqps://localhost:"));
    heartbeat.stop().await;

    let url = format!("amqps://{user}@localhost:{port}//");
    let dir = tempfile::tempdir().unwrap();
    let other = support::certificates::Authority::new(dir.path(), "other");
    for (files, words) in [
        (TlsFiles { ca: Some(other.file.clone()), ..good.clone() }, "not signed by the CA of --amqp-ca"),
        (TlsFiles { ca: None, ..good.clone() }, "give it with --amqp-ca"),
    ] {
        let heartbeat = Heartbeat::with(config(&url, files));
        heartbeat.until_error(words).await;
        heartbeat.stop().await;
    }
    let by_address = Heartbeat::with(config(&url.replace("localhost", "127.0.0.1"), good));
    by_address.until_error("does not name this host").await;
    by_address.stop().await;
}
