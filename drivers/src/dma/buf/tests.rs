//! Extent, chains and copies of packet buffers.

use super::super::{DmaSpace, Pool, PoolCache, PoolConfig};
use super::*;

fn pool() -> (Pool, PoolCache) {
    let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 64 }).unwrap();
    let cache = pool.cache();
    (pool, cache)
}

#[test]
fn front_and_tail_never_leave_the_buffer() {
    let (_pool, mut cache) = pool();
    let mut p = cache.alloc().unwrap();
    assert_eq!((p.headroom(), p.tailroom(), p.len()), (HEADROOM, DATA_ROOM, 0));
    assert_eq!(p.set_len(DATA_ROOM + 1), Err(NoRoom));
    p.set_len(DATA_ROOM).unwrap();
    assert_eq!(p.append(&[0]), Err(NoRoom));
    assert_eq!(p.push_front(HEADROOM + 1), Err(NoRoom));
    p.push_front(HEADROOM).unwrap();
    assert_eq!((p.headroom(), p.len()), (0, HEADROOM + DATA_ROOM));
    assert_eq!(p.pull_front(HEADROOM + DATA_ROOM + 1), Err(NoRoom));
    p.pull_front(HEADROOM + DATA_ROOM).unwrap();
    assert_eq!(p.tailroom(), 0);
}

#[test]
fn iova_follows_the_data_pointer() {
    let (_pool, mut cache) = pool();
    let (a, mut b) = (cache.alloc().unwrap(), cache.alloc().unwrap());
    b.set_len(10).unwrap();
    b.pull_front(4).unwrap();
    let by_pointer = b.data_ptr().as_ptr() as i64 - a.data_ptr().as_ptr() as i64;
    assert_eq!(b.iova().0 as i64 - a.iova().0 as i64, by_pointer);
}

#[test]
fn chains_are_counted_copied_and_returned_whole() {
    let (pool, mut cache) = pool();
    let mut p = cache.alloc().unwrap();
    p.append(&[1; 100]).unwrap();
    for byte in 2..5 {
        let mut tail = cache.alloc().unwrap();
        tail.append(&[byte; 100]).unwrap();
        p.last_segment_mut().chain(tail);
    }
    p.set_offload(Some(Offload { gso_size: 7, ..Offload::default() }));
    p.push_front(4).unwrap();
    let copy = p.duplicate(&mut cache).unwrap();
    assert_eq!((copy.total_len(), copy.n_segments(), copy.offload()), (404, 4, p.offload()));
    assert!(copy.segments().eq(p.segments()));
    drop(copy);
    cache.free(p);
    drop(cache);
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn copy_that_runs_out_of_buffers_leaks_none() {
    let (pool, mut cache) = pool();
    let mut p = cache.alloc().unwrap();
    for _ in 0..40 {
        let tail = cache.alloc().unwrap();
        p.last_segment_mut().chain(tail);
    }
    assert!(p.duplicate(&mut cache).is_none());
    drop((p, cache));
    assert_eq!(pool.counts().out, 0);
}
