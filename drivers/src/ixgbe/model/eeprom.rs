//! The EEPROM's words (82599 6.2 and 6.3) and the SFP+ module's bytes (SFF-8472), and the two-wire bus to the latter.

/// Words of the EEPROM.
pub(super) const WORDS: usize = 1 << 13;
/// Sum of words 0 to 3f and of the sections they point to (6.3.8.1).
const CHECKSUM: u16 = 0xbaba;

/// An EEPROM as a card is shipped: address, firmware version, how to set up each kind of SFP+ module, checksum.
pub(super) fn image(mac: [u8; 6]) -> Vec<u16> {
    let mut words = vec![0xffff; WORDS];
    words[..0x40].fill(0);
    // Pointers to sections: none of those that the checksum covers. 0f: firmware; 2b: module set-up.
    words[0x03..0x0f].fill(0xffff);
    words[0x0f] = 0x100;
    words[0x15..0x17].copy_from_slice(&[0xfafa, 0x180]);
    words[0x180..0x186].copy_from_slice(&[6, 0x4537, 0x3030, 0x302d, 0x3030, 0x3000]);
    for at in [0x17, 0x26, 0x27, 0x28, 0x33, 0x37] {
        words[at] = 0xffff;
    }
    words[0x2b] = 0x200;
    words[0x2c] = 1 << 7; // device capabilities: Intel's modules only, cage-full pin not to be asked
    for (pair, word) in mac.chunks_exact(2).zip(&mut words[0x50..0x53]) {
        *word = u16::from_le_bytes([pair[0], pair[1]]);
    }
    // Firmware: no link establishment state machine, pass-through patch version 7.
    words[0x100..0x108].copy_from_slice(&[7, 0xffff, 0xffff, 0xffff, 0x110, 0xffff, 0xffff, 0xffff]);
    words[0x110..0x118].copy_from_slice(&[7, 0, 0, 0, 0, 0, 0, 7]);
    // Per kind of module (3, 4 copper cables; 5, 6 SR and LR) the words for CORECTL.
    let list = [8, 3, 0x220, 4, 0x220, 5, 0x230, 6, 0x230, 0xffff];
    words[0x200..0x200 + list.len()].copy_from_slice(&list);
    words[0x220..0x223].copy_from_slice(&[0, 0x0b05, 0xffff]);
    words[0x230..0x233].copy_from_slice(&[0, 0x0b06, 0xffff]);
    let sum = words[..0x3f].iter().fold(0u16, |sum, word| sum.wrapping_add(*word));
    words[0x3f] = CHECKSUM.wrapping_sub(sum);
    words
}

/// What is in an SFP+ cage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// An SR module of the card's maker.
    IntelSr,
    /// An SR module of somebody else.
    ForeignSr,
    /// A passive copper cable.
    Copper,
    /// Something that is no SFP+ module.
    NotAModule,
}

impl Module {
    /// Its EEPROM (SFF-8472 table 4.1): identifier, codes, vendor, checksum.
    pub(super) fn bytes(self) -> [u8; 256] {
        let mut bytes = [0; 256];
        bytes[0] = if self == Module::NotAModule { 0x0c } else { 3 };
        bytes[1] = 4;
        bytes[2] = 7;
        match self {
            Module::Copper => bytes[8] = 4,
            _ => bytes[3] = 0x10,
        }
        bytes[12] = 103;
        bytes[20..36].copy_from_slice(b"SPP MODEL       ");
        bytes[37..40].copy_from_slice(if self == Module::IntelSr { &[0, 0x1b, 0x21] } else { &[2, 0, 1] });
        bytes[40..56].copy_from_slice(b"SFP-10G         ");
        bytes[63] = bytes[..63].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
        bytes[95] = bytes[64..95].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
        bytes
    }
}

const CLOCK_IN: u32 = 1;
const CLOCK_OUT: u32 = 1 << 1;
const DATA_IN: u32 = 1 << 2;
const DATA_OUT: u32 = 1 << 3;

/// What the module expects on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Bits of the device address.
    Address,
    /// Bits of the byte offset.
    Offset,
    /// Bits written to it, which it ignores.
    Ignore,
    /// It sends a byte.
    Send,
}

/// The bus to the module, bit by bit (I2CCTL, 8.2.3.1.5).
#[derive(Debug, Clone)]
pub(super) struct Bus {
    clock: bool,
    data: bool,
    /// The module pulls the line low.
    pulls: bool,
    phase: Phase,
    after_ack: Phase,
    acking: bool,
    shift: u8,
    bits: u8,
    offset: u8,
}

impl Default for Bus {
    fn default() -> Self {
        Bus {
            clock: true,
            data: true,
            pulls: false,
            phase: Phase::Idle,
            after_ack: Phase::Idle,
            acking: false,
            shift: 0,
            bits: 0,
            offset: 0,
        }
    }
}

impl Bus {
    /// I2CCTL as it reads.
    pub(super) fn read(&self) -> u32 {
        let bit = |on: bool, bits: u32| if on { bits } else { 0 };
        bit(self.clock, CLOCK_IN | CLOCK_OUT)
            | bit(self.data, DATA_OUT)
            | bit(self.data && !self.pulls, DATA_IN)
    }

    /// The driver moves the lines.
    pub(super) fn write(&mut self, value: u32, module: Option<&[u8; 256]>) {
        let (clock, data) = (value & CLOCK_OUT != 0, value & DATA_OUT != 0);
        let (clock_before, data_before) = (self.clock, self.data);
        (self.clock, self.data) = (clock, data);
        if clock && clock_before && data != data_before {
            self.begin(if data { Phase::Idle } else { Phase::Address }); // stop, start
        } else if clock && !clock_before {
            self.rise();
        } else if !clock && clock_before {
            self.fall(module);
        }
    }

    fn begin(&mut self, phase: Phase) {
        (self.phase, self.bits, self.shift, self.pulls, self.acking) = (phase, 0, 0, false, false);
    }

    fn rise(&mut self) {
        if self.acking || matches!(self.phase, Phase::Idle) {
            return;
        }
        if self.bits < 8 && self.phase != Phase::Send {
            self.shift = self.shift << 1 | u8::from(self.data);
        }
        self.bits += 1;
    }

    fn fall(&mut self, module: Option<&[u8; 256]>) {
        let Some(bytes) = module else {
            self.begin(Phase::Idle);
            return;
        };
        match self.phase {
            Phase::Idle => {}
            _ if self.acking => {
                let next = self.after_ack;
                self.begin(next);
                if next == Phase::Send {
                    self.shift = bytes[usize::from(self.offset)];
                    self.pulls = self.shift & 0x80 == 0;
                }
            }
            Phase::Send if self.bits < 8 => self.pulls = self.shift << self.bits & 0x80 == 0,
            Phase::Send if self.bits == 8 => self.pulls = false, // the driver's turn to say whether it wants more
            Phase::Send => self.begin(Phase::Idle),
            _ if self.bits == 8 => self.byte_in(),
            _ => {}
        }
    }

    fn byte_in(&mut self) {
        let next = match (self.phase, self.shift) {
            (Phase::Address, 0xa0 | 0xa2) => Some(Phase::Offset),
            (Phase::Address, 0xa1 | 0xa3) => Some(Phase::Send),
            (Phase::Offset, offset) => {
                self.offset = offset;
                Some(Phase::Ignore)
            }
            (Phase::Ignore, _) => Some(Phase::Ignore),
            _ => None,
        };
        match next {
            Some(phase) => (self.after_ack, self.acking, self.pulls) = (phase, true, true),
            None => self.begin(Phase::Idle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_sums_to_baba() {
        let words = image([2, 0, 0, 1, 2, 3]);
        assert_eq!(words[..0x40].iter().fold(0u16, |sum, word| sum.wrapping_add(*word)), 0xbaba);
    }

    struct Master<'a> {
        bus: Bus,
        module: Option<&'a [u8; 256]>,
    }

    impl Master<'_> {
        fn lines(&mut self, clock: bool, data: bool) {
            let value = (u32::from(clock) * CLOCK_OUT) | (u32::from(data) * DATA_OUT);
            self.bus.write(value, self.module);
        }
        fn start(&mut self) {
            self.lines(self.bus.clock, true);
            self.lines(true, true);
            self.lines(true, false);
            self.lines(false, false);
        }
        fn bit(&mut self, data: bool) -> bool {
            self.lines(false, data);
            self.lines(true, data);
            let seen = self.bus.read() & DATA_IN != 0;
            self.lines(false, data);
            seen
        }
        fn byte(&mut self, byte: u8) -> bool {
            (0..8).rev().for_each(|i| {
                self.bit(byte >> i & 1 == 1);
            });
            !self.bit(true)
        }
        fn read(&mut self, offset: u8) -> Option<u8> {
            self.start();
            let addressed = self.byte(0xa0) && self.byte(offset);
            self.start();
            if !(addressed && self.byte(0xa1)) {
                return None;
            }
            let byte = (0..8).fold(0, |byte, _| byte << 1 | u8::from(self.bit(true)));
            self.bit(true);
            self.lines(false, false);
            self.lines(true, false);
            self.lines(true, true);
            Some(byte)
        }
    }

    #[test]
    fn module_answers_on_the_bus_and_an_empty_cage_does_not() {
        let bytes = Module::IntelSr.bytes();
        let mut master = Master { bus: Bus::default(), module: Some(&bytes) };
        for offset in [0, 3, 37, 38, 39, 63] {
            assert_eq!(master.read(offset), Some(bytes[usize::from(offset)]), "byte {offset}");
        }
        master.module = None;
        assert_eq!(master.read(0), None);
    }
}
