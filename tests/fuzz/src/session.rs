//! The vhost-user socket: any messages in any order, with any descriptors, whole or in pieces. Checked: no panic, the port
//! serves the next peer, no descriptor is left behind.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use spp_drivers::Burst;
use spp_drivers::dma::{DmaSpace, Pool, PoolConfig};
use spp_drivers::port::{RxQueue, TxQueue};
use spp_vhost::{PortConfig, PortState, Role, VhostPort};

use crate::Input;

/// A port whose halves are polled by a thread of their own for as long as the process lives.
struct Bench {
    port: VhostPort,
    bursts: &'static AtomicU64,
    _dir: tempfile::TempDir,
}

static BURSTS: AtomicU64 = AtomicU64::new(0);

fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 256 }).expect("a pool");
        let config = PortConfig::new("vhost:0", dir.path().join("sock"), Role::Server);
        let (port, mut to_guest, mut from_guest) = VhostPort::open(config, &pool).expect("a port");
        std::thread::spawn(move || {
            let mut cache = pool.cache();
            loop {
                let mut burst = Burst::new();
                from_guest.rx_burst(&mut cache, &mut burst);
                to_guest.tx_burst(&mut cache, &mut burst);
                burst.free_all(&mut cache);
                BURSTS.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        Bench { port, bursts: &BURSTS, _dir: dir }
    })
}

fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "the port listens no more: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn descriptor(input: &mut Input<'_>) -> OwnedFd {
    match input.below(4) {
        0 | 1 => {
            let file = memfd_create(c"guest", MemfdFlags::CLOEXEC).expect("a memfd");
            ftruncate(&file, input.pick(&[0, 4096, 0x10000, 0x10000])).expect("a length");
            file
        }
        2 => eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
        _ => File::open("/dev/null").expect("/dev/null").into(),
    }
}

/// One message: mostly a number there is, with a payload of mostly the size it should have.
fn message(input: &mut Input<'_>) -> (Vec<u8>, usize) {
    let request = u32::from(input.u8() % 48);
    let flags = input.pick(&[1u32, 1, 1, 9, 9, 0, 5, 0xffff_ffff]);
    let words = input.pick(&[0usize, 1, 1, 1, 2, 4, 5, 5, 9, 33]);
    let mut payload = Vec::new();
    for _ in 0..words {
        let word = match input.below(8) {
            0 => input.u64(),
            1 => u64::from(input.u8()),
            2 => 0x10000,
            3 => 0x1000 * u64::from(input.u8()),
            4 => (u64::from(input.u8()) << 32) | u64::from(input.u8() & 3),
            5 => 1 << (input.u8() & 63),
            6 => 0x1_4000_0003,
            _ => 0,
        };
        payload.extend(word.to_le_bytes());
    }
    let size = if input.u8() & 15 == 0 { input.u32() } else { payload.len() as u32 };
    let mut bytes = [request.to_le_bytes(), flags.to_le_bytes(), size.to_le_bytes()].concat();
    bytes.extend(payload);
    (bytes, input.pick(&[0, 0, 0, 1, 1, 2, 8]))
}

/// A set-up of one queue pair that is good, so that what follows meets running rings.
fn set_up(stream: &UnixStream) {
    const VA: u64 = 0x7000_0000_0000;
    let memory = || {
        let file = memfd_create(c"guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, 0x10000).expect("a length");
        file
    };
    let event = || eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let put = |request: u32, words: &[u64], fds: &[OwnedFd]| {
        let mut bytes = [request, 1, 8 * words.len() as u32].map(u32::to_le_bytes).concat();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        send(stream, &bytes, fds)
    };
    put(3, &[], &[]); // SET_OWNER
    put(2, &[1 << 32 | 1 << 30 | 1 << 15], &[]); // SET_FEATURES
    put(5, &[1, 0, 0x10000, VA, 0], &[memory()]); // SET_MEM_TABLE
    for ring in [0, 1] {
        let at = VA + 0x4000 * ring;
        put(8, &[ring | 16 << 32], &[]); // SET_VRING_NUM
        put(9, &[ring, at, at + 0x2000, at + 0x1000, 0], &[]); // SET_VRING_ADDR
        put(10, &[ring], &[]); // SET_VRING_BASE
        put(12, &[ring], &[event()]); // SET_VRING_KICK
        put(13, &[ring], &[event()]); // SET_VRING_CALL
        put(18, &[ring | 1 << 32], &[]); // SET_VRING_ENABLE
    }
}

/// Sends what the socket takes without waiting; false when the backend has hung up or is not reading.
fn send(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> bool {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags).is_ok_and(|n| n == bytes.len())
}

/// The target.
pub fn session(data: &[u8]) {
    let bench = bench();
    let stream = connect(&bench.port.config().path);
    let mut input = Input::new(data);
    if input.u8() & 1 != 0 {
        set_up(&stream);
        wait(bench, "start a good set-up", |state| *state == PortState::Running);
    }
    while !input.is_empty() {
        let (bytes, n_fds) = message(&mut input);
        let fds: Vec<OwnedFd> = (0..n_fds).map(|_| descriptor(&mut input)).collect();
        let cut = if input.u8() & 31 == 0 { input.below(bytes.len()) } else { bytes.len() };
        if !send(&stream, &bytes[..cut], &fds) || cut < bytes.len() {
            break;
        }
    }
    drop(stream);
    wait(bench, "become idle", |state| matches!(state, PortState::Waiting | PortState::Failed(_)));
}

/// Waits until the port is in a state, with its cores still polling.
fn wait(bench: &Bench, what: &str, wanted: impl Fn(&PortState) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let bursts = bench.bursts.load(Ordering::Relaxed);
    while !wanted(&bench.port.status().state) || bench.bursts.load(Ordering::Relaxed) == bursts {
        assert!(Instant::now() < deadline, "the port did not {what}: {:?}", bench.port.status());
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Descriptors of this process.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
