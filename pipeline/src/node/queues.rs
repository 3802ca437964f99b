//! Queues of vhosts as ports of their own: halves for them, and which of a port's halves has which queue.
//!
//! Every port starts with one pair of halves that has all its queues, `vhost:0`. The first time a component that runs has a
//! queue by name, a pair for that name is made, which stays for good; queues then move between the pairs as the
//! wiring asks, on the running port.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::MAX_PAIRS;

use super::{Node, NodeError};
use crate::compile::{Running, Wiring, queue_owners};
use crate::names::PortName;
use crate::topology::{ComponentId, Direction};

/// How long packets on their way to a queue that is taken from its component get: as long as forwarders wait for a guest
/// that takes nothing.
const DRAIN: Duration = Duration::from_millis(100);

/// Time between two looks at what is still moving.
const LOOK: Duration = Duration::from_micros(100);

/// All names of a vhost's halves.
pub(super) fn ports(vhost: u32) -> impl Iterator<Item = PortName> {
    let queues = (0..MAX_PAIRS as u16).map(move |queue| PortName::VhostQueue(vhost, queue));
    [PortName::Vhost(vhost)].into_iter().chain(queues)
}

impl Node {
    /// Makes halves for queues that have none of their own yet, and parks them.
    pub(super) fn add_queue_halves(&mut self, wanted: &Wiring) {
        for (_, name) in wanted.named_queues() {
            let PortName::VhostQueue(vhost, queue) = name else { continue };
            let index = vhost as usize;
            let (Some(port), life) = (&mut self.vhosts[index], &mut self.vhost_lives[index]) else {
                continue;
            };
            if life.halves.contains_key(&name) {
                continue;
            }
            let halves = port.add_halves();
            life.halves.insert(name, halves.number);
            life.stats.push([halves.to_guest.stats(), halves.from_guest.stats()]);
            tracing::info!(port = %PortName::Vhost(vhost), queue, "the queue is a port of its own");
            self.board.live.insert(name, halves.to_guest.live());
            self.board.parked.rx.insert(name, Box::new(halves.from_guest));
            self.board.parked.tx.insert(name, Box::new(halves.to_guest));
        }
    }

    /// Before a component loses a queue it sends to: packets no longer go its way, and those that do are let through.
    pub(super) fn drain_leaving_queues(&mut self, wanted: &Wiring) -> Result<(), NodeError> {
        let sends = |wiring: &Wiring| -> BTreeSet<PortName> {
            let ends = wiring.named_queues().into_iter();
            ends.filter(|(direction, _)| *direction == Direction::Tx).map(|(_, port)| port).collect()
        };
        let now = self.board.running();
        let leaving: BTreeSet<PortName> = sends(now).difference(&sends(wanted)).copied().collect();
        let without = now.without_shares(&leaving);
        if without == *now {
            return Ok(());
        }
        let ways = ways_to(now, &leaving);
        self.board.settle(&without)?;
        self.let_through(&ways);
        Ok(())
    }

    /// Moves each queue to the half that has it in what runs now. What a guest sent by a queue that moves is through the rings
    /// before its next packets come by others. `before`: what ran until now.
    pub(super) fn deal_queues(&mut self, before: &Wiring) -> Result<(), NodeError> {
        let named = [Direction::Tx, Direction::Rx].map(|direction| self.board.running().ports(direction));
        let start = Instant::now();
        let mut late = None;
        for id in 0..self.vhosts.len() {
            let (port, life) = (&mut self.vhosts[id], &self.vhost_lives[id]);
            // One that was never split has nothing to move.
            let Some(port) = port.as_mut().filter(|_| !life.halves.is_empty() && !life.down) else {
                continue;
            };
            let number = |owner: PortName| life.halves.get(&owner).copied().unwrap_or(0);
            let wanted = named.each_ref().map(|named| queue_owners(id as u32, named).map(number));
            while !port.gather(wanted) && start.elapsed() < self.options.change_deadline {
                self.board.tick();
                std::thread::sleep(LOOK);
            }
            if let [_, true] = port.has_gathered() {
                let ways = ways_from(before, id as u32).and(ways_from(self.board.running(), id as u32));
                self.let_through(&ways);
            }
            if !self.vhosts[id].as_mut().is_none_or(|port| port.hand_out()) {
                late = Some(PortName::Vhost(id as u32));
            }
        }
        self.board.tick();
        late.map_or(Ok(()), |port| Err(NodeError::Held(port)))
    }

    /// Waits until what is in these rings and components now has left them.
    fn let_through(&mut self, ways: &Ways) {
        let start = Instant::now();
        let wait_for = |node: &mut Node, done: &dyn Fn(&mut Node) -> bool| {
            while start.elapsed() < DRAIN && !done(node) {
                node.board.tick();
                std::thread::sleep(LOOK);
            }
        };
        for &id in &ways.components {
            wait_for(self, &|node| node.board.component(id).held() == 0);
        }
        for &ring in &ways.rings {
            let Some(counters) = self.rings.get(ring as usize) else { continue };
            let in_it = counters.tx.packets.get();
            wait_for(self, &|node| node.rings[ring as usize].rx.packets.get() >= in_it);
        }
        // The last of them may be with a component that holds them for a full output.
        for &id in &ways.components {
            wait_for(self, &|node| node.board.component(id).held() == 0);
        }
    }
}

/// Rings, and components that send to them or take from them.
#[derive(Default)]
struct Ways {
    rings: BTreeSet<u32>,
    components: BTreeSet<ComponentId>,
}

impl Ways {
    fn and(mut self, mut other: Ways) -> Ways {
        self.rings.append(&mut other.rings);
        self.components.append(&mut other.components);
        self
    }
}

/// Between a guest and the components that have its packets behind their first ring.
fn ways_from(wiring: &Wiring, vhost: u32) -> Ways {
    let takes = |running: &&Running| running.rx.iter().any(|rx| rx.port.vhost() == Some(vhost));
    let mut ways = Ways::default();
    for running in wiring.all().filter(takes) {
        ways.components.insert(running.id);
        ways.rings.extend(running.tx.iter().filter_map(|tx| ring(tx.port)));
    }
    ways
}

fn ring(port: PortName) -> Option<u32> {
    match port {
        PortName::Ring(number) => Some(number),
        _ => None,
    }
}

/// Between where packets are spread and these ports.
fn ways_to(wiring: &Wiring, ports: &BTreeSet<PortName>) -> Ways {
    let (mut ways, mut ends) = (Ways::default(), ports.clone());
    while let Some(end) = ends.pop_first() {
        for running in wiring.all().filter(|running| running.tx.iter().any(|tx| tx.port == end)) {
            let spreads = running.tx.iter().any(|tx| tx.share.is_some());
            if spreads || !ways.components.insert(running.id) {
                continue;
            }
            for number in running.rx.iter().filter_map(|rx| ring(rx.port)) {
                ways.rings.insert(number);
                ends.insert(PortName::Ring(number));
            }
        }
    }
    ways
}
