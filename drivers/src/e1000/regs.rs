//! Registers of the 8254x (Software Developer's Manual 317453, chapter 13) and the 82574 (datasheet, chapter 10), which
//! has them at the same places and more of them. Only those the driver uses.

use crate::nic::regs::{Ro, Rw, Wo, registers};

/// Bytes of BAR 0.
pub const LEN_BYTES: usize = 0x2_0000;

registers! {
    /// Device control.
    CTRL: u32, Rw = 0x0000, "CTRL";
    /// Device status.
    STATUS: u32, Ro = 0x0008, "STATUS";
    /// EEPROM control.
    EECD: u32, Rw = 0x0010, "EECD";
    /// EEPROM read.
    EERD: u32, Rw = 0x0014, "EERD";
    /// Extended device control.
    CTRL_EXT: u32, Rw = 0x0018, "CTRL_EXT";
    /// PHY access.
    MDIC: u32, Rw = 0x0020, "MDIC";
    /// Flow control address, low.
    FCAL: u32, Rw = 0x0028, "FCAL";
    /// Flow control address, high.
    FCAH: u32, Rw = 0x002c, "FCAH";
    /// Flow control type.
    FCT: u32, Rw = 0x0030, "FCT";
    /// What says that a tag follows.
    VET: u32, Rw = 0x0038, "VET";
    /// Interrupt causes.
    ICR: u32, Rw = 0x00c0, "ICR";
    /// Interrupt mask: ones set.
    IMS: u32, Rw = 0x00d0, "IMS";
    /// Interrupt mask: ones clear.
    IMC: u32, Wo = 0x00d8, "IMC";
    /// Causes that MSI-X clears by itself (82574 10.2.4.5).
    EIAC: u32, Rw = 0x00dc, "EIAC";
    /// MSI-X vectors of causes (82574 10.2.4.9).
    IVAR: u32, Rw = 0x00e4, "IVAR";
    /// Receive control.
    RCTL: u32, Rw = 0x0100, "RCTL";
    /// Flow control timer.
    FCTTV: u32, Rw = 0x0170, "FCTTV";
    /// Transmit control.
    TCTL: u32, Rw = 0x0400, "TCTL";
    /// Gap between frames.
    TIPG: u32, Rw = 0x0410, "TIPG";
    /// Who owns PHY and EEPROM (82574 10.2.2.18).
    EXTCNF_CTRL: u32, Rw = 0x0f00, "EXTCNF_CTRL";
    /// Split of headers and data.
    PSRCTL: u32, Rw = 0x2170, "PSRCTL";
    /// Receive ring, low half of the address.
    RDBAL: [u32; 2], Rw = 0x2800 + 0x100, "RDBAL";
    /// Receive ring, high half of the address.
    RDBAH: [u32; 2], Rw = 0x2804 + 0x100, "RDBAH";
    /// Receive ring, bytes.
    RDLEN: [u32; 2], Rw = 0x2808 + 0x100, "RDLEN";
    /// Receive head.
    RDH: [u32; 2], Rw = 0x2810 + 0x100, "RDH";
    /// Receive tail.
    RDT: [u32; 2], Rw = 0x2818 + 0x100, "RDT";
    /// Receive delay.
    RDTR: [u32; 2], Rw = 0x2820 + 0x100, "RDTR";
    /// Receive descriptor control.
    RXDCTL: [u32; 2], Rw = 0x2828 + 0x100, "RXDCTL";
    /// Receive delay, absolute.
    RADV: u32, Rw = 0x282c, "RADV";
    /// Transmit ring, low half of the address.
    TDBAL: [u32; 2], Rw = 0x3800 + 0x100, "TDBAL";
    /// Transmit ring, high half of the address.
    TDBAH: [u32; 2], Rw = 0x3804 + 0x100, "TDBAH";
    /// Transmit ring, bytes.
    TDLEN: [u32; 2], Rw = 0x3808 + 0x100, "TDLEN";
    /// Transmit head.
    TDH: [u32; 2], Rw = 0x3810 + 0x100, "TDH";
    /// Transmit tail.
    TDT: [u32; 2], Rw = 0x3818 + 0x100, "TDT";
    /// Transmit descriptor control.
    TXDCTL: [u32; 2], Rw = 0x3828 + 0x100, "TXDCTL";
    /// Transmit arbitration (82574 10.2.6.9).
    TARC: [u32; 2], Rw = 0x3840 + 0x100, "TARC";
    /// Receive checksums.
    RXCSUM: u32, Rw = 0x5000, "RXCSUM";
    /// Receive filter control; the descriptor format is chosen here (82574 10.2.5.14).
    RFCTL: u32, Rw = 0x5008, "RFCTL";
    /// Multicast table.
    MTA: [u32; 128], Rw = 0x5200 + 4, "MTA";
    /// Receive address, low.
    RAL: [u32; 16], Rw = 0x5400 + 8, "RAL";
    /// Receive address, high.
    RAH: [u32; 16], Rw = 0x5404 + 8, "RAH";
    /// VLAN filter table.
    VFTA: [u32; 128], Rw = 0x5600 + 4, "VFTA";
    /// Several receive queues (82574 10.2.5.18).
    MRQC: u32, Rw = 0x5818, "MRQC";
    /// PCIe control (82574 10.2.2.11).
    GCR: u32, Rw = 0x5b00, "GCR";
    /// Which queue a hash goes to: four entries each.
    RETA: [u32; 32], Rw = 0x5c00 + 4, "RETA";
    /// Hash key.
    RSSRK: [u32; 10], Rw = 0x5c80 + 4, "RSSRK";
}

/// Bits of [`CTRL`].
pub mod ctrl {
    /// Full duplex.
    pub const FD: u32 = 1 << 0;
    /// No new DMA of ours, please (82574 only).
    pub const MASTER_DISABLE: u32 = 1 << 2;
    /// Link reset (8254x).
    pub const LRST: u32 = 1 << 3;
    /// Speed detection.
    pub const ASDE: u32 = 1 << 5;
    /// Set link up.
    pub const SLU: u32 = 1 << 6;
    /// Force speed.
    pub const FRCSPD: u32 = 1 << 11;
    /// Force duplex.
    pub const FRCDPX: u32 = 1 << 12;
    /// Device reset; clears by itself.
    pub const RST: u32 = 1 << 26;
    /// Receive flow control.
    pub const RFCE: u32 = 1 << 27;
    /// Transmit flow control.
    pub const TFCE: u32 = 1 << 28;
    /// VLAN mode: strip and insert tags.
    pub const VME: u32 = 1 << 30;
}

/// Bits of [`STATUS`].
pub mod status {
    /// DMA is not disabled yet.
    pub const MASTER_ENABLE: u32 = 1 << 19;
}

/// Bits of [`EECD`].
pub mod eecd {
    /// The EEPROM has been read after a reset (82574).
    pub const ARD: u32 = 1 << 9;
}

/// Interrupt causes.
pub mod cause {
    /// Link status changed.
    pub const LSC: u32 = 1 << 2;
    /// Any cause that is no queue's (82574, MSI-X).
    pub const OTHER: u32 = 1 << 24;
}

/// Bits of [`RCTL`].
pub mod rctl {
    /// On.
    pub const EN: u32 = 1 << 1;
    /// Unicast promiscuous.
    pub const UPE: u32 = 1 << 3;
    /// Multicast promiscuous.
    pub const MPE: u32 = 1 << 4;
    /// Frames longer than 1522 bytes.
    pub const LPE: u32 = 1 << 5;
    /// Broadcasts.
    pub const BAM: u32 = 1 << 15;
    /// Strip the FCS.
    pub const SECRC: u32 = 1 << 26;
}

/// Bits of [`TCTL`].
pub mod tctl {
    /// On.
    pub const EN: u32 = 1 << 1;
    /// Pad short frames.
    pub const PSP: u32 = 1 << 3;
    /// Collision threshold 15 and distance 64: the values for full duplex.
    pub const COLLISIONS: u32 = 15 << 4 | 63 << 12;
    /// Retransmit on late collisions.
    pub const RTLC: u32 = 1 << 24;
    /// Several requests at a time (82574).
    pub const MULR: u32 = 1 << 28;
}

/// Bits of [`RXDCTL`] and [`TXDCTL`].
pub mod dctl {
    /// Thresholds count descriptors.
    pub const GRAN: u32 = 1 << 24;
    /// Always set on the 82574 (10.2.6.7, bit 22).
    pub const COUNT: u32 = 1 << 22;
}

/// Bits of [`RXCSUM`].
pub mod rxcsum {
    /// Check IP headers.
    pub const IPOFL: u32 = 1 << 8;
    /// Check TCP and UDP.
    pub const TUOFL: u32 = 1 << 9;
    /// The descriptor has the hash instead of the raw sum: goes with several queues.
    pub const PCSD: u32 = 1 << 13;
}

/// Bits of [`RFCTL`].
pub mod rfctl {
    /// No acceleration of acknowledgements.
    pub const ACK_DIS: u32 = 1 << 12;
    /// Extended receive descriptors.
    pub const EXSTEN: u32 = 1 << 15;
}

/// Bits of [`EXTCNF_CTRL`].
pub mod extcnf {
    /// Software owns PHY and EEPROM.
    pub const SW_OWNS: u32 = 1 << 5;
}
