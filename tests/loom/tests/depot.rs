//! The depot of free buffers in every interleaving: a box is one core's at a time, and none is lost.

use loom::model::Builder;
use loom::thread;
use spp_loom::depot::Depot;
use spp_loom::sync::Arc;

/// Runs `model` in all interleavings with up to three preemptions.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

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
        let mut all = vec![mine, other.join().unwrap()];
        all.extend(left(&depot));
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3]);
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
        let mut all = vec![other.join().unwrap()];
        all.extend(took.then_some(*mine));
        all.extend(left(&depot));
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3]);
    });
}

#[test]
fn what_one_core_gives_back_another_finds_as_it_was_written() {
    explore(|| {
        let depot = depot(1);
        let other = thread::spawn({
            let depot = depot.clone();
            move || {
                let mut mine = Box::new(0);
                if depot.take_full(&mut mine) {
                    *mine += 1;
                    assert!(depot.give_full(&mut mine), "one was taken");
                }
            }
        });
        let mut mine = Box::new(0);
        if depot.take_full(&mut mine) {
            *mine += 1;
            assert!(depot.give_full(&mut mine), "one was taken");
        }
        other.join().unwrap();
        let left = left(&depot);
        assert!(left == [2] || left == [3], "{left:?}");
    });
}
