//! The control queue (virtio 1.2, 5.1.6.5): one command at a time, polled with a deadline. Control thread only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::Command;
use super::queue::{Doorbell, Parked, Ring, Shared};
use super::ring::Segment;
use crate::dma::{PacketBuf, Pool};
use crate::pci::Registers;

const ACK_OK: u8 = 0;
const NO_ANSWER: u8 = 0xff;
const DEADLINE: Duration = Duration::from_secs(1);

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CommandError {
    /// The device says no.
    #[error("the device refuses the command {name} (answer {answer})")]
    Refused { name: &'static str, answer: u8 },
    /// The device says nothing; it has to be started anew.
    #[error("the control queue did not answer the command {name} within {DEADLINE:?}")]
    Late { name: &'static str },
    /// The device has not answered an earlier command, or lied about it.
    #[error("the command {name} can't be given: {why}")]
    Broken { name: &'static str, why: String },
}

pub(super) struct Control<B: Registers> {
    /// `None` only while dropping.
    ring: Option<Ring>,
    doorbell: Doorbell<B>,
    /// The buffer of the next command; `None` while the device has it.
    idle: Option<PacketBuf>,
    shared: Arc<Shared>,
}

impl<B: Registers> Control<B> {
    /// `None` when the pool is exhausted.
    pub(super) fn new(ring: Ring, doorbell: Doorbell<B>, shared: Arc<Shared>, pool: &Pool) -> Option<Self> {
        let idle = pool.cache().alloc();
        let is_whole = idle.is_some();
        let control = Control { ring: Some(ring), doorbell, idle, shared };
        is_whole.then_some(control)
    }

    /// Gives a command and waits for its answer.
    pub(super) fn run(&mut self, command: &Command) -> Result<(), CommandError> {
        let name = command.name;
        let broken = |why: String| CommandError::Broken { name, why };
        let Some(ring) = &mut self.ring else { return Err(broken("the queue is closed".into())) };
        let Some(mut buffer) = self.idle.take() else {
            return Err(broken("the command before it was not answered".into()));
        };
        let n = command.bytes().len();
        let written = buffer.set_len(n + 1);
        debug_assert!(written.is_ok(), "the longest command fits any buffer");
        // For the device to read; the byte behind is for its answer.
        buffer.data_mut()[..n].copy_from_slice(command.bytes());
        buffer.data_mut()[n] = NO_ANSWER;
        let at = buffer.iova();
        let pieces = [Segment::readable(at.0, n as u32), Segment::writable(at.offset(n as u64).0, 1)];
        if let Err(buffer) = ring.post(&pieces, buffer) {
            self.idle = Some(buffer);
            return Err(broken("the queue is full".into()));
        }
        if ring.publish() {
            self.doorbell.ring();
        }
        let end = Instant::now() + DEADLINE;
        loop {
            let is_last = Instant::now() >= end;
            let idle = &mut self.idle;
            ring.reap(1, |buffer, _| *idle = Some(buffer)).map_err(|fault| broken(fault.to_string()))?;
            if let Some(buffer) = &self.idle {
                return match buffer.data().last() {
                    Some(&ACK_OK) => Ok(()),
                    answer => Err(CommandError::Refused { name, answer: *answer.unwrap_or(&NO_ANSWER) }),
                };
            }
            if is_last {
                return Err(CommandError::Late { name });
            }
            std::thread::yield_now();
        }
    }
}

impl<B: Registers> Drop for Control<B> {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.shared.park(Parked::other(ring));
        }
    }
}

const _: () = assert!(super::command::MAX_BYTES < crate::dma::DATA_ROOM);
