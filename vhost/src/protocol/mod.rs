//! Requests of a frontend, by way of the `vhost` crate's message handler, and what that
//! handler can't do. Runs on the port's control thread.
//!
//! Each header is looked at before it is handed over: a message is only read once it is
//! there whole, and requests nobody knows get a failure reply instead of a disconnect. Those the
//! crate has no code for, or refuses in states where frontends send them, are served in [`own`].

mod backend;
mod own;

use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::device::Refusal;
pub(crate) use backend::{Backend, lock};
use own::{Answer, Own};

/// Bytes of a message header: request, flags, size.
pub const HEADER_BYTES: usize = 12;
/// The request after which the `vhost` crate's answers follow other rules.
const SET_PROTOCOL_FEATURES: u32 = 16;
/// Longest payload accepted.
const MAX_PAYLOAD_BYTES: u32 = 4096;
/// Descriptors taken with one message; the kernel closes what is more.
const MAX_FDS: usize = 8;

const FLAG_VERSION_MASK: u32 = 0x3;
const FLAG_VERSION: u32 = 0x1;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;

/// What a header says to do.
enum Route {
    /// The `vhost` crate reads and answers it.
    Crate,
    /// Served here.
    Own(&'static Own),
    /// Nobody knows it, or its feature was not agreed upon.
    Unknown,
}

/// Which request is served by whom (numbers of the vhost-user specification).
fn route(request: u32, protocol_features: u64) -> Route {
    match request {
        // features, owner, memory table; ring size to error fd; protocol features, queue number; memory slots
        1..=5 | 8..=17 | 36..=38 => Route::Crate,
        34 if protocol_features & VhostUserProtocolFeatures::RESET_DEVICE.bits() != 0 => Route::Crate,
        _ => match own::find(request) {
            Some(own) if own.is_negotiated(protocol_features) => Route::Own(own),
            _ => Route::Unknown,
        },
    }
}

/// True for requests of the crate whose answer is a value: a failure can't be said in it.
fn answers_with_value(request: u32) -> bool {
    matches!(request, 1 | 11 | 15 | 17 | 36)
}

/// The header of the message that comes next.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Request number.
    pub request: u32,
    flags: u32,
    /// Payload bytes.
    pub size: u32,
}

impl Header {
    /// Checks and reads one. `Err` in words: the stream can't be followed any further.
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Header, String> {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let header = Header { request: word(0), flags: word(4), size: word(8) };
        if header.flags & FLAG_VERSION_MASK != FLAG_VERSION || header.flags & FLAG_REPLY != 0 {
            return Err(format!("the frontend sent a malformed message header (flags {:#x})", header.flags));
        }
        if header.size > MAX_PAYLOAD_BYTES {
            return Err(format!("the frontend sent a message of {} bytes", header.size));
        }
        Ok(header)
    }

    fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }
}

/// What handling one message came to.
pub enum Handled {
    /// Done, or refused with a reply that says so.
    Done,
    /// Refused, and the frontend was told; worth a line in the log.
    Refused(String),
    /// The connection is over: why, or `None` for a plain disconnect.
    Close(Option<String>),
}

/// What a message brought behind its header.
struct Payload {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// One connection's message handling. The device outlives it.
pub(crate) struct Protocol {
    handler: BackendReqHandler<Mutex<Backend>>,
    backend: Arc<Mutex<Backend>>,
    stream: UnixStream,
}

impl Protocol {
    /// Serves the device on a connection, of whose socket it takes two descriptors.
    pub fn new(requests: UnixStream, stream: UnixStream, backend: Arc<Mutex<Backend>>) -> Protocol {
        let handler = BackendReqHandler::from_stream(requests, backend.clone());
        Protocol { handler, backend, stream }
    }

    fn backend(&self) -> MutexGuard<'_, Backend> {
        lock(&self.backend)
    }

    /// Handles the next message, which has arrived whole.
    pub fn handle(&mut self, header: Header) -> Handled {
        #[cfg(test)]
        assert_ne!(header.request, tests::REQUEST_THAT_PANICS, "a request that panics");
        let agreed = self.backend().device.protocol_features;
        match route(header.request, agreed) {
            Route::Crate => self.handle_by_crate(header),
            Route::Own(own) => self.handle_own(own, header),
            Route::Unknown => {
                let refusal = format!("request {} is not supported", header.request);
                match self.take_payload(header) {
                    Ok(_) => self.acknowledge(header, Err(refusal), false),
                    Err(error) => Handled::Close(Some(error.to_string())),
                }
            }
        }
    }

    fn handle_by_crate(&mut self, header: Header) -> Handled {
        match self.handler.handle_request() {
            Ok(()) => Handled::Done,
            Err(Error::Disconnected) => Handled::Close(None),
            // The crate has sent the failure reply when one was asked for.
            Err(Error::ReqHandlerError(refusal)) => {
                // It agrees to protocol features before it asks whether they are good, and answers or not by the new
                // ones: behind a refusal nobody knows what was agreed upon.
                let agreed_too_early = header.request == SET_PROTOCOL_FEATURES;
                if self.replies(header) && !answers_with_value(header.request) && !agreed_too_early {
                    Handled::Refused(refusal.to_string())
                } else {
                    Handled::Close(Some(refusal.to_string()))
                }
            }
            Err(error) => Handled::Close(Some(format!("request {}: {error}", header.request))),
        }
    }

    fn handle_own(&mut self, own: &Own, header: Header) -> Handled {
        let payload = match self.take_payload(header) {
            Ok(payload) => payload,
            Err(error) => return Handled::Close(Some(error.to_string())),
        };
        if !own.fits(payload.bytes.len(), payload.fds.len()) {
            let (n, fds) = (payload.bytes.len(), payload.fds.len());
            return Handled::Close(Some(format!("{} with {n} bytes and {fds} descriptors", own.name)));
        }
        let served = (own.serve)(&mut self.backend().device, &payload.bytes, payload.fds);
        match served {
            Ok(Answer::Value(value)) => self.reply(header, value),
            Ok(Answer::Done) => self.acknowledge(header, Ok(()), false),
            Err(refusal) if own.is_answered => Handled::Close(Some(format!("{}: {refusal}", own.name))),
            Err(refusal) => {
                let fatal = matches!(refusal, Refusal::NoSuchRing(_) | Refusal::NoAnswer);
                self.acknowledge(header, Err(format!("{}: {refusal}", own.name)), fatal)
            }
        }
    }

    /// Reads header and payload, and the descriptors that come with them.
    fn take_payload(&mut self, header: Header) -> std::io::Result<Payload> {
        let mut message = vec![0; HEADER_BYTES + header.size as usize];
        let (mut at, mut fds) = (0, Vec::new());
        while at < message.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut into = [std::io::IoSliceMut::new(&mut message[at..])];
            let n = recvmsg(&self.stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            at += n;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
        }
        Ok(Payload { bytes: message.split_off(HEADER_BYTES), fds })
    }

    fn replies(&self, header: Header) -> bool {
        let acked = self.backend().device.protocol_features;
        header.needs_reply() && acked & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Acknowledges a message if asked to; a refusal that can't be told ends the connection when it is `fatal`.
    fn acknowledge(&mut self, header: Header, done: Result<(), String>, fatal: bool) -> Handled {
        if self.replies(header) {
            return match (self.reply(header, u64::from(done.is_err())), done) {
                (Handled::Done, Err(refusal)) => Handled::Refused(refusal),
                (handled, _) => handled,
            };
        }
        match done {
            Ok(()) => Handled::Done,
            Err(refusal) if fatal => Handled::Close(Some(refusal)),
            Err(refusal) => Handled::Refused(refusal),
        }
    }

    fn reply(&mut self, header: Header, value: u64) -> Handled {
        let mut reply = Vec::with_capacity(HEADER_BYTES + 8);
        for word in [header.request, FLAG_VERSION | FLAG_REPLY, 8] {
            reply.extend_from_slice(&word.to_ne_bytes());
        }
        reply.extend_from_slice(&value.to_ne_bytes());
        match self.stream.write_all(&reply) {
            Ok(()) => Handled::Done,
            Err(error) => Handled::Close(Some(error.to_string())),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    /// In unit tests this request stands for a bug in the handling of messages.
    pub const REQUEST_THAT_PANICS: u32 = 0xdead;
}
