//! `ring:N`, either end.

use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, PacketBuf, Pool, PoolCache, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::ring_port::{RING_SLOTS, packet_ring};

use crate::stage::{Row, Stage, frame};

/// The rows of this module.
pub fn rows() -> Vec<Row> {
    vec![
        Row::new("ring, send", |_| Ring::new(End::Send)),
        Row::new("ring, receive", |_| Ring::new(End::Receive)),
    ]
}

/// A pool of `n_buffers`, and a cache of it.
pub fn pool(n_buffers: u32) -> (Pool, PoolCache) {
    let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers }).expect("memory for the pool");
    let cache = pool.cache();
    (pool, cache)
}

/// A packet with these bytes.
pub fn packet(cache: &mut PoolCache, bytes: &[u8]) -> PacketBuf {
    let mut packet = cache.alloc().expect("the pool is larger than what is under way");
    packet.append(bytes).expect("frames here fit one buffer");
    packet
}

/// The end that is measured; the other one is played.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Send,
    Receive,
}

struct Ring {
    end: End,
    tx: Box<dyn TxQueue>,
    rx: Box<dyn RxQueue>,
    burst: Burst,
    cache: PoolCache,
    frame: Vec<u8>,
}

impl Ring {
    fn new(end: End) -> Ring {
        let (tx, rx) = packet_ring(RING_SLOTS);
        let frame = frame([2; 6], None, 64);
        Ring { end, tx: Box::new(tx), rx: Box::new(rx), burst: Burst::new(), cache: pool(2048).1, frame }
    }
}

impl Stage for Ring {
    fn feed(&mut self, burst: usize) {
        for _ in 0..burst {
            let pushed = self.burst.push(packet(&mut self.cache, &self.frame));
            assert!(pushed.is_ok(), "at most 32 are asked for");
        }
        if self.end == End::Receive {
            self.tx.tx_burst(&mut self.cache, &mut self.burst);
        }
    }

    fn work(&mut self) {
        match self.end {
            End::Send => self.tx.tx_burst(&mut self.cache, &mut self.burst),
            End::Receive => self.rx.rx_burst(&mut self.cache, &mut self.burst),
        };
    }

    fn drain(&mut self) -> usize {
        if self.end == End::Send {
            self.rx.rx_burst(&mut self.cache, &mut self.burst);
        }
        self.burst.free_all(&mut self.cache)
    }
}
