//! Statistics registers (82599 8.2.3.23): all clear on read and stick at their maximum.

use std::collections::HashMap;

/// Counters by register offset; a pair of registers counts at the low one.
#[derive(Debug, Clone, Default)]
pub(super) struct Stats {
    counters: HashMap<usize, u64>,
    /// High halves of pairs whose low half was read.
    latched: HashMap<usize, u32>,
}

/// First and last offset of blocks of 32-bit counters.
const BLOCKS: &[(usize, usize)] = &[
    (0x3f00, 0x3f3c),
    (0x3f60, 0x3f68),
    (0x3fa0, 0x3fbc),
    (0x3240, 0x325c),
    (0x4000, 0x4010),
    (0x4034, 0x4040),
    (0x405c, 0x4080),
    (0x40a4, 0x40b8),
    (0x40d0, 0x40f4),
    (0x4120, 0x4120),
    (0x4140, 0x417c),
    (0x41a4, 0x41b0),
    (0x2f50, 0x2f50),
    (0x87a0, 0x87a0),
    (0x8780, 0x8780),
    (0xcf90, 0xcf90),
];

/// Low halves of pairs: the high half is 4 bytes behind.
const PAIRS: &[usize] = &[0x4088, 0x4090, 0x40c0, 0x41b4, 0x2f54, 0x87a4];

pub(super) const MPC0: usize = 0x3fa0;
pub(super) const GPRC: usize = 0x4074;
pub(super) const BPRC: usize = 0x4078;
pub(super) const MPRC: usize = 0x407c;
pub(super) const GPTC: usize = 0x4080;
pub(super) const GORC: usize = 0x4088;
pub(super) const GOTC: usize = 0x4090;
pub(super) const RUC: usize = 0x40a4;
pub(super) const ROC: usize = 0x40ac;
pub(super) const TOR: usize = 0x40c0;
pub(super) const TPR: usize = 0x40d0;
pub(super) const TPT: usize = 0x40d4;
pub(super) const MPTC: usize = 0x40f0;
pub(super) const BPTC: usize = 0x40f4;
pub(super) const RXNFGPC: usize = 0x41b0;
pub(super) const RXDGPC: usize = 0x2f50;
pub(super) const RXDGBC: usize = 0x2f54;
pub(super) const TXDGPC: usize = 0x87a0;
pub(super) const TXDGBC: usize = 0x87a4;
const PRC64: usize = 0x405c;
const PTC64: usize = 0x40d8;

/// Per-queue counters: QPRC, QBRC (pair), QPTC, QBTC (pair), QPRDC.
pub(super) const fn qprc(i: usize) -> usize {
    0x1030 + i * 0x40
}
pub(super) const fn qbrc(i: usize) -> usize {
    0x1034 + i * 0x40
}
pub(super) const fn qprdc(i: usize) -> usize {
    0x1430 + i * 0x40
}
pub(super) const fn qptc(i: usize) -> usize {
    0x8680 + i * 4
}
pub(super) const fn qbtc(i: usize) -> usize {
    0x8700 + i * 8
}

enum Kind {
    Single,
    Low,
    High(usize),
}

fn kind(offset: usize) -> Option<Kind> {
    if BLOCKS.iter().any(|(first, last)| (*first..=*last).contains(&offset)) {
        return Some(Kind::Single);
    }
    if PAIRS.contains(&offset) {
        return Some(Kind::Low);
    }
    if PAIRS.contains(&offset.wrapping_sub(4)) {
        return Some(Kind::High(offset - 4));
    }
    match offset {
        0x8680..0x86c0 => Some(Kind::Single),
        0x8700..0x8780 if offset.is_multiple_of(8) => Some(Kind::Low),
        0x8700..0x8780 => Some(Kind::High(offset - 4)),
        0x1000..0x1400 if offset % 0x40 == 0x30 => Some(Kind::Single),
        0x1000..0x1400 if offset % 0x40 == 0x34 => Some(Kind::Low),
        0x1000..0x1400 if offset % 0x40 == 0x38 => Some(Kind::High(offset - 4)),
        0x1400..0x1800 if offset % 0x40 == 0x30 => Some(Kind::Single),
        _ => None,
    }
}

impl Stats {
    /// Reads a statistics register, which clears it; `None` when the offset is none.
    pub(super) fn read(&mut self, offset: usize) -> Option<u32> {
        match kind(offset)? {
            Kind::Single => {
                let value = self.counters.remove(&offset).unwrap_or(0);
                Some(value.min(u64::from(u32::MAX)) as u32)
            }
            // Reading the low half, which comes first, clears the pair: what is counted from then on is not lost.
            Kind::Low => {
                let value = self.counters.remove(&offset).unwrap_or(0).min((1 << 36) - 1);
                self.latched.insert(offset, (value >> 32) as u32);
                Some(value as u32)
            }
            Kind::High(low) => Some(self.latched.remove(&low).unwrap_or(0)),
        }
    }

    pub(super) fn add(&mut self, offset: usize, n: u64) {
        *self.counters.entry(offset).or_default() += n;
    }

    /// A good frame of `len` bytes with its FCS.
    pub(super) fn size(&mut self, received: bool, len: usize) {
        let bucket = [64, 127, 255, 511, 1023].iter().position(|limit| len <= *limit).unwrap_or(5);
        self.add(if received { PRC64 } else { PTC64 } + 4 * bucket, 1);
    }
}
