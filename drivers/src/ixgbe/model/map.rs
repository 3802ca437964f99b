//! Where the model's registers are and what their bits mean (82599 datasheet 331520, chapter 8). Kept apart from the
//! driver's own table on purpose: a slip in one shows up against the other.

pub(super) const BAR_BYTES: usize = 0x2_0000;
pub(super) const N_QUEUES: usize = 128;

pub(super) const CTRL: usize = 0x0;
pub(super) const CTRL_GIO_DIS: u32 = 1 << 2;
pub(super) const CTRL_LNK_RST: u32 = 1 << 3;
pub(super) const CTRL_RST: u32 = 1 << 26;
pub(super) const STATUS: usize = 0x8;
pub(super) const STATUS_GIO: u32 = 1 << 19;
pub(super) const CTRL_EXT: usize = 0x18;
pub(super) const ESDP: usize = 0x20;
pub(super) const ESDP_SDP2: u32 = 1 << 2;
pub(super) const ESDP_SDP3: u32 = 1 << 3;
pub(super) const I2CCTL: usize = 0x28;

pub(super) const EEC: usize = 0x1_0010;
pub(super) const EERD: usize = 0x1_0014;
pub(super) const SWSM: usize = 0x1_0140;
pub(super) const FWSM: usize = 0x1_0148;

pub(super) const EICR: usize = 0x800;
pub(super) const EICS: usize = 0x808;
pub(super) const EIAC: usize = 0x810;
pub(super) const EIMS: usize = 0x880;
pub(super) const EIMC: usize = 0x888;
pub(super) const EIAM: usize = 0x890;
pub(super) const GPIE: usize = 0x898;
pub(super) const GPIE_MSIX: u32 = 1 << 4;
pub(super) const GPIE_OCD: u32 = 1 << 5;
pub(super) const GPIE_EIAME: u32 = 1 << 30;
pub(super) const IVAR: usize = 0x900;
pub(super) const IVAR_MISC: usize = 0xa00;
pub(super) const EICS_EX: usize = 0xa90;
pub(super) const EIMS_EX: usize = 0xaa0;
pub(super) const EIMC_EX: usize = 0xab0;
pub(super) const EIAM_EX: usize = 0xad0;
pub(super) const EICR_LSC: u32 = 1 << 20;
/// SDP1 and SDP2, which an SFP+ cage is wired to (8.2.3.5.1).
pub(super) const EICR_GPI_SDP2: u32 = 1 << 26;

pub(super) const SRRCTL_LOW: usize = 0x2100;
pub(super) const RQSMR: usize = 0x2300;
pub(super) const RDRXCTL: usize = 0x2f00;
pub(super) const RDRXCTL_CRCSTRIP: u32 = 1 << 1;
pub(super) const RDRXCTL_DMAIDONE: u32 = 1 << 3;
pub(super) const RXCTRL: usize = 0x3000;
pub(super) const HLREG0: usize = 0x4240;
pub(super) const HLREG0_RXCRCSTRP: u32 = 1 << 1;
pub(super) const HLREG0_JUMBOEN: u32 = 1 << 2;
pub(super) const HLREG0_TXPADEN: u32 = 1 << 10;
pub(super) const MSCA: usize = 0x425c;
pub(super) const MSRWD: usize = 0x4260;
pub(super) const MAXFRS: usize = 0x4268;
pub(super) const AUTOC: usize = 0x42a0;
pub(super) const AUTOC_RESTART: u32 = 1 << 12;
pub(super) const LINKS: usize = 0x42a4;
pub(super) const AUTOC2: usize = 0x42a8;
pub(super) const AUTOC2_LINK_DISABLE: u32 = 7 << 28;
pub(super) const ANLP1: usize = 0x42b0;
pub(super) const DMATXCTL: usize = 0x4a80;
pub(super) const DTXTCPFLGL: usize = 0x4a88;
pub(super) const DTXTCPFLGH: usize = 0x4a8c;
pub(super) const RXCSUM: usize = 0x5000;
pub(super) const RXCSUM_PCSD: u32 = 1 << 13;
pub(super) const FCTRL: usize = 0x5080;
pub(super) const FCTRL_MPE: u32 = 1 << 8;
pub(super) const FCTRL_UPE: u32 = 1 << 9;
pub(super) const FCTRL_BAM: u32 = 1 << 10;
pub(super) const VLNCTRL: usize = 0x5088;
pub(super) const VLNCTRL_VFE: u32 = 1 << 30;
pub(super) const MCSTCTRL: usize = 0x5090;
pub(super) const MTA: usize = 0x5200;
pub(super) const MRQC: usize = 0x5818;
pub(super) const RETA: usize = 0x5c00;
pub(super) const RSSRK: usize = 0x5c80;
pub(super) const VFTA: usize = 0xa000;
pub(super) const RAL: usize = 0xa200;
pub(super) const RAL_LOW: usize = 0x5400;
pub(super) const RAH_AV: u32 = 1 << 31;
pub(super) const SECRXSTAT: usize = 0x8d04;
pub(super) const FDIRCTRL: usize = 0xee00;
pub(super) const FDIRCMD: usize = 0xee2c;
pub(super) const TQSM: usize = 0x8600;

pub(super) const DCTL_ENABLE: u32 = 1 << 25;
pub(super) const RXDCTL_VME: u32 = 1 << 30;

/// The registers of a receive queue: RDBAL; +4 RDBAH, +8 RDLEN, +0x10 RDH, +0x14 SRRCTL, +0x18 RDT, +0x28 RXDCTL.
pub(super) const fn rx(queue: usize) -> usize {
    if queue < 64 { 0x1000 + queue * 0x40 } else { 0xd000 + (queue - 64) * 0x40 }
}

/// The registers of a transmit queue: TDBAL; +4 TDBAH, +8 TDLEN, +0x10 TDH, +0x18 TDT, +0x28 TXDCTL, +0x38 TDWBAL.
pub(super) const fn tx(queue: usize) -> usize {
    0x6000 + queue * 0x40
}

/// The queue and the register inside its block of 0x40 bytes.
pub(super) const fn rx_queue(offset: usize) -> Option<(usize, usize)> {
    match offset {
        0x1000..0x2000 => Some(((offset - 0x1000) / 0x40, offset % 0x40)),
        0xd000..0xe000 => Some((64 + (offset - 0xd000) / 0x40, offset % 0x40)),
        _ => None,
    }
}

pub(super) const fn tx_queue(offset: usize) -> Option<(usize, usize)> {
    match offset {
        0x6000..0x8000 => Some(((offset - 0x6000) / 0x40, offset % 0x40)),
        _ => None,
    }
}
