//! Register access with its side effects (82599 chapter 8).

use super::map::*;
use super::{Fault, Media, Model};

const SMBI: u32 = 1;
const SWESMBI: u32 = 2;

impl Model {
    /// The registers after a reset: zero unless here.
    pub(super) fn power_on_values(&mut self) {
        let kept = self.reg(AUTOC2);
        self.regs.fill(0);
        let sfp = matches!(self.card.media, Media::SfpPlus(_));
        let lms = if sfp { 3 << 13 } else { 4 << 13 };
        let mac = self.card.mac;
        for (offset, value) in [
            (STATUS, STATUS_GIO),
            (CTRL_EXT, 0),
            // Present, auto read done, 13 address bits.
            (EEC, 0x300 | 7 << 11 | 1 << 10),
            // Firmware valid, no manageability.
            (FWSM, 1 << 15),
            (HLREG0, 1 | HLREG0_RXCRCSTRP | HLREG0_TXPADEN),
            (MAXFRS, 1518 << 16),
            (RDRXCTL, 0x0888_0008),
            (DMATXCTL, 0x8100 << 16),
            (VLNCTRL, 0x8100),
            (DTXTCPFLGL, 0x0ff6_0ff6),
            (DTXTCPFLGH, 0x0f7f),
            (AUTOC, 0xc000_0000 | 1 << 16 | 1 << 7 | lms),
            (AUTOC2, (kept & AUTOC2_LINK_DISABLE) | if sfp { 2 << 16 } else { 0 }),
            (RAL_LOW, u32::from_le_bytes([mac[0], mac[1], mac[2], mac[3]])),
            (RAL_LOW + 4, u32::from_le_bytes([mac[4], mac[5], 0, 0]) | RAH_AV),
            (MRQC, 0),
        ] {
            self.set_reg(offset, value);
        }
        for queue in 0..N_QUEUES {
            self.set_reg(srrctl(queue), 0x402);
            // Relaxed ordering is on until a driver switches it off (8.2.3.11.1, 8.2.3.11.2).
            self.set_reg(canonical(rx(queue) + 0x0c), 0xa200);
            self.set_reg(tx(queue) + 0x0c, 0x2a00);
        }
        // Packet buffer sizes: all in the first.
        self.set_reg(0x3c00, 512 << 10);
    }

    /// Reads a register; a driver that reads elsewhere than at a multiple of four gets what the word there holds.
    pub fn read(&mut self, offset: usize) -> u32 {
        if self.fault == Some(Fault::Gone) || offset >= BAR_BYTES {
            return u32::MAX;
        }
        let offset = canonical(offset & !3);
        if let Some(value) = self.stats.read(offset) {
            return value;
        }
        match offset {
            EICR => {
                let gpie = self.reg(GPIE);
                self.interrupts.read_causes(gpie)
            }
            // Reads as the causes, without clearing them: what the kernel's driver uses against an erratum.
            EICS => self.interrupts.peek(),
            EIMC => 0,
            EIMS => self.interrupts.mask(),
            _ if (EIMS_EX..EIMS_EX + 8).contains(&offset) => {
                self.interrupts.half_mask((offset - EIMS_EX) / 4)
            }
            STATUS => {
                let stopped = self.reg(CTRL) & CTRL_GIO_DIS != 0;
                if stopped { 0 } else { STATUS_GIO }
            }
            ESDP => {
                let present = matches!(self.card.media, Media::SfpPlus(Some(_)));
                self.reg(ESDP) & !ESDP_SDP2 | if present { ESDP_SDP2 } else { 0 }
            }
            I2CCTL => self.bus.read(),
            SWSM => {
                // The read that finds SMBI clear takes it (8.2.3.4.14).
                let value = self.reg(SWSM);
                let locked = self.fault == Some(Fault::FirmwareHoldsLock);
                self.set_reg(SWSM, value | SMBI);
                if locked { value | SMBI } else { value }
            }
            LINKS => self.links(),
            SECRXSTAT | 0x8804 => 1,
            RDRXCTL => self.reg(RDRXCTL) | RDRXCTL_DMAIDONE,
            _ => self.reg(offset),
        }
    }

    fn links(&self) -> u32 {
        if !self.link_up {
            return 0;
        }
        let gigabit = matches!(self.reg(AUTOC) >> 13 & 7, 0 | 2);
        let speed = if gigabit { 2 << 28 } else { 3 << 28 };
        // Negotiation complete, link up, and the parts that work: alignment, lanes, signals.
        1 << 31 | 1 << 30 | speed | 0x0002_7f00
    }

    /// Writes a register.
    pub fn write(&mut self, offset: usize, value: u32) {
        if self.fault == Some(Fault::Gone) || offset >= BAR_BYTES {
            return;
        }
        let offset = canonical(offset & !3);
        match offset {
            CTRL => {
                self.set_reg(CTRL, value & !(CTRL_RST | CTRL_LNK_RST));
                if value & (CTRL_RST | CTRL_LNK_RST) != 0 {
                    self.reset();
                    if self.fault == Some(Fault::NeverResets) {
                        self.set_reg(CTRL, value);
                    }
                }
            }
            STATUS | LINKS | SECRXSTAT => {}
            EICR => self.interrupts.clear(value),
            EICS => self.interrupts.set(value),
            EIMS => self.interrupts.enable(value),
            EIMC => self.interrupts.disable(value),
            _ if (EICS_EX..EICS_EX + 8).contains(&offset) => {
                self.interrupts.set_half((offset - EICS_EX) / 4, value)
            }
            _ if (EIMS_EX..EIMS_EX + 8).contains(&offset) => {
                self.interrupts.enable_half((offset - EIMS_EX) / 4, value)
            }
            _ if (EIMC_EX..EIMC_EX + 8).contains(&offset) => {
                self.interrupts.disable_half((offset - EIMC_EX) / 4, value)
            }
            ESDP | AUTOC2 => {
                self.set_reg(offset, value);
                self.update_link();
            }
            AUTOC => {
                // Restarting negotiation brings its state machine out of state 0 (8.2.3.22.24).
                if value & AUTOC_RESTART != 0 {
                    self.set_reg(ANLP1, 9 << 16);
                }
                self.set_reg(AUTOC, value & !AUTOC_RESTART);
                self.update_link();
            }
            I2CCTL => self.bus.write(value, self.module.as_ref()),
            EEC => {
                let grant = if value & 0x40 != 0 { 0xc0 } else { 0 };
                let kept = self.reg(EEC) & !0xff;
                self.set_reg(EEC, kept | grant | value & 0x3f);
            }
            EERD => self.read_eeprom(value),
            SWSM => {
                let firmware = self.fault == Some(Fault::FirmwareHoldsLock);
                let mask = if firmware { 0 } else { SMBI | SWESMBI };
                self.set_reg(SWSM, value & mask);
            }
            MSCA => {
                // No PHY on the bus: data lines stay high, the command bit clears.
                self.set_reg(MSCA, value & !(1 << 30));
                self.set_reg(MSRWD, u32::MAX);
            }
            FDIRCTRL => self.set_reg(FDIRCTRL, value | 1 << 3),
            FDIRCMD => self.set_reg(FDIRCMD, value & !3),
            _ => self.write_queue(offset, value),
        }
    }

    fn read_eeprom(&mut self, value: u32) {
        let at = (value >> 2 & 0x3fff) as usize;
        let word = self.eeprom.get(at).copied().unwrap_or(0xffff);
        let done = if self.fault == Some(Fault::NoEeprom) { 0 } else { 2 };
        if value & 1 != 0 {
            self.set_reg(EERD, value & !1 & 0xffff | done | u32::from(word) << 16);
        }
    }

    fn write_queue(&mut self, offset: usize, value: u32) {
        let (queue, at, tx) = match (rx_queue(offset), tx_queue(offset)) {
            (Some((queue, at)), _) => (queue, at, false),
            (_, Some((queue, at))) => (queue, at, true),
            _ => return self.set_reg(offset, value),
        };
        let base = offset - at;
        let enabled = self.reg(base + 0x28) & DCTL_ENABLE != 0;
        let name = |register: &str| format!("{register} of {} queue {queue}", if tx { "tx" } else { "rx" });
        match at {
            0x00 if value & 0x7f != 0 => {
                self.violation(format!("{}: not on a 128-byte boundary", name("base")))
            }
            0x00 | 0x04 | 0x08 if enabled => {
                self.violation(format!("{} changed while enabled", name("ring")))
            }
            0x08 if value & 0x7f != 0 || value > 0x8_0000 => {
                self.violation(format!("{} is {value:#x}: not a multiple of 128", name("length")))
            }
            0x18 if value >= self.reg(base + 8) / 16 && value != 0 => {
                return self.violation(format!("{} is {value}, outside the ring", name("tail")));
            }
            0x10 if tx => self.set_reg(offset, value),
            0x10 => self.rx[queue].head = value,
            0x28 if value & DCTL_ENABLE != 0 && self.fault == Some(Fault::QueueNeverEnables) => {
                return self.set_reg(offset, value & !DCTL_ENABLE);
            }
            0x28 if value & DCTL_ENABLE != 0 && self.reg(base + 8) == 0 => {
                self.violation(format!("{} enabled without a ring", name("queue")))
            }
            _ => {}
        }
        self.set_reg(offset, value & if at == 0x28 { !(1 << 26) } else { u32::MAX });
    }

    /// The packet type for the RSS key registers.
    pub(super) fn rss_key(&self) -> [u8; 40] {
        let mut key = [0; 40];
        for (i, bytes) in key.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&self.reg(RSSRK + 4 * i).to_le_bytes());
        }
        key
    }
}

/// Where SRRCTL of a queue is kept.
pub(super) const fn srrctl(queue: usize) -> usize {
    if queue < 16 { SRRCTL_LOW + 4 * queue } else { rx(queue) + 0x14 }
}

/// Registers that are there twice: the older places of the first sixteen of a table count.
fn canonical(offset: usize) -> usize {
    match offset {
        0x1014..0x1414 if offset % 0x40 == 0x14 => SRRCTL_LOW + (offset - 0x1014) / 0x10,
        0x100c..0x140c if offset % 0x40 == 0x0c => 0x2200 + (offset - 0x100c) / 0x10,
        0xa200..0xa280 => RAL_LOW + (offset - RAL),
        _ => offset,
    }
}
