//! Statistics registers (82576 8.26.3): 32 bits that go on over their wrap, of this function's frames alone. `LB`: to and
//! from other functions of the card, without a wire.

use crate::nic::counters::{Kind, Row};

const fn wraps(name: &'static str, offset: usize) -> Row {
    Row { name, offset, kind: Kind::Wraps }
}

/// All of them.
pub const ROWS: &[Row] = &[
    wraps("VFGPRC", 0x0f10),
    wraps("VFGPTC", 0x0f14),
    wraps("VFGORC", 0x0f18),
    wraps("VFGOTC", 0x0f34),
    wraps("VFMPRC", 0x0f3c),
    wraps("VFGPRLBC", 0x0f40),
    wraps("VFGPTLBC", 0x0f44),
    wraps("VFGORLBC", 0x0f48),
    wraps("VFGOTLBC", 0x0f50),
];
