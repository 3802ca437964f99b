//! From reset to link (82576 4.5.11, 7.8.2). What a card of one's own sets up by registers, the physical function's driver
//! is asked for here, and may refuse. Control thread only; every wait has a deadline.

use std::time::Duration;

use super::desc::{AdvancedTx, VfRx};
use super::mailbox::{ACK, Mailbox, News, Request};
use super::regs::*;
use super::{counters, regs};
use crate::dma::DATA_ROOM;
use crate::intel::common::{self, Rings};
use crate::intel::nic::{Chip, Limits, RingPlace};
use crate::mac::MacAddr;
use crate::nic::counters::Row;
use crate::nic::filters::Program;
use crate::nic::regs::{Block, Doorbell};
use crate::nic::tags::Switch;
use crate::nic::wait::{GONE, WaitError};
use crate::pci::{PciFunction, Registers};
use crate::port::{Link, PortError};

/// Registers are not touched this soon after a reset.
const AFTER_RESET: Duration = Duration::from_millis(10);
const QUEUE_DEADLINE: Duration = Duration::from_millis(100);
/// Longest frame, without FCS.
const MAX_FRAME_BYTES: u32 = 9230;
/// FCS and a VLAN tag.
const EXTRA_BYTES: u32 = 8;
/// The second is the mailbox's, which also brings changes of the link. QEMU's card signals the first one instead.
const N_VECTORS: usize = 2;
/// Both vectors, in a mask.
const VECTORS: u32 = 3;
/// Descriptors of each ring: more than a physical function has, for which frames wait. The driver of that may have the
/// card drop what finds no descriptor, as Linux's igb does.
const RING: u16 = 1024;
/// Addresses it asks for before it asks for all; the physical function may have room for fewer.
const N_EXACT: usize = 8;

const RX_RINGS: Rings = Rings { base_low: RDBAL, base_high: RDBAH, len: RDLEN, head: RDH, tail: RDT };
const TX_RINGS: Rings = Rings { base_low: TDBAL, base_high: TDBAH, len: TDLEN, head: TDH, tail: TDT };

/// The registers of one virtual function, of an 82576 or an I350.
pub struct Igbvf<const I350: bool, B> {
    regs: Block<B>,
    mailbox: Mailbox,
    /// As the physical function said.
    mac: Option<MacAddr>,
    /// VLANs it lets in for us.
    vlans: Vec<u16>,
    n_refusals: u64,
    trouble: Option<&'static str>,
}

/// Maps BAR 0.
fn map<F: PciFunction>(function: &F) -> Result<Block<F::Bar>, PortError> {
    let short = || PortError::new(function.address(), "BAR 0 is too short for its registers", "");
    Block::new(function.map_bar(0)?, 0, regs::LEN_BYTES).ok_or_else(short)
}

impl<const I350: bool, B: Registers> Igbvf<I350, B> {
    /// Maps the registers, which answer once memory decoding is on.
    pub fn new<F: PciFunction<Bar = B>>(function: &F) -> Result<Self, PortError> {
        let (mailbox, vlans) = (Mailbox::default(), Vec::new());
        Ok(Igbvf { regs: map(function)?, mailbox, mac: None, vlans, n_refusals: 0, trouble: None })
    }

    fn mask_interrupts(&self) {
        self.regs.write(VTEIMC, u32::MAX);
        self.regs.read(VTEICR);
    }

    /// Asks for something that may be refused: whether it was granted.
    fn ask(&mut self, request: Request) -> bool {
        let answer = self.mailbox.ask(&self.regs, &request);
        match answer {
            Ok([first, ..]) if first & ACK != 0 => return true,
            Ok(_) => tracing::warn!(?request, "the physical function refuses"),
            Err(error) => tracing::warn!(?request, %error, "the physical function does not answer"),
        }
        self.n_refusals += 1;
        false
    }

    /// Own address and further ones; false when not all were granted.
    fn ask_for_addresses(&mut self, exact: &[MacAddr]) -> bool {
        let Some((own, more)) = exact.split_first() else { return true };
        if self.mac != Some(*own) && self.ask(Request::SetMac(*own)) {
            self.mac = Some(*own);
        }
        // A physical function that knows of no further addresses takes this for a bad address and refuses.
        if more.is_empty() {
            return true;
        }
        self.ask(Request::ClearMacFilters(*own))
            && more.iter().all(|mac| self.ask(Request::AddMacFilter(*mac)))
    }

    fn ask_for_vlans(&mut self, wanted: &[u16]) {
        let before = std::mem::take(&mut self.vlans);
        for vid in before.iter().filter(|vid| !wanted.contains(vid)) {
            self.ask(Request::SetVlan(*vid, false));
        }
        for vid in wanted {
            if before.contains(vid) || self.ask(Request::SetVlan(*vid, true)) {
                self.vlans.push(*vid);
            }
        }
    }
}

impl<const I350: bool, B: Registers> Chip for Igbvf<I350, B> {
    type Bar = B;
    type Rx = VfRx<I350>;
    type Tx = AdvancedTx;
    const TAGS: Switch = Switch::Foreign;

    fn limits(&self) -> Limits {
        Limits {
            driver: "igbvf",
            max_frame_bytes: MAX_FRAME_BYTES,
            n_queue_pairs: 1,
            n_exact_filters: N_EXACT,
            ring_size: RING,
            n_vectors: N_VECTORS,
        }
    }

    fn regs(&self) -> &Block<B> {
        &self.regs
    }

    fn counters(&self) -> &'static [Row] {
        counters::ROWS
    }

    /// 82576 4.2.2.2: resets this function alone, and tells the physical function's driver, which resets what it has of us.
    fn reset(&mut self) -> Result<(), WaitError> {
        if self.is_gone() {
            return Err(WaitError::Gone { register: VTSTATUS.name });
        }
        self.mask_interrupts();
        self.regs.change(VTCTRL, 0, RST);
        std::thread::sleep(AFTER_RESET);
        self.vlans.clear();
        self.trouble = None;
        self.mac = None;
        self.mailbox.wait_for_pf(&self.regs)?;
        let [first, low, high] = self.mailbox.ask(&self.regs, &Request::Reset)?;
        let ([a, b, c, d], [e, f, ..]) = (low.to_le_bytes(), high.to_le_bytes());
        self.mailbox.settle();
        // Refused means that it has no address for us, and takes one of ours.
        self.mac = Some(MacAddr([a, b, c, d, e, f])).filter(|mac| first & ACK != 0 && common::is_valid(*mac));
        self.mask_interrupts();
        Ok(())
    }

    fn mac(&self) -> Option<MacAddr> {
        self.mac
    }

    fn init(&mut self, _n_queue_pairs: u16) -> Result<(), WaitError> {
        self.ask(Request::SetMaxFrame(MAX_FRAME_BYTES + EXTRA_BYTES));
        self.ask(Request::ClearGroups);
        Ok(())
    }

    fn rx_queue(&mut self, place: RingPlace) -> Result<Doorbell<B>, WaitError> {
        let q = usize::from(place.queue);
        let tail = RX_RINGS.place(&self.regs, place);
        // The done bit must not overtake the frame.
        self.regs.change(RXCTL.at(q), dca::RX_RELAXED, 0);
        // Whether frames nobody takes are dropped or hold up the other functions, the physical function decides (QDE).
        let format = srrctl::ADVANCED | (DATA_ROOM / 1024) as u32;
        self.regs.write(SRRCTL.at(q), format);
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
        let all_fit = self.ask_for_addresses(&program.exact);
        let (unicast, multicast) = (program.promiscuous || !all_fit, program.all_multicast);
        // Everything is what a physical function rarely grants; groups it does.
        if !self.ask(Request::SetPromiscuous { unicast, multicast }) && unicast {
            self.ask(Request::SetPromiscuous { unicast: false, multicast });
        }
        self.ask_for_vlans(&program.vlans);
    }

    /// The physical function's driver decides.
    fn strip_tags(&mut self, _queues: u32) {}

    fn enable(&mut self, vectors: usize) -> Result<(), WaitError> {
        if vectors == N_VECTORS {
            self.regs.write(VTIVAR_MISC, 0x80 | 1);
            self.regs.write(VTEIAC, VECTORS);
            self.regs.write(VTEIAM, VECTORS);
            self.regs.write(VTEIMS, VECTORS);
        }
        self.regs.change(TXDCTL.at(0), 0, dctl::ENABLE);
        self.regs.wait(TXDCTL.at(0), dctl::ENABLE, dctl::ENABLE, QUEUE_DEADLINE)?;
        self.regs.change(RXDCTL.at(0), 0, dctl::ENABLE);
        self.regs.wait(RXDCTL.at(0), dctl::ENABLE, dctl::ENABLE, QUEUE_DEADLINE)
    }

    fn link(&mut self) -> Link {
        match self.trouble() {
            Some(reason) => Link::Down { reason: reason.into() },
            None => common::gigabit_link(self.regs.read(VTSTATUS)),
        }
    }

    fn acknowledge(&mut self) {
        self.regs.read(VTEICR);
        self.regs.write(VTEIMS, VECTORS);
    }

    fn trouble(&mut self) -> Option<&'static str> {
        if self.trouble.is_none() {
            self.trouble = match self.mailbox.news(&self.regs) {
                News::None => None,
                News::InReset => Some("the physical function is being reset"),
                News::Forgotten => Some("the physical function was reset"),
            };
        }
        self.trouble
    }

    fn own_counters(&self) -> Vec<(&'static str, u64)> {
        vec![("pf_refusals", self.n_refusals)]
    }

    fn is_gone(&self) -> bool {
        self.regs.read(VTSTATUS) == GONE
    }

    fn remap<F: PciFunction<Bar = B>>(&mut self, function: &F) -> Result<(), PortError> {
        self.regs = map(function)?;
        Ok(())
    }
}
