//! Which half has which queues: dealing the queues of a port out to the halves that share it, while they run.
//!
//! A queue is a [`Lane`]: a mailbox with the ring in it. The node's control thread asks the half that has it to give
//! it up, and hands it to the half that is to have it; each end looks when the bell of its direction has rung. A lane on its way
//! is polled by nobody, so its frames wait in the guest's ring for that moment and none is lost. Nothing here waits:
//! [`Dealer::ask`] takes in what has been given up until now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use spp_drivers::spsc::{self, Consumer, Producer};

use crate::lanes::Lane;
use crate::vring::MAX_PAIRS;

/// Requests a half may be behind: as many as there are queues to take and to give.
const SLOTS: usize = 2 * MAX_PAIRS;

/// Whether a half has a queue that the guest takes frames from. Written by the half, read by whoever sends to it.
pub type Live = Arc<CachePadded<AtomicBool>>;

/// What a half is asked for.
pub(crate) enum Move {
    /// This queue is yours.
    Take(Lane),
    /// Somebody else is to have the queue with this number.
    Give(u8),
}

/// The half's end.
pub struct Seat {
    pub(crate) moves: Consumer<Move>,
    pub(crate) given: Producer<Lane>,
}

/// The control thread's end.
struct Place {
    moves: Producer<Move>,
    given: Consumer<Lane>,
}

fn seat() -> (Place, Seat) {
    let (moves_in, moves_out) = spsc::ring(SLOTS);
    let (given_in, given_out) = spsc::ring(MAX_PAIRS);
    (Place { moves: moves_in, given: given_out }, Seat { moves: moves_out, given: given_in })
}

/// Where a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Half(usize),
    /// Its half has been asked for it.
    Leaving,
    /// With the control thread.
    InHand,
}

/// The queues of one direction of a port, and the halves they are dealt out to. Owned by the node's control thread.
pub(crate) struct Dealer {
    /// Rung for all halves of the direction.
    pub bell: Arc<AtomicUsize>,
    /// By number of the half.
    places: Vec<Place>,
    at: [At; MAX_PAIRS],
    in_hand: Vec<Lane>,
    wanted: [usize; MAX_PAIRS],
}

impl Dealer {
    /// A direction whose queue `q` is with half `q % n_halves` from the start.
    pub fn new(n_halves: usize) -> Dealer {
        let wanted = std::array::from_fn(|queue| queue % n_halves);
        Dealer {
            bell: Arc::default(),
            places: Vec::new(),
            at: wanted.map(At::Half),
            in_hand: Vec::new(),
            wanted,
        }
    }

    /// A further half: its number, and its seat.
    pub fn add(&mut self) -> (usize, Seat) {
        let (place, seat) = seat();
        self.places.push(place);
        (self.places.len() - 1, seat)
    }

    /// Says which half each queue is to be with.
    pub fn want(&mut self, wanted: [usize; MAX_PAIRS]) {
        assert!(wanted.iter().all(|half| *half < self.places.len()), "no such half");
        self.wanted = wanted;
    }

    /// Asks for queues that are in the wrong place and takes in those that were given up. True when all of them are in hand.
    pub fn ask(&mut self) -> bool {
        let mut asked = false;
        for queue in 0..MAX_PAIRS {
            let At::Half(half) = self.at[queue] else { continue };
            if half != self.wanted[queue] {
                self.at[queue] = At::Leaving;
                self.send(half, Move::Give(queue as u8));
                asked = true;
            }
        }
        if asked {
            self.bell.fetch_add(1, Ordering::Release);
        }
        for place in &mut self.places {
            while let Some(lane) = place.given.pop() {
                self.at[lane.queue()] = At::InHand;
                self.in_hand.push(lane);
            }
        }
        !self.at.contains(&At::Leaving)
    }

    /// Gives what is in hand to whom it is wanted by. True when every queue is where it is to be.
    pub fn hand_out(&mut self) -> bool {
        for lane in std::mem::take(&mut self.in_hand) {
            let (queue, to) = (lane.queue(), self.wanted[lane.queue()]);
            self.at[queue] = At::Half(to);
            self.send(to, Move::Take(lane));
        }
        self.bell.fetch_add(1, Ordering::Release);
        self.at.iter().zip(self.wanted).all(|(at, wanted)| *at == At::Half(wanted))
    }

    /// True when a queue is in hand.
    pub fn holds_any(&self) -> bool {
        !self.in_hand.is_empty()
    }

    fn send(&mut self, half: usize, request: Move) {
        // A half that has not looked for long may be asked to take and to give each queue once: that is the room.
        let sent = self.places[half].moves.push(request);
        assert!(sent.is_ok(), "each queue is under way once");
    }
}
