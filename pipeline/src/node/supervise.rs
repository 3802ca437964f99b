//! What the control thread does between calls: serves parked halves, watches devices, restarts what failed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spp_drivers::port::HEALTH_INTERVAL;

use super::Node;
use crate::topology::ComponentId;

/// Time between two ticks while a port's control thread may wait for halves that are parked here.
const SHORT_TICK: Duration = Duration::from_millis(5);

/// Pause before a component that panicked gets another try: doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// When a component that panicked gets its next try.
pub(super) struct Retry {
    at: Instant,
    pause: Duration,
}

pub(super) type Retries = BTreeMap<ComponentId, Retry>;

impl Node {
    /// When the next tick is due.
    pub(super) fn tick_interval(&self) -> Duration {
        if self.board.is_waited_for() { SHORT_TICK } else { HEALTH_INTERVAL }
    }

    /// To be called every few milliseconds on the control thread.
    pub fn tick(&mut self) {
        self.tick_at(Instant::now());
    }

    /// The same by the caller's clock.
    pub fn tick_at(&mut self, now: Instant) {
        self.board.tick();
        if now < self.health_due {
            return;
        }
        self.health_due = now + HEALTH_INTERVAL;
        if self.unsettled.is_some() {
            self.settle_or_note();
        }
        self.watch_devices();
        self.watch_vhosts(now);
        self.watch_components(now);
        self.sample_busy(now);
    }

    /// A device at fault is stopped once its queues are off their cores, and started again.
    fn watch_devices(&mut self) {
        for index in 0..self.nics.len() {
            self.nics[index].check();
            if self.nics[index].is_running() {
                continue;
            }
            if self.nics[index].has_queues() {
                // Its queues leave their cores; all else goes on.
                self.settle_or_note();
                if !self.nics[index].ports().all(|port| self.board.gives_back(port)) {
                    continue; // a core that does not answer still has one: never two sets of queues
                }
                self.nics[index].stop(&mut self.board.parked);
            }
            if self.nics[index].wants_restart()
                && self.nics[index].restart(&self.pool, &mut self.board.parked)
            {
                self.nics[index].ports().for_each(|port| self.board.found(port));
                self.settle_or_note();
            }
        }
    }

    /// Gives components that panicked another try.
    fn watch_components(&mut self, now: Instant) {
        let components = self.topology.components();
        let failed = components.filter(|component| self.board.component(component.id).failed());
        let failed: Vec<_> =
            failed.map(|component| (component.id, component.name.clone(), component.core)).collect();
        let still = |id: &ComponentId| failed.iter().any(|(failed, ..)| failed == id);
        self.retries.retain(|id, retry| still(id) || now < retry.at + retry.pause);
        for (id, name, core) in failed {
            let retry = self.retries.entry(id).or_insert_with(|| {
                tracing::error!(component = name, core, "component failed and is skipped for now");
                Retry { at: now + FIRST_PAUSE, pause: FIRST_PAUSE }
            });
            if now < retry.at {
                continue;
            }
            retry.pause = (retry.pause * 2).min(LONGEST_PAUSE);
            retry.at = now + retry.pause;
            tracing::warn!(component = name, core, "failed component gets another try");
            let runs_on = self.board.core_of(id).unwrap_or(core);
            if let Err(error) = self.board.replay(runs_on) {
                tracing::error!(%error, core, "failed component can't be started again");
            }
        }
    }
}
