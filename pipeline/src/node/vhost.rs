//! The node's vhost ports: opened with it, and opened anew when the code of one has panicked.
//!
//! A panic inside a queue half is caught by its core, which goes on with everything else. Here the port of that half
//! is then closed and opened again, as if the node had just started it: the guest's machine reconnects.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spp_drivers::port::{RxQueue, TxQueue};
use spp_drivers::stats::SharedStats;
use spp_vhost::{PortConfig, PortState, PortStatus, VhostPort};

use super::build::offer_file;
use super::switchboard::Halves;
use super::{Node, NodeError, queues};
use crate::names::PortName;
use crate::status::Counters;

/// Pause before a port is reset once more: doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What the node knows of a vhost port beside the port itself.
pub(super) struct VhostLife {
    /// Counters of its pairs of halves, to and from the guest.
    pub stats: Vec<[SharedStats; 2]>,
    /// Pairs of halves for queues by name; all other queues are with pair 0.
    pub halves: BTreeMap<PortName, usize>,
    /// Panics of the halves that led to a reset.
    seen: u64,
    /// It is off its cores until it is opened again.
    pub down: bool,
    /// Times it was reset after a panic.
    pub resets: u64,
    pause: Duration,
    not_before: Option<Instant>,
    /// The old port on its way out.
    closing: Option<JoinHandle<()>>,
    /// What the halves before the last reset had counted, to and from the guest.
    pub before: [Counters; 2],
    panics_before: u64,
    /// The port's last status before it was closed, without its counters.
    pub last: Option<PortStatus>,
}

impl VhostLife {
    /// Panics of its halves, ever.
    pub fn all_panics(&self) -> u64 {
        self.panics_before + if self.down { 0 } else { self.panics() }
    }

    /// Waits for the old port's end, which comes in seconds at the latest.
    pub fn wait_closed(&mut self) {
        if let Some(closing) = self.closing.take()
            && closing.join().is_err()
        {
            tracing::error!("closing a port has panicked");
        }
    }

    fn can_t_open(&mut self, name: PortName, text: String) {
        let Some(last) = self.last.as_mut().filter(|last| last.last_failure.as_ref() != Some(&text)) else {
            return;
        };
        tracing::error!(port = %name, error = text, "the port can't be opened again; trying on");
        last.state = PortState::Failed(text.clone());
        last.last_failure = Some(text);
    }

    fn panics(&self) -> u64 {
        self.stats.iter().flatten().map(|stats| stats.panics.get()).sum()
    }
}

impl Node {
    pub(super) fn open_vhosts(&mut self) -> Result<(), NodeError> {
        for id in 0..self.config.n_vhost() {
            let (port, stats) = self.open_vhost(id)?;
            self.vhosts.push(Some(port));
            self.vhost_lives.push(VhostLife {
                stats: vec![stats],
                halves: BTreeMap::new(),
                seen: 0,
                down: false,
                resets: 0,
                pause: FIRST_PAUSE,
                not_before: None,
                closing: None,
                before: Default::default(),
                panics_before: 0,
                last: None,
            });
        }
        Ok(())
    }

    /// Plugged vhosts whose guest is not there: no frontend is connected.
    pub fn awaited(&self) -> Vec<u32> {
        let awaited = |vhost: &u32| {
            let port = self.vhosts.get(*vhost as usize).and_then(Option::as_ref);
            port.is_some_and(|port| matches!(port.status().state, PortState::Waiting | PortState::Failed(_)))
        };
        self.topology.plugs().keys().copied().filter(awaited).collect()
    }

    /// Opens a port and parks its halves.
    fn open_vhost(&mut self, id: u32) -> Result<(VhostPort, [SharedStats; 2]), NodeError> {
        let name = PortName::Vhost(id);
        let path = self.options.vhost_dir.join(format!("sock{id}"));
        let offer_file = self.options.state_dir.as_ref().map(|dir| offer_file(dir, &path));
        let role = self.options.vhost_role;
        let config = PortConfig { offer_file, ..PortConfig::new(name.to_string(), path, role) };
        let (port, to_guest, from_guest) = VhostPort::open(config, &self.pool)?;
        let stats = [to_guest.stats(), from_guest.stats()];
        self.board.live.insert(name, to_guest.live());
        self.board.parked.rx.insert(name, Box::new(from_guest));
        self.board.parked.tx.insert(name, Box::new(to_guest));
        Ok((port, stats))
    }

    /// Resets the ports whose code has panicked. Called by the tick.
    pub(super) fn watch_vhosts(&mut self, now: Instant) {
        for id in 0..self.vhost_lives.len() {
            let life = &mut self.vhost_lives[id];
            let panics = life.panics();
            if panics > life.seen && life.not_before.is_none_or(|at| now >= at) {
                life.seen = panics;
                life.down = true;
                life.not_before = Some(now + life.pause);
                life.pause = (life.pause * 2).min(LONGEST_PAUSE);
                tracing::error!(port = %PortName::Vhost(id as u32), panics, "its code panicked: the port is reset");
            }
            if self.vhost_lives[id].down {
                self.reset_vhost(id as u32);
            }
        }
    }

    /// Takes a port off its cores, closes it and opens it again. What fails, or is not done yet, is tried again by the next tick.
    fn reset_vhost(&mut self, id: u32) {
        let (name, index) = (PortName::Vhost(id), id as usize);
        if self.vhosts[index].is_some() && !self.begin_close(id) {
            return;
        }
        let life = &mut self.vhost_lives[index];
        if life.closing.as_ref().is_some_and(|closing| !closing.is_finished()) {
            return;
        }
        life.wait_closed();
        match self.open_vhost(id) {
            Ok((port, stats)) => {
                self.vhosts[index] = Some(port);
                let life = &mut self.vhost_lives[index];
                (life.stats, life.seen, life.down) = (vec![stats], 0, false);
                life.resets += 1;
                queues::ports(id).for_each(|port| self.board.found(port));
                self.settle_or_note();
            }
            Err(error) => self.vhost_lives[index].can_t_open(name, error.to_string()),
        }
    }

    /// Takes a port off its cores and has it closed by a thread of its own: halves whose code has panicked may panic again, or not
    /// answer, and this thread has other ports to serve. False when a core does not give its half back.
    fn begin_close(&mut self, id: u32) -> bool {
        let (name, index) = (PortName::Vhost(id), id as usize);
        self.settle_or_note();
        let there = |port: &PortName| *port == name || self.vhost_lives[index].halves.contains_key(port);
        if !queues::ports(id).filter(there).all(|port| self.board.gives_back(port)) {
            return false;
        }
        let Some(port) = self.vhosts[index].take() else { return true };
        let mut last = port.status();
        let halves = self.board.parked.take_all(queues::ports(id));
        queues::ports(id).for_each(|port| {
            self.board.live.remove(&port);
        });
        let life = &mut self.vhost_lives[index];
        // Closed before it is opened again: with both open they would be in each other's way at the socket.
        let closer = std::thread::Builder::new().name(format!("close-{name}"));
        match closer.spawn(move || close(port, halves)) {
            Ok(closing) => life.closing = Some(closing),
            // Dropped with the port, which tells its thread to end.
            Err(error) => tracing::error!(port = %name, %error, "no thread to close it"),
        }
        let counted = [std::mem::take(&mut last.to_guest), std::mem::take(&mut last.from_guest)];
        for (sum, last) in life.before.iter_mut().zip(counted) {
            sum.add(last.into());
        }
        life.panics_before += life.seen;
        life.halves.clear();
        life.last = Some(last);
        true
    }
}

/// Closes a port whose halves may panic when they are asked for their rings: one that does is dropped.
pub(super) fn close(port: VhostPort, halves: Halves) {
    let (mut rx, mut tx) = (halves.rx, halves.tx);
    let answers = |serve: &mut dyn FnMut()| catch_unwind(AssertUnwindSafe(serve)).is_ok();
    port.close_with(|| {
        rx.retain_mut(|half| answers(&mut || half.poll_control()));
        tx.retain_mut(|half| answers(&mut || half.poll_control()));
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use spp_drivers::dma::PoolCache;
    use spp_drivers::{Burst, MacAddr};
    use spp_vhost::Role;
    use spp_vhost::guest::{Guest, GuestConfig};

    use super::*;
    use crate::config::NodeConfig;
    use crate::node::NodeOptions;
    use crate::node::switchboard::Parked;
    use crate::topology::Plug;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// A port's half that panics once when it is told to.
    struct Bomb<Q> {
        half: Q,
        armed: Arc<AtomicBool>,
    }

    impl<Q> Bomb<Q> {
        fn tick(&self) {
            assert!(!self.armed.swap(false, Ordering::Relaxed), "a bug in the port's code");
        }
    }

    impl RxQueue for Bomb<Box<dyn RxQueue>> {
        fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
            self.tick();
            self.half.rx_burst(pool, out)
        }
        fn poll_control(&mut self) {
            self.half.poll_control();
        }
        fn stats(&self) -> SharedStats {
            self.half.stats()
        }
    }

    impl TxQueue for Bomb<Box<dyn TxQueue>> {
        fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
            self.tick();
            self.half.tx_burst(pool, from)
        }
        fn poll_control(&mut self) {
            self.half.poll_control();
        }
        fn stats(&self) -> SharedStats {
            self.half.stats()
        }
    }

    fn until(node: &mut Node, what: &str, mut done: impl FnMut(&mut Node) -> bool) {
        let start = Instant::now();
        while !done(node) {
            assert!(start.elapsed() < DEADLINE, "{what}: {:#?}", node.status());
            node.tick();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn guest(node: &mut Node, vhost: u32) -> Guest {
        let path = node.options.vhost_dir.join(format!("sock{vhost}"));
        let guest = std::thread::spawn(move || Guest::attach(GuestConfig::new(path, Role::Server), DEADLINE));
        until(node, "the guest is attached", |_| guest.is_finished());
        let guest = guest.join().unwrap().unwrap();
        until(node, "the port runs", |node| node.status().vfs[0].vhosts[vhost as usize].state == "running");
        guest
    }

    fn frame(dst: u8, mark: u8) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, 0xee, 0x88, 0xb5, mark];
        frame.resize(64, 0);
        frame
    }

    /// From a guest to the other, inside: true when it came.
    fn passes(node: &mut Node, from: &mut Guest, to: &mut Guest, dst: u8) -> bool {
        let (start, mut buf) = (Instant::now(), Vec::new());
        while start.elapsed() < DEADLINE {
            from.send(&frame(dst, 1));
            node.tick();
            std::thread::sleep(Duration::from_millis(1));
            if to.receive(&mut buf) {
                return true;
            }
        }
        false
    }

    #[test]
    fn panic_in_one_ports_half_resets_that_port_and_nothing_else() {
        for to_guest in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            // All components on one core: what is not the port's own goes on there.
            let json = serde_json::json!({"vf": [{"num_vhost": 3, "pci_address": "null:", "physical_network": "p",
                "core_mask": "0x3", "components": [
                {"core": 1, "type": "forward", "name": "t0", "rx_port": ["ring:0"], "tx_port": ["vhost:0"]},
                {"core": 1, "type": "forward", "name": "r0", "rx_port": ["vhost:0"], "tx_port": ["ring:1"]},
                {"core": 1, "type": "forward", "name": "t1", "rx_port": ["ring:2"], "tx_port": ["vhost:1"]},
                {"core": 1, "type": "forward", "name": "r1", "rx_port": ["vhost:1"], "tx_port": ["ring:3"]},
                {"core": 1, "type": "forward", "name": "t2", "rx_port": ["ring:4"], "tx_port": ["vhost:2"]},
                {"core": 1, "type": "forward", "name": "r2", "rx_port": ["vhost:2"], "tx_port": ["ring:5"]},
                {"core": 1, "type": "classifier", "name": "c", "rx_port": ["phy:0"],
                 "tx_port": ["ring:0", "ring:2", "ring:4"]},
                {"core": 1, "type": "merge", "name": "m", "rx_port": ["ring:1", "ring:3", "ring:5"],
                 "tx_port": ["phy:0"]}]}]});
            let config = NodeConfig::parse(json.to_string().as_bytes()).unwrap();
            let options =
                NodeOptions { vhost_dir: dir.path().to_owned(), fold_cores: true, ..NodeOptions::default() };
            let mut node = Node::start(config, options).unwrap();
            let (armed, name) = (Arc::new(AtomicBool::new(false)), PortName::Vhost(0));
            node.vhost_lives[0].down = true;
            node.settle().unwrap();
            let Parked { rx, tx } = &mut node.board.parked;
            let (from, to) = (rx.remove(&name).unwrap(), tx.remove(&name).unwrap());
            if to_guest {
                tx.insert(name, Box::new(Bomb { half: to, armed: armed.clone() }));
                rx.insert(name, from);
            } else {
                rx.insert(name, Box::new(Bomb { half: from, armed: armed.clone() }));
                tx.insert(name, to);
            }
            node.vhost_lives[0].down = false;
            for vhost in 0..3 {
                node.plug(&Plug { vhost, mac: MacAddr([2, 0, 0, 0, 0, vhost as u8]), vlan: None }).unwrap();
            }
            assert_eq!(node.awaited(), [0, 1, 2]);
            let mut vms: Vec<Guest> = (0..3).map(|vhost| guest(&mut node, vhost)).collect();
            assert!(node.awaited().is_empty());
            let [a, b, c] = &mut vms[..] else { unreachable!("three were made") };
            assert!(passes(&mut node, b, a, 0) && passes(&mut node, a, b, 1) && passes(&mut node, b, c, 2));
            let passed = node.status().vfs[0].vhosts[0].to_guest.packets;
            assert!(passed > 0);
            armed.store(true, Ordering::Relaxed);
            // The neighbours' traffic goes on all the while; the bomb needs a packet or a poll to go off.
            let mut round = 0u32;
            until(&mut node, "the port is reset", |node| {
                round += 1;
                b.send(&frame(0, 2));
                if round.is_multiple_of(10) {
                    assert!(passes(node, b, c, 2) && passes(node, c, b, 1));
                }
                node.status().vfs[0].vhosts[0].resets == 1
            });
            assert!(passes(&mut node, b, c, 2));
            drop(vms.remove(0));
            let mut again = guest(&mut node, 0);
            let [b, ..] = &mut vms[..] else { unreachable!("two are left") };
            assert!(passes(&mut node, b, &mut again, 0) && passes(&mut node, &mut again, b, 1));
            let status = node.status();
            let port = &status.vfs[0].vhosts[0];
            assert!(
                port.resets == 1 && port.panics == 1 && port.to_guest.packets > passed,
                "it counts on: {port:?}"
            );
            assert_eq!(status.vfs[0].vhosts[1].resets, 0);
            assert!(status.vfs[0].components.iter().all(|c| c.state == "running"));
            let pool = node.pool().clone();
            drop((node, vms, again));
            assert_eq!(pool.counts().out, 0);
        }
    }
}
