//! The function's config space: ids, BARs, and the capabilities an 82599 has (82599 9.3), without SR-IOV and INTx.

/// Length of the space.
pub const BYTES: usize = 4096;
/// Vectors in the MSI-X table, which is at the start of BAR 4.
pub const N_VECTORS: u16 = 64;

const COMMAND: usize = 0x04;
const POWER: usize = 0x40;
const MSIX: usize = 0x70;
const EXPRESS: usize = 0xa0;
const FLR: u16 = 1 << 15;

/// The space, and which of its bits can be written.
pub struct Config {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

/// What a write asks the function to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effect {
    /// Function-level reset.
    pub reset: bool,
}

impl Config {
    /// The space of the card with PCI id 8086:`device`.
    pub fn new(device: u16) -> Config {
        let mut config = Config { bytes: vec![0; BYTES], writable: vec![0; BYTES] };
        config.put(0x00, &[0x86, 0x80]);
        config.put(0x02, &device.to_le_bytes());
        config.put(0x06, &[0x10, 0]);
        config.put(0x08, &[1, 0, 0, 2]);
        config.put(0x10, &[0x0c]);
        config.put(0x20, &[0x0c]);
        config.put(0x2c, &[0x86, 0x80, 0x03, 0]);
        config.put(0x34, &[POWER as u8]);
        config.put(POWER, &[1, MSIX as u8, 0x23, 0x48, 0x08, 0x20]);
        config.put(MSIX, &[0x11, EXPRESS as u8]);
        config.put(MSIX + 2, &(N_VECTORS - 1).to_le_bytes());
        config.put(MSIX + 4, &4u32.to_le_bytes());
        config.put(MSIX + 8, &(0x2000u32 | 4).to_le_bytes());
        config.put(EXPRESS, &[0x10, 0, 0x02, 0]);
        config.put(EXPRESS + 4, &(0x1000_8cc2u32).to_le_bytes());
        config.put(EXPRESS + 8, &[0x10, 0x28]);
        config.put(EXPRESS + 0x0c, &(0x0003_ec82u32).to_le_bytes());
        config.put(EXPRESS + 0x12, &[0x82, 0x10]);
        config.put(EXPRESS + 0x24, &[0x1f]);
        config.put(EXPRESS + 0x2c, &[0x06]);
        for (at, mask) in [
            (COMMAND, &[0x47, 0x05][..]),
            (0x0c, &[0xff]),
            (0x3c, &[0xff]),
            (POWER + 4, &[0x03, 0x01]),
            (MSIX + 2, &[0, 0xc0]),
            (EXPRESS + 8, &[0xff, 0x7f]),
            (EXPRESS + 0x10, &[0xc3]),
            (EXPRESS + 0x28, &[0x1f]),
        ] {
            config.writable[at..at + mask.len()].copy_from_slice(mask);
        }
        config
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        into.fill(0xff);
        if let Some(from) = self.bytes.get(offset..offset.saturating_add(into.len())) {
            into.copy_from_slice(from);
        }
    }

    /// Writes what can be written.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Effect {
        let mut effect = Effect::default();
        for (at, byte) in (offset..BYTES).zip(bytes) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
            effect.reset |= at == EXPRESS + 9 && byte & (FLR >> 8) as u8 != 0;
        }
        effect
    }

    /// Whether the function may do DMA.
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & 4 != 0
    }

    /// As after a function-level reset.
    pub fn reset(&mut self) {
        self.bytes[COMMAND..COMMAND + 2].fill(0);
        self.bytes[MSIX + 3] &= 0x3f;
    }
}
