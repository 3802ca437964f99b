// UNSAFETY: a ring of uninitialised slots shared by two threads.
//! The one sharing primitive: a bounded ring with a single producer and a single consumer.
//!
//! Packets between cores travel through it, and so do plans, vrings and memory maps
//! between the control thread and the cores. Each end caches the other's index and reads
//! it again only when its cached value says full or empty (2.2 to 2.9 times the rate at bursts of 1, 1.7 to 2.2 at 8, 1.0 to 1.6
//! at 32: `spp-bench --row P6` with and without, in turns); each burst is published once.

use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use crate::prefetch::prefetch;
use crate::sync::{Arc, AtomicUsize, Ordering, UnsafeCell, fence};

struct Shared<T> {
    /// Next slot to write, free-running. Written by the producer only.
    tail: CachePadded<AtomicUsize>,
    /// Next slot to read, free-running. Written by the consumer only.
    head: CachePadded<AtomicUsize>,
    mask: usize,
    slots: Box<[Slot<T>]>,
}

type Slot<T> = UnsafeCell<MaybeUninit<T>>;

// SAFETY: a slot is touched by the producer while it lies in [tail, head + capacity) and by the consumer while it
// lies in [head, tail); the release store and acquire load of the index that hands it over order the two.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The slots from a free-running index on: those to the end of the ring, then those from its beginning.
    #[inline(always)]
    fn from(&self, index: usize) -> [&[Slot<T>]; 2] {
        let (wrapped, to_end) = self.slots.split_at(index & self.mask);
        [to_end, wrapped]
    }

    /// Takes the value out of a slot.
    ///
    /// # Safety
    /// The slot holds a value that is never read again, and the caller is the consumer.
    #[inline(always)]
    unsafe fn read(slot: &Slot<T>) -> T {
        // SAFETY: the slot is initialised and nobody else touches it, by this function's contract.
        slot.with_mut(|slot| unsafe { slot.cast::<T>().read() })
    }

    /// Whether the other end is gone. All it did is visible then.
    fn is_abandoned(this: &Arc<Self>) -> bool {
        let alone = Arc::strong_count(this) == 1;
        if alone {
            // Pairs with the release with which the other end's Arc went: the count itself is read relaxed.
            fence(Ordering::Acquire);
        }
        alone
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let (head, tail) = (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed));
        for slot in self.from(head).into_iter().flatten().take(tail.wrapping_sub(head)) {
            // SAFETY: slots in [head, tail) are initialised, and both ends are gone.
            drop(unsafe { Self::read(slot) });
        }
    }
}

/// The writing end. Owned by one thread.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    cached_head: usize,
}

/// The reading end. Owned by one thread.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    cached_tail: usize,
}

/// Bursts of so many look ahead to the next one: 352 million packets a second and not 295 at 32 (`spp-bench --row P6`, with and without
/// in turns). Shorter ones lose by it: 433 million elements of 8 bytes and not 485 at 8.
const MANY: usize = 16;

/// Slots that begin in one cache line.
const fn slots_per_line<T>() -> usize {
    let bytes = size_of::<T>();
    if bytes == 0 || bytes >= 64 { 1 } else { 64 / bytes }
}

/// A ring of `capacity` slots, a power of two; all of them are usable.
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    ring_from(capacity, 0)
}

/// As [`ring`], with free-running indices that start at `start` (tests start near their wrap).
pub(crate) fn ring_from<T: Send>(capacity: usize, start: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity.is_power_of_two(), "ring capacity is a power of two");
    let shared = Arc::new(Shared {
        tail: CachePadded::new(AtomicUsize::new(start)),
        head: CachePadded::new(AtomicUsize::new(start)),
        mask: capacity - 1,
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
    });
    let producer = Producer { shared: shared.clone(), tail: start, cached_head: start };
    (producer, Consumer { shared, head: start, cached_tail: start })
}

impl<T> Producer<T> {
    /// Slots in the ring.
    pub fn capacity(&self) -> usize {
        self.shared.mask + 1
    }

    /// Slots free at least; looks at the consumer's index only when fewer than `wanted` seem free.
    #[inline(always)]
    pub fn room(&mut self, wanted: usize) -> usize {
        let room = self.capacity() - self.tail.wrapping_sub(self.cached_head);
        if room >= wanted {
            return room;
        }
        self.cached_head = self.shared.head.load(Ordering::Acquire);
        self.capacity() - self.tail.wrapping_sub(self.cached_head)
    }

    /// Writes up to `n` values from `values`, publishes them at once, returns how many fitted.
    /// Takes no more values from the iterator than fit.
    #[inline(always)]
    pub fn push_burst(&mut self, n: usize, values: impl IntoIterator<Item = T>) -> usize {
        let (mut values, n) = (values.into_iter(), n.min(self.room(n)));
        let mut pushed = 0;
        for slots in self.shared.from(self.tail) {
            let run = &slots[..slots.len().min(n - pushed)];
            for (slot, value) in run.iter().zip(values.by_ref()) {
                // SAFETY: no more slots are written than are free (room), and nobody else touches a free slot, since
                // this is the producer.
                slot.with_mut(|slot| unsafe { slot.cast::<T>().write(value) });
                pushed += 1;
            }
        }
        if pushed > 0 {
            self.tail = self.tail.wrapping_add(pushed);
            self.shared.tail.store(self.tail, Ordering::Release);
        }
        pushed
    }

    /// Writes one value, or gives it back when the ring is full.
    #[inline(always)]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.room(1) == 0 {
            return Err(value);
        }
        self.push_burst(1, [value]);
        Ok(())
    }

    /// True when the consumer is gone: nothing pushed will ever be read.
    pub fn is_abandoned(&self) -> bool {
        Shared::is_abandoned(&self.shared)
    }
}

impl<T> Consumer<T> {
    /// Slots in the ring.
    pub fn capacity(&self) -> usize {
        self.shared.mask + 1
    }

    /// Values that can be read now; looks at the producer's index only when fewer than `wanted` are known.
    #[inline(always)]
    pub fn available(&mut self, wanted: usize) -> usize {
        let known = self.cached_tail.wrapping_sub(self.head);
        if known >= wanted {
            return known;
        }
        self.cached_tail = self.shared.tail.load(Ordering::Acquire);
        self.cached_tail.wrapping_sub(self.head)
    }

    /// Reads up to `n` values in order, each handed to `sink`; frees their slots at once; returns how many.
    #[inline(always)]
    pub fn pop_burst(&mut self, n: usize, mut sink: impl FnMut(T)) -> usize {
        let n = n.min(self.available(n));
        if n >= MANY {
            self.look_ahead(n);
        }
        let (head, mut left) = (self.head, n);
        // Moving on first: should the sink panic, the rest is lost, and nothing is read twice.
        self.head = head.wrapping_add(n);
        for slots in self.shared.from(head) {
            let now = left.min(slots.len());
            for slot in &slots[..now] {
                // SAFETY: the slot lies in [head, tail), so the producer has initialised it and left it.
                sink(unsafe { Shared::read(slot) });
            }
            left -= now;
        }
        if n > 0 {
            self.shared.head.store(self.head, Ordering::Release);
        }
        n
    }

    /// Has the slots of the next burst after this one of `n` fetched, as far as they are known to be filled: those that the
    /// producer is still writing would go to and fro.
    #[inline(always)]
    fn look_ahead(&self, n: usize) {
        let known = self.cached_tail.wrapping_sub(self.head).min(2 * n);
        for i in (n..known).step_by(const { slots_per_line::<T>() }) {
            prefetch(&self.shared.slots[self.head.wrapping_add(i) & self.shared.mask]);
        }
    }

    /// Reads one value.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<T> {
        let mut value = None;
        self.pop_burst(1, |v| value = Some(v));
        value
    }

    /// True when the producer is gone; values may still be in the ring.
    pub fn is_abandoned(&self) -> bool {
        Shared::is_abandoned(&self.shared)
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        // After a panic in a sink the shared index lags behind: never read those slots again.
        self.shared.head.store(self.head, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_order_over_the_index_wrap() {
        let (mut tx, mut rx) = ring_from::<u64>(8, usize::MAX - 5);
        let (mut next, mut expected) = (0, 0);
        for round in 0..100 {
            let burst = 1 + round % 8;
            next += tx.push_burst(burst, next..next + burst as u64) as u64;
            rx.pop_burst(1 + round % 5, |v| {
                assert_eq!(v, expected);
                expected += 1;
            });
        }
        assert!(expected > 200);
    }

    #[test]
    fn full_ring_takes_what_fits_and_leaves_the_rest() {
        let (mut tx, mut rx) = ring_from::<u64>(4, usize::MAX - 1);
        let mut values = 0..10;
        assert_eq!(tx.push_burst(10, values.by_ref()), 4);
        assert_eq!(values.next(), Some(4), "no value is taken that does not fit");
        assert_eq!(tx.push(99), Err(99));
        assert_eq!(rx.pop(), Some(0));
        assert_eq!(tx.push(99), Ok(()));
    }

    #[test]
    fn values_left_in_a_dropped_ring_are_dropped_once() {
        let counter = Arc::new(());
        let (mut tx, mut rx) = ring(8);
        for _ in 0..5 {
            tx.push(counter.clone()).unwrap();
        }
        drop(rx.pop());
        assert!(!tx.is_abandoned());
        drop(rx);
        assert!(tx.is_abandoned());
        drop(tx);
        assert_eq!(Arc::strong_count(&counter), 1);
    }

    #[test]
    fn two_threads_pass_a_million_values_in_order() {
        let n = if cfg!(miri) { 500 } else { 1_000_000 };
        let (mut tx, mut rx) = ring::<u64>(256);
        let producer = std::thread::spawn(move || {
            let mut next = 0;
            while next < n {
                let pushed = tx.push_burst(32, next..n);
                next += pushed as u64;
                if pushed == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < n {
            let popped = rx.pop_burst(32, |v| {
                assert_eq!(v, expected);
                expected += 1;
            });
            if popped == 0 {
                std::thread::yield_now();
            }
        }
        producer.join().unwrap();
    }
}
