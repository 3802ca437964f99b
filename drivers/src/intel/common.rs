//! Registers that lie elsewhere on each of Intel's families but mean the same: receive addresses, the start of a ring,
//! the key flows are spread by. A family names its registers; what is done with them is here. Control thread only.

use super::nic::RingPlace;
use crate::mac::MacAddr;
use crate::nic::filters;
use crate::nic::regs::{Array, Block, Doorbell, Rw};
use crate::nic::wait::{GONE, WaitError};
use crate::pci::Registers;
use crate::port::Link;

/// In the high half of a receive address: the entry is valid (82574 10.2.5.18, 82599 8.2.3.7.9).
pub const RAH_AV: u32 = 1 << 31;

/// What says in a frame that a tag follows, as the cards want it.
pub const TPID: u32 = 0x8100;

/// Each word of the hash key. Any even spread will do; this one also sends both directions of a flow to one queue.
pub const RSS_KEY: u32 = u32::from_le_bytes([0x6d, 0x5a, 0x6d, 0x5a]);

/// The low and the high halves of the receive addresses, own address first.
pub struct Addresses {
    /// RAL.
    pub low: Array<u32, Rw>,
    /// RAH.
    pub high: Array<u32, Rw>,
}

impl Addresses {
    /// What the reset has loaded from the EEPROM, if that is an address a card can have.
    pub fn loaded<B: Registers>(&self, regs: &Block<B>) -> Option<MacAddr> {
        let (low, high) = (regs.read(self.low.at(0)).to_le_bytes(), regs.read(self.high.at(0)));
        let [e, f, ..] = high.to_le_bytes();
        let mac = MacAddr([low[0], low[1], low[2], low[3], e, f]);
        (high & RAH_AV != 0 && is_valid(mac)).then_some(mac)
    }

    /// Writes all of them: those of `exact`, then invalid ones.
    pub fn write<B: Registers>(&self, regs: &Block<B>, exact: &[MacAddr]) {
        for index in 0..self.low.len() {
            let (low, high) = match exact.get(index).map(|mac| filters::halves(*mac)) {
                Some((low, high)) => (low, high | RAH_AV),
                None => (0, 0),
            };
            // Invalid while its halves don't belong together.
            regs.write(self.high.at(index), 0);
            regs.write(self.low.at(index), low);
            regs.write(self.high.at(index), high);
        }
    }
}

/// True for an address a card can have as its own.
pub fn is_valid(mac: MacAddr) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}

/// The registers of the rings of one direction, by queue.
pub struct Rings {
    /// Base address, low half.
    pub base_low: Array<u32, Rw>,
    /// High half.
    pub base_high: Array<u32, Rw>,
    /// Length in bytes.
    pub len: Array<u32, Rw>,
    /// The device's index.
    pub head: Array<u32, Rw>,
    /// Ours.
    pub tail: Array<u32, Rw>,
}

impl Rings {
    /// Makes the ring at `place` known, empty; its tail register.
    pub fn place<B: Registers>(&self, regs: &Block<B>, place: RingPlace) -> Doorbell<B> {
        let queue = usize::from(place.queue);
        regs.write(self.base_low.at(queue), place.iova as u32);
        regs.write(self.base_high.at(queue), (place.iova >> 32) as u32);
        regs.write(self.len.at(queue), place.len_bytes);
        regs.write(self.head.at(queue), 0);
        regs.write(self.tail.at(queue), 0);
        regs.doorbell(self.tail.at(queue))
    }
}

/// The link as the STATUS register tells it on all gigabit cards: link up in bit 1, speed in bits 6 and 7.
pub fn gigabit_link(status: u32) -> Link {
    const LU: u32 = 1 << 1;
    if status == GONE {
        return Link::Down { reason: "the device is gone".into() };
    }
    if status & LU == 0 {
        return Link::Down { reason: "no carrier".into() };
    }
    let speed_mbps = match status >> 6 & 3 {
        0 => 10,
        1 => 100,
        _ => 1000,
    };
    Link::Up { speed_mbps }
}

/// Goes on, with a line in the log, when a wait that a reset makes up for is late. A card that is gone stays an error.
pub fn even_if_late(done: Result<(), WaitError>, consequence: &str) -> Result<(), WaitError> {
    match done {
        Err(late @ WaitError::Late { .. }) => {
            tracing::warn!(%late, "{consequence}");
            Ok(())
        }
        done => done,
    }
}
