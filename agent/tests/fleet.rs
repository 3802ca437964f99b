//! A small site of real agents on a real etcd: what `examples/fleet` measures for a thousand hosts, and what is counted
//! there and must not grow.

#[path = "../examples/fleet/simulator/mod.rs"]
mod simulator;

use std::time::Duration;

use simulator::{FleetError, Plan, measure, svg};
use spp_agent::reconcile::Timing;

/// Most requests an agent, or the driver, may make of etcd for a plug.
const REQUESTS_MAX: f64 = 6.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn site_of_20_hosts_has_every_port_up_within_6_requests_and_leaks_none() {
    // As often as usual, but sooner.
    let usual = Timing::default();
    let up_offsets = (0..usual.up_offsets.len() as u64).map(|n| Duration::from_millis(400 * n)).collect();
    let plan = Plan { timing: Timing { up_offsets, ..usual }, ..Plan::default() };
    let outcome = match measure(&plan).await {
        Ok(outcome) => outcome,
        Err(error @ FleetError::NoEtcd) => {
            let test = "site_of_20_hosts_has_every_port_up_within_6_requests_and_leaks_none";
            println!("SKIPPED: {test}: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    println!("{}", outcome.text());
    let churn = &outcome.churn;
    assert_eq!((churn.n_failed, churn.n_leaked), (0, 0), "{:?}", churn.failures);
    assert_eq!(churn.n_plugs, 80);
    assert_eq!((churn.plug_to_up.n, churn.unplug_to_gone.n), (80, 80), "all up, all gone");
    assert!(churn.agent_writes_per_plug_max <= plan.timing.up_offsets.len() as u32, "{churn:?}");
    assert_eq!(churn.agent_writes_per_unplug, 1.0);
    assert_eq!((churn.driver_writes_per_plug, churn.driver_writes_per_unplug), (1.0, 1.0));
    let life = churn.agent_writes_per_plug + 3.0;
    assert!(
        (churn.writes_per_plug_and_unplug_by_etcd - life).abs() < 1e-9,
        "somebody writes besides: {churn:?}"
    );
    let driver =
        churn.driver_writes_per_plug + churn.listings_per_driver_call + churn.watches_per_driver_call;
    assert!(churn.agent_writes_per_plug <= REQUESTS_MAX && driver <= REQUESTS_MAX, "{churn:?}");
    assert_eq!(outcome.idle.streams_per_agent, 1.0);
    assert_eq!(outcome.n_in_order_after_restart, plan.hosts, "ports stay up through etcd's restart");
    assert!(svg(&outcome).contains("polyline"));
}
