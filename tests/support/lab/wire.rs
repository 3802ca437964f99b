//! The far end of an emulated NIC's cable: QEMU's `dgram` network back end, one raw frame per datagram.
//!
//! A unix datagram queue holds ten messages, so whoever sends without reading stands still, and QEMU with it. A thread
//! therefore reads all the time; the test takes frames from its channel.

use super::frame::Frame;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Frames kept for a test that does not take them; more are forgotten.
const KEPT_FRAMES: usize = 65_536;

/// One cable. Dropping it stops the reader.
pub struct Wire {
    socket: UnixDatagram,
    ours: PathBuf,
    theirs: PathBuf,
    received: Receiver<Frame>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Wire {
    /// Binds our end as `<dir>/<name>-far`; QEMU's end will be `<dir>/<name>-nic`.
    pub fn new(dir: &Path, name: &str) -> io::Result<Wire> {
        let ours = dir.join(format!("{name}-far"));
        let socket = UnixDatagram::bind(&ours)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, received) = sync_channel(KEPT_FRAMES);
        let reader = std::thread::spawn({
            let (socket, stop) = (socket.try_clone()?, stop.clone());
            move || {
                let mut bytes = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    let Ok(len_bytes) = socket.recv(&mut bytes) else {
                        continue; // the read timeout, which is when `stop` is looked at
                    };
                    if let Some(frame) = Frame::parse(&bytes[..len_bytes]) {
                        let _ = sender.try_send(frame);
                    }
                }
            }
        });
        Ok(Wire {
            socket,
            theirs: dir.join(format!("{name}-nic")),
            ours,
            received,
            stop,
            reader: Some(reader),
        })
    }

    /// The value of QEMU's `-netdev` option for the NIC at the other end.
    pub fn netdev(&self, id: &str) -> String {
        format!(
            "dgram,id={id},local.type=unix,local.path={},remote.type=unix,remote.path={}",
            self.theirs.display(),
            self.ours.display()
        )
    }

    /// Sends one frame; an error when the NIC takes none for a while (nobody has set it up yet) or its machine is gone.
    pub fn send(&self, frame: &Frame) -> io::Result<()> {
        self.socket.send_to(&frame.to_bytes(), &self.theirs).map(drop)
    }

    /// The next frame, if one comes within `timeout`.
    pub fn receive(&self, timeout: Duration) -> Option<Frame> {
        match self.received.recv_timeout(timeout) {
            Ok(frame) => Some(frame),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the wire's reader ended early"),
        }
    }

    /// Everything that arrives within `window`.
    pub fn drain(&self, window: Duration) -> Vec<Frame> {
        let end = Instant::now() + window;
        let mut frames = Vec::new();
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            frames.extend(self.receive(left));
        }
        frames
    }

    /// Sends `frame` again and again until `answer` arrives; other frames meanwhile are returned too, in order.
    pub fn probe(&self, frame: &Frame, answer: &Frame, deadline: Duration) -> Result<Vec<Frame>, String> {
        let end = Instant::now() + deadline;
        let mut others = Vec::new();
        while Instant::now() < end {
            match self.send(frame) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(format!("the wire is cut: {error}"));
                }
                _ => {}
            }
            let next_try = Instant::now() + Duration::from_millis(500);
            while let Some(left) = next_try.checked_duration_since(Instant::now()) {
                match self.receive(left) {
                    Some(seen) if seen == *answer => return Ok(others),
                    Some(seen) => others.push(seen),
                    None => break,
                }
            }
        }
        Err(format!(
            "no {answer:?} within {deadline:?}, but {} other frames, the first {:?}",
            others.len(),
            others.first()
        ))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let _ = std::fs::remove_file(&self.ours);
    }
}
