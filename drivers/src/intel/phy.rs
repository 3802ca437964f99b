//! The copper PHY behind an MDIC register, which lies at different places in the families but is one register
//! (8254x 13.4.13, 82574 10.2.2.7, 82576 8.2.4). Control thread only.

use std::time::Duration;

use crate::nic::regs::{Block, Reg, Rw};
use crate::nic::wait::WaitError;
use crate::pci::Registers;

const DEADLINE: Duration = Duration::from_millis(100);

/// The PHY's address on all chips.
const PHY: u32 = 1 << 21;
const OP_WRITE: u32 = 1 << 26;
const OP_READ: u32 = 2 << 26;
const READY: u32 = 1 << 28;
/// Nobody answered.
const ERROR: u32 = 1 << 30;
/// Control register (IEEE 802.3 22.2.4.1), and its bits.
const BMCR: u32 = 0 << 16;
const POWER_DOWN: u32 = 1 << 11;
const ISOLATE: u32 = 1 << 10;
const AUTONEG: u32 = 1 << 12;
const RESTART: u32 = 1 << 9;

fn access<B: Registers>(regs: &Block<B>, mdic: Reg<u32, Rw>, command: u32) -> Result<u32, WaitError> {
    regs.write(mdic, PHY | command);
    regs.wait(mdic, READY, READY, DEADLINE)?;
    Ok(regs.read(mdic))
}

/// Switches the PHY on: the kernel's drivers switch it off when they let a card go.
pub fn wake<B: Registers>(regs: &Block<B>, mdic: Reg<u32, Rw>) -> Result<(), WaitError> {
    let control = access(regs, mdic, OP_READ | BMCR)?;
    let off = control & (POWER_DOWN | ISOLATE) != 0 || control & AUTONEG == 0;
    if off && control & ERROR == 0 { negotiate(regs, mdic) } else { Ok(()) }
}

/// Switches the PHY on and makes it negotiate anew.
pub fn negotiate<B: Registers>(regs: &Block<B>, mdic: Reg<u32, Rw>) -> Result<(), WaitError> {
    access(regs, mdic, OP_WRITE | BMCR | AUTONEG | RESTART).map(|_| ())
}
