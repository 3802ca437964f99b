//! A node's reports to neutron, from `spp run --amqp` to oslo.messaging's RPC server, and that nothing else of the node
//! depends on them: not on a broker that dies, not on one that is slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use spp_vhost::Role;
use spp_vhost::guest::Guest;

use crate::amqp::broker::Broker;
use crate::amqp::neutron::Neutron;
use crate::host::Host;
use crate::mac;
use crate::support::proxy::Proxy;
use crate::support::server::Etcd;
use crate::support::until;
use crate::taas::{attach, frame, receive_until, send, wire_mapping};

/// Frames from the wire to a guest and back, one after the other; each must come.
struct Traffic {
    n_pings: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Traffic {
    fn start(mut wire: Guest, mut guest: Guest) -> Traffic {
        let (n_pings, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, stopped) = (n_pings.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut id = 0;
            while !stopped.load(Ordering::Relaxed) {
                send(&mut wire, &frame(&mac(1), id));
                assert!(receive_until(&mut guest, id).is_empty());
                send(&mut guest, &frame("02:00:00:00:00:ee", id));
                assert!(receive_until(&mut wire, id).is_empty());
                counter.fetch_add(1, Ordering::Relaxed);
                id += 1;
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        Traffic { n_pings, stop, thread }
    }

    /// Until frames have passed that were sent after this call.
    async fn passes(&self) {
        let before = self.n_pings.load(Ordering::Relaxed);
        until("frames pass", || async { self.n_pings.load(Ordering::Relaxed) > before + 1 }).await;
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no frame was lost");
    }
}

fn heartbeat(host: &Host) -> Value {
    host.status().expect("the node answers")["agent"]["heartbeat"].clone()
}

async fn until_error(host: &Host, words: &str) {
    until(&format!("the error says {words:?}"), || async {
        heartbeat(host)["last_error"].as_str().is_some_and(|error| error.contains(words))
    })
    .await;
}

/// Reports up to one that counts vhosts like this; whether it has a start_flag.
fn until_counted(neutron: &Neutron, total: u32, free: u32) -> bool {
    loop {
        let state = neutron.next_state();
        if state["configurations"]["vhosts"]["phys1"] == json!({"total": total, "free": free}) {
            assert_eq!(state["configurations"]["etcd_connected"], true);
            return state["start_flag"] == true;
        }
    }
}

/// `spp bind` and `spp unbind` do their work, and the node follows.
async fn binds_and_unbinds(host: &Host) {
    let bound = host.bind(&["other", "--phys", "phys1", "--mac", &mac(9)]).output().unwrap();
    assert!(bound.status.success(), "{bound:?}");
    assert_eq!(host.plug_of(1), Some((mac(9), None)));
    assert!(host.unbind(&["other"]).status().unwrap().success());
    until("it is unplugged", || async { host.plug_of(1).is_none() }).await;
}

/// What people see and what scripts see are the same facts.
fn shown_alike(host: &Host) {
    // A report may come between the two.
    for _ in 0..20 {
        let shown = [host.agent_status(&["--json"]), host.agent_status(&[]), host.agent_status(&["--json"])];
        let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON")["heartbeat"].clone();
        let heartbeat = json(&shown[0]);
        if heartbeat != json(&shown[2]) {
            continue;
        }
        let text =
            |key: &str| heartbeat[key].as_str().unwrap_or_else(|| panic!("{key} in {heartbeat}")).to_owned();
        assert_eq!(heartbeat["connected"], true);
        let line = format!(
            "heartbeat: connected to {}, {} reports, last {}",
            text("broker"),
            heartbeat["n_reports"],
            text("last_report")
        );
        assert!(shown[1].lines().any(|shown| shown == line), "{line} is not in {}", shown[1]);
        return;
    }
    panic!("the status never holds still");
}

/// One broker and one node for all of it, since each takes seconds to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_reports_to_neutron_and_works_on_whatever_becomes_of_the_broker() {
    let test = "node_reports_to_neutron_and_works_on_whatever_becomes_of_the_broker";
    let Some(etcd) = Etcd::start(test).await else { return };
    let Some(mut broker) = Broker::prepare(test) else { return };
    broker.run().await;
    let between = Proxy::start(broker.port).await;
    let neutron = Neutron::start(&broker.transport_url());
    let mut host = Host::configured(&etcd, "spp4", "null:#phys1#2#0xfe");
    let mapping = wire_mapping(host.vhost_dir(), 2);
    assert!(host.config_put(&[&mapping]).status.success());
    host.set("SPP_AMQP", &broker.transport_url_at(between.port()));
    host.set("SPP_REPORT_INTERVAL", "1");
    host.run().await;

    // The first report has the flag, later ones have not; they count what is free.
    let first = neutron.next_state();
    assert_eq!((&first["host"], &first["start_flag"]), (&json!("spp4"), &json!(true)));
    assert_eq!(first["configurations"]["spp_version"], env!("CARGO_PKG_VERSION"));
    assert!(!until_counted(&neutron, 2, 2) || first["configurations"]["etcd_connected"] == false);
    let bound = host.bind(&["web", "--phys", "phys1", "--mac", &mac(1)]).output().unwrap();
    assert!(bound.status.success(), "{bound:?}");
    assert!(!until_counted(&neutron, 2, 1));
    shown_alike(&host);

    let wire = attach(&host, "wire", Role::Client);
    let traffic = Traffic::start(wire, attach(&host, "sock0", Role::Server));
    traffic.passes().await;

    // The broker is killed: frames, plugs and unplugs go on. It comes back empty, and neutron with it.
    broker.kill();
    until("the loss is noticed", || async { heartbeat(&host)["connected"] == false }).await;
    traffic.passes().await;
    binds_and_unbinds(&host).await;
    let shown = host.agent_status(&[]);
    assert!(shown.contains("heartbeat: not connected to amqp://127.0.0.1:"), "{shown}");
    drop(neutron);
    broker.run().await;
    let neutron = Neutron::start(&broker.transport_url());
    assert_eq!(neutron.next_start()["configurations"]["vhosts"]["phys1"], json!({"total": 2, "free": 1}));

    // It answers, a byte in a tenth of a second: every step's deadline is missed and says so, nothing else waits.
    between.trickle();
    until_error(&host, "took longer than 10s").await;
    traffic.passes().await;
    binds_and_unbinds(&host).await;
    let etcd_status = host.status().expect("the node answers")["agent"]["etcd"].clone();
    assert_eq!((&etcd_status["connected"], &etcd_status["n_connects"]), (&json!(true), &json!(1)));
    until_error(&host, "opening the connection took longer than 10s").await;
    between.mend();
    neutron.next_start();
    until("the error is over", || async {
        let heartbeat = heartbeat(&host);
        heartbeat["connected"] == true && heartbeat["last_error"].is_null()
    })
    .await;
    traffic.passes().await;
    traffic.stop();
}
