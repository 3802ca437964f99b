//! What the two queue halves tell the control thread: counters, the link, and the first fault.
//! virtio-net has no counters of its own; the control half counts its events.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use super::ring::{RingFault, SplitRing};
use crate::dma::{PacketBuf, Region};

/// A ring of this driver: DMA memory, packet buffers out.
pub(super) type Ring = SplitRing<Region, PacketBuf>;

/// Why the device has to be started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetFault {
    /// The device lied about the receive ring.
    Rx(RingFault),
    /// The device lied about the transmit ring.
    Tx(RingFault),
    /// A frame said to take more buffers than any frame can.
    TooManyBuffers(u16),
    /// Sent frames were not completed in time.
    TxHang {
        /// Frames the device has.
        n_frames: u16,
    },
}

impl fmt::Display for NetFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetFault::Rx(fault) => write!(f, "receive ring: {fault}"),
            NetFault::Tx(fault) => write!(f, "transmit ring: {fault}"),
            NetFault::TooManyBuffers(n) => write!(f, "receive ring: a frame claims {n} buffers"),
            NetFault::TxHang { n_frames } => write!(f, "transmit ring: {n_frames} frames not sent in time"),
        }
    }
}

/// Whose ring it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Rx,
    Tx,
    Control,
}

/// Shared by the control half and the queue halves of one start of the device.
#[derive(Default)]
pub(super) struct Shared {
    link_down: AtomicBool,
    fault: OnceLock<NetFault>,
    /// Rings of halves that are gone. They keep their buffers until the device is known to be stopped.
    parked: Mutex<Vec<(Side, Ring)>>,
}

impl Shared {
    #[inline(always)]
    pub(super) fn link_is_down(&self) -> bool {
        self.link_down.load(Ordering::Relaxed)
    }

    pub(super) fn set_link(&self, up: bool) {
        self.link_down.store(!up, Ordering::Relaxed);
    }

    /// Remembers the first fault.
    #[cold]
    pub(super) fn fail(&self, fault: NetFault) {
        if self.fault.set(fault).is_ok() {
            tracing::error!(%fault, "virtio-net stopped");
        }
    }

    pub(super) fn fault(&self) -> Option<NetFault> {
        self.fault.get().copied()
    }

    /// Takes the ring of a half that is dropped.
    pub(super) fn park(&self, side: Side, ring: Ring) {
        self.parked.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((side, ring));
    }

    /// The parked rings. Only for a device that is stopped.
    pub(super) fn take_parked(&self) -> Vec<(Side, Ring)> {
        std::mem::take(&mut *self.parked.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}
