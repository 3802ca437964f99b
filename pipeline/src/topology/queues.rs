//! Queues as ports of their own: `vhost:0nq1`, `phy:0nq1`.
//!
//! A vhost's queues are shared as long as nobody names one: `vhost:0` has them all. A component that attaches
//! `vhost:0nq1` gets that queue alone, in that direction, and `vhost:0` the rest. Queues that nobody has by name, while no
//! component has `vhost:0` either, are served by the components that have the others ([`crate::compile::queue_owners`]), so
//! that a guest may enable more queues than were dealt out. A guest whose queues are with several components is
//! plugged in at all the places its packets pass, and a classifier spreads its packets over them by flow.

use spp_vhost::MAX_PAIRS;

use super::{Direction, EditError, Plug, Topology};
use crate::names::PortName;

/// A vhost, its classifier's vf and the outputs to it, and the inputs from it.
type Way = (u32, (u32, Vec<PortName>), Vec<PortName>);

impl Topology {
    pub(super) fn check_queue_exists(&self, port: PortName) -> Result<(), EditError> {
        match port {
            PortName::VhostQueue(vhost, queue) if usize::from(queue) >= MAX_PAIRS => {
                let what = format!(
                    "there is no {port}: vhost:{vhost} has {MAX_PAIRS} queue pairs, nq0 to nq{}",
                    MAX_PAIRS - 1
                );
                Err(EditError::value("port", what))
            }
            PortName::PhyQueue(nic, queue) if queue >= self.phy_queues[nic as usize] => {
                let have = self.phy_queues[nic as usize];
                let what = format!(
                    "there is no {port}: phy:{nic} was started with {have} queue pair{} (name more in the configuration)",
                    if have == 1 { "" } else { "s" }
                );
                Err(EditError::value("port", what))
            }
            _ => Ok(()),
        }
    }

    /// A vhost's port and those of its queues that components have, in one direction; the port itself first, attached or not.
    pub(super) fn vhost_ports(&self, vhost: u32, direction: Direction) -> Vec<PortName> {
        let ends = self.components().flat_map(|component| component.ends(direction)).map(|end| end.port);
        let mut queues: Vec<PortName> =
            ends.filter(|port| port.vhost() == Some(vhost) && *port != PortName::Vhost(vhost)).collect();
        queues.sort_unstable();
        queues.insert(0, PortName::Vhost(vhost));
        queues
    }

    /// True when a component has a queue of this vhost by name.
    pub fn is_split(&self, vhost: u32) -> bool {
        [Direction::Rx, Direction::Tx]
            .into_iter()
            .any(|direction| self.vhost_ports(vhost, direction).len() > 1)
    }

    /// A tap has all packets of a guest or none.
    pub(super) fn check_not_tapped(&self, port: PortName) -> Result<(), EditError> {
        let PortName::VhostQueue(vhost, _) = port else { return Ok(()) };
        match self.taps.iter().find(|tapped| tapped.tap.involves(vhost)) {
            Some(tapped) => {
                let what = format!("{port} can't be attached while vhost:{vhost} has a tap ({})", tapped.tap);
                Err(EditError::value("port", what))
            }
            None => Ok(()),
        }
    }

    /// Plugs guests into the places their packets pass since the last edit. One whose packets pass nowhere for the moment stays as
    /// it was plugged, and an input that brought a guest's packets goes on as the guest's until another one's come by it: there
    /// may be some left.
    pub(super) fn plug_anew(&mut self) {
        let traced =
            |vhost: u32| Some((vhost, self.trace_to_guest(vhost).ok()?, self.trace_to_wire(vhost).ok()?));
        let mut ways: Vec<Way> = self.plugs.keys().filter_map(|v| traced(*v)).collect();
        let taken: Vec<(u32, PortName)> =
            ways.iter().flat_map(|(v, _, to_wire)| to_wire.iter().map(|p| (*v, *p))).collect();
        for (vhost, _, to_wire) in &mut ways {
            let left = self.plugs[vhost].to_wire.iter().filter(|port| {
                let anothers = taken.iter().any(|(other, taken)| taken == *port && other != vhost);
                !anothers && !to_wire.contains(port) && self.user_of((Direction::Rx, **port)).is_some()
            });
            let left: Vec<PortName> = left.copied().collect();
            to_wire.extend(left);
        }
        ways.retain(|(vhost, (vf, to_guest), to_wire)| {
            let plugged = &self.plugs[vhost];
            (plugged.vf, &plugged.to_guest, &plugged.to_wire) != (*vf, to_guest, to_wire)
        });
        // All out before any goes in: two may change places.
        let plugs: Vec<Plug> = ways.iter().map(|(vhost, ..)| self.plugs[vhost].plug).collect();
        plugs.iter().for_each(|plug| self.unwire(plug.vhost));
        for (plug, (_, (vf, to_guest), to_wire)) in plugs.iter().zip(ways) {
            let wired = self.wire(plug, vf, to_guest, to_wire);
            debug_assert!(wired.is_ok(), "it was plugged, and its ways are there");
        }
    }
}
