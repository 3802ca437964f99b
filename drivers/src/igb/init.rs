//! From reset to link (82576 4.5). Control thread only; every wait has a deadline.

use std::time::Duration;

use super::desc::{AdvancedTx, GigabitRx};
use super::regs::*;
use super::{Kind, counters, regs};
use crate::dma::DATA_ROOM;
use crate::intel::common::{self, Addresses, Rings};
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
/// 82576 5.2.5.3: pending DMA ends within this, or the reset ends it.
const MASTER_DEADLINE: Duration = Duration::from_millis(100);
/// A link that the PHY has shows in the MAC within this after a reset.
const LINK_SHOWS: Duration = Duration::from_millis(20);
const QUEUE_DEADLINE: Duration = Duration::from_millis(100);
/// Registers are not touched this soon after a reset (82576 4.2.1.6.1).
const AFTER_RESET: Duration = Duration::from_millis(5);
/// Longest frame, without FCS.
const MAX_FRAME_BYTES: u32 = 9230;
/// One, for the link.
const N_VECTORS: usize = 1;

/// The registers of one card.
pub struct Igb<B> {
    regs: Block<B>,
    kind: Kind,
    /// The rest of RCTL, which the filters are part of.
    rctl: u32,
    n_queue_pairs: u16,
}

const ADDRESSES: Addresses = Addresses { low: RAL, high: RAH };
const ADDRESSES_24: Addresses = Addresses { low: RAL_24, high: RAH_24 };
const ADDRESSES_32: Addresses = Addresses { low: RAL_32, high: RAH_32 };
const RX_RINGS: Rings = Rings { base_low: RDBAL, base_high: RDBAH, len: RDLEN, head: RDH, tail: RDT };
const TX_RINGS: Rings = Rings { base_low: TDBAL, base_high: TDBAH, len: TDLEN, head: TDH, tail: TDT };

/// Maps BAR 0.
fn map<F: PciFunction>(function: &F) -> Result<Block<F::Bar>, PortError> {
    let short = || PortError::new(function.address(), "BAR 0 is too short for its registers", "");
    Block::new(function.map_bar(0)?, 0, regs::LEN_BYTES).ok_or_else(short)
}

impl<B: Registers> Igb<B> {
    /// Maps the registers, which answer once memory decoding is on.
    pub fn new<F: PciFunction<Bar = B>>(function: &F, kind: Kind) -> Result<Self, PortError> {
        Ok(Igb { regs: map(function)?, kind, rctl: 0, n_queue_pairs: 0 })
    }

    fn mask_interrupts(&self) {
        self.regs.write(EIMC, u32::MAX);
        self.regs.write(IMC, u32::MAX);
        self.regs.read(ICR);
        self.regs.read(EICR);
    }

    /// 82576 5.2.5.3: asks for the end of DMA, and goes on without it when it does not come: the reset is next.
    fn end_dma(&self) -> Result<(), WaitError> {
        self.regs.write(RCTL, 0);
        self.regs.write(TCTL, tctl::PSP);
        self.regs.change(CTRL, 0, ctrl::GIO_DIS);
        common::even_if_late(
            self.regs.wait(STATUS, status::GIO, 0, MASTER_DEADLINE),
            "pending DMA is cut off by the reset",
        )
    }

    /// 82576 4.5.7: what is behind the MAC is known from the EEPROM.
    fn set_up_link(&self) -> Result<(), WaitError> {
        let flow = ctrl::RFCE | ctrl::TFCE;
        self.regs.change(CTRL, ctrl::GIO_DIS | ctrl::VME | flow, ctrl::SLU | ctrl::FD);
        // Flow control would let a slow guest stop the wire for all.
        self.regs.write(FCAL, 0);
        self.regs.write(FCAH, 0);
        self.regs.write(FCT, 0);
        self.regs.write(FCTTV, 0);
        const COPPER: u32 = 0;
        const SGMII: u32 = 2;
        match self.regs.read(CTRL_EXT) >> ctrl_ext::LINK_MODE_SHIFT & 3 {
            COPPER => {
                self.regs.change(CTRL, ctrl::FRCSPD | ctrl::FRCDPX, 0);
                self.negotiate()
            }
            SGMII => Ok(()), // the PHY outside of the chip negotiates by itself
            _ => {
                self.regs.change(CTRL_EXT, ctrl_ext::SDP3, 0);
                self.regs.change(PCS_CFG0, 0, pcs::ENABLE);
                self.regs.change(CTRL, 0, ctrl::SPEED_1000 | ctrl::FRCSPD | ctrl::FRCDPX);
                self.regs.change(PCS_LCTL, 0, pcs::AUTONEG | pcs::RESTART);
                Ok(())
            }
        }
    }

    /// A PHY that has a link tells at once; one that doesn't, or that the kernel's driver has switched off, starts over.
    /// It is shared with firmware; when that does not give it away in time, it is left as it is.
    fn negotiate(&self) -> Result<(), WaitError> {
        if self.kind != Kind::I82576 {
            self.regs.change(PHPM, PHPM_GO_LINKD, 0);
        }
        if self.regs.wait(STATUS, status::LU, status::LU, LINK_SHOWS).is_ok() {
            return Ok(());
        }
        let port = self.regs.read(STATUS) >> status::LAN_ID_SHIFT & 3;
        match SEMAPHORE.hold(&self.regs, PHY_OF_PORT[port as usize]) {
            Ok(_held) => phy::negotiate(&self.regs, MDIC),
            Err(late) => common::even_if_late(Err(late), "the PHY is left as it is"),
        }
    }

    /// 82576 7.1.2.8: spreads flows over `n` queues.
    fn spread(&self, n: u16) {
        (0..RSSRK.len()).for_each(|i| self.regs.write(RSSRK.at(i), common::RSS_KEY));
        for i in 0..RETA.len() {
            let queue = |entry: usize| (4 * i + entry) as u32 % u32::from(n.max(1));
            self.regs.write(RETA.at(i), queue(0) | queue(1) << 8 | queue(2) << 16 | queue(3) << 24);
        }
        self.regs.write(MRQC, if n > 1 { mrqc::RSS | mrqc::FIELDS } else { 0 });
    }
}

impl<B: Registers> Chip for Igb<B> {
    type Bar = B;
    type Rx = GigabitRx;
    type Tx = AdvancedTx;
    const TAGS: Switch = Switch::One;

    fn limits(&self) -> Limits {
        Limits {
            driver: "igb",
            max_frame_bytes: MAX_FRAME_BYTES,
            n_queue_pairs: self.kind.n_queue_pairs(),
            n_exact_filters: self.kind.n_exact_filters(),
            ring_size: 512,
            n_vectors: N_VECTORS,
        }
    }

    fn regs(&self) -> &Block<B> {
        &self.regs
    }

    fn counters(&self) -> &'static [Row] {
        counters::rows(self.kind)
    }

    fn reset(&mut self) -> Result<(), WaitError> {
        if self.is_gone() {
            return Err(WaitError::Gone { register: STATUS.name });
        }
        self.mask_interrupts();
        self.end_dma()?;
        self.regs.change(CTRL, 0, ctrl::RST);
        std::thread::sleep(AFTER_RESET);
        self.regs.wait(CTRL, ctrl::RST, 0, RESET_DEADLINE)?;
        common::even_if_late(
            self.regs.wait(EECD, EECD_ARD, EECD_ARD, EEPROM_DEADLINE),
            "the card does without an EEPROM",
        )?;
        self.mask_interrupts();
        Ok(())
    }

    /// The reset has loaded the first receive address from the EEPROM.
    fn mac(&self) -> Option<MacAddr> {
        ADDRESSES.loaded(&self.regs)
    }

    fn init(&mut self, n_queue_pairs: u16) -> Result<(), WaitError> {
        self.n_queue_pairs = n_queue_pairs;
        self.regs.change(CTRL_EXT, 0, ctrl_ext::RO_DIS | ctrl_ext::DRV_LOAD);
        self.set_up_link()?;
        self.regs.change(VET, 0xffff, common::TPID); // above it: that of outer tags, which are not used
        (0..MTA.len()).for_each(|i| self.regs.write(MTA.at(i), 0));
        (0..UTA.len()).for_each(|i| self.regs.write(UTA.at(i), 0));
        self.regs.write(VT_CTL, 0);
        self.regs.write(RXCSUM, rxcsum::IPOFL | rxcsum::TUOFL | rxcsum::PCSD);
        self.regs.change(RFCTL, 0, RFCTL_IPV6_EX_DIS);
        self.spread(n_queue_pairs);
        self.regs.write(RLPML, MAX_FRAME_BYTES + 4);
        self.rctl = rctl::BAM | rctl::LPE | rctl::SECRC;
        self.regs.write(TCTL, tctl::PSP | tctl::COLLISIONS | tctl::RTLC);
        Ok(())
    }

    fn rx_queue(&mut self, place: RingPlace) -> Result<Doorbell<B>, WaitError> {
        let q = usize::from(place.queue);
        let tail = RX_RINGS.place(&self.regs, place);
        // The done bit must not overtake the frame.
        self.regs.change(RXCTL.at(q), dca::RX_RELAXED, 0);
        if self.kind.strips_by_queue() {
            self.regs.change(DVMOLR.at(q), 0, DVMOLR_STRCRC);
        }
        // With several queues, one that is not polled must not hold up the others.
        let drop_en = if self.n_queue_pairs > 1 { srrctl::DROP_EN } else { 0 };
        let format = srrctl::ADVANCED | (DATA_ROOM / 1024) as u32;
        self.regs.write(SRRCTL.at(q), format | drop_en);
        // One format, chosen and read back: the others lay descriptors out differently.
        self.regs.wait(SRRCTL.at(q), srrctl::FORMAT, format, QUEUE_DEADLINE)?;
        self.regs.write(RXDCTL.at(q), dctl::RX_THRESHOLDS);
        Ok(tail)
    }

    fn tx_queue(&mut self, place: RingPlace) -> Result<Doorbell<B>, WaitError> {
        let q = usize::from(place.queue);
        let tail = TX_RINGS.place(&self.regs, place);
        self.regs.write(TDWBAL.at(q), 0);
        self.regs.change(TXCTL.at(q), dca::TX_RELAXED, 0);
        self.regs.write(TXDCTL.at(q), dctl::TX_THRESHOLDS);
        Ok(tail)
    }

    fn filter(&mut self, program: &Program) {
        let (first, more) = program.exact.split_at(program.exact.len().min(RAL.len()));
        ADDRESSES.write(&self.regs, first);
        match self.kind {
            Kind::I82576 => ADDRESSES_24.write(&self.regs, more),
            Kind::I350 => ADDRESSES_32.write(&self.regs, more),
            Kind::I210 | Kind::I211 => {}
        }
        self.rctl &= !(rctl::UPE | rctl::MPE);
        self.rctl |= if program.promiscuous { rctl::UPE } else { 0 };
        self.rctl |= if program.all_multicast { rctl::MPE } else { 0 };
        if self.regs.read(RCTL) & rctl::EN != 0 {
            self.regs.write(RCTL, self.rctl | rctl::EN);
        }
    }

    /// 82576 4.5.9 and 4.5.10: queues first, then receiver and transmitter.
    fn strip_tags(&mut self, queues: u32) {
        let (clear, set) = if queues == 0 { (ctrl::VME, 0) } else { (0, ctrl::VME) };
        self.regs.change(CTRL, clear, set);
        self.regs.read(CTRL); // the write has arrived
    }

    fn enable(&mut self, vectors: usize) -> Result<(), WaitError> {
        if vectors == N_VECTORS {
            self.regs.write(GPIE, gpie::MSIX_MODE | gpie::PBA_SUPPORT | gpie::NSICR);
            self.regs.write(IVAR_MISC, 0x80 << 8);
            self.regs.write(EIAC, 1);
            self.regs.write(EIAM, 0);
            self.regs.write(EIMS, 1);
            self.regs.write(IMS, LSC);
        }
        for q in 0..usize::from(self.n_queue_pairs) {
            self.regs.change(TXDCTL.at(q), 0, dctl::ENABLE);
            self.regs.wait(TXDCTL.at(q), dctl::ENABLE, dctl::ENABLE, QUEUE_DEADLINE)?;
            self.regs.change(RXDCTL.at(q), 0, dctl::ENABLE);
            self.regs.wait(RXDCTL.at(q), dctl::ENABLE, dctl::ENABLE, QUEUE_DEADLINE)?;
        }
        self.regs.change(TCTL, 0, tctl::EN);
        self.regs.write(RCTL, self.rctl | rctl::EN);
        Ok(())
    }

    fn link(&mut self) -> Link {
        common::gigabit_link(self.regs.read(STATUS))
    }

    fn acknowledge(&mut self) {
        self.regs.read(ICR);
        self.regs.write(EIMS, 1);
    }

    fn is_gone(&self) -> bool {
        self.regs.read(STATUS) == GONE
    }

    fn remap<F: PciFunction<Bar = B>>(&mut self, function: &F) -> Result<(), PortError> {
        self.regs = map(function)?;
        Ok(())
    }
}
