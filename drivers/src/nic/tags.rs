//! VLAN tags that the card strips and inserts: what the queue halves of a start ask for, and what the control half has set
//! the card to.
//!
//! A half only says what it wants ([`Tags`], shared); registers belong to the control half, which looks every time it looks
//! at the link. Until then, and for each frame the card does not treat as asked, the half does it in software: a descriptor
//! tells of each received frame whether its tag was taken off, and nothing is left for the card to insert before it is known
//! to insert.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::dma::{PacketBuf, PoolCache};
use crate::stats::DropReason;
use crate::vlan;

/// How a chip strips and inserts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// One switch for everything: all queues strip, and descriptors may ask for a tag, or neither (CTRL.VME: 8254x 9.2,
    /// 82574 10.2.2.1, 82576 8.2.1). It is on while all queues want their tags off.
    One,
    /// Each receive queue has its own, and descriptors may always ask (82599 7.4). Also where the card has one switch for
    /// stripping alone (vmxnet3): it is on while any queue wants its tags off.
    EachQueue,
    /// Somebody else strips, or doesn't; descriptors had better not ask.
    Foreign,
}

/// The wants of all halves of one start, one bit for each queue.
#[derive(Debug)]
pub struct Tags {
    switch: Switch,
    all: u32,
    /// Receive queues that want their tags off.
    strip: AtomicU32,
    /// Transmit queues that may have descriptors with a tag in their rings.
    inserting: AtomicU32,
    /// Descriptors may ask for a tag.
    inserts: AtomicBool,
}

impl Tags {
    /// For a start with so many receive queues, nothing switched on.
    pub fn new(switch: Switch, n_queues: u16) -> Self {
        let all = u32::MAX >> (32 - u32::from(n_queues).clamp(1, 32));
        let inserts = AtomicBool::new(switch == Switch::EachQueue);
        Tags { switch, all, strip: AtomicU32::new(0), inserting: AtomicU32::new(0), inserts }
    }

    /// Receiving half: whether it wants tags off.
    pub fn ask_to_strip(&self, queue: u16, on: bool) {
        set(&self.strip, queue, on);
    }

    /// Whether there is any use in asking for tags.
    pub fn can_insert(&self) -> bool {
        self.switch != Switch::Foreign
    }

    /// Sending half, once a burst: whether descriptors of this burst may ask for a tag. `announced` is the half's own note that
    /// it has said so; [`withdraw`](Self::withdraw) takes it back.
    #[inline(always)]
    pub fn may_insert(&self, queue: u16, announced: &mut bool) -> bool {
        if !*announced {
            // First the announcement, then the look: who switches off does it the other way round.
            set(&self.inserting, queue, true);
            *announced = true;
        }
        self.inserts()
    }

    /// As [`may_insert`](Self::may_insert), without announcing anything.
    pub fn inserts(&self) -> bool {
        self.inserts.load(Ordering::SeqCst)
    }

    /// Sending half: no descriptor with a tag is left in its ring.
    pub fn withdraw(&self, queue: u16, announced: &mut bool) {
        if std::mem::take(announced) {
            set(&self.inserting, queue, false);
        }
    }

    /// Control half: the queues that are to strip, where `now` do. The caller sets the card to it and says so
    /// ([`switched`](Self::switched)).
    pub fn wanted(&self, now: u32) -> u32 {
        let strip = self.strip.load(Ordering::SeqCst);
        match self.switch {
            Switch::EachQueue => strip,
            Switch::Foreign => 0,
            Switch::One if strip == self.all => self.all,
            Switch::One => {
                self.inserts.store(false, Ordering::SeqCst);
                // Descriptors that ask are still on their way: they are waited for.
                if self.inserting.load(Ordering::SeqCst) == 0 { 0 } else { now }
            }
        }
    }

    /// Control half: the card is set to what was [`wanted`](Self::wanted).
    pub fn switched(&self, queues: u32) {
        if self.switch == Switch::One && queues == self.all && self.strip.load(Ordering::SeqCst) == self.all {
            self.inserts.store(true, Ordering::SeqCst);
        }
    }
}

/// The tag that all frames of a burst get.
#[derive(Debug, Clone, Copy)]
pub struct Tagging {
    /// Its control information.
    pub tag: u16,
    /// The card may be asked.
    pub by_card: bool,
}

impl Tagging {
    /// Puts the tag on; the card does (then it is returned) where it makes no difference: where a tag is inserted behind the
    /// addresses of an untagged frame.
    pub fn put(self, frame: &mut PacketBuf, pool: &mut PoolCache) -> Result<Option<u16>, DropReason> {
        let header = frame.data().first_chunk::<{ vlan::TAGGED_BYTES }>();
        let untagged = header.is_some_and(|[.., a, b, _, _, _, _]| [*a, *b] != vlan::TPID);
        if self.by_card && untagged {
            return Ok(Some(self.tag));
        }
        vlan::add_tag(frame, self.tag, pool)?;
        Ok(None)
    }
}

fn set(bits: &AtomicU32, queue: u16, on: bool) {
    let bit = 1u32.checked_shl(queue.into()).unwrap_or(0);
    if on {
        bits.fetch_or(bit, Ordering::SeqCst);
    } else {
        bits.fetch_and(!bit, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The control half looks.
    fn look(tags: &Tags, now: &mut u32) -> u32 {
        *now = tags.wanted(*now);
        tags.switched(*now);
        *now
    }

    #[test]
    fn one_switch_goes_on_when_all_queues_want_it_and_off_when_one_does_not() {
        let (tags, mut now) = (Tags::new(Switch::One, 2), 0);
        tags.ask_to_strip(0, true);
        assert_eq!(look(&tags, &mut now), 0);
        tags.ask_to_strip(1, true);
        assert!(!tags.may_insert(0, &mut false), "not before the card is switched");
        tags.withdraw(0, &mut true);
        assert_eq!(look(&tags, &mut now), 3);
        tags.ask_to_strip(0, false);
        assert_eq!(look(&tags, &mut now), 0);
    }

    #[test]
    fn one_switch_stays_on_until_descriptors_that_ask_for_a_tag_are_sent() {
        let (tags, mut now, mut announced) = (Tags::new(Switch::One, 1), 0, false);
        tags.ask_to_strip(0, true);
        look(&tags, &mut now);
        assert!(tags.may_insert(0, &mut announced) && announced);
        tags.ask_to_strip(0, false);
        assert_eq!(look(&tags, &mut now), 1, "the ring is not empty");
        assert!(!tags.may_insert(0, &mut announced), "and gets no more of them");
        tags.withdraw(0, &mut announced);
        assert_eq!(look(&tags, &mut now), 0);
    }

    #[test]
    fn switch_that_is_wanted_again_while_it_waits_to_go_off_stays_on() {
        let (tags, mut now, mut announced) = (Tags::new(Switch::One, 1), 0, false);
        tags.ask_to_strip(0, true);
        look(&tags, &mut now);
        tags.may_insert(0, &mut announced);
        tags.ask_to_strip(0, false);
        look(&tags, &mut now);
        tags.ask_to_strip(0, true);
        assert_eq!(look(&tags, &mut now), 1);
        assert!(tags.may_insert(0, &mut announced));
    }

    #[test]
    fn queues_with_switches_of_their_own_go_by_themselves_and_always_insert() {
        let (tags, mut now) = (Tags::new(Switch::EachQueue, 16), 0);
        assert!(tags.can_insert() && tags.may_insert(3, &mut false));
        tags.ask_to_strip(15, true);
        assert_eq!(look(&tags, &mut now), 1 << 15);
        tags.ask_to_strip(15, false);
        assert_eq!(look(&tags, &mut now), 0);
        let foreign = Tags::new(Switch::Foreign, 1);
        foreign.ask_to_strip(0, true);
        assert_eq!((foreign.can_insert(), foreign.wanted(0)), (false, 0));
    }
}
