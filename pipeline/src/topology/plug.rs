//! Plug and unplug: the wiring of one vhost as one edit.
//!
//! The agent's contract in terms of components: an entry on the classifier's output that leads to the
//! guest, and on a VLAN a tag removed there and one added where the guest's packets enter the
//! component that sends to the wire. Which outputs and inputs these are is traced through the
//! components, so configurations without forwarders work too.

use spp_drivers::MacAddr;

use super::{Direction, EditError, Entry, PortEnd, Topology};
use crate::frame::VID_RESERVED;
use crate::names::{ComponentKind, PortName};
use crate::plan::VlanOp;
use crate::table::Dst;

/// Which frames from the wire belong to a vhost, and the VLAN it lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Plug {
    /// Vhost id, counted over all NICs of the node.
    pub vhost: u32,
    /// The guest's address.
    pub mac: MacAddr,
    /// VLAN id 1..=4094; None on a flat network.
    pub vlan: Option<u16>,
}

impl std::fmt::Display for Plug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "vhost {} MAC {}", self.vhost, self.mac)?;
        self.vlan.map_or(Ok(()), |vlan| write!(f, " VLAN {vlan}"))
    }
}

/// A plug and where it was put, so that unplug takes back exactly that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    /// What was asked.
    pub plug: Plug,
    /// The vf that has the classifier entry.
    pub(super) vf: u32,
    /// The classifiers' outputs that lead to the guest: one, unless components share its queues, or its NIC's.
    pub(super) to_guest: Vec<PortName>,
    /// The inputs, from the guest, of components that send to the wire.
    pub(super) to_wire: Vec<PortName>,
}

impl Topology {
    /// Wires a vhost; replaces whatever wiring it has. The same plug again changes nothing.
    pub fn plug(&mut self, plug: &Plug) -> Result<(), EditError> {
        self.check_plug(plug)?;
        let (vf, to_guest) = self.trace_to_guest(plug.vhost)?;
        let to_wire = self.trace_to_wire(plug.vhost)?;
        self.unwire(plug.vhost);
        self.wire(plug, vf, to_guest, to_wire)
    }

    /// Wires a vhost that is not wired into these places.
    pub(super) fn wire(
        &mut self,
        plug: &Plug,
        vf: u32,
        to_guest: Vec<PortName>,
        to_wire: Vec<PortName>,
    ) -> Result<(), EditError> {
        for &port in &to_guest {
            let entry = Entry { vid: plug.vlan, dst: Dst::Mac(plug.mac), port };
            if !self.vf(vf)?.entries.contains(&entry) {
                self.table_add(vf, entry)?;
            }
        }
        if let Some(vid) = plug.vlan {
            let add = VlanOp::Add { vid, pcp: 0 };
            to_guest.iter().for_each(|&port| self.set_vlan((Direction::Tx, port), None, VlanOp::Del));
            to_wire.iter().for_each(|&port| self.set_vlan((Direction::Rx, port), None, add));
        }
        self.plugs.insert(plug.vhost, Plugged { plug: *plug, vf, to_guest, to_wire });
        Ok(())
    }

    /// Undoes the wiring of a vhost, and its taps. One that is not plugged is fine.
    pub fn unplug(&mut self, vhost: u32) -> Result<(), EditError> {
        self.check_vhost(vhost)?;
        self.taps.retain(|tapped| !tapped.tap.involves(vhost));
        self.unwire(vhost);
        Ok(())
    }

    pub(super) fn unwire(&mut self, vhost: u32) {
        let Some(plugged) = self.plugs.remove(&vhost) else { return };
        let Plugged { plug, vf, to_guest, to_wire } = plugged;
        let own = |entry: &Entry| {
            (entry.vid, entry.dst) == (plug.vlan, Dst::Mac(plug.mac)) && to_guest.contains(&entry.port)
        };
        if let Ok(index) = self.vf_index(vf) {
            self.vfs[index].entries.retain(|entry| !own(entry));
        }
        if let Some(vid) = plug.vlan {
            let add = Some(VlanOp::Add { vid, pcp: 0 });
            for &port in &to_guest {
                self.set_vlan((Direction::Tx, port), Some(VlanOp::Del), VlanOp::None);
            }
            to_wire.iter().for_each(|&port| self.set_vlan((Direction::Rx, port), add, VlanOp::None));
        }
    }

    /// Sets the tag operation of an attached port; with `only_from`, only where it is that one, since
    /// someone else may have changed it in between.
    fn set_vlan(&mut self, end: PortEnd, only_from: Option<VlanOp>, vlan: VlanOp) {
        if let Some(attachment) = self.attachment_mut(end)
            && only_from.is_none_or(|old| old == attachment.vlan)
        {
            attachment.vlan = vlan;
        }
    }

    pub(super) fn check_vhost(&self, vhost: u32) -> Result<(), EditError> {
        if vhost < self.n_vhost {
            return Ok(());
        }
        let what =
            format!("there is no vhost:{vhost}: this node has {} vhost ports, numbered from 0", self.n_vhost);
        Err(EditError::value("port", what))
    }

    fn check_plug(&self, plug: &Plug) -> Result<(), EditError> {
        self.check_vhost(plug.vhost)?;
        if plug.mac.is_group() || plug.mac == MacAddr([0; 6]) {
            return Err(EditError::value("mac address", format!("{} can't be a guest's address", plug.mac)));
        }
        match plug.vlan {
            Some(vid) if vid == 0 || vid >= VID_RESERVED => {
                Err(EditError::value("vlan id", format!("VLAN id {vid}: write 1 to 4094")))
            }
            _ => Ok(()),
        }
    }

    /// The classifiers' outputs whose packets end up in this vhost's guest, and the classifiers' vf.
    pub(super) fn trace_to_guest(&self, vhost: u32) -> Result<(u32, Vec<PortName>), EditError> {
        let mut ports = self.vhost_ports(vhost, Direction::Tx);
        let (mut at, mut outputs) = (0, Vec::new());
        while let Some(&port) = ports.get(at) {
            at += 1;
            let sender = self.vfs.iter().find_map(|vf| {
                let mut components = vf.components.iter();
                components.find(|c| c.tx.iter().any(|tx| tx.port == port)).map(|component| (vf.id, component))
            });
            match sender {
                Some((vf, component)) if component.kind == ComponentKind::Classifier => {
                    outputs.push((vf, port));
                }
                Some((_, component)) => push_new(&mut ports, component.rx.iter().map(|rx| rx.port)),
                None => {}
            }
        }
        let Some(&(vf, _)) = outputs.first() else {
            return Err(EditError::value("port", format!("no classifier's packets reach vhost:{vhost}")));
        };
        let of_vf = outputs.into_iter().filter(|output| output.0 == vf);
        Ok((vf, of_vf.map(|(_, port)| port).collect()))
    }

    /// The inputs through which this vhost's packets enter components that send to the wire.
    pub(super) fn trace_to_wire(&self, vhost: u32) -> Result<Vec<PortName>, EditError> {
        let mut ports = self.vhost_ports(vhost, Direction::Rx);
        let (mut at, mut inputs) = (0, Vec::new());
        while let Some(&port) = ports.get(at) {
            at += 1;
            let Some(receiver) = self.user_of((Direction::Rx, port)) else { continue };
            if receiver.tx.iter().any(|tx| tx.port.nic().is_some()) {
                inputs.push(port);
            } else {
                push_new(&mut ports, receiver.tx.iter().map(|tx| tx.port));
            }
        }
        match inputs.is_empty() {
            true => Err(EditError::value("port", format!("packets of vhost:{vhost} don't reach a NIC"))),
            false => Ok(inputs),
        }
    }
}

fn push_new(ports: &mut Vec<PortName>, more: impl Iterator<Item = PortName>) {
    for port in more {
        // A guest's port is an end, not a way through.
        if matches!(port, PortName::Ring(_)) && !ports.contains(&port) {
            ports.push(port);
        }
    }
}
