//! Statistics registers (82599 8.2.3.23): all clear when read; octets are pairs of 36 bits.

use crate::nic::counters::{Kind, Row};

const fn octets(name: &'static str, offset: usize) -> Row {
    Row { name, offset, kind: Kind::ClearingPair { high: 4, bits: 36 } }
}

/// All of them. `Q...` are of all queues together: RQSMR and TQSM send every queue to the first counter.
pub const ROWS: &[Row] = &[
    Row::clears("CRCERRS", 0x4000),
    Row::clears("ILLERRC", 0x4004),
    Row::clears("ERRBC", 0x4008),
    Row::clears("MPC", 0x3fa0),
    Row::clears("MLFC", 0x4034),
    Row::clears("MRFC", 0x4038),
    Row::clears("RLEC", 0x4040),
    Row::clears("LXONTXC", 0x3f60),
    Row::clears("LXOFFTXC", 0x3f68),
    Row::clears("LXONRXCNT", 0x41a4),
    Row::clears("LXOFFRXCNT", 0x41a8),
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
    Row::clears("RUC", 0x40a4),
    Row::clears("RFC", 0x40a8),
    Row::clears("ROC", 0x40ac),
    Row::clears("RJC", 0x40b0),
    octets("TOR", 0x40c0),
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
    Row::clears("RXNFGPC", 0x41b0),
    Row::clears("QPRC", 0x1030),
    Row::clears("QPRDC", 0x1430),
    Row::clears("QPTC", 0x8680),
];
