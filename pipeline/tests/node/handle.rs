//! The control thread and its callers.

use spp_pipeline::config::NodeConfig;
use spp_pipeline::node::{Node, NodeGone, NodeHandle};

use crate::support::*;

#[test]
fn calls_from_many_threads_are_all_carried_out() {
    let site = Site::new();
    let handle = NodeHandle::spawn(site.one_nic());
    let callers = (0..4u32).map(|n| {
        let handle = handle.clone();
        std::thread::spawn(move || {
            for round in 0..20u16 {
                let vhost = n % 2;
                handle.call(move |node| node.plug(&plug(vhost, Some(1 + round)))).unwrap().unwrap();
                handle.call(move |node| node.unplug(vhost)).unwrap().unwrap();
            }
        })
    });
    callers.collect::<Vec<_>>().into_iter().for_each(|caller| caller.join().unwrap());
    assert_eq!(handle.call(|node| node.plugs()).unwrap(), []);
}

#[test]
fn call_that_panics_is_reported_and_the_node_goes_on() {
    let site = Site::new();
    let handle = NodeHandle::spawn(site.one_nic());
    assert_eq!(handle.call(|_| panic!("on purpose")), Err::<(), _>(NodeGone::Panicked));
    handle.call(|node| node.plug(&plug(0, None))).unwrap().unwrap();
}

#[test]
fn calls_after_shutdown_are_told_so() {
    let site = Site::new();
    let handle = NodeHandle::spawn(site.one_nic());
    let other = handle.clone();
    let pool = handle.call(|node| node.pool().clone()).unwrap();
    handle.shutdown();
    handle.shutdown();
    assert_eq!(other.call(|_| ()), Err(NodeGone::Stopped));
    assert_eq!(pool.counts().out, 0);
    assert!(!site.path("wire0").exists(), "its socket is removed");
}

#[test]
fn last_handle_stops_the_node() {
    let site = Site::new();
    let handle = NodeHandle::spawn(site.one_nic());
    let pool = handle.call(|node| node.pool().clone()).unwrap();
    drop(handle);
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn pinned_node_runs_where_its_mask_says() {
    let cores = spp_pipeline::cores::online().unwrap();
    let Some(core) = cores.cores().nth(1) else {
        println!("SKIPPED: pinned_node_runs_where_its_mask_says: this machine has one CPU");
        return;
    };
    let site = Site::new();
    let master = cores.lowest().unwrap();
    let mask: spp_pipeline::cores::CoreMask = [master, core].into_iter().collect();
    let json = serde_json::json!([{"num_vhost": 1, "pci_address": "null:", "physical_network": "p", "core_mask": mask.to_string()}]);
    // One worker core is too few for the list form's components, so they are spelled out.
    assert!(NodeConfig::parse(json.to_string().as_bytes()).is_err());
    let json = serde_json::json!({"vf": [{"num_vhost": 1, "pci_address": "null:", "physical_network": "p",
        "core_mask": mask.to_string(), "components": [
            {"core": core, "type": "classifier", "name": "c", "rx_port": ["phy:0"], "tx_port": ["vhost:0"]},
            {"core": core, "type": "merge", "name": "m", "rx_port": ["vhost:0"], "tx_port": ["phy:0"]}]}]});
    let options = spp_pipeline::node::NodeOptions { fold_cores: false, ..site.options() };
    let config = NodeConfig::parse(json.to_string().as_bytes()).unwrap();
    let handle = match Node::start(config, options) {
        Ok(node) => NodeHandle::spawn(node),
        Err(error) => {
            println!("SKIPPED: pinned_node_runs_where_its_mask_says: {error}");
            return;
        }
    };
    handle.call(|node| node.plug(&plug(0, None))).unwrap().unwrap();
    let components = handle.call(|node| node.status().vfs[0].components.clone()).unwrap();
    assert!(components.iter().all(|component| component.core == core && component.state == "running"));
}

#[test]
fn node_of_two_nics_and_eight_vhosts_starts_and_stops_clean() {
    let site = Site::new();
    let mappings = "null:#a#4#0x7ff,null:#b#4#0x1ff801";
    let node = Node::start(NodeConfig::from_mappings(mappings).unwrap(), site.options()).unwrap();
    let bytes = u64::from(node.pool().counts().capacity) * 2304;
    assert!(bytes < 256 << 20, "{bytes} bytes of packet memory");
    let handle = NodeHandle::spawn(node);
    let pool = handle.call(|node| node.pool().clone()).unwrap();
    handle.call(|node| (0..8).try_for_each(|vhost| node.plug(&plug(vhost, Some(5))))).unwrap().unwrap();
    let start = std::time::Instant::now();
    handle.shutdown();
    println!("stopped in {:?}", start.elapsed());
    assert_eq!(pool.counts().out, 0);
}
