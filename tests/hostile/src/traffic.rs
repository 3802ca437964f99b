//! The good neighbour: numbered frames without a pause, on a thread of its own, while a row runs beside it.
//!
//! Frames carry their flow and number and are compared whole, so that one lost, doubled, reordered or damaged is
//! noticed by the frame that follows it. At most [`WINDOW`] are under way in a direction, less than any ring
//! on the way holds: a backend that serves its ports has no reason to lose one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::frontend::Frontend;

/// Frames under way in one direction.
const WINDOW: u64 = 32;
/// The local experimental EtherType (IEEE 802).
const ETHERTYPE: u16 = 0x88b5;
const MAGIC: [u8; 6] = *b"spphst";

/// Address of the wire's end.
pub const WIRE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
/// Address of the port under attack.
pub const VICTIM_MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 0, 0, 1];
/// Address of the neighbour.
pub const NEIGHBOUR_MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 0, 0, 2];

/// Who sends a frame to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// Wire to neighbour.
    ToNeighbour = 1,
    /// Neighbour to wire, or to itself through a port that loops.
    FromNeighbour = 2,
    /// Wire to the attacked port.
    ToVictim = 3,
    /// The attacked port to the wire, or to itself.
    FromVictim = 4,
}

impl Flow {
    fn of(byte: u8) -> Option<Flow> {
        [Flow::ToNeighbour, Flow::FromNeighbour, Flow::ToVictim, Flow::FromVictim]
            .into_iter()
            .find(|flow| *flow as u8 == byte)
    }

    fn addresses(self) -> [[u8; 6]; 2] {
        match self {
            Flow::ToNeighbour => [NEIGHBOUR_MAC, WIRE_MAC],
            Flow::FromNeighbour => [WIRE_MAC, NEIGHBOUR_MAC],
            Flow::ToVictim => [VICTIM_MAC, WIRE_MAC],
            Flow::FromVictim => [WIRE_MAC, VICTIM_MAC],
        }
    }
}

/// A frame of `len` bytes (at least 60) that can be told from all others.
pub fn frame(flow: Flow, number: u64, len: usize) -> Vec<u8> {
    let [to, from] = flow.addresses();
    let mut frame = Vec::with_capacity(len);
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&ETHERTYPE.to_be_bytes());
    frame.extend_from_slice(&MAGIC);
    frame.push(flow as u8);
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend(
        (frame.len()..len.max(60))
            .map(|at| (at as u64).wrapping_mul(7).wrapping_add(number.wrapping_mul(13)) as u8),
    );
    frame
}

/// Flow and number of a frame made by [`frame`] and come through unchanged.
pub fn read_frame(bytes: &[u8]) -> Option<(Flow, u64)> {
    if bytes.get(14..20)? != MAGIC {
        return None;
    }
    let flow = Flow::of(*bytes.get(20)?)?;
    let number = u64::from_be_bytes(*bytes.get(21..)?.first_chunk()?);
    // Addresses may have been swapped on the way; all behind them must be as it was.
    (bytes.get(12..)? == frame(flow, number, bytes.len()).get(12..)?).then_some((flow, number))
}

/// The length of the neighbour's frame `number`: short, long, and in between.
fn len_of(number: u64) -> usize {
    [60, 64, 128, 512, 1500][(number % 5) as usize]
}

/// What others may see of the traffic.
#[derive(Default)]
struct Shared {
    /// Frames arrived, by direction: to the neighbour, from the neighbour.
    arrived: [AtomicU64; 2],
    lost: AtomicU64,
    stop: AtomicBool,
    broken: Mutex<Option<String>>,
}

/// Asks the thread to send frames to the attacked port from the wire.
struct Inject {
    n: usize,
    len: usize,
}

/// The running traffic.
pub struct Traffic {
    shared: Arc<Shared>,
    inject: Sender<Inject>,
    /// Frames of the attacked port, come out at the wire.
    at_wire: Receiver<u64>,
    has_wire: bool,
    has_neighbour: bool,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Starts it. Without a wire every port loops: what goes in comes out of it again. Without a neighbour
    /// there is no traffic, and never any that stands.
    pub fn start(neighbour: Option<Frontend>, wire: Option<Frontend>) -> Traffic {
        Traffic::paced(neighbour, wire, Duration::ZERO)
    }

    /// As [`start`](Self::start), with a pause after each turn: a window's worth of frames goes each way in one.
    pub fn paced(neighbour: Option<Frontend>, wire: Option<Frontend>, pause: Duration) -> Traffic {
        let shared = Arc::new(Shared::default());
        let (inject, injections) = channel();
        let (at_wire_tx, at_wire) = channel();
        let (has_wire, has_neighbour) = (wire.is_some(), neighbour.is_some());
        let mut work = Work {
            neighbour,
            wire,
            shared: shared.clone(),
            injections,
            at_wire: at_wire_tx,
            sent: [0; 2],
            wanted: None,
            next_to_victim: 0,
        };
        let run = move || {
            while !work.shared.stop.load(Ordering::Relaxed) {
                let moved = work.turn();
                if !moved || !pause.is_zero() {
                    std::thread::sleep(pause.max(Duration::from_micros(100)));
                }
            }
        };
        let thread = std::thread::Builder::new().name("neighbour".into()).spawn(run).expect("a thread");
        Traffic { shared, inject, at_wire, has_wire, has_neighbour, thread: Some(thread) }
    }

    /// Frames arrived so far, in the direction that has fewer.
    pub fn arrived(&self) -> u64 {
        let [to, from] = &self.shared.arrived;
        let (to, from) = (to.load(Ordering::Relaxed), from.load(Ordering::Relaxed));
        if self.has_wire { to.min(from) } else { from }
    }

    /// False if the thread itself failed: then nothing it says counts.
    pub fn is_sound(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Whether there is traffic at all.
    pub fn exists(&self) -> bool {
        self.has_neighbour
    }

    /// Frames lost so far.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// What went wrong beside losses: a frame out of order or damaged.
    pub fn broken(&self) -> Option<String> {
        self.shared.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there is a wire to inject from.
    pub fn has_wire(&self) -> bool {
        self.has_wire
    }

    /// Sends `n` frames of `len` bytes from the wire to the attacked port.
    pub fn inject(&self, n: usize, len: usize) {
        let _ = self.inject.send(Inject { n, len });
    }

    /// Numbers of the attacked port's good frames that came out at the wire since the last look.
    pub fn seen_at_wire(&self) -> Vec<u64> {
        self.at_wire.try_iter().collect()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Work {
    neighbour: Option<Frontend>,
    wire: Option<Frontend>,
    shared: Arc<Shared>,
    injections: Receiver<Inject>,
    at_wire: Sender<u64>,
    /// Frames sent, by direction.
    sent: [u64; 2],
    /// An injection under way.
    wanted: Option<Inject>,
    next_to_victim: u64,
}

impl Work {
    /// Sends what the windows allow and receives what came; false when nothing moved.
    fn turn(&mut self) -> bool {
        let mut moved = self.inject();
        if let Some(wire) = &mut self.wire {
            moved |= fill(wire, Flow::ToNeighbour, &mut self.sent[0], &self.shared.arrived[0]);
        }
        if let Some(neighbour) = &mut self.neighbour {
            moved |= fill(neighbour, Flow::FromNeighbour, &mut self.sent[1], &self.shared.arrived[1]);
        }
        while let Some(bytes) = self.neighbour.as_mut().and_then(Frontend::receive) {
            moved = true;
            self.arrived(&bytes, if self.wire.is_some() { Flow::ToNeighbour } else { Flow::FromNeighbour });
        }
        while let Some(bytes) = self.wire.as_mut().and_then(Frontend::receive) {
            moved = true;
            self.arrived(&bytes, Flow::FromNeighbour);
        }
        moved
    }

    fn inject(&mut self) -> bool {
        if self.wanted.is_none() {
            self.wanted = self.injections.try_recv().ok();
        }
        let (Some(wanted), Some(wire)) = (&mut self.wanted, &mut self.wire) else { return false };
        // A burst at a time, so that the neighbour's frames have their turn.
        for _ in 0..wanted.n.min(32) {
            if !wire.send(&frame(Flow::ToVictim, self.next_to_victim, wanted.len)) {
                return false;
            }
            self.next_to_victim += 1;
            wanted.n -= 1;
        }
        if wanted.n == 0 {
            self.wanted = None;
        }
        true
    }

    /// Takes note of a frame that came out where `expected` frames come out. Others may come there too: groups,
    /// and whatever the attacked port sends.
    fn arrived(&self, bytes: &[u8], expected: Flow) {
        match read_frame(bytes) {
            Some((Flow::FromVictim, number)) => drop(self.at_wire.send(number)),
            Some((flow, number)) if flow == expected => {
                let direction = usize::from(flow == Flow::FromNeighbour);
                let arrived = &self.shared.arrived[direction];
                // Numbers count frames, so the number is what should have arrived before: lost frames included.
                let next = arrived.load(Ordering::Relaxed);
                if number < next {
                    return self
                        .complain(format!("frame {number} of {flow:?} came after frame {}", next - 1));
                }
                self.shared.lost.fetch_add(number - next, Ordering::Relaxed);
                arrived.store(number + 1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn complain(&self, what: String) {
        self.shared.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }
}

fn fill(from: &mut Frontend, flow: Flow, sent: &mut u64, arrived: &AtomicU64) -> bool {
    let mut moved = false;
    while *sent - arrived.load(Ordering::Relaxed) < WINDOW && from.send(&frame(flow, *sent, len_of(*sent))) {
        *sent += 1;
        moved = true;
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_is_read_back_and_a_changed_one_is_not() {
        let mut bytes = frame(Flow::FromVictim, 77, 200);
        assert_eq!((read_frame(&bytes), bytes.len()), (Some((Flow::FromVictim, 77)), 200));
        bytes[..12].rotate_left(6);
        assert_eq!(read_frame(&bytes), Some((Flow::FromVictim, 77)), "addresses may be swapped");
        bytes[150] ^= 1;
        assert_eq!(read_frame(&bytes), None);
        assert_eq!(read_frame(&bytes[..20]), None);
    }
}
