//! Several handles of one segment: how a frame goes two ways without being copied.
//!
//! [`PacketBuf::share`] gives a second handle of the same bytes, chain and offload data included. While there
//! are several, all of it is read only; each handle has its own offset and length, and travels, from core to core
//! or to a device that only reads, like any other packet. Whoever must write to a frame calls
//! [`PacketBuf::make_own`] first, which copies what has to be copied and nothing when the others are gone.
//! Packets that were never shared pay one tested bit where they are freed, the bit that chains
//! are tested for anyway.
//!
//! The count ([`Handles`](super::handles::Handles)) is in the side table of the segment's slot and is only read
//! where a handle has the SHARED bit.

use super::PoolCache;
use super::buf::{PacketBuf, SHARED};

/// How much of a chained frame's first segment [`PacketBuf::make_own`] copies: all headers an edge rewrites,
/// Ethernet to TCP with all options.
const OWN_BYTES: usize = 256;

/// The pool has no buffer for a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoBuffer;

impl PacketBuf {
    /// A second handle of the same frame.
    #[inline]
    pub fn share(&mut self) -> PacketBuf {
        if self.is_shared() {
            self.handles().add();
        } else {
            self.handles().start();
            self.set_flag(SHARED);
        }
        self.alias()
    }

    /// True when other handles of this (first) segment may exist.
    #[inline(always)]
    pub fn is_shared(&self) -> bool {
        self.slot_flags() & SHARED != 0
    }

    /// True when this is the only handle; it is no longer shared then.
    #[inline(always)]
    pub fn try_own(&mut self) -> bool {
        if !self.is_shared() {
            return true;
        }
        if !self.handles().is_only() {
            return false;
        }
        self.clear_flag(SHARED);
        true
    }

    /// Makes the first segment writable. When others still read it, its bytes are copied; of a chained frame only the
    /// first 256, and the rest stays shared behind them.
    #[inline(always)]
    pub fn make_own(&mut self, pool: &mut PoolCache) -> Result<(), NoBuffer> {
        if self.is_shared() { self.make_own_slow(pool) } else { Ok(()) }
    }

    #[cold]
    fn make_own_slow(&mut self, pool: &mut PoolCache) -> Result<(), NoBuffer> {
        if self.try_own() {
            return Ok(());
        }
        let mut own = pool.alloc().ok_or(NoBuffer)?;
        let n_bytes = if self.is_chained() { self.len().min(OWN_BYTES) } else { self.len() };
        let fits = own.reserve(self.headroom()).and_then(|()| own.append(&self.data()[..n_bytes]));
        fits.expect("all buffers have one size, and this one starts at the same offset");
        own.set_offload(self.offload());
        own.set_origin(self.origin());
        let mut rest = std::mem::replace(self, own);
        if !rest.is_chained() {
            pool.free(rest);
            return Ok(());
        }
        rest.pull_front(n_bytes).expect("as many bytes as were copied from it");
        rest.set_offload(None);
        self.chain(rest);
        Ok(())
    }

    /// As [`make_own`](Self::make_own) for every segment: whoever takes the chain apart needs it.
    #[inline]
    pub fn own_chain(&mut self, pool: &mut PoolCache) -> Result<(), NoBuffer> {
        self.try_own();
        if self.segment_bufs().any(PacketBuf::is_shared) {
            let copy = self.duplicate(pool).ok_or(NoBuffer)?;
            pool.free(std::mem::replace(self, copy));
        }
        Ok(())
    }

    /// Counts this handle out; true when it was the last one, which owns the segment from then on.
    pub(super) fn release_share(&mut self) -> bool {
        if !self.handles().remove() {
            return false;
        }
        self.clear_flag(SHARED);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::super::{DmaSpace, Offload, Pool, PoolConfig};
    use super::*;

    fn pool(n_buffers: u32) -> (Pool, PoolCache) {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers }).unwrap();
        let cache = pool.cache();
        (pool, cache)
    }

    /// A frame of `sizes.len()` segments; every byte is its index in the frame.
    fn frame(cache: &mut PoolCache, sizes: &[usize]) -> PacketBuf {
        let bytes: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|i| i as u8).collect();
        let (mut head, mut rest) = (None::<PacketBuf>, &bytes[..]);
        for &size in sizes {
            let (now, later) = rest.split_at(size);
            rest = later;
            let mut segment = cache.alloc().unwrap();
            segment.append(now).unwrap();
            match &mut head {
                None => head = Some(segment),
                Some(head) => head.last_segment_mut().chain(segment),
            }
        }
        head.unwrap()
    }

    fn bytes(packet: &PacketBuf) -> Vec<u8> {
        packet.segments().flatten().copied().collect()
    }

    const SHAPES: [&[usize]; 6] = [&[60], &[2048], &[2048, 2048, 900], &[14, 2000], &[128, 7], &[0, 60]];

    #[test]
    fn both_handles_have_the_bytes_and_the_buffers_return_with_the_last() {
        for shape in SHAPES {
            for original_first in [true, false] {
                let (pool, mut cache) = pool(64);
                let mut original = frame(&mut cache, shape);
                original.set_offload(Some(Offload { gso_size: 9, ..Offload::default() }));
                let copy = original.share();
                assert!(original.is_shared() && copy.is_shared());
                assert_eq!((bytes(&copy), copy.offload()), (bytes(&original), original.offload()));
                assert_eq!(copy.data_ptr(), original.data_ptr(), "no byte was copied");
                let stock = cache.stock();
                let (first, last) = if original_first { (original, copy) } else { (copy, original) };
                let expected = bytes(&last);
                cache.free(first);
                assert_eq!(cache.stock(), stock, "nothing is free while a handle is left");
                assert_eq!(bytes(&last), expected);
                cache.free(last);
                assert_eq!(cache.stock(), stock + shape.len());
                drop(cache);
                assert_eq!(pool.counts().out, 0);
            }
        }
    }

    #[test]
    fn dropped_handles_return_the_buffers_once() {
        for shape in SHAPES {
            let (pool, mut cache) = pool(64);
            let mut original = frame(&mut cache, shape);
            let mut copies: Vec<_> = (0..5).map(|_| original.share()).collect();
            let of_a_copy = copies[4].share();
            copies.push(of_a_copy);
            drop(original);
            drop(copies);
            drop(cache);
            assert_eq!(pool.counts().out, 0, "{shape:?}");
        }
    }

    #[test]
    fn writer_gets_bytes_of_its_own_and_the_other_handle_keeps_its() {
        for shape in SHAPES {
            let (pool, mut cache) = pool(64);
            let mut original = frame(&mut cache, shape);
            original.set_offload(Some(Offload { csum_start: 34, ..Offload::default() }));
            original.set_origin(7);
            let (expected, offload) = (bytes(&original), original.offload());
            let copy = original.share();
            original.make_own(&mut cache).unwrap();
            assert!(!original.is_shared());
            assert_eq!(
                (bytes(&original), original.offload(), original.origin()),
                (expected.clone(), offload, 7)
            );
            original.push_front(4).unwrap();
            original.data_mut().fill(0xee);
            assert_eq!((bytes(&copy), copy.offload()), (expected, offload), "{shape:?}");
            cache.free(original);
            drop((copy, cache));
            assert_eq!(pool.counts().out, 0);
        }
    }

    #[test]
    fn chain_made_own_copies_only_its_headers() {
        let (_pool, mut cache) = pool(64);
        let mut original = frame(&mut cache, &[2048, 2048, 2048]);
        let copy = original.share();
        let stock = cache.stock();
        original.make_own(&mut cache).unwrap();
        assert_eq!((stock - cache.stock(), original.len(), original.n_segments()), (1, 256, 4));
        assert_eq!(original.next_segment().unwrap().data_ptr(), byte_at(&copy, 256));
        // The rest can be shared once more, and taken apart in any order.
        let again = original.share();
        assert_eq!(bytes(&again), bytes(&copy));
        drop(original);
        drop(copy);
        assert_eq!(again.total_len(), 3 * 2048);
        let mut taken_apart = again;
        let whole = bytes(&taken_apart);
        taken_apart.own_chain(&mut cache).unwrap();
        assert_eq!(bytes(&taken_apart), whole);
        while let Some(rest) = taken_apart.unchain() {
            taken_apart = rest;
        }
    }

    /// Where byte `n` of a segment is.
    fn byte_at(packet: &PacketBuf, n: usize) -> std::ptr::NonNull<u8> {
        std::ptr::NonNull::from(&packet.data()[n])
    }

    #[test]
    fn last_handle_owns_without_copying() {
        let (_pool, mut cache) = pool(64);
        let mut original = frame(&mut cache, &[60]);
        let (copy, place) = (original.share(), original.data_ptr());
        assert!(!original.try_own());
        cache.free(copy);
        original.make_own(&mut cache).unwrap();
        assert!(!original.is_shared() && original.try_own());
        assert_eq!(original.data_ptr(), place);
    }

    #[test]
    fn handles_have_their_own_offset_and_length() {
        let (_pool, mut cache) = pool(64);
        let mut original = frame(&mut cache, &[60]);
        let mut copy = original.share();
        copy.pull_front(10).unwrap();
        copy.set_len(5).unwrap();
        copy.set_offload(None);
        assert_eq!((copy.data(), original.len()), (&[10, 11, 12, 13, 14][..], 60));
    }

    #[test]
    fn exhausted_pool_refuses_a_copy_and_leaves_the_handle_as_it_was() {
        let (pool, mut cache) = pool(64);
        let mut original = frame(&mut cache, &[60]);
        let copy = original.share();
        let all: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
        assert_eq!(original.make_own(&mut cache), Err(NoBuffer));
        assert_eq!((bytes(&original), original.is_shared()), (bytes(&copy), true));
        drop((all, original, copy, cache));
        assert_eq!(pool.counts().out, 0);
    }

    #[test]
    fn writing_to_a_shared_segment_is_refused() {
        let refused = |write: fn(&mut PacketBuf)| {
            let (_pool, mut cache) = pool(64);
            let mut original = frame(&mut cache, &[60, 60]);
            let _copy = original.share();
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| write(&mut original))).is_err()
        };
        assert!(refused(|packet| packet.data_mut()[0] = 1));
        assert!(refused(|packet| packet.append(&[1]).unwrap()));
        assert!(refused(|packet| drop(packet.unchain())));
        assert!(refused(|packet| packet.last_segment_mut().data_mut()[0] = 1));
        assert!(refused(|packet| packet.set_offload(Some(Offload::default()))));
        assert!(refused(|packet| packet.set_origin(1)));
    }

    /// Each frame goes to three cores at once, which read it and free it, or make it their own, scribble over it and
    /// free that, at the same time. Whoever frees too early, twice or never is found by the bytes or the count.
    #[test]
    fn cores_that_free_at_the_same_time_return_each_buffer_once() {
        const FRAMES: u32 = 20_000;
        let (pool, mut cache) = pool(1024);
        let cores = [0u32, 1, 2].map(|core| {
            let (tx, rx) = sync_channel::<(u32, PacketBuf)>(64);
            let mut cache = pool.cache();
            let body = move || {
                for (number, mut packet) in rx {
                    let mut expected = number.to_le_bytes().to_vec();
                    expected.extend([number as u8; 56]);
                    if packet.total_len() > 60 {
                        expected.extend([!number as u8; 50]);
                    }
                    assert!(packet.segments().flatten().eq(&expected), "frame {number} at core {core}");
                    if (number + core) % 3 == 0 && packet.make_own(&mut cache).is_ok() {
                        packet.data_mut().fill(0xff);
                    }
                    if (number + core) % 5 == 0 { drop(packet) } else { cache.free(packet) }
                }
            };
            (tx, std::thread::spawn(body))
        });
        let mut number = 0;
        while number < FRAMES {
            let Some(mut packet) = cache.alloc() else {
                std::thread::yield_now();
                continue;
            };
            packet.append(&number.to_le_bytes()).unwrap();
            packet.append(&[number as u8; 56]).unwrap();
            if number % 4 == 0
                && let Some(mut tail) = cache.alloc()
            {
                tail.append(&[!number as u8; 50]).unwrap();
                packet.chain(tail);
            }
            let copies = [packet.share(), packet.share()];
            let handles = copies.into_iter().chain([packet]);
            cores.iter().zip(handles).for_each(|((tx, _), packet)| tx.send((number, packet)).unwrap());
            number += 1;
        }
        for (tx, thread) in cores {
            drop(tx);
            thread.join().unwrap();
        }
        drop(cache);
        assert_eq!(pool.counts().out, 0);
    }
}
