//! The requests served without the `vhost` crate, as a table: those it has no code for,
//! SET_LOG_BASE, which it answers otherwise than frontends expect, and SET_VRING_ENABLE, which it refuses
//! before SET_FEATURES, when QEMU sends it first.

use std::fs::File;
use std::os::fd::OwnedFd;

use spp_drivers::MacAddr;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::device::{Device, Refusal};

/// How a request is answered when it succeeds.
pub(super) enum Answer {
    /// With an acknowledgement, if one was asked for.
    Done,
    /// With this, always.
    Value(u64),
}

type Serve = fn(&mut Device, &[u8], Vec<OwnedFd>) -> Result<Answer, Refusal>;

/// One request.
pub(super) struct Own {
    request: u32,
    /// Its name without the prefix.
    pub name: &'static str,
    /// Payload sizes it may have.
    payload_bytes: &'static [usize],
    /// Descriptors that come with it.
    n_fds: usize,
    /// The protocol feature it belongs to.
    needs: Protocol,
    /// The frontend waits for a value, whether or not it set need_reply: a failure can't be said in it.
    pub is_answered: bool,
    /// What it does. The payload has one of the sizes, and the descriptors are that many.
    pub serve: Serve,
}

impl Own {
    pub fn is_negotiated(&self, protocol_features: u64) -> bool {
        protocol_features & self.needs.bits() == self.needs.bits()
    }

    pub fn fits(&self, payload_bytes: usize, n_fds: usize) -> bool {
        self.payload_bytes.contains(&payload_bytes) && self.n_fds == n_fds
    }
}

#[rustfmt::skip]
static TABLE: [Own; 7] = [
    Own { request: 6, name: "SET_LOG_BASE", payload_bytes: &[16], n_fds: 1, needs: Protocol::LOG_SHMFD, is_answered: true, serve: set_log_base },
    Own { request: 7, name: "SET_LOG_FD", payload_bytes: &[0, 8], n_fds: 1, needs: Protocol::LOG_SHMFD, is_answered: false, serve: set_log_fd },
    Own { request: 18, name: "SET_VRING_ENABLE", payload_bytes: &[8], n_fds: 0, needs: Protocol::empty(), is_answered: false, serve: set_vring_enable },
    Own { request: 19, name: "SEND_RARP", payload_bytes: &[8], n_fds: 0, needs: Protocol::RARP, is_answered: false, serve: send_rarp },
    Own { request: 20, name: "NET_SET_MTU", payload_bytes: &[8], n_fds: 0, needs: Protocol::MTU, is_answered: false, serve: set_mtu },
    Own { request: 39, name: "SET_STATUS", payload_bytes: &[8], n_fds: 0, needs: Protocol::STATUS, is_answered: false, serve: set_status },
    Own { request: 40, name: "GET_STATUS", payload_bytes: &[0], n_fds: 0, needs: Protocol::STATUS, is_answered: true, serve: get_status },
];

/// The request of this number.
pub(super) fn find(request: u32) -> Option<&'static Own> {
    TABLE.iter().find(|own| own.request == request)
}

fn u32_at(payload: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(payload[at..at + 4].try_into().expect("the table gives the payload's size"))
}

fn u64_at(payload: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(payload[at..at + 8].try_into().expect("the table gives the payload's size"))
}

fn set_log_base(device: &mut Device, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Answer, Refusal> {
    let file = fds.into_iter().next().map(File::from).expect("the table asks for one descriptor");
    device.set_log(&file, u64_at(payload, 0), u64_at(payload, 8))?;
    // QEMU and DPDK's frontends read a u64 here, whether or not they asked for a reply.
    Ok(Answer::Value(0))
}

/// The descriptor would wake a frontend that sleeps until pages are dirty. None does: they look at the
/// log when they need it. It is closed.
fn set_log_fd(_: &mut Device, _: &[u8], _: Vec<OwnedFd>) -> Result<Answer, Refusal> {
    Ok(Answer::Done)
}

fn set_vring_enable(device: &mut Device, payload: &[u8], _: Vec<OwnedFd>) -> Result<Answer, Refusal> {
    match u32_at(payload, 4) {
        on @ (0 | 1) => device.enable(u32_at(payload, 0), on == 1)?,
        on => return Err(Refusal::BadValue("SET_VRING_ENABLE", u64::from(on))),
    }
    Ok(Answer::Done)
}

fn send_rarp(device: &mut Device, payload: &[u8], _: Vec<OwnedFd>) -> Result<Answer, Refusal> {
    let mac = payload[..6].try_into().expect("the table gives the payload's size");
    device.announce(MacAddr(mac))?;
    Ok(Answer::Done)
}

fn set_mtu(device: &mut Device, payload: &[u8], _: Vec<OwnedFd>) -> Result<Answer, Refusal> {
    device.set_mtu(u64_at(payload, 0))?;
    Ok(Answer::Done)
}

fn set_status(device: &mut Device, payload: &[u8], _: Vec<OwnedFd>) -> Result<Answer, Refusal> {
    device.set_status(u64_at(payload, 0))?;
    Ok(Answer::Done)
}

fn get_status(device: &mut Device, _: &[u8], _: Vec<OwnedFd>) -> Result<Answer, Refusal> {
    Ok(Answer::Value(u64::from(device.status())))
}
