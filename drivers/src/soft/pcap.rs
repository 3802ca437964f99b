//! `pcap:`: replays one capture file once, and writes another.
//!
//! The file to replay is read whole when the device is opened. What is sent goes to a buffer of
//! [`WRITE_BUFFER_BYTES`] which the polling core hands to the kernel when it is full, and the rest when the
//! queue is stopped. Time stamps are real time, taken once per burst.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::time::{Duration, SystemTime};

use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};

use super::spec::Fields;
use super::{MAX_FRAME_BYTES, MIN_FRAME_BYTES, NoRx, Sink, Trouble, copy_in, one_queue_pair};
use crate::burst::Burst;
use crate::dma::{PacketBuf, Pool, PoolCache};
use crate::mac::MacAddr;
use crate::port::{Device, DeviceInfo, Health, Link, PortError, Queues, RxQueue, TxQueue};
use crate::stats::{DropReason, QueueStats, SharedStats};

const FORM: &str = "pcap:rx=FILE,tx=FILE, or with one of the two";

const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// Length of a capture file's header.
const HEADER_BYTES: usize = 24;

struct Pcap {
    spec: String,
    /// What is left to replay when the device is (re)started: the first start takes it.
    replay: Option<Replay>,
    tx: Option<File>,
    trouble: Trouble,
}

/// Frames of a capture, end to end.
#[derive(Default)]
struct Replay {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

pub(super) fn open(spec: &str, rest: &str) -> Result<Box<dyn Device>, PortError> {
    let fields = Fields::parse(spec, rest, &["rx", "tx"], FORM)?;
    let (rx, tx) = (fields.get("rx"), fields.get("tx"));
    if rx.is_none() && tx.is_none() {
        return Err(fields.error("neither rx nor tx is given"));
    }
    let refused = |what: &str, file: &str, error: String| {
        PortError::new(spec, format!("{file} can't be {what}: {error}"), "")
    };
    let replay = rx.map(|file| read_capture(file).map_err(|e| refused("replayed", file, e))).transpose()?;
    let tx = tx
        .map(|file| create_capture(file).map_err(|e| refused("written", file, e.to_string())))
        .transpose()?;
    Ok(Box::new(Pcap { spec: spec.to_owned(), replay, tx, trouble: Trouble::default() }))
}

fn read_capture(file: &str) -> Result<Replay, String> {
    let file = File::open(file).map_err(|e| e.to_string())?;
    let mut reader = PcapReader::new(BufReader::new(file)).map_err(|e| e.to_string())?;
    let link = reader.header().datalink;
    if link != DataLink::ETHERNET {
        return Err(format!("it holds {link:?}, not Ethernet"));
    }
    let mut replay = Replay::default();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.map_err(|e| format!("frame {}: {e}", replay.ends.len() + 1))?;
        replay.bytes.extend_from_slice(&packet.data);
        replay.ends.push(replay.bytes.len());
    }
    Ok(replay)
}

/// Empties the file. It gets its header with the first start, and is appended to from then on.
fn create_capture(file: &str) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).open(file)
}

impl Device for Pcap {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            address: self.spec.clone(),
            driver: "pcap",
            max_frame_bytes: MAX_FRAME_BYTES as u32,
            n_queue_pairs: 1,
            numa_node: None,
        }
    }

    fn mac(&self) -> Option<MacAddr> {
        None
    }

    fn link(&mut self) -> Link {
        match self.trouble.health() {
            Health::Ok => Link::Up { speed_mbps: 0 },
            Health::NeedsRestart(reason) | Health::Gone(reason) => Link::Down { reason },
        }
    }

    fn set_promiscuous(&mut self, _on: bool) -> Result<(), PortError> {
        Ok(())
    }

    fn start(&mut self, _pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError> {
        one_queue_pair(&self.spec, n_queue_pairs)?;
        let tx: Box<dyn TxQueue> = match &self.tx {
            Some(file) => {
                let capture = Capture::start(file, self.trouble.clone());
                Box::new(
                    capture
                        .map_err(|e| PortError::new(&self.spec, format!("tx file: {e}"), "").caused_by(e))?,
                )
            }
            None => Box::new(Sink::new()),
        };
        let rx: Box<dyn RxQueue> = match self.replay.take() {
            Some(replay) => Box::new(Player { replay, next: 0, stats: QueueStats::shared() }),
            None => Box::new(NoRx::new()),
        };
        Ok(Queues { rx: vec![rx], tx: vec![tx] })
    }

    fn stop(&mut self, queues: Queues) {
        drop(queues); // writes what is buffered
    }

    fn health(&mut self) -> Health {
        self.trouble.health()
    }
}

/// The receiving half.
struct Player {
    replay: Replay,
    next: usize,
    stats: SharedStats,
}

impl Player {
    fn frame(&self) -> Option<&[u8]> {
        let end = *self.replay.ends.get(self.next)?;
        let start = if self.next == 0 { 0 } else { self.replay.ends[self.next - 1] };
        Some(&self.replay.bytes[start..end])
    }
}

impl RxQueue for Player {
    fn rx_burst(&mut self, pool: &mut PoolCache, out: &mut Burst) -> usize {
        let (mut n, mut bytes) = (0, 0);
        while out.room() > 0 {
            let Some(frame) = self.frame() else { break };
            if let Some(reason) = unfit(frame.len()) {
                self.stats.dropped(reason, 1);
                self.next += 1;
                continue;
            }
            let Some(packet) = copy_in(pool, frame) else { break };
            bytes += frame.len() as u64;
            self.next += 1;
            let pushed = out.push(packet);
            debug_assert!(pushed.is_ok(), "the loop runs while there is room");
            n += 1;
        }
        self.stats.moved(n, bytes);
        n
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

/// Why a frame of this length is not carried.
#[inline(always)]
fn unfit(len: usize) -> Option<DropReason> {
    match len {
        ..MIN_FRAME_BYTES => Some(DropReason::Runt),
        MIN_FRAME_BYTES..=MAX_FRAME_BYTES => None,
        _ => Some(DropReason::Oversize),
    }
}

/// A file that drops the first bytes it is given: a header the file has already.
struct Skip {
    file: File,
    left: usize,
}

impl Write for Skip {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = self.left.min(bytes.len());
        self.left -= skipped;
        if skipped > 0 { Ok(skipped) } else { self.file.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The sending half.
struct Capture {
    /// `None` only while being dropped.
    writer: Option<PcapWriter<BufWriter<Skip>>>,
    /// A frame of several buffers is put together here.
    joined: Vec<u8>,
    trouble: Trouble,
    stats: SharedStats,
}

impl Capture {
    fn start(file: &File, trouble: Trouble) -> io::Result<Self> {
        let header = PcapHeader { snaplen: MAX_FRAME_BYTES as u32, ..PcapHeader::default() };
        let file = file.try_clone()?;
        let left = if io::Seek::stream_position(&mut &file)? == 0 { 0 } else { HEADER_BYTES };
        let buffer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, Skip { file, left });
        let writer = PcapWriter::with_header(buffer, header).map_err(io::Error::other)?;
        Ok(Capture {
            writer: Some(writer),
            joined: Vec::with_capacity(MAX_FRAME_BYTES),
            trouble,
            stats: QueueStats::shared(),
        })
    }

    /// Writes one frame; the reason when it could not be.
    fn write(&mut self, packet: &PacketBuf, now: Duration) -> Result<(), DropReason> {
        let len = packet.total_len();
        unfit(len).map_or(Ok(()), Err)?;
        // After the first error the file ends somewhere within a frame: nothing more may follow.
        if self.trouble.is_reported() {
            return Err(DropReason::OsError);
        }
        let bytes: &[u8] = if packet.is_chained() {
            self.joined.clear();
            packet.segments().for_each(|segment| self.joined.extend_from_slice(segment));
            &self.joined
        } else {
            packet.data()
        };
        let record = PcapPacket::new(now, len as u32, bytes);
        let writer = self.writer.as_mut().expect("only drop takes it");
        writer.write_packet(&record).map(drop).map_err(|error| {
            self.trouble.report(|| format!("the tx file can't be written: {error}"));
            DropReason::OsError
        })
    }
}

impl TxQueue for Capture {
    fn tx_burst(&mut self, pool: &mut PoolCache, from: &mut Burst) -> usize {
        let n = from.len();
        if n == 0 {
            return 0;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (mut written, mut bytes) = (0, 0);
        for packet in from.take_all() {
            match self.write(&packet, now) {
                Ok(()) => {
                    written += 1;
                    bytes += packet.total_len() as u64;
                }
                Err(reason) => self.stats.dropped(reason, 1),
            }
            pool.free(packet);
        }
        self.stats.moved(written, bytes);
        n
    }

    fn stats(&self) -> SharedStats {
        self.stats.clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let writer = self.writer.take().expect("dropped once");
        if let Err(error) = writer.into_writer().flush() {
            self.trouble.report(|| format!("the tx file can't be written: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{burst, frames, pool};
    use super::*;

    fn write_capture(path: &std::path::Path, frames: &[&[u8]]) {
        let mut writer = PcapWriter::new(File::create(path).unwrap()).unwrap();
        for frame in frames {
            writer.write_packet(&PcapPacket::new(Duration::ZERO, frame.len() as u32, frame)).unwrap();
        }
    }

    #[test]
    fn capture_is_replayed_once_without_its_runts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("in.pcap");
        let long: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        write_capture(&file, &[&[1; 60], &[2; 13], &long, &[3; 14]]);
        let (pool, mut cache) = pool(64);
        let mut device = super::super::open(&format!("pcap:rx={}", file.display())).unwrap().unwrap();
        let mut queues = device.start(&pool, 1).unwrap();
        let mut out = Burst::new();
        assert_eq!(queues.rx[0].rx_burst(&mut cache, &mut out), 3);
        assert_eq!(frames(&out), [vec![1; 60], long, vec![3; 14]]);
        assert_eq!(out[1].n_segments(), 3);
        assert_eq!(queues.rx[0].stats().drops(DropReason::Runt), 1);
        assert_eq!(queues.rx[0].rx_burst(&mut cache, &mut out), 0);
        device.stop(queues);
        let mut queues = device.start(&pool, 1).unwrap();
        assert_eq!(queues.rx[0].rx_burst(&mut cache, &mut out), 0, "once is once");
        drop((out, cache));
        assert_eq!(pool.counts().out, 0);
    }

    #[test]
    fn replay_waits_for_buffers_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("in.pcap");
        write_capture(&file, &[&[1; 60], &[2; 60], &[3; 60]]);
        let (pool, mut cache) = pool(64);
        let mut hogs: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
        cache.free(hogs.pop().unwrap());
        let mut device = super::super::open(&format!("pcap:rx={}", file.display())).unwrap().unwrap();
        let mut queues = device.start(&pool, 1).unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let mut out = Burst::new();
            assert_eq!(queues.rx[0].rx_burst(&mut cache, &mut out), 1);
            seen.extend(frames(&out));
            out.free_all(&mut cache);
        }
        assert_eq!(seen, [[1; 60], [2; 60], [3; 60]]);
    }

    #[test]
    fn sent_frames_are_in_the_file_after_each_stop() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out.pcap");
        let (pool, mut cache) = pool(64);
        let mut device = super::super::open(&format!("pcap:tx={}", file.display())).unwrap().unwrap();
        for round in 1..3u8 {
            let mut queues = device.start(&pool, 1).unwrap();
            let mut given = burst(&mut cache, &[&[round; 60], &[round; 10], &[round; 4100]]);
            assert_eq!(queues.tx[0].tx_burst(&mut cache, &mut given), 3);
            let stats = queues.tx[0].stats();
            assert_eq!((stats.packets.get(), stats.bytes.get(), stats.drops(DropReason::Runt)), (2, 4160, 1));
            device.stop(queues);
        }
        let written = read_capture(file.to_str().unwrap()).unwrap();
        assert_eq!(written.ends, [60, 4160, 4220, 8320]);
        assert_eq!(device.health(), Health::Ok);
        drop(cache);
        assert_eq!(pool.counts().out, 0);
    }

    #[test]
    fn full_disk_is_counted_and_told_by_the_device() {
        let (pool, mut cache) = pool(64);
        let mut device = super::super::open("pcap:tx=/dev/full").unwrap().unwrap();
        let mut queues = device.start(&pool, 1).unwrap();
        let frame = [7; 60_000];
        for _ in 0..40 {
            let mut given = burst(&mut cache, &[&frame]);
            assert_eq!(queues.tx[0].tx_burst(&mut cache, &mut given), 1);
        }
        let stats = queues.tx[0].stats();
        assert!(stats.drops(DropReason::OsError) > 10, "{:?}", stats.snapshot());
        assert_eq!(stats.drops(DropReason::OsError) + stats.packets.get(), 40);
        assert!(matches!(device.health(), Health::Gone(why) if why.contains("can't be written")));
        assert!(!device.link().is_up());
        device.stop(queues);
        drop(cache);
        assert_eq!(pool.counts().out, 0);
    }

    #[test]
    fn file_that_is_no_capture_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("in.pcap");
        std::fs::write(&file, "not a capture, but long enough to be one").unwrap();
        for path in [file, dir.path().join("missing")] {
            let spec = format!("pcap:rx={}", path.display());
            let error = super::super::open(&spec).unwrap().err().unwrap();
            assert!(error.to_string().contains("can't be replayed"), "{error}");
        }
    }
}
