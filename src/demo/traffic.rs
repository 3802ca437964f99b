//! The demo's traffic: every flow at once, never more on its way than the receiver has room for.
//!
//! One thread plays all stations, so sender and receiver share the books. It sends bursts while a flow has
//! room in its window, takes what has arrived, and lets the cores work when there is nothing to do.

use std::time::{Duration, Instant};

use spp_vhost::guest::Guest;

use super::ledger::Ledger;

/// Frames of a flow on their way at most. Two flows end at the wire: together they fit its ring, and each
/// fits the rings between cores.
const WINDOW: u64 = 448;
/// Entries of each station's rings.
pub const STATION_RING: u16 = 1024;
const _: () = assert!(2 * WINDOW < STATION_RING as u64);
const BURST: usize = 32;
/// How long frames may be on their way after the last was sent.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Where a station is connected.
pub trait Port {
    /// Sends one frame; false when there is no room now.
    fn send(&mut self, frame: &[u8]) -> bool;
    /// Takes one frame; false when there is none.
    fn receive(&mut self, frame: &mut Vec<u8>) -> bool;
}

impl Port for Guest {
    fn send(&mut self, frame: &[u8]) -> bool {
        Guest::send(self, frame)
    }

    fn receive(&mut self, frame: &mut Vec<u8>) -> bool {
        Guest::receive(self, frame)
    }
}

/// Stations and books.
pub struct Traffic<'a> {
    ports: Vec<&'a mut dyn Port>,
    frame: Vec<u8>,
}

impl<'a> Traffic<'a> {
    /// Ports by station number.
    pub fn new(ports: Vec<&'a mut dyn Port>) -> Self {
        Traffic { ports, frame: Vec::with_capacity(2048) }
    }

    /// Passes traffic until `until`.
    pub fn run(&mut self, ledger: &mut Ledger, until: Instant) {
        while Instant::now() < until {
            let sent = self.send(ledger);
            if self.receive(ledger) + sent == 0 {
                rest();
            }
        }
    }

    /// Takes what is still on its way, until nothing is or the deadline passes.
    pub fn drain(&mut self, ledger: &mut Ledger) {
        let deadline = Instant::now() + DRAIN_DEADLINE;
        while (0..ledger.flows.len()).any(|i| ledger.in_flight(i) > 0) && Instant::now() < deadline {
            if self.receive(ledger) == 0 {
                rest();
            }
        }
    }

    /// Only takes what arrives, for a while.
    pub fn listen(&mut self, ledger: &mut Ledger, duration: Duration) {
        let until = Instant::now() + duration;
        while Instant::now() < until {
            if self.receive(ledger) == 0 {
                rest();
            }
        }
    }

    /// Sends a frame no station may receive; false when there is no room for it.
    pub fn stray(&mut self, ledger: &Ledger, from: usize, to: usize, vlan: Option<u16>) -> bool {
        ledger.stray(from, to, vlan, &mut self.frame);
        self.ports[from].send(&self.frame)
    }

    fn send(&mut self, ledger: &mut Ledger) -> usize {
        let mut n = 0;
        for flow in 0..ledger.flows.len() {
            let room = WINDOW.saturating_sub(ledger.in_flight(flow)).min(BURST as u64);
            for _ in 0..room {
                ledger.next_frame(flow, &mut self.frame);
                if !self.ports[ledger.sender(flow)].send(&self.frame) {
                    break;
                }
                ledger.sent(flow);
                n += 1;
            }
        }
        n
    }

    fn receive(&mut self, ledger: &mut Ledger) -> usize {
        let mut n = 0;
        for (station, port) in self.ports.iter_mut().enumerate() {
            // Bounded: a port that never runs dry must not starve the others.
            for _ in 0..2 * BURST {
                if !port.receive(&mut self.frame) {
                    break;
                }
                ledger.received(station, &self.frame);
                n += 1;
            }
        }
        n
    }
}

/// Lets the cores have this CPU.
fn rest() {
    std::thread::sleep(Duration::from_micros(50));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::ledger::Station;
    use spp_drivers::MacAddr;
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

    /// Sends into one queue, receives from another; drops every `lose`-th frame.
    struct Pipe {
        out: Queue,
        inward: Queue,
        lose: usize,
        n: usize,
    }

    impl Port for Pipe {
        fn send(&mut self, frame: &[u8]) -> bool {
            self.n += 1;
            if self.lose == 0 || !self.n.is_multiple_of(self.lose) {
                self.out.borrow_mut().push_back(frame.to_vec());
            }
            true
        }

        fn receive(&mut self, frame: &mut Vec<u8>) -> bool {
            let taken = self.inward.borrow_mut().pop_front();
            taken.inspect(|taken| frame.clone_from(taken)).is_some()
        }
    }

    fn run(lose: usize) -> Ledger {
        let (there, back) = (Queue::default(), Queue::default());
        let mut a = Pipe { out: there.clone(), inward: back.clone(), lose, n: 0 };
        let mut b = Pipe { out: back, inward: there, lose: 0, n: 0 };
        let station = |name, last| Station { name, mac: MacAddr([2, 0, 0, 0, 0, last]) };
        let mut ledger =
            Ledger::new(&[station("a", 1), station("b", 2)], &[(0, 1, None, None), (1, 0, None, None)]);
        let mut traffic = Traffic::new(vec![&mut a, &mut b]);
        for _ in 0..100 {
            traffic.send(&mut ledger);
            traffic.receive(&mut ledger);
        }
        while traffic.receive(&mut ledger) > 0 {}
        ledger.close();
        ledger
    }

    #[test]
    fn flows_stay_within_their_window_and_arrive_whole() {
        let ledger = run(0);
        assert!(ledger.faults().is_empty(), "{:?}", ledger.faults());
        assert!(ledger.flows.iter().all(|flow| flow.received == 100 * BURST as u64));
    }

    #[test]
    fn path_that_loses_frames_is_found_out() {
        let ledger = run(7);
        assert!(ledger.flows[0].lost > 0 && ledger.flows[1].lost == 0);
        assert_eq!(ledger.flows[0].sent, ledger.flows[0].received + ledger.flows[0].lost);
    }
}
