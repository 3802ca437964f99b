//! `ring:N`: an SPSC ring of packets as a queue pair, between two components.

use crate::burst::Burst;
use crate::dma::{PacketBuf, PoolCache};
use crate::offload::Offloads;
use crate::port::{RxQueue, TxQueue};
use crate::spsc::{self, Consumer, Producer};
use crate::stats::{QueueStats, SharedStats};

/// Slots of a ring between components. SPP's has 127; more absorbs a guest that is scheduled away, at 16 bytes a slot.
pub const RING_SLOTS: usize = 1024;

/// The end components send into.
pub struct RingTx {
    ring: Producer<PacketBuf>,
    stats: SharedStats,
}

/// The end components receive from.
pub struct RingRx {
    ring: Consumer<PacketBuf>,
    stats: SharedStats,
}

/// A new packet ring; `slots` is a power of two.
pub fn packet_ring(slots: usize) -> (RingTx, RingRx) {
    let (tx, rx) = spsc::ring(slots);
    (RingTx { ring: tx, stats: QueueStats::shared() }, RingRx { ring: rx, stats: QueueStats::shared() })
}

impl TxQueue for RingTx {
    fn tx_burst(&mut self, _pool: &mut PoolCache, from: &mut Burst) -> usize {
        let n = from.len().min(self.ring.room(from.len()));
        if n == 0 {
            return 0;
        }
        let mut bytes = 0;
        let packets = from.take_front(n).inspect(|packet| bytes += packet.total_len() as u64);
        self.ring.push_burst(n, packets);
        self.stats.moved(n, bytes);
        n
    }

    /// Frames keep their work: whoever takes them out of the ring sends them on.
    fn offloads(&mut self) -> Offloads {
        Offloads::ALL
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl RxQueue for RingRx {
    fn rx_burst(&mut self, _pool: &mut PoolCache, out: &mut Burst) -> usize {
        let mut bytes = 0;
        let n = self.ring.pop_burst(out.room(), |packet| {
            bytes += packet.total_len() as u64;
            let pushed = out.push(packet);
            debug_assert!(pushed.is_ok(), "no more than out.room() are popped");
        });
        self.stats.moved(n, bytes);
        n
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DmaSpace, Pool, PoolConfig};

    #[test]
    fn full_ring_leaves_the_rest_of_the_burst_in_order() {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 128 }).unwrap();
        let mut cache = pool.cache();
        let (mut tx, mut rx) = packet_ring(8);
        let mut burst = Burst::new();
        for i in 0..10u8 {
            let mut packet = cache.alloc().unwrap();
            packet.append(&[i; 60]).unwrap();
            burst.push(packet).unwrap();
        }
        assert_eq!(tx.tx_burst(&mut cache, &mut burst), 8);
        assert_eq!(burst.iter().map(|p| p.data()[0]).collect::<Vec<_>>(), [8, 9]);
        let mut out = Burst::new();
        assert_eq!(rx.rx_burst(&mut cache, &mut out), 8);
        assert_eq!(out[7].data()[0], 7);
        assert_eq!((rx.stats().packets.get(), tx.stats().bytes.get()), (8, 480));
        drop((burst, out, cache));
        assert_eq!(pool.counts().out, 0);
    }
}
