//! From reset to link (82599 4.6). Control thread only; every wait has a deadline.

use std::time::Duration;

use super::desc::{AdvancedTx, TenGigabitRx};
use super::module::{self, Module};
use super::regs::*;
use super::{Kind, counters, regs};
use crate::dma::DATA_ROOM;
use crate::intel::common::{self, Addresses, Rings};
use crate::intel::nic::{Chip, Limits, RingPlace};
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
/// 82599 5.2.5.3.2: pending DMA ends within this, or the reset ends it.
const MASTER_DEADLINE: Duration = Duration::from_millis(100);
const QUEUE_DEADLINE: Duration = Duration::from_millis(100);
/// 82599 8.2.3.1.1: registers are not touched this soon after a reset.
const AFTER_RESET: Duration = Duration::from_millis(10);
const NEGOTIATION_DEADLINE: Duration = Duration::from_millis(40);
/// Longest frame, without FCS.
const MAX_FRAME_BYTES: u32 = 9230;
const N_VECTORS: usize = 1;
const TX_BUFFER_KIB: u32 = 160;

/// What sits between the card and the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// KX4, KR, XAUI: the chip negotiates.
    Backplane,
    /// A cage for SFP+ modules.
    SfpPlus,
    /// CX4, QSFP+ or a copper PHY: firmware or cable decide, and only [`LINKS`] tells.
    Other,
}

/// The registers of one card.
pub struct Ixgbe<B> {
    regs: Block<B>,
    kind: Kind,
    media: Media,
    /// What the link was last set up for.
    module: Option<Module>,
    n_queue_pairs: u16,
}

const ADDRESSES: Addresses = Addresses { low: RAL, high: RAH };
const RX_RINGS: Rings = Rings { base_low: RDBAL, base_high: RDBAH, len: RDLEN, head: RDH, tail: RDT };
const TX_RINGS: Rings = Rings { base_low: TDBAL, base_high: TDBAH, len: TDLEN, head: TDH, tail: TDT };

/// Maps BAR 0.
fn map<F: PciFunction>(function: &F) -> Result<Block<F::Bar>, PortError> {
    let short = || PortError::new(function.address(), "BAR 0 is too short for its registers", "");
    Block::new(function.map_bar(0)?, 0, regs::LEN_BYTES).ok_or_else(short)
}

impl<B: Registers> Ixgbe<B> {
    /// Maps the registers, which answer once memory decoding is on.
    pub fn new<F: PciFunction<Bar = B>>(function: &F, kind: Kind, media: Media) -> Result<Self, PortError> {
        Ok(Ixgbe { regs: map(function)?, kind, media, module: None, n_queue_pairs: 0 })
    }

    fn mask_interrupts(&self) {
        self.regs.write(EIMC, u32::MAX);
        (0..EIMC_EX.len()).for_each(|i| self.regs.write(EIMC_EX.at(i), u32::MAX));
        self.regs.read(EICR);
    }

    /// 82599 5.2.5.3.2: asks for the end of DMA, and goes on without it when it does not come: the reset is next.
    fn end_dma(&self) -> Result<(), WaitError> {
        self.regs.write(RXCTRL, 0);
        for queue in 0..N_QUEUES {
            self.regs.write(TXDCTL.at(queue), dctl::SWFLSH);
            self.regs.change(RXDCTL.at(queue), dctl::ENABLE, dctl::SWFLSH);
        }
        self.regs.change(CTRL, 0, ctrl::GIO_DIS);
        common::even_if_late(
            self.regs.wait(STATUS, status::GIO, 0, MASTER_DEADLINE),
            "pending DMA is cut off by the reset",
        )
    }

    /// 82599 4.6.7: filters and tables.
    fn init_receive(&self, n_queue_pairs: u16) {
        (0..MTA.len()).for_each(|i| self.regs.write(MTA.at(i), 0));
        (0..VFTA.len()).for_each(|i| self.regs.write(VFTA.at(i), 0));
        (0..PFUTA.len()).for_each(|i| self.regs.write(PFUTA.at(i), 0));
        self.regs.write(MCSTCTRL, 0);
        self.regs.change(VLNCTRL, 1 << 30, 0);
        (0..RXPBSIZE.len()).for_each(|i| {
            let kib = if i == 0 { self.kind.rx_buffer_kib() } else { 0 };
            self.regs.write(RXPBSIZE.at(i), kib << 10);
        });
        self.regs.write(MAXFRS, (MAX_FRAME_BYTES + 4) << 16);
        let on = hlreg0::TXCRCEN | hlreg0::RXCRCSTRP | hlreg0::JUMBOEN | hlreg0::TXPADEN;
        self.regs.change(HLREG0, hlreg0::LPBK, on);
        self.regs.change(RDRXCTL, rdrxctl::RSCFRSTSIZE, rdrxctl::CRC_STRIP | rdrxctl::ALWAYS);
        self.regs.change(RXCSUM, 0, RXCSUM_PCSD);
        self.spread(n_queue_pairs);
    }

    /// 82599 7.1.2.8: spreads flows over `n` queues.
    fn spread(&self, n: u16) {
        (0..RSSRK.len()).for_each(|i| self.regs.write(RSSRK.at(i), common::RSS_KEY));
        for i in 0..RETA.len() {
            let queue = |entry: usize| (4 * i + entry) as u32 % u32::from(n.max(1));
            self.regs.write(RETA.at(i), queue(0) | queue(1) << 8 | queue(2) << 16 | queue(3) << 24);
        }
        self.regs.write(MRQC, if n > 1 { mrqc::RSSEN | mrqc::FIELDS } else { 0 });
    }

    /// 82599 4.6.8.
    fn init_transmit(&self) {
        self.regs.change(RTTDCS, 0, ARBDIS);
        self.regs.write(MTQC, 0);
        self.regs.write(DTXMXSZRQ, 0xfff);
        for i in 0..TXPBSIZE.len() {
            let kib = if i == 0 { TX_BUFFER_KIB } else { 0 };
            self.regs.write(TXPBSIZE.at(i), kib << 10);
            self.regs.write(TXPBTHRESH.at(i), kib.saturating_sub(10));
        }
        self.regs.change(RTTDCS, ARBDIS, 0);
    }

    /// 82599 4.6.4.2 and 3.7.4: laser on, link mode, negotiation. Also resets the link's pipeline, for which the mode has
    /// to change for a moment.
    fn start_link(&mut self) -> Result<(), WaitError> {
        if self.kind != Kind::I82599 {
            return Ok(()); // its PHY negotiates by itself
        }
        self.regs.change(AUTOC2, autoc::LINK_DISABLE, 0);
        let mut mode = self.regs.read(AUTOC);
        if self.media == Media::SfpPlus {
            self.regs.change(ESDP, esdp::SDP3, 0);
            mode = mode & !autoc::LMS | autoc::LMS_10G_SERIAL;
        }
        let held = SEMAPHORE.hold(&self.regs, sync::MAC_CSR)?;
        self.regs.write(AUTOC, (mode ^ autoc::LMS_FLIP) | autoc::RESTART);
        let left = |regs: &Block<B>| regs.read(ANLP1) & autoc::AN_STATE != 0;
        let end = std::time::Instant::now() + NEGOTIATION_DEADLINE;
        while !left(&self.regs) && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(4));
        }
        self.regs.write(AUTOC, mode | autoc::RESTART);
        drop(held);
        Ok(())
    }

    /// Looks into the cage, and sets the link up anew when something else is in it. Why there can be no link, if so.
    fn check_module(&mut self) -> Result<Option<String>, WaitError> {
        let module = module::identify(&self.regs)?;
        if self.module != Some(module) {
            tracing::info!(?module, "in the SFP+ cage");
            self.module = Some(module);
            if module.objection().is_none() {
                if !module::set_up(&self.regs, module)? {
                    return Ok(Some(
                        "unsupported SFP+ module: the card's EEPROM has no set-up for it".into(),
                    ));
                }
                self.start_link()?;
            }
        }
        Ok(module.objection())
    }

    fn down(&mut self) -> Link {
        let reason = match self.media {
            Media::SfpPlus => match self.check_module() {
                Ok(objection) => objection.unwrap_or_else(|| "no signal from the other end".into()),
                Err(error) => format!("the SFP+ module can't be read: {error}"),
            },
            Media::Backplane | Media::Other => "no carrier".into(),
        };
        Link::Down { reason }
    }
}

impl<B: Registers> Chip for Ixgbe<B> {
    type Bar = B;
    type Rx = TenGigabitRx;
    type Tx = AdvancedTx;
    const TAGS: Switch = Switch::EachQueue;

    fn limits(&self) -> Limits {
        Limits {
            driver: "ixgbe",
            max_frame_bytes: MAX_FRAME_BYTES,
            n_queue_pairs: N_QUEUES as u16,
            n_exact_filters: RAL.len(),
            ring_size: 512,
            n_vectors: N_VECTORS,
        }
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
        self.end_dma()?;
        self.regs.change(CTRL, 0, ctrl::RST | ctrl::LRST);
        std::thread::sleep(AFTER_RESET);
        self.regs.wait(CTRL, ctrl::RST | ctrl::LRST, 0, RESET_DEADLINE)?;
        self.regs.wait(EEC, EEC_ARD, EEC_ARD, EEPROM_DEADLINE)?;
        self.regs.wait(RDRXCTL, rdrxctl::DMAIDONE, rdrxctl::DMAIDONE, RESET_DEADLINE)?;
        self.mask_interrupts();
        self.module = None;
        Ok(())
    }

    /// The reset has loaded the first receive address from the EEPROM.
    fn mac(&self) -> Option<MacAddr> {
        ADDRESSES.loaded(&self.regs)
    }

    fn init(&mut self, n_queue_pairs: u16) -> Result<(), WaitError> {
        self.n_queue_pairs = n_queue_pairs;
        self.regs.change(CTRL, ctrl::GIO_DIS, 0);
        self.regs.change(CTRL_EXT, 0, ctrl_ext::NS_DIS | ctrl_ext::RO_DIS | ctrl_ext::DRV_LOAD);
        // Flow control would let a slow guest stop the wire for all.
        self.regs.write(FCCFG, 0);
        self.regs.write(MFLCN, 1 << 1);
        self.init_receive(n_queue_pairs);
        self.init_transmit();
        Ok(())
    }

    fn rx_queue(&mut self, place: RingPlace) -> Result<Doorbell<B>, WaitError> {
        let q = usize::from(place.queue);
        let tail = RX_RINGS.place(&self.regs, place);
        // The done bit must not overtake the frame.
        self.regs.change(DCA_RXCTRL.at(q), dca::RX_RELAXED, 0);
        self.regs.write(RSCCTL.at(q), 0);
        // With several queues, one that is not polled must not hold up the others.
        let drop_en = if self.n_queue_pairs > 1 { srrctl::DROP_EN } else { 0 };
        let format = srrctl::ADVANCED | (DATA_ROOM / 1024) as u32;
        self.regs.write(SRRCTL.at(q), format | drop_en);
        // One format, chosen and read back: the others lay descriptors out differently.
        self.regs.wait(SRRCTL.at(q), 7 << 25 | 0x1f, format, QUEUE_DEADLINE)?;
        Ok(tail)
    }

    fn tx_queue(&mut self, place: RingPlace) -> Result<Doorbell<B>, WaitError> {
        let q = usize::from(place.queue);
        let tail = TX_RINGS.place(&self.regs, place);
        self.regs.write(TDWBAL.at(q), 0);
        self.regs.change(DCA_TXCTRL.at(q), dca::TX_RELAXED, 0);
        // Descriptors are fetched 32 at a time; only those that ask are written back, which is one of a burst.
        self.regs.write(TXDCTL.at(q), 1 << 8 | 32);
        Ok(tail)
    }

    fn filter(&mut self, program: &Program) {
        ADDRESSES.write(&self.regs, &program.exact);
        let unicast = if program.promiscuous { fctrl::UPE } else { 0 };
        let multicast = if program.all_multicast { fctrl::MPE } else { 0 };
        self.regs.write(FCTRL, fctrl::BAM | unicast | multicast);
    }

    fn strip_tags(&mut self, queues: u32) {
        for q in 0..usize::from(self.n_queue_pairs) {
            let (clear, set) = if queues >> q & 1 == 0 { (dctl::VME, 0) } else { (0, dctl::VME) };
            self.regs.change(RXDCTL.at(q), clear, set);
        }
        self.regs.read(STATUS); // the writes have arrived
    }

    fn enable(&mut self, vectors: usize) -> Result<(), WaitError> {
        if vectors == N_VECTORS {
            let last = (vectors as u32 - 1) | 0x80;
            self.regs.write(GPIE, gpie::MSIX_MODE | gpie::PBA_SUPPORT | gpie::MODULE);
            self.regs.write(IVAR_MISC, last << 8);
            self.regs.write(EIAC, 0);
            self.regs.write(EIMS, cause::LSC | cause::MODULE);
        }
        self.regs.change(DMATXCTL, 0, 1);
        for q in 0..usize::from(self.n_queue_pairs) {
            self.regs.change(TXDCTL.at(q), 0, dctl::ENABLE);
            self.regs.wait(TXDCTL.at(q), dctl::ENABLE, dctl::ENABLE, QUEUE_DEADLINE)?;
            self.regs.change(RXDCTL.at(q), 0, dctl::ENABLE);
            self.regs.wait(RXDCTL.at(q), dctl::ENABLE, dctl::ENABLE, QUEUE_DEADLINE)?;
        }
        // 82599 4.6.7: with frames on the wire the receiver is only safe to enable while its path is stopped.
        self.regs.change(SECRXCTRL, 0, SECRX_DIS);
        self.regs.wait(SECRXSTAT, 1, 1, QUEUE_DEADLINE)?;
        self.regs.write(RXCTRL, 1);
        self.regs.change(SECRXCTRL, SECRX_DIS, 0);
        // With a cage, what is in it decides; looking sets the link up.
        match self.media {
            Media::SfpPlus => drop(self.link()),
            Media::Backplane => self.start_link()?,
            Media::Other => {}
        }
        Ok(())
    }

    fn link(&mut self) -> Link {
        let state = self.regs.read(LINKS);
        if state == GONE {
            return Link::Down { reason: "the device is gone".into() };
        }
        if state & links::UP == 0 || (self.media == Media::SfpPlus && self.module.is_none()) {
            let down = self.down();
            let state = self.regs.read(LINKS);
            if state & links::UP == 0 || state == GONE {
                return down;
            }
        }
        let odd = state & links::NON_STANDARD != 0;
        let speed_mbps = match (self.regs.read(LINKS) >> links::SPEED_SHIFT & 3, odd) {
            (3, false) => 10_000,
            (3, true) => 2_500,
            (2, _) => 1_000,
            (1, true) => 5_000,
            (1, false) => 100,
            _ => 10,
        };
        Link::Up { speed_mbps }
    }

    fn acknowledge(&mut self) {
        self.regs.read(EICR);
        self.regs.write(EIMS, cause::LSC | cause::MODULE);
    }

    fn is_gone(&self) -> bool {
        self.regs.read(STATUS) == GONE
    }

    fn remap<F: PciFunction<Bar = B>>(&mut self, function: &F) -> Result<(), PortError> {
        self.regs = map(function)?;
        Ok(())
    }
}
