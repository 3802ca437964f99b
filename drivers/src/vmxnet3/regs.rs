//! Registers of vmxnet3, all 32 bits wide: those of BAR 0 are for queues and interrupts, those of BAR 1 for everything else.
//! ICR, for legacy interrupts, is not among them: there is MSI-X, or the driver looks by itself.

use crate::nic::regs::{Rw, Wo, registers};

/// Bytes of each of the two BARs that we use.
pub(super) const LEN_BYTES: usize = 0x1000;

/// BAR 0.
pub(super) mod pt {
    use super::*;

    registers! {
        /// Interrupt masks, one for each vector; 1: masked.
        IMR: [u32; 25], Wo = 0x0 + 8, "IMR";
        /// First descriptor of the transmit ring that is not the device's.
        TXPROD: [u32; 8], Wo = 0x600 + 8, "TXPROD";
        /// The same of the first receive ring.
        RXPROD: [u32; 16], Wo = 0x800 + 8, "RXPROD";
        /// The same of the second receive ring.
        RXPROD2: [u32; 16], Wo = 0xa00 + 8, "RXPROD2";
    }
}

/// BAR 1.
pub(super) mod vd {
    use super::*;

    registers! {
        /// Revisions of the device as bits; takes the one chosen.
        VRRS: u32, Rw = 0x0, "VRRS";
        /// Versions of its pass-through interface as bits; takes the one chosen.
        UVRS: u32, Rw = 0x8, "UVRS";
        /// Address of the configuration area, low half.
        DSAL: u32, Wo = 0x10, "DSAL";
        /// High half.
        DSAH: u32, Wo = 0x18, "DSAH";
        /// Takes a command; reads as its result.
        CMD: u32, Rw = 0x20, "CMD";
        /// Address in use, first four bytes.
        MACL: u32, Rw = 0x28, "MACL";
        /// Last two bytes.
        MACH: u32, Rw = 0x30, "MACH";
        /// Events: ones acknowledge them.
        ECR: u32, Wo = 0x40, "ECR";
    }
}

/// What [`vd::CMD`] takes.
pub(super) mod command {
    /// Reads the configuration area and starts.
    pub const ACTIVATE_DEV: u32 = 0xcafe_0000;
    /// Stops all queues.
    pub const QUIESCE_DEV: u32 = 0xcafe_0001;
    /// Back to the state after power-on.
    pub const RESET_DEV: u32 = 0xcafe_0002;
    /// Reads the receive mode again.
    pub const UPDATE_RX_MODE: u32 = 0xcafe_0003;
    /// Reads the table of group addresses again.
    pub const UPDATE_MAC_FILTERS: u32 = 0xcafe_0004;
    /// Reads the table of VLANs again.
    pub const UPDATE_VLAN_FILTERS: u32 = 0xcafe_0005;
    /// Reads the features of the configuration area again.
    pub const UPDATE_FEATURE: u32 = 0xcafe_0009;
    /// Writes the state of each queue into its description.
    pub const GET_QUEUE_STATUS: u32 = 0xf00d_0000;
    /// Writes the counters of each queue into its description.
    pub const GET_STATS: u32 = 0xf00d_0001;
    /// Link: up in bit 0, Mbit/s from bit 16.
    pub const GET_LINK: u32 = 0xf00d_0002;
    /// Its own address, first four bytes.
    pub const GET_PERM_MAC_LO: u32 = 0xf00d_0003;
    /// Last two bytes.
    pub const GET_PERM_MAC_HI: u32 = 0xf00d_0004;
}

/// Events, in the configuration area and in [`vd::ECR`].
pub(super) mod event {
    /// A receive queue was stopped.
    pub const RQERR: u32 = 1 << 0;
    /// A transmit queue was stopped.
    pub const TQERR: u32 = 1 << 1;
    /// The link changed.
    pub const LINK: u32 = 1 << 2;
}
