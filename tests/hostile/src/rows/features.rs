//! Features: those never offered, those agreed upon, and messages of features the backend may not have.

use std::os::fd::{AsFd, BorrowedFd};

use super::rings::ended;
use crate::arena::{Arena, Ended, over};
use crate::frontend::{TX, feature};
use crate::line::Line;
use crate::memory::{BUFFERS, memfd};
use crate::message::{request, words32, words64};

/// Payload of the in-flight messages: size, offset, queues, their size.
fn inflight(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let mut payload = words64(&[size, offset]);
    payload.extend_from_slice(&queues.to_ne_bytes());
    payload.extend_from_slice(&queue_size.to_ne_bytes());
    payload
}

/// Queue counts and sizes for in-flight memory, the first of which a backend that has it may grant.
const INFLIGHT: [(u16, u16); 5] = [(2, 256), (0, 256), (2, 0), (u16::MAX, u16::MAX), (128, 3)];

pub fn f11(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    for turn in 0..100_000usize {
        let (queues, size) = INFLIGHT[turn % INFLIGHT.len()];
        let connection = &mut line.frontend()?.connection;
        let told = connection.tell(request::GET_INFLIGHT_FD, &inflight(0, 0, queues, size), &[]);
        // Answers, if there are any, are read in time: nobody's buffer may fill.
        if told.is_err() || turn % 50 == 49 {
            line.ask(request::GET_FEATURES, &[])?;
        }
    }
    let (words, frontend) = line.end();
    drop(frontend);
    over(format!("100,000 requests: {words}"))
}

pub fn f12(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::greeted(arena);
    let offered = line.frontend()?.protocol_offered & feature::PROTOCOL_INFLIGHT != 0;
    let garbage = memfd(1 << 16)?;
    rustix::io::write(&garbage, &[0xa5; 1 << 14]).map_err(std::io::Error::from)?;
    let truncated = memfd(0)?;
    let sizes = [1 << 16, 0, u64::MAX, 1 << 40, 100];
    for (queues, queue_size) in INFLIGHT {
        for (size, offset) in sizes.iter().flat_map(|s| [(*s, 0), (*s, u64::MAX - 10), (*s, 3)]) {
            for fds in [&[garbage.as_fd()] as &[BorrowedFd<'_>], &[truncated.as_fd()], &[]] {
                let payload = inflight(size, offset, queues, queue_size);
                match offered {
                    true => line.order(request::SET_INFLIGHT_FD, &payload, fds).map(drop)?,
                    false => line.must_refuse("in-flight memory", request::SET_INFLIGHT_FD, &payload, fds)?,
                }
            }
        }
    }
    // Rings on garbage, where it was taken.
    line.hang_up();
    let frontend = line.frontend()?;
    let payload = inflight(1 << 16, 0, 2, 256);
    frontend.connection.order(request::SET_INFLIGHT_FD, &payload, &[garbage.as_fd()])?;
    if frontend.set_features(frontend.features).is_ok() && frontend.share_memory().is_ok() {
        let _ = frontend.start_rings();
        frontend.send(&[0; 100]);
    }
    arena.neighbour_goes_on(32)?;
    let (words, _) = line.end();
    over(words)
}

pub fn f16(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    let offered = line.frontend()?.offered;
    for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
        let agreed = line.frontend()?.features;
        let payload = words64(&[agreed | 1 << bit]);
        line.must_refuse(format!("feature bit {bit}"), request::SET_FEATURES, &payload, &[])?;
    }
    line.must_refuse("all bits", request::SET_FEATURES, &words64(&[u64::MAX]), &[])?;
    for payload in [words64(&[1 << 63]), words64(&[u64::MAX])] {
        line.must_refuse("a protocol feature", request::SET_PROTOCOL_FEATURES, &payload, &[])?;
    }
    // Agreed features taken back and forth under running rings: layouts and header lengths change.
    for _ in 0..20 {
        let agreed = line.frontend()?.features;
        let other = agreed & !feature::MRG_RXBUF;
        for features in [agreed & !feature::VERSION_1, 0, other & !feature::VERSION_1, agreed] {
            line.order(request::SET_FEATURES, &words64(&[features]), &[])?;
            line.frontend()?.send(&[0; 100]);
        }
        let packed = agreed | offered & feature::RING_PACKED;
        line.order(request::SET_FEATURES, &words64(&[packed]), &[])?;
        line.frontend()?.send(&[0; 100]);
        line.order(request::SET_FEATURES, &words64(&[agreed]), &[])?;
    }
    // Protocol features off and on again, acknowledgements among them: the frontend stops asking for any.
    let frontend = line.frontend()?;
    let protocol = frontend.protocol_offered & (feature::PROTOCOL_MQ | feature::PROTOCOL_REPLY_ACK);
    for features in [0, protocol, 0] {
        let _ = frontend.connection.tell(request::SET_PROTOCOL_FEATURES, &words64(&[features]), &[]);
        frontend.send(&[0; 100]);
    }
    frontend.connection.acknowledges = false;
    let answer = frontend.connection.ask(request::GET_FEATURES, &[], &[])?;
    arena.neighbour_goes_on(32)?;
    let (words, _) = line.end();
    over(format!("{words}; then {}", if answer.is_no() { "closed" } else { "goes on" }))
}

/// Payload of IOTLB_MSG: I/O address, size, user address, permissions, type.
fn iotlb(iova: u64, size: u64, user: u64, permissions: u8, kind: u8) -> Vec<u8> {
    let mut payload = words64(&[iova, size, user]);
    payload.extend_from_slice(&[permissions, kind, 0, 0, 0, 0, 0, 0]);
    payload
}

pub fn f20(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    let offered = line.frontend()?.offered & feature::IOMMU_PLATFORM != 0;
    let (miss, update, invalidate, fail) = (1, 2, 3, 4);
    let user = BUFFERS.frontend_va();
    let mut messages = Vec::new();
    for kind in [miss, update, invalidate, fail, 0, 255] {
        for (iova, size) in
            [(0, 0), (0, u64::MAX), (u64::MAX - 10, 100), (0x1000, 1 << 40), (0x1000, 4096), (0x1800, 4096)]
        {
            for user in [user, 0, u64::MAX - 10] {
                messages.push(iotlb(iova, size, user, 3, kind));
            }
        }
    }
    messages.extend((0..2000u64).map(|i| iotlb(i << 12, 4096, user, 3, update)));
    messages
        .extend((0..2000u64).map(|i| iotlb(i << 12, 4096, user, 0, if i % 2 == 0 { update } else { miss })));
    for payload in &messages {
        line.frontend()?.send(&[0; 100]);
        match offered {
            true => line.order(request::IOTLB_MSG, payload, &[]).map(drop)?,
            false => line.must_refuse("a translation", request::IOTLB_MSG, payload, &[])?,
        }
    }
    line.order(request::IOTLB_MSG, &[0; 3], &[])?;
    arena.neighbour_goes_on(32)?;
    ended(line)
}

pub fn f21(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    for mtu in [0, 1, 67, 68, 1500, 9000, 65_535, 65_536, u64::MAX] {
        line.order(request::NET_SET_MTU, &words64(&[mtu]), &[])?;
        line.frontend()?.send(&[0; 200]);
    }
    for status in [0xff, 0x80, 4, 1, 3, 0xb, 0xf, 0x1ff, u64::MAX, 0] {
        line.order(request::SET_STATUS, &words64(&[status]), &[])?;
        line.frontend()?.send(&[0; 200]);
    }
    for rarp in [0, u64::MAX, 0x0100_0000_0001, 0xffff_ffff_ffff_ffff, 0x1234_5678] {
        line.order(request::SEND_RARP, &words64(&[rarp]), &[])?;
    }
    line.order(request::SEND_RARP, &[1, 2, 3], &[])?;
    line.order(request::NET_SET_MTU, &[], &[])?;
    for _ in 0..20 {
        line.order(request::RESET_DEVICE, &[], &[])?;
        line.frontend()?.send(&[0; 200]);
        line.order(request::RESET_OWNER, &[], &[])?;
        line.frontend()?.send(&[0; 200]);
        line.order(request::SET_VRING_KICK, &words64(&[0x100 | TX as u64]), &[])?;
        line.order(request::SET_VRING_ENABLE, &words32(&[TX as u32, 1]), &[])?;
    }
    arena.neighbour_goes_on(32)?;
    let (words, _) = line.end();
    over(words)
}
