//! Statistics registers (8254x 13.7, 82574 10.2.7): all clear when read; octets are pairs of 64 bits.

use crate::nic::counters::{Kind, Row};

const fn octets(name: &'static str, offset: usize) -> Row {
    Row { name, offset, kind: Kind::ClearingPair { high: 4, bits: 64 } }
}

/// Both chips have these.
pub const ROWS: &[Row] = &[
    Row::clears("CRCERRS", 0x4000),
    Row::clears("ALGNERRC", 0x4004),
    Row::clears("RXERRC", 0x400c),
    Row::clears("MPC", 0x4010),
    Row::clears("SCC", 0x4014),
    Row::clears("ECOL", 0x4018),
    Row::clears("MCC", 0x401c),
    Row::clears("LATECOL", 0x4020),
    Row::clears("COLC", 0x4028),
    Row::clears("DC", 0x4030),
    Row::clears("TNCRS", 0x4034),
    Row::clears("CEXTERR", 0x403c),
    Row::clears("RLEC", 0x4040),
    Row::clears("XONRXC", 0x4048),
    Row::clears("XONTXC", 0x404c),
    Row::clears("XOFFRXC", 0x4050),
    Row::clears("XOFFTXC", 0x4054),
    Row::clears("FCRUC", 0x4058),
    Row::clears("PRC64", 0x405c),
    Row::clears("PRC127", 0x4060),
    Row::clears("PRC255", 0x4064),
    Row::clears("PRC511", 0x4068),
    Row::clears("PRC1023", 0x406c),
    Row::clears("PRC1522", 0x4070),
    Row::clears("GPRC", 0x4074),
    Row::clears("BPRC", 0x4078),
    Row::clears("MPRC", 0x407c),
    Row::clears("GPTC", 0x4080),
    octets("GORC", 0x4088),
    octets("GOTC", 0x4090),
    Row::clears("RNBC", 0x40a0),
    Row::clears("RUC", 0x40a4),
    Row::clears("RFC", 0x40a8),
    Row::clears("ROC", 0x40ac),
    Row::clears("RJC", 0x40b0),
    octets("TOR", 0x40c0),
    octets("TOT", 0x40c8),
    Row::clears("TPR", 0x40d0),
    Row::clears("TPT", 0x40d4),
    Row::clears("PTC64", 0x40d8),
    Row::clears("PTC127", 0x40dc),
    Row::clears("PTC255", 0x40e0),
    Row::clears("PTC511", 0x40e4),
    Row::clears("PTC1023", 0x40e8),
    Row::clears("PTC1522", 0x40ec),
    Row::clears("MPTC", 0x40f0),
    Row::clears("BPTC", 0x40f4),
];
