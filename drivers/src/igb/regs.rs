//! Registers of the 82576 (datasheet 320961, chapter 8), which I350, I210 and I211 have at the same places. Only those
//! the driver uses.

use crate::intel::semaphore::Semaphore;
use crate::nic::regs::{Rc, Ro, Rw, Wo, registers};

/// Bytes of BAR 0.
pub const LEN_BYTES: usize = 0x2_0000;

registers! {
    /// Device control (8.2.1).
    CTRL: u32, Rw = 0x0000, "CTRL";
    /// Device status.
    STATUS: u32, Ro = 0x0008, "STATUS";
    /// EEPROM control.
    EECD: u32, Ro = 0x0010, "EECD";
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
    /// Causes that are no queue's, at the place they have in older families too (8.8.8: an alias of 1500, as are the
    /// masks of 1508 and 150c).
    ICR: u32, Rc = 0x00c0, "ICR";
    /// Their mask: ones set.
    IMS: u32, Rw = 0x00d0, "IMS";
    /// Their mask: ones clear.
    IMC: u32, Wo = 0x00d8, "IMC";
    /// Receive control.
    RCTL: u32, Rw = 0x0100, "RCTL";
    /// Flow control timer.
    FCTTV: u32, Rw = 0x0170, "FCTTV";
    /// Transmit control.
    TCTL: u32, Rw = 0x0400, "TCTL";
    /// Power management of the PHY (I350 8.22.4, I210 8.27.3).
    PHPM: u32, Rw = 0x0e14, "PHPM";
    /// How interrupts are signalled.
    GPIE: u32, Rw = 0x1514, "GPIE";
    /// Mask of vectors: ones set.
    EIMS: u32, Rw = 0x1524, "EIMS";
    /// Mask of vectors: ones clear.
    EIMC: u32, Wo = 0x1528, "EIMC";
    /// Vectors whose causes a message clears by itself.
    EIAC: u32, Rw = 0x152c, "EIAC";
    /// Vectors that a message masks.
    EIAM: u32, Rw = 0x1530, "EIAM";
    /// Causes of vectors.
    EICR: u32, Rc = 0x1580, "EICR";
    /// Vector of all causes that are no queue's.
    IVAR_MISC: u32, Rw = 0x1740, "IVAR_MISC";
    /// Configuration of the serial link (8.18.1).
    PCS_CFG0: u32, Rw = 0x4200, "PCS_CFG0";
    /// Control of the serial link.
    PCS_LCTL: u32, Rw = 0x4208, "PCS_LCTL";
    /// Receive checksums.
    RXCSUM: u32, Rw = 0x5000, "RXCSUM";
    /// Longest frame.
    RLPML: u32, Rw = 0x5004, "RLPML";
    /// Receive filter control.
    RFCTL: u32, Rw = 0x5008, "RFCTL";
    /// Multicast table.
    MTA: [u32; 128], Rw = 0x5200 + 0x4, "MTA";
    /// Receive address, low half.
    RAL: [u32; 16], Rw = 0x5400 + 0x8, "RAL";
    /// Receive address, high half.
    RAH: [u32; 16], Rw = 0x5404 + 0x8, "RAH";
    /// Receive addresses 16 to 23, low half (82576).
    RAL_24: [u32; 8], Rw = 0x54e0 + 0x8, "RAL";
    /// Receive addresses 16 to 23, high half (82576).
    RAH_24: [u32; 8], Rw = 0x54e4 + 0x8, "RAH";
    /// Receive addresses 16 to 31, low half (I350).
    RAL_32: [u32; 16], Rw = 0x54e0 + 0x8, "RAL";
    /// Receive addresses 16 to 31, high half (I350).
    RAH_32: [u32; 16], Rw = 0x54e4 + 0x8, "RAH";
    /// Several receive queues.
    MRQC: u32, Rw = 0x5818, "MRQC";
    /// Virtual machine queues: off (82576 8.11.1).
    VT_CTL: u32, Rw = 0x581c, "VT_CTL";
    /// Semaphore between drivers, and between driver and firmware.
    SWSM: u32, Rw = 0x5b50, "SWSM";
    /// Who holds which shared part.
    SW_FW_SYNC: u32, Rw = 0x5b5c, "SW_FW_SYNC";
    /// Redirection table.
    RETA: [u32; 32], Rw = 0x5c00 + 0x4, "RETA";
    /// Key of the hash.
    RSSRK: [u32; 10], Rw = 0x5c80 + 0x4, "RSSRK";
    /// Unicast table.
    UTA: [u32; 128], Rw = 0xa000 + 0x4, "UTA";
    /// Receive ring, low half of the address.
    RDBAL: [u32; 16], Rw = 0xc000 + 0x40, "RDBAL";
    /// Receive ring, high half of the address.
    RDBAH: [u32; 16], Rw = 0xc004 + 0x40, "RDBAH";
    /// Receive ring, bytes.
    RDLEN: [u32; 16], Rw = 0xc008 + 0x40, "RDLEN";
    /// Buffer size and descriptor type.
    SRRCTL: [u32; 16], Rw = 0xc00c + 0x40, "SRRCTL";
    /// Receive head.
    RDH: [u32; 16], Rw = 0xc010 + 0x40, "RDH";
    /// Cache hints and ordering of a receive queue.
    RXCTL: [u32; 16], Rw = 0xc014 + 0x40, "RXCTL";
    /// Receive tail.
    RDT: [u32; 16], Rw = 0xc018 + 0x40, "RDT";
    /// Receive queue control.
    RXDCTL: [u32; 16], Rw = 0xc028 + 0x40, "RXDCTL";
    /// What is taken off received frames of a queue (I350 8.10.20, I210).
    DVMOLR: [u32; 8], Rw = 0xc038 + 0x40, "DVMOLR";
    /// Transmit ring, low half of the address.
    TDBAL: [u32; 16], Rw = 0xe000 + 0x40, "TDBAL";
    /// Transmit ring, high half of the address.
    TDBAH: [u32; 16], Rw = 0xe004 + 0x40, "TDBAH";
    /// Transmit ring, bytes.
    TDLEN: [u32; 16], Rw = 0xe008 + 0x40, "TDLEN";
    /// Transmit head.
    TDH: [u32; 16], Rw = 0xe010 + 0x40, "TDH";
    /// Cache hints and ordering of a transmit queue.
    TXCTL: [u32; 16], Rw = 0xe014 + 0x40, "TXCTL";
    /// Transmit tail.
    TDT: [u32; 16], Rw = 0xe018 + 0x40, "TDT";
    /// Transmit queue control.
    TXDCTL: [u32; 16], Rw = 0xe028 + 0x40, "TXDCTL";
    /// Where the head would be written back to.
    TDWBAL: [u32; 16], Rw = 0xe038 + 0x40, "TDWBAL";
}

/// What is shared with firmware.
pub static SEMAPHORE: Semaphore = Semaphore { swsm: SWSM, holders: SW_FW_SYNC, firmware_shift: 16 };

/// Bits of [`SW_FW_SYNC`]: the PHY of each port of the chip.
pub const PHY_OF_PORT: [u32; 4] = [1 << 1, 1 << 2, 1 << 5, 1 << 6];

/// Bits of [`CTRL`].
pub mod ctrl {
    /// Full duplex.
    pub const FD: u32 = 1 << 0;
    /// No new requests on the bus.
    pub const GIO_DIS: u32 = 1 << 2;
    /// Set link up.
    pub const SLU: u32 = 1 << 6;
    /// The speed to force: 1 Gbit/s.
    pub const SPEED_1000: u32 = 2 << 8;
    /// Force speed.
    pub const FRCSPD: u32 = 1 << 11;
    /// Force duplex.
    pub const FRCDPX: u32 = 1 << 12;
    /// Software reset; clears by itself.
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
    /// Link up.
    pub const LU: u32 = 1 << 1;
    /// Which port of the chip.
    pub const LAN_ID_SHIFT: u32 = 2;
    /// Requests on the bus are allowed or pending.
    pub const GIO: u32 = 1 << 19;
}

/// Bits of [`CTRL_EXT`].
pub mod ctrl_ext {
    /// Laser off (pin SDP3).
    pub const SDP3: u32 = 1 << 7;
    /// No relaxed ordering.
    pub const RO_DIS: u32 = 1 << 17;
    /// What is behind the MAC: 0 the copper PHY, 1 KX, 2 SGMII, 3 a serial link.
    pub const LINK_MODE_SHIFT: u32 = 22;
    /// Tells firmware that a driver is there.
    pub const DRV_LOAD: u32 = 1 << 28;
}

/// Bits of [`GPIE`].
pub mod gpie {
    /// A read of the causes clears them also while they are masked.
    pub const NSICR: u32 = 1;
    /// MSI-X.
    pub const MSIX_MODE: u32 = 1 << 4;
    /// The pending bit array follows the causes.
    pub const PBA_SUPPORT: u32 = 1 << 31;
}

/// Bits of [`PCS_CFG0`] and [`PCS_LCTL`].
pub mod pcs {
    /// PCS_CFG0: on.
    pub const ENABLE: u32 = 1 << 3;
    /// PCS_LCTL: negotiate.
    pub const AUTONEG: u32 = 1 << 16;
    /// PCS_LCTL: negotiate anew.
    pub const RESTART: u32 = 1 << 17;
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
}

/// Bits of [`RXCTL`] and [`TXCTL`].
pub mod dca {
    /// Receive: data and header writes may overtake others.
    pub const RX_RELAXED: u32 = 1 << 13 | 1 << 15;
    /// Transmit: descriptor write-backs may overtake others.
    pub const TX_RELAXED: u32 = 1 << 11;
}

/// Bits of [`SRRCTL`].
pub mod srrctl {
    /// Advanced descriptors, one buffer each.
    pub const ADVANCED: u32 = 1 << 25;
    /// Descriptor type and size of a buffer in KiB.
    pub const FORMAT: u32 = 7 << 25 | 0x7f;
    /// Drop when the queue has no descriptors, instead of holding up all queues.
    pub const DROP_EN: u32 = 1 << 31;
}

/// Bits of [`RXDCTL`] and [`TXDCTL`].
pub mod dctl {
    /// The queue is on.
    pub const ENABLE: u32 = 1 << 25;
    /// Receive: descriptors are fetched when 8 are used up and 8 are there, and written back one by one, which the
    /// 82576 needs to write back the last ones at all (specification update).
    pub const RX_THRESHOLDS: u32 = 1 << 16 | 8 << 8 | 8;
    /// Transmit: fetched when at most 8 are left and 1 is there, written back one by one.
    pub const TX_THRESHOLDS: u32 = 1 << 16 | 1 << 8 | 8;
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

/// Bits of [`MRQC`].
pub mod mrqc {
    /// RSS over all queues.
    pub const RSS: u32 = 2;
    /// Hash over IPv4, IPv6 and TCP on both. Not UDP: fragments of a datagram would go elsewhere than whole ones.
    pub const FIELDS: u32 = 1 << 16 | 1 << 17 | 1 << 20 | 1 << 21;
}

/// [`EECD`]: the EEPROM has been read after a reset.
pub const EECD_ARD: u32 = 1 << 9;
/// Cause in [`ICR`]: link status changed.
pub const LSC: u32 = 1 << 2;
/// [`RFCTL`]: extension headers of IPv6 are not parsed (82576 specification update).
pub const RFCTL_IPV6_EX_DIS: u32 = 1 << 16;
/// [`DVMOLR`]: strip the FCS.
pub const DVMOLR_STRCRC: u32 = 1 << 31;
/// [`PHPM`]: no link.
pub const PHPM_GO_LINKD: u32 = 1 << 5;
