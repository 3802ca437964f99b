//! From guest to guest: the frames of one ring are lent to whoever sends them, who copies them once, from one guest's memory
//! into the other's.
//!
//! The core that polls the two halves calls this; nothing is kept between calls. A loan is a list of checked slices of
//! the guest's memory. It borrows the ring's map, so ring and map stay as they are until the frames are sent, and the types
//! let no slice outlive that. Lent are plain frames only: in one piece with their header, short enough for a
//! buffer, without work left undone. Their bytes are never looked at here; of the header in front only a private copy is.

use arrayvec::ArrayVec;
use spp_drivers::port::TxQueue;
use spp_drivers::{BURST, LentFrame};

use crate::from_guest::{Taken, give_back};
use crate::net_hdr;
use crate::plain::{PlainFrames, Shape, plain_frames};
use crate::vring::RingFault;
use crate::vring::walk::{Entries, Layout, Queue};

/// Has `to` send up to a burst from the front of the ring, and gives back what it took. `None` when there are chains, but
/// `to` took none, or the first is no plain frame.
#[inline(always)]
pub(crate) fn lend<L: Layout>(ring: &mut Queue<L>, to: &mut dyn TxQueue) -> Result<Option<Taken>, RingFault> {
    let mut entries = Entries::<L>::new();
    ring.poll(BURST, &mut entries)?;
    let Queue { layout, features, .. } = ring;
    if entries.is_empty() {
        return Ok(Some(Taken::default()));
    }
    let (shape, mut frames) = (Shape::new(features), PlainFrames::new());
    plain_frames(layout, shape, &entries, &mut frames);
    let loan = loan(&frames, shape);
    if loan.is_empty() {
        return Ok(None);
    }
    let n_frames = to.tx_lent(&loan).min(loan.len());
    if n_frames == 0 {
        return Ok(None);
    }
    let bytes = loan[..n_frames].iter().map(|frame| frame.len() as u64).sum();
    // What was lent can be given back once nobody has it any more: the compiler sees to that.
    drop((loan, frames));
    give_back(ring, &entries[..n_frames]);
    Ok(Some(Taken { n_frames, bytes, called: ring.publish(), ..Taken::default() }))
}

/// The frames up to the first whose header asks for work.
#[inline(always)]
fn loan<'m>(frames: &PlainFrames<'m>, shape: Shape) -> ArrayVec<LentFrame<'m>, BURST> {
    let asks = |frame: &_| !net_hdr::from_guest(std::slice::from_ref(frame)).is_nothing();
    let silent = if shape.has_work { frames.iter().position(asks) } else { None };
    let n = silent.unwrap_or(frames.len());
    frames.iter().take(n).map(|frame| frame.skip(shape.header_bytes).lend()).collect()
}
