//! Bringing the device up: registers, commands, address, link. Control thread only.

use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::regs::{LEN_BYTES, command, pt, vd};
use crate::mac::MacAddr;
use crate::nic::regs::{Block, Doorbell};
use crate::nic::wait::{GONE, WaitError};
use crate::pci::{PciFunction, Registers};
use crate::port::{Link, PortError};

/// Commands are done by the time their write is; this is for hosts that are not that exact.
const COMMAND_DEADLINE: Duration = Duration::from_millis(500);
/// Revision of the device and version of its pass-through interface that we speak: the first, which all have.
const REVISION_1: u32 = 1;

/// Both register blocks.
pub(super) struct Regs<B> {
    pt: Block<B>,
    vd: Block<B>,
}

fn block<F: PciFunction>(function: &F, index: u8) -> Result<Block<F::Bar>, PortError> {
    let short = || PortError::new(function.address(), format!("BAR {index} is too short"), "");
    Block::new(function.map_bar(index)?, 0, LEN_BYTES).ok_or_else(short)
}

impl<B: Registers> Regs<B> {
    /// Maps both BARs.
    pub(super) fn map<F: PciFunction<Bar = B>>(function: &F) -> Result<Self, PortError> {
        Ok(Regs { pt: block(function, 0)?, vd: block(function, 1)? })
    }

    /// True when the registers read as all ones.
    pub(super) fn is_gone(&self) -> bool {
        self.vd.read(vd::VRRS) == GONE
    }

    /// Agrees on the first revision and version.
    pub(super) fn negotiate(&self) -> Result<(), WaitError> {
        for register in [vd::VRRS, vd::UVRS] {
            self.vd.wait(register, REVISION_1, REVISION_1, Duration::ZERO)?;
            self.vd.write(register, REVISION_1);
        }
        Ok(())
    }

    /// Gives a command that has no result but success.
    fn succeed(&self, command: u32) -> Result<(), WaitError> {
        self.tell(command);
        self.vd.wait(vd::CMD, u32::MAX, 0, COMMAND_DEADLINE)
    }

    /// Gives a command that makes the device read something again.
    pub(super) fn tell(&self, command: u32) {
        // What was written to memory for it comes first.
        fence(Ordering::Release);
        self.vd.write(vd::CMD, command);
    }

    fn ask(&self, command: u32) -> u32 {
        self.tell(command);
        self.vd.read(vd::CMD)
    }

    /// All vectors masked, all queues and all DMA stopped, no configuration.
    pub(super) fn reset(&self) -> Result<(), WaitError> {
        if self.is_gone() {
            return Err(WaitError::Gone { register: vd::VRRS.name });
        }
        self.mask_all();
        self.tell(command::QUIESCE_DEV);
        self.succeed(command::RESET_DEV)?;
        self.vd.write(vd::DSAL, 0);
        self.vd.write(vd::DSAH, 0);
        self.mask_all();
        Ok(())
    }

    fn mask_all(&self) {
        (0..pt::IMR.len()).for_each(|vector| self.pt.write(pt::IMR.at(vector), 1));
    }

    /// Lets a vector fire once more.
    pub(super) fn unmask(&self, vector: u8) {
        self.pt.write(pt::IMR.at(vector.into()), 0);
    }

    /// The address the host gave it; `None` when that is none a NIC can have.
    pub(super) fn mac(&self) -> Option<MacAddr> {
        let low = self.ask(command::GET_PERM_MAC_LO).to_le_bytes();
        let [e, f, ..] = self.ask(command::GET_PERM_MAC_HI).to_le_bytes();
        Some(MacAddr([low[0], low[1], low[2], low[3], e, f])).filter(|mac| mac.is_station())
    }

    /// Reads the configuration area at `area` and starts, as `mac`.
    pub(super) fn activate(&self, area: u64, mac: MacAddr) -> Result<(), WaitError> {
        let [a, b, c, d, e, f] = mac.0;
        self.vd.write(vd::MACL, u32::from_le_bytes([a, b, c, d]));
        self.vd.write(vd::MACH, u32::from_le_bytes([e, f, 0, 0]));
        self.vd.write(vd::DSAL, area as u32);
        self.vd.write(vd::DSAH, (area >> 32) as u32);
        self.succeed(command::ACTIVATE_DEV)
    }

    /// The link now.
    pub(super) fn link(&self) -> Link {
        match self.ask(command::GET_LINK) {
            GONE => Link::Down { reason: "the device is gone".into() },
            word if word & 1 != 0 => Link::Up { speed_mbps: word >> 16 },
            _ => Link::Down { reason: "the device reports no carrier".into() },
        }
    }

    /// The device need not tell these events again.
    pub(super) fn acknowledge(&self, events: u32) {
        self.vd.write(vd::ECR, events);
    }

    /// Doorbells of a receive queue: for its first and its second ring.
    pub(super) fn rx_doorbells(&self, queue: u16) -> [Doorbell<B>; 2] {
        [pt::RXPROD, pt::RXPROD2].map(|bells| self.pt.doorbell(bells.at(queue.into())))
    }

    /// Doorbell of a transmit queue.
    pub(super) fn tx_doorbell(&self, queue: u16) -> Doorbell<B> {
        self.pt.doorbell(pt::TXPROD.at(queue.into()))
    }
}
