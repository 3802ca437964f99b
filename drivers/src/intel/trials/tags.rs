//! Tags in hardware: whatever the card does, frames come out as software would have made them, byte for byte; and the card does
//! it where it can. Over the model of each family.

use super::{Bench, MAC, Subject, frame, udp};
use crate::burst::Burst;
use crate::dma::{DATA_ROOM, PacketBuf, Pool, PoolCache};
use crate::intel::nic::Chip;
use crate::nic::model::{Handle, Model};
use crate::nic::tags::Switch;
use crate::offload::{F_NEEDS_CSUM, Offload};
use crate::port::{Device, Queues};
use crate::stats::{DropReason, QueueStats};
use crate::vlan;

/// The tag that is put on: priority 5, VLAN 300.
const TAG: u16 = 5 << 13 | 300;

/// A card of any family with its driver, started.
pub struct Rig<M: Model> {
    /// The driver.
    pub nic: Box<dyn Device>,
    /// The card.
    pub card: Handle<M>,
    /// Buffers.
    pub pool: Pool,
    /// Buffers of this core.
    pub cache: PoolCache,
    /// Its queue halves.
    pub queues: Queues,
    /// How it strips and inserts.
    pub switch: Switch,
    /// Frames the card took a tag off, and frames it inserted one in.
    pub n_tags: fn(&M) -> [u64; 2],
}

/// With as many queues.
fn rig<S: Subject>(n_queues: u16) -> Rig<S::Model> {
    let Bench { nic, model: card, pool, cache, queues, .. } = Bench::<S>::with_queues(n_queues);
    Rig { nic: Box::new(nic), card, pool, cache, queues, switch: S::Chip::TAGS, n_tags: S::n_tags }
}

/// What became of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed {
        bytes: Vec<u8>,
        verified: bool,
    },
    Dropped(DropReason),
    /// The card did not let it in.
    Nothing,
}

/// A frame under trial.
struct Kind {
    name: &'static str,
    bytes: Vec<u8>,
    /// Where it is cut into buffers, besides where they are full.
    cuts: &'static [usize],
    /// Its checksum is undone, from here on.
    undone_from: Option<u16>,
    shared: bool,
    /// The card inserts a tag, and strips the one there is.
    by_card: [bool; 2],
}

/// `words` (tags) behind the addresses.
fn with(bytes: &[u8], words: &[u16]) -> Vec<u8> {
    let tags: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    [&bytes[..12], &tags, &bytes[12..]].concat()
}

fn kinds(max_frame_bytes: usize) -> Vec<Kind> {
    let tagged = |n, len| with(&frame(n, len), &[0x8100, 3 << 13 | 1 << 12 | 100]);
    let (insert, strip, neither) = ([true, false], [false, true], [false, false]);
    let of =
        |name, bytes, by_card| Kind { name, bytes, cuts: &[], undone_from: None, shared: false, by_card };
    let cut = |name, bytes, cuts, by_card| Kind { cuts, ..of(name, bytes, by_card) };
    // The sum over the pseudo header alone, as a guest leaves it.
    let undone = |mut bytes: Vec<u8>, start: usize| {
        let pseudo = [&bytes[start - 8..start], &[0, 17, 0, 18]].concat();
        let sum = !crate::intel::model::internet_checksum(&pseudo);
        bytes[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    let work = |name, bytes, at: u16, by_card| Kind { undone_from: Some(at), ..of(name, bytes, by_card) };
    vec![
        of("untagged", frame(1, 60), insert),
        of("untagged, 64", frame(2, 64), insert),
        of("tagged", tagged(3, 60), strip),
        of("tag of 4095", with(&frame(4, 60), &[0x8100, 0xffff]), strip),
        of("the tag itself", with(&frame(4, 60), &[0x8100, TAG]), strip),
        of("priority tagged", with(&frame(5, 60), &[0x8100, 5 << 13]), strip),
        of("tag of zeros", with(&frame(5, 60), &[0x8100, 0]), strip),
        of("provider tagged", with(&frame(6, 60), &[0x88a8, 100]), insert),
        of("provider and customer tagged", with(&frame(7, 60), &[0x88a8, 100, 0x8100, 200]), insert),
        of("twice tagged", with(&frame(8, 60), &[0x8100, 100, 0x8100, 200]), strip),
        of("three times tagged", with(&frame(8, 60), &[0x8100, 1, 0x8100, 2, 0x8100, 3]), strip),
        of("runt, 13", frame(9, 13), neither),
        of("14", frame(10, 14), neither),
        of("17", frame(11, 17), neither),
        of("18", frame(12, 18), insert),
        of("tagged, 17 in all", tagged(13, 60)[..17].to_vec(), neither),
        of("tagged, 18 in all", tagged(14, 60)[..18].to_vec(), strip),
        of("1514", frame(15, 1514), insert),
        of("1514 and a tag", tagged(16, 1514), strip),
        of("a full buffer", frame(17, DATA_ROOM), insert),
        of("a full buffer with its tag", tagged(18, DATA_ROOM - 4), strip),
        of("a full buffer and a tag", tagged(19, DATA_ROOM), strip),
        of("jumbo", frame(20, 9014), insert),
        of("jumbo and a tag", tagged(21, 9014), strip),
        of("longest that has room for a tag", frame(22, max_frame_bytes - 4), insert),
        of("longest", frame(22, max_frame_bytes), neither),
        of("longest with its tag", tagged(23, max_frame_bytes - 4), strip),
        of("too long", frame(24, max_frame_bytes + 1), neither),
        cut("addresses apart", frame(25, 100), &[12], neither),
        cut("tag in two", tagged(26, 100), &[13, 15], strip),
        cut("long header, rest apart", frame(27, 3000), &[18], insert),
        Kind { shared: true, ..of("shared", frame(28, 80), insert) },
        Kind { shared: true, ..of("shared and tagged", tagged(29, 80), strip) },
        of("UDP", udp(1, true), insert),
        of("UDP, wrong", udp(2, false), insert),
        of("UDP and a tag", with(&udp(3, true), &[0x8100, 7]), strip),
        work("UDP undone", undone(udp(4, true), 34), 34, insert),
        work("UDP undone behind a tag", with(&undone(udp(5, true), 34), &[0x8100, 7]), 38, strip),
        work("checksum out of the card's reach", frame(30, 400), 290, insert),
    ]
}

fn drops(stats: &QueueStats) -> Vec<u64> {
    DropReason::ALL.iter().map(|reason| stats.drops(*reason)).collect()
}

fn first_new(before: &[u64], stats: &QueueStats) -> Option<DropReason> {
    DropReason::ALL.iter().copied().zip(before).find(|(reason, n)| stats.drops(*reason) > **n).map(|d| d.0)
}

impl<M: Model> Rig<M> {
    fn packet(&mut self, kind: &Kind) -> PacketBuf {
        let mut packet: Option<PacketBuf> = None;
        let mut from = 0;
        let cuts = kind.cuts.iter().copied().filter(|cut| *cut < kind.bytes.len());
        for to in cuts.chain([kind.bytes.len()]) {
            for piece in kind.bytes[from..to].chunks(DATA_ROOM) {
                let mut buffer = self.cache.alloc().unwrap();
                buffer.append(piece).unwrap();
                match &mut packet {
                    None => packet = Some(buffer),
                    Some(head) => head.last_segment_mut().chain(buffer),
                }
            }
            from = to;
        }
        let mut packet = packet.unwrap();
        if let Some(csum_start) = kind.undone_from {
            let work = Offload { flags: F_NEEDS_CSUM, csum_start, csum_offset: 6, ..Offload::default() };
            packet.set_offload(Some(work));
        }
        packet
    }

    fn counts(&self) -> [u64; 2] {
        (self.n_tags)(&self.card.lock())
    }

    /// Sends one frame; what leaves the card, and what the half counts of it.
    fn sent(&mut self, kind: &Kind, in_software: bool) -> (Outcome, u64) {
        let mut packet = self.packet(kind);
        let other = kind.shared.then(|| packet.share());
        let stats = self.queues.tx[0].stats();
        let before = (stats.bytes.get(), drops(&stats));
        let done = if in_software { vlan::add_tag(&mut packet, TAG, &mut self.cache) } else { Ok(()) };
        if let Err(reason) = done {
            self.cache.free(packet);
            return (Outcome::Dropped(reason), 0);
        }
        let mut burst = Burst::new();
        burst.push(packet).unwrap();
        assert_eq!(self.queues.tx[0].tx_burst(&mut self.cache, &mut burst), 1, "{}", kind.name);
        self.card.step();
        self.queues.tx[0].poll_control();
        if let Some(other) = other {
            assert_eq!(other.segments().collect::<Vec<_>>().concat(), kind.bytes, "the other reader's");
            self.cache.free(other);
        }
        let bytes = stats.bytes.get() - before.0;
        let mut frames = self.card.transmitted();
        let dropped = first_new(&before.1, &stats);
        match (frames.pop(), dropped) {
            (Some(frame), None) => (Outcome::Passed { bytes: frame, verified: false }, bytes),
            (None, Some(reason)) => (Outcome::Dropped(reason), bytes),
            other => panic!("{}: {other:?}", kind.name),
        }
    }

    /// One frame comes in; what the component behind it has, and what the half counts of it.
    fn received(&mut self, kind: &Kind, in_software: bool) -> (Outcome, u64) {
        let stats = self.queues.rx[0].stats();
        let before = (stats.bytes.get(), drops(&stats));
        self.card.inject(&kind.bytes);
        self.card.step();
        let mut burst = Burst::new();
        for _ in 0..2 {
            self.queues.rx[0].rx_burst(&mut self.cache, &mut burst);
        }
        let bytes = stats.bytes.get() - before.0;
        let dropped = first_new(&before.1, &stats);
        let Some(mut packet) = burst.pop() else {
            return (dropped.map_or(Outcome::Nothing, Outcome::Dropped), 0);
        };
        let done = if in_software { vlan::remove_tag(&mut packet, &mut self.cache) } else { Ok(()) };
        let (bytes_now, verified) = (packet.segments().collect::<Vec<_>>().concat(), packet.is_verified());
        self.cache.free(packet);
        match done {
            Ok(()) => (Outcome::Passed { bytes: bytes_now, verified }, bytes),
            Err(reason) => (Outcome::Dropped(reason), 0),
        }
    }

    /// The halves ask for both; the control half looks. Whether the card strips and inserts then.
    fn ask(&mut self, on: bool) -> [bool; 2] {
        let can_insert = self.switch != Switch::Foreign;
        for half in &mut self.queues.rx {
            assert!(half.strip_vlan(on));
        }
        for half in &mut self.queues.tx {
            assert_eq!(half.insert_vlan(on.then_some(TAG)), can_insert || !on);
            half.poll_control();
        }
        assert!(self.nic.link().is_up());
        [can_insert && on, on]
    }

    fn counter(&mut self, name: &str) -> u64 {
        self.nic.device_counters().into_iter().find(|c| c.0 == name).unwrap().1
    }

    /// Nothing is lost, nothing was touched that is not ours.
    fn finish(mut self) {
        self.nic.stop(std::mem::take(&mut self.queues));
        assert_eq!(self.card.stray_accesses(), [] as [u64; 0]);
        drop(self.nic);
        drop(self.cache);
        assert_eq!(self.pool.counts().out, 0);
    }
}

/// Every kind of frame, in software and by the card.
pub fn every_frame_is_the_same<M: Model>(mut rig: Rig<M>) {
    let kinds = kinds(rig.nic.info().max_frame_bytes as usize);
    rig.nic.set_promiscuous(true).unwrap();
    rig.nic.set_vlans(&[1, 7, 100, 300, 4095, 0]).unwrap();
    let before: Vec<_> = kinds.iter().map(|kind| (rig.sent(kind, true), rig.received(kind, true))).collect();
    let foreign = rig.switch == Switch::Foreign;
    assert!(foreign || rig.counts() == [0, 0], "without being asked the card does nothing");
    // Twice, with the card told anew in between.
    for _ in 0..2 {
        let [inserts, strips] = rig.ask(true);
        let mut wanted = rig.counts();
        let counted = [rig.counter("rx_tags_stripped"), rig.counter("tx_tags_inserted")];
        for (kind, (sent, received)) in kinds.iter().zip(&before) {
            if inserts {
                assert_eq!(rig.sent(kind, false), *sent, "{} sent", kind.name);
                wanted[1] += u64::from(kind.by_card[0]);
            }
            assert_eq!(rig.received(kind, false), *received, "{} received", kind.name);
            let is_in = received.0 != Outcome::Nothing;
            wanted[0] += u64::from(kind.by_card[1] && strips && is_in);
            assert_eq!(rig.counts(), wanted, "{}: the card did its part and no more", kind.name);
        }
        let now = [rig.counter("rx_tags_stripped"), rig.counter("tx_tags_inserted")];
        assert!(now[0] > counted[0] + 10, "{now:?}");
        assert!(!inserts || now[1] > counted[1] + 10, "{now:?}");
        rig.ask(false);
        let (counts, tagged) = (rig.counts(), &kinds[2]);
        let as_it_is = Outcome::Passed { bytes: tagged.bytes.clone(), verified: false };
        assert_eq!((rig.sent(tagged, false).0, rig.received(tagged, false).0), (as_it_is.clone(), as_it_is));
        assert!(foreign || rig.counts() == counts, "the card does nothing any more");
    }
    rig.finish();
}

/// A burst of all kinds that fit, in order, by the card.
pub fn mixed_bursts_keep_their_order<M: Model>(mut rig: Rig<M>) {
    let max = rig.nic.info().max_frame_bytes as usize;
    let kinds: Vec<_> = kinds(max).into_iter().filter(|kind| kind.bytes.len() < 2000).collect();
    let passed = |outcome: Outcome| match outcome {
        Outcome::Passed { bytes, .. } => Some(bytes),
        _ => None,
    };
    let wanted: Vec<_> = kinds.iter().filter_map(|kind| passed(rig.sent(kind, true).0)).collect();
    rig.ask(true);
    for round in 0..40 {
        let mut burst = Burst::new();
        for kind in &kinds {
            if burst.room() == 0 {
                rig.queues.tx[0].tx_burst(&mut rig.cache, &mut burst);
            }
            let packet = rig.packet(kind);
            burst.push(packet).unwrap();
        }
        while !burst.is_empty() {
            rig.queues.tx[0].tx_burst(&mut rig.cache, &mut burst);
            rig.card.step();
        }
        assert_eq!(rig.card.transmitted(), wanted, "round {round}");
    }
    rig.finish();
}

/// Frames under way while the card is switched on and off.
pub fn frames_under_way_while_the_card_is_switched_are_right<M: Model>(mut rig: Rig<M>) {
    let kinds = kinds(rig.nic.info().max_frame_bytes as usize);
    let (plain, tagged) = (&kinds[0], &kinds[2]);
    let (without, with_tag) = (frame(3, 60), with(&plain.bytes, &[0x8100, TAG]));
    let passed = |bytes: &Vec<u8>| Outcome::Passed { bytes: bytes.clone(), verified: false };
    let can_insert = rig.switch != Switch::Foreign;
    rig.nic.set_promiscuous(true).unwrap();
    rig.nic.set_vlans(&[100]).unwrap();
    // Asked, but the control half has not looked yet.
    assert!(rig.queues.rx[0].strip_vlan(true));
    assert_eq!(rig.queues.tx[0].insert_vlan(Some(TAG)), can_insert);
    assert_eq!(rig.received(tagged, false).0, passed(&without));
    if can_insert {
        assert_eq!(rig.sent(plain, false).0, passed(&with_tag));
    }
    let one = rig.switch == Switch::One;
    let counts = rig.counts();
    assert!(!one || counts == [0, 0], "in software");
    // The card is switched with a frame in the ring from before, and one from after.
    rig.card.inject(&tagged.bytes);
    rig.card.step();
    assert!(rig.nic.link().is_up());
    rig.card.inject(&tagged.bytes);
    rig.card.step();
    let mut burst = Burst::new();
    assert_eq!(rig.queues.rx[0].rx_burst(&mut rig.cache, &mut burst), 2);
    assert!(burst.iter().all(|packet| packet.data() == without));
    burst.free_all(&mut rig.cache);
    assert!(rig.counts()[0] > counts[0]);
    // A frame in either ring when the halves want it no more.
    rig.card.inject(&tagged.bytes);
    rig.card.step();
    let packet = rig.packet(plain);
    burst.push(packet).unwrap();
    rig.queues.tx[0].tx_burst(&mut rig.cache, &mut burst);
    assert!(rig.queues.rx[0].strip_vlan(false) && rig.queues.tx[0].insert_vlan(None));
    assert!(rig.nic.link().is_up());
    assert_eq!(rig.queues.rx[0].rx_burst(&mut rig.cache, &mut burst), 1);
    assert_eq!(burst[0].data(), tagged.bytes, "put back");
    burst.free_all(&mut rig.cache);
    rig.card.step();
    let left = if can_insert { &with_tag } else { &plain.bytes };
    assert_eq!(rig.card.transmitted(), std::slice::from_ref(left), "what was under way gets its tag");
    // And from then on all is as before.
    rig.queues.tx[0].poll_control();
    assert!(rig.nic.link().is_up());
    let counts = rig.counts();
    assert_eq!(rig.received(tagged, false).0, passed(&tagged.bytes));
    assert_eq!(rig.sent(plain, false).0, passed(&plain.bytes));
    assert!(rig.switch == Switch::Foreign || rig.counts() == counts);
    rig.finish();
}

/// One queue of several wants its tags off.
pub fn queue_that_wants_its_tags_keeps_them<M: Model>(mut rig: Rig<M>) {
    let tagged = with(&frame(3, 60), &[0x8100, 100]);
    assert!(rig.queues.rx.len() > 1);
    rig.nic.set_promiscuous(true).unwrap();
    assert!(rig.queues.rx[1].strip_vlan(true) && rig.nic.link().is_up());
    // What is no IP goes to the first queue.
    let kind = |bytes| Kind { bytes, ..kinds(9000).swap_remove(0) };
    let passed = |bytes| Outcome::Passed { bytes, verified: false };
    assert_eq!(rig.received(&kind(tagged.clone()), false).0, passed(tagged.clone()));
    assert_eq!(rig.counts()[0], 0);
    assert!(rig.queues.rx[0].strip_vlan(true) && rig.nic.link().is_up());
    for half in &mut rig.queues.rx[2..] {
        half.strip_vlan(true);
    }
    assert!(rig.nic.link().is_up());
    assert_eq!(rig.received(&kind(tagged.clone()), false).0, passed(frame(3, 60)));
    assert_eq!(rig.counts()[0], 1);
    assert!(rig.queues.rx[1].strip_vlan(false) && rig.nic.link().is_up());
    assert_eq!(rig.received(&kind(tagged), false).0, passed(frame(3, 60)), "by whoever does it now");
    assert_eq!(rig.counts()[0], if rig.switch == Switch::EachQueue { 2 } else { 1 });
    rig.finish();
}

pub fn tags_by_the_card_are_those_of_software<S: Subject>() {
    every_frame_is_the_same(rig::<S>(1));
}

pub fn bursts_of_all_kinds_get_their_tags_in_order<S: Subject>() {
    mixed_bursts_keep_their_order(rig::<S>(1));
}

pub fn tags_of_frames_under_way_at_a_switch_are_right<S: Subject>() {
    frames_under_way_while_the_card_is_switched_are_right(rig::<S>(1));
}

pub fn queues_decide_on_their_tags_by_themselves<S: Subject>() {
    queue_that_wants_its_tags_keeps_them(rig::<S>(2));
}

pub fn card_that_was_reset_is_asked_for_tags_anew<S: Subject>() {
    let mut bench = Bench::<S>::new();
    let tagged = with(&frame(3, 60), &[0x8100, 100]);
    bench.nic.set_vlans(&[100]).unwrap();
    bench.queues.rx[0].strip_vlan(true);
    assert!(bench.nic.link().is_up());
    bench.model.inject(&tagged);
    assert_eq!(bench.receive(2), [frame(3, 60)]);
    bench.restart();
    bench.model.inject(&tagged);
    assert_eq!(bench.receive(2), [tagged], "the new halves were not asked");
    assert_eq!(MAC.0, frame(0, 60)[..6]);
    bench.works();
    bench.finish();
}
