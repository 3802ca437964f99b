// UNSAFETY: opens loom's cell, which stands for the segment and is how loom learns who touches it.
//! The count of shared packets in every interleaving: whoever finds itself the only or the last one may write,
//! and nobody reads at that time or later.

use loom::cell::UnsafeCell;
use loom::thread;
use spp_loom::handles::Handles;
use spp_loom::sync::{Arc, AtomicUsize, Ordering};

/// A segment with its count.
#[derive(Default)]
struct Segment {
    handles: Handles,
    bytes: UnsafeCell<u32>,
    n_ends: AtomicUsize,
}

// SAFETY: every access to the bytes goes through the cell, and loom fails the model when two of them meet.
unsafe impl Sync for Segment {}
// SAFETY: as above.
unsafe impl Send for Segment {}

/// A handle, as a packet buffer with the SHARED bit is one.
struct Handle(Arc<Segment>);

impl Handle {
    fn pair() -> [Handle; 2] {
        let segment = Arc::new(Segment::default());
        segment.bytes.with_mut(write);
        segment.handles.start();
        [Handle(segment.clone()), Handle(segment)]
    }

    fn share(&self) -> Handle {
        self.0.handles.add();
        Handle(self.0.clone())
    }

    fn read(&self) {
        // SAFETY: loom checks that nobody writes; that is the point.
        assert_eq!(self.0.bytes.with(|bytes| unsafe { *bytes }), 1);
    }

    /// As a cache frees it: the last one's slot is somebody's to write at once.
    fn free(self) {
        if self.0.handles.remove() {
            self.0.n_ends.fetch_add(1, Ordering::Relaxed);
            self.0.bytes.with_mut(write);
        }
    }

    /// As an edge makes a frame its own when the others are gone.
    fn write_if_only(&self) -> bool {
        let only = self.0.handles.is_only();
        if only {
            self.0.bytes.with_mut(write);
        }
        only
    }
}

fn write(bytes: *mut u32) {
    // SAFETY: loom checks that nobody else has the cell open; that is the point.
    unsafe { *bytes = 1 }
}

#[test]
fn three_cores_free_a_segment_once_and_after_the_last_read() {
    loom::model(|| {
        let [first, second] = Handle::pair();
        let segment = first.0.clone();
        let third = first.share();
        let cores = [second, third].map(|handle| {
            thread::spawn(move || {
                handle.read();
                handle.free();
            })
        });
        first.read();
        first.free();
        cores.into_iter().for_each(|core| core.join().unwrap());
        assert_eq!(segment.n_ends.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn handle_that_is_the_only_one_left_writes_after_all_reads_of_the_others() {
    loom::model(|| {
        let [first, second] = Handle::pair();
        let core = thread::spawn(move || {
            let third = second.share();
            second.read();
            second.free();
            third.read();
            third.free();
        });
        let wrote = first.write_if_only();
        core.join().unwrap();
        assert!(wrote || first.write_if_only(), "the others are gone");
        first.free();
    });
}

#[test]
fn copies_made_while_others_free_keep_the_segment() {
    loom::model(|| {
        let [first, second] = Handle::pair();
        let segment = first.0.clone();
        let core = thread::spawn(move || {
            let third = second.share();
            second.free();
            third.read();
            third.free();
        });
        let fourth = first.share();
        first.free();
        fourth.read();
        fourth.free();
        core.join().unwrap();
        assert_eq!(segment.n_ends.load(Ordering::Relaxed), 1);
    });
}
