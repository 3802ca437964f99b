//! From reset to link (8254x chapter 14, 82574 4.6). Control thread only; every wait has a deadline.

use std::time::Duration;

use super::desc::{ExtendedRx, LegacyRx, Tx};
use super::regs::*;
use super::{counters, regs};
use crate::intel::common::{self, Addresses, Rings};
use crate::intel::desc::RxFormat;
use crate::intel::nic::{Chip, Limits, RingPlace};
use crate::intel::phy;
use crate::mac::MacAddr;
use crate::nic::counters::Row;
use crate::nic::filters::Program;
use crate::nic::regs::{Block, Doorbell};
use crate::nic::tags::Switch;
use crate::nic::wait::{GONE, WaitError};
use crate::pci::{PciFunction, Registers};
use crate::port::{Link, PortError};

const RESET_DEADLINE: Duration = Duration::from_secs(1);
const EEPROM_DEADLINE: Duration = Duration::from_millis(500);
const PHY_DEADLINE: Duration = Duration::from_millis(100);
/// 82574 5.2.3.3: pending DMA ends within this, or the reset ends it.
const MASTER_DEADLINE: Duration = Duration::from_millis(100);
/// No register is touched this soon after a reset (8254x 13.4.1).
const AFTER_RESET: Duration = Duration::from_millis(2);
/// MSI-X vectors of the 82574: two receive, two transmit queues, everything else.
const N_VECTORS: usize = 5;

/// What differs between the chips.
pub trait Kind: Send + 'static {
    /// Its receive descriptors.
    type Rx: RxFormat;
    /// What it can do.
    const LIMITS: Limits;
    /// It is an 82574.
    const PCIE: bool;
    /// [`EERD`]: the word has been read; shift of its address.
    const EERD: (u32, u32);
}

/// 82540, 82545.
pub enum K8254x {}
/// 82574.
pub enum K82574 {}

impl Kind for K8254x {
    type Rx = LegacyRx;
    const LIMITS: Limits = Limits {
        driver: "e1000",
        max_frame_bytes: 9230,
        n_queue_pairs: 1,
        n_exact_filters: 16,
        ring_size: 512,
        n_vectors: 0,
    };
    const PCIE: bool = false;
    const EERD: (u32, u32) = (1 << 4, 8);
}

impl Kind for K82574 {
    type Rx = ExtendedRx;
    const LIMITS: Limits = Limits {
        driver: "e1000e",
        max_frame_bytes: 9230,
        n_queue_pairs: 2,
        n_exact_filters: 16,
        ring_size: 512,
        n_vectors: N_VECTORS,
    };
    const PCIE: bool = true;
    const EERD: (u32, u32) = (1 << 1, 2);
}

/// The registers of one card.
pub struct E1000<K, B> {
    regs: Block<B>,
    /// The rest of RCTL, which the filters are part of.
    rctl: u32,
    kind: std::marker::PhantomData<fn() -> K>,
}

const ADDRESSES: Addresses = Addresses { low: RAL, high: RAH };
const RX_RINGS: Rings = Rings { base_low: RDBAL, base_high: RDBAH, len: RDLEN, head: RDH, tail: RDT };
const TX_RINGS: Rings = Rings { base_low: TDBAL, base_high: TDBAH, len: TDLEN, head: TDH, tail: TDT };

/// Maps BAR 0.
fn map<F: PciFunction>(function: &F) -> Result<Block<F::Bar>, PortError> {
    let short = || PortError::new(function.address(), "BAR 0 is too short for its registers", "");
    Block::new(function.map_bar(0)?, 0, regs::LEN_BYTES).ok_or_else(short)
}

impl<K: Kind, B: Registers> E1000<K, B> {
    /// Maps the registers, which answer once memory decoding is on.
    pub fn new<F: PciFunction<Bar = B>>(function: &F) -> Result<Self, PortError> {
        Ok(E1000 { regs: map(function)?, rctl: 0, kind: std::marker::PhantomData })
    }

    fn mask_interrupts(&self) {
        self.regs.write(IMC, u32::MAX);
        self.regs.read(ICR);
    }

    /// 82574 5.2.3.3: asks for the end of DMA, and goes on without it when it does not come: the reset is next.
    fn end_dma(&self) -> Result<(), WaitError> {
        self.regs.change(CTRL, 0, ctrl::MASTER_DISABLE);
        common::even_if_late(
            self.regs.wait(STATUS, status::MASTER_ENABLE, 0, MASTER_DEADLINE),
            "pending DMA is cut off by the reset",
        )
    }

    /// 82574 10.2.2.18: PHY and EEPROM are shared with firmware. Without an answer of it in time it isn't there.
    fn own_phy(&self) -> Result<(), WaitError> {
        self.regs.change(EXTCNF_CTRL, 0, extcnf::SW_OWNS);
        common::even_if_late(
            self.regs.wait(EXTCNF_CTRL, extcnf::SW_OWNS, extcnf::SW_OWNS, PHY_DEADLINE),
            "firmware does not give PHY and EEPROM away; going on",
        )
    }

    fn disown_phy(&self) {
        self.regs.change(EXTCNF_CTRL, extcnf::SW_OWNS, 0);
    }

    fn eeprom_word(&self, word: u32) -> Option<u16> {
        let (done, shift) = K::EERD;
        self.regs.write(EERD, word << shift | 1);
        self.regs.wait(EERD, done, done, EEPROM_DEADLINE).ok()?;
        Some((self.regs.read(EERD) >> 16) as u16)
    }

    /// 82574 4.6, bits that have to be set differently from their defaults.
    fn init_bits(&self) {
        self.regs.change(CTRL, 1 << 29, 0);
        self.regs.change(CTRL_EXT, 1 << 23, 1 << 22);
        self.regs.change(GCR, 0, 1 << 22);
        self.regs.change(TARC.at(0), 0xf << 27, 1 << 26);
        self.regs.change(TARC.at(1), 3 << 29, 0);
    }

    /// 82574 7.1.11: spreads flows over `n` queues; bit 7 of an entry is the queue.
    fn spread(&self, n: u16) {
        const QUEUE_1: u32 = 0x8000_8000;
        /// RSS with two queues, over IPv4, IPv6 and TCP on both.
        const MRQC_RSS: u32 = 1 | 0x1f << 16;
        (0..RSSRK.len()).for_each(|i| self.regs.write(RSSRK.at(i), common::RSS_KEY));
        (0..RETA.len()).for_each(|i| self.regs.write(RETA.at(i), if n > 1 { QUEUE_1 } else { 0 }));
        self.regs.write(MRQC, if n > 1 { MRQC_RSS } else { 0 });
    }
}

impl<K: Kind, B: Registers> Chip for E1000<K, B> {
    type Bar = B;
    type Rx = K::Rx;
    type Tx = Tx;
    const TAGS: Switch = Switch::One;

    fn limits(&self) -> Limits {
        K::LIMITS
    }

    fn regs(&self) -> &Block<B> {
        &self.regs
    }

    fn counters(&self) -> &'static [Row] {
        counters::ROWS
    }

    fn reset(&mut self) -> Result<(), WaitError> {
        if self.is_gone() {
            return Err(WaitError::Gone { register: STATUS.name });
        }
        self.mask_interrupts();
        self.regs.write(RCTL, 0);
        self.regs.write(TCTL, tctl::PSP);
        if K::PCIE {
            self.end_dma()?;
            self.own_phy()?;
        }
        self.regs.change(CTRL, 0, ctrl::RST);
        std::thread::sleep(AFTER_RESET);
        self.regs.wait(CTRL, ctrl::RST, 0, RESET_DEADLINE)?;
        if K::PCIE {
            self.regs.wait(EECD, eecd::ARD, eecd::ARD, EEPROM_DEADLINE)?;
            self.disown_phy();
        }
        self.mask_interrupts();
        Ok(())
    }

    /// The reset has loaded the first receive address from the EEPROM; where it hasn't, the EEPROM itself is asked.
    fn mac(&self) -> Option<MacAddr> {
        if let Some(loaded) = ADDRESSES.loaded(&self.regs) {
            return Some(loaded);
        }
        let words = [self.eeprom_word(0)?, self.eeprom_word(1)?, self.eeprom_word(2)?];
        let [[a, b], [c, d], [e, f]] = words.map(u16::to_le_bytes);
        Some(MacAddr([a, b, c, d, e, f])).filter(|mac| common::is_valid(*mac))
    }

    fn init(&mut self, n_queue_pairs: u16) -> Result<(), WaitError> {
        self.regs.change(
            CTRL,
            ctrl::LRST | ctrl::FRCSPD | ctrl::FRCDPX | ctrl::RFCE | ctrl::TFCE | ctrl::VME,
            ctrl::SLU | ctrl::ASDE | ctrl::FD,
        );
        self.regs.write(VET, common::TPID);
        // Flow control would let a slow guest stop the wire for all.
        self.regs.write(FCAL, 0);
        self.regs.write(FCAH, 0);
        self.regs.write(FCT, 0);
        self.regs.write(FCTTV, 0);
        phy::wake(&self.regs, MDIC)?;
        (0..MTA.len()).for_each(|i| self.regs.write(MTA.at(i), 0));
        (0..VFTA.len()).for_each(|i| self.regs.write(VFTA.at(i), 0));
        let mut rxcsum = rxcsum::IPOFL | rxcsum::TUOFL;
        if K::PCIE {
            self.init_bits();
            self.spread(n_queue_pairs);
            rxcsum |= if n_queue_pairs > 1 { rxcsum::PCSD } else { 0 };
            self.regs.write(PSRCTL, 0);
            // One format, chosen and read back: the others lay descriptors out differently.
            let format = rfctl::EXSTEN | rfctl::ACK_DIS;
            self.regs.write(RFCTL, format);
            self.regs.wait(RFCTL, rfctl::EXSTEN, rfctl::EXSTEN, PHY_DEADLINE)?;
        }
        self.regs.write(RXCSUM, rxcsum);
        self.regs.write(RADV, 0);
        self.rctl = rctl::BAM | rctl::LPE | rctl::SECRC;
        let mulr = if K::PCIE { tctl::MULR } else { 0 };
        self.regs.write(TCTL, tctl::PSP | tctl::COLLISIONS | tctl::RTLC | mulr);
        self.regs.write(TIPG, 8 | 8 << 10 | 6 << 20);
        Ok(())
    }

    fn rx_queue(&mut self, place: RingPlace) -> Result<Doorbell<B>, WaitError> {
        let q = usize::from(place.queue);
        let tail = RX_RINGS.place(&self.regs, place);
        self.regs.write(RDTR.at(q), 0);
        // Descriptors are fetched eight at a time and written back at once.
        self.regs.write(RXDCTL.at(q), dctl::GRAN | 8 << 8 | 8);
        Ok(tail)
    }

    fn tx_queue(&mut self, place: RingPlace) -> Result<Doorbell<B>, WaitError> {
        let q = usize::from(place.queue);
        let tail = TX_RINGS.place(&self.regs, place);
        let count = if K::PCIE { dctl::COUNT } else { 0 };
        self.regs.write(TXDCTL.at(q), dctl::GRAN | count | 1 << 8 | 31);
        Ok(tail)
    }

    fn filter(&mut self, program: &Program) {
        ADDRESSES.write(&self.regs, &program.exact);
        self.rctl &= !(rctl::UPE | rctl::MPE);
        self.rctl |= if program.promiscuous { rctl::UPE } else { 0 };
        self.rctl |= if program.all_multicast { rctl::MPE } else { 0 };
        if self.regs.read(RCTL) & rctl::EN != 0 {
            self.regs.write(RCTL, self.rctl | rctl::EN);
        }
    }

    fn strip_tags(&mut self, queues: u32) {
        let (clear, set) = if queues == 0 { (ctrl::VME, 0) } else { (0, ctrl::VME) };
        self.regs.change(CTRL, clear, set);
        self.regs.read(CTRL); // the write has arrived
    }

    fn enable(&mut self, vectors: usize) -> Result<(), WaitError> {
        if vectors == N_VECTORS {
            // Each cause has four bits: the vector, and that it is valid (82574 10.2.4.9).
            let other = ((vectors as u32 - 1) | 8) << 16;
            self.regs.write(IVAR, other);
            self.regs.write(EIAC, 0);
            self.regs.write(IMS, cause::LSC | cause::OTHER);
        }
        self.regs.change(TCTL, 0, tctl::EN);
        self.regs.write(RCTL, self.rctl | rctl::EN);
        Ok(())
    }

    fn link(&mut self) -> Link {
        common::gigabit_link(self.regs.read(STATUS))
    }

    fn acknowledge(&mut self) {
        let causes = self.regs.read(ICR);
        self.regs.write(ICR, causes & (cause::LSC | cause::OTHER));
        self.regs.write(IMS, cause::LSC | cause::OTHER);
    }

    fn is_gone(&self) -> bool {
        self.regs.read(STATUS) == GONE
    }

    fn remap<F: PciFunction<Bar = B>>(&mut self, function: &F) -> Result<(), PortError> {
        self.regs = map(function)?;
        Ok(())
    }
}
