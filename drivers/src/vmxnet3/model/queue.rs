//! What the driver configured, as the device reads it at activation, and rings as the device walks them.

use crate::nic::model::Card;

pub(super) const SHARED_MAGIC: u32 = 0xbabe_fee1;
const QUEUE_BYTES: u64 = 256;
const STATS: u64 = 88;

/// Ten counters of a queue.
pub(super) type Stats = [u64; 10];

pub(super) fn u32_at(card: &Card, at: u64) -> u32 {
    u32::from_le_bytes(card.read(at))
}

fn u64_at(card: &Card, at: u64) -> u64 {
    u64::from_le_bytes(card.read(at))
}

/// A ring, and where the device is in it; its position runs free.
pub(super) struct Ring {
    base: u64,
    size: u32,
    pub(super) next: u32,
}

impl Ring {
    fn read(card: &Card, base_at: u64, size_at: u64) -> Ring {
        let ring = Ring { base: u64_at(card, base_at), size: u32_at(card, size_at), next: 0 };
        assert!(ring.base != 0 && ring.base.is_multiple_of(512), "rings lie at multiples of 512");
        assert!(ring.size.is_multiple_of(32) && (32..=4096).contains(&ring.size), "size {}", ring.size);
        ring
    }

    /// Where the descriptor `ahead` of the next one is.
    pub(super) fn at(&self, ahead: u32) -> u64 {
        self.base + u64::from((self.next + ahead) % self.size) * 16
    }

    pub(super) fn slot(&self) -> u64 {
        u64::from(self.next % self.size)
    }

    /// The generation of the descriptor `ahead` of the next one, when it is the device's, or done.
    pub(super) fn generation(&self, ahead: u32) -> u64 {
        u64::from(((self.next + ahead) / self.size).is_multiple_of(2))
    }

    /// Descriptors with the right generation in this bit of their second word.
    pub(super) fn available(&self, card: &Card, bit: u32) -> usize {
        let owned =
            |ahead: &u32| card.read_descriptor(self.at(*ahead))[1] >> bit & 1 == self.generation(*ahead);
        (0..self.size).take_while(owned).count()
    }
}

/// A transmit queue.
pub(super) struct Tx {
    pub(super) described_at: u64,
    pub(super) commands: Ring,
    pub(super) completions: Ring,
    /// Its doorbell was rung.
    pub(super) rung: bool,
    pub(super) error: Option<u32>,
    pub(super) stats: Stats,
}

impl Tx {
    fn read(card: &Card, at: u64) -> Tx {
        let (commands, completions) =
            (Ring::read(card, at + 16, at + 56), Ring::read(card, at + 32, at + 64));
        assert!(completions.size >= commands.size);
        Tx { described_at: at, commands, completions, rung: false, error: None, stats: [0; 10] }
    }

    pub(super) fn available(&self, card: &Card) -> usize {
        self.commands.available(card, 14)
    }
}

/// A receive queue.
pub(super) struct Rx {
    pub(super) described_at: u64,
    /// For the beginnings of frames, and for what follows.
    pub(super) commands: [Ring; 2],
    pub(super) completions: Ring,
    pub(super) stats: Stats,
}

impl Rx {
    fn read(card: &Card, at: u64) -> Rx {
        let commands = [Ring::read(card, at + 16, at + 56), Ring::read(card, at + 24, at + 60)];
        let completions = Ring::read(card, at + 32, at + 64);
        assert!(completions.size >= commands[0].size + commands[1].size);
        Rx { described_at: at, commands, completions, stats: [0; 10] }
    }

    pub(super) fn available(&self, card: &Card) -> usize {
        self.commands[0].available(card, 31)
    }
}

/// How flows are spread.
pub(super) struct Spread {
    pub(super) key: Vec<u32>,
    pub(super) table: Vec<u8>,
}

/// All of it.
pub(super) struct Active {
    pub(super) tx: Vec<Tx>,
    pub(super) rx: Vec<Rx>,
    pub(super) spread: Option<Spread>,
    pub(super) rx_mode: u32,
    pub(super) vlans: [u8; 512],
    pub(super) max_buffers: u32,
    pub(super) event_vector: u8,
    pub(super) interrupts: bool,
    /// Queues stand still.
    pub(super) quiet: bool,
    /// Tags are taken off received frames.
    pub(super) strips: bool,
}

impl Active {
    pub(super) fn read(card: &Card, shared: u64) -> Active {
        let [n_tx, n_rx] = card.read::<2>(shared + 62).map(u64::from);
        let queues = u64_at(card, shared + 40);
        assert!(queues.is_multiple_of(128), "descriptions of queues lie at multiples of 128");
        assert_eq!(u64::from(u32_at(card, shared + 52)), (n_tx + n_rx) * QUEUE_BYTES);
        assert!((1..=8).contains(&n_tx) && (1..=16).contains(&n_rx) && n_rx.is_power_of_two());
        assert!((60..=9000).contains(&u32_at(card, shared + 56)), "MTU");
        let features = u64_at(card, shared + 24);
        let has_spread = features & 2 != 0;
        let [_auto_mask, n_vectors, event_vector] = card.read::<3>(shared + 80);
        assert!(event_vector < n_vectors);
        Active {
            tx: (0..n_tx).map(|n| Tx::read(card, queues + n * QUEUE_BYTES)).collect(),
            rx: (n_tx..n_tx + n_rx).map(|n| Rx::read(card, queues + n * QUEUE_BYTES)).collect(),
            spread: has_spread.then(|| Spread::read(card, u64_at(card, shared + 656))),
            rx_mode: u32_at(card, shared + 120),
            vlans: card.read(shared + 136),
            max_buffers: u32::from(u16::from_le_bytes(card.read(shared + 60))).max(1),
            event_vector,
            interrupts: u32_at(card, shared + 108) & 1 == 0,
            quiet: false,
            strips: features & 4 != 0,
        }
    }

    pub(super) fn write_stats(&self, card: &Card) {
        let tx = self.tx.iter().map(|queue| (queue.described_at, &queue.stats));
        for (at, stats) in tx.chain(self.rx.iter().map(|queue| (queue.described_at, &queue.stats))) {
            let bytes: Vec<u8> = stats.iter().flat_map(|n| n.to_le_bytes()).collect();
            card.write(at + STATS, &bytes);
        }
    }

    pub(super) fn write_status(&self, card: &Card) {
        for queue in &self.rx {
            card.write(queue.described_at + 80, &[0; 8]);
        }
        for queue in &self.tx {
            let stopped = u32::from(queue.error.is_some());
            card.write(queue.described_at + 80, &stopped.to_le_bytes());
            card.write(queue.described_at + 84, &queue.error.unwrap_or(0).to_le_bytes());
        }
    }
}

impl Spread {
    fn read(card: &Card, at: u64) -> Spread {
        let [function, key_bytes, entries] =
            [at + 2, at + 4, at + 6].map(|at| usize::from(u16::from_le_bytes(card.read(at))));
        assert_eq!((function, key_bytes, entries), (1, 40, 128));
        let key: [u8; 40] = card.read(at + 8);
        let key =
            key.chunks(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        Spread { key, table: card.read::<128>(at + 48).to_vec() }
    }
}

/// Counts a frame: unicast, multicast and broadcast have frames and bytes each, from the third counter on.
pub(super) fn count(stats: &mut Stats, frame: &[u8]) {
    let row = match frame[..6] {
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => 6,
        [first, ..] if first & 1 == 1 => 4,
        _ => 2,
    };
    stats[row] += 1;
    stats[row + 1] += frame.len() as u64;
}
