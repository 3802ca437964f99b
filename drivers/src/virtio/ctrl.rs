//! The control queue (virtio 1.2, 5.1.6.5): one command at a time, polled with a deadline. Control thread only.

use std::time::{Duration, Instant};

use super::init::Doorbell;
use super::ring::Segment;
use super::stats::{Ring, Shared, Side};
use crate::dma::{PacketBuf, Pool};
use crate::pci::Registers;

const CLASS_RX: u8 = 0;
/// Receive everything.
pub(super) const RX_PROMISCUOUS: u8 = 0;
/// Receive all group addresses.
pub(super) const RX_ALL_MULTICAST: u8 = 1;
const ACK_OK: u8 = 0;
const NO_ANSWER: u8 = 0xff;
const COMMAND_BYTES: usize = 3;
const DEADLINE: Duration = Duration::from_secs(1);

pub(super) struct Control<B: Registers> {
    ring: Option<Ring>,
    doorbell: Doorbell<B>,
    /// The buffer of the next command; `None` while the device has it.
    idle: Option<PacketBuf>,
    shared: std::sync::Arc<Shared>,
}

impl<B: Registers> Control<B> {
    /// `None` when the pool is exhausted.
    pub(super) fn new(
        ring: Ring,
        doorbell: Doorbell<B>,
        shared: std::sync::Arc<Shared>,
        pool: &Pool,
    ) -> Option<Self> {
        let idle = Some(pool.cache().alloc()?);
        Some(Control { ring: Some(ring), doorbell, idle, shared })
    }

    /// Switches one receive mode on or off.
    pub(super) fn rx_mode(&mut self, command: u8, on: bool) -> Result<(), String> {
        let Some(ring) = &mut self.ring else { return Err("the control queue is closed".into()) };
        let Some(mut buffer) = self.idle.take() else {
            return Err("the control queue has not answered the last command".into());
        };
        // Class, command, mode for the device to read; the byte behind for its answer.
        let written = buffer.set_len(COMMAND_BYTES + 1);
        debug_assert!(written.is_ok(), "four bytes fit any buffer");
        buffer.data_mut().copy_from_slice(&[CLASS_RX, command, u8::from(on), NO_ANSWER]);
        let at = buffer.iova();
        let pieces = [
            Segment::readable(at.0, COMMAND_BYTES as u32),
            Segment::writable(at.offset(COMMAND_BYTES as u64).0, 1),
        ];
        if let Err(buffer) = ring.post(&pieces, buffer) {
            self.idle = Some(buffer);
            return Err("the control queue is full".into());
        }
        if ring.publish() {
            self.doorbell.ring();
        }
        let end = Instant::now() + DEADLINE;
        loop {
            let idle = &mut self.idle;
            ring.reap(1, |buffer, _| *idle = Some(buffer))
                .map_err(|fault| format!("control queue: {fault}"))?;
            if let Some(buffer) = &self.idle {
                return match buffer.data().last() {
                    Some(&ACK_OK) => Ok(()),
                    answer => Err(format!("the device refuses receive mode {command} ({answer:?})")),
                };
            }
            if Instant::now() >= end {
                return Err(format!("the control queue did not answer within {DEADLINE:?}"));
            }
            std::thread::yield_now();
        }
    }
}

impl<B: Registers> Drop for Control<B> {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.shared.park(Side::Control, ring);
        }
    }
}
