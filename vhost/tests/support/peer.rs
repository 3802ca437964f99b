//! A frontend that speaks byte by byte: any message, any descriptors, any order.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{Memory, REGION, VA};

const DEADLINE: Duration = Duration::from_secs(20);
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SEND_RARP: u32 = 19;
pub const NET_SET_MTU: u32 = 20;
pub const RESET_DEVICE: u32 = 34;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;
pub const SET_STATUS: u32 = 39;
pub const GET_STATUS: u32 = 40;

pub const P_LOG_SHMFD: u64 = 1 << 1;
pub const P_RARP: u64 = 1 << 2;
pub const P_REPLY_ACK: u64 = 1 << 3;
pub const P_MTU: u64 = 1 << 4;
pub const P_RESET_DEVICE: u64 = 1 << 13;
pub const P_MEM_SLOTS: u64 = 1 << 15;
pub const P_STATUS: u64 = 1 << 16;

/// One connection.
pub struct Peer {
    pub socket: UnixStream,
}

impl Peer {
    /// Connects, again and again until somebody listens.
    pub fn connect(path: &Path) -> Peer {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Ok(socket) = UnixStream::connect(path) {
                return Peer::over(socket);
            }
            assert!(Instant::now() < deadline, "nobody listens on {path:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn over(socket: UnixStream) -> Peer {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Peer { socket }
    }

    fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut message = Vec::new();
        for word in [request, VERSION | flags, payload.len() as u32] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(payload);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let n =
            sendmsg(&self.socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(n, message.len());
    }

    /// Sends without asking for a reply.
    pub fn tell(&mut self, request: u32, payload: &[u8]) {
        self.send(request, 0, payload, &[]);
    }

    pub fn tell_with(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send(request, 0, payload, fds);
    }

    /// Sends, and reads the answer's payload, which the request always has.
    pub fn get(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Vec<u8> {
        self.send(request, 0, payload, fds);
        self.answer(request)
    }

    /// Sends with need_reply; the reply is 0 for success.
    pub fn ask(&mut self, request: u32, payload: &[u8]) -> u64 {
        self.ask_with(request, payload, &[])
    }

    pub fn ask_with(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        self.send(request, NEED_REPLY, payload, fds);
        u64_of(&self.answer(request))
    }

    fn answer(&mut self, request: u32) -> Vec<u8> {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4) & 4), (request, 4), "not the answer");
        let mut payload = vec![0; word(8) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        payload
    }

    /// True once the backend has closed its end.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.socket.read(&mut [0; 64]), Ok(0) | Err(_))
    }

    /// Features and protocol features, as every frontend begins.
    pub fn greet(&mut self, protocol: u64) -> u64 {
        self.tell(SET_OWNER, &[]);
        let offered = u64_of(&self.get(GET_FEATURES, &[], &[]));
        let all = u64_of(&self.get(GET_PROTOCOL_FEATURES, &[], &[]));
        assert_eq!(protocol & !all, 0, "not offered: {:#x}", protocol & !all);
        self.tell(SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes());
        offered
    }

    /// The message that carries one piece of set-up.
    pub fn piece(&mut self, piece: &Piece<'_>) {
        match *piece {
            Piece::Features(features) => self.tell(SET_FEATURES, &features.to_ne_bytes()),
            Piece::Memory(memory) => {
                let fds = [memory.file.as_fd(); 2];
                let both = table(&[region(0, REGION, 0), region(REGION, REGION, 3 * REGION)]);
                self.tell_with(SET_MEM_TABLE, &both, &fds);
            }
            Piece::Num(ring, size) => self.tell(SET_VRING_NUM, &state(ring, size)),
            Piece::Base(ring, base) => self.tell(SET_VRING_BASE, &state(ring, base)),
            Piece::Addr(ring, [desc, used, avail]) => {
                self.tell(SET_VRING_ADDR, &addr(ring, 0, [desc, used, avail], 0))
            }
            Piece::Kick(ring, fd) => self.tell_with(SET_VRING_KICK, &u64::from(ring).to_ne_bytes(), &[fd]),
            Piece::Call(ring, fd) => self.tell_with(SET_VRING_CALL, &u64::from(ring).to_ne_bytes(), &[fd]),
            Piece::Enable(ring) => self.tell(SET_VRING_ENABLE, &state(ring, 1)),
            Piece::Status(status) => self.tell(SET_STATUS, &status.to_ne_bytes()),
        }
    }

    /// Waits until everything sent is handled, and true if the connection lives.
    pub fn settle(&mut self) {
        self.get(GET_FEATURES, &[], &[]);
    }
}

/// One piece of set-up.
#[derive(Clone, Copy)]
pub enum Piece<'a> {
    Features(u64),
    Memory(&'a Memory),
    Num(u32, u32),
    Base(u32, u32),
    /// Frontend addresses: descriptors, used, available.
    Addr(u32, [u64; 3]),
    Kick(u32, BorrowedFd<'a>),
    Call(u32, BorrowedFd<'a>),
    Enable(u32),
    Status(u64),
}

/// Payload of vring state messages.
pub fn state(ring: u32, value: u32) -> Vec<u8> {
    [ring.to_ne_bytes(), value.to_ne_bytes()].concat()
}

/// Payload of SET_VRING_ADDR: descriptors, used, available.
pub fn addr(ring: u32, flags: u32, at: [u64; 3], log: u64) -> Vec<u8> {
    let mut payload = state(ring, flags);
    [at[0], at[1], at[2], log].iter().for_each(|word| payload.extend(word.to_ne_bytes()));
    payload
}

/// One region of [`Memory`], as the memory table carries it.
pub fn region(gpa: u64, len: u64, offset: u64) -> [u64; 4] {
    [gpa, len, VA + gpa, offset]
}

/// Payload of SET_MEM_TABLE.
pub fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut words = vec![regions.len() as u64];
    regions.iter().for_each(|region| words.extend(region));
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Payload of ADD_MEM_REG and REM_MEM_REG.
pub fn one_region(region: [u64; 4]) -> Vec<u8> {
    [0, region[0], region[1], region[2], region[3]].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub fn u64_of(payload: &[u8]) -> u64 {
    u64::from_ne_bytes(payload.try_into().expect("a u64"))
}
