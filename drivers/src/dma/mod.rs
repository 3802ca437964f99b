//! Packet memory: where it comes from ([`Region`]), what address a device sees it at
//! ([`Iova`]), and who owns a buffer ([`Pool`], [`PacketBuf`]).

mod buf;
mod depot;
mod handles;
mod iova;
mod magazine;
mod pool;
mod posted;
mod region;
mod share;
mod tally;

pub use buf::{Offload, PacketBuf, Received};
pub use iova::{Iova, IovaAllocator, IovaRange};
pub use pool::{Fresh, Pool, PoolCache, PoolConfig, PoolCounts};
pub use posted::{RxBuffers, TxBuffers};
pub use region::{DmaError, DmaMapper, DmaSpace, PageSize, Region};
pub use share::NoBuffer;
pub use tally::Tally;

/// Bytes free in front of a received frame: room for tags and headers.
pub const HEADROOM: usize = 128;

/// Bytes of frame one buffer holds behind the headroom. A multiple of 1 KiB because
/// Intel NICs count receive buffers so (82599 datasheet, SRRCTL.BSIZEPACKET).
pub const DATA_ROOM: usize = 2048;

/// Distance of two buffers in bytes. An odd number of cache lines, so that the first
/// lines of consecutive buffers spread over all cache sets.
pub(crate) const STRIDE: usize = HEADROOM + DATA_ROOM + 64;
const _: () = assert!(STRIDE.is_multiple_of(64) && (STRIDE / 64) % 2 == 1);
