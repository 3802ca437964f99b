//! The configuration area (`Vmxnet3_DriverShared`), the descriptions of queues (`Vmxnet3_TxQueueDesc`,
//! `Vmxnet3_RxQueueDesc`) and how flows are spread (`UPT1_RSSConf`), as bytes. Pure.

use crate::nic::filters::Program;

/// Bytes of the configuration area.
pub(super) const SHARED_BYTES: usize = 720;
/// Where it says which features are used, and how to filter: the only parts that change while the device runs.
pub(super) const FEATURES: usize = 24;
pub(super) const RX_MODE: usize = 120;
/// Where the device says which events there are.
pub(super) const ECR: usize = 696;
/// Bytes of the description of a queue.
pub(super) const QUEUE_BYTES: usize = 256;
/// Bytes of the description of how flows are spread.
pub(super) const RSS_BYTES: usize = 176;
/// Largest payload that is told.
pub(super) const MTU: u32 = 9000;

/// In the description of a queue.
pub(super) mod queue {
    /// Transmit: frames posted since the last doorbell.
    pub const TX_NUM_DEFERRED: usize = 0;
    /// Transmit: posted frames from which on the device wants a doorbell.
    pub const TX_THRESHOLD: usize = 4;
    /// Receive: whether the device wants doorbells; one byte.
    pub const UPDATE_RX_PROD: usize = 0;
    /// Whether it is stopped; one byte.
    pub const STOPPED: usize = 80;
    /// Why.
    pub const ERROR: usize = 84;
    /// Ten counters of eight bytes.
    pub const STATS: usize = 88;
}

/// Vectors: that of events, and that of all queues, which stays masked.
pub(super) const EVENT_VECTOR: u8 = 0;
pub(super) const QUEUE_VECTOR: u8 = 1;
pub(super) const N_VECTORS: usize = 2;

const MAGIC: u32 = 0xbabe_fee1;
/// Our version, as drivers tell theirs.
const DRIVER_VERSION: u32 = 0x0001_0000;
/// 64 bits, a kind of its own that no host treats specially.
const GUEST_OS: u32 = 2;
const F_RXCSUM: u64 = 1;
const F_RSS: u64 = 2;
/// Tags are taken off received frames.
const F_RXVLAN: u64 = 4;
/// Most buffers of one received frame.
pub(super) const MAX_BUFFERS: u16 = 8;

/// Hashes of IPv4 and IPv6, with TCP's ports where there are any.
const HASH_TYPES: u16 = 0xf;
const TOEPLITZ: u16 = 1;
const KEY_BYTES: usize = 40;
const TABLE_ENTRIES: usize = 128;
/// Any even spread will do; this one also sends both directions of a flow to one queue.
const KEY: [u8; 2] = [0x6d, 0x5a];

/// Bits of the receive mode.
mod mode {
    pub const UCAST: u32 = 1;
    pub const BCAST: u32 = 4;
    pub const ALL_MULTI: u32 = 8;
    pub const PROMISC: u32 = 16;
}

/// What the configuration area says besides what is always the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Config {
    pub(super) n_tx_queues: u8,
    pub(super) n_rx_queues: u8,
    /// Where the descriptions of queues are: transmit queues first.
    pub(super) queues_at: u64,
    /// Where it says how to spread flows; `None` with one queue.
    pub(super) rss_at: Option<u64>,
    pub(super) interrupts: bool,
}

struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> Bytes<N> {
    fn put<const M: usize>(&mut self, offset: usize, bytes: [u8; M]) {
        self.0[offset..offset + M].copy_from_slice(&bytes);
    }
}

impl Config {
    /// Features in use, with tags taken off or not.
    pub(super) fn features(&self, strip: bool) -> u64 {
        let rss = if self.rss_at.is_some() { F_RSS } else { 0 };
        F_RXCSUM | rss | if strip { F_RXVLAN } else { 0 }
    }

    /// The whole area.
    pub(super) fn bytes(&self, rx_mode: u32) -> [u8; SHARED_BYTES] {
        let mut area = Bytes([0; SHARED_BYTES]);
        let n_queues = u32::from(self.n_tx_queues) + u32::from(self.n_rx_queues);
        area.put(0, MAGIC.to_le_bytes());
        area.put(4, (SHARED_BYTES as u32).to_le_bytes());
        // Driver, and what it chose of revisions and versions.
        area.put(8, DRIVER_VERSION.to_le_bytes());
        area.put(12, GUEST_OS.to_le_bytes());
        area.put(16, 1u32.to_le_bytes());
        area.put(20, 1u32.to_le_bytes());
        area.put(FEATURES, self.features(false).to_le_bytes());
        area.put(40, self.queues_at.to_le_bytes());
        area.put(52, (n_queues * QUEUE_BYTES as u32).to_le_bytes());
        area.put(56, MTU.to_le_bytes());
        area.put(60, MAX_BUFFERS.to_le_bytes());
        area.put(62, [self.n_tx_queues, self.n_rx_queues]);
        // Vectors mask themselves as they fire; no moderation. Without interrupts all are off.
        area.put(80, [1, N_VECTORS as u8, EVENT_VECTOR]);
        area.put(108, u32::from(!self.interrupts).to_le_bytes());
        area.put(RX_MODE, rx_mode.to_le_bytes());
        // Frames of all VLANs are let in, with their tags.
        area.put(136, [0xff; 512]);
        if let Some(at) = self.rss_at {
            area.put(648, 1u32.to_le_bytes());
            area.put(652, (RSS_BYTES as u32).to_le_bytes());
            area.put(656, at.to_le_bytes());
        }
        area.0
    }
}

/// The receive mode for a program of filters.
pub(super) fn rx_mode(program: &Program) -> u32 {
    let promiscuous = if program.promiscuous { mode::PROMISC } else { 0 };
    let groups = if program.all_multicast { mode::ALL_MULTI } else { 0 };
    mode::UCAST | mode::BCAST | promiscuous | groups
}

/// A ring for the description of its queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingPlace {
    pub(super) at: u64,
    pub(super) size: u16,
}

/// The description of a transmit queue.
pub(super) fn tx_queue(commands: RingPlace, completions: RingPlace) -> [u8; QUEUE_BYTES] {
    let mut area = Bytes([0; QUEUE_BYTES]);
    area.put(queue::TX_THRESHOLD, 1u32.to_le_bytes());
    area.put(16, commands.at.to_le_bytes());
    area.put(32, completions.at.to_le_bytes());
    area.put(56, u32::from(commands.size).to_le_bytes());
    area.put(64, u32::from(completions.size).to_le_bytes());
    area.put(72, [QUEUE_VECTOR]);
    area.put(queue::STOPPED, [1]);
    area.0
}

/// The description of a receive queue: buffers for the beginnings of frames, and for what follows.
pub(super) fn rx_queue(commands: [RingPlace; 2], completions: RingPlace) -> [u8; QUEUE_BYTES] {
    let mut area = Bytes([0; QUEUE_BYTES]);
    let [heads, bodies] = commands;
    area.put(16, heads.at.to_le_bytes());
    area.put(24, bodies.at.to_le_bytes());
    area.put(32, completions.at.to_le_bytes());
    area.put(56, u32::from(heads.size).to_le_bytes());
    area.put(60, u32::from(bodies.size).to_le_bytes());
    area.put(64, u32::from(completions.size).to_le_bytes());
    area.put(72, [QUEUE_VECTOR]);
    area.put(queue::STOPPED, [1]);
    area.0
}

/// Spreads flows over the first `n` queues.
pub(super) fn rss(n: u16) -> [u8; RSS_BYTES] {
    let mut area = Bytes([0; RSS_BYTES]);
    area.put(0, HASH_TYPES.to_le_bytes());
    area.put(2, TOEPLITZ.to_le_bytes());
    area.put(4, (KEY_BYTES as u16).to_le_bytes());
    area.put(6, (TABLE_ENTRIES as u16).to_le_bytes());
    (0..KEY_BYTES / 2).for_each(|pair| area.put(8 + 2 * pair, KEY));
    (0..TABLE_ENTRIES).for_each(|entry| area.put(8 + KEY_BYTES + entry, [(entry % usize::from(n)) as u8]));
    area.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::filters::{self, Wanted};

    #[test]
    fn rx_mode_is_own_address_broadcasts_and_what_is_wanted_besides() {
        let program = |promiscuous, all_multicast| {
            let wanted = Wanted { promiscuous, all_multicast, ..Wanted::default() };
            filters::program(None, &wanted, 1)
        };
        assert_eq!(rx_mode(&program(false, false)), 5);
        assert_eq!(rx_mode(&program(false, true)), 13);
        assert_eq!(rx_mode(&program(true, true)), 29);
    }

    #[test]
    fn table_of_flows_uses_all_queues_evenly() {
        let bytes = rss(3);
        let table = &bytes[48..];
        assert_eq!((table.len(), &table[..4]), (128, &[0, 1, 2, 0][..]));
        assert_eq!(bytes[..10], [15, 0, 1, 0, 40, 0, 128, 0, 0x6d, 0x5a]);
    }
}
