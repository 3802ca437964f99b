//! Which of the offered features are worth accepting: those the driver makes use of at this start, and none whose
//! foundation is missing (virtio 1.2, 5.1.3.1). Pure.

use super::regs::feature::*;
use crate::offload::Offloads;

/// (feature, what it rests on). In this order: a feature that falls takes those further down with it.
const RESTS_ON: &[(u64, u64)] = &[
    (CTRL_RX, CTRL_VQ),
    (MQ, CTRL_VQ),
    (RSS, CTRL_VQ),
    (HOST_TSO4, CSUM),
    (HOST_TSO6, CSUM),
    // A long frame takes many buffers.
    (GUEST_TSO4, GUEST_CSUM | MRG_RXBUF),
    (GUEST_TSO6, GUEST_CSUM | MRG_RXBUF),
];
/// (feature, one of these must be there).
const RESTS_ON_ONE: &[(u64, u64)] =
    &[(HOST_ECN, HOST_TSO4 | HOST_TSO6), (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6), (CTRL_VQ, CTRL_RX | MQ | RSS)];

/// What to accept of `offered` for a start with `n_queue_pairs`.
pub(super) fn choose(offered: u64, n_queue_pairs: u16) -> u64 {
    let mut accepted = offered & USED;
    if n_queue_pairs < 2 {
        accepted &= !(MQ | RSS);
    }
    for (feature, foundation) in RESTS_ON {
        if accepted & foundation != *foundation {
            accepted &= !feature;
        }
    }
    for (feature, one_of) in RESTS_ON_ONE {
        if accepted & one_of == 0 {
            accepted &= !feature;
        }
    }
    // In order, QEMU 10.0 never completes the rest of a frame whose buffers cross the end of the ring.
    if accepted & MRG_RXBUF != 0 {
        accepted &= !IN_ORDER;
    }
    accepted
}

fn offloads(features: u64, [csum, tso4, tso6, ecn]: [u64; 4]) -> Offloads {
    let kinds =
        [(csum, Offloads::CSUM), (tso4, Offloads::TSO4), (tso6, Offloads::TSO6), (ecn, Offloads::ECN)];
    let has = kinds.into_iter().filter(|(feature, _)| features & feature != 0);
    has.fold(Offloads::NONE, |all, (_, kind)| all.with(kind)).sound()
}

/// Work that the device does for frames it is given.
pub(super) fn done_by_device(features: u64) -> Offloads {
    offloads(features, [CSUM, HOST_TSO4, HOST_TSO6, HOST_ECN])
}

/// Work that received frames may still need.
pub(super) fn left_by_device(features: u64) -> Offloads {
    offloads(features, [GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_does_not_use_is_never_accepted() {
        assert_eq!(choose(u64::MAX, 2), USED & !IN_ORDER);
        assert_eq!(choose(u64::MAX, 1), USED & !(IN_ORDER | MQ | RSS));
        assert_eq!(choose(0, 2), 0);
    }

    #[test]
    fn feature_falls_with_its_foundation() {
        let all = USED & !IN_ORDER;
        assert_eq!(choose(all & !CTRL_VQ, 2), all & !(CTRL_VQ | CTRL_RX | MQ | RSS));
        assert_eq!(choose(USED & !CSUM, 1) & (HOST_TSO4 | HOST_TSO6 | HOST_ECN), 0);
        assert_eq!(choose(USED & !GUEST_CSUM, 1) & (GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN), 0);
        assert_eq!(choose(USED & !MRG_RXBUF, 1) & (GUEST_CSUM | GUEST_TSO4 | GUEST_ECN), GUEST_CSUM);
        assert_eq!(choose(USED & !(HOST_TSO4 | HOST_TSO6), 1) & (CSUM | HOST_ECN), CSUM);
        assert_eq!(choose(USED & !HOST_TSO4, 1) & HOST_ECN, HOST_ECN, "one kind of long frame is enough");
    }

    #[test]
    fn order_is_kept_where_no_frame_takes_several_buffers() {
        assert_eq!(choose(IN_ORDER | MRG_RXBUF, 1), MRG_RXBUF);
        assert_eq!(choose(IN_ORDER | RING_PACKED, 1), IN_ORDER | RING_PACKED);
        assert_eq!(choose(IN_ORDER, 1), IN_ORDER);
    }

    #[test]
    fn control_queue_without_a_use_is_none() {
        assert_eq!(choose(CTRL_VQ | MQ, 1), 0);
        assert_eq!(choose(CTRL_VQ | MQ, 2), CTRL_VQ | MQ);
    }

    #[test]
    fn offloads_follow_the_features_of_their_direction() {
        assert_eq!(done_by_device(USED), Offloads::ALL);
        assert_eq!(left_by_device(CSUM | HOST_TSO4), Offloads::NONE);
        assert_eq!(left_by_device(GUEST_CSUM | GUEST_TSO6), Offloads::CSUM.with(Offloads::TSO6));
    }
}
