//! The vhost-user socket, message by message: header, payload and descriptors exactly as the caller says, right or wrong.
//!
//! An implementation of its own, so that a misreading in the backend is not repeated here. One thread uses a connection.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// How long a backend may take to answer before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Version 1, in every header.
pub const VERSION: u32 = 1;
/// The header flag of an answer.
pub const REPLY: u32 = 4;
/// The header flag that asks for an acknowledgement.
pub const NEED_REPLY: u32 = 8;

/// Request numbers (vhost-user specification, "Front-end message types").
#[allow(missing_docs)]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Acknowledged with 0, or answered with this payload.
    Done(Vec<u8>),
    /// Acknowledged with something else: refused.
    Refused,
    /// The backend closed the connection.
    Closed,
}

impl Answer {
    /// The answer's first word, if there is one.
    pub fn word(&self) -> Option<u64> {
        let Answer::Done(payload) = self else { return None };
        payload.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    /// True unless the backend did what was asked.
    pub fn is_no(&self) -> bool {
        !matches!(self, Answer::Done(_))
    }
}

/// One connection.
pub struct Connection {
    stream: UnixStream,
    /// The backend acknowledges messages that ask for it (REPLY_ACK is agreed upon).
    pub acknowledges: bool,
}

impl Connection {
    /// Wraps a connected socket.
    pub fn new(stream: UnixStream) -> io::Result<Connection> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, acknowledges: false })
    }

    /// Sends bytes as they are, with descriptors on the first of them.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "at most 64 descriptors");
        }
        let mut sent = 0;
        while sent < bytes.len() {
            sent += rustix::net::sendmsg(
                &self.stream,
                &[IoSlice::new(&bytes[sent..])],
                &mut control,
                SendFlags::NOSIGNAL,
            )?;
            control.clear();
        }
        Ok(())
    }

    /// Sends a message with any header.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        size: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.send_bytes(&message(request, flags, size, payload), fds)
    }

    /// Sends a well-formed message and does not wait.
    pub fn tell(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(request, VERSION, payload.len() as u32, payload, fds)
    }

    /// Asks a question that has an answer of its own.
    pub fn ask(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Answer> {
        match self.tell(request, payload, fds) {
            Ok(()) => self.answer(request),
            Err(error) => closed(error),
        }
    }

    /// Sends a message and finds out what became of it: by acknowledgement where there are any, else by
    /// asking for the features behind it.
    pub fn order(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Answer> {
        let flags = if self.acknowledges { VERSION | NEED_REPLY } else { VERSION };
        if let Err(error) = self.send(request, flags, payload.len() as u32, payload, fds) {
            return closed(error);
        }
        if !self.acknowledges {
            return self.ask(request::GET_FEATURES, &[], &[]).map(|answer| match answer {
                Answer::Done(_) => Answer::Done(Vec::new()),
                other => other,
            });
        }
        Ok(match self.answer(request)? {
            Answer::Done(word) if word.iter().any(|byte| *byte != 0) => Answer::Refused,
            other => other,
        })
    }

    /// The answer to `request`; answers to earlier ones are passed over.
    pub fn answer(&mut self, request: u32) -> io::Result<Answer> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (header, payload) = match self.receive() {
                Ok(message) => message,
                Err(error) => return closed(error),
            };
            if header[1] & REPLY != 0 && header[0] == request {
                return Ok(Answer::Done(payload));
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn receive(&mut self) -> io::Result<([u32; 3], Vec<u8>)> {
        let mut bytes = [0; 12];
        self.stream.read_exact(&mut bytes)?;
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let header = [word(0), word(4), word(8)];
        // No answer of the protocol is longer; a backend that says so is not believed.
        if header[2] > 4096 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; header[2] as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((header, payload))
    }

    /// Waits for the backend to hang up; false if it did not in time. What it says meanwhile is thrown away.
    pub fn wait_for_end(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut bytes = [0; 256];
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            let set = self.stream.set_read_timeout(Some(left));
            let ended = set.and_then(|()| self.stream.read(&mut bytes));
            match ended {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
        let _ = self.stream.set_read_timeout(Some(PATIENCE));
        false
    }

    /// Throws away everything the backend has said and not been asked about.
    pub fn skip_answers(&mut self) {
        let mut bytes = [0; 4096];
        let quick = Duration::from_millis(1);
        let _ = self.stream.set_read_timeout(Some(quick));
        while matches!(self.stream.read(&mut bytes), Ok(n) if n > 0) {}
        let _ = self.stream.set_read_timeout(Some(PATIENCE));
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// An error that means the backend hung up is an answer; others (a time-out above all) are errors.
fn closed(error: io::Error) -> io::Result<Answer> {
    use io::ErrorKind::*;
    match error.kind() {
        UnexpectedEof | BrokenPipe | ConnectionReset | NotConnected => Ok(Answer::Closed),
        WouldBlock => Err(TimedOut.into()),
        _ => Err(error),
    }
}

/// The bytes of a message.
pub fn message(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let header = [request, flags, size].into_iter().flat_map(u32::to_ne_bytes);
    header.chain(payload.iter().copied()).collect()
}

/// A payload of 64-bit words.
pub fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A payload of 32-bit words.
pub fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_has_the_header_of_the_specification() {
        let bytes = message(request::SET_VRING_NUM, VERSION | NEED_REPLY, 8, &words32(&[1, 256]));
        assert_eq!(bytes, [8, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn acknowledgement_tells_done_from_refused_and_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours).unwrap();
        connection.acknowledges = true;
        let reply = |value: u64| message(8, VERSION | REPLY, 8, &words64(&[value]));
        let backend = Connection::new(theirs).unwrap();
        backend.send_bytes(&reply(0), &[]).unwrap();
        assert_eq!(connection.order(8, &words32(&[0, 1]), &[]).unwrap().word(), Some(0));
        backend.send_bytes(&reply(1), &[]).unwrap();
        assert_eq!(connection.order(8, &words32(&[0, 1]), &[]).unwrap(), Answer::Refused);
        drop(backend);
        assert_eq!(connection.order(8, &words32(&[0, 1]), &[]).unwrap(), Answer::Closed);
    }
}
