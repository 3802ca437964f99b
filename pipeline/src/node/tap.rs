//! Taps of a running node: in and out step by step, so that the tapped guest's packets are neither lost nor reordered.

use std::time::{Duration, Instant};

use super::{Node, NodeError};
use crate::names::PortName;
use crate::topology::{Stage, Tap};

/// How long packets on their way through a mirror that is taken out get to reach their guest: as long as a
/// forwarder waits for one that takes nothing.
const DRAIN: Duration = Duration::from_millis(100);

/// Time between two looks at a ring that runs empty.
const DRAIN_LOOK: Duration = Duration::from_micros(100);

impl Node {
    /// Mirrors a vhost's packets to another vhost's guest. When it returns, every packet goes through the
    /// mirror; packets that were on their way have not been lost. The same tap again changes nothing.
    pub fn tap(&mut self, tap: &Tap) -> Result<(), NodeError> {
        if self.taps().contains(tap) {
            return Ok(());
        }
        self.edit(|topology| topology.tap(tap))?;
        if let Err(error) = self.tap_stage(tap.mirror, Stage::On) {
            self.end_tap(tap.mirror)?;
            return Err(error);
        }
        tracing::info!(%tap, "tapped");
        Ok(())
    }

    /// Ends a mirror's tap; a mirror without one is fine. The tapped guest's packets go on without loss.
    pub fn untap(&mut self, mirror: u32) -> Result<(), NodeError> {
        if self.topology.tap_of(mirror).is_none() {
            return Ok(());
        }
        self.tap_stage(mirror, Stage::Draining)?;
        self.drain(mirror);
        self.tap_stage(mirror, Stage::Open)?;
        self.end_tap(mirror)?;
        tracing::info!(mirror, "untapped");
        Ok(())
    }

    /// The taps, in the order they came.
    pub fn taps(&self) -> Vec<Tap> {
        self.topology.taps().iter().map(|tapped| tapped.tap).collect()
    }

    fn tap_stage(&mut self, mirror: u32, stage: Stage) -> Result<(), NodeError> {
        self.edit(|topology| {
            topology.set_tap_stage(mirror, stage);
            Ok(())
        })
    }

    fn end_tap(&mut self, mirror: u32) -> Result<(), NodeError> {
        self.edit(|topology| {
            topology.untap(mirror);
            Ok(())
        })?;
        // Copies for the watcher may be left: the next user of the rings must not get them.
        let rings = self.topology.mirrors()[mirror as usize].rings;
        rings.into_iter().for_each(|ring| self.board.purge(ring));
        Ok(())
    }

    /// Waits until what the mirror had taken in is with the tapped guest's forwarder.
    fn drain(&mut self, mirror: u32) {
        let start = Instant::now();
        while start.elapsed() < DRAIN && self.holds_packets(mirror) {
            self.board.tick();
            std::thread::sleep(DRAIN_LOOK);
        }
    }

    fn holds_packets(&mut self, mirror: u32) -> bool {
        let mirror = &self.topology.mirrors()[mirror as usize];
        let (id, back) = (mirror.component.id, mirror.rings[1]);
        // The mirror first: what it no longer holds is in the ring, or through it.
        self.board.component(id).held() > 0 || self.ring_depth(back) > 0
    }

    /// Packets in a ring, give or take a burst.
    pub(super) fn ring_depth(&self, ring: PortName) -> u64 {
        let PortName::Ring(number) = ring else { return 0 };
        let Some(counters) = self.rings.get(number as usize) else { return 0 };
        // Taken out first: what goes in between the two reads must not make the depth negative.
        let out = counters.rx.packets.get();
        counters.tx.packets.get().saturating_sub(out)
    }
}
