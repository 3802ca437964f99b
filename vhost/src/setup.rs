//! Ring set-up, gathered message by message in whatever order they come. Pure: knows no socket,
//! no memory and no core.
//!
//! QEMU enables rings before anything else exists; virtio-user sets features before memory
//! and kicks before it enables. So nothing here asks for an order: a ring runs as soon as what
//! it needs is there, and a message that changes a running ring restarts it.

use std::sync::Arc;

use spp_drivers::offload::Offloads;

use crate::memory::GuestMap;
use crate::net_hdr::{HEADER_BYTES, LEGACY_HEADER_BYTES};
use crate::vring::layout::RingAddr;
use crate::vring::{FIRST_PACKED_BASE, RingFeatures, RingMemory};

/// Largest ring a driver may set (virtio 1.2, 2.7).
pub const MAX_RING_SIZE: u16 = 32_768;

/// VIRTIO_NET_F_CSUM: the guest may leave checksums of what it sends to us.
pub const CSUM: u64 = 1;
/// VIRTIO_NET_F_GUEST_CSUM: the guest takes frames whose checksum is left to it.
pub const GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_GUEST_TSO4: the guest takes long TCP frames over IPv4.
pub const GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6: the same over IPv6.
pub const GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_GUEST_ECN: the same with ECN.
pub const GUEST_ECN: u64 = 1 << 9;
/// VIRTIO_NET_F_HOST_TSO4: the guest may send long TCP frames over IPv4.
pub const HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6: the same over IPv6.
pub const HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_HOST_ECN: the same with ECN.
pub const HOST_ECN: u64 = 1 << 13;
/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_NET_F_MTU.
pub const MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MRG_RXBUF.
pub const MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_GUEST_ANNOUNCE.
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
/// VHOST_F_LOG_ALL: note every write in the dirty log. The frontend's business, not the driver's.
pub const LOG_ALL: u64 = 1 << 26;
/// VIRTIO_NET_F_MQ.
pub const MQ: u64 = 1 << 22;
/// VIRTIO_F_ANY_LAYOUT.
pub const ANY_LAYOUT: u64 = 1 << 27;
/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// VIRTIO_F_RING_PACKED.
pub const RING_PACKED: u64 = 1 << 34;
/// VIRTIO_F_IN_ORDER.
pub const IN_ORDER: u64 = 1 << 35;

/// Everything offered, by name. What is offered is implemented.
pub const OFFERED: &[(u64, &str)] = &[
    (CSUM, "csum"),
    (GUEST_CSUM, "guest_csum"),
    (GUEST_TSO4, "guest_tso4"),
    (GUEST_TSO6, "guest_tso6"),
    (GUEST_ECN, "guest_ecn"),
    (HOST_TSO4, "host_tso4"),
    (HOST_TSO6, "host_tso6"),
    (HOST_ECN, "host_ecn"),
    (MTU, "mtu"),
    (MRG_RXBUF, "mrg_rxbuf"),
    (GUEST_ANNOUNCE, "guest_announce"),
    (LOG_ALL, "log_all"),
    (MQ, "mq"),
    (ANY_LAYOUT, "any_layout"),
    (INDIRECT_DESC, "indirect_desc"),
    (EVENT_IDX, "event_idx"),
    (PROTOCOL_FEATURES, "protocol_features"),
    (VERSION_1, "version_1"),
    (RING_PACKED, "ring_packed"),
    (IN_ORDER, "in_order"),
];

/// The offered bits.
pub fn offered() -> u64 {
    OFFERED.iter().map(|(bit, _)| bit).sum()
}

/// Names of the bits in `features`.
pub fn names(features: u64) -> Vec<&'static str> {
    OFFERED.iter().filter(|(bit, _)| features & bit != 0).map(|(_, name)| *name).collect()
}

/// What negotiated features mean for a ring.
pub fn ring_features(features: u64) -> RingFeatures {
    let mergeable = features & MRG_RXBUF != 0;
    let long = mergeable || features & VERSION_1 != 0;
    RingFeatures {
        packed: features & RING_PACKED != 0,
        in_order: features & IN_ORDER != 0,
        mergeable,
        event_idx: features & EVENT_IDX != 0,
        indirect: features & INDIRECT_DESC != 0,
        header_bytes: if long { HEADER_BYTES } else { LEGACY_HEADER_BYTES },
        from_guest: offloads(features, [CSUM, HOST_TSO4, HOST_TSO6, HOST_ECN]),
        to_guest: offloads(features, [GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN]),
        max_frame_bytes: usize::MAX,
    }
}

/// The work that `bits` (checksum, long frames over IPv4 and IPv6, ECN) stand for, as far as it is negotiated and makes
/// sense: a driver that takes a bit without what it rests on (virtio 1.2, 5.1.3.1) has not got it.
fn offloads(features: u64, bits: [u64; 4]) -> Offloads {
    let kinds = [Offloads::CSUM, Offloads::TSO4, Offloads::TSO6, Offloads::ECN];
    let negotiated = bits.iter().zip(kinds).filter(|(bit, _)| features & **bit != 0);
    negotiated.fold(Offloads::NONE, |all, (_, kind)| all.with(kind)).sound()
}

/// What an MTU leaves out: an Ethernet header and a tag.
const LINK_HEADER_BYTES: usize = 14 + 4;

/// Why a set-up message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// SET_VRING_NUM with 0, too much, or for a split ring no power of two.
    #[error("ring size {0} is not a power of two up to {MAX_RING_SIZE}, and the ring is not packed")]
    Size(u32),
    /// SET_VRING_BASE beyond 16 bits.
    #[error("ring base {0} is no index of a split ring")]
    Base(u32),
    /// SET_FEATURES with bits that were never offered.
    #[error("features {0:#x} were never offered")]
    NotOffered(u64),
}

/// All that a ring needs in order to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlan {
    /// Descriptors.
    pub size: u16,
    /// Where it is.
    pub addr: RingAddr,
    /// Where it goes on, as SET_VRING_BASE says it.
    pub base: u32,
    /// Negotiated features.
    pub features: RingFeatures,
}

impl RingPlan {
    /// The ring in `map`. `None` when a part of it is not aligned or lies outside.
    pub fn map_ring(&self, map: &Arc<GuestMap>) -> Option<RingMemory> {
        RingMemory::new(map.clone(), self.addr, self.size, self.features.packed)
    }
}

/// The set-up of one ring as far as it has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingSetup {
    size: Option<u16>,
    addr: Option<RingAddr>,
    /// SET_VRING_BASE; without it a ring starts as a driver's fresh ring does.
    base: Option<u32>,
    /// SET_VRING_KICK has come since the last stop: the driver is ready. We poll, so whether it
    /// brought a descriptor, and whether that ever fires, makes no difference.
    kicked: bool,
    enabled: bool,
    /// NET_SET_MTU.
    mtu: Option<u16>,
}

impl RingSetup {
    /// SET_VRING_NUM. Only packed rings may have any size.
    pub fn set_size(&mut self, num: u32, features: Option<u64>) -> Result<(), SetupError> {
        let packed = features.is_some_and(is_packed);
        let valid = |n: &u16| (1..=MAX_RING_SIZE).contains(n) && (packed || n.is_power_of_two());
        let size = u16::try_from(num).ok().filter(valid).ok_or(SetupError::Size(num))?;
        self.size = Some(size);
        Ok(())
    }

    /// SET_VRING_ADDR.
    pub fn set_addr(&mut self, addr: RingAddr) {
        self.addr = Some(addr);
    }

    /// SET_VRING_BASE: an index, or for a packed ring slots and wrap counters.
    pub fn set_base(&mut self, num: u32, features: Option<u64>) -> Result<(), SetupError> {
        let split = features.is_some_and(|features| !is_packed(features));
        if split && num > u32::from(u16::MAX) {
            return Err(SetupError::Base(num));
        }
        self.base = Some(num);
        Ok(())
    }

    /// NET_SET_MTU, in force where the driver has negotiated VIRTIO_NET_F_MTU.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = Some(mtu);
    }

    /// SET_VRING_KICK; again on a started ring changes nothing.
    pub fn kick(&mut self) {
        self.kicked = true;
    }

    /// SET_VRING_ENABLE.
    pub fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// GET_VRING_BASE: the ring stops, stays configured, and goes on after the next kick. Returns where.
    pub fn stop(&mut self, features: Option<u64>) -> u32 {
        self.kicked = false;
        self.base_or_first(features.unwrap_or(0))
    }

    fn base_or_first(&self, features: u64) -> u32 {
        self.base.unwrap_or(if is_packed(features) { FIRST_PACKED_BASE } else { 0 })
    }

    /// A running ring came back at `base`: it goes on there, unless the frontend has set another
    /// base since it started from `started_at`.
    pub fn came_back(&mut self, started_at: u32, base: u32) {
        if self.base.is_none_or(|set| set == started_at) {
            self.base = Some(base);
        }
    }

    /// Whether frames may pass: without protocol features rings start enabled.
    pub fn is_enabled(&self, features: u64) -> bool {
        self.enabled || features & PROTOCOL_FEATURES == 0
    }

    /// The size set, for status.
    pub fn size(&self) -> Option<u16> {
        self.size
    }

    /// The plan, when all is there.
    pub fn plan(&self, features: Option<u64>) -> Option<RingPlan> {
        let (features, size, addr) = (features?, self.size?, self.addr?);
        let base = self.base_or_first(features);
        let mtu = self.mtu.filter(|_| features & MTU != 0);
        let max_frame_bytes = mtu.map_or(usize::MAX, |mtu| usize::from(mtu) + LINK_HEADER_BYTES);
        let features = RingFeatures { max_frame_bytes, ..ring_features(features) };
        let plan = RingPlan { size, addr, base, features };
        (self.kicked && self.contradiction(&features).is_none()).then_some(plan)
    }

    /// Size and base may come before the features that say what they mean.
    fn contradiction(&self, features: &RingFeatures) -> Option<&'static str> {
        match (features.packed, self.size, self.base) {
            (false, Some(size), _) if !size.is_power_of_two() => Some("a size that is a power of two"),
            (false, _, Some(base)) if base > u32::from(u16::MAX) => Some("a base that is an index"),
            (true, Some(size), Some(base)) if base as u16 & 0x7fff >= size => Some("a base inside the ring"),
            _ => None,
        }
    }

    /// What is still missing, in words; `None` when nothing is.
    pub fn missing(&self, features: Option<u64>) -> Option<&'static str> {
        match self {
            RingSetup { size: None, .. } => Some("its size"),
            RingSetup { addr: None, .. } => Some("its addresses"),
            RingSetup { kicked: false, .. } => Some("its kick"),
            _ => self.contradiction(&ring_features(features?)),
        }
    }
}

fn is_packed(features: u64) -> bool {
    features & RING_PACKED != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::FrontendVa;

    const FEATURES: u64 = VERSION_1 | MRG_RXBUF | PROTOCOL_FEATURES;
    const ADDR: RingAddr =
        RingAddr { desc: FrontendVa(0x1000), avail: FrontendVa(0x2000), used: FrontendVa(0x3000) };

    /// The messages that make a ring, as indices into [`apply`].
    const N_MESSAGES: usize = 6;

    fn apply(message: usize, setup: &mut RingSetup, features: &mut Option<u64>) {
        match message {
            0 => *features = Some(FEATURES),
            1 => setup.set_size(256, *features).unwrap(),
            2 => setup.set_base(65_530, *features).unwrap(),
            3 => setup.set_addr(ADDR),
            4 => setup.kick(),
            _ => setup.enable(true),
        }
    }

    /// All orders of `n` things, by Heap's algorithm.
    fn orders(n: usize) -> Vec<Vec<usize>> {
        fn step(k: usize, order: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
            if k <= 1 {
                all.push(order.clone());
                return;
            }
            for i in 0..k {
                step(k - 1, order, all);
                order.swap(if k & 1 == 0 { i } else { 0 }, k - 1);
            }
        }
        let mut all = Vec::new();
        step(n, &mut (0..n).collect(), &mut all);
        all
    }

    #[test]
    fn every_order_of_set_up_messages_ends_in_the_same_ring() {
        let all = orders(N_MESSAGES);
        assert_eq!(all.len(), 720);
        for order in all {
            let (mut setup, mut features) = (RingSetup::default(), None);
            for (i, message) in order.iter().enumerate() {
                apply(*message, &mut setup, &mut features);
                let needed = |m: &usize| *m != 2 && *m != 5; // a base of 0 and a disabled ring are rings too
                let complete = (0..N_MESSAGES).filter(needed).all(|m| order[..=i].contains(&m));
                assert_eq!(setup.plan(features).is_some(), complete, "{order:?} after {i}");
            }
            let plan = setup.plan(features).expect("all is there");
            assert_eq!((plan.size, plan.addr, plan.base), (256, ADDR, 65_530), "{order:?}");
            assert!(setup.is_enabled(FEATURES) && plan.features.mergeable);
        }
    }

    #[test]
    fn stopped_ring_keeps_its_set_up_and_goes_on_at_its_index() {
        let (mut setup, mut features) = (RingSetup::default(), None);
        (0..N_MESSAGES).for_each(|message| apply(message, &mut setup, &mut features));
        let plan = setup.plan(features).unwrap();
        setup.came_back(plan.base, 4); // ten frames later, over the wrap
        assert_eq!(setup.stop(features), 4);
        assert_eq!(setup.plan(features), None);
        setup.kick();
        assert_eq!(setup.plan(features), Some(RingPlan { base: 4, ..plan }));
    }

    #[test]
    fn base_set_after_the_start_wins_over_the_index_that_comes_back() {
        let (mut setup, mut features) = (RingSetup::default(), None);
        (0..N_MESSAGES).for_each(|message| apply(message, &mut setup, &mut features));
        let started_at = setup.plan(features).unwrap().base;
        setup.set_base(8, features).unwrap();
        setup.came_back(started_at, 70);
        assert_eq!(setup.plan(features).unwrap().base, 8);
    }

    #[test]
    fn impossible_sizes_and_bases_are_refused() {
        let mut setup = RingSetup::default();
        for size in [0, 3, 255, 65_535, 65_536, 1 << 31] {
            assert_eq!(setup.set_size(size, None), Err(SetupError::Size(size)));
        }
        for size in [1, 256, 32_768] {
            assert_eq!(setup.set_size(size, None), Ok(()));
        }
        assert_eq!(setup.set_base(65_536, Some(VERSION_1)), Err(SetupError::Base(65_536)));
    }

    #[test]
    fn without_protocol_features_rings_start_enabled() {
        let setup = RingSetup::default();
        assert!(setup.is_enabled(VERSION_1) && !setup.is_enabled(VERSION_1 | PROTOCOL_FEATURES));
    }

    #[test]
    fn header_is_short_only_for_legacy_drivers_that_do_not_merge() {
        let bytes = |features| ring_features(features).header_bytes;
        assert_eq!(
            [bytes(0), bytes(MRG_RXBUF), bytes(VERSION_1), bytes(VERSION_1 | MRG_RXBUF)],
            [10, 12, 12, 12]
        );
    }

    #[test]
    fn mtu_counts_where_it_is_negotiated() {
        let mut setup = RingSetup::default();
        let mut features = None;
        (0..N_MESSAGES).for_each(|message| apply(message, &mut setup, &mut features));
        let max = |setup: &RingSetup, features| setup.plan(Some(features)).unwrap().features.max_frame_bytes;
        assert_eq!(max(&setup, FEATURES | MTU), usize::MAX, "none was told");
        setup.set_mtu(1500);
        assert_eq!(max(&setup, FEATURES | MTU), 1518);
        assert_eq!(max(&setup, FEATURES), usize::MAX, "the driver has not been told");
    }
}
