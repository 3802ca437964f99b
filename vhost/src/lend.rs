//! From guest to guest: the frames of one ring are lent to whoever sends them, who copies them once, from one guest's memory
//! into the other's.
//!
//! The core that polls the two halves calls this; nothing is kept between calls. A loan is a list of checked slices of
//! the guest's memory. It borrows the ring's map, so ring and map stay as they are until the frames are sent, and the types
//! let no slice outlive that. Lent are plain frames only: in one piece with their header, short enough for a
//! buffer, without work left undone. Their bytes are never looked at here; of the header in front only a private copy is.

use arrayvec::ArrayVec;
use spp_drivers::offload::Offloads;
use spp_drivers::port::TxQueue;
use spp_drivers::{BURST, LentFrame};

use crate::from_guest::{Taken, give_back, plain_frames};
use crate::memory::GuestSlice;
use crate::net_hdr;
use crate::vring::walk::{Heads, Layout, Queue};
use crate::vring::{RingFault, RingFeatures};

/// Has `to` send up to a burst from the front of the ring, and gives back what it took. `None` when there are chains, but
/// `to` took none, or the first is no plain frame.
#[inline(always)]
pub(crate) fn lend<L: Layout>(ring: &mut Queue<L>, to: &mut dyn TxQueue) -> Result<Option<Taken>, RingFault> {
    ring.look()?;
    let Queue { layout, place, features, .. } = ring;
    let mut heads = Heads::new();
    layout.heads(place, BURST, &mut heads)?;
    if heads.is_empty() {
        return Ok(Some(Taken::default()));
    }
    let mut chains = ArrayVec::new();
    plain_frames(layout.map(), features, &heads, &mut chains);
    let loan = loan(&chains, features);
    if loan.is_empty() {
        return Ok(None);
    }
    let n_frames = to.tx_lent(&loan).min(loan.len());
    if n_frames == 0 {
        return Ok(None);
    }
    let bytes = loan[..n_frames].iter().map(|frame| frame.len() as u64).sum();
    // What was lent can be given back once nobody has it any more: the compiler sees to that.
    drop((loan, chains));
    give_back(ring, &heads[..n_frames]);
    Ok(Some(Taken { n_frames, bytes, called: ring.publish() }))
}

/// The frames of `chains` behind their headers, up to the first whose header asks for work. From a guest that negotiated
/// none the header means nothing, and is not read.
#[inline(always)]
fn loan<'m>(chains: &[GuestSlice<'m>], features: &RingFeatures) -> ArrayVec<LentFrame<'m>, BURST> {
    let mut loan = ArrayVec::new();
    for chain in chains {
        let may_ask = features.from_guest != Offloads::NONE;
        if may_ask && !net_hdr::from_guest(std::slice::from_ref(chain)).is_nothing() {
            break;
        }
        loan.push(chain.skip(features.header_bytes).lend());
    }
    loan
}
