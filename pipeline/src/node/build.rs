//! Builds a node: memory, NICs, vhost ports, rings, then the first wiring.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use spp_drivers::BURST;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::{Device, PortError, RxQueue, TxQueue};
use spp_drivers::ring_port::{RING_SLOTS, packet_ring};

use super::nic::Nic;
use super::report::BusySamples;
use super::switchboard::{Parked, Switchboard};
use super::{Node, NodeError, NodeOptions, RingCounters};
use crate::config::{DeviceAddr, NodeConfig};
use crate::cores;
use crate::names::PortName;
use crate::topology::Topology;

/// How devices are opened: [`crate::devices::open`], or a test's own.
pub type OpenDevice<'a> = &'a mut dyn FnMut(&DeviceAddr, &DmaSpace) -> Result<Box<dyn Device>, PortError>;

/// Descriptors of a NIC queue, the most any of our drivers uses.
const NIC_RING: u32 = 1024;

/// Slots a core's or a queue's cache holds back: two magazines.
const CACHE: u32 = 128;

/// Buffers a component may hold at once: a burst in and one out, each of up to 64 buffers, which is two frames of 64 KiB.
const HELD: u32 = 4 * BURST as u32;

/// What a merger of many guests may hold: a burst of their longest frames.
const HELD_BY_MERGER: u32 = 33 * BURST as u32;

/// Buffers a node needs so that every ring can be full at once and nobody waits for a buffer: two rings
/// for each vhost and each mirror; a local, a receive and a transmit ring for each NIC; for each component, which may
/// have a core of its own, a cache and what it holds; for each vhost and each NIC queue a
/// cache. With 2 NICs and 8 vhosts: 16 x 1024 + 2 x 3072 + 20 x 256 + 2 x 1056 + 12 x 128 = 31,296 buffers, 71 MB. Rings count buffers,
/// not packets, so no guest's long frames take those of others.
pub fn pool_buffers(config: &NodeConfig) -> u32 {
    let (n_nics, n_vhost) = (config.vfs.len() as u32, config.n_vhost());
    let n_nic_pairs: u32 = (0..config.vfs.len()).map(|nic| u32::from(config.n_queue_pairs(nic))).sum();
    let configured = config.vfs.iter().flat_map(|vf| vf.components.iter().flatten()).count() as u32;
    let n_components = configured.max(2 * n_vhost + 2 * n_nics) + config.mirrors.len() as u32;
    (config.n_rings() + n_nics) * RING_SLOTS as u32
        + n_nic_pairs * 2 * NIC_RING
        + n_components * (CACHE + HELD)
        + n_nics * HELD_BY_MERGER
        + (n_vhost + 2 * n_nic_pairs) * CACHE
}

pub(super) fn build(
    config: NodeConfig,
    options: NodeOptions,
    open: OpenDevice<'_>,
) -> Result<Node, NodeError> {
    let mut topology = Topology::from_config(&config, options.gate_unplugged)?;
    topology.set_local_switching(options.local_switching);
    if !options.fold_cores {
        let online = cores::online().map_err(NodeError::NoCoreList)?;
        for (owner, mask) in config.masks().into_iter().chain(config.mirror_masks()) {
            cores::check_online(&owner, &mask, &online)?;
        }
    }
    // Threads of vhost ports inherit this thread's cores: the masters, away from the polling cores.
    let _affinity = (!options.fold_cores).then(|| OnMasters::enter(&config));
    let warnings = config.warnings();
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));

    // NICs first: packet memory goes where their IOMMU can reach it.
    let space = DmaSpace::new();
    let nics = open_nics(&config, &space, open)?;
    let pool = Pool::new(&space, PoolConfig { n_buffers: pool_buffers(&config) })?;
    let counts = pool.counts();
    tracing::info!(buffers = counts.capacity, page_size_bytes = pool.page_size().bytes(), "packet memory");

    let board = Switchboard::new(&pool, &options);
    let now = Instant::now();
    // From here on dropping the node closes what is open.
    let mut node = Node {
        config,
        options,
        started: now,
        topology,
        board,
        vhosts: Vec::new(),
        vhost_lives: Vec::new(),
        nics,
        rings: Vec::new(),
        pool,
        warnings,
        busy: BusySamples::default(),
        unsettled: None,
        health_due: now,
        retries: BTreeMap::new(),
    };
    node.make_rings();
    // NICs take seconds, and a frontend must be answered within one (vhost's hand-over): vhosts last.
    node.start_nics()?;
    node.open_vhosts()?;
    node.settle()?;
    Ok(node)
}

fn open_nics(config: &NodeConfig, space: &DmaSpace, open: OpenDevice<'_>) -> Result<Vec<Nic>, NodeError> {
    let mut nics = Vec::new();
    for (index, vf) in config.vfs.iter().enumerate() {
        let owner = vf.owner(index);
        let device = open(&vf.address, space);
        let device = device.map_err(|source| NodeError::Device { owner: owner.clone(), source })?;
        nics.push(Nic::new(index as u32, owner, device, config.n_queue_pairs(index)));
    }
    Ok(nics)
}

impl Node {
    fn make_rings(&mut self) {
        for number in 0..self.config.n_rings() {
            let (tx, rx) = packet_ring(RING_SLOTS);
            self.rings.push(RingCounters { tx: tx.stats(), rx: rx.stats() });
            let Parked { rx: receivers, tx: senders } = &mut self.board.parked;
            receivers.insert(PortName::Ring(number), Box::new(rx));
            senders.insert(PortName::Ring(number), Box::new(tx));
        }
        for number in 0..self.nics.len() as u32 {
            let (tx, rx) = packet_ring(RING_SLOTS);
            self.board.parked.rx.insert(PortName::Local(number), Box::new(rx));
            self.board.parked.tx.insert(PortName::Local(number), Box::new(tx));
        }
    }

    fn start_nics(&mut self) -> Result<(), NodeError> {
        for nic in &mut self.nics {
            let started = nic.start(&self.pool, &mut self.board.parked);
            started.map_err(|source| NodeError::Device { owner: nic.owner.clone(), source })?;
        }
        Ok(())
    }
}

/// Where the offer to the VM at a socket is kept: nodes with directories of their own for sockets may share this one.
pub(super) fn offer_file(state_dir: &Path, socket: &Path) -> PathBuf {
    let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    let name = socket.to_string_lossy().replace('/', "-");
    state_dir.join(format!("offer{name}"))
}

/// Keeps the calling thread on the master cores until it is dropped.
struct OnMasters {
    before: Option<CpuSet>,
}

impl OnMasters {
    fn enter(config: &NodeConfig) -> OnMasters {
        let before = sched_getaffinity(None).ok();
        pin_to_masters(config);
        OnMasters { before }
    }
}

impl Drop for OnMasters {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.before.map(|before| sched_setaffinity(None, &before)) {
            tracing::warn!(%error, "this thread's cores can't be set back");
        }
    }
}

/// Pins the calling thread to the master cores of all vfs.
pub(super) fn pin_to_masters(config: &NodeConfig) {
    let mut masters = CpuSet::new();
    let numbers = config.vfs.iter().filter_map(|vf| vf.core_mask.lowest());
    numbers.filter(|&core| core < CpuSet::MAX_CPU).for_each(|core| masters.set(core));
    if let Err(error) = sched_setaffinity(None, &masters) {
        tracing::warn!(%error, "the control thread can't be pinned to the master cores");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_one_name_in_two_directories_keep_their_offers_apart() {
        let file = |socket| offer_file(Path::new("/run/spp"), Path::new(socket));
        assert_eq!(file("/tmp/sock0"), Path::new("/run/spp/offer-tmp-sock0"));
        assert_ne!(file("/tmp/sock0"), file("/run/a/sock0"));
    }

    #[test]
    fn pool_of_two_nics_and_eight_vhosts_is_what_the_documentation_says() {
        let config = NodeConfig::from_mappings("00:04.0#a#4#0x7ff,00:05.0#b#4#0x1ff801").unwrap();
        assert_eq!(pool_buffers(&config), 31_296);
        assert!(u64::from(pool_buffers(&config)) * 2304 < 256 << 20);
    }
}
