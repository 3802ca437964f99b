//! A card's statistics registers, summed to 64 bits. The control thread is the only reader: most of these registers
//! clear when they are read, so two readers would halve the truth.

/// How a counter register counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 32 bits that a read sets to zero.
    Clears,
    /// 32 bits that go on, past their wrap.
    Wraps,
    /// A pair whose high half has `bits - 32` bits, `high` bytes behind the low half; reading the high half, after the
    /// low one, sets both to zero.
    ClearingPair {
        /// Distance of the high half in bytes.
        high: usize,
        /// Width of both together.
        bits: u32,
    },
    /// A pair that goes on, past its wrap.
    WrappingPair {
        /// Distance of the high half in bytes.
        high: usize,
        /// Width of both together.
        bits: u32,
    },
}

/// One counter: its name in the datasheet, the offset of its (low) register, and how it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Name in the datasheet.
    pub name: &'static str,
    /// In the register block.
    pub offset: usize,
    /// How it counts.
    pub kind: Kind,
}

impl Row {
    /// A 32-bit register that clears when read.
    pub const fn clears(name: &'static str, offset: usize) -> Row {
        Row { name, offset, kind: Kind::Clears }
    }

    /// `bits` in two registers, the high one behind the low one, that clear when read.
    pub const fn clears_pair(name: &'static str, offset: usize, bits: u32) -> Row {
        Row { name, offset, kind: Kind::ClearingPair { high: 4, bits } }
    }
}

/// The sums of a table of counters.
pub struct Counters {
    rows: &'static [Row],
    /// Per row: the sum so far, and what a counter that goes on read last.
    sums: Vec<(u64, u64)>,
}

impl Counters {
    /// All at zero.
    pub fn new(rows: &'static [Row]) -> Self {
        Counters { rows, sums: vec![(0, 0); rows.len()] }
    }

    /// Right after a reset: counters that go on start from what they read now; what the others hold is from before.
    pub fn rebase(&mut self, read: impl Fn(usize) -> u32) {
        for (row, (_, last)) in self.rows.iter().zip(&mut self.sums) {
            *last = value(row, &read).unwrap_or(0);
        }
    }

    /// Reads all registers and adds what they counted. A register of all ones, which a device that is gone
    /// reads as, adds nothing.
    pub fn collect(&mut self, read: impl Fn(usize) -> u32) {
        for (row, (sum, last)) in self.rows.iter().zip(&mut self.sums) {
            let Some(now) = value(row, &read) else { continue };
            *sum += match row.kind {
                Kind::Clears | Kind::ClearingPair { .. } => now,
                Kind::Wraps => u64::from((now as u32).wrapping_sub(*last as u32)),
                Kind::WrappingPair { bits, .. } => now.wrapping_sub(*last) & mask(bits),
            };
            *last = now;
        }
    }

    /// (name, sum) of each.
    pub fn sums(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.rows.iter().zip(&self.sums).map(|(row, (sum, _))| (row.name, *sum))
    }
}

const fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// What a counter's registers hold; `None` from a device that is gone.
fn value(row: &Row, read: &impl Fn(usize) -> u32) -> Option<u64> {
    match row.kind {
        Kind::Clears | Kind::Wraps => Some(read(row.offset)).filter(|v| *v != u32::MAX).map(u64::from),
        Kind::ClearingPair { high, bits } => {
            let low = read(row.offset);
            pair(low, read(row.offset + high), bits)
        }
        Kind::WrappingPair { high, bits } => {
            // The low half may wrap between two reads: the high half is the same before and after, or read again.
            let mut before = read(row.offset + high);
            for _ in 0..2 {
                let (low, after) = (read(row.offset), read(row.offset + high));
                if before == after {
                    return pair(low, after, bits);
                }
                before = after;
            }
            None // the next round has it
        }
    }
}

fn pair(low: u32, high: u32, bits: u32) -> Option<u64> {
    let gone = low == u32::MAX && high == u32::MAX;
    (!gone).then(|| (u64::from(high) << 32 | u64::from(low)) & mask(bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    const ROWS: &[Row] = &[
        Row::clears("CRCERRS", 0x4000),
        Row { name: "QPRC", offset: 0x1030, kind: Kind::Wraps },
        Row { name: "GORC", offset: 0x4088, kind: Kind::ClearingPair { high: 4, bits: 36 } },
        Row { name: "QBRC", offset: 0x1034, kind: Kind::WrappingPair { high: 4, bits: 36 } },
    ];

    fn sums(counters: &Counters) -> Vec<u64> {
        counters.sums().map(|(_, n)| n).collect()
    }

    #[test]
    fn clear_on_read_and_wrapping_counters_sum_to_64_bits() {
        let mut counters = Counters::new(ROWS);
        let round = |[crc, qprc, gorc_low, gorc_high, qbrc_low, qbrc_high]: [u32; 6]| {
            move |offset| match offset {
                0x4000 => crc,
                0x1030 => qprc,
                0x4088 => gorc_low,
                0x408c => gorc_high,
                0x1034 => qbrc_low,
                _ => qbrc_high,
            }
        };
        counters.rebase(round([9, 0xffff_fff0, 9, 9, 0xffff_ff00, 0xf]));
        counters.collect(round([2, 5, 7, 1, 0x10, 0]));
        assert_eq!(sums(&counters), [2, 21, (1 << 32) + 7, 0x110], "over the wrap of 32 and of 36 bits");
        counters.collect(round([3, 6, 1, 0, 0x10, 0]));
        assert_eq!(sums(&counters), [5, 22, (1 << 32) + 8, 0x110]);
    }

    #[test]
    fn device_that_is_gone_adds_nothing() {
        let mut counters = Counters::new(ROWS);
        counters.collect(|_| 3);
        let before = sums(&counters);
        counters.collect(|_| u32::MAX);
        assert_eq!(sums(&counters), before);
    }

    #[test]
    fn each_clearing_register_is_read_once_a_round() {
        let reads = RefCell::new(Vec::new());
        Counters::new(&ROWS[..1]).collect(|offset| {
            reads.borrow_mut().push(offset);
            0
        });
        assert_eq!(*reads.borrow(), [0x4000]);
    }

    #[test]
    fn pair_whose_low_half_wraps_between_the_reads_is_read_again() {
        let look = Cell::new(0);
        let mut counters = Counters::new(&ROWS[3..]);
        // high 0, (wrap), low 4, high 1, low 5, high 1
        counters.collect(|_| {
            look.set(look.get() + 1);
            [0, 4, 1, 5, 1][look.get() - 1]
        });
        assert_eq!(sums(&counters), [(1 << 32) + 5]);
    }
}
