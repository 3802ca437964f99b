//! Guests of one NIC reach each other inside the node: a ring from the component that sends to the wire back to the
//! classifier.
//!
//! Which guests there are is known from the plugs alone. The sender looks a frame up among the guests of its own
//! VLAN ([`crate::local`]) and the classifier treats what comes by the ring as if the wire had brought it,
//! so tags and tables do what they do for frames from outside.

use std::collections::BTreeMap;

use super::{Attachment, Direction, Plug, Plugged, PortEnd, Topology};
use crate::names::{ComponentKind, PortName};
use crate::plan::VlanOp;

impl Topology {
    /// Guests reach each other inside the node (true), or only if something outside sends their frames back.
    pub fn set_local_switching(&mut self, on: bool) {
        self.local_switching = on;
    }

    /// True when guests of one NIC and VLAN reach each other inside the node.
    pub fn switches_locally(&self) -> bool {
        self.local_switching
    }

    /// The plug whose guest's packets, and nobody else's, pass this end of a port.
    pub fn guest_at(&self, end: PortEnd) -> Option<Plug> {
        let vhost = self.guests.get(&end)?;
        self.plugs.get(vhost).map(|plugged| plugged.plug)
    }

    pub(super) fn guest_ends(&self) -> BTreeMap<PortEnd, u32> {
        let ends = |(&vhost, plugged): (&u32, &Plugged)| {
            let to_guest = plugged.to_guest.iter().map(|&port| (Direction::Tx, port));
            let to_wire = plugged.to_wire.iter().map(|&port| (Direction::Rx, port));
            to_guest.chain(to_wire).map(move |end| (end, vhost)).collect::<Vec<_>>()
        };
        self.plugs.iter().flat_map(ends).collect()
    }

    /// Puts the rings in: where a classifier takes from the NIC and a merge component sends to it.
    pub(super) fn put_local_in(&mut self) {
        if !self.local_switching {
            return;
        }
        for (number, vf) in (0..).zip(&mut self.vfs) {
            let phy = vf.phy;
            let uses = |ends: &[Attachment]| ends.iter().any(|end| end.port == phy);
            let from_wire =
                vf.components.iter().position(|c| c.kind == ComponentKind::Classifier && uses(&c.rx));
            let to_wire = vf.components.iter().position(|c| c.kind == ComponentKind::Merge && uses(&c.tx));
            if let (Some(from_wire), Some(to_wire)) = (from_wire, to_wire) {
                let ring = Attachment { port: PortName::Local(number), vlan: VlanOp::None };
                vf.components[from_wire].rx.push(ring);
                vf.components[to_wire].tx.push(ring);
            }
        }
    }
}
