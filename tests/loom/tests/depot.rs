//! The depot of free buffers in every interleaving: a box is one core's at a time, and none is lost.

use loom::thread;
use spp_loom::depot::Depot;
use spp_loom::explore;
use spp_loom::sync::Arc;

fn depot(n: u32) -> Arc<Depot<u32>> {
    Arc::new(Depot::new((1..=n).map(Box::new)))
}

/// All full boxes that are left, sorted.
fn left(depot: &Depot<u32>) -> Vec<u32> {
    let mut left = Vec::new();
    loop {
        let mut mine = Box::new(0);
        if !depot.take_full(&mut mine) {
            left.sort_unstable();
            return left;
        }
        left.push(*mine);
    }
}

/// What cores hold and what is left are boxes 1 to 3, each once.
fn assert_each_once(depot: &Depot<u32>, held: impl IntoIterator<Item = u32>) {
    let mut all = left(depot);
    all.extend(held);
    all.sort_unstable();
    assert_eq!(all, [1, 2, 3]);
}

#[test]
fn two_cores_that_take_at_once_get_different_boxes() {
    explore(|| {
        let depot = depot(3);
        let take = |depot: &Depot<u32>| {
            let mut mine = Box::new(0);
            assert!(depot.take_full(&mut mine));
            *mine
        };
        let other = thread::spawn({
            let depot = depot.clone();
            move || take(&depot)
        });
        let mine = take(&depot);
        assert_each_once(&depot, [mine, other.join().unwrap()]);
    });
}

/// One takes two and gives the first back, so that the same cell lies on top again, with another one below: whoever took a look
/// before must not believe it.
#[test]
fn cell_that_is_on_top_again_is_not_mistaken_for_the_same_stack() {
    explore(|| {
        let depot = depot(3);
        let other = thread::spawn({
            let depot = depot.clone();
            move || {
                let [mut a, mut b] = [Box::new(0), Box::new(0)];
                assert!(depot.take_full(&mut a) && depot.take_full(&mut b));
                assert!(depot.give_full(&mut b));
                *a
            }
        });
        let mut mine = Box::new(0);
        let took = depot.take_full(&mut mine);
        let others = other.join().unwrap();
        assert_each_once(&depot, took.then_some(*mine).into_iter().chain([others]));
    });
}

#[test]
fn what_one_core_gives_back_another_finds_as_it_was_written() {
    explore(|| {
        let depot = depot(1);
        let add_one = |depot: &Depot<u32>| {
            let mut mine = Box::new(0);
            if depot.take_full(&mut mine) {
                *mine += 1;
                assert!(depot.give_full(&mut mine), "one was taken");
            }
        };
        let other = thread::spawn({
            let depot = depot.clone();
            move || add_one(&depot)
        });
        add_one(&depot);
        other.join().unwrap();
        let left = left(&depot);
        assert!(left == [2] || left == [3], "{left:?}");
    });
}
