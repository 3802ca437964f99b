//! Registers of the 82599 (datasheet 331520, chapter 8), which the X540 and X550 have at the same places. Only those the
//! driver uses.

use crate::intel::semaphore::Semaphore;
use crate::nic::regs::{Rc, Ro, Rw, Wo, registers};

/// Bytes of BAR 0.
pub const LEN_BYTES: usize = 0x2_0000;
/// Queue pairs that RSS can spread over (7.1.2.8).
pub const N_QUEUES: usize = 16;

registers! {
    /// Device control (8.2.3.1.1).
    CTRL: u32, Rw = 0x0000, "CTRL";
    /// Device status.
    STATUS: u32, Ro = 0x0008, "STATUS";
    /// Extended device control.
    CTRL_EXT: u32, Rw = 0x0018, "CTRL_EXT";
    /// Software-definable pins: laser, presence of a module.
    ESDP: u32, Rw = 0x0020, "ESDP";
    /// The two wires to the SFP+ module.
    I2CCTL: u32, Rw = 0x0028, "I2CCTL";
    /// Interrupt causes.
    EICR: u32, Rc = 0x0800, "EICR";
    /// Causes that a message clears by itself.
    EIAC: u32, Rw = 0x0810, "EIAC";
    /// Interrupt mask: ones set.
    EIMS: u32, Rw = 0x0880, "EIMS";
    /// Interrupt mask: ones clear.
    EIMC: u32, Wo = 0x0888, "EIMC";
    /// How interrupts are signalled.
    GPIE: u32, Rw = 0x0898, "GPIE";
    /// Vector of all causes that are no queue's.
    IVAR_MISC: u32, Rw = 0x0a00, "IVAR_MISC";
    /// Interrupt mask of queues, ones clear.
    EIMC_EX: [u32; 2], Wo = 0x0ab0 + 0x4, "EIMC_EX";
    /// Receive ring, low half of the address.
    RDBAL: [u32; 64], Rw = 0x1000 + 0x40, "RDBAL";
    /// Receive ring, high half of the address.
    RDBAH: [u32; 64], Rw = 0x1004 + 0x40, "RDBAH";
    /// Receive ring, bytes.
    RDLEN: [u32; 64], Rw = 0x1008 + 0x40, "RDLEN";
    /// Cache hints and ordering of a receive queue.
    DCA_RXCTRL: [u32; 64], Rw = 0x100c + 0x40, "DCA_RXCTRL";
    /// Receive head.
    RDH: [u32; 64], Rw = 0x1010 + 0x40, "RDH";
    /// Buffer size and descriptor type.
    SRRCTL: [u32; 64], Rw = 0x1014 + 0x40, "SRRCTL";
    /// Receive tail.
    RDT: [u32; 64], Rw = 0x1018 + 0x40, "RDT";
    /// Receive queue control.
    RXDCTL: [u32; 64], Rw = 0x1028 + 0x40, "RXDCTL";
    /// Receive side coalescing.
    RSCCTL: [u32; 64], Rw = 0x102c + 0x40, "RSCCTL";
    /// Receive DMA control.
    RDRXCTL: u32, Rw = 0x2f00, "RDRXCTL";
    /// Receiver on or off.
    RXCTRL: u32, Rw = 0x3000, "RXCTRL";
    /// Receive packet buffers.
    RXPBSIZE: [u32; 8], Rw = 0x3c00 + 0x4, "RXPBSIZE";
    /// Flow control configuration.
    FCCFG: u32, Rw = 0x3d00, "FCCFG";
    /// MAC core control.
    HLREG0: u32, Rw = 0x4240, "HLREG0";
    /// Longest frame.
    MAXFRS: u32, Rw = 0x4268, "MAXFRS";
    /// What becomes of pause frames.
    MFLCN: u32, Rw = 0x4294, "MFLCN";
    /// Link mode and negotiation.
    AUTOC: u32, Rw = 0x42a0, "AUTOC";
    /// Link status.
    LINKS: u32, Ro = 0x42a4, "LINKS";
    /// Link mode of the serial side.
    AUTOC2: u32, Rw = 0x42a8, "AUTOC2";
    /// State of the negotiation.
    ANLP1: u32, Ro = 0x42b0, "ANLP1";
    /// Transmit arbiter.
    RTTDCS: u32, Rw = 0x4900, "RTTDCS";
    /// When a packet buffer takes no more.
    TXPBTHRESH: [u32; 8], Rw = 0x4950 + 0x4, "TXPBTHRESH";
    /// Transmit DMA control.
    DMATXCTL: u32, Rw = 0x4a80, "DMATXCTL";
    /// Receive checksums.
    RXCSUM: u32, Rw = 0x5000, "RXCSUM";
    /// Address filters.
    FCTRL: u32, Rw = 0x5080, "FCTRL";
    /// VLAN filter.
    VLNCTRL: u32, Rw = 0x5088, "VLNCTRL";
    /// Multicast hash.
    MCSTCTRL: u32, Rw = 0x5090, "MCSTCTRL";
    /// Multicast table.
    MTA: [u32; 128], Rw = 0x5200 + 0x4, "MTA";
    /// Several receive queues.
    MRQC: u32, Rw = 0x5818, "MRQC";
    /// Redirection table.
    RETA: [u32; 32], Rw = 0x5c00 + 0x4, "RETA";
    /// Key of the hash.
    RSSRK: [u32; 10], Rw = 0x5c80 + 0x4, "RSSRK";
    /// Transmit ring, low half of the address.
    TDBAL: [u32; 128], Rw = 0x6000 + 0x40, "TDBAL";
    /// Transmit ring, high half of the address.
    TDBAH: [u32; 128], Rw = 0x6004 + 0x40, "TDBAH";
    /// Transmit ring, bytes.
    TDLEN: [u32; 128], Rw = 0x6008 + 0x40, "TDLEN";
    /// Cache hints and ordering of a transmit queue.
    DCA_TXCTRL: [u32; 128], Rw = 0x600c + 0x40, "DCA_TXCTRL";
    /// Transmit head.
    TDH: [u32; 128], Rw = 0x6010 + 0x40, "TDH";
    /// Transmit tail.
    TDT: [u32; 128], Rw = 0x6018 + 0x40, "TDT";
    /// Transmit queue control.
    TXDCTL: [u32; 128], Rw = 0x6028 + 0x40, "TXDCTL";
    /// Where the head would be written back to.
    TDWBAL: [u32; 128], Rw = 0x6038 + 0x40, "TDWBAL";
    /// Largest request for data.
    DTXMXSZRQ: u32, Rw = 0x8100, "DTXMXSZRQ";
    /// Several transmit queues.
    MTQC: u32, Rw = 0x8120, "MTQC";
    /// The security block in the receive path, also without any use of it.
    SECRXCTRL: u32, Rw = 0x8d00, "SECRXCTRL";
    /// Its state.
    SECRXSTAT: u32, Ro = 0x8d04, "SECRXSTAT";
    /// VLAN filter table.
    VFTA: [u32; 128], Rw = 0xa000 + 0x4, "VFTA";
    /// Receive address, low half.
    RAL: [u32; 128], Rw = 0xa200 + 0x8, "RAL";
    /// Receive address, high half.
    RAH: [u32; 128], Rw = 0xa204 + 0x8, "RAH";
    /// Transmit packet buffers.
    TXPBSIZE: [u32; 8], Rw = 0xcc00 + 0x4, "TXPBSIZE";
    /// Unicast table.
    PFUTA: [u32; 128], Rw = 0xf400 + 0x4, "PFUTA";
    /// EEPROM control.
    EEC: u32, Rw = 0x1_0010, "EEC";
    /// EEPROM read.
    EERD: u32, Rw = 0x1_0014, "EERD";
    /// Semaphore between drivers, and between driver and firmware.
    SWSM: u32, Rw = 0x1_0140, "SWSM";
    /// Who holds which shared part.
    SW_FW_SYNC: u32, Rw = 0x1_0160, "SW_FW_SYNC";
    /// Analog configuration.
    CORECTL: u32, Wo = 0x1_4f00, "CORECTL";
}

/// Bits of [`CTRL`].
pub mod ctrl {
    /// No new requests on the bus.
    pub const GIO_DIS: u32 = 1 << 2;
    /// Link reset.
    pub const LRST: u32 = 1 << 3;
    /// Software reset.
    pub const RST: u32 = 1 << 26;
}

/// Bits of [`STATUS`].
pub mod status {
    /// Second port of the chip.
    pub const LAN_ID: u32 = 1 << 2;
    /// Requests on the bus are allowed or pending.
    pub const GIO: u32 = 1 << 19;
}

/// Bits of [`CTRL_EXT`].
pub mod ctrl_ext {
    /// No "no snoop" requests.
    pub const NS_DIS: u32 = 1 << 16;
    /// No relaxed ordering.
    pub const RO_DIS: u32 = 1 << 17;
    /// Tells firmware that a driver is there.
    pub const DRV_LOAD: u32 = 1 << 28;
}

/// Bits of [`ESDP`].
pub mod esdp {
    /// Laser off.
    pub const SDP3: u32 = 1 << 3;
}

/// Bits of [`I2CCTL`].
pub mod i2c {
    /// The clock line, as it is.
    pub const CLK_IN: u32 = 1;
    /// The clock line, as driven.
    pub const CLK_OUT: u32 = 1 << 1;
    /// The data line, as it is.
    pub const DATA_IN: u32 = 1 << 2;
    /// The data line, as driven.
    pub const DATA_OUT: u32 = 1 << 3;
}

/// Interrupt causes.
pub mod cause {
    /// Link status changed.
    pub const LSC: u32 = 1 << 20;
    /// Pin SDP1 or SDP2 changed: a module came or went.
    pub const MODULE: u32 = 3 << 25;
}

/// Bits of [`GPIE`].
pub mod gpie {
    /// SDP1 and SDP2 interrupt.
    pub const MODULE: u32 = 3 << 1;
    /// MSI-X.
    pub const MSIX_MODE: u32 = 1 << 4;
    /// The pending bit array follows the causes.
    pub const PBA_SUPPORT: u32 = 1 << 31;
}

/// Bits of [`DCA_RXCTRL`] and [`DCA_TXCTRL`].
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
    /// Drop when the queue has no descriptors, instead of holding up all queues.
    pub const DROP_EN: u32 = 1 << 28;
}

/// Bits of [`RXDCTL`] and [`TXDCTL`].
pub mod dctl {
    /// The queue is on.
    pub const ENABLE: u32 = 1 << 25;
    /// Write back what is done and drop the rest.
    pub const SWFLSH: u32 = 1 << 26;
    /// Strip VLAN tags; of [`RXDCTL`] alone.
    pub const VME: u32 = 1 << 30;
}

/// Bits of [`RDRXCTL`].
pub mod rdrxctl {
    /// Strip the FCS.
    pub const CRC_STRIP: u32 = 1 << 1;
    /// DMA is initialised.
    pub const DMAIDONE: u32 = 1 << 3;
    /// First size of coalesced packets: zero without.
    pub const RSCFRSTSIZE: u32 = 0x1f << 17;
    /// To be set (8.2.3.8.8).
    pub const ALWAYS: u32 = 3 << 25;
}

/// Bits of [`HLREG0`].
pub mod hlreg0 {
    /// Append the FCS.
    pub const TXCRCEN: u32 = 1;
    /// Strip the FCS.
    pub const RXCRCSTRP: u32 = 1 << 1;
    /// Frames longer than 1518 bytes.
    pub const JUMBOEN: u32 = 1 << 2;
    /// Pad short frames.
    pub const TXPADEN: u32 = 1 << 10;
    /// Loop back.
    pub const LPBK: u32 = 1 << 15;
}

/// Bits of [`AUTOC`].
pub mod autoc {
    /// Negotiate anew.
    pub const RESTART: u32 = 1 << 12;
    /// Link mode.
    pub const LMS: u32 = 7 << 13;
    /// 10 Gbit/s serial: SFI, KR without negotiation.
    pub const LMS_10G_SERIAL: u32 = 3 << 13;
    /// The bit of the mode that is flipped to reset the whole pipeline.
    pub const LMS_FLIP: u32 = 4 << 13;
    /// [`AUTOC2`](super::AUTOC2): link disabled by the EEPROM.
    pub const LINK_DISABLE: u32 = 7 << 28;
    /// [`ANLP1`](super::ANLP1): state of the negotiation.
    pub const AN_STATE: u32 = 0xf << 16;
}

/// Bits of [`LINKS`].
pub mod links {
    /// Link is up.
    pub const UP: u32 = 1 << 30;
    /// Speed: 1: 100, 2: 1000, 3: 10000 Mbit/s.
    pub const SPEED_SHIFT: u32 = 28;
    /// X550: 100 means 5000, 10000 means 2500.
    pub const NON_STANDARD: u32 = 1 << 27;
}

/// Bits of [`FCTRL`].
pub mod fctrl {
    /// Multicast promiscuous.
    pub const MPE: u32 = 1 << 8;
    /// Unicast promiscuous.
    pub const UPE: u32 = 1 << 9;
    /// Broadcasts.
    pub const BAM: u32 = 1 << 10;
}

/// Bits of [`MRQC`].
pub mod mrqc {
    /// RSS.
    pub const RSSEN: u32 = 1;
    /// Hash over IPv4, IPv6 and TCP on both. Not UDP: fragments of a datagram would go elsewhere than whole ones.
    pub const FIELDS: u32 = 1 << 16 | 1 << 17 | 1 << 20 | 1 << 21;
}

/// What is shared with firmware.
pub static SEMAPHORE: Semaphore = Semaphore { swsm: SWSM, holders: SW_FW_SYNC, firmware_shift: 5 };

/// Bits of [`SW_FW_SYNC`]: software's.
pub mod sync {
    /// PHY, and the wires to the module, of port 0 and 1.
    pub const PHY: [u32; 2] = [1 << 1, 1 << 2];
    /// MAC registers shared with firmware.
    pub const MAC_CSR: u32 = 1 << 3;
}

/// [`EERD`]: start, done.
pub mod eerd {
    /// Start reading.
    pub const START: u32 = 1;
    /// The word has been read.
    pub const DONE: u32 = 1 << 1;
}

/// [`EEC`]: the EEPROM has been loaded.
pub const EEC_ARD: u32 = 1 << 9;
/// [`RXCSUM`]: the descriptor has the hash instead of the raw sum; goes with several queues.
pub const RXCSUM_PCSD: u32 = 1 << 13;
/// [`SECRXCTRL`]: stop the receive path.
pub const SECRX_DIS: u32 = 1 << 1;
/// [`RTTDCS`]: stop the arbiter.
pub const ARBDIS: u32 = 1 << 6;
