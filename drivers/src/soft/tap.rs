//! `tap:NAME`: a kernel network interface as the wire.
//!
//! The interface is made (or taken over, if it is there already) and brought up when the device is
//! opened, and lives as long as the device unless it was made persistent by somebody else. One
//! system call per frame: good for trying out and for tests, not for speed.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use arrayvec::ArrayVec;
use rustix::io::{Errno, readv, writev};

use super::spec::form_error;
use super::tap_fd::{self, Flags};
use super::{MAX_FRAME_BYTES, MAX_SEGMENTS, MIN_FRAME_BYTES, Trouble, chain_behind, one_queue_pair, queues};
use crate::burst::Burst;
use crate::dma::{DATA_ROOM, PacketBuf, Pool, PoolCache};
use crate::mac::MacAddr;
use crate::port::{Device, DeviceInfo, Health, Link, PortError, Queues, RxQueue, TxQueue};
use crate::stats::{DropReason, QueueStats, SharedStats};

const FORM: &str = "tap:NAME, the name of a network interface, at most 15 bytes";

/// IFNAMSIZ without the terminator.
const MAX_NAME_BYTES: usize = 15;

/// From here on a frame takes more than one buffer.
const SPILLED_BYTES: usize = DATA_ROOM + 1;

struct Tap {
    spec: String,
    name: String,
    file: Arc<File>,
    flags: Flags,
    trouble: Trouble,
}

pub(super) fn open(spec: &str, name: &str) -> Result<Box<dyn Device>, PortError> {
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len());
    let plain = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'%' && b != b':');
    if !fits || !plain || name == "." || name == ".." {
        return Err(form_error(spec, format!("{name:?} is no interface name"), FORM));
    }
    let refused = |error: io::Error| {
        PortError::new(spec, format!("the tap interface can't be made: {error}"), remedy(&error))
            .caused_by(error)
    };
    let file = tap_fd::attach(name).map_err(refused)?;
    let flags = Flags::new().map_err(refused)?;
    flags.bring_up(name).map_err(refused)?;
    let (spec, name, trouble) = (spec.to_owned(), name.to_owned(), Trouble::default());
    Ok(Box::new(Tap { spec, name, file: Arc::new(file), flags, trouble }))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "it takes CAP_NET_ADMIN: run spp as root, or `setcap cap_net_admin+ep` the binary"
        }
        io::ErrorKind::NotFound => "load the module: `modprobe tun`",
        io::ErrorKind::ResourceBusy => "another process has this tap interface: choose another name",
        io::ErrorKind::InvalidInput => "an interface of this name exists and is no tap: choose another name",
        _ => "",
    }
}

impl Device for Tap {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            address: self.spec.clone(),
            driver: "tap",
            max_frame_bytes: MAX_FRAME_BYTES as u32,
            n_queue_pairs: 1,
            numa_node: None,
        }
    }

    /// None: the interface's own address is that of the kernel, our peer.
    fn mac(&self) -> Option<MacAddr> {
        None
    }

    fn link(&mut self) -> Link {
        let reason = match self.flags.is_up(&self.name) {
            Ok(true) => return Link::Up { speed_mbps: 0 },
            Ok(false) => format!("the interface is down (`ip link set {} up`)", self.name),
            Err(error) => format!("the interface can't be asked: {error}"),
        };
        Link::Down { reason }
    }

    fn set_promiscuous(&mut self, _on: bool) -> Result<(), PortError> {
        Ok(())
    }

    fn start(&mut self, _pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError> {
        one_queue_pair(&self.spec, n_queue_pairs)?;
        let (file, trouble) = (&self.file, &self.trouble);
        let rx = TapRx {
            file: file.clone(),
            spill: vec![0; MAX_FRAME_BYTES + 1 - DATA_ROOM],
            trouble: trouble.clone(),
            stats: QueueStats::shared(),
        };
        let tx = TapTx { file: file.clone(), trouble: trouble.clone(), stats: QueueStats::shared() };
        Ok(queues(rx, tx))
    }

    fn stop(&mut self, queues: Queues) {
        drop(queues);
    }

    fn health(&mut self) -> Health {
        self.trouble.health()
    }
}

/// The receiving half.
struct TapRx {
    file: Arc<File>,
    /// What of a frame does not fit its first buffer.
    spill: Vec<u8>,
    trouble: Trouble,
    stats: SharedStats,
}

/// What came of one read.
enum Read {
    Frame(PacketBuf),
    Dropped(DropReason),
    Nothing,
}

impl TapRx {
    fn read(&mut self, pool: &mut PoolCache) -> Read {
        let Some(mut packet) = pool.alloc() else { return Read::Nothing };
        packet.set_len(DATA_ROOM).expect("an empty buffer has room for DATA_ROOM bytes");
        let mut parts = [IoSliceMut::new(packet.data_mut()), IoSliceMut::new(&mut self.spill)];
        let result = readv(&self.file, &mut parts);
        let len = match result {
            Ok(len) => len,
            Err(errno) => {
                pool.free(packet);
                // AGAIN: nothing there. IO: the interface is down. Others don't go away by themselves.
                if !matches!(errno, Errno::AGAIN | Errno::INTR | Errno::IO) {
                    self.trouble.report(|| format!("the tap interface is gone: {errno}"));
                }
                return Read::Nothing;
            }
        };
        packet.set_len(len.min(DATA_ROOM)).expect("no more than DATA_ROOM");
        let reason = match len {
            ..MIN_FRAME_BYTES => DropReason::Runt,
            MIN_FRAME_BYTES..=DATA_ROOM => return Read::Frame(packet),
            SPILLED_BYTES..=MAX_FRAME_BYTES
                if chain_behind(pool, &mut packet, &self.spill[..len - DATA_ROOM]) =>
            {
                return Read::Frame(packet);
            }
            SPILLED_BYTES..=MAX_FRAME_BYTES => DropReason::NoBuffer,
            _ => DropReason::Oversize,
        };
        pool.free(packet);
        Read::Dropped(reason)
    }
}

impl RxQueue for TapRx {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        let (mut n, mut bytes) = (0, 0);
        for _ in 0..out.room() {
            match self.read(pool) {
                Read::Nothing => break,
                Read::Dropped(reason) => self.stats.dropped(reason, 1),
                Read::Frame(packet) => {
                    bytes += packet.total_len() as u64;
                    let pushed = out.push(packet);
                    debug_assert!(pushed.is_ok(), "at most room() rounds");
                    n += 1;
                }
            }
        }
        self.stats.moved(n, bytes);
        n
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

/// The sending half.
struct TapTx {
    file: Arc<File>,
    trouble: Trouble,
    stats: SharedStats,
}

impl TapTx {
    /// `None`: the kernel takes no more now.
    fn write(&self, packet: &PacketBuf) -> Option<Result<(), DropReason>> {
        let len = packet.total_len();
        if len < MIN_FRAME_BYTES {
            return Some(Err(DropReason::Runt));
        }
        if len > MAX_FRAME_BYTES || packet.n_segments() > MAX_SEGMENTS {
            return Some(Err(DropReason::Oversize));
        }
        let parts: ArrayVec<IoSlice<'_>, MAX_SEGMENTS> = packet.segments().map(IoSlice::new).collect();
        match writev(&self.file, &parts) {
            Ok(_) => Some(Ok(())),
            Err(Errno::AGAIN) => None,
            Err(Errno::IO) => Some(Err(DropReason::LinkDown)),
            Err(errno) => {
                if errno == Errno::BADFD {
                    self.trouble.report(|| format!("the tap interface is gone: {errno}"));
                }
                Some(Err(DropReason::OsError))
            }
        }
    }
}

impl TxQueue for TapTx {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        let (mut n, mut sent, mut bytes) = (0, 0, 0);
        for packet in from.iter() {
            match self.write(packet) {
                None => break,
                Some(Ok(())) => {
                    sent += 1;
                    bytes += packet.total_len() as u64;
                }
                Some(Err(reason)) => self.stats.dropped(reason, 1),
            }
            n += 1;
        }
        from.take_front(n).for_each(|packet| pool.free(packet));
        self.stats.moved(sent, bytes);
        n
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{burst, frames, pool};
    use super::*;
    use std::io::{Read as _, Write as _};

    /// Runs a test in a network namespace of its own, on a thread of its own.
    fn in_own_network(test: &str, body: impl FnOnce(Box<dyn Device>) + Send + 'static) {
        let test = test.to_owned();
        let thread = std::thread::spawn(move || {
            if let Err(error) = tap_fd::testing::own_network() {
                println!("SKIPPED: {test}: no network namespace of its own: {error}");
                return;
            }
            match open("tap:t0", "t0") {
                Ok(device) => body(device),
                Err(error) => println!("SKIPPED: {test}: {error}"),
            }
        });
        thread.join().unwrap();
    }

    /// Frames of our own: the kernel also sends some of its own on a new interface.
    fn ours(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        frames.into_iter().filter(|frame| frame[12..14] == [0x88, 0xb5]).collect()
    }

    fn frame(number: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![number; len];
        frame[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, number, 0x88, 0xb5]);
        frame
    }

    /// Polls until `wanted` frames of ours came.
    fn receive(rx: &mut dyn RxQueue, cache: &mut PoolCache, wanted: usize) -> Vec<Vec<u8>> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut got = Vec::new();
        while got.len() < wanted {
            assert!(std::time::Instant::now() < deadline, "only {} frames came", got.len());
            let mut out = Burst::new();
            rx.rx_burst(cache, &mut out);
            got.extend(ours(frames(&out)));
            out.free_all(cache);
        }
        got
    }

    #[test]
    fn frames_pass_between_us_and_the_kernel_both_ways() {
        in_own_network("frames_pass_between_us_and_the_kernel_both_ways", |mut device| {
            let (pool, mut cache) = pool(256);
            assert!(device.link().is_up(), "making it brings it up");
            let mut queues = device.start(&pool, 1).unwrap();
            tap_fd::testing::set_mtu("t0", 9000).unwrap();
            let mut kernel = tap_fd::testing::packet_socket("t0").unwrap();
            let sent = [frame(1, 60), frame(2, 1514), frame(3, 9014)];
            for frame in &sent {
                kernel.write_all(frame).unwrap();
            }
            assert_eq!(receive(&mut *queues.rx[0], &mut cache, 3), sent);
            let runt = [9; 13];
            let mut given = burst(&mut cache, &[&sent[2], &runt, &sent[0]]);
            assert_eq!(queues.tx[0].tx_burst(&mut cache, &mut given), 3);
            let mut arrived = Vec::new();
            while arrived.len() < 2 {
                let mut buf = [0; 10_000];
                let n = kernel.read(&mut buf).expect("the frames arrive within two seconds each");
                // The socket also sees what the kernel sent before, to us.
                arrived.extend(ours(vec![buf[..n].to_vec()]));
            }
            assert!(arrived.iter().all(|frame| sent.contains(frame)), "{arrived:?}");
            let stats = queues.tx[0].stats();
            assert_eq!((stats.packets.get(), stats.bytes.get()), (2, 9074));
            assert_eq!(stats.drops(DropReason::Runt), 1);
            device.stop(queues);
            drop(cache);
            assert_eq!(pool.counts().out, 0);
        });
    }

    #[test]
    fn interface_that_is_down_drops_with_its_reason_and_comes_back() {
        in_own_network("interface_that_is_down_drops_with_its_reason_and_comes_back", |mut device| {
            let (pool, mut cache) = pool(64);
            let mut queues = device.start(&pool, 1).unwrap();
            tap_fd::testing::bring_down("t0").unwrap();
            assert!(matches!(device.link(), Link::Down { reason } if reason.contains("ip link set t0 up")));
            let mut given = burst(&mut cache, &[&frame(1, 60), &frame(2, 60)]);
            assert_eq!(queues.tx[0].tx_burst(&mut cache, &mut given), 2);
            assert_eq!(queues.tx[0].stats().drops(DropReason::LinkDown), 2);
            assert_eq!(queues.rx[0].rx_burst(&mut cache, &mut Burst::new()), 0);
            assert_eq!(device.health(), Health::Ok, "down is not gone");
            Flags::new().unwrap().bring_up("t0").unwrap();
            let mut given = burst(&mut cache, &[&frame(1, 60)]);
            assert_eq!(queues.tx[0].tx_burst(&mut cache, &mut given), 1);
            assert_eq!(queues.tx[0].stats().packets.get(), 1);
        });
    }

    #[test]
    fn tap_in_use_says_so() {
        in_own_network("tap_in_use_says_so", |_device| {
            let error = open("tap:t0", "t0").err().expect("the name is taken");
            assert!(error.to_string().contains("another process has this tap"), "{error}");
        });
    }

    #[test]
    fn missing_privilege_names_the_capability() {
        assert!(remedy(&io::Error::from_raw_os_error(libc::EPERM)).contains("CAP_NET_ADMIN"));
    }
}
