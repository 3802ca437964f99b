//! Messages one by one over a real socket: status, reset, memory slots, MTU, announcements, and every order in
//! which a ring can be set up.

mod support;

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::event::{EventfdFlags, eventfd};
use spp_vhost::{PortState, PortStatus};
use support::peer::*;
use support::served::Served;
use support::*;

const SIZE: u16 = 256;
/// VERSION_1 and protocol features.
const FEATURES: u64 = 1 << 32 | 1 << 30;
const DRIVER_OK: u64 = 0xf;
/// Ring addresses as the frontend says them: descriptors, used, available. The receive ring lies apart, and stays empty.
const TX_AT: [u64; 3] = [VA + DESC, VA + USED, VA + AVAIL];
const RX_AT: [u64; 3] = [VA + DESC + 0x4_0000, VA + USED + 0x1_0000, VA + AVAIL + 0x1000];

fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock0");
    (dir, path)
}

/// Everything a running port needs but DRIVER_OK; indices start near their wrap.
fn set_up(peer: &mut Peer, memory: &Memory) {
    let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    for (at, field) in [(USED + 2, 65_530u16), (AVAIL + 2, 65_530), (USED + 0x1_0002, 0), (AVAIL + 0x1002, 0)]
    {
        memory.write(at, &field.to_le_bytes());
    }
    peer.piece(&Piece::Features(FEATURES));
    peer.piece(&Piece::Memory(memory));
    for (ring, base, at) in [(0, 0, RX_AT), (1, 65_530, TX_AT)] {
        let piece = [Piece::Num(ring, SIZE.into()), Piece::Base(ring, base), Piece::Addr(ring, at)];
        piece.iter().for_each(|piece| peer.piece(piece));
        peer.piece(&Piece::Kick(ring, fd.as_fd()));
        peer.piece(&Piece::Enable(ring));
    }
    peer.settle();
}

/// The guest's transmit ring, written by hand.
struct Tx<'m> {
    memory: &'m Memory,
    avail: u16,
}

impl Tx<'_> {
    fn offer(&mut self, frame: &[u8]) {
        let slot = self.avail % SIZE;
        let at = BUFFERS + 0x1000 * u64::from(slot);
        self.memory.write(at, &[0; 12]);
        self.memory.write(at + 12, frame);
        self.memory.desc(DESC, slot, at, 12 + frame.len() as u32, 0, 0);
        self.memory.write(AVAIL + 4 + 2 * u64::from(slot), &slot.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.memory.write(AVAIL + 2, &self.avail.to_le_bytes());
    }
}

fn waits(port: &Served, for_what: &str) -> PortStatus {
    port.wait_until(for_what, |status| status.detail.contains(for_what))
}

#[test]
fn status_lets_rings_run_at_driver_ok_and_resets_at_zero() {
    let (_dir, path) = socket();
    let (port, memory) = (Served::listen(&path), Memory::new());
    let mut peer = Peer::connect(&path);
    peer.greet(P_REPLY_ACK | P_STATUS);
    let status = |peer: &mut Peer| u64_of(&peer.get(GET_STATUS, &[], &[]));
    assert_eq!(status(&mut peer), 0);
    assert_eq!(peer.ask(SET_STATUS, &0xbu64.to_ne_bytes()), 0);
    assert_eq!(status(&mut peer), 0x3, "FEATURES_OK before any features is not echoed");
    set_up(&mut peer, &memory);
    assert_eq!(peer.ask(SET_STATUS, &0xbu64.to_ne_bytes()), 0);
    assert_eq!(status(&mut peer), 0xb);
    waits(&port, "has not said that it is ready");
    assert_eq!(peer.ask(SET_STATUS, &DRIVER_OK.to_ne_bytes()), 0);
    port.wait_for(PortState::Running);
    let mut tx = Tx { memory: &memory, avail: 65_530 };
    (0..10).for_each(|n| tx.offer(&frame(60, n)));
    (0..10).for_each(|n| assert_eq!(port.next(), frame(60, n)));

    // As QEMU does when the guest resets: rings stop, status 0; later only what the driver has changed comes again.
    assert_eq!(u64_of(&peer.get(GET_VRING_BASE, &state(1, 0), &[])) >> 32, 4);
    assert_eq!(peer.ask(SET_STATUS, &0u64.to_ne_bytes()), 0);
    assert_eq!(status(&mut peer), 0);
    waits(&port, "driver has not started");
    let again = [Piece::Features(FEATURES), Piece::Base(1, 4)];
    again.iter().for_each(|piece| peer.piece(piece));
    let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    (0..2).for_each(|ring| peer.piece(&Piece::Kick(ring, fd.as_fd())));
    waits(&port, "has not said that it is ready");
    peer.tell(SET_STATUS, &DRIVER_OK.to_ne_bytes());
    port.wait_for(PortState::Running);
    tx.offer(&frame(60, 99));
    assert_eq!(port.next(), frame(60, 99));

    // A driver that has failed is not served; a status that is none is refused.
    peer.tell(SET_STATUS, &0x8fu64.to_ne_bytes());
    waits(&port, "given up");
    assert_eq!(peer.ask(SET_STATUS, &0x100u64.to_ne_bytes()), 1);
    assert_eq!(status(&mut peer), 0x8f);
    port.close();
}

#[test]
fn ring_that_failed_shows_as_needs_reset_until_the_reset() {
    let (_dir, path) = socket();
    let (port, memory) = (Served::listen(&path), Memory::new());
    let mut peer = Peer::connect(&path);
    peer.greet(P_REPLY_ACK | P_STATUS);
    set_up(&mut peer, &memory);
    peer.tell(SET_STATUS, &DRIVER_OK.to_ne_bytes());
    port.wait_for(PortState::Running);
    memory.write(AVAIL + 2, &5000u16.to_le_bytes());
    port.wait_until("failed", |status| matches!(status.state, PortState::Failed(_)));
    assert_eq!(u64_of(&peer.get(GET_STATUS, &[], &[])), DRIVER_OK | 0x40);
    peer.tell(SET_STATUS, &0u64.to_ne_bytes());
    set_up(&mut peer, &memory);
    peer.tell(SET_STATUS, &(DRIVER_OK | 0x40).to_ne_bytes());
    port.wait_for(PortState::Running);
    assert_eq!(u64_of(&peer.get(GET_STATUS, &[], &[])), DRIVER_OK, "our bit is not theirs to set");
    port.close();
}

#[test]
fn reset_device_brings_rings_back_and_keeps_memory_only() {
    let (_dir, path) = socket();
    let (port, memory) = (Served::listen(&path), Memory::new());
    let mut peer = Peer::connect(&path);
    peer.greet(P_REPLY_ACK | P_RESET_DEVICE);
    set_up(&mut peer, &memory);
    port.wait_for(PortState::Running);
    let mut tx = Tx { memory: &memory, avail: 65_530 };
    for round in 0..3 {
        tx.offer(&frame(60, round));
        assert_eq!(port.next(), frame(60, round));
        assert_eq!(peer.ask(RESET_DEVICE, &[]), 0);
        let status = waits(&port, "driver has not started");
        assert_eq!((status.state, status.memory.len()), (PortState::Connected, 2));
        tx.offer(&frame(60, 100));
        assert!(port.received.recv_timeout(std::time::Duration::from_millis(20)).is_err(), "nobody polls it");
        set_up(&mut peer, &memory); // and with it all indices at their start
        tx.avail = 65_530;
        port.wait_for(PortState::Running);
    }
    drop(peer);
    port.wait_for(PortState::Waiting);
    port.close();
}

#[test]
fn mtu_is_told_and_impossible_ones_are_refused() {
    let (_dir, path) = socket();
    let port = Served::listen(&path);
    let mut peer = Peer::connect(&path);
    assert_ne!(peer.greet(P_REPLY_ACK | P_MTU) & 1 << 3, 0, "VIRTIO_NET_F_MTU");
    assert_eq!(peer.ask(NET_SET_MTU, &9000u64.to_ne_bytes()), 0);
    assert_eq!(port.status().mtu, Some(9000));
    for bad in [0u64, 67, 65_535, 65_536, 1 << 40 | 1500, u64::MAX] {
        assert_eq!(peer.ask(NET_SET_MTU, &bad.to_ne_bytes()), 1, "{bad}");
        peer.tell(NET_SET_MTU, &bad.to_ne_bytes());
    }
    peer.settle();
    assert_eq!(port.status().mtu, Some(9000));
    port.close();
}

#[test]
fn guest_that_cannot_announce_itself_is_announced_by_rarp() {
    let (_dir, path) = socket();
    let port = Served::listen(&path);
    let mut peer = Peer::connect(&path);
    assert_ne!(peer.greet(P_REPLY_ACK | P_RARP) & 1 << 21, 0, "VIRTIO_NET_F_GUEST_ANNOUNCE");
    let mac = [0xfa, 0x16, 0x3e, 0, 0, 9];
    let payload = |mac: [u8; 6]| [&mac[..], &[0xee, 0xee]].concat();
    assert_eq!(peer.ask(SEND_RARP, &payload(mac)), 0);
    let frame = port.next();
    assert_eq!((&frame[..12], &frame[12..14]), (&[&[0xff; 6][..], &mac].concat()[..], &[0x80, 0x35][..]));
    assert_eq!(port.status().from_guest.packets, 1);
    for bad in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 1]] {
        assert_eq!(peer.ask(SEND_RARP, &payload(bad)), 1, "{bad:?}");
    }
    port.close();
}

#[test]
fn messages_of_features_that_were_not_agreed_upon_are_unknown() {
    let (_dir, path) = socket();
    let port = Served::listen(&path);
    let mut peer = Peer::connect(&path);
    peer.greet(P_REPLY_ACK);
    for request in [SEND_RARP, NET_SET_MTU, RESET_DEVICE, SET_STATUS, GET_STATUS, SET_LOG_BASE] {
        assert_eq!(peer.ask(request, &1500u64.to_ne_bytes()), 1, "request {request}");
    }
    let all = u64_of(&peer.get(GET_PROTOCOL_FEATURES, &[], &[]));
    assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, &(all | 1 << 12).to_ne_bytes()), 1, "INFLIGHT_SHMFD");
    // Nobody knows now what was agreed upon.
    assert!(peer.is_closed());
    port.wait_until("failed", |status| matches!(status.state, PortState::Failed(_)));
    port.close();
}

#[test]
fn descriptor_that_does_not_belong_to_a_message_is_closed_with_the_connection() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (_dir, path) = socket();
    let port = Served::listen(&path);
    let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let before = count();
    let requests = [SET_VRING_ENABLE, SEND_RARP, NET_SET_MTU, SET_STATUS];
    for request in requests.into_iter().cycle().take(40) {
        for n in [1, 8] {
            let mut peer = Peer::connect(&path);
            peer.greet(P_REPLY_ACK | P_RARP | P_MTU | P_STATUS);
            peer.tell_with(request, &[0; 8], &[fd.as_fd(); 8][..n]);
            assert!(peer.is_closed(), "request {request} with {n} descriptors");
        }
    }
    port.wait_until("failed", |status| matches!(status.state, PortState::Failed(_)));
    // 360 were sent; the few that other tests of this binary have open come and go.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while count() > before + 64 {
        assert!(std::time::Instant::now() < deadline, "{} descriptors more", count() - before);
    }
    port.close();
}

/// All orders of `n` things, by Heap's algorithm.
fn orders(n: usize) -> Vec<Vec<usize>> {
    fn step(k: usize, order: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        if k <= 1 {
            return all.push(order.clone());
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

/// One frame in the first entry of a ring that has just been set up, in either layout.
fn offer_first(memory: &Memory, packed: bool, frame: &[u8]) {
    memory.write(BUFFERS, &[&[0; 12], frame].concat());
    let len = 12 + frame.len() as u64;
    if packed {
        // Slot 60 in the first lap: available.
        memory.write(DESC + 16 * 60, &BUFFERS.to_le_bytes());
        memory.write(DESC + 16 * 60 + 8, &(len | 60 << 32 | 1 << 55).to_le_bytes());
    } else {
        memory.desc(DESC, 0, BUFFERS, len as u32, 0, 0);
        memory.write(AVAIL + 4 + 2 * (65_530 % u64::from(SIZE)), &[0, 0]);
        memory.write(AVAIL + 2, &65_531u16.to_le_bytes());
    }
}

#[test]
fn ring_runs_after_its_set_up_messages_in_every_order() {
    let (_dir, path) = socket();
    let (port, memory) = (Served::listen(&path), Memory::new());
    let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let all = orders(7);
    assert_eq!(all.len(), 5040);
    // Every order with split rings; with packed ones, whose set-up is the same code, one in five.
    for (n, order) in all.iter().enumerate() {
        for packed in [false, true].into_iter().take(if n % 5 == 0 { 2 } else { 1 }) {
            memory.write(USED + 2, &65_530u16.to_le_bytes());
            memory.write(AVAIL + 2, &65_530u16.to_le_bytes());
            let (features, base) =
                if packed { (FEATURES | 1 << 34, 0x803c_803c) } else { (FEATURES, 65_530) };
            let pieces = [
                Piece::Features(features),
                Piece::Memory(&memory),
                Piece::Num(1, SIZE.into()),
                Piece::Base(1, base),
                Piece::Addr(1, TX_AT),
                Piece::Kick(1, fd.as_fd()),
                Piece::Enable(1),
            ];
            let mut peer = Peer::connect(&path);
            peer.greet(P_REPLY_ACK);
            for (i, piece) in order.iter().enumerate() {
                if i == n % 7 {
                    peer.piece(&Piece::Call(1, fd.as_fd()));
                }
                peer.piece(&pieces[*piece]);
            }
            peer.settle();
            let sent = frame(60 + n % 100, n as u8);
            offer_first(&memory, packed, &sent);
            assert_eq!(port.next(), sent, "packed {packed}, order {order:?}");
            // A ring that stops writes to its memory once more.
            drop(peer);
            port.wait_for(PortState::Waiting);
        }
    }
    port.close();
}

#[test]
fn another_driver_negotiates_anew_on_the_same_connection() {
    let (_dir, path) = socket();
    let (port, memory) = (Served::listen(&path), Memory::new());
    let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let mut peer = Peer::connect(&path);
    peer.greet(P_REPLY_ACK | P_STATUS);
    // The kernel's driver with split rings, a user space driver with packed ones, and back, as QEMU passes it on.
    for (round, packed) in [false, true, false, true].into_iter().enumerate() {
        memory.write(USED + 2, &65_530u16.to_le_bytes());
        memory.write(AVAIL + 2, &65_530u16.to_le_bytes());
        let (features, base) = if packed { (FEATURES | 1 << 34, 0x803c_803c) } else { (FEATURES, 65_530) };
        peer.piece(&Piece::Features(features));
        if round == 0 {
            peer.piece(&Piece::Memory(&memory)); // told once
        }
        peer.piece(&Piece::Num(1, SIZE.into()));
        peer.piece(&Piece::Base(1, base));
        peer.piece(&Piece::Addr(1, TX_AT));
        peer.piece(&Piece::Kick(1, fd.as_fd()));
        peer.piece(&Piece::Enable(1));
        assert_eq!(peer.ask(SET_STATUS, &DRIVER_OK.to_ne_bytes()), 0);
        let sent = frame(60, round as u8);
        offer_first(&memory, packed, &sent);
        assert_eq!(port.next(), sent, "round {round}");
        assert_eq!(port.status().features.contains(&"ring_packed"), packed, "{:?}", port.status().features);
        let base = u64_of(&peer.get(GET_VRING_BASE, &state(1, 0), &[])) >> 32;
        assert_eq!(base, if packed { 0x803d_803d } else { 65_531 });
        assert_eq!(peer.ask(SET_STATUS, &0u64.to_ne_bytes()), 0);
    }
    assert_eq!((port.status().reconnects, port.status().last_failure), (0, None));
    port.close();
}
