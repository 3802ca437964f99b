//! Software devices, usable wherever a PCI address is: a sink, a source, a kernel tap, capture files.
//!
//! [`open`] is called by the control thread; the queue halves are polled like those of a NIC. All
//! have one queue pair. They answer "how would this run with a real port" for demos, tests and
//! trying out; `tap:` and `pcap:` make system calls where a NIC would not.

mod generator;
mod null;
mod pcap;
mod spec;
mod tap;
mod tap_fd;
#[cfg(test)]
mod testing;

use std::sync::{Arc, OnceLock};

use crate::burst::Burst;
use crate::dma::{DATA_ROOM, PacketBuf, PoolCache};
use crate::port::{Device, Health, PortError, Queues, RxQueue, TxQueue};
use crate::stats::{DropReason, QueueStats, SharedStats};

/// Shorter frames have no whole Ethernet header.
const MIN_FRAME_BYTES: usize = 14;

/// Longest frame software devices carry, without FCS: what a virtio-net guest can send at most.
const MAX_FRAME_BYTES: usize = 65_535;

/// Most buffers in a frame's chain.
const MAX_SEGMENTS: usize = MAX_FRAME_BYTES.div_ceil(DATA_ROOM) + 1;

/// Opens the device a specification names; `None` when it is not one of ours (a PCI address, say).
///
/// `null:`, `gen:len=64,dst=MAC[,vlan=ID][,src=MAC]`, `tap:NAME`, `pcap:rx=FILE,tx=FILE`
/// (one of the two may be missing).
pub fn open(spec: &str) -> Option<Result<Box<dyn Device>, PortError>> {
    let (kind, rest) = spec.split_once(':')?;
    let opened = match kind {
        "null" => null::open(spec, rest),
        "gen" => generator::open(spec, rest),
        "tap" => tap::open(spec, rest),
        "pcap" => pcap::open(spec, rest),
        _ => return None,
    };
    Some(opened)
}

/// Refuses more queue pairs than the one there is.
fn one_queue_pair(address: &str, n_queue_pairs: u16) -> Result<(), PortError> {
    if n_queue_pairs == 1 {
        return Ok(());
    }
    Err(PortError::new(address, format!("has one queue pair, not {n_queue_pairs}"), "configure one queue"))
}

fn queues(rx: impl RxQueue + 'static, tx: impl TxQueue + 'static) -> Queues {
    Queues { rx: vec![Box::new(rx)], tx: vec![Box::new(tx)] }
}

/// What a queue half tells its device when it can't go on. Written once, read by the control thread.
#[derive(Clone, Default)]
struct Trouble(Arc<OnceLock<String>>);

impl Trouble {
    /// Only the first report counts: it is the cause of the others.
    #[cold]
    fn report(&self, what: impl FnOnce() -> String) {
        self.0.get_or_init(what);
    }

    fn is_reported(&self) -> bool {
        self.0.get().is_some()
    }

    fn health(&self) -> Health {
        self.0.get().map_or(Health::Ok, |what| Health::Gone(what.clone()))
    }
}

/// A frame as packet buffers, as many as it takes. `None` (and nothing taken) when the pool has too few.
pub(crate) fn copy_in(pool: &mut PoolCache, frame: &[u8]) -> Option<PacketBuf> {
    let mut head = pool.alloc()?;
    let (first, rest) = frame.split_at(frame.len().min(DATA_ROOM));
    head.append(first).expect("an empty buffer has room for DATA_ROOM bytes");
    if rest.is_empty() || chain_behind(pool, &mut head, rest) {
        return Some(head);
    }
    pool.free(head);
    None
}

/// Chains `rest` behind `head`; false when the pool has too few buffers.
#[cold]
fn chain_behind(pool: &mut PoolCache, head: &mut PacketBuf, rest: &[u8]) -> bool {
    // Built from the back, so that each buffer is chained once and nothing is walked.
    let mut tail: Option<PacketBuf> = None;
    for part in rest.chunks(DATA_ROOM).rev() {
        let Some(mut segment) = pool.alloc() else {
            tail.into_iter().for_each(|chain| pool.free(chain));
            return false;
        };
        segment.append(part).expect("an empty buffer has room for DATA_ROOM bytes");
        tail.take().into_iter().for_each(|chain| segment.chain(chain));
        tail = Some(segment);
    }
    tail.into_iter().for_each(|chain| head.chain(chain));
    true
}

/// A receiving half that never receives.
struct NoRx(SharedStats);

impl NoRx {
    fn new() -> Self {
        NoRx(QueueStats::shared())
    }
}

impl RxQueue for NoRx {
    fn rx_burst(&mut self, _pool: &mut PoolCache, _out: &mut Burst) -> usize {
        0
    }

    fn stats(&self) -> SharedStats {
        self.0.clone()
    }
}

/// A sending half that drops all it gets, by design.
struct Sink(SharedStats);

impl Sink {
    fn new() -> Self {
        Sink(QueueStats::shared())
    }
}

impl TxQueue for Sink {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        let n = from.free_all(pool);
        self.0.dropped(DropReason::Sink, n);
        n
    }

    fn stats(&self) -> SharedStats {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::pool;
    use super::*;

    #[test]
    fn what_is_not_a_software_device_is_left_to_others() {
        for spec in ["0000:00:04.0", "00:04.0", "vhost-user:/tmp/sock", "null", ""] {
            assert!(open(spec).is_none(), "{spec}");
        }
    }

    #[test]
    fn long_frame_becomes_a_chain_and_a_small_pool_loses_nothing() {
        let (pool, mut cache) = pool(64);
        let frame: Vec<u8> = (0..9000u32).map(|i| i as u8).collect();
        let packet = copy_in(&mut cache, &frame).unwrap();
        assert_eq!((packet.n_segments(), packet.total_len()), (5, 9000));
        assert_eq!(packet.segments().collect::<Vec<_>>().concat(), frame);
        let hogs: Vec<_> = std::iter::from_fn(|| cache.alloc()).skip(3).collect();
        cache.free(packet);
        let few: Vec<_> = std::iter::from_fn(|| cache.alloc()).skip(4).collect();
        assert!(copy_in(&mut cache, &frame).is_none());
        drop((hogs, few, cache));
        assert_eq!(pool.counts().out, 0);
    }

    #[test]
    fn second_queue_pair_is_refused() {
        let (pool, _cache) = pool(64);
        let mut device = open("null:").unwrap().unwrap();
        let error = device.start(&pool, 2).err().unwrap();
        assert!(error.to_string().contains("one queue"), "{error}");
    }
}
