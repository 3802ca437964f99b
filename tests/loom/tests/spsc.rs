//! The single-producer single-consumer ring in every interleaving.

use std::sync::Arc;

use loom::thread;
use spp_loom::ring_near_wrap;

/// Pops until `n` values came, in order from 0.
fn expect_in_order(rx: &mut spp_loom::spsc::Consumer<Box<u64>>, n: u64, burst: usize) {
    let mut next = 0;
    while next < n {
        let popped = rx.pop_burst(burst, |value| {
            assert_eq!(*value, next);
            next += 1;
        });
        if popped == 0 {
            thread::yield_now();
        }
    }
}

#[test]
fn values_pass_once_and_in_order_over_the_index_wrap_one_at_a_time() {
    loom::model(|| {
        let (mut tx, mut rx) = ring_near_wrap::<Box<u64>>(2);
        let producer = thread::spawn(move || {
            for value in 0..3 {
                let mut value = Box::new(value);
                while let Err(back) = tx.push(value) {
                    value = back;
                    thread::yield_now();
                }
            }
        });
        expect_in_order(&mut rx, 3, 1);
        producer.join().unwrap();
    });
}

#[test]
fn bursts_larger_than_the_ring_pass_in_pieces() {
    loom::model(|| {
        let (mut tx, mut rx) = ring_near_wrap::<Box<u64>>(2);
        let producer = thread::spawn(move || {
            let mut next = 0;
            while next < 4 {
                let pushed = tx.push_burst(4, (next..4).map(Box::new));
                next += pushed as u64;
                if pushed == 0 {
                    thread::yield_now();
                }
            }
        });
        expect_in_order(&mut rx, 4, 4);
        producer.join().unwrap();
    });
}

#[test]
fn values_left_behind_are_dropped_once_whoever_goes_first() {
    loom::model(|| {
        let witness = Arc::new(());
        let (mut tx, mut rx) = ring_near_wrap::<Arc<()>>(2);
        let copies = [witness.clone(), witness.clone()];
        let producer = thread::spawn(move || {
            for copy in copies {
                let _full = tx.push(copy);
            }
        });
        drop(rx.pop());
        drop(rx);
        producer.join().unwrap();
        assert_eq!(Arc::strong_count(&witness), 1);
    });
}

#[test]
fn a_reader_that_sees_the_writer_gone_sees_all_it_wrote() {
    loom::model(|| {
        let (mut tx, mut rx) = ring_near_wrap::<Box<u64>>(2);
        let producer = thread::spawn(move || assert!(tx.push(Box::new(7)).is_ok()));
        while !rx.is_abandoned() {
            thread::yield_now();
        }
        assert_eq!(rx.pop().as_deref(), Some(&7));
        producer.join().unwrap();
    });
}
