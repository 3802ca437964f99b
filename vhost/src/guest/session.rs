//! The frontend's end of the socket: connecting in either role, and the set-up messages in the
//! order the configuration asks for. Every wait has a deadline.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::config::{GuestConfig, GuestError, MessageOrder};
use crate::Role;

/// CSUM, GUEST_CSUM, and long TCP frames over IPv4 and IPv6 both ways, with ECN (virtio 1.2, 5.1.3).
pub(super) const F_OFFLOADS: u64 = 0b11_1011_1000_0011;
/// VIRTIO_NET_F_MRG_RXBUF.
pub(super) const F_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_F_INDIRECT_DESC.
pub(super) const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub(super) const F_EVENT_IDX: u64 = 1 << 29;
/// VHOST_USER_F_PROTOCOL_FEATURES.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTIO_NET_F_MQ.
pub(super) const F_MQ: u64 = 1 << 22;
/// VIRTIO_F_RING_PACKED.
pub(super) const F_RING_PACKED: u64 = 1 << 34;
/// VIRTIO_F_IN_ORDER.
pub(super) const F_IN_ORDER: u64 = 1 << 35;
/// VIRTIO_F_VERSION_1.
pub(super) const F_VERSION_1: u64 = 1 << 32;

/// Most rings: 16 queue pairs.
const MAX_RINGS: u64 = 32;
const RETRY: Duration = Duration::from_millis(5);

/// Where backends are met; keeps listening between connections.
pub(super) struct Endpoint {
    listener: Option<UnixListener>,
}

fn remove_stale_socket(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

impl Endpoint {
    pub(super) fn open(config: &GuestConfig) -> Result<Self, GuestError> {
        let socket = |source| GuestError::Socket { path: config.path.clone(), source };
        if config.role == Role::Client {
            return Ok(Endpoint { listener: None });
        }
        remove_stale_socket(&config.path).map_err(socket)?;
        let listener = UnixListener::bind(&config.path).map_err(socket)?;
        listener.set_nonblocking(true).map_err(socket)?;
        Ok(Endpoint { listener: Some(listener) })
    }

    /// Waits for a backend: tries to connect, or to accept, until the deadline.
    pub(super) fn meet(&self, config: &GuestConfig, deadline: Duration) -> Result<UnixStream, GuestError> {
        let end = Instant::now() + deadline;
        let socket = |source| GuestError::Socket { path: config.path.clone(), source };
        loop {
            let tried = match &self.listener {
                Some(listener) => listener.accept().map(|(stream, _)| stream),
                None => UnixStream::connect(&config.path),
            };
            if let Ok(stream) = tried {
                stream.set_nonblocking(false).map_err(socket)?;
                stream.set_read_timeout(Some(config.answer_deadline)).map_err(socket)?;
                stream.set_write_timeout(Some(config.answer_deadline)).map_err(socket)?;
                return Ok(stream);
            }
            if Instant::now() >= end {
                return Err(GuestError::NoBackend { path: config.path.clone(), waited: deadline });
            }
            std::thread::sleep(RETRY);
        }
    }
}

/// What the backend is told about one ring.
pub(super) struct RingSetup<'a> {
    pub(super) index: usize,
    pub(super) size: u16,
    pub(super) base: u32,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) kick: &'a EventFd,
    pub(super) call: &'a EventFd,
}

/// One connection to a backend.
pub(super) struct Session {
    frontend: Frontend,
    socket: UnixStream,
    order: MessageOrder,
    offered: u64,
}

fn said(request: &'static str) -> impl Fn(vhost::Error) -> GuestError {
    move |source| GuestError::Protocol { request, source }
}

impl Session {
    /// Greets the backend: owner and protocol features.
    pub(super) fn greet(stream: UnixStream, config: &GuestConfig) -> Result<Session, GuestError> {
        let path = || config.path.clone();
        let socket = stream.try_clone().map_err(|source| GuestError::Socket { path: path(), source })?;
        let mut frontend = Frontend::from_stream(stream, MAX_RINGS);
        if config.order == MessageOrder::VirtioUser {
            frontend.set_owner().map_err(said("SET_OWNER"))?;
        }
        let offered = frontend.get_features().map_err(said("GET_FEATURES"))?;
        for (bit, missing) in [(F_VERSION_1, "VERSION_1"), (F_PROTOCOL_FEATURES, "PROTOCOL_FEATURES")] {
            if offered & bit == 0 {
                return Err(GuestError::Feature { offered, missing });
            }
        }
        let protocol = frontend.get_protocol_features().map_err(said("GET_PROTOCOL_FEATURES"))?;
        let wanted = protocol & (VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::MQ);
        frontend.set_protocol_features(wanted).map_err(said("SET_PROTOCOL_FEATURES"))?;
        if wanted.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if config.order == MessageOrder::Qemu {
            frontend.set_owner().map_err(said("SET_OWNER"))?;
            frontend.get_features().map_err(said("GET_FEATURES"))?;
        }
        let mut session = Session { frontend, socket, order: config.order, offered };
        if config.n_pairs > 1 {
            let n = session.queue_pairs()?;
            if n < u64::from(config.n_pairs) || offered & F_MQ == 0 {
                return Err(GuestError::Config(format!("the backend has {n} queue pairs")));
            }
        }
        Ok(session)
    }

    /// What the backend offers.
    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    /// Everything from features to running rings.
    pub(super) fn set_up(
        &mut self,
        features: u64,
        table: &[VhostUserMemoryRegionInfo],
        rings: &[RingSetup<'_>],
    ) -> Result<(), GuestError> {
        if self.order == MessageOrder::Qemu {
            for ring in rings {
                self.frontend.set_vring_call(ring.index, ring.call).map_err(said("SET_VRING_CALL"))?;
            }
            // The crate's frontend refuses to send this before SET_FEATURES.
            rings.iter().try_for_each(|ring| self.tell("SET_VRING_ENABLE", 18, ring.index, 1))?;
        }
        let features = features | F_PROTOCOL_FEATURES;
        self.frontend.set_features(features).map_err(said("SET_FEATURES"))?;
        self.frontend.set_mem_table(table).map_err(said("SET_MEM_TABLE"))?;
        rings.iter().try_for_each(|ring| self.start_ring(ring))
    }

    /// Addresses, indices and fds of one ring; ends with what makes it run.
    pub(super) fn start_ring(&mut self, ring: &RingSetup<'_>) -> Result<(), GuestError> {
        if self.order == MessageOrder::VirtioUser {
            self.frontend.set_vring_call(ring.index, ring.call).map_err(said("SET_VRING_CALL"))?;
        }
        self.frontend.set_vring_num(ring.index, ring.size).map_err(said("SET_VRING_NUM"))?;
        // The crate's frontend has 16 bits for it.
        self.tell("SET_VRING_BASE", 10, ring.index, ring.base)?;
        let frontend = &mut self.frontend;
        let addresses = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: ring.desc,
            used_ring_addr: ring.used,
            avail_ring_addr: ring.avail,
            log_addr: None,
        };
        frontend.set_vring_addr(ring.index, &addresses).map_err(said("SET_VRING_ADDR"))?;
        frontend.set_vring_kick(ring.index, ring.kick).map_err(said("SET_VRING_KICK"))?;
        match self.order {
            MessageOrder::Qemu => {
                frontend.set_vring_call(ring.index, ring.call).map_err(said("SET_VRING_CALL"))
            }
            MessageOrder::VirtioUser => self.enable_ring(ring.index, true),
        }
    }

    /// SET_VRING_ENABLE.
    pub(super) fn enable_ring(&mut self, index: usize, on: bool) -> Result<(), GuestError> {
        self.frontend.set_vring_enable(index, on).map_err(said("SET_VRING_ENABLE"))
    }

    /// GET_VRING_BASE: stops the ring; tells where the backend would have gone on.
    pub(super) fn stop_ring(&mut self, index: usize) -> Result<u32, GuestError> {
        self.frontend.get_vring_base(index).map_err(said("GET_VRING_BASE"))
    }

    /// GET_QUEUE_NUM. The crate's frontend takes the answer for the number of rings.
    fn queue_pairs(&mut self) -> Result<u64, GuestError> {
        let mut reply = [0; 20];
        let words = [17u32, 1, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let asked = self.socket.write_all(&bytes).and_then(|()| self.socket.read_exact(&mut reply));
        asked.map_err(|error| said("GET_QUEUE_NUM")(vhost::Error::IOError(error)))?;
        Ok(u64::from_ne_bytes(*reply.last_chunk().expect("the array is longer")))
    }

    /// Sends a message with a vring state, without a wish for a reply: three words of header (request, version,
    /// size), ring, number.
    fn tell(&mut self, name: &'static str, request: u32, index: usize, num: u32) -> Result<(), GuestError> {
        const VERSION: u32 = 1;
        let words = [request, VERSION, 8, index as u32, num];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.socket.write_all(&bytes).map_err(|error| said(name)(vhost::Error::IOError(error)))
    }

    /// True while the backend holds its end of the socket.
    pub(super) fn is_alive(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::RDHUP)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        match poll(&mut fds, Some(&now)) {
            Ok(_) => !fds[0].revents().intersects(gone),
            Err(_) => true,
        }
    }
}
