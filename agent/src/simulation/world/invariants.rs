//! What must hold: after every step, before every write of the agent's, and when all has come to rest.

use crate::dataplane::{Plug, Wiring};
use crate::keys::{BindPort, FREE, Key, Name, SlotId, Subject, TapId, TapInfo, UP};
use crate::testing::{N_MIRRORS, layout, name, slot};
use crate::txn::KeyOp;

use super::World;

impl World {
    /// After every step.
    pub(super) fn check(&self) {
        if !self.honest {
            return;
        }
        if let Some(wrong) = self.node.misdelivered(&self.asked, &self.tenants, |mirror| self.tap_of(mirror))
        {
            panic!("{wrong}; {:?}", self.tail());
        }
        for vhost in self.node.wired.keys() {
            assert_ne!(self.store.slot_value(*vhost), Some(FREE), "vhost {vhost} is wired and free");
        }
    }

    /// The tap flow that has a mirror.
    fn tap_of(&self, mirror: u32) -> Option<TapId> {
        self.store.mirror_value(mirror).filter(|value| *value != FREE).map(name)
    }

    /// Just before an agent writes a key.
    pub(super) fn check_write(&mut self, op: &KeyOp) {
        let before = &self.store;
        match op {
            KeyOp::Put(Key::PortStatus(port), value) => {
                assert_eq!(value, UP);
                self.ups.push((Subject::Port(port.clone()), self.now));
                let bind_port = before.get(&Key::BindPort(port.clone())).expect("up without bind_port");
                let wanted = BindPort::parse(bind_port.as_bytes()).expect("up for garbage").plug;
                assert_eq!(before.get(&Key::Action(port.clone())), Some("plug"), "up without plug");
                assert_eq!(self.node.wired.get(&wanted.vhost), Some(&wanted), "up while not wired as asked");
                assert_eq!(before.slot_value(wanted.vhost), Some(port.as_str()), "up without the slot");
            }
            KeyOp::Put(Key::Vhost(slot), value) => {
                assert_eq!(value, FREE);
                self.n_given_back += 1;
                self.check_given_back(slot);
            }
            KeyOp::Put(Key::TapStatus(tap), value) => {
                assert_eq!(value, UP);
                self.ups.push((Subject::Tap(tap.clone()), self.now));
                let info = before.get(&Key::TapInfo(tap.clone())).expect("up without tap_info");
                let info = TapInfo::parse(info.as_bytes()).expect("up for garbage");
                assert_eq!(before.get(&Key::TapAction(tap.clone())), Some("plug"), "up without plug");
                for mirror in info.mirrors() {
                    assert_eq!(before.mirror_value(mirror), Some(tap.as_str()), "up without the mirror");
                    assert!(self.node.taps.contains_key(&mirror), "up while nothing is copied");
                }
            }
            KeyOp::Put(Key::Mirror(mirror), value) => {
                assert_eq!(value, FREE);
                assert!(!self.node.taps.contains_key(mirror), "mirror {mirror} given back at work");
            }
            KeyOp::Put(key, _) => panic!("the agent puts {key:?}"),
            KeyOp::Delete(_) => {}
        }
    }

    /// A slot that is given away while somebody has it would be given out twice.
    fn check_given_back(&self, slot: &SlotId) {
        let before = &self.store;
        let vhost = slot.vhost;
        assert!(!self.node.wired.contains_key(&vhost), "vhost {vhost} given back while wired");
        let Some(holder) = before.slot_value(vhost).and_then(|value| Name::new(value).ok()) else { return };
        let bound = before.get(&Key::BindPort(holder.clone()));
        let bound = bound.and_then(|text| BindPort::parse(text.as_bytes()).ok());
        let here = bound.is_some_and(|bound| bound.plug.vhost == vhost);
        let asked = before.get(&Key::Action(holder.clone())) == Some("plug");
        assert!(!(here && asked), "vhost {vhost} taken away from {holder}, which asks for it");
    }

    /// All keys with their values, and all wiring: what two runs that came to the same end agree in.
    pub fn end(&self) -> (Vec<(Key, Vec<u8>)>, Vec<Wiring>) {
        let keys = self.store.listing().keys.into_iter().map(|kv| (kv.key, kv.value));
        (keys.collect(), self.node.wirings())
    }

    /// As `spp config put` left it, nothing wired.
    pub fn assert_pristine(&self) {
        assert!(self.node.wirings().is_empty(), "wired: {:?}", self.node.wirings());
        for vhost in layout().into_keys() {
            assert_eq!(self.store.get(&Key::Vhost(slot(vhost))), Some(FREE), "vhost {vhost} leaked");
        }
        for mirror in 0..N_MIRRORS {
            assert_eq!(self.store.mirror_value(mirror), Some(FREE), "mirror {mirror} leaked");
        }
        let left: Vec<_> = self.store.listing().keys.into_iter().map(|kv| kv.key).collect();
        assert_eq!(left.len(), 1 + layout().len() + N_MIRRORS as usize, "left over: {left:?}");
    }

    /// The port is wired as asked and told so.
    pub fn assert_up(&self, port: &str, plug: Plug) {
        assert_eq!(self.node.wired.get(&plug.vhost), Some(&plug), "{port} is not wired");
        assert_eq!(self.store.status(&name(port)), Some(UP), "{port} is not told");
        assert_eq!(self.store.slot_value(plug.vhost), Some(port));
    }
}
