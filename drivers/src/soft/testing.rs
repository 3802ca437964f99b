//! What the tests of all software devices need.

use crate::burst::Burst;
use crate::dma::{DmaSpace, Pool, PoolCache, PoolConfig};

pub(super) fn pool(n_buffers: u32) -> (Pool, PoolCache) {
    let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers }).unwrap();
    let cache = pool.cache();
    (pool, cache)
}

/// A burst of copies of these frames.
pub(super) fn burst(cache: &mut PoolCache, frames: &[&[u8]]) -> Burst {
    let mut burst = Burst::new();
    for frame in frames {
        burst.push(super::copy_in(cache, frame).unwrap()).unwrap();
    }
    burst
}

/// The bytes of a burst's packets.
pub(super) fn frames(burst: &Burst) -> Vec<Vec<u8>> {
    burst.iter().map(|packet| packet.segments().collect::<Vec<_>>().concat()).collect()
}
