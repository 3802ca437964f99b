use super::*;

fn pool(n_buffers: u32) -> Pool {
    Pool::new(&DmaSpace::new(), PoolConfig { n_buffers }).unwrap()
}

#[test]
fn every_buffer_can_be_taken_once_and_comes_back() {
    let pool = pool(300);
    let mut cache = pool.cache();
    let all: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    assert_eq!(all.len(), 320, "300 rounded up to whole magazines");
    let mut slots: Vec<_> = all.iter().map(|p| p.slot()).collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), 320);
    assert_eq!(pool.counts(), PoolCounts { capacity: 320, free: 0, out: 320 });
    all.into_iter().for_each(|p| cache.free(p));
    drop(cache);
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn no_buffer_crosses_a_huge_page_and_all_that_were_asked_for_are_there() {
    let pool = pool(4096);
    let mut cache = pool.cache();
    let all: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    assert_eq!(all.len(), 4096);
    let start = all.iter().map(|p| p.iova().0).min().unwrap() - HEADROOM as u64;
    assert!(start.is_multiple_of(2 << 20), "regions start with a huge page");
    for packet in &all {
        let first = packet.iova().0 - HEADROOM as u64;
        let last = packet.iova().0 + DATA_ROOM as u64 - 1;
        assert_eq!(first >> 21, last >> 21, "{first:#x}");
    }
    all.into_iter().for_each(|p| cache.free(p));
}

#[test]
fn dropped_packets_come_back_too() {
    let pool = pool(64);
    let mut cache = pool.cache();
    drop(cache.alloc().unwrap());
    let all: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
    assert_eq!(all.len(), 64);
}

#[test]
fn bursts_take_and_return_each_buffer_once_whatever_their_size() {
    let (pool, mut burst) = (pool(128), Burst::new());
    let mut cache = pool.cache();
    let mut held = Vec::new();
    for n in [0, 1, 31, 32, 5, 27, 32] {
        assert_eq!(cache.alloc_burst(n, &mut burst), n);
        assert_eq!(burst.len(), n);
        held.extend(burst.take_all());
    }
    assert_eq!(cache.alloc_burst(7, &mut burst), 0, "all 128 are out");
    let mut slots: Vec<_> = held.iter().map(|p| p.slot()).collect();
    slots.sort_unstable();
    assert!(slots.iter().copied().eq(0..128));
    while !held.is_empty() {
        let n = held.len().min(32);
        held.drain(..n).for_each(|packet| burst.push(packet).unwrap());
        // With one chain among them.
        let mut tail = burst.pop().unwrap();
        tail.set_len(1).unwrap();
        if let Some(first) = burst.pop() {
            let mut first = first;
            first.chain(tail);
            burst.push(first).unwrap();
        }
        let n = burst.len();
        cache.free_front(&mut burst, n);
    }
    drop(cache);
    assert_eq!(pool.counts().out, 0);
}

#[test]
fn buffers_flow_between_cores_without_loss() {
    let pool = pool(1024);
    let (tx, rx) = std::sync::mpsc::sync_channel::<PacketBuf>(100);
    let mut consumer_cache = pool.cache();
    let consumer = std::thread::spawn(move || rx.into_iter().for_each(|p| consumer_cache.free(p)));
    let mut cache = pool.cache();
    let mut sent = 0;
    while sent < 20_000 {
        match cache.alloc() {
            Some(packet) => {
                tx.send(packet).unwrap();
                sent += 1;
            }
            None => std::thread::yield_now(),
        }
    }
    drop((tx, cache));
    consumer.join().unwrap();
    assert_eq!(pool.counts(), PoolCounts { capacity: 1024, free: 1024, out: 0 });
}

#[test]
fn what_one_core_gives_back_is_what_the_next_one_takes() {
    let pool = pool(1024);
    let (mut giver, mut taker) = (pool.cache(), pool.cache());
    let slots = |packets: &[PacketBuf]| packets.iter().map(PacketBuf::slot).collect::<Vec<_>>();
    let all: Vec<_> = (0..256).map(|_| giver.alloc().unwrap()).collect();
    let mut given = slots(&all);
    all.into_iter().for_each(|packet| giver.free(packet));
    // The giver keeps two magazines' worth.
    let taken: Vec<_> = (0..128).map(|_| taker.alloc().unwrap()).collect();
    given.truncate(128);
    let mut found = slots(&taken);
    given.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, given);
    taken.into_iter().for_each(|packet| taker.free(packet));
}

#[test]
fn pool_closed_before_its_packets_keeps_their_memory() {
    let pool = pool(64);
    let mut cache = pool.cache();
    let mut packet = cache.alloc().unwrap();
    packet.append(&[1, 2, 3]).unwrap();
    drop((cache, pool));
    assert_eq!(packet.data(), [1, 2, 3]);
}
