//! A frontend that can do everything right: handshake, memory, rings, frames both ways. Attacks start from one that
//! works and then do one thing wrong; the good neighbour is one that never does.
//!
//! Belongs to one thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::memory::{At, BUFFERS, REGIONS, Region, SharedMemory};
use crate::message::{Answer, Connection, PATIENCE, request, words32, words64};
use crate::ring::{Desc, Layout, Ring};

/// Virtio and vhost-user feature bits.
#[allow(missing_docs)]
pub mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const IOMMU_PLATFORM: u64 = 1 << 33;
    pub const RING_PACKED: u64 = 1 << 34;
    pub const IN_ORDER: u64 = 1 << 35;

    pub const PROTOCOL_MQ: u64 = 1 << 0;
    pub const PROTOCOL_LOG_SHMFD: u64 = 1 << 1;
    pub const PROTOCOL_REPLY_ACK: u64 = 1 << 3;
    pub const PROTOCOL_MTU: u64 = 1 << 4;
    pub const PROTOCOL_INFLIGHT: u64 = 1 << 12;
    pub const PROTOCOL_RESET_DEVICE: u64 = 1 << 13;
    pub const PROTOCOL_MEM_SLOTS: u64 = 1 << 15;
    pub const PROTOCOL_STATUS: u64 = 1 << 16;
}

/// Bytes of the header in front of every frame (VERSION_1).
pub const HEADER_BYTES: usize = 12;
/// Bytes of a buffer.
pub const BUFFER_BYTES: u64 = 2048;
/// Queue pairs with buffers of their own.
pub const MAX_DRIVEN_PAIRS: usize = 4;
/// Longest frame sent: as many buffers as it takes.
pub const MAX_FRAME_BYTES: usize = 9014;

/// Why a frontend can't go on.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The socket failed; a time-out says that the backend hangs.
    #[error("{during}: {source}")]
    Socket {
        /// What was under way.
        during: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
    /// The backend refused something well-formed, or hung up on it.
    #[error("{during} was answered with {answer:?}")]
    Refused {
        /// What was asked.
        during: &'static str,
        /// The answer.
        answer: Answer,
    },
    /// The backend lacks something the row can't do without.
    #[error("the backend does not offer {0}")]
    NotOffered(&'static str),
    /// No frame came in time.
    #[error("{0} did not come in time")]
    Silent(&'static str),
}

impl FrontendError {
    /// True when the backend took too long.
    pub fn is_hang(&self) -> bool {
        match self {
            FrontendError::Socket { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            FrontendError::Silent(_) => true,
            _ => false,
        }
    }
}

/// What a frontend wants.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Split or packed.
    pub layout: Layout,
    /// Ring size.
    pub size: u16,
    /// Feature bits beside those always taken; what isn't offered is left out.
    pub features: u64,
    /// Features done without.
    pub without: u64,
    /// Protocol features done without.
    pub without_protocol: u64,
    /// Queue pairs.
    pub pairs: usize,
    /// Whether to post receive buffers.
    pub buffers: bool,
}

impl Wish {
    /// One queue pair of 256 descriptors, mergeable buffers.
    pub fn new(layout: Layout) -> Wish {
        Wish { layout, size: 256, features: 0, without: 0, without_protocol: 0, pairs: 1, buffers: true }
    }
}

/// A connected frontend.
pub struct Frontend {
    /// The socket.
    pub connection: Connection,
    /// The memory it shares.
    pub memory: Arc<SharedMemory>,
    /// Feature bits the backend offers.
    pub offered: u64,
    /// Feature bits agreed upon.
    pub features: u64,
    /// Protocol feature bits the backend offers.
    pub protocol_offered: u64,
    /// Rings: receive 0, transmit 0, receive 1, ...
    pub rings: Vec<Ring>,
    /// Kick descriptors, by ring.
    pub kicks: Vec<OwnedFd>,
    /// Call descriptors, by ring.
    pub calls: Vec<OwnedFd>,
    /// What it wanted.
    pub wish: Wish,
    received: VecDeque<Vec<u8>>,
    /// Pieces of a frame that takes several buffers: bytes so far, pieces missing. By pair.
    partial: Vec<(Vec<u8>, u16)>,
    /// Transmit buffers used in turn.
    tx_turn: u64,
}

/// Index of pair 0's receive ring.
pub const RX: usize = 0;
/// Index of pair 0's transmit ring.
pub const TX: usize = 1;

fn socket(during: &'static str) -> impl Fn(io::Error) -> FrontendError {
    move |source| FrontendError::Socket { during, source }
}

fn done(during: &'static str, answer: io::Result<Answer>) -> Result<Answer, FrontendError> {
    match answer.map_err(socket(during))? {
        answer @ Answer::Done(_) => Ok(answer),
        answer => Err(FrontendError::Refused { during, answer }),
    }
}

impl Frontend {
    /// Greets the backend: owner, features, protocol features. Nothing else is set up.
    pub fn greet(mut connection: Connection, wish: Wish) -> Result<Frontend, FrontendError> {
        let answer = done("GET_FEATURES", connection.ask(request::GET_FEATURES, &[], &[]))?;
        let offered = answer.word().ok_or(FrontendError::NotOffered("features"))?;
        let answer = connection.ask(request::GET_PROTOCOL_FEATURES, &[], &[]);
        let protocol_offered = done("GET_PROTOCOL_FEATURES", answer)?.word().unwrap_or(0);
        let wanted = feature::PROTOCOL_MQ
            | feature::PROTOCOL_REPLY_ACK
            | feature::PROTOCOL_MEM_SLOTS
            | feature::PROTOCOL_MTU
            | feature::PROTOCOL_LOG_SHMFD
            | feature::PROTOCOL_INFLIGHT
            | feature::PROTOCOL_RESET_DEVICE;
        let protocol = protocol_offered & wanted & !wish.without_protocol;
        let told = connection.tell(request::SET_PROTOCOL_FEATURES, &words64(&[protocol]), &[]);
        told.map_err(socket("SET_PROTOCOL_FEATURES"))?;
        connection.acknowledges = protocol & feature::PROTOCOL_REPLY_ACK != 0;
        done("SET_OWNER", connection.order(request::SET_OWNER, &[], &[]))?;
        let always = feature::VERSION_1
            | feature::MRG_RXBUF
            | feature::INDIRECT_DESC
            | feature::PROTOCOL_FEATURES
            | match wish.layout {
                Layout::Split => 0,
                Layout::Packed => feature::RING_PACKED,
            };
        let features = (always | wish.features) & !wish.without & offered;
        if wish.layout == Layout::Packed && features & feature::RING_PACKED == 0 {
            return Err(FrontendError::NotOffered("packed rings"));
        }
        let memory = Arc::new(SharedMemory::new().map_err(socket("memory"))?);
        let n_rings = 2 * wish.pairs;
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let events = |n| (0..n).map(|_| event()).collect::<Result<Vec<_>, _>>();
        let fds = |n| events(n).map_err(|e| socket("eventfd")(e.into()));
        Ok(Frontend {
            connection,
            rings: (0..n_rings).map(|i| Ring::new(memory.clone(), i, wish.layout, wish.size)).collect(),
            memory,
            offered,
            features,
            protocol_offered,
            kicks: fds(n_rings)?,
            calls: fds(n_rings)?,
            wish,
            received: VecDeque::new(),
            partial: vec![Default::default(); wish.pairs],
            tx_turn: 0,
        })
    }

    /// Everything up to running rings.
    pub fn attach(connection: Connection, wish: Wish) -> Result<Frontend, FrontendError> {
        let mut frontend = Frontend::greet(connection, wish)?;
        frontend.set_features(frontend.features)?;
        frontend.share_memory()?;
        frontend.start_rings()?;
        Ok(frontend)
    }

    /// SET_FEATURES.
    pub fn set_features(&mut self, features: u64) -> Result<(), FrontendError> {
        done("SET_FEATURES", self.connection.order(request::SET_FEATURES, &words64(&[features]), &[]))
            .map(drop)
    }

    /// SET_MEM_TABLE with both regions.
    pub fn share_memory(&mut self) -> Result<(), FrontendError> {
        let fds = [self.memory.as_fd(), self.memory.as_fd()];
        let answer = self.connection.order(request::SET_MEM_TABLE, &memory_table(&REGIONS), &fds);
        done("SET_MEM_TABLE", answer).map(drop)
    }

    /// Sets all rings up, starts and enables them, and posts receive buffers.
    pub fn start_rings(&mut self) -> Result<(), FrontendError> {
        (0..self.rings.len()).try_for_each(|index| self.start_ring(index))?;
        if self.wish.buffers {
            (0..self.wish.pairs).for_each(|pair| self.post_buffers(pair));
        }
        Ok(())
    }

    /// Sets one ring up, starts and enables it.
    pub fn start_ring(&mut self, index: usize) -> Result<(), FrontendError> {
        let number = index as u32;
        let (size, base) = (u32::from(self.rings[index].size), self.rings[index].base());
        let connection = &mut self.connection;
        let state = |value| words32(&[number, value]);
        done("SET_VRING_CALL", ring_fd(connection, request::SET_VRING_CALL, index, &self.calls[index]))?;
        done("SET_VRING_NUM", connection.order(request::SET_VRING_NUM, &state(size), &[]))?;
        done("SET_VRING_BASE", connection.order(request::SET_VRING_BASE, &state(base), &[]))?;
        let address = ring_address(index, &self.rings[index], 0, 0);
        done("SET_VRING_ADDR", connection.order(request::SET_VRING_ADDR, &address, &[]))?;
        done("SET_VRING_KICK", ring_fd(connection, request::SET_VRING_KICK, index, &self.kicks[index]))?;
        self.enable(index, true)
    }

    /// SET_VRING_ENABLE.
    pub fn enable(&mut self, index: usize, on: bool) -> Result<(), FrontendError> {
        let payload = words32(&[index as u32, u32::from(on)]);
        done("SET_VRING_ENABLE", self.connection.order(request::SET_VRING_ENABLE, &payload, &[])).map(drop)
    }

    /// GET_VRING_BASE.
    pub fn stop_ring(&mut self, index: usize) -> Result<u32, FrontendError> {
        let answer = self.connection.ask(request::GET_VRING_BASE, &words32(&[index as u32, 0]), &[]);
        let answer = done("GET_VRING_BASE", answer)?;
        Ok(answer.word().unwrap_or(0).checked_shr(32).unwrap_or(0) as u32)
    }

    /// A driver's reset: all rings stop and start afresh, on the same connection.
    pub fn reset(&mut self) -> Result<(), FrontendError> {
        (0..self.rings.len()).try_for_each(|index| self.stop_ring(index).map(drop))?;
        self.renew_rings();
        self.start_rings()
    }

    /// Fresh rings in memory.
    pub fn renew_rings(&mut self) {
        let (memory, wish) = (&self.memory, self.wish);
        let fresh = |i| Ring::new(memory.clone(), i, wish.layout, wish.size);
        self.rings = (0..self.rings.len()).map(fresh).collect();
        self.partial = vec![Default::default(); wish.pairs];
        self.received.clear();
    }

    /// Kicks a ring.
    pub fn kick(&self, index: usize) {
        let _ = rustix::io::write(&self.kicks[index], &1u64.to_ne_bytes());
    }

    /// Posts every receive buffer of a pair.
    pub fn post_buffers(&mut self, pair: usize) {
        let ring = &mut self.rings[2 * pair];
        while ring.room() > 0 && ring.n_out() < MAX_BUFFERS {
            let at = buffer_of(pair, ring.next_id());
            ring.push(&[Desc::write(at.gpa(), BUFFER_BYTES as u32)]);
        }
        self.kick(2 * pair);
    }

    /// Offers a frame on pair 0; false when the ring is full.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.send_with(&[0; HEADER_BYTES], frame)
    }

    /// As [`send`](Self::send), with any header.
    pub fn send_with(&mut self, header: &[u8; HEADER_BYTES], frame: &[u8]) -> bool {
        self.rings[TX].take_all();
        let bytes: Vec<u8> = header.iter().chain(frame).copied().collect();
        let pieces: Vec<&[u8]> = bytes.chunks(BUFFER_BYTES as usize).collect();
        let per_frame = MAX_FRAME_BYTES.div_ceil(BUFFER_BYTES as usize) as u64;
        let start = tx_buffers(0).plus(self.tx_turn % 64 * per_frame * BUFFER_BYTES);
        if self.rings[TX].n_out() >= 64 {
            return false;
        }
        let chain: Vec<Desc> = pieces
            .iter()
            .enumerate()
            .map(|(i, piece)| {
                let at = start.plus(BUFFER_BYTES * i as u64);
                self.memory.write(at, piece);
                Desc::read(at.gpa(), piece.len() as u32)
            })
            .collect();
        if self.rings[TX].push(&chain).is_none() {
            return false;
        }
        self.tx_turn += 1;
        self.kick(TX);
        true
    }

    /// The next frame received on any pair.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        if self.received.is_empty() {
            (0..self.wish.pairs).for_each(|pair| self.collect(pair));
        }
        self.received.pop_front()
    }

    fn collect(&mut self, pair: usize) {
        let mut any = false;
        while let Some(buffer) = self.take_buffer(pair) {
            any = true;
            self.received.extend(buffer);
        }
        if any {
            self.kick(2 * pair);
        }
    }

    /// Takes one buffer back and posts it again; a frame when it is the last piece of one.
    fn take_buffer(&mut self, pair: usize) -> Option<Option<Vec<u8>>> {
        let ring = &mut self.rings[2 * pair];
        let returned = ring.take()?;
        let at = buffer_of(pair, returned.id);
        let len = (returned.len as usize).min(BUFFER_BYTES as usize);
        let bytes = self.memory.read(at, len);
        let next = buffer_of(pair, ring.next_id());
        ring.push(&[Desc::write(next.gpa(), BUFFER_BYTES as u32)]);
        let (frame, missing) = &mut self.partial[pair];
        if *missing == 0 {
            if bytes.len() < HEADER_BYTES {
                return Some(None);
            }
            *missing = match self.features & feature::MRG_RXBUF {
                0 => 1,
                _ => u16::from_le_bytes([bytes[10], bytes[11]]).clamp(1, 64),
            };
            frame.extend_from_slice(&bytes[HEADER_BYTES..]);
        } else {
            frame.extend_from_slice(&bytes);
        }
        *missing -= 1;
        Some((*missing == 0).then(|| std::mem::take(frame)))
    }

    /// Waits until all transmitted chains came back.
    pub fn drain(&mut self, time: Duration) -> bool {
        until(time, || {
            self.rings[TX].take_all();
            self.rings[TX].n_out() == 0
        })
    }
}

/// Receive buffers of a pair.
pub fn rx_buffers(pair: usize) -> At {
    assert!(pair < MAX_DRIVEN_PAIRS);
    BUFFERS.plus(0x20_0000 * pair as u64)
}

/// Most receive buffers posted.
const MAX_BUFFERS: usize = 256;

/// The receive buffer of chain `id`. Ids come round in order, so no two chains with the device share one.
fn buffer_of(pair: usize, id: u16) -> At {
    rx_buffers(pair).plus(BUFFER_BYTES * (u64::from(id) % MAX_BUFFERS as u64))
}

/// Transmit buffers of a pair.
pub fn tx_buffers(pair: usize) -> At {
    rx_buffers(pair).plus(0x10_0000)
}

/// Sends SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR.
pub fn ring_fd(
    connection: &mut Connection,
    request: u32,
    index: usize,
    fd: &impl AsFd,
) -> io::Result<Answer> {
    connection.order(request, &words64(&[index as u64]), &[fd.as_fd()])
}

/// Payload of SET_VRING_ADDR.
pub fn ring_address(index: usize, ring: &Ring, flags: u32, log: u64) -> Vec<u8> {
    let place = ring.place;
    let mut payload = words32(&[index as u32, flags]);
    let addresses = [place.desc, place.device, place.driver].map(At::frontend_va);
    payload.extend(words64(&addresses));
    payload.extend(words64(&[log]));
    payload
}

/// Payload of SET_MEM_TABLE.
pub fn memory_table(regions: &[Region]) -> Vec<u8> {
    let mut payload = words32(&[regions.len() as u32, 0]);
    payload.extend(regions.iter().flat_map(region_words));
    payload
}

/// One region in a payload.
pub fn region_words(region: &Region) -> Vec<u8> {
    words64(&[region.gpa, region.len_bytes, region.frontend_va, region.file_offset])
}

/// Payload of ADD_MEM_REG and REM_MEM_REG.
pub fn single_region(region: &Region) -> Vec<u8> {
    words64(&[0]).into_iter().chain(region_words(region)).collect()
}

/// Several borrows of one descriptor.
pub fn copies<'f>(fd: &'f impl AsFd, n: usize) -> Vec<BorrowedFd<'f>> {
    vec![fd.as_fd(); n]
}

/// Looks at something until it is so; false when the time is over first.
pub fn until(time: Duration, mut so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    loop {
        if so() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// As [`until`], with the patience a backend is given.
pub fn patiently(so: impl FnMut() -> bool) -> bool {
    until(PATIENCE, so)
}
