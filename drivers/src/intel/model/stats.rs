//! Statistics registers of gigabit cards (8254x 13.7, 82576 8.19), from 4000 on: all clear when read, octets are pairs
//! whose high half clears both.

use std::ops::Range;

/// Where they are.
pub const RANGE: Range<usize> = 0x4000..0x4140;
/// High halves of pairs.
const HIGH: [usize; 6] = [0x408c, 0x4094, 0x40c4, 0x40cc, 0x412c, 0x4134];

/// The registers.
pub struct Stats {
    values: Vec<u32>,
}

impl Default for Stats {
    fn default() -> Self {
        Stats { values: vec![0; RANGE.len() / 4] }
    }
}

impl Stats {
    fn at(&mut self, offset: usize) -> &mut u32 {
        &mut self.values[(offset - RANGE.start) / 4]
    }

    /// Reads a register, with its side effect.
    pub fn read(&mut self, offset: usize) -> u32 {
        if HIGH.contains(&(offset + 4)) {
            return *self.at(offset);
        }
        if HIGH.contains(&offset) {
            *self.at(offset - 4) = 0;
        }
        std::mem::take(self.at(offset))
    }

    /// A register starts from here.
    pub fn preset(&mut self, offset: usize, value: u32) {
        *self.at(offset) = value;
    }

    fn count(&mut self, offset: usize, n: u32) {
        let value = self.at(offset);
        *value = value.wrapping_add(n);
    }

    fn count_pair(&mut self, offset: usize, n: u32) {
        let (low, carry) = self.at(offset).overflowing_add(n);
        *self.at(offset) = low;
        self.count(offset + 4, u32::from(carry));
    }

    /// A frame (without FCS) that passed the filters.
    pub fn received(&mut self, frame: &[u8]) {
        self.frame(frame, 0x405c, [0x4074, 0x4088, 0x40c0, 0x40d0], [0x4078, 0x407c]);
    }

    /// A frame (without FCS) on the wire.
    pub fn sent(&mut self, frame: &[u8]) {
        self.frame(frame, 0x40d8, [0x4080, 0x4090, 0x40c8, 0x40d4], [0x40f4, 0x40f0]);
    }

    fn frame(
        &mut self,
        frame: &[u8],
        sizes: usize,
        [good, good_octets, octets, packets]: [usize; 4],
        [broadcast, multicast]: [usize; 2],
    ) {
        let len = frame.len() + 4;
        let class = [65, 128, 256, 512, 1024, usize::MAX].iter().position(|end| len < *end).unwrap_or(5);
        self.count(sizes + 4 * class, 1);
        self.count(good, 1);
        self.count(packets, 1);
        self.count_pair(good_octets, len as u32);
        self.count_pair(octets, len as u32);
        match frame[..6] {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => self.count(broadcast, 1),
            [first, ..] if first & 1 == 1 => self.count(multicast, 1),
            _ => {}
        }
    }
}
