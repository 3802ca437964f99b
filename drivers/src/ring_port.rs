//! `ring:N`: an SPSC ring of packets as a queue pair, between two components.
//!
//! A ring holds about as many buffers as it has slots, however long its packets: a frame of 64 KiB counts as the 33 buffers
//! it is. So nobody's long frames, piled up in front of an output that takes nothing, can take the buffers others need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use crate::burst::{BURST, Burst};
use crate::dma::{PacketBuf, PoolCache, Tally};
use crate::offload::Offloads;
use crate::port::{RxQueue, TxQueue};
use crate::spsc::{self, Consumer, Producer};
use crate::stats::{QueueStats, SharedStats};

/// Slots of a ring between components. SPP's has 127; more absorbs a guest that is scheduled away, at 16 bytes a slot.
pub const RING_SLOTS: usize = 1024;

/// Buffers beyond the first of each packet, free-running: written when there are any, read once a burst.
#[derive(Default)]
struct Extra {
    put_in: CachePadded<AtomicU64>,
    taken_out: CachePadded<AtomicU64>,
}

/// The end components send into.
pub struct RingTx {
    ring: Producer<PacketBuf>,
    stats: SharedStats,
    extra: Arc<Extra>,
    put_in: u64,
}

/// The end components receive from.
pub struct RingRx {
    ring: Consumer<PacketBuf>,
    stats: SharedStats,
    extra: Arc<Extra>,
    taken_out: u64,
}

/// A new packet ring; `slots` is a power of two.
pub fn packet_ring(slots: usize) -> (RingTx, RingRx) {
    let (tx, rx) = spsc::ring(slots);
    let extra = Arc::<Extra>::default();
    (
        RingTx { ring: tx, stats: QueueStats::shared(), extra: extra.clone(), put_in: 0 },
        RingRx { ring: rx, stats: QueueStats::shared(), extra, taken_out: 0 },
    )
}

impl RingTx {
    /// Packets at the front that fit when each counts as its buffers. Long ones come in small bursts, so those that meet none
    /// in the ring are not looked at one by one.
    #[cold]
    fn fitting(&mut self, from: &Burst) -> usize {
        let extra = self.put_in.wrapping_sub(self.extra.taken_out.load(Ordering::Relaxed)) as usize;
        let mut room = self.ring.room(self.ring.capacity()).saturating_sub(extra);
        let fits = |packet: &&PacketBuf| {
            let left = room.checked_sub(packet.n_segments());
            room = left.unwrap_or(0);
            left.is_some()
        };
        from.iter().take_while(fits).count()
    }
}

impl RingTx {
    /// `known` is of all of them.
    #[inline(always)]
    fn send(&mut self, from: &mut Burst, known: Option<&Tally>) -> usize {
        let n = match self.extra.taken_out.load(Ordering::Relaxed) == self.put_in {
            true => from.len().min(self.ring.room(from.len())),
            false => self.fitting(from),
        };
        if n == 0 {
            return 0;
        }
        let tally = match known {
            Some(known) if n == from.len() => *known,
            _ => Tally::of(&from[..n]),
        };
        self.ring.push_burst(n, from.take_front(n));
        if tally.extra > 0 {
            self.put_in = self.put_in.wrapping_add(tally.extra);
            self.extra.put_in.store(self.put_in, Ordering::Relaxed);
        }
        self.stats.moved(n, tally.bytes);
        n
    }
}

impl TxQueue for RingTx {
    fn tx_burst(&mut self, _pool: &mut PoolCache, from: &mut Burst) -> usize {
        self.send(from, None)
    }

    fn tx_tallied(&mut self, _pool: &mut PoolCache, from: &mut Burst, tally: &Tally) -> usize {
        self.send(from, Some(tally))
    }

    /// Frames keep their work: whoever takes them out of the ring sends them on.
    fn offloads(&mut self) -> Offloads {
        Offloads::ALL
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl RingRx {
    #[inline(always)]
    fn take(&mut self, n: usize, out: &mut Burst) -> usize {
        let mut end = out.end();
        self.ring.pop_burst(n, |packet| {
            let pushed = end.push(packet);
            debug_assert!(pushed.is_ok(), "no more than out.room() are popped");
        })
    }

    /// Takes packets until they have a burst's worth of buffers: whoever holds them is in nobody's count.
    #[cold]
    fn take_some(&mut self, out: &mut Burst) -> usize {
        let (mut n, mut n_buffers) = (0, 0);
        while out.room() > 0 && n_buffers < BURST && self.take(1, out) > 0 {
            n += 1;
            n_buffers += out.last().map_or(0, PacketBuf::n_segments);
        }
        n
    }
}

impl RingRx {
    #[inline(always)]
    fn receive(&mut self, out: &mut Burst) -> (usize, Tally) {
        let n_before = out.len();
        let n = match self.extra.put_in.load(Ordering::Relaxed) == self.taken_out {
            true => self.take(out.room(), out),
            false => self.take_some(out),
        };
        let tally = Tally::of(&out[n_before..]);
        if tally.extra > 0 {
            self.taken_out = self.taken_out.wrapping_add(tally.extra);
            self.extra.taken_out.store(self.taken_out, Ordering::Relaxed);
        }
        self.stats.moved(n, tally.bytes);
        (n, tally)
    }
}

impl RxQueue for RingRx {
    fn rx_burst(&mut self, _pool: &mut PoolCache, out: &mut Burst) -> usize {
        self.receive(out).0
    }

    fn rx_tallied(&mut self, _pool: &mut PoolCache, out: &mut Burst) -> Tally {
        self.receive(out).1
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
    fn long_frames_fill_a_ring_by_their_buffers_and_come_out_few_at_a_time() {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 1024 }).unwrap();
        let mut cache = pool.cache();
        let (mut tx, mut rx) = packet_ring(128);
        let mut burst = Burst::new();
        let mut send = |tx: &mut RingTx, cache: &mut PoolCache, n_segments: usize| {
            let mut packet = cache.alloc().unwrap();
            packet.append(&[1; 60]).unwrap();
            for _ in 1..n_segments {
                let mut next = cache.alloc().unwrap();
                next.append(&[2; 100]).unwrap();
                packet.last_segment_mut().chain(next);
            }
            burst.push(packet).unwrap();
            let sent = tx.tx_burst(cache, &mut burst);
            burst.free_all(cache);
            sent
        };
        for round in 0..5 {
            let n_long = (0..10).map(|_| send(&mut tx, &mut cache, 33)).sum::<usize>();
            assert_eq!(n_long, 3, "round {round}: 99 buffers of 128");
            let n_small = (0..100).map(|_| send(&mut tx, &mut cache, 1)).sum::<usize>();
            assert_eq!(n_small, 29, "what is left is for whoever comes");
            let (mut taken, mut out) = (Vec::new(), Burst::new());
            while rx.rx_burst(&mut cache, &mut out) > 0 {
                taken.push(out.iter().map(PacketBuf::n_segments).sum::<usize>());
                out.free_all(&mut cache);
            }
            assert_eq!(taken, [33, 33, 33, 29]);
        }
        assert_eq!(rx.stats().bytes.get(), tx.stats().bytes.get());
        drop((burst, cache));
        assert_eq!(pool.counts().out, 0);
    }

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
