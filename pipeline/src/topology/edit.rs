//! The editing operations, with spp-ctl's meaning and words.

use spp_drivers::MacAddr;

use super::{Attachment, Component, ComponentId, Direction, EditError, Entry, Topology};
use crate::frame::VID_RESERVED;
use crate::names::{ComponentKind, PortName, check_component_name};
use crate::plan::VlanOp;
use crate::table::Dst;

impl Topology {
    /// Adds a component without ports.
    pub fn component_start(
        &mut self,
        vf: u32,
        name: &str,
        core: usize,
        kind: ComponentKind,
    ) -> Result<(), EditError> {
        let index = self.vf_index(vf)?;
        let unit = &self.vfs[index];
        check_component_name(name).map_err(|error| EditError::value("component name", error.to_string()))?;
        if unit.components.iter().any(|component| component.name == name) {
            return Err(EditError::value("component name", format!("{name:?} is taken")));
        }
        if core == unit.master {
            let what = format!("core {core} is the master core of vf {vf}: components go to the others");
            return Err(EditError::value("core", what));
        }
        if !unit.workers.contains(core) {
            let what = format!("core {core} is not one of vf {vf}: it has {}", unit.workers.to_list());
            return Err(EditError::occurred(what));
        }
        let component = Component {
            id: ComponentId(self.next_id),
            name: name.to_owned(),
            core,
            kind,
            rx: Vec::new(),
            tx: Vec::new(),
        };
        self.next_id += 1;
        self.vfs[index].components.push(component);
        Ok(())
    }

    /// Removes a component and frees its ports. An unknown name is fine, as it is in spp-ctl.
    pub fn component_stop(&mut self, vf: u32, name: &str) -> Result<(), EditError> {
        let index = self.vf_index(vf)?;
        self.vfs[index].components.retain(|component| component.name != name);
        self.plug_anew();
        Ok(())
    }

    /// Attaches one end of a port to a component. Attaching it again with a tag to add, where it
    /// has one already, replaces the tag.
    pub fn port_attach(
        &mut self,
        vf: u32,
        component: &str,
        port: PortName,
        direction: Direction,
        vlan: VlanOp,
    ) -> Result<(), EditError> {
        let (index, at) = self.find(vf, component)?;
        self.check_port_exists(port)?;
        check_vlan_op(vlan)?;
        self.check_not_tapped(port)?;
        let target = &self.vfs[index].components[at];
        if let Some(user) = self.user_of((direction, port)) {
            let old = user.ends(direction).iter().find(|end| end.port == port).map(|end| end.vlan);
            let retag = matches!((old, vlan), (Some(VlanOp::Add { .. }), VlanOp::Add { .. }));
            if user.id != target.id || !retag {
                return Err(self.in_use(port, &user.name));
            }
            let ends = self.vfs[index].components[at].ends_mut(direction);
            ends.iter_mut().filter(|end| end.port == port).for_each(|end| end.vlan = vlan);
            return Ok(());
        }
        if let Some(limit) = port_limit(target.kind, direction)
            && target.ends(direction).len() >= limit
        {
            let what = format!("a {} component has {limit} {} port", target.kind, word(direction));
            return Err(EditError::occurred(what));
        }
        self.vfs[index].components[at].ends_mut(direction).push(Attachment { port, vlan });
        self.vfs[index].seen.insert(port);
        self.plug_anew();
        Ok(())
    }

    /// Takes one end of a port from a component, and its tag operation with it. A port that is not
    /// attached is fine, as it is in spp-ctl.
    pub fn port_detach(
        &mut self,
        vf: u32,
        component: &str,
        port: PortName,
        direction: Direction,
    ) -> Result<(), EditError> {
        let (index, at) = self.find(vf, component)?;
        self.vfs[index].components[at].ends_mut(direction).retain(|end| end.port != port);
        self.plug_anew();
        Ok(())
    }

    /// Adds a classifier entry. A port may have several, but not one of them twice.
    pub fn table_add(&mut self, vf: u32, entry: Entry) -> Result<(), EditError> {
        let index = self.vf_index(vf)?;
        check_entry(&entry)?;
        let unit = &self.vfs[index];
        let mut ends = unit.components.iter().flat_map(|component| component.rx.iter().chain(&component.tx));
        if entry.port != unit.phy && !ends.any(|end| end.port == entry.port) {
            let what = format!("{} is not attached to a component of vf {vf}", entry.port);
            return Err(EditError::value("port", what));
        }
        if unit.entries.contains(&entry) {
            return Err(EditError::value("port", format!("{} has this entry already", entry.port)));
        }
        self.vfs[index].entries.push(entry);
        Ok(())
    }

    /// Removes a classifier entry; all of it must match.
    pub fn table_del(&mut self, vf: u32, entry: Entry) -> Result<(), EditError> {
        let index = self.vf_index(vf)?;
        check_entry(&entry)?;
        let entries = &mut self.vfs[index].entries;
        let Some(at) = entries.iter().position(|other| *other == entry) else {
            return Err(EditError::value("port", format!("{} has no such entry", entry.port)));
        };
        entries.remove(at);
        Ok(())
    }

    fn find(&self, vf: u32, component: &str) -> Result<(usize, usize), EditError> {
        let index = self.vf_index(vf)?;
        let at = self.vfs[index].components.iter().position(|other| other.name == component);
        let unknown =
            || EditError::value("component name", format!("vf {vf} has no component {component:?}"));
        Ok((index, at.ok_or_else(unknown)?))
    }

    fn check_port_exists(&self, port: PortName) -> Result<(), EditError> {
        let (n, field, have, noun) = match port {
            PortName::Phy(n) | PortName::PhyQueue(n, _) => (n, "port rxtx", self.vfs.len() as u32, "phy"),
            PortName::Vhost(n) | PortName::VhostQueue(n, _) => (n, "port", self.n_vhost, "vhost"),
            PortName::Ring(n) => (n, "port", self.n_rings, "ring"),
            PortName::Local(_) => {
                return Err(EditError::value("port", format!("{port} can't be attached by hand")));
            }
        };
        if let Some(index) = self.mirrors.iter().position(|mirror| mirror.rings.contains(&port)) {
            return Err(EditError::value(field, format!("{port} is set aside for mirror {index}")));
        }
        if n < have {
            return self.check_queue_exists(port);
        }
        Err(EditError::value(
            field,
            format!("there is no {port}: this node has {have} {noun} ports, numbered from 0"),
        ))
    }

    /// A port in use both ways gets spp-ctl's other text.
    fn in_use(&self, port: PortName, user: &str) -> EditError {
        let both = [Direction::Rx, Direction::Tx].into_iter().all(|end| self.user_of((end, port)).is_some());
        EditError::value(if both { "port" } else { "port rxtx" }, format!("{port} is in use by {user}"))
    }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Rx => "rx",
        Direction::Tx => "tx",
    }
}

/// Most ports of a component in one direction, where there is a limit.
fn port_limit(kind: ComponentKind, direction: Direction) -> Option<usize> {
    match (kind, direction) {
        (ComponentKind::Merge, Direction::Rx) | (ComponentKind::Classifier, Direction::Tx) => None,
        _ => Some(1),
    }
}

fn check_vlan_op(vlan: VlanOp) -> Result<(), EditError> {
    let VlanOp::Add { vid, pcp } = vlan else { return Ok(()) };
    if vid > VID_RESERVED {
        return Err(EditError::value("port vid", format!("VLAN id {vid}: write 0 to 4095")));
    }
    if pcp > 7 {
        return Err(EditError::value("port pcp", format!("priority {pcp}: write 0 to 7")));
    }
    Ok(())
}

fn check_entry(entry: &Entry) -> Result<(), EditError> {
    if let Some(vid) = entry.vid
        && vid >= VID_RESERVED
    {
        let what = format!("VLAN id {vid}: write 0 to 4094 (4095 is reserved, 802.1Q 9.6)");
        return Err(EditError::value("vlan id", what));
    }
    if entry.dst == Dst::Mac(MacAddr([0; 6])) {
        return Err(EditError::value("mac address", "00:00:00:00:00:00 is nobody's address"));
    }
    Ok(())
}
