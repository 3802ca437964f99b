//! The sending half of a vhost port: frames for the guest to receive (its ring 0).
//!
//! Polled by one core. With several queues enabled frames go to them by flow. A frame fills one chain, or several when
//! the guest merges buffers. A full ring leaves the rest of the burst to the caller; a ring that isn't running takes all and
//! drops it by name. A frame with work that the guest did not negotiate stays with the caller too, who
//! has asked for [`offloads`](TxQueue::offloads) and does it.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arrayvec::ArrayVec;
use spp_drivers::dma::{PacketBuf, PoolCache};
use spp_drivers::offload::Offloads;
use spp_drivers::port::TxQueue;
use spp_drivers::stats::{DropReason, QueueStats, SharedStats};
use spp_drivers::{BURST, Burst, End, LentFrame};

use crate::deal::{Live, Seat};
use crate::flow;
use crate::lanes::{Lane, LaneStats, Lanes};
use crate::memory::{Gpa, GuestSlice, Translator};
use crate::net_hdr::{self, HEADER_BYTES};
use crate::vring::chain::{Chain, ChainError, Direction, MAX_CHAIN};
use crate::vring::layout::{F_INDIRECT, F_NEXT, F_WRITE};
use crate::vring::walk::{Entries, Head, Layout, Place as RingPlace, Queue, Used, for_layout};
use crate::vring::{MAX_PAIRS, Place, Plain, RingFault, RingFeatures, Told, scatter, work_is_taken};

/// The half that sends to the guest.
pub struct ToGuest {
    lanes: Lanes,
    stats: SharedStats,
    /// Where a burst is dealt out to several rings; only for a half that may have several.
    deal: Option<Box<[Burst; MAX_PAIRS]>>,
}

impl ToGuest {
    /// A half without a ring yet.
    pub fn new(lanes: impl IntoIterator<Item = Lane>, bell: Arc<AtomicUsize>) -> ToGuest {
        let lanes = Lanes::new(lanes, bell, false);
        let deal = (lanes.n_all() > 1).then(Default::default);
        ToGuest { lanes, stats: QueueStats::shared(), deal }
    }

    /// The half shares its port: queues come and go at `seat`.
    pub(crate) fn sit(&mut self, seat: Seat) {
        self.lanes.sit(seat);
        self.deal.get_or_insert_default();
    }

    /// Whether the guest has a queue of this half enabled: what is sent while it has not is dropped.
    pub fn live(&self) -> Live {
        self.lanes.live().clone()
    }

    /// Sends on one ring. A ring that fails takes the rest along: it would only fail again.
    #[inline(always)]
    fn send_on(&mut self, nth: usize, pool: &mut PoolCache, from: &mut Burst) -> usize {
        let Lane { mailbox, stats, .. } = self.lanes.active(nth);
        let sent = match mailbox.ring() {
            Some((ring, _)) => for_layout!(&mut ring.0, ring => send(ring, pool, from, &self.stats)),
            None => Err(RingFault::MemoryGone), // lanes without a ring are not active
        };
        match sent {
            Ok(sent) => {
                sent.count(&self.stats, stats);
                sent.n_left
            }
            Err(fault) => {
                mailbox.fail(fault);
                self.lanes.refresh();
                self.drop_all(pool, from)
            }
        }
    }

    fn drop_all(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        let n = from.free_all(pool);
        self.stats.dropped(DropReason::NotRunning, n);
        n
    }

    /// Sends a burst on several rings, each frame on its flow's.
    #[inline(never)]
    fn spread(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        let (n_lanes, mut lanes) = (self.lanes.n_active(), [0; BURST]);
        let lanes = &mut lanes[..from.len()];
        for (lane, packet) in lanes.iter_mut().zip(from.iter()) {
            *lane = flow::pick(flow::hash(packet.data()), n_lanes);
        }
        match *lanes {
            // Of one flow: 207 instructions a packet, 735 for one alone, that were 228 and 957; mixed bursts take 295, and took
            // 282 (`spp-stages --count "4 queues"`).
            [first, ref others @ ..] if others.iter().all(|other| *other == first) => {
                self.send_on(first, pool, from)
            }
            _ => self.deal_out(lanes, pool, from),
        }
    }

    /// Deals a burst out to the rings: what a ring has no room for comes back, each flow in its order.
    fn deal_out(&mut self, lanes: &[usize], pool: &mut PoolCache, from: &mut Burst) -> usize {
        let Some(mut deal) = self.deal.take() else { return self.drop_all(pool, from) };
        let (n_lanes, n) = (self.lanes.n_active(), from.len());
        for (packet, lane) in from.take_all().zip(lanes) {
            let dealt = deal[*lane].push(packet);
            debug_assert!(dealt.is_ok(), "one burst fits one burst");
        }
        // From the last to the first: a lane that fails leaves those before it where they are.
        for (nth, burst) in deal.iter_mut().enumerate().take(n_lanes).rev() {
            if !burst.is_empty() {
                self.send_on(nth, pool, burst);
            }
        }
        for burst in deal.iter_mut().take(n_lanes) {
            for packet in burst.take_all() {
                let left = from.push(packet);
                debug_assert!(left.is_ok(), "it came from there");
            }
        }
        self.deal = Some(deal);
        n - from.len()
    }
}

impl TxQueue for ToGuest {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        self.lanes.poll();
        match self.lanes.n_active() {
            0 => self.drop_all(pool, from),
            1 => self.send_on(0, pool, from),
            _ => self.spread(pool, from),
        }
    }

    /// To a guest with one queue only: more are chosen by what stands in the frames.
    fn tx_lent(&mut self, frames: &[LentFrame<'_>]) -> usize {
        self.lanes.poll();
        if self.lanes.n_active() != 1 {
            return 0;
        }
        let Lane { mailbox, stats, .. } = self.lanes.active(0);
        let Some((ring, _)) = mailbox.ring() else { return 0 };
        match for_layout!(&mut ring.0, ring => send_lent(ring, frames)) {
            Ok(sent) => {
                sent.count(&self.stats, stats);
                sent.n_left
            }
            // Found again, and reported, by the burst of packets that comes instead.
            Err(_) => 0,
        }
    }

    fn offloads(&mut self) -> Offloads {
        self.lanes.poll();
        // Without a ring nothing is sent, so nothing need be done before. All rings of a guest have its features.
        if self.lanes.n_active() == 0 {
            return Offloads::ALL;
        }
        let ring = self.lanes.active(0).mailbox.ring();
        ring.map_or(Offloads::ALL, |(ring, _)| for_layout!(&ring.0, ring => ring.features.to_guest))
    }

    fn poll_control(&mut self) {
        self.lanes.poll();
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

/// What one burst came to: frames that left the burst, and those of them that were delivered.
#[derive(Default)]
struct Sent {
    n_left: usize,
    n_frames: usize,
    bytes: u64,
    called: bool,
}

impl Sent {
    /// In the counters of all rings, and of the one.
    #[inline(always)]
    fn count(&self, all: &QueueStats, one: &LaneStats) {
        all.moved(self.n_frames, self.bytes);
        one.packets.add(self.n_frames as u64);
        one.calls.add(u64::from(self.called));
    }
}

/// Sends from the front of `frames`, up to the first that doesn't fit one direct descriptor.
#[inline(always)]
fn send_lent<L: Layout>(ring: &mut Queue<L>, frames: &[LentFrame<'_>]) -> Result<Sent, RingFault> {
    ring.look()?;
    let (n, bytes) = send_plain(ring, &frames[..frames.len().min(BURST)])?;
    Ok(Sent { n_left: n, n_frames: n, bytes, called: ring.publish() })
}

/// Sends from the front of `from`. A fault found half-way still publishes what was delivered before it.
fn send<L: Layout>(
    ring: &mut Queue<L>,
    pool: &mut PoolCache,
    from: &mut Burst,
    stats: &QueueStats,
) -> Result<Sent, RingFault> {
    ring.look()?;
    let mut sent = Sent::default();
    let mut fault = None;
    while !from.is_empty() {
        match send_plain(ring, &from[..]) {
            Ok((n, bytes)) => {
                sent.n_frames += n;
                sent.bytes += bytes;
                sent.n_left += n;
                pool.free_front(from, n);
            }
            Err(found) => {
                fault = Some(found);
                break;
            }
        }
        let Some(packet) = from.first() else { break };
        match send_chained(ring, packet) {
            Ok(Outcome::Full) => break,
            Ok(Outcome::Dropped(reason)) => stats.dropped(reason, 1),
            Ok(Outcome::Delivered) => {
                sent.n_frames += 1;
                sent.bytes += packet.total_len() as u64;
            }
            Err(found) => {
                fault = Some(found);
                break;
            }
        }
        sent.n_left += 1;
        from.take_front(1).for_each(|packet| pool.free(packet));
    }
    sent.called = ring.publish();
    match fault {
        Some(fault) if sent.n_left == 0 => Err(fault),
        // Found again, and reported, by the next burst.
        _ => Ok(sent),
    }
}

/// Sends frames (at most a burst) that fit one direct descriptor, up to the first that doesn't: most of all
/// traffic. Returns how many, and their bytes; their chains are used, but not yet published. None to a legacy driver, whose
/// headers are shorter.
#[inline(always)]
fn send_plain<L: Layout, F: Plain>(ring: &mut Queue<L>, from: &[F]) -> Result<(usize, u64), RingFault> {
    let Queue { layout, place, features, log, .. } = ring;
    let may_go = from.first().is_some_and(|frame| frame.may_go(features.to_guest));
    if !may_go || features.header_bytes != HEADER_BYTES {
        return Ok((0, 0));
    }
    let mut entries = Entries::<L>::new();
    layout.entries(place, from.len(), &mut entries)?;
    let mut places = ArrayVec::new();
    find_places(layout, features, &entries, from, &mut places);
    let filled = fill_places(layout, place, &entries, &places);
    if filled.left != 0 {
        fill_left(filled.left, &places, from, features.to_guest);
    }
    if let Some(log) = log {
        for place in &places {
            let buffer = place.buffer();
            log.wrote(layout.map(), &[buffer], buffer.len());
        }
    }
    Ok((places.len(), filled.bytes))
}

/// Finds room for the frames in front. What will be read and written first is on its way then.
#[inline(always)]
fn find_places<'b, L: Layout, F: Plain>(
    layout: &'b L,
    &RingFeatures { max_frame_bytes, to_guest, .. }: &RingFeatures,
    entries: &[L::Entry],
    from: &'b [F],
    places: &mut ArrayVec<Place<'b>, BURST>, // returned, most of a KiB would be copied
) {
    let (mut memory, table, told) = (Translator::new(layout.map()), layout.table(), Told::of(to_guest));
    let (mut rest, mut end) = (entries.iter().zip(from), End::of(places));
    loop {
        let nearby = memory.nearby(0, LONGEST);
        // A loop without calls.
        let (head, frame) = 'run: {
            for (entry, frame) in rest.by_ref() {
                let head = L::head(table, *entry);
                if frame.is_plain() && frame.len() <= max_frame_bytes {
                    let buffer = direct(&head, |gpa, len| nearby.slice(gpa, len));
                    let place = buffer.and_then(|buffer| Place::new(buffer, frame.lend(), told));
                    if let Some(place) = place {
                        keep(place, &mut end);
                        continue;
                    }
                }
                break 'run (head, frame);
            }
            return;
        };
        if !frame.may_go(to_guest) || frame.len() > max_frame_bytes {
            return;
        }
        // Of another region, or with work that the guest does.
        let buffer = direct(&head, |gpa, len| memory.slice(gpa, len));
        let Some(place) = buffer.and_then(|buffer| Place::new(buffer, frame.lend(), told)) else { return };
        keep(place, &mut end);
    }
}

/// One more, of which what is read and written first is on its way.
#[inline(always)]
fn keep<'b>(place: Place<'b>, end: &mut End<'_, Place<'b>>) {
    place.fetch();
    let pushed = end.push(place);
    debug_assert!(pushed.is_ok(), "at most a burst was asked for");
}

/// Longest buffer that a loop without calls takes: no frame in one packet buffer would need a longer one.
const LONGEST: u32 = 68 * 1024;

/// The buffer of a chain of one direct descriptor, if it is for writing. All of it must lie in the guest's memory, however much of it
/// the frame takes.
#[inline(always)]
fn direct<'b>(
    head: &Head,
    translate: impl FnOnce(Gpa, u32) -> Option<GuestSlice<'b>>,
) -> Option<GuestSlice<'b>> {
    let is_plain = head.first.flags & (F_NEXT | F_INDIRECT | F_WRITE) == F_WRITE;
    if is_plain { translate(Gpa(head.first.addr), head.first.len) } else { None }
}

/// What was written into places.
struct Filled {
    bytes: u64,
    /// Bit `i`: the `i`th is still to be filled.
    left: u32,
}

/// Writes frames into their places, and the used elements as it goes: a loop without calls.
#[inline(always)]
fn fill_places<L: Layout>(
    layout: &L,
    place: &mut RingPlace,
    entries: &[L::Entry],
    places: &[Place<'_>],
) -> Filled {
    let (mut bytes, mut left, mut bit) = (0, 0u32, 1u32);
    let used = entries.iter().zip(places).map(|(entry, place)| {
        if !place.fill_short() {
            left |= bit;
        }
        bit <<= 1;
        bytes += u64::from(place.frame_bytes());
        L::used(*entry, HEADER_BYTES as u32 + place.frame_bytes())
    });
    layout.complete(place, Direction::ToGuest, used);
    Filled { bytes, left }
}

/// The frames that take a call each.
#[inline(never)]
fn fill_left<F: Plain>(mut left: u32, places: &[Place<'_>], from: &[F], to_guest: Offloads) {
    while left != 0 {
        let i = left.trailing_zeros() as usize;
        places[i].fill(from[i].header(to_guest));
        left &= left - 1;
    }
}

/// How one frame ended.
enum Outcome {
    Delivered,
    /// It leaves the burst undelivered.
    Dropped(DropReason),
    /// Not enough chains now, or work the guest doesn't do; it stays.
    Full,
}

/// Chains gathered for one frame; their lengths are capacities first.
type Taken = ArrayVec<Used, MAX_CHAIN>;

/// Sends one frame of any shape into chains of any shape. The chains it takes are used, but not yet published.
#[inline(never)]
fn send_chained<L: Layout>(ring: &mut Queue<L>, packet: &PacketBuf) -> Result<Outcome, RingFault> {
    let Queue { layout, place, features, log, .. } = ring;
    if !work_is_taken(packet, features.to_guest) {
        return Ok(Outcome::Full);
    }
    if packet.total_len() > features.max_frame_bytes && !packet.offload().is_some_and(|work| work.is_long()) {
        return Ok(Outcome::Dropped(DropReason::Oversize));
    }
    let need = (features.header_bytes + packet.total_len()) as u64;
    let mut memory = Translator::new(layout.map());
    let (mut chain, mut taken, mut cursor) = (Chain::new(), Taken::new(), place.avail);
    while chain.bytes() < need {
        if !taken.is_empty() && !features.mergeable || taken.is_full() {
            return Ok(Outcome::Dropped(DropReason::Oversize));
        }
        let Some(head) = layout.head_at(place, &mut cursor)? else {
            // All the guest could ever give, and still too little: waiting would not help.
            let n_slots: u32 = taken.iter().map(|used| u32::from(used.n_slots)).sum();
            let all = n_slots == u32::from(layout.size());
            return Ok(if all { Outcome::Dropped(DropReason::Oversize) } else { Outcome::Full });
        };
        let before = chain.bytes();
        let gathered = layout.gather(&head, &mut memory, Direction::ToGuest, features.indirect, &mut chain);
        match gathered {
            // More than a frame can need is as good as the most it can.
            Ok(()) => taken.push(head.used(u32::try_from(chain.bytes() - before).unwrap_or(u32::MAX))),
            Err(ChainError::TooLong) if !taken.is_empty() => {
                return Ok(Outcome::Dropped(DropReason::Oversize));
            }
            Err(error) => {
                // Bad chains go back with length 0, or the guest would wait for them for ever.
                taken.push(head.used(0));
                layout.complete(place, Direction::ToGuest, taken.iter().map(|used| Used { len: 0, ..*used }));
                return Ok(Outcome::Dropped(error.reason()));
            }
        }
    }
    let header = net_hdr::to_guest(packet, taken.len() as u16, features.to_guest);
    scatter(&chain, &header.to_bytes()[..features.header_bytes], packet);
    if let Some(log) = log {
        log.wrote(layout.map(), &chain, need as usize);
    }
    let mut left = need as u32;
    let lens = taken.iter().map(|used| {
        let len = left.min(used.len);
        left -= len;
        Used { len, ..*used }
    });
    layout.complete(place, Direction::ToGuest, lens);
    Ok(Outcome::Delivered)
}
