//! Requests of a frontend, by way of the `vhost` crate's message handler, and what that
//! handler can't do. Runs on the port's control thread.
//!
//! Each header is looked at before it is handed over: a message is only read once it is
//! there whole, requests nobody knows get a failure reply instead of a disconnect, and
//! SET_VRING_ENABLE is served in any state (the crate refuses it before SET_FEATURES, which
//! is when QEMU sends it first).

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use vhost::vhost_user::message::*;
use vhost::vhost_user::{BackendReqHandler, Error, Result, VhostUserBackendReqHandlerMut};

use crate::device::{Device, Refusal};
use crate::memory::{FrontendVa, MAX_REGIONS, RegionInfo};
use crate::setup::offered;
use crate::vring::layout::RingAddr;

/// Bytes of a message header: request, flags, size.
pub const HEADER_BYTES: usize = 12;
/// Longest payload accepted.
const MAX_PAYLOAD_BYTES: u32 = 4096;

const FLAG_VERSION_MASK: u32 = 0x3;
const FLAG_VERSION: u32 = 0x1;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;

const SET_VRING_ENABLE: u32 = 18;

/// What a header says to do.
enum Route {
    /// The `vhost` crate reads and answers it.
    Crate,
    Enable,
    /// Nobody knows it.
    Unknown,
}

/// The requests served (numbers of the vhost-user specification).
fn route(request: u32) -> Route {
    match request {
        // features, owner, memory table; ring size to error fd; protocol features, queue number; memory slots
        1..=5 | 8..=17 | 36..=38 => Route::Crate,
        SET_VRING_ENABLE => Route::Enable,
        _ => Route::Unknown,
    }
}

/// True for requests whose answer is a value: a failure can't be said in it.
fn answers_with_value(request: u32) -> bool {
    matches!(request, 1 | 11 | 15 | 17 | 36)
}

/// Protocol features offered. REPLY_ACK is added by the crate, which implements it.
fn offered_protocol() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
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
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> std::result::Result<Header, String> {
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

/// One connection's message handling.
pub(crate) struct Protocol {
    handler: BackendReqHandler<Mutex<Backend>>,
    backend: Arc<Mutex<Backend>>,
    stream: UnixStream,
}

impl Protocol {
    /// Takes the device for the time of a connection, and two descriptors of its socket.
    pub fn new(requests: UnixStream, stream: UnixStream, device: Device) -> Protocol {
        let backend = Arc::new(Mutex::new(Backend(Some(device))));
        let handler = BackendReqHandler::from_stream(requests, backend.clone());
        Protocol { handler, backend, stream }
    }

    /// Ends the connection and gives the device back.
    pub fn into_device(self) -> Device {
        self.backend().0.take().expect("only this takes the device out, and it consumes the protocol")
    }

    fn backend(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Handles the next message, which has arrived whole.
    pub fn handle(&mut self, header: Header) -> Handled {
        match route(header.request) {
            Route::Crate => self.handle_by_crate(header),
            Route::Enable => self.handle_enable(header),
            Route::Unknown => {
                let refusal = format!("request {} is not supported", header.request);
                match self.take_payload(header) {
                    Ok(_) => self.answer(header, Err(refusal), false),
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
                if self.replies(header) && !answers_with_value(header.request) {
                    Handled::Refused(refusal.to_string())
                } else {
                    Handled::Close(Some(refusal.to_string()))
                }
            }
            Err(error) => Handled::Close(Some(format!("request {}: {error}", header.request))),
        }
    }

    fn handle_enable(&mut self, header: Header) -> Handled {
        let payload = match self.take_payload(header) {
            Ok(payload) => payload,
            Err(error) => return Handled::Close(Some(error.to_string())),
        };
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return Handled::Close(Some("SET_VRING_ENABLE of a wrong size".into()));
        };
        let [a, b, c, d, e, f, g, h] = payload;
        let (index, on) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
        let done = match on {
            0 | 1 => self.backend().device().and_then(|device| device.enable(index, on == 1)),
            _ => return Handled::Close(Some(format!("SET_VRING_ENABLE with value {on}"))),
        };
        self.answer(header, done.map_err(|refusal| refusal.to_string()), true)
    }

    /// Reads header and payload. Descriptors that came along are closed by the kernel.
    fn take_payload(&mut self, header: Header) -> std::io::Result<Vec<u8>> {
        let mut message = vec![0; HEADER_BYTES + header.size as usize];
        self.stream.read_exact(&mut message)?;
        Ok(message.split_off(HEADER_BYTES))
    }

    fn replies(&self, header: Header) -> bool {
        let acked = self.backend().0.as_ref().map_or(0, |device| device.protocol_features);
        header.needs_reply() && acked & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Acknowledges a message if asked to; a refusal that can't be told ends the connection when it is `fatal`.
    fn answer(&mut self, header: Header, done: std::result::Result<(), String>, fatal: bool) -> Handled {
        if self.replies(header) {
            let mut reply = Vec::with_capacity(HEADER_BYTES + 8);
            for word in [header.request, FLAG_VERSION | FLAG_REPLY, 8] {
                reply.extend_from_slice(&word.to_ne_bytes());
            }
            reply.extend_from_slice(&u64::from(done.is_err()).to_ne_bytes());
            if let Err(error) = self.stream.write_all(&reply) {
                return Handled::Close(Some(error.to_string()));
            }
            return done.map_or_else(Handled::Refused, |()| Handled::Done);
        }
        match done {
            Ok(()) => Handled::Done,
            Err(refusal) if fatal => Handled::Close(Some(refusal)),
            Err(refusal) => Handled::Refused(refusal),
        }
    }
}

/// The crate's view of the device.
pub(crate) struct Backend(Option<Device>);

impl Backend {
    fn device(&mut self) -> std::result::Result<&mut Device, Refusal> {
        self.0.as_mut().ok_or(Refusal::NotOffered("a request after the end"))
    }

    fn run<T>(&mut self, request: impl FnOnce(&mut Device) -> std::result::Result<T, Refusal>) -> Result<T> {
        self.device().and_then(request).map_err(refused)
    }
}

fn refused(refusal: Refusal) -> Error {
    Error::ReqHandlerError(std::io::Error::other(refusal))
}

fn not_offered<T>(what: &'static str) -> Result<T> {
    Err(refused(Refusal::NotOffered(what)))
}

fn region_info(region: &VhostUserMemoryRegion) -> RegionInfo {
    RegionInfo {
        gpa: region.guest_phys_addr,
        len_bytes: region.memory_size,
        frontend_va: region.user_addr,
        file_offset: region.mmap_offset,
    }
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // Deprecated; what frontends that still send it mean by it is "stop the rings".
        self.run(|device| (0..2).try_for_each(|ring| device.stop_ring(ring).map(drop)))
    }

    fn reset_device(&mut self) -> Result<()> {
        not_offered("RESET_DEVICE")
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.run(|device| device.set_features(features))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().map(region_info).zip(files).collect();
        self.run(|device| device.set_memory(regions)).map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.run(|device| device.set_size(index, num))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addr =
            RingAddr { desc: FrontendVa(descriptor), avail: FrontendVa(available), used: FrontendVa(used) };
        self.run(|device| device.set_addr(index, addr))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.run(|device| device.set_base(index, base))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.run(|device| device.stop_ring(index))?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.run(|device| device.kick(u32::from(index)))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.run(|device| device.set_call(u32::from(index), fd))
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.run(|device| device.check_ring(u32::from(index)))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(offered_protocol())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !offered_protocol().bits() != 0 {
            return not_offered("a protocol feature");
        }
        self.run(|device| {
            device.protocol_features = features;
            Ok(())
        })
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        // Queue pairs, as QEMU and DPDK count.
        Ok(1)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.run(|device| device.enable(index, enable))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        let info = region_info(region);
        self.run(|device| device.add_memory(info, &fd)).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let info = region_info(region);
        self.run(|device| device.remove_memory(info))
    }

    // Never reached: none of these is offered, and `route` hands none of them over.

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        not_offered("CONFIG")
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        not_offered("CONFIG")
    }

    fn set_gpu_socket(&mut self, _: vhost::vhost_user::GpuBackend) -> Result<()> {
        not_offered("a GPU")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered("SHARED_OBJECT")
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        not_offered("INFLIGHT_SHMFD")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        not_offered("INFLIGHT_SHMFD")
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        not_offered("DEVICE_STATE")
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered("DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered("SHMEM")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered("LOG_SHMFD")
    }
}
