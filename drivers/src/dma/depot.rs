// UNSAFETY: a box is handed from core to core by the number of the cell it lies in.
//! Where the boxes are that no core holds: a stack of full ones and a stack of empty ones, on which cores trade one for the
//! other, whole magazines of free buffers in a pool.
//!
//! What comes back last is taken first, by whichever core: its buffers are still in a cache. Where one component's core
//! takes buffers and the next one's frees them, a queue would lead all of the pool through the caches: frames of 1500 bytes, a
//! thread for each component, are 3.4 to 4.2 million a second at 590 to 670 ticks each, and were 2.8 to 2.9 at 720 to 810
//! (`spp-bench --row P3`, in turns).
//!
//! A trade takes a cell off one stack, swaps the box in it with the core's own and puts the cell onto the other. Whoever took a cell
//! off a stack is its one owner until the cell is on a stack again. No core ever waits for another one: of two that meet on a
//! stack one gets through.

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell};

/// The number of no cell.
const NONE: u32 = u32::MAX;

/// A stack of cells: the number of the topmost one and, above that, how often the stack was changed. A core that was held up
/// between two looks sees that, though the same cell may lie on top again.
struct Stack(CachePadded<AtomicU64>);

impl Stack {
    fn new(top: u32) -> Stack {
        Stack(CachePadded::new(AtomicU64::new(u64::from(top))))
    }

    /// What the stack is after one more change.
    fn changed(head: u64, top: u32) -> u64 {
        ((head >> 32).wrapping_add(1) << 32) | u64::from(top)
    }

    fn pop<T>(&self, cells: &[Cell<T>]) -> Option<u32> {
        // Acquire: the cell and what lies in it are as they were put here.
        let mut head = self.0.load(Ordering::Acquire);
        loop {
            let top = head as u32;
            // May be of a later time than `head`, which is not the stack's any more then.
            let below = cells.get(top as usize)?.next.load(Ordering::Relaxed);
            let after = Self::changed(head, below);
            match self.0.compare_exchange(head, after, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(top),
                Err(now) => head = now,
            }
        }
    }

    fn push<T>(&self, cells: &[Cell<T>], cell: u32) {
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            cells[cell as usize].next.store(head as u32, Ordering::Relaxed);
            let after = Self::changed(head, cell);
            // Release: whoever takes the cell sees what lies in it.
            match self.0.compare_exchange(head, after, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

struct Cell<T> {
    /// The cell below, or [`NONE`].
    next: AtomicU32,
    content: UnsafeCell<Box<T>>,
}

/// Boxes to trade, as many as there were full ones at first.
pub struct Depot<T> {
    full: Stack,
    empty: Stack,
    n_full: AtomicU32,
    cells: Box<[Cell<T>]>,
}

// SAFETY: a box is touched by the thread that took its cell off a stack, and by no other before the cell is on a stack again
// (Depot::trade); so it is only ever moved between threads.
unsafe impl<T: Send> Sync for Depot<T> {}

impl<T> Depot<T> {
    /// With these on the stack of full ones, the first on top. There are fewer than 2^32 - 1: so many numbers have cells.
    pub fn new(full: impl IntoIterator<Item = Box<T>>) -> Depot<T> {
        let cell = |(below, content)| Cell { next: AtomicU32::new(below), content: UnsafeCell::new(content) };
        let mut cells: Box<[_]> = (1..NONE).zip(full).map(cell).collect();
        if let Some(last) = cells.last_mut() {
            last.next = AtomicU32::new(NONE);
        }
        let n_full = AtomicU32::new(cells.len() as u32);
        let top = if cells.is_empty() { NONE } else { 0 };
        Depot { full: Stack::new(top), empty: Stack::new(NONE), n_full, cells }
    }

    /// Full boxes in it. Exact when nobody trades.
    pub fn n_full(&self) -> usize {
        self.n_full.load(Ordering::Relaxed) as usize
    }

    /// Trades an empty box for a full one. False when there is none.
    pub fn take_full(&self, mine: &mut Box<T>) -> bool {
        let traded = self.trade(&self.full, &self.empty, mine);
        if traded {
            self.n_full.fetch_sub(1, Ordering::Relaxed);
        }
        traded
    }

    /// Trades a full box for an empty one. False when there is none.
    pub fn give_full(&self, mine: &mut Box<T>) -> bool {
        // Counted before anybody can take it: the count never falls below 0.
        self.n_full.fetch_add(1, Ordering::Relaxed);
        let traded = self.trade(&self.empty, &self.full, mine);
        if !traded {
            self.n_full.fetch_sub(1, Ordering::Relaxed);
        }
        traded
    }

    fn trade(&self, from: &Stack, to: &Stack, mine: &mut Box<T>) -> bool {
        let Some(cell) = from.pop(&self.cells) else { return false };
        // SAFETY: the cell is on neither stack, and this thread took it off: nobody else has its content.
        self.cells[cell as usize].content.with_mut(|theirs| unsafe { std::ptr::swap(theirs, mine) });
        to.push(&self.cells, cell);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depot(n: u32) -> Depot<u32> {
        Depot::new((1..=n).map(Box::new))
    }

    #[test]
    fn what_was_given_last_is_taken_first() {
        let depot = depot(3);
        let [mut a, mut b, mut c] = [0, 0, 0].map(Box::new);
        assert!(depot.take_full(&mut a) && depot.take_full(&mut b));
        assert_eq!((*a, *b, depot.n_full()), (1, 2, 1), "the first ones were on top");
        assert!(depot.give_full(&mut a) && depot.give_full(&mut b));
        assert_eq!((*a, *b, depot.n_full()), (0, 0, 3));
        assert!(depot.take_full(&mut a) && depot.take_full(&mut b) && depot.take_full(&mut c));
        assert_eq!((*a, *b, *c), (2, 1, 3));
    }

    #[test]
    fn without_a_box_to_trade_nothing_is_done() {
        let (depot, none) = (depot(1), Depot::<u32>::new([]));
        let (mut mine, mut other) = (Box::new(9), Box::new(0));
        assert!(!depot.give_full(&mut mine), "all of its boxes are full");
        assert!(!none.give_full(&mut mine) && !none.take_full(&mut mine));
        assert_eq!((*mine, depot.n_full(), none.n_full()), (9, 1, 0));
        assert!(depot.take_full(&mut other) && !depot.take_full(&mut mine), "it had one only");
        assert_eq!((*mine, *other, depot.n_full()), (9, 1, 0));
    }

    #[test]
    fn changes_are_counted_beyond_the_end_of_the_counter() {
        let depot = depot(2);
        depot.full.0.fetch_or(u64::from(u32::MAX - 1) << 32, Ordering::Relaxed);
        let mut mine = Box::new(0);
        for _ in 0..4 {
            assert!(depot.take_full(&mut mine));
            assert_eq!((*mine, depot.n_full()), (1, 1));
            assert!(depot.give_full(&mut mine));
            assert_eq!((*mine, depot.n_full()), (0, 2));
        }
    }

    #[test]
    fn many_cores_trade_and_every_box_is_somewhere() {
        let depot = depot(8);
        let trade = |depot: &Depot<u32>| {
            let (mut mine, mut other) = (Box::new(0), Box::new(0));
            for _ in 0..20_000 {
                if depot.take_full(&mut mine) {
                    if depot.take_full(&mut other) {
                        assert_ne!(mine, other);
                        assert!(depot.give_full(&mut other), "two were taken, so two are empty");
                    }
                    assert!(depot.give_full(&mut mine));
                }
                assert_eq!((*mine, *other), (0, 0));
            }
        };
        std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(|| trade(&depot)))));
        let mut left: Vec<_> = (0..depot.n_full())
            .map(|_| {
                let mut mine = Box::new(0);
                assert!(depot.take_full(&mut mine));
                *mine
            })
            .collect();
        left.sort_unstable();
        assert_eq!(left, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
