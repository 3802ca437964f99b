//! The mailbox to the physical function's driver (82576 7.8.2.9): sixteen words that both sides write in turns, and
//! flags. Control thread only; every wait has a deadline.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::regs::*;
use crate::mac::MacAddr;
use crate::nic::regs::Block;
use crate::nic::wait::{self, GONE, WaitError};
use crate::pci::Registers;

/// The other side answers in an interrupt handler or a work queue of its kernel.
const ANSWER_DEADLINE: Duration = Duration::from_millis(1000);
/// The other side holds the memory for as long as it copies a message.
const LOCK_DEADLINE: Duration = Duration::from_millis(20);

/// In a word that answers: done.
pub const ACK: u32 = 1 << 31;
/// In a word that answers: refused.
pub const NACK: u32 = 1 << 30;
/// In all words from the other side: it still knows us. Without it, it wants [`Request::Reset`].
const CTS: u32 = 1 << 29;
/// Bits that say which request it is.
const ID: u32 = 0xffff;

/// What can be asked of the physical function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// This function has been reset: what is its address?
    Reset,
    /// Its own address.
    SetMac(MacAddr),
    /// No further addresses. The one it brings means nothing, but Linux wants it to be one a card can have.
    ClearMacFilters(MacAddr),
    /// One further address.
    AddMacFilter(MacAddr),
    /// No groups by hash.
    ClearGroups,
    /// Frames of this VLAN, or no longer.
    SetVlan(u16, bool),
    /// Longest frame in bytes, with FCS.
    SetMaxFrame(u32),
    /// Everything, or all groups.
    SetPromiscuous {
        /// Unicast.
        unicast: bool,
        /// Groups.
        multicast: bool,
    },
}

impl Request {
    fn words(&self) -> [u32; 3] {
        let address = |word, MacAddr([a, b, c, d, e, f]): MacAddr| {
            [word, u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0])]
        };
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        match *self {
            Request::Reset => [1, 0, 0],
            Request::SetMac(mac) => address(2, mac),
            Request::ClearMacFilters(any) => address(2 | 1 << 16, any),
            Request::AddMacFilter(mac) => address(2 | 2 << 16, mac),
            Request::ClearGroups => [3, 0, 0],
            Request::SetVlan(vid, on) => [4 | bit(on, 1 << 16), vid.into(), 0],
            Request::SetMaxFrame(len_bytes) => [5, len_bytes, 0],
            Request::SetPromiscuous { unicast, multicast } => {
                [6 | bit(unicast, 1 << 16) | bit(multicast, 2 << 16), 0, 0]
            }
        }
    }
}

/// What came in without being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// The physical function is in reset: nobody answers now.
    InReset,
    /// It has been reset, or has forgotten this function: everything has to be asked for again.
    Forgotten,
}

/// Flags that were read, which cleared them, and not looked at yet.
#[derive(Default)]
pub struct Mailbox {
    seen: Cell<u32>,
}

impl Mailbox {
    fn flags<B: Registers>(&self, regs: &Block<B>) -> u32 {
        let read = regs.read(V2PMAILBOX);
        if read == GONE {
            return GONE;
        }
        self.seen.set(self.seen.get() | read & v2p::READ_TO_CLEAR);
        read | self.seen.get()
    }

    /// A message that is no answer: whether the other side still knows us is kept for [`news`](Self::news).
    fn note(&self, first: u32) {
        if first & CTS == 0 {
            self.seen.set(self.seen.get() | v2p::RSTD);
        }
    }

    /// What came before doesn't matter: this function is known anew.
    pub fn settle(&self) {
        self.seen.set(0);
    }

    fn forget(&self, flags: u32) {
        self.seen.set(self.seen.get() & !flags);
    }

    fn wait<B: Registers>(
        &self,
        regs: &Block<B>,
        mask: u32,
        wanted: u32,
        deadline: Duration,
    ) -> Result<(), WaitError> {
        wait::until(|| self.flags(regs), V2PMAILBOX.name, mask, wanted, deadline)
    }

    fn lock<B: Registers>(&self, regs: &Block<B>) -> Result<(), WaitError> {
        let take = || {
            regs.write(V2PMAILBOX, v2p::VFU);
            self.flags(regs)
        };
        wait::until(take, V2PMAILBOX.name, v2p::VFU, v2p::VFU, LOCK_DEADLINE)
    }

    /// Takes the message that lies there.
    fn read<B: Registers>(&self, regs: &Block<B>) -> Result<[u32; 3], WaitError> {
        self.lock(regs)?;
        self.forget(v2p::PFSTS);
        let words = [0, 1, 2].map(|n| regs.read(VMBMEM.at(n)));
        regs.write(V2PMAILBOX, v2p::ACK);
        Ok(words)
    }

    /// After a reset of this function: waits until the physical function is there.
    pub fn wait_for_pf<B: Registers>(&self, regs: &Block<B>) -> Result<(), WaitError> {
        self.wait(regs, v2p::RSTI, 0, ANSWER_DEADLINE)
    }

    /// Asks and waits for the answer: its words, the first with [`ACK`] or [`NACK`].
    pub fn ask<B: Registers>(&self, regs: &Block<B>, request: &Request) -> Result<[u32; 3], WaitError> {
        let words = request.words();
        self.lock(regs)?;
        if self.flags(regs) & v2p::PFSTS != 0 {
            self.note(regs.read(VMBMEM.at(0)));
        }
        for (n, word) in words.iter().enumerate() {
            regs.write(VMBMEM.at(n), *word);
        }
        self.forget(v2p::PFSTS | v2p::PFACK);
        regs.write(V2PMAILBOX, v2p::REQ);
        self.wait(regs, v2p::PFACK, v2p::PFACK, ANSWER_DEADLINE)?;
        self.forget(v2p::PFACK);
        let end = Instant::now() + ANSWER_DEADLINE;
        loop {
            self.wait(regs, v2p::PFSTS, v2p::PFSTS, ANSWER_DEADLINE)?;
            let answer = self.read(regs)?;
            let [first, ..] = answer;
            if first & ID == words[0] & ID && first & (ACK | NACK) != 0 {
                return Ok(answer);
            }
            // Something else that was under way. An answer is to come still.
            self.note(first);
            if Instant::now() >= end {
                let (register, mask) = (VMBMEM.at(0).name, ID | ACK);
                let wanted = words[0] & ID | ACK;
                return Err(WaitError::Late {
                    register,
                    mask,
                    wanted,
                    read: first,
                    deadline: ANSWER_DEADLINE,
                });
            }
        }
    }

    /// Looks whether anything came in. One read of a register, most of the time.
    pub fn news<B: Registers>(&self, regs: &Block<B>) -> News {
        let flags = self.flags(regs);
        if flags == GONE {
            return News::None; // the device is gone, which others find out
        }
        if flags & v2p::RSTI != 0 {
            return News::InReset;
        }
        if flags & v2p::RSTD != 0 {
            self.forget(v2p::RSTD);
            return News::Forgotten;
        }
        if flags & v2p::PFSTS == 0 {
            return News::None;
        }
        // A collision with the other side: the flag stays, and the next look takes it.
        match self.read(regs) {
            Ok([first, ..]) if first & CTS == 0 => News::Forgotten,
            _ => News::None,
        }
    }
}
