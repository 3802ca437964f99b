//! Parts of models of Intel's cards: rings as the device walks them, frames scattered into receive descriptors and
//! gathered from transmit descriptors. Written from the datasheets, apart from the driver's own formats.

use crate::nic::model::Card;

/// The registers of one ring.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Base address, low and high.
    pub base: u64,
    /// Bytes.
    pub len_bytes: u32,
    /// Next descriptor of the device.
    pub head: u32,
    /// First descriptor that is not the device's.
    pub tail: u32,
}

impl Ring {
    /// Descriptors in the ring.
    pub fn size(&self) -> u32 {
        self.len_bytes / 16
    }

    /// Descriptors the device has.
    pub fn available(&self) -> u32 {
        if self.size() == 0 { 0 } else { (self.tail + self.size() - self.head) % self.size() }
    }

    /// Where descriptor `ahead` of the head is.
    pub fn at(&self, ahead: u32) -> u64 {
        self.base + u64::from((self.head + ahead) % self.size().max(1)) * 16
    }

    /// The device is through with `n` descriptors.
    pub fn advance(&mut self, n: u32) {
        self.head = (self.head + n) % self.size().max(1);
    }

    /// Register `index` of the ring: base low, base high, length.
    pub fn set_base_low(&mut self, value: u32) {
        self.base = self.base & !0xffff_ffff | u64::from(value & !0xf);
    }

    /// See [`set_base_low`](Self::set_base_low).
    pub fn set_base_high(&mut self, value: u32) {
        self.base = self.base & 0xffff_ffff | u64::from(value) << 32;
    }
}

/// Scatters `frame` over as many receive descriptors as it takes, `room` bytes each. `write_back` makes the two words
/// of each from (bytes in it, whether it is the last). Nothing happens, and false is returned, when there are too few.
pub fn scatter(
    card: &Card,
    ring: &mut Ring,
    frame: &[u8],
    room: usize,
    mut write_back: impl FnMut(&Card, u64, usize, bool),
) -> bool {
    let n = frame.len().div_ceil(room).max(1);
    if (ring.available() as usize) < n {
        return false;
    }
    for (index, piece) in frame.chunks(room).enumerate() {
        let at = ring.at(0);
        let [buffer, _] = card.read_descriptor(at);
        card.write(buffer, piece);
        write_back(card, at, piece.len(), index + 1 == n);
        ring.advance(1);
    }
    true
}

/// The ones' complement sum that ends up in a packet, over `bytes`.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
