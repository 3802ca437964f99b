//! The dirty log of a migration: every page that a port changes in its guest's memory is marked, in both ring
//! layouts; what the guest changes itself is not looked at, because a copy of its memory gets the same writes.

mod support;

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use spp_vhost::PortState;
use support::peer::*;
use support::served::Served;
use support::*;

const NONE: [u64; 0] = [];
const DEADLINE: Duration = Duration::from_secs(20);
const SIZE: u16 = 64;
const LOG_ALL: u64 = 1 << 26;
const PACKED: u64 = 1 << 34;
/// VERSION_1, protocol features, MRG_RXBUF.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 15;
/// The log starts in the middle of a page of its file.
const LOG_AT: u64 = 4096 + 24;
const N_PAGES: u64 = 2 * REGION / 4096;
const LOG_BYTES: u64 = N_PAGES / 8;

/// Ring 0 (receive) and 1 (transmit): descriptors, used, available; apart by pages. A page ends between the used index and
/// its elements, so that neither is marked by the other's leave.
const AT: [[u64; 3]; 2] = [[0x1000, 0x3ffc, 0x5000], [0x8000, 0xaffc, 0xc000]];
/// First entry: the split index, and the packed slot with its wrap counter, are about to wrap.
const START: u16 = 65_530;
const PACKED_START: u16 = 60 | 1 << 15;

/// Memory, and what it would be had the port never written to it.
struct Guest {
    memory: Memory,
    shadow: Vec<u8>,
    packed: bool,
    /// Next entry of each ring.
    next: [u16; 2],
}

impl Guest {
    fn new(packed: bool) -> Guest {
        let next = if packed { [PACKED_START; 2] } else { [START; 2] };
        let mut guest = Guest { memory: Memory::new(), shadow: vec![0; 2 * REGION as usize], packed, next };
        if !packed {
            for [_, used, avail] in AT {
                guest.write(avail + 2, &START.to_le_bytes());
                guest.write(used + 2, &START.to_le_bytes());
            }
        }
        guest
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) {
        self.shadow[gpa as usize..gpa as usize + bytes.len()].copy_from_slice(bytes);
        self.memory.write(gpa, bytes);
    }

    /// Makes one buffer available in a ring.
    fn offer(&mut self, ring: usize, addr: u64, len: u32, flags: u16) {
        let [desc, _, avail] = AT[ring];
        let next = self.next[ring];
        if self.packed {
            let (slot, wrap) = (next & 0x7fff, next & 0x8000 != 0);
            let turn = if wrap { 1 << 7 } else { 1 << 15 };
            let at = desc + 16 * u64::from(slot);
            self.write(at, &addr.to_le_bytes());
            let state = u64::from(len) | u64::from(slot) << 32 | u64::from(flags | turn) << 48;
            self.write(at + 8, &state.to_le_bytes());
            self.next[ring] = if slot + 1 == SIZE { next & 0x8000 ^ 0x8000 } else { next + 1 };
        } else {
            let slot = next % SIZE;
            let rest = u64::from(len) | u64::from(flags) << 32;
            self.write(desc + 16 * u64::from(slot), &[addr.to_le_bytes(), rest.to_le_bytes()].concat());
            self.write(avail + 4 + 2 * u64::from(slot), &slot.to_le_bytes());
            self.next[ring] = next.wrapping_add(1);
            self.write(avail + 2, &self.next[ring].to_le_bytes());
        }
    }

    /// Buffers for received frames, in both regions, over the ends of pages.
    fn offer_receive_buffers(&mut self) {
        for i in 0..u64::from(SIZE) {
            let gpa = if i % 2 == 0 { BUFFERS } else { REGION + 0x1000 };
            self.offer(0, gpa + i * 8000, 1700, WRITE);
        }
    }

    fn transmit(&mut self, n: u64, frame: &[u8]) {
        let at = REGION + 0x10_0000 + n % u64::from(SIZE) * 0x1000;
        self.write(at, &[&[0; 12], frame].concat());
        self.offer(1, at, 12 + frame.len() as u32, 0);
    }

    /// Pages that differ from what they would be without the port.
    fn changed(&self) -> Vec<u64> {
        let now = self.memory.read(0, 2 * REGION as usize);
        let page = |n: &u64| (*n * 4096) as usize..(*n * 4096 + 4096) as usize;
        (0..N_PAGES).filter(|n| now[page(n)] != self.shadow[page(n)]).collect()
    }

    fn addr(&self, ring: usize, logged_at: Option<u64>) -> Vec<u8> {
        let [desc, used, avail] = AT[ring].map(|at| at + VA);
        addr(ring as u32, u32::from(logged_at.is_some()), [desc, used, avail], logged_at.unwrap_or(0))
    }

    fn features(&self) -> u64 {
        FEATURES | if self.packed { PACKED } else { 0 }
    }

    fn set_up(&self, peer: &mut Peer) {
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        peer.piece(&Piece::Features(self.features()));
        peer.piece(&Piece::Memory(&self.memory));
        let base = if self.packed { u32::from(PACKED_START) * 0x1_0001 } else { START.into() };
        for ring in 0..2u32 {
            peer.piece(&Piece::Num(ring, SIZE.into()));
            peer.piece(&Piece::Base(ring, base));
            peer.tell(SET_VRING_ADDR, &self.addr(ring as usize, None));
            peer.piece(&Piece::Kick(ring, fd.as_fd()));
            peer.piece(&Piece::Enable(ring));
        }
        peer.settle();
    }

    /// As QEMU turns logging on and off.
    fn log(&self, peer: &mut Peer, on: bool) {
        let features = self.features() | if on { LOG_ALL } else { 0 };
        assert_eq!(peer.ask(SET_FEATURES, &features.to_ne_bytes()), 0);
        for (ring, [_, used, _]) in AT.iter().enumerate() {
            peer.tell(SET_VRING_ADDR, &self.addr(ring, on.then_some(*used)));
        }
        peer.settle();
    }
}

struct Log(File);

impl Log {
    fn new() -> Log {
        let file = memfd(3 * 4096);
        rustix::fs::ftruncate(&file, LOG_AT + LOG_BYTES).unwrap();
        Log(file)
    }

    fn send(&self, peer: &mut Peer) {
        let payload = [LOG_BYTES.to_ne_bytes(), LOG_AT.to_ne_bytes()].concat();
        assert_eq!(
            u64_of(&peer.get(SET_LOG_BASE, &payload, &[self.0.as_fd()])),
            0,
            "answered without being asked"
        );
    }

    /// Marked pages; clears them.
    fn take(&self) -> Vec<u64> {
        let mut bytes = vec![0; LOG_BYTES as usize];
        self.0.read_exact_at(&mut bytes, LOG_AT).unwrap();
        self.0.write_all_at(&vec![0; LOG_BYTES as usize], LOG_AT).unwrap();
        (0..N_PAGES).filter(|page| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1).collect()
    }
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock0");
    (dir, path)
}

fn connect(path: &std::path::Path) -> Peer {
    let mut peer = Peer::connect(path);
    assert_ne!(peer.greet(P_REPLY_ACK | P_LOG_SHMFD) & LOG_ALL, 0, "VHOST_F_LOG_ALL");
    peer
}

/// Frames in both directions until all have arrived: short ones, long ones, and some that take several buffers.
fn traffic(port: &Served, guest: &mut Guest, numbers: Range<u64>) {
    let before = port.status();
    let lens = [60, 1514, 4000, 300, 1688, 1689, 64, 3000];
    for n in numbers.clone() {
        port.send.send(frame(lens[n as usize % lens.len()], n as u8)).unwrap();
        let sent = frame(60 + n as usize * 50, n as u8);
        guest.transmit(n, &sent);
        assert_eq!(port.next(), sent);
    }
    let wanted = before.to_guest.packets + numbers.end - numbers.start;
    port.wait_until("all received", |status| status.to_guest.packets == wanted);
}

/// Waits until all changed pages are among those marked, now or before.
fn changes_get_marked(guest: &Guest, log: &Log, marked: &mut Vec<u64>) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let changed = guest.changed();
        marked.extend(log.take());
        let missing: Vec<_> = changed.iter().filter(|page| !marked.contains(page)).collect();
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "pages {missing:?} were changed and not marked");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_page_the_port_changes_is_marked() {
    for packed in [false, true] {
        let (_dir, path) = socket();
        let (port, log, mut guest) = (Served::listen(&path), Log::new(), Guest::new(packed));
        let mut peer = connect(&path);
        guest.set_up(&mut peer);
        port.wait_for(PortState::Running);
        log.send(&mut peer);
        assert_eq!(log.take(), NONE, "nothing is logged before LOG_ALL");
        guest.log(&mut peer, true);
        log.take();
        guest.shadow = guest.memory.read(0, 2 * REGION as usize);
        let mut marked = Vec::new();
        guest.offer_receive_buffers();
        // One frame each way marks what it changes by itself.
        traffic(&port, &mut guest, 0..1);
        changes_get_marked(&guest, &log, &mut marked);
        traffic(&port, &mut guest, 1..20);
        changes_get_marked(&guest, &log, &mut marked);
        // The last writes: a ring that stops lets its guest kick again.
        (0..2).for_each(|ring| drop(peer.get(GET_VRING_BASE, &state(ring, 0), &[])));
        changes_get_marked(&guest, &log, &mut marked);
        let changed = guest.changed();
        assert!(changed.len() > 30, "{} pages changed", changed.len());
        let used = AT.map(|[desc, used, _]| [desc, used, used + 4]).concat();
        let extra: Vec<_> = marked.iter().filter(|page| !changed.contains(page)).collect();
        assert!(
            extra.iter().all(|page| used.iter().any(|at| at / 4096 == **page)),
            "marked without a change: {extra:?}"
        );
        drop(peer);
        port.close();
    }
}

#[test]
fn logging_stops_with_its_feature_and_its_memory_is_unmapped() {
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:guest").count();
    for packed in [false, true] {
        let (_dir, path) = socket();
        let (port, log, mut guest) = (Served::listen(&path), Log::new(), Guest::new(packed));
        let mut peer = connect(&path);
        guest.set_up(&mut peer);
        port.wait_for(PortState::Running);
        for _ in 0..10 {
            let before = mapped();
            log.send(&mut peer);
            guest.log(&mut peer, true);
            // A bigger one, as when memory is added: the old one goes.
            log.send(&mut peer);
            let sent = frame(60, 1);
            guest.transmit(0, &sent);
            assert_eq!(port.next(), sent);
            assert_ne!(log.take(), NONE);
            guest.log(&mut peer, false);
            log.take();
            guest.transmit(1, &sent);
            assert_eq!(port.next(), sent);
            assert_eq!(log.take(), NONE, "no bit after the end");
            // Tests beside this one map and unmap too: it must come back to no more than there were.
            let deadline = Instant::now() + DEADLINE;
            while mapped() > before + 8 {
                assert!(Instant::now() < deadline);
            }
        }
        assert_eq!(port.status().state, PortState::Running);
        drop(peer);
        port.close();
    }
}

#[test]
fn used_ring_is_also_logged_where_the_frontend_says() {
    let (_dir, path) = socket();
    let (port, log, mut guest) = (Served::listen(&path), Log::new(), Guest::new(false));
    let mut peer = connect(&path);
    guest.set_up(&mut peer);
    log.send(&mut peer);
    guest.log(&mut peer, true);
    let elsewhere = 0x1f_f000u64;
    peer.tell(SET_VRING_ADDR, &guest.addr(1, Some(elsewhere)));
    peer.settle();
    log.take();
    let sent = frame(60, 1);
    guest.transmit(0, &sent);
    assert_eq!(port.next(), sent);
    let deadline = Instant::now() + DEADLINE;
    let mut marked = Vec::new();
    while !marked.contains(&(AT[1][1] / 4096)) || !marked.contains(&(elsewhere / 4096)) {
        marked.extend(log.take());
        assert!(Instant::now() < deadline, "{marked:?}");
    }
    // An address without a bit is passed over, and the port lives.
    peer.tell(SET_VRING_ADDR, &guest.addr(1, Some(u64::MAX - 7)));
    guest.transmit(1, &sent);
    assert_eq!(port.next(), sent);
    drop(peer);
    port.close();
}

#[test]
fn log_that_comes_after_its_feature_has_all_of_memory_marked() {
    let (_dir, path) = socket();
    let (port, log, guest) = (Served::listen(&path), Log::new(), Guest::new(false));
    let mut peer = connect(&path);
    guest.set_up(&mut peer);
    port.wait_for(PortState::Running);
    guest.log(&mut peer, true);
    log.send(&mut peer);
    assert_eq!(log.take().len() as u64, N_PAGES, "nobody knows what was written meanwhile");
    drop(peer);
    port.close();
}

#[test]
fn log_that_is_too_short_or_not_in_its_file_ends_the_connection() {
    let (_dir, path) = socket();
    let (port, log, guest) = (Served::listen(&path), Log::new(), Guest::new(false));
    let cases = [(0, 0), (LOG_BYTES - 1, 0), (LOG_BYTES, LOG_AT + 1), (u64::MAX, 1), (LOG_BYTES, u64::MAX)];
    for (len, offset) in cases {
        let mut peer = connect(&path);
        guest.set_up(&mut peer);
        let payload = [u64::to_ne_bytes(len), u64::to_ne_bytes(offset)].concat();
        peer.tell_with(SET_LOG_BASE, &payload, &[log.0.as_fd()]);
        assert!(peer.is_closed(), "{len} bytes at {offset}");
        port.wait_until("failed", |status| match &status.state {
            PortState::Failed(why) => why.contains("dirty log"),
            _ => false,
        });
    }
    let mut peer = connect(&path);
    peer.tell(SET_LOG_BASE, &[0; 16]);
    assert!(peer.is_closed(), "no descriptor");
    assert_eq!(log.take(), NONE);
    port.close();
}
