//! What is plugged into an SFP+ cage: identified over its two-wire bus, and the analog side set up for it out of the
//! EEPROM (82599 3.7.2, 6.3.12; SFF-8472). Control thread only: bits on the bus are timed by sleeping.

use std::time::Duration;

use super::regs::*;
use crate::nic::regs::Block;
use crate::nic::wait::WaitError;
use crate::pci::Registers;

const EEPROM_DEADLINE: Duration = Duration::from_millis(100);
/// Half a period of the bus at 100 kHz.
const HALF_BIT: Duration = Duration::from_micros(5);

/// SFF-8472: address of the EEPROM for writing.
const ADDRESS: u8 = 0xa0;
const IDENTIFIER: u8 = 0;
const CODES_10G: u8 = 3;
const CODES_1G: u8 = 6;
const CABLE: u8 = 8;

/// EEPROM: where the lists for modules are (6.3.1.5).
const MODULE_LIST: u32 = 0x2b;

/// What is in the cage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// Nothing answers.
    Absent,
    /// Something that is no SFP or SFP+ module: its identifier.
    Foreign(u8),
    /// A module this card has no set-up for: codes for 10 and 1 Gbit/s, kind of cable.
    Unknown([u8; 3]),
    /// A copper cable with plugs.
    Copper,
    /// An optical module, 10 or 1 Gbit/s.
    Optical,
}

impl Module {
    /// Why there is no link with it, if it is the module's doing.
    pub fn objection(self) -> Option<String> {
        match self {
            Module::Absent => Some("no SFP+ module".into()),
            Module::Foreign(id) => {
                Some(format!("unsupported module: its identifier is {id:#04x}, an SFP+ module's is 0x03"))
            }
            Module::Unknown(codes) => Some(format!("unsupported SFP+ module: codes {codes:02x?}")),
            Module::Copper | Module::Optical => None,
        }
    }

    /// Number of its kind in the EEPROM's list for a port.
    fn list_id(self, port: u16) -> Option<u16> {
        match self {
            Module::Copper => Some(3 + port),
            Module::Optical => Some(5 + port),
            _ => None,
        }
    }
}

/// The bus, while it is held.
struct Bus<'a, B: Registers>(&'a Block<B>);

impl<B: Registers> Bus<'_, B> {
    fn lines(&self, clock: bool, data: bool) {
        let value = if clock { i2c::CLK_OUT } else { 0 } | if data { i2c::DATA_OUT } else { 0 };
        self.0.write(I2CCTL, value);
        self.0.read(I2CCTL);
        std::thread::sleep(HALF_BIT);
    }

    fn start(&self) {
        self.lines(true, true);
        self.lines(true, false);
        self.lines(false, false);
    }

    fn stop(&self) {
        self.lines(false, false);
        self.lines(true, false);
        self.lines(true, true);
    }

    /// One clock; what the data line is meanwhile.
    fn bit(&self, data: bool) -> bool {
        self.lines(false, data);
        self.lines(true, data);
        let seen = self.0.read(I2CCTL) & i2c::DATA_IN != 0;
        self.lines(false, data);
        seen
    }

    /// Sends a byte; whether it was acknowledged.
    fn send(&self, byte: u8) -> bool {
        for i in (0..8).rev() {
            self.bit(byte >> i & 1 == 1);
        }
        !self.bit(true)
    }

    fn read(&self, offset: u8) -> Option<u8> {
        self.start();
        let addressed = self.send(ADDRESS) && self.send(offset);
        self.lines(false, true);
        self.start();
        let byte = (addressed && self.send(ADDRESS | 1)).then(|| {
            let byte = (0..8).fold(0, |byte, _| byte << 1 | u8::from(self.bit(true)));
            self.bit(true); // no more
            byte
        });
        self.stop();
        byte
    }
}

/// Looks into the cage of a port.
pub fn identify<B: Registers>(regs: &Block<B>) -> Result<Module, WaitError> {
    let port = usize::from(regs.read(STATUS) & status::LAN_ID != 0);
    let _held = SEMAPHORE.hold(regs, sync::PHY[port])?;
    let bus = Bus(regs);
    // A module that has just been plugged in may not answer the first time.
    let Some(identifier) = bus.read(IDENTIFIER).or_else(|| bus.read(IDENTIFIER)) else {
        return Ok(Module::Absent);
    };
    if identifier != 3 {
        return Ok(Module::Foreign(identifier));
    }
    let codes = [bus.read(CODES_10G), bus.read(CODES_1G), bus.read(CABLE)].map(|byte| byte.unwrap_or(0));
    let [ten, one, cable] = codes;
    Ok(match () {
        () if cable & 0x0c != 0 => Module::Copper,
        () if ten & 0x30 != 0 || one & 0x1b != 0 => Module::Optical,
        () => Module::Unknown(codes),
    })
}

fn eeprom<B: Registers>(regs: &Block<B>, word: u32) -> Result<u16, WaitError> {
    regs.write(EERD, word << 2 | eerd::START);
    regs.wait(EERD, eerd::DONE, eerd::DONE, EEPROM_DEADLINE)?;
    Ok((regs.read(EERD) >> 16) as u16)
}

/// Longest list of an EEPROM that makes sense.
const LIST_MAX: u32 = 64;

/// Sets the analog side up for a module as the EEPROM says. False when it says nothing about this kind.
pub fn set_up<B: Registers>(regs: &Block<B>, module: Module) -> Result<bool, WaitError> {
    let port = u16::from(regs.read(STATUS) & status::LAN_ID != 0);
    let Some(wanted) = module.list_id(port) else { return Ok(false) };
    let list = u32::from(eeprom(regs, MODULE_LIST)?);
    if list == 0 || list == 0xffff {
        return Ok(true); // no lists: this EEPROM leaves the analog side as it is
    }
    for pair in 0..LIST_MAX {
        let at = list + 1 + 2 * pair;
        match eeprom(regs, at)? {
            0xffff => return Ok(false),
            id if id == wanted => return apply(regs, u32::from(eeprom(regs, at + 1)?)),
            _ => {}
        }
    }
    Ok(false)
}

/// Writes one list, behind its checksum, to the analog side.
fn apply<B: Registers>(regs: &Block<B>, list: u32) -> Result<bool, WaitError> {
    if list == 0 || list == 0xffff {
        return Ok(false);
    }
    let _held = SEMAPHORE.hold(regs, sync::MAC_CSR)?;
    for at in 1..=LIST_MAX {
        match eeprom(regs, list + at)? {
            0xffff => break,
            word => regs.write(CORECTL, u32::from(word)),
        }
    }
    Ok(true)
}
