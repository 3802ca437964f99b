//! Taps: a plugged guest's packets, mirrored to another guest.
//!
//! The components as configured and plugged stay as they are; a tap is data beside them, and [`Topology::in_force`]
//! works out what that makes of the wiring. So plugs, taps and edits of components come and go in any order, and
//! taking a tap away leaves exactly what would be there without it.
//!
//! A tap uses one mirror of the configuration, and that mirror's two rings: `a`, the first, leads to the
//! guest that watches, `b` to where the packets would have gone. The mirror is put in front of the forwarder, whose
//! other end stays as it is:
//!
//! ```text
//! in:   classifier ─ ring:2S ─► mirror ─ b ─► forward_S_tx ─► vhost:S      out:  vhost:S ─► mirror ─ b ─► forward_S_rx ─► ring:2S+1
//!                                 └──── a ─► forward_D_tx ─► vhost:D                         └──── a ─► forward_D_tx ─► vhost:D
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Attachment, Component, ComponentId, Direction, EditError, Topology};
use crate::names::{ComponentKind, PortName};
use crate::plan::VlanOp;

/// What is mirrored where. To watch a guest both ways takes two taps, each with a mirror of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tap {
    /// The mirror that does it: its number in the configuration.
    pub mirror: u32,
    /// Which packets.
    pub way: Way,
    /// The vhost whose packets are mirrored.
    pub source: u32,
    /// The vhost whose guest gets the copies.
    pub dest: u32,
}

impl std::fmt::Display for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tap { mirror, source, dest, .. } = self;
        let way = if self.way == Way::In { "to" } else { "from" };
        write!(f, "mirror {mirror}: packets {way} vhost:{source} also to vhost:{dest}")
    }
}

/// Which packets of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Those to its guest.
    In,
    /// Those from its guest.
    Out,
}

impl Tap {
    /// True when this vhost is one of its two.
    pub fn involves(&self, vhost: u32) -> bool {
        self.source == vhost || self.dest == vhost
    }
}

/// How far a tap is in. It comes by `Open`, `On` and goes by `Draining`, `Open`, so that the forwarder always runs
/// and packets keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The forwarder takes from its own port and from `b`, the watcher's from `a`; the mirror does nothing.
    Open,
    /// All packets go through the mirror.
    On,
    /// The mirror takes no more, and `b` runs empty. Packets wait in the forwarder's own port.
    Draining,
}

/// A tap and its stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tapped {
    /// What was asked.
    pub tap: Tap,
    /// How far it is.
    pub stage: Stage,
}

/// A mirror of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where it runs; without ports unless it is in use.
    pub component: Component,
    /// Its rings: the first to the watching guest, the second to where the packets would have gone.
    pub rings: [PortName; 2],
}

/// How a source's own packets get into its forwarder.
#[derive(Clone)]
struct OwnWay {
    forwarder: ComponentId,
    /// More than one only while taps change.
    inputs: Vec<Attachment>,
}

impl Topology {
    /// The mirrors of the configuration.
    pub fn mirrors(&self) -> &[Mirror] {
        &self.mirrors
    }

    /// Taps, in the order they came.
    pub fn taps(&self) -> &[Tapped] {
        &self.taps
    }

    /// The tap that uses a mirror.
    pub fn tap_of(&self, mirror: u32) -> Option<Tap> {
        self.taps.iter().map(|tapped| tapped.tap).find(|tap| tap.mirror == mirror)
    }

    /// Adds a tap, in its first stage. The same one again changes nothing.
    pub fn tap(&mut self, tap: &Tap) -> Result<(), EditError> {
        if self.tap_of(tap.mirror) != Some(*tap) {
            self.check_tap(tap)?;
            self.taps.push(Tapped { tap: *tap, stage: Stage::Open });
        }
        Ok(())
    }

    /// Moves a mirror's tap on to another stage; none is fine.
    pub fn set_tap_stage(&mut self, mirror: u32, stage: Stage) {
        let mut taps = self.taps.iter_mut();
        if let Some(tapped) = taps.find(|tapped| tapped.tap.mirror == mirror) {
            tapped.stage = stage;
        }
    }

    /// Removes a mirror's tap; none is fine.
    pub fn untap(&mut self, mirror: u32) {
        self.taps.retain(|tapped| tapped.tap.mirror != mirror);
    }

    fn check_tap(&self, tap: &Tap) -> Result<(), EditError> {
        let refused = |what: String| Err(EditError::value("tap", what));
        let Tap { mirror, way, source, dest } = *tap;
        for vhost in [source, dest] {
            self.check_vhost(vhost)?;
            if self.gate_unplugged && !self.plugs.contains_key(&vhost) {
                return refused(format!("vhost:{vhost} is not plugged"));
            }
        }
        if let Some(vhost) = [source, dest].into_iter().find(|vhost| self.is_split(*vhost)) {
            return refused(format!("components share the queues of vhost:{vhost}: it can't have a tap"));
        }
        if source == dest {
            return refused(format!("vhost:{source} can't watch itself"));
        }
        let n_mirrors = self.mirrors.len();
        if mirror as usize >= n_mirrors {
            return refused(format!(
                "there is no mirror {mirror}: the configuration has {n_mirrors}, numbered from 0"
            ));
        }
        if let Some(other) = self.tap_of(mirror) {
            return refused(format!("mirror {mirror} is in use ({other})"));
        }
        for (way, vhost) in [(way, source), (Way::In, dest)] {
            if self.forwarder(way, vhost).is_none() {
                let side = if way == Way::In { "sends to" } else { "receives from" };
                return refused(format!(
                    "no forward or merge component {side} vhost:{vhost}: it can't have a tap"
                ));
            }
        }
        Ok(())
    }

    /// The component between a vhost and the rest of the node, if it is one that can take from several ports.
    fn forwarder(&self, way: Way, vhost: u32) -> Option<&Component> {
        let end = match way {
            Way::In => Direction::Tx,
            Way::Out => Direction::Rx,
        };
        let user = self.user_of((end, PortName::Vhost(vhost)))?;
        matches!(user.kind, ComponentKind::Forward | ComponentKind::Merge).then_some(user)
    }

    /// Puts all taps in. What a tap needs and components no longer have (they can be stopped) leaves it out.
    pub(super) fn put_taps_in(&mut self) {
        let mut ways = BTreeMap::new();
        for Tapped { tap, stage } in self.taps.clone() {
            let key = (tap.source, tap.way);
            let found = ways.get(&key).cloned().or_else(|| self.own_way(tap.way, tap.source));
            let watcher = self.forwarder(Way::In, tap.dest).map(|component| component.id);
            if let (Some(own), Some(watcher)) = (found, watcher) {
                ways.insert(key, self.put_mirror_in(tap.mirror as usize, own, watcher, stage));
            }
        }
    }

    /// What carries a source's own packets into its forwarder while no mirror is in front of it.
    fn own_way(&self, way: Way, source: u32) -> Option<OwnWay> {
        let forwarder = self.forwarder(way, source)?;
        let mut inputs = forwarder.rx.iter();
        let input = match way {
            Way::In => inputs.next(),
            Way::Out => inputs.find(|rx| rx.port == PortName::Vhost(source)),
        };
        Some(OwnWay { forwarder: forwarder.id, inputs: vec![*input?] })
    }

    /// Puts a mirror into a way, and returns the way behind it.
    fn put_mirror_in(&mut self, mirror: usize, own: OwnWay, watcher: ComponentId, stage: Stage) -> OwnWay {
        let plain = |port| Attachment { port, vlan: VlanOp::None };
        let OwnWay { forwarder, inputs: before } = own;
        let [to_watcher, back] = self.mirrors[mirror].rings;
        // The tag operation stays with the forwarder: the watcher sees what the guest sees.
        let vlan = before.first().map_or(VlanOp::None, |input| input.vlan);
        let mut inputs = vec![Attachment { port: back, vlan }];
        if stage == Stage::Open {
            inputs.extend(&before);
        }
        let guest = before.first().and_then(|input| self.guests.get(&(Direction::Rx, input.port)).copied());
        self.guests.extend(guest.map(|guest| ((Direction::Rx, back), guest)));
        if let Some(component) = self.component_mut(forwarder) {
            component.rx.retain(|rx| !before.contains(rx));
            component.rx.splice(0..0, inputs.clone());
        }
        if let Some(component) = self.component_mut(watcher) {
            component.rx.push(plain(to_watcher));
        }
        for id in [forwarder, watcher] {
            if let Some(component) = self.component_mut(id).filter(|component| component.rx.len() > 1) {
                component.kind = ComponentKind::Merge;
            }
        }
        let component = &mut self.mirrors[mirror].component;
        if stage != Stage::Open {
            component.tx = vec![plain(back), plain(to_watcher)];
        }
        if stage == Stage::On {
            component.rx = before.iter().map(|rx| plain(rx.port)).collect();
        }
        OwnWay { forwarder, inputs }
    }

    fn component_mut(&mut self, id: ComponentId) -> Option<&mut Component> {
        let components = self.vfs.iter_mut().flat_map(|vf| &mut vf.components);
        components.into_iter().find(|component| component.id == id)
    }
}
