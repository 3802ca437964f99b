//! Registers of a virtual function of the 82576 (datasheet 320961, 8.25 and 8.26), which those of the I350 have at the
//! same places. Only those the driver uses.

use crate::nic::regs::{Rc, Ro, Rw, Wo, registers};

/// Bytes of BAR 0.
pub const LEN_BYTES: usize = 0x4000;
/// Words of the memory that both sides of the mailbox write.
pub const MAILBOX_WORDS: usize = 16;

registers! {
    /// Control: reset alone.
    VTCTRL: u32, Rw = 0x0000, "VTCTRL";
    /// Status: the link's.
    VTSTATUS: u32, Ro = 0x0008, "VTSTATUS";
    /// The message in the mailbox.
    VMBMEM: [u32; 16], Rw = 0x0800 + 0x4, "VMBMEM";
    /// The mailbox's flags; some clear when read.
    V2PMAILBOX: u32, Rw = 0x0c40, "V2PMAILBOX";
    /// Mask of vectors: ones set.
    VTEIMS: u32, Rw = 0x1524, "VTEIMS";
    /// Mask of vectors: ones clear.
    VTEIMC: u32, Wo = 0x1528, "VTEIMC";
    /// Vectors whose causes a message clears by itself.
    VTEIAC: u32, Rw = 0x152c, "VTEIAC";
    /// Vectors that a message masks.
    VTEIAM: u32, Rw = 0x1530, "VTEIAM";
    /// Causes of vectors.
    VTEICR: u32, Rc = 0x1580, "VTEICR";
    /// Vector of the mailbox.
    VTIVAR_MISC: u32, Rw = 0x1740, "VTIVAR_MISC";
    /// Receive ring, low half of the address.
    RDBAL: [u32; 2], Rw = 0x2800 + 0x100, "RDBAL";
    /// Receive ring, high half of the address.
    RDBAH: [u32; 2], Rw = 0x2804 + 0x100, "RDBAH";
    /// Receive ring, bytes.
    RDLEN: [u32; 2], Rw = 0x2808 + 0x100, "RDLEN";
    /// Buffer size and descriptor type.
    SRRCTL: [u32; 2], Rw = 0x280c + 0x100, "SRRCTL";
    /// Receive head.
    RDH: [u32; 2], Rw = 0x2810 + 0x100, "RDH";
    /// Cache hints and ordering of a receive queue.
    RXCTL: [u32; 2], Rw = 0x2814 + 0x100, "RXCTL";
    /// Receive tail.
    RDT: [u32; 2], Rw = 0x2818 + 0x100, "RDT";
    /// Receive queue control.
    RXDCTL: [u32; 2], Rw = 0x2828 + 0x100, "RXDCTL";
    /// Transmit ring, low half of the address.
    TDBAL: [u32; 2], Rw = 0x3800 + 0x100, "TDBAL";
    /// Transmit ring, high half of the address.
    TDBAH: [u32; 2], Rw = 0x3804 + 0x100, "TDBAH";
    /// Transmit ring, bytes.
    TDLEN: [u32; 2], Rw = 0x3808 + 0x100, "TDLEN";
    /// Transmit head.
    TDH: [u32; 2], Rw = 0x3810 + 0x100, "TDH";
    /// Cache hints and ordering of a transmit queue.
    TXCTL: [u32; 2], Rw = 0x3814 + 0x100, "TXCTL";
    /// Transmit tail.
    TDT: [u32; 2], Rw = 0x3818 + 0x100, "TDT";
    /// Transmit queue control.
    TXDCTL: [u32; 2], Rw = 0x3828 + 0x100, "TXDCTL";
    /// Where the head would be written back to.
    TDWBAL: [u32; 2], Rw = 0x3838 + 0x100, "TDWBAL";
}

/// Bits of the queue registers, which are those of the physical function.
pub use crate::igb::regs::{dca, dctl, srrctl};

/// [`VTCTRL`]: reset of this function.
pub const RST: u32 = 1 << 26;

/// Bits of [`V2PMAILBOX`] (82576 8.26.1).
pub mod v2p {
    /// We have written a message.
    pub const REQ: u32 = 1 << 0;
    /// We have read a message.
    pub const ACK: u32 = 1 << 1;
    /// The memory is ours; takes only while it isn't the other side's.
    pub const VFU: u32 = 1 << 2;
    /// The other side has written a message; clears when read.
    pub const PFSTS: u32 = 1 << 4;
    /// The other side has read our message; clears when read.
    pub const PFACK: u32 = 1 << 5;
    /// The physical function is in reset.
    pub const RSTI: u32 = 1 << 6;
    /// The physical function has been reset; clears when read.
    pub const RSTD: u32 = 1 << 7;
    /// Those that clear when read.
    pub const READ_TO_CLEAR: u32 = PFSTS | PFACK | RSTD;
}
