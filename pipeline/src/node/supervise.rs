//! What the control thread does between calls: serves parked halves, watches devices, restarts what failed.

use std::time::{Duration, Instant};

use spp_drivers::port::HEALTH_INTERVAL;

use super::Node;
use crate::topology::ComponentId;

/// Longest time between two ticks: parked vhost halves answer their port's control thread in a tick.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// Pause before a component that panicked gets another try.
const COMPONENT_PAUSE: Duration = Duration::from_secs(1);

/// A component that panicked.
pub(super) struct FailedComponent {
    pub id: ComponentId,
    pub core: usize,
    pub retry_at: Instant,
}

impl Node {
    /// To be called every few milliseconds on the control thread.
    pub fn tick(&mut self) {
        self.board.tick();
        let now = Instant::now();
        if now < self.health_due {
            return;
        }
        self.health_due = now + HEALTH_INTERVAL;
        if self.unsettled.is_some() {
            self.settle_or_note();
        }
        self.watch_devices();
        self.watch_components(now);
        self.sample_busy(now);
    }

    fn watch_devices(&mut self) {
        for index in 0..self.nics.len() {
            if self.nics[index].check().is_some() {
                // Its queues leave their cores; all else goes on.
                self.settle_or_note();
                self.nics[index].stop(&mut self.board.parked);
            }
            if self.nics[index].wants_restart() {
                self.nics[index].restart(&self.pool, &mut self.board.parked);
                self.settle_or_note();
            }
        }
    }

    /// Gives components that panicked another try, a second later each time.
    fn watch_components(&mut self, now: Instant) {
        for (id, name, core) in self.failed_components() {
            let known = self.failed.iter().any(|failed| failed.id == id);
            if !known {
                tracing::error!(
                    component = name,
                    core,
                    "component failed and is skipped; trying again in a second"
                );
                self.failed.push(FailedComponent { id, core, retry_at: now + COMPONENT_PAUSE });
            }
        }
        let due: Vec<usize> =
            self.failed.iter().filter(|failed| failed.retry_at <= now).map(|f| f.core).collect();
        self.failed.retain(|failed| failed.retry_at > now);
        for core in due {
            if let Err(error) = self.board.replay(core) {
                tracing::error!(%error, core, "failed component can't be started again");
            }
        }
    }

    fn failed_components(&mut self) -> Vec<(ComponentId, String, usize)> {
        let components = self.topology.components();
        let failed = components.filter(|component| self.board.component(component.id).failed());
        failed.map(|component| (component.id, component.name.clone(), component.core)).collect()
    }
}
