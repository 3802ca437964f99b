//! Taps of a running node: in and out step by step, so that the tapped guest's packets are neither lost nor reordered.

use std::time::{Duration, Instant};

use super::{Node, NodeError};
use crate::names::PortName;
use crate::topology::{Stage, Tap, Way};

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
        if let Err(error) = self.tap_stage(tap, Stage::On) {
            self.end_tap(tap)?;
            return Err(error);
        }
        tracing::info!(%tap, "tapped");
        Ok(())
    }

    /// Ends a tap; one that is not there is fine. The tapped guest's packets go on without loss.
    pub fn untap(&mut self, tap: &Tap) -> Result<(), NodeError> {
        if !self.taps().contains(tap) {
            return Ok(());
        }
        self.tap_stage(tap, Stage::Draining)?;
        self.drain(tap);
        self.tap_stage(tap, Stage::Open)?;
        self.end_tap(tap)?;
        tracing::info!(%tap, "untapped");
        Ok(())
    }

    /// The taps, in the order they came.
    pub fn taps(&self) -> Vec<Tap> {
        self.topology.taps().iter().map(|tapped| tapped.tap).collect()
    }

    fn tap_stage(&mut self, tap: &Tap, stage: Stage) -> Result<(), NodeError> {
        self.edit(|topology| {
            topology.set_tap_stage(tap, stage);
            Ok(())
        })
    }

    fn end_tap(&mut self, tap: &Tap) -> Result<(), NodeError> {
        self.edit(|topology| {
            topology.untap(tap);
            Ok(())
        })?;
        // Copies for the watcher may be left: the next user of the rings must not get them.
        for (_, mirror) in tap.mirrors() {
            self.topology.mirrors()[mirror as usize]
                .rings
                .into_iter()
                .for_each(|ring| self.board.purge(ring));
        }
        Ok(())
    }

    /// Waits until what the mirrors had taken in is with the tapped guest's forwarders.
    fn drain(&mut self, tap: &Tap) {
        let start = Instant::now();
        while start.elapsed() < DRAIN && tap.mirrors().any(|used| self.holds_packets(used)) {
            self.board.tick();
            std::thread::sleep(DRAIN_LOOK);
        }
    }

    fn holds_packets(&mut self, (_, mirror): (Way, u32)) -> bool {
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
        let out = counters.rx.packets.get() + counters.rx.snapshot().total_drops();
        counters.tx.packets.get().saturating_sub(out)
    }
}
