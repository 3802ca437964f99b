//! Parts of a card that firmware and the drivers of other ports use too (82576 4.5.12, 82599 4.6.11.1): a word that says
//! who holds what, and a semaphore over that word. Control thread only; every wait has a deadline.

use std::time::{Duration, Instant};

use crate::nic::regs::{Block, Reg, Rw};
use crate::nic::wait::WaitError;
use crate::pci::Registers;

const DEADLINE: Duration = Duration::from_millis(200);
/// Of the semaphore: held between drivers; a read that finds it clear takes it.
const SMBI: u32 = 1;
/// Of the semaphore: held between driver and firmware.
const SWESMBI: u32 = 1 << 1;

/// Where a family has both.
pub struct Semaphore {
    /// The semaphore.
    pub swsm: Reg<u32, Rw>,
    /// Who holds which part.
    pub holders: Reg<u32, Rw>,
    /// Distance from software's bits to firmware's.
    pub firmware_shift: u32,
}

/// Holds a part until dropped.
pub struct Held<'a, B: Registers> {
    regs: &'a Block<B>,
    semaphore: &'a Semaphore,
    part: u32,
}

impl Semaphore {
    /// Does something to the word while nobody else does.
    fn with<B: Registers, T>(&self, regs: &Block<B>, then: impl FnOnce() -> T) -> Result<T, WaitError> {
        let taken = regs.wait(self.swsm, SMBI, 0, DEADLINE).and_then(|()| {
            regs.write(self.swsm, SMBI | SWESMBI);
            regs.wait(self.swsm, SWESMBI, SWESMBI, DEADLINE)
        });
        let result = taken.map(|()| then());
        regs.write(self.swsm, 0);
        result
    }

    /// Takes a part.
    pub fn hold<'a, B: Registers>(&'a self, regs: &'a Block<B>, part: u32) -> Result<Held<'a, B>, WaitError> {
        let mask = part | part << self.firmware_shift;
        let end = Instant::now() + DEADLINE;
        loop {
            let read = self.with(regs, || {
                let read = regs.read(self.holders);
                if read & mask == 0 {
                    regs.write(self.holders, read | part);
                }
                read
            })?;
            if read & mask == 0 {
                return Ok(Held { regs, semaphore: self, part });
            }
            if Instant::now() >= end {
                let register = self.holders.name;
                return Err(WaitError::Late { register, mask, wanted: 0, read, deadline: DEADLINE });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl<B: Registers> Drop for Held<'_, B> {
    fn drop(&mut self) {
        let released = self.semaphore.with(self.regs, || {
            let now = self.regs.read(self.semaphore.holders);
            self.regs.write(self.semaphore.holders, now & !self.part);
        });
        if let Err(error) = released {
            tracing::warn!(%error, "a part shared with firmware can't be given back");
        }
    }
}
