//! The hosts: their keys, their agents, and nodes without packets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use etcd_client::{Client, Txn, TxnOp};
use spp_agent::{
    AgentConfig, DataPlane, DataPlaneError, Endpoints, Layout, Name, Plug, PortState, StatusCell,
};
use tokio::task::JoinSet;

use super::{FleetError, Plan};

/// Below which all keys are.
pub const ROOT: &str = "/spp/openstack/";

/// The network of all vhosts.
pub const PHYSNET: &str = "phys1";

/// Most writes in a transaction; etcd takes 128.
const TXN_MAX: usize = 100;

/// A node that remembers what it is told, and has no packets.
pub struct NoNode {
    n: usize,
    layout: Layout,
    wired: Mutex<BTreeMap<u32, (Plug, Instant)>>,
}

impl NoNode {
    fn wired(&self) -> MutexGuard<'_, BTreeMap<u32, (Plug, Instant)>> {
        self.wired.lock().expect("nobody panics with it")
    }

    /// When the agent had this vhost wired.
    pub fn wired_at(&self, vhost: u32) -> Option<Instant> {
        self.wired().get(&vhost).map(|(_, at)| *at)
    }
}

impl DataPlane for NoNode {
    fn plug(&self, plug: &Plug) -> Result<(), DataPlaneError> {
        self.wired().insert(plug.vhost, (*plug, Instant::now()));
        Ok(())
    }

    fn unplug(&self, vhost: u32) -> Result<(), DataPlaneError> {
        self.wired().remove(&vhost);
        Ok(())
    }

    fn plugs(&self) -> Result<Vec<Plug>, DataPlaneError> {
        Ok(self.wired().values().map(|(plug, _)| *plug).collect())
    }

    fn layout(&self) -> Layout {
        self.layout.clone()
    }
}

/// A host: what its agent says, and what it did.
pub struct Host {
    pub status: StatusCell,
    pub node: Arc<NoNode>,
}

impl Host {
    /// Connected, with as many ports up as were bound before the start, and none else.
    fn in_order(&self, resident: usize) -> bool {
        self.status.read(|status| {
            let up = status.ports.iter().filter(|port| port.state == PortState::Up).count();
            status.etcd.connected && up == resident && status.ports.len() == resident
        }) && self.node.wired().len() == resident
    }
}

/// All hosts. Their agents end when this is dropped.
pub struct Site {
    pub hosts: Vec<Host>,
    resident: usize,
    _agents: JoinSet<()>,
}

pub fn name(n: usize) -> Name {
    Name::new(&format!("host{n}")).expect("it is a name")
}

impl Site {
    /// Starts all agents in the same instant: the worst that can happen.
    pub fn start(endpoints: &Endpoints, plan: &Plan) -> Site {
        let network = Name::new(PHYSNET).expect("it is a name");
        let layout: Layout = (0..plan.ports).map(|vhost| (vhost, network.clone())).collect();
        let mut agents = JoinSet::new();
        let host = |n| {
            let node = Arc::new(NoNode { n, layout: layout.clone(), wired: Mutex::default() });
            Host { status: StatusCell::default(), node }
        };
        let hosts: Vec<Host> = (0..plan.hosts).map(host).collect();
        for host in &hosts {
            let mut config = AgentConfig::new(endpoints.clone(), name(host.node.n), None);
            config.timing = plan.timing.clone();
            let never = std::future::pending();
            agents.spawn(spp_agent::run(config, host.node.clone(), host.status.clone(), never));
        }
        Site { hosts, resident: plan.resident as usize, _agents: agents }
    }

    /// How many hosts have their resident ports up, and no others.
    pub fn n_in_order(&self) -> usize {
        self.hosts.iter().filter(|host| host.in_order(self.resident)).count()
    }

    pub fn all_in_order(&self) -> bool {
        self.n_in_order() == self.hosts.len()
    }
}

/// The guest address of a vhost.
pub fn mac(n: usize, vhost: u32) -> String {
    format!(
        "02:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
        n >> 16 & 0xff,
        n >> 8 & 0xff,
        n & 0xff,
        vhost >> 8,
        vhost & 0xff
    )
}

/// What `spp config put` writes, for all hosts, and the keys of resident ports. How many.
pub async fn write_keys(client: &Client, plan: &Plan) -> Result<usize, FleetError> {
    let mut writes = JoinSet::new();
    let mut n_keys = 0;
    for n in 0..plan.hosts {
        let puts = keys_of(n, plan);
        n_keys += puts.len();
        for puts in puts.chunks(TXN_MAX) {
            let txn = Txn::new().and_then(puts.to_vec());
            let mut client = client.clone();
            writes.spawn(async move { client.txn(txn).await });
        }
        // A few at a time.
        while writes.len() > 32 {
            joined(&mut writes).await?;
        }
    }
    while !writes.is_empty() {
        joined(&mut writes).await?;
    }
    Ok(n_keys)
}

async fn joined<T: 'static>(tasks: &mut JoinSet<Result<T, etcd_client::Error>>) -> Result<(), FleetError> {
    if let Some(joined) = tasks.join_next().await {
        joined.expect("writing does not panic")?;
    }
    Ok(())
}

fn keys_of(n: usize, plan: &Plan) -> Vec<TxnOp> {
    let host = name(n);
    let put = |key: String, value: String| TxnOp::put(format!("{ROOT}{key}"), value, None);
    let configuration = format!(
        "{{\"vf\": [{{\"num_vhost\": {}, \"pci_address\": \"00:04.0\", \"physical_network\": \"{PHYSNET}\", \
         \"core_mask\": \"0xfe\"}}]}}",
        plan.ports
    );
    let mut puts = vec![put(format!("configuration/{host}"), configuration)];
    for vhost in 0..plan.ports {
        let slot = format!("vhost/{host}/{PHYSNET}/{vhost}");
        if vhost >= plan.resident {
            puts.push(put(slot, "None".into()));
            continue;
        }
        let port = format!("resident-{n}-{vhost}");
        let info = format!("{{\"vhost_id\": {vhost}, \"mac_address\": \"{}\"}}", mac(n, vhost));
        puts.push(put(slot, port.clone()));
        puts.push(put(format!("bind_port/{host}/{port}"), info));
        puts.push(put(format!("action/{host}/{port}"), "plug".into()));
        puts.push(put(format!("port_status/{host}/{port}"), "up".into()));
    }
    puts
}
