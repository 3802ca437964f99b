//! The other side of the mailbox: the memory, its flags (82576 7.8.2.9, 8.26.1), and a driver of the physical function that
//! grants or refuses.

use crate::igbvf::regs::{MAILBOX_WORDS, v2p};
use crate::mac::MacAddr;

const ACK: u32 = 1 << 31;
const NACK: u32 = 1 << 30;
const CTS: u32 = 1 << 29;
const CONTROL: u32 = 0x100;
/// Looks at the flags before the other side gets to run.
const LOOKS: u32 = 3;

/// What the function has been granted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Granted {
    /// It has done its part of the reset.
    pub known: bool,
    /// Further addresses.
    pub more: Vec<MacAddr>,
    /// VLANs.
    pub vlans: Vec<u16>,
    /// Longest frame with FCS.
    pub max_frame: u32,
    /// Everything.
    pub unicast: bool,
    /// All groups.
    pub multicast: bool,
}

/// The physical function's driver.
pub struct Pf {
    flags: u32,
    memory: [u32; MAILBOX_WORDS],
    /// A request waits for so many looks still.
    pending: Option<u32>,
    /// The function's address; `None`: it is to bring its own.
    pub mac: Option<MacAddr>,
    /// Grants promiscuity and any number of addresses.
    pub trusts: bool,
    /// Never answers.
    pub silent: bool,
    /// Sends a control message before the next answer.
    pub chats: bool,
    /// A message that waits until the one before has been read.
    next: Option<[u32; MAILBOX_WORDS]>,
    /// What the function has.
    pub granted: Granted,
}

impl Pf {
    /// One that assigns this address.
    pub fn new(mac: MacAddr) -> Self {
        let mac = Some(mac).filter(|mac| mac.0 != [0; 6]);
        let granted = Granted::default();
        let memory = [0; MAILBOX_WORDS];
        let next = None;
        Pf { flags: 0, memory, pending: None, mac, trusts: false, silent: false, chats: false, next, granted }
    }

    /// The function has been reset: nothing of what it had is left.
    pub fn function_reset(&mut self) {
        self.granted = Granted::default();
        self.pending = None;
        self.flags = if self.flags & v2p::RSTI != 0 { v2p::RSTI } else { v2p::RSTD };
    }

    /// The physical function goes into reset, and takes everything with it.
    pub fn begin_reset(&mut self) {
        self.function_reset();
        self.flags = v2p::RSTI;
    }

    /// Its driver has set it up again.
    pub fn end_reset(&mut self) {
        self.flags = v2p::RSTD;
    }

    /// A control message, as after a change of the link.
    pub fn ping(&mut self) {
        self.memory[0] = CONTROL | if self.granted.known { CTS } else { 0 };
        self.flags |= v2p::PFSTS;
    }

    /// Reads the flags; some clear.
    pub fn read_flags(&mut self) -> u32 {
        match self.pending {
            Some(0) => {
                self.pending = None;
                self.answer();
            }
            Some(looks) => self.pending = Some(looks - 1),
            None => {}
        }
        let flags = self.flags;
        self.flags &= !v2p::READ_TO_CLEAR;
        flags
    }

    /// Writes the flags.
    pub fn write_flags(&mut self, value: u32) {
        if value & v2p::VFU != 0 {
            self.flags |= v2p::VFU;
        } else {
            self.flags &= !v2p::VFU;
        }
        if value & v2p::REQ != 0 && !self.silent {
            self.pending = Some(LOOKS);
        }
        if value & v2p::ACK != 0
            && let Some(next) = self.next.take()
        {
            self.memory = next;
            self.flags |= v2p::PFSTS;
        }
    }

    /// A word of the memory.
    pub fn read(&self, word: usize) -> u32 {
        self.memory[word]
    }

    /// Writes a word of the memory.
    pub fn write(&mut self, word: usize, value: u32) {
        assert!(self.flags & v2p::VFU != 0, "the memory is written by who holds it");
        self.memory[word] = value;
    }

    fn answer(&mut self) {
        self.flags |= v2p::PFACK | v2p::PFSTS;
        self.decide();
        if std::mem::take(&mut self.chats) {
            self.next = Some(self.memory);
            self.ping();
        }
    }

    fn decide(&mut self) {
        let [word, low, high] = [self.memory[0], self.memory[1], self.memory[2]];
        let ([a, b, c, d], [e, f, ..]) = (low.to_le_bytes(), high.to_le_bytes());
        let address = MacAddr([a, b, c, d, e, f]);
        let (kind, info) = (word & 0xffff, word >> 16 & 0xff);
        let granted = match (kind, info) {
            (1, _) => {
                self.granted = Granted { known: true, ..Granted::default() };
                let bytes = self.mac.unwrap_or(MacAddr([0; 6])).0;
                self.memory[1] = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                self.memory[2] = u32::from_le_bytes([bytes[4], bytes[5], 0, 0]);
                self.mac.is_some()
            }
            _ if !self.granted.known => false,
            (2, 0) => {
                let takes = self.mac.is_none() || self.mac == Some(address);
                self.mac = self.mac.or(Some(address));
                takes
            }
            (2, _) if address.0 == [0; 6] || address.0[0] & 1 == 1 => false,
            (2, 1) => {
                self.granted.more.clear();
                true
            }
            (2, 2) => {
                let room = self.trusts || self.granted.more.len() < 3;
                self.granted.more.extend(Some(address).filter(|_| room));
                room
            }
            (3, _) => true,
            (4, on) => {
                self.granted.vlans.retain(|vid| u32::from(*vid) != low);
                self.granted.vlans.extend((on == 1).then_some(low as u16));
                true
            }
            (5, _) => {
                self.granted.max_frame = low;
                true
            }
            (6, what) => {
                self.granted.multicast = what & 2 != 0;
                self.granted.unicast = what & 1 != 0 && self.trusts;
                what & 1 == 0 || self.trusts
            }
            _ => false,
        };
        let known = if self.granted.known { CTS } else { 0 };
        self.memory[0] = word | known | if granted { ACK } else { NACK };
    }
}
