//! A virtio-net PCI device in software, for tests and benches: the true driver runs over it. Written from the
//! specification (virtio 1.2), apart from the driver, so that one checks the other.
//!
//! It has both layouts of rings, completes in order (one completion for many buffers, if wanted), and has four pairs of
//! queues, a control queue, address filters and RSS; it lies on command, as all models do ([`Fault`]) and as only virtio
//! can ([`Lie`]). It does no checksums: what the driver asks for is kept for the test to see.

mod queue;
mod registers;
#[cfg(test)]
mod tests;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::dma::DmaSpace;
use crate::mac::MacAddr;
use crate::nic::model::{Card, DeviceMemory, Fault, Handle, Model, ModelFunction};
use crate::virtio::desc::NetHdr;
use crate::virtio::regs::{feature, status};
use queue::SimQueue;

/// Pairs of queues the device has.
pub const N_PAIRS: u16 = 4;
const N_QUEUES: usize = 2 * N_PAIRS as usize + 1;
const BAR: u8 = 4;
const BAR_BYTES: usize = 0x4000;
const COMMON: usize = 0;
const DEVICE: usize = 0x2000;
const DEVICE_BYTES: usize = 24;
const NOTIFY: usize = 0x3000;
const NOTIFY_MULTIPLIER: usize = 4;

/// Something a broken or malicious virtio device does, besides what any card may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// The next completion names this descriptor.
    ForeignId(u32),
    /// The used index of a split ring moves before its entry is written, which never happens.
    LateEntry,
    /// The next completion is written, but shown (used index, flags) with the next step only.
    LateCompletion,
    /// The next received frame claims this many buffers.
    NumBuffers(u16),
    /// No features are good enough.
    RefusesFeatures,
    /// The configuration changes with each look at it.
    RestlessConfig,
    /// Commands on the control queue are not answered.
    NoAnswer,
    /// Commands of this class and number are refused.
    RefusesCommand(u8, u8),
}

/// What the driver has asked for on the control queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Receive everything, all groups; `None` before it was said.
    pub receive_modes: [Option<bool>; 2],
    /// Unicast addresses besides the device's own.
    pub addresses: Vec<MacAddr>,
    /// Pairs of queues in use.
    pub n_pairs: u16,
    /// RSS: the queue of each hash, and the key.
    pub table: Vec<u16>,
    /// Its key.
    pub key: Vec<u8>,
}

/// The device.
pub struct VirtioModel {
    card: Card,
    offered: u64,
    accepted: u64,
    selects: [u32; 2],
    status: u8,
    generation: u8,
    queue_select: usize,
    ring_size: u16,
    queues: [SimQueue; N_QUEUES],
    config_vector: u16,
    /// MAC, status, queue pairs, MTU, speed, duplex, RSS (virtio 1.2, 5.1.4).
    config: [u8; DEVICE_BYTES],
    /// Configuration that takes over in the middle of the next read of the old one.
    config_behind: Option<[u8; DEVICE_BYTES]>,
    device_bytes: u32,
    lie: Option<Lie>,
    asked: Asked,
    /// Completes in order with as few completions as it can.
    batches: bool,
    /// Headers of the frames that arrive next; plain ones once they are used up.
    rx_headers: VecDeque<NetHdr>,
    tx_headers: Vec<NetHdr>,
}

/// What it offers unless told: split rings, no offloads, one pair.
pub const OFFERED: u64 = feature::MAC
    | feature::MRG_RXBUF
    | feature::STATUS
    | feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::VERSION_1
    | feature::ACCESS_PLATFORM;

/// A new device whose memory accesses go through `space`.
pub fn new(space: &DmaSpace, mac: MacAddr) -> (ModelFunction<VirtioModel>, Handle<VirtioModel>) {
    crate::nic::model::new(space, |memory| VirtioModel::new(memory, mac))
}

impl VirtioModel {
    fn new(memory: Arc<dyn DeviceMemory>, mac: MacAddr) -> Self {
        let mut config = [0; DEVICE_BYTES];
        config[..6].copy_from_slice(&mac.0);
        config[6] = 1;
        config[8..10].copy_from_slice(&N_PAIRS.to_le_bytes());
        config[12..16].fill(0xff);
        config[17] = 40;
        config[18..20].copy_from_slice(&128u16.to_le_bytes());
        config[20..24].copy_from_slice(&0x3fu32.to_le_bytes());
        VirtioModel {
            card: Card::new(memory),
            offered: OFFERED,
            accepted: 0,
            selects: [0; 2],
            status: 0,
            generation: 0,
            queue_select: 0,
            ring_size: 256,
            queues: std::array::from_fn(|_| SimQueue::new(256)),
            config_vector: 0xffff,
            config,
            config_behind: None,
            device_bytes: DEVICE_BYTES as u32,
            lie: None,
            asked: Asked { n_pairs: 1, ..Asked::default() },
            batches: false,
            rx_headers: VecDeque::new(),
            tx_headers: Vec::new(),
        }
    }

    /// From now on the device lies so, or no longer.
    pub fn set_lie(&mut self, lie: Option<Lie>) {
        self.lie = lie;
    }

    /// Features it offers, from the next negotiation on.
    pub fn offer(&mut self, features: u64) {
        self.offered = features;
    }

    /// Features the driver accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// `device_status` as it is.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// What the driver has asked for.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Entries of the rings, from the next reset on.
    pub fn set_ring_size(&mut self, size: u16) {
        self.ring_size = size;
    }

    /// With IN_ORDER: one completion for all buffers of a step.
    pub fn set_batches(&mut self, on: bool) {
        self.batches = on;
    }

    /// The device's configuration ends here: a device without RSS, or an old one.
    pub fn set_device_bytes(&mut self, len_bytes: u32) {
        self.device_bytes = len_bytes;
    }

    /// Largest payload it names, with F_MTU.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.config[10..12].copy_from_slice(&mtu.to_le_bytes());
    }

    /// Pairs of queues it says it has.
    pub fn set_max_pairs(&mut self, n: u16) {
        self.config[8..10].copy_from_slice(&n.to_le_bytes());
    }

    /// Its speed in Mbit/s, with F_SPEED_DUPLEX.
    pub fn set_speed(&mut self, mbps: u32) {
        self.config[12..16].copy_from_slice(&mbps.to_le_bytes());
    }

    /// The longest indirection table it takes.
    pub fn set_max_table(&mut self, n: u16) {
        self.config[18..20].copy_from_slice(&n.to_le_bytes());
    }

    /// The cable is plugged or pulled: configuration change and interrupt.
    pub fn set_link(&mut self, up: bool) {
        self.config[6] = u8::from(up);
        self.generation = self.generation.wrapping_add(1);
        if self.config_vector == 0 {
            self.card.interrupt(0);
        }
    }

    /// The address changes in the middle of the driver's next look at the configuration.
    pub fn change_mac_during_next_read(&mut self, mac: MacAddr) {
        let mut config = self.config;
        config[..6].copy_from_slice(&mac.0);
        self.config_behind = Some(config);
    }

    /// The device asks for a reset.
    pub fn need_reset(&mut self) {
        self.status |= status::NEEDS_RESET;
    }

    /// Asks for no doorbells of a running queue, or for doorbells again.
    pub fn suppress_doorbells(&mut self, queue: usize, on: bool) {
        self.queues[queue].suppress_doorbells(&self.card, on);
    }

    /// Vectors of all queues.
    pub fn queue_vectors(&self) -> Vec<u16> {
        self.queues.iter().map(|queue| queue.vector).collect()
    }

    /// Where the parts of a queue's ring are: descriptors, driver's part, device's part.
    pub fn ring_addresses(&self, queue: usize) -> [u64; 3] {
        self.queues[queue].at
    }

    /// What the next frame that arrives is preceded by, but for the number of its buffers.
    pub fn precede(&mut self, header: NetHdr) {
        self.rx_headers.push_back(header);
    }

    /// What stood in front of the frames the driver sent since the last call.
    pub fn tx_headers(&mut self) -> Vec<NetHdr> {
        std::mem::take(&mut self.tx_headers)
    }

    fn has(&self, feature: u64) -> bool {
        self.accepted & feature != 0
    }

    fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && self.status & status::NEEDS_RESET == 0 && self.card.bus_master
    }
}

/// Offset of a queue's doorbell, to count writes to it.
pub const fn doorbell(queue: usize) -> usize {
    NOTIFY + NOTIFY_MULTIPLIER * queue
}

impl Model for VirtioModel {
    fn card(&mut self) -> &mut Card {
        &mut self.card
    }

    /// Ids, and the capabilities of a modern device with MSI-X among them.
    fn config(&self) -> [u8; 256] {
        let mut config = [0; 256];
        config[..4].copy_from_slice(&[0xf4, 0x1a, 0x41, 0x10]);
        config[6] = 1 << 4;
        config[0x34] = 0x98;
        config[0x98..0x9a].copy_from_slice(&[0x11, 0x84]);
        let mut cap = |at: usize, next: u8, kind: u8, offset: usize, len: u32| {
            config[at..at + 5].copy_from_slice(&[9, next, 20, kind, BAR]);
            config[at + 8..at + 12].copy_from_slice(&(offset as u32).to_le_bytes());
            config[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        };
        cap(0x84, 0x70, 5, 0, 0); // access through config space: not used
        cap(0x70, 0x60, 2, NOTIFY, 0x1000);
        cap(0x60, 0x50, 4, DEVICE, self.device_bytes);
        cap(0x50, 0x40, 3, 0x1000, 0x1000);
        cap(0x40, 0, 1, COMMON, 0x1000);
        config[0x80..0x84].copy_from_slice(&(NOTIFY_MULTIPLIER as u32).to_le_bytes());
        config
    }

    fn bar(&self) -> (u8, usize) {
        (BAR, BAR_BYTES)
    }

    fn read(&mut self, offset: usize) -> u32 {
        self.read_word(offset)
    }

    fn write(&mut self, offset: usize, value: u32) {
        self.write_register(offset, value);
    }

    fn write_narrow(&mut self, offset: usize, value: u32) {
        self.write_register(offset, value);
    }

    fn step(&mut self) {
        self.work();
    }

    fn n_vectors(&self) -> usize {
        3
    }
}

/// What the next completion shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Shown {
    fault: Option<Fault>,
    lie: Option<Lie>,
}

impl VirtioModel {
    /// The fault to show on the next completion; most show once.
    fn next_shown(&mut self) -> Shown {
        if self.card.fault == Some(Fault::Hang) {
            return Shown { fault: self.card.fault, lie: None };
        }
        let fault = self.card.take_fault(|f| matches!(f, Fault::GarbageLength(_) | Fault::IndexJump(_)));
        let is_in_a_completion = |lie: &Lie| {
            use Lie::*;
            matches!(lie, ForeignId(_) | LateEntry | LateCompletion | NumBuffers(_))
        };
        let lie = self.lie.filter(is_in_a_completion);
        if lie.is_some() {
            self.lie = None;
        }
        Shown { fault, lie }
    }
}
