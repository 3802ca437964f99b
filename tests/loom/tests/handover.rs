//! The hand-over of a ring and its memory between a control thread and a polling half, in every
//! interleaving: no core ever touches memory that has been unmapped, and a late answer loses nothing.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use spp_loom::explore;
use spp_loom::handover::{Command, Handover, Mailbox, NoAnswer, Reply, handover};
use spp_loom::sync::{Arc, PATIENCE};
use spp_loom::vring::{Map, Ring, RingFault, RingMemory};

/// The bell, and what was heard of it.
type Bell = (Arc<AtomicUsize>, usize);

/// Both ends, and the bell between them.
fn pair() -> (Handover, Mailbox, Bell) {
    let bell = Arc::new(AtomicUsize::new(0));
    let (control, mailbox) = handover(bell.clone());
    (control, mailbox, (bell, 0))
}

/// As the halves do it.
fn listen(mailbox: &mut Mailbox, bell: &mut Bell) {
    let rung = bell.0.load(Ordering::Acquire);
    if rung != bell.1 {
        bell.1 = if mailbox.poll() { rung.wrapping_sub(1) } else { rung };
    }
}

/// A core: bursts until it is told to end, or until its turn at the model ends.
fn core(mut mailbox: Mailbox, mut bell: Bell, end: Arc<AtomicBool>) -> thread::JoinHandle<Mailbox> {
    thread::spawn(move || {
        while !end.load(Ordering::Acquire) {
            listen(&mut mailbox, &mut bell);
            if let Some((ring, _enabled)) = mailbox.ring() {
                ring.memory.0.touch();
            }
            thread::yield_now();
        }
        mailbox
    })
}

fn start(handover: &mut Handover) {
    let ring = Ring { memory: RingMemory(Arc::new(Map::default())), log: None };
    assert!(matches!(handover.call(Command::Start(Box::new(ring), true)), Ok(Reply::Ring(None))));
}

#[test]
fn memory_given_up_by_a_core_is_not_touched_by_it_any_more() {
    explore(|| {
        let (mut control, mailbox, bell) = pair();
        let end = Arc::new(AtomicBool::new(false));
        let core = core(mailbox, bell, end.clone());
        start(&mut control);
        let new = RingMemory(Arc::new(Map::default()));
        match control.call(Command::Remap(Box::new(new))) {
            Ok(Reply::Memory(old)) => drop(old), // unmaps
            _ => panic!("the core answers a remap with the old memory"),
        }
        end.store(true, Ordering::Release);
        drop(core.join().unwrap());
    });
}

#[test]
fn a_stopped_ring_comes_back_and_its_memory_can_be_unmapped() {
    explore(|| {
        let (mut control, mailbox, bell) = pair();
        let end = Arc::new(AtomicBool::new(false));
        let core = core(mailbox, bell, end.clone());
        start(&mut control);
        match control.call(Command::Stop) {
            Ok(Reply::Ring(Some(ring))) => drop(ring),
            _ => panic!("the core answers a stop with the ring"),
        }
        assert!(!control.state().is_running());
        end.store(true, Ordering::Release);
        drop(core.join().unwrap());
    });
}

#[test]
fn an_answer_that_comes_too_late_unmaps_nothing_a_core_still_uses() {
    explore(|| {
        let (mut control, mailbox, bell) = pair();
        let end = Arc::new(AtomicBool::new(false));
        let core = core(mailbox, bell, end.clone());
        start(&mut control);
        PATIENCE.store(1, Ordering::Relaxed);
        let first = control.call(Command::Stop);
        PATIENCE.store(usize::MAX, Ordering::Relaxed);
        match first {
            Ok(reply) => drop(reply),
            // The reply to the first stop comes with the one to the second, and its ring ends here.
            Err(NoAnswer) => assert!(matches!(control.call(Command::Stop), Ok(Reply::Ring(None)))),
        }
        end.store(true, Ordering::Release);
        drop(core.join().unwrap());
    });
}

#[test]
fn a_core_that_is_gone_is_an_answer_too() {
    explore(|| {
        let (mut control, mailbox, _bell) = pair();
        let core = thread::spawn(move || drop(mailbox));
        assert!(matches!(control.call(Command::Stop), Err(NoAnswer)));
        core.join().unwrap();
    });
}

#[test]
fn a_fault_is_seen_by_the_control_thread_and_ends_with_the_next_start() {
    explore(|| {
        let (mut control, mut mailbox, mut bell) = pair();
        let core = thread::spawn(move || {
            while mailbox.ring().is_none() {
                listen(&mut mailbox, &mut bell);
                thread::yield_now();
            }
            mailbox.fail(RingFault::Fault);
            assert!(mailbox.ring().is_none());
            while mailbox.ring().is_none() {
                listen(&mut mailbox, &mut bell);
                thread::yield_now();
            }
        });
        start(&mut control);
        while control.state().fault().is_none() {
            thread::yield_now();
        }
        assert!(!control.state().is_running());
        let ring = Ring { memory: RingMemory(Arc::new(Map::default())), log: None };
        assert!(matches!(control.call(Command::Start(Box::new(ring), true)), Ok(Reply::Ring(Some(_)))));
        assert_eq!(control.state().fault(), None);
        core.join().unwrap();
    });
}
