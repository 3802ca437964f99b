//! Statistics registers (82576 8.19): all clear when read; octets are pairs of 64 bits. What a queue without descriptors
//! dropped is in a register of the queue, which clears when read on the older chips and goes on on the I210 (8.10.9).

use super::Kind;
use crate::nic::counters::{self, Row};

const QUEUES: [&str; 16] = [
    "RQDPC0", "RQDPC1", "RQDPC2", "RQDPC3", "RQDPC4", "RQDPC5", "RQDPC6", "RQDPC7", "RQDPC8", "RQDPC9",
    "RQDPC10", "RQDPC11", "RQDPC12", "RQDPC13", "RQDPC14", "RQDPC15",
];

static I82576: [Row; ROWS.len() + 16] = with_queues(counters::Kind::Clears);
static I350: [Row; ROWS.len() + 8] = with_queues(counters::Kind::Clears);
static I210: [Row; ROWS.len() + 4] = with_queues(counters::Kind::Wraps);
static I211: [Row; ROWS.len() + 2] = with_queues(counters::Kind::Wraps);

/// The registers of a chip.
pub fn rows(kind: Kind) -> &'static [Row] {
    match kind {
        Kind::I82576 => &I82576,
        Kind::I350 => &I350,
        Kind::I210 => &I210,
        Kind::I211 => &I211,
    }
}

const fn with_queues<const N: usize>(kind: counters::Kind) -> [Row; N] {
    let mut rows = [ROWS[0]; N];
    let mut n = 0;
    while n < N {
        rows[n] = match n.checked_sub(ROWS.len()) {
            None => ROWS[n],
            Some(queue) => Row { name: QUEUES[queue], offset: 0xc030 + 0x40 * queue, kind },
        };
        n += 1;
    }
    rows
}

/// All chips have these.
const ROWS: &[Row] = &[
    Row::clears("CRCERRS", 0x4000),
    Row::clears("ALGNERRC", 0x4004),
    Row::clears("SYMERRS", 0x4008),
    Row::clears("RXERRC", 0x400c),
    Row::clears("MPC", 0x4010),
    Row::clears("SCC", 0x4014),
    Row::clears("ECOL", 0x4018),
    Row::clears("MCC", 0x401c),
    Row::clears("LATECOL", 0x4020),
    Row::clears("COLC", 0x4028),
    Row::clears("DC", 0x4030),
    Row::clears("TNCRS", 0x4034),
    Row::clears("HTDPMC", 0x403c),
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
    Row::clears_pair("GORC", 0x4088, 64),
    Row::clears_pair("GOTC", 0x4090, 64),
    Row::clears("RNBC", 0x40a0),
    Row::clears("RUC", 0x40a4),
    Row::clears("RFC", 0x40a8),
    Row::clears("ROC", 0x40ac),
    Row::clears("RJC", 0x40b0),
    Row::clears_pair("TOR", 0x40c0, 64),
    Row::clears_pair("TOT", 0x40c8, 64),
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
    Row::clears("RPTHC", 0x4104),
    Row::clears("HGPTC", 0x4118),
    Row::clears_pair("HGORC", 0x4128, 64),
    Row::clears_pair("HGOTC", 0x4130, 64),
    Row::clears("LENERRS", 0x4138),
];
