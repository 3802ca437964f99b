//! NICs that fail, at start and later.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spp_drivers::dma::{DmaSpace, Pool, PoolCache};
use spp_drivers::port::{
    Device, DeviceInfo, HEALTH_INTERVAL, Health, Link, PortError, Queues, RxQueue, TxQueue,
};
use spp_drivers::stats::{QueueStats, SharedStats};
use spp_drivers::{Burst, MacAddr};
use spp_pipeline::config::{DeviceAddr, NodeConfig};
use spp_pipeline::cores;
use spp_pipeline::node::{Node, NodeError, NodeOptions};

use crate::support::*;

/// What the tests do to a device, and see of it.
#[derive(Default)]
struct Knobs {
    health: Mutex<Option<Health>>,
    starts: AtomicU32,
    failing_starts: AtomicU32,
    /// Queue halves given out and not taken back.
    halves_out: AtomicU32,
    sent: AtomicU64,
    /// Its receiving half blocks the core that polls it.
    stuck: AtomicBool,
    /// A core is blocked by it now.
    holds: AtomicBool,
    /// Its receiving half panics, once.
    panics: AtomicBool,
    /// Where a frontend listens while the NIC starts, and whether somebody came meanwhile.
    frontend: Mutex<Option<UnixListener>>,
    was_called: AtomicBool,
    /// How often its link was asked for.
    looks: AtomicU32,
    /// Addresses and VLANs it was last told of.
    unicast: Mutex<Vec<MacAddr>>,
    vlans: Mutex<Vec<u16>>,
}

impl Knobs {
    fn sick(&self, health: Health) {
        *self.health.lock().unwrap() = Some(health);
    }
}

/// A NIC that swallows what it is given, and breaks on request.
struct Breakable(Arc<Knobs>);

struct Half(Arc<Knobs>, SharedStats);

impl Half {
    fn boxed(knobs: &Arc<Knobs>) -> Box<Half> {
        knobs.halves_out.fetch_add(1, Ordering::Relaxed);
        Box::new(Half(knobs.clone(), QueueStats::shared()))
    }
}

impl RxQueue for Half {
    fn rx_burst(&mut self, _pool: &mut PoolCache, _out: &mut Burst) -> usize {
        while self.0.stuck.load(Ordering::Relaxed) {
            self.0.holds.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!self.0.panics.swap(false, Ordering::Relaxed), "on purpose");
        0
    }
    fn stats(&self) -> SharedStats {
        self.1.clone()
    }
}

impl TxQueue for Half {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        let n = from.len();
        from.take_all().for_each(|packet| pool.free(packet));
        self.0.sent.fetch_add(n as u64, Ordering::Relaxed);
        self.1.moved(n, 64 * n as u64);
        n
    }
    fn stats(&self) -> SharedStats {
        self.1.clone()
    }
}

impl Device for Breakable {
    fn info(&self) -> DeviceInfo {
        let address = "breakable".to_owned();
        DeviceInfo { address, driver: "test", max_frame_bytes: 1514, n_queue_pairs: 1, numa_node: None }
    }
    fn mac(&self) -> Option<MacAddr> {
        None
    }
    fn link(&mut self) -> Link {
        self.0.looks.fetch_add(1, Ordering::Relaxed);
        Link::Up { speed_mbps: 10 }
    }
    fn set_promiscuous(&mut self, _on: bool) -> Result<(), PortError> {
        Ok(())
    }
    fn set_unicast(&mut self, addresses: &[MacAddr]) -> Result<(), PortError> {
        *self.0.unicast.lock().unwrap() = addresses.to_vec();
        Ok(())
    }
    fn set_vlans(&mut self, vids: &[u16]) -> Result<(), PortError> {
        *self.0.vlans.lock().unwrap() = vids.to_vec();
        Ok(())
    }
    fn start(&mut self, _pool: &Pool, _n: u16) -> Result<Queues, PortError> {
        assert_eq!(self.0.halves_out.load(Ordering::Relaxed), 0, "one set of queues at a time");
        self.0.starts.fetch_add(1, Ordering::Relaxed);
        if self.0.failing_starts.load(Ordering::Relaxed) > 0 {
            self.0.failing_starts.fetch_sub(1, Ordering::Relaxed);
            return Err(PortError::new("breakable", "reset times out", "power-cycle it"));
        }
        if let Some(frontend) = &*self.0.frontend.lock().unwrap() {
            // Time enough for a port that is open to connect.
            std::thread::sleep(Duration::from_millis(200));
            self.0.was_called.store(frontend.accept().is_ok(), Ordering::Relaxed);
        }
        *self.0.health.lock().unwrap() = None;
        Ok(Queues { rx: vec![Half::boxed(&self.0)], tx: vec![Half::boxed(&self.0)] })
    }
    fn stop(&mut self, queues: Queues) {
        let n = (queues.rx.len() + queues.tx.len()) as u32;
        self.0.halves_out.fetch_sub(n, Ordering::Relaxed);
    }
    fn health(&mut self) -> Health {
        self.0.health.lock().unwrap().clone().unwrap_or(Health::Ok)
    }
}

/// A node whose first NIC is breakable and whose second is a wire.
fn node(site: &Site, knobs: &Arc<Knobs>) -> Result<Node, NodeError> {
    let mappings = format!("null:#a#1#0x3e,{}", site.wire_mapping("wire1", "b#1#0x3c1"));
    let config = NodeConfig::from_mappings(&mappings).unwrap();
    let knobs = knobs.clone();
    let mut open = move |address: &DeviceAddr, space: &DmaSpace| -> Result<Box<dyn Device>, PortError> {
        match address.text() {
            "null:" => Ok(Box::new(Breakable(knobs.clone()))),
            _ => spp_pipeline::devices::open(address, space),
        }
    };
    let options = NodeOptions { change_deadline: Duration::from_millis(300), ..site.options() };
    Node::start_with(config, options, &mut open)
}

#[test]
fn faulty_nic_is_restarted_with_its_queues_taken_back_and_others_go_on() {
    let (site, knobs) = (Site::new(), Arc::new(Knobs::default()));
    let mut node = node(&site, &knobs).unwrap();
    node.plug(&plug(0, None)).unwrap();
    node.plug(&plug(1, None)).unwrap();
    let (mut wire, mut other) = (site.wire("wire1"), site.guest(&mut node, 1));
    let mut vm = site.guest(&mut node, 0);
    for fault in 1..4 {
        knobs.failing_starts.store(fault - 1, Ordering::Relaxed);
        knobs.sick(Health::NeedsRestart("queue stuck".into()));
        eventually(&mut node, "it runs again", |node| {
            send(&mut wire, &frame(mac(1), None, fault));
            assert_eq!(receive_id(&mut other), (None, fault));
            node.status().vfs[0].nic.restarts == u64::from(fault)
        });
        let before = knobs.sent.load(Ordering::Relaxed);
        send(&mut vm, &frame(mac(0xee), None, fault));
        eventually(&mut node, "frames reach it", |_| knobs.sent.load(Ordering::Relaxed) > before);
    }
    assert_eq!(node.status().vfs[0].nic.state, "running");
    assert_eq!(node.status().vfs[0].nic.tx.packets, 3, "counters go on over restarts");
    drop(node);
    assert_eq!(knobs.halves_out.load(Ordering::Relaxed), 0);
}

/// A frontend that comes while nobody polls gets no answer in time, and its rings never run.
#[test]
fn frontends_are_called_only_after_all_nics_have_started() {
    let (site, knobs) = (Site::new(), Arc::new(Knobs::default()));
    let frontend = UnixListener::bind(site.path("sock0")).unwrap();
    frontend.set_nonblocking(true).unwrap();
    *knobs.frontend.lock().unwrap() = Some(frontend);
    let mut node = node(&site, &knobs).unwrap();
    assert!(!knobs.was_called.load(Ordering::Relaxed), "called while a NIC was starting");
    eventually(&mut node, "the frontend is called", |_| {
        knobs.frontend.lock().unwrap().as_ref().is_some_and(|frontend| frontend.accept().is_ok())
    });
}

#[test]
fn links_are_looked_at_every_fifty_ms_by_the_nodes_clock_and_not_more_often() {
    let (site, knobs) = (Site::new(), Arc::new(Knobs::default()));
    let mut node = node(&site, &knobs).unwrap();
    let mut now = Instant::now() + HEALTH_INTERVAL;
    node.tick_at(now);
    for _ in 0..3 {
        let looks = knobs.looks.load(Ordering::Relaxed);
        node.tick_at(now + HEALTH_INTERVAL - Duration::from_nanos(1));
        assert_eq!(knobs.looks.load(Ordering::Relaxed), looks);
        now += HEALTH_INTERVAL;
        node.tick_at(now);
        assert_eq!(knobs.looks.load(Ordering::Relaxed), looks + 1);
    }
    assert!(HEALTH_INTERVAL <= Duration::from_millis(50));
}

#[test]
fn vanished_nic_is_reported_and_the_other_vf_goes_on() {
    let (site, knobs) = (Site::new(), Arc::new(Knobs::default()));
    let mut node = node(&site, &knobs).unwrap();
    node.plug(&plug(1, Some(9))).unwrap();
    let (mut wire, mut other) = (site.wire("wire1"), site.guest(&mut node, 1));
    knobs.sick(Health::Gone("reads all-ones".into()));
    eventually(&mut node, "the loss is noticed", |node| {
        node.status().vfs[0].nic.state == "gone: reads all-ones"
    });
    let status = node.status();
    let state = |name: &str| {
        status.vfs[0].components.iter().find(|c| c.name == name).map(|c| c.state.clone()).unwrap()
    };
    assert_eq!((state("classifier").as_str(), state("merger").as_str()), ("incomplete", "incomplete"));
    assert_eq!(state("forward_0_tx"), "running");
    assert!(!status.vfs[0].nic.link_up);
    // Edits of the broken vf are taken, and the other vf does not notice.
    node.plug(&plug(0, None)).unwrap();
    node.unplug(0).unwrap();
    send(&mut wire, &frame(mac(1), Some(9), 1));
    assert_eq!(receive_id(&mut other), (None, 1));
    assert_eq!(knobs.starts.load(Ordering::Relaxed), 1);
}

#[test]
fn core_that_does_not_answer_fails_the_edit_and_the_node_recovers_with_it() {
    let (site, knobs) = (Site::new(), Arc::new(Knobs::default()));
    let mut node = node(&site, &knobs).unwrap();
    // Something for the classifier to poll for.
    node.plug(&plug(0, Some(1))).unwrap();
    let before = node.topology().clone();
    knobs.stuck.store(true, Ordering::Relaxed);
    eventually(&mut node, "a core is blocked", |_| knobs.holds.load(Ordering::Relaxed));
    let error = node.plug(&plug(0, Some(2))).unwrap_err();
    assert!(matches!(error, NodeError::Worker(_)), "{error}");
    assert_eq!(*node.topology(), before);
    assert!(node.status().warnings.iter().any(|warning| warning.contains("no acknowledgement")));
    knobs.stuck.store(false, Ordering::Relaxed);
    eventually(&mut node, "the old wiring is back", |node| node.status().warnings.is_empty());
    node.plug(&plug(0, Some(2))).unwrap();
    node.component_stop(1, "classifier").unwrap();
    let pool = node.pool().clone();
    drop(node);
    assert_eq!((knobs.halves_out.load(Ordering::Relaxed), pool.counts().out), (0, 0));
}

#[test]
fn nic_of_a_core_that_does_not_answer_is_not_restarted_until_its_queue_is_back() {
    let (site, knobs) = (Site::new(), Arc::new(Knobs::default()));
    let mut node = node(&site, &knobs).unwrap();
    node.plug(&plug(0, Some(1))).unwrap();
    knobs.stuck.store(true, Ordering::Relaxed);
    eventually(&mut node, "a core is blocked", |_| knobs.holds.load(Ordering::Relaxed));
    knobs.sick(Health::NeedsRestart("queue stuck".into()));
    std::thread::sleep(HEALTH_INTERVAL);
    node.tick();
    std::thread::sleep(HEALTH_INTERVAL);
    node.tick();
    // The device itself asserts that it never has two sets of queues.
    assert_eq!((knobs.starts.load(Ordering::Relaxed), knobs.halves_out.load(Ordering::Relaxed)), (1, 2));
    knobs.stuck.store(false, Ordering::Relaxed);
    eventually(&mut node, "it runs again", |node| node.status().vfs[0].nic.state == "running");
    assert_eq!(knobs.starts.load(Ordering::Relaxed), 2);
    eventually(&mut node, "the cores follow", |node| node.status().warnings.is_empty());
}

#[test]
fn component_that_panics_is_shown_as_failed_and_gets_another_try() {
    let (site, knobs) = (Site::new(), Arc::new(Knobs::default()));
    let mut node = node(&site, &knobs).unwrap();
    node.plug(&plug(0, None)).unwrap();
    node.plug(&plug(1, None)).unwrap();
    let (mut wire, mut other) = (site.wire("wire1"), site.guest(&mut node, 1));
    knobs.panics.store(true, Ordering::Relaxed);
    let state = |node: &mut Node| node.status().vfs[0].components[2].state.clone();
    eventually(&mut node, "it fails", |node| state(node) == "failed");
    send(&mut wire, &frame(mac(1), None, 1));
    assert_eq!(receive_id(&mut other), (None, 1));
    eventually(&mut node, "it runs again", |node| state(node) == "running");
}

#[test]
fn nic_that_does_not_start_fails_the_node_naming_it_and_the_remedy() {
    let (site, knobs) = (Site::new(), Arc::new(Knobs::default()));
    knobs.failing_starts.store(1, Ordering::Relaxed);
    let error = node(&site, &knobs).err().expect("the start must fail").to_string();
    assert_eq!(error, "NIC 1 (null:): breakable: reset times out (power-cycle it)");
    // Everything that was opened is closed: the same node starts right after.
    node(&site, &knobs).unwrap();
}

#[test]
fn nic_that_does_not_exist_fails_the_node_naming_it() {
    let site = Site::new();
    let config = NodeConfig::from_mappings("null:#a#1#0x3e,0000:fe:1f.7#b#1#0x3c1").unwrap();
    let error = Node::start(config, site.options()).err().expect("there is no such NIC").to_string();
    assert!(error.starts_with("NIC 2 (0000:fe:1f.7): ") && !error.contains('\n'), "{error}");
}

#[test]
fn offline_core_fails_the_node_naming_it_unless_folded() {
    let site = Site::new();
    let beyond = cores::online().unwrap().cores().last().unwrap() + 1;
    let mask: cores::CoreMask = [0].into_iter().chain(beyond..beyond + 4).collect();
    let mapping = format!("null:#a#1#{mask}");
    let config = NodeConfig::from_mappings(&mapping).unwrap();
    let strict = NodeOptions { fold_cores: false, ..site.options() };
    let error = Node::start(config.clone(), strict).err().expect("the cores are not there").to_string();
    assert!(error.contains(&format!("core {beyond}-{} is not online", beyond + 3)), "{error}");
    Node::start(config, site.options()).unwrap();
}

#[test]
fn vhost_socket_that_can_not_be_made_fails_the_node_naming_it() {
    let site = Site::new();
    let config = NodeConfig::from_mappings("null:#a#1#0x3e").unwrap();
    let options = NodeOptions {
        vhost_role: spp_vhost::Role::Server,
        vhost_dir: site.path("missing"),
        ..site.options()
    };
    let error = Node::start(config, options).err().expect("there is no such directory").to_string();
    assert!(error.contains("sock0"), "{error}");
}

#[test]
fn nic_is_told_the_addresses_and_vlans_of_its_plugged_guests_and_of_no_others() {
    let site = Site::new();
    let knobs = Arc::new(Knobs::default());
    let mut node = node(&site, &knobs).unwrap();
    let told = || (knobs.unicast.lock().unwrap().clone(), knobs.vlans.lock().unwrap().clone());
    node.plug(&plug(0, Some(100))).unwrap();
    assert_eq!(told(), (vec![mac(0)], vec![100]));
    node.plug(&plug(1, Some(7))).unwrap();
    assert_eq!(told(), (vec![mac(0)], vec![100]), "vhost 1 is the other NIC's");
    node.unplug(0).unwrap();
    assert_eq!(told(), (vec![], vec![]));
    node.plug(&plug(0, None)).unwrap();
    assert_eq!(told(), (vec![mac(0)], vec![]));
}
