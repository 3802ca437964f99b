//! Registers of a NIC: offset, width and access in one typed row each, so that writing a read-only register does
//! not compile. Every driver's `regs.rs` is a table of these.

use std::marker::PhantomData;
use std::time::Duration;

use super::wait::{self, WaitError};
use crate::pci::Registers;

/// A register the driver only reads.
pub struct Ro;
/// A register the driver reads and writes.
pub struct Rw;
/// A register that only takes writes; what it reads as means nothing.
pub struct Wo;
/// A register that a read sets back to zero: one place only may read it.
pub struct Rc;

/// Access that allows reading.
pub trait Readable {}
/// Access that allows writing.
pub trait Writable {}
impl Readable for Ro {}
impl Readable for Rw {}
impl Readable for Rc {}
impl Writable for Rw {}
impl Writable for Wo {}

/// A register width.
pub trait Width: Copy {
    /// Its length in bytes.
    const BYTES: usize;
    /// Reads a register of this width.
    fn read(bar: &impl Registers, offset: usize) -> Self;
    /// Writes a register of this width.
    fn write(self, bar: &impl Registers, offset: usize);
}

macro_rules! width {
    ($type:ty, $read:ident, $write:ident) => {
        impl Width for $type {
            const BYTES: usize = size_of::<$type>();
            #[inline(always)]
            fn read(bar: &impl Registers, offset: usize) -> Self {
                bar.$read(offset)
            }
            #[inline(always)]
            fn write(self, bar: &impl Registers, offset: usize) {
                bar.$write(offset, self)
            }
        }
    };
}
width!(u8, read8, write8);
width!(u16, read16, write16);
width!(u32, read32, write32);

/// One register of a block: offset, width and access.
pub struct Reg<W, A> {
    /// From the start of its block.
    pub offset: usize,
    /// As in the datasheet.
    pub name: &'static str,
    kind: PhantomData<fn() -> (W, A)>,
}

impl<W, A> Clone for Reg<W, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W, A> Copy for Reg<W, A> {}

impl<W, A> Reg<W, A> {
    /// A row of a table.
    pub const fn new(offset: usize, name: &'static str) -> Self {
        Reg { offset, name, kind: PhantomData }
    }
}

/// Equal registers at equal distances, one for each queue or table entry.
pub struct Array<W, A> {
    first: usize,
    stride: usize,
    len: usize,
    name: &'static str,
    kind: PhantomData<fn() -> (W, A)>,
}

impl<W, A> Array<W, A> {
    /// A row of a table: `len` registers, `stride` bytes apart.
    pub const fn new(first: usize, stride: usize, len: usize, name: &'static str) -> Self {
        Array { first, stride, len, name, kind: PhantomData }
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Register `index`.
    ///
    /// # Panics
    /// When there is no such register: our own set-up is wrong then.
    pub const fn at(&self, index: usize) -> Reg<W, A> {
        assert!(index < self.len, "register array index");
        Reg::new(self.first + self.stride * index, self.name)
    }
}

/// A table of registers: `NAME: width, access = offset, "name";`, or for arrays
/// `NAME: [width; len], access = offset + stride, "name";`.
macro_rules! registers {
    ($($(#[$doc:meta])* $const:ident: $type:tt, $access:ty = $offset:literal $(+ $stride:literal)?, $name:literal;)*) => {
        $(registers!(@row [$(#[$doc])*] $const $type, $access, $offset $(+ $stride)?, $name);)*
    };
    (@row [$(#[$doc:meta])*] $const:ident [$width:ty; $len:expr], $access:ty, $offset:literal + $stride:literal, $name:literal) => {
        $(#[$doc])* pub const $const: $crate::nic::regs::Array<$width, $access> =
            $crate::nic::regs::Array::new($offset, $stride, $len, $name);
    };
    (@row [$(#[$doc:meta])*] $const:ident $width:ty, $access:ty, $offset:literal, $name:literal) => {
        $(#[$doc])* pub const $const: $crate::nic::regs::Reg<$width, $access> =
            $crate::nic::regs::Reg::new($offset, $name);
    };
}
pub(crate) use registers;

/// A block of registers inside a BAR.
#[derive(Clone)]
pub struct Block<B> {
    bar: B,
    base: usize,
}

impl<B: Registers> Block<B> {
    /// A block at `base` of `bar`; `None` when `len_bytes` from there leave the BAR.
    pub fn new(bar: B, base: usize, len_bytes: usize) -> Option<Self> {
        let fits = base.checked_add(len_bytes).is_some_and(|end| end <= bar.len_bytes());
        fits.then_some(Block { bar, base })
    }

    /// Reads a register.
    #[inline(always)]
    pub fn read<W: Width, A: Readable>(&self, reg: Reg<W, A>) -> W {
        W::read(&self.bar, self.base + reg.offset)
    }

    /// Writes a register.
    #[inline(always)]
    pub fn write<W: Width, A: Writable>(&self, reg: Reg<W, A>, value: W) {
        value.write(&self.bar, self.base + reg.offset)
    }

    /// Reads 32 bits at an offset out of a table ([`Counters`](super::counters::Counters)).
    pub fn read_at(&self, offset: usize) -> u32 {
        self.bar.read32(self.base + offset)
    }

    /// Sets the bits of `set` and clears those of `clear`.
    pub fn change(&self, reg: Reg<u32, Rw>, clear: u32, set: u32) {
        self.write(reg, self.read(reg) & !clear | set);
    }

    /// Waits until `register & mask == value`; see [`wait::until`].
    pub fn wait<A: Readable>(
        &self,
        register: Reg<u32, A>,
        mask: u32,
        value: u32,
        deadline: Duration,
    ) -> Result<(), WaitError> {
        wait::until(|| self.read(register), register.name, mask, value, deadline)
    }

    /// The doorbell at a register: what a queue half keeps of the block.
    pub fn doorbell<A: Writable>(&self, register: Reg<u32, A>) -> Doorbell<B> {
        Doorbell { bar: self.bar.clone(), offset: self.base + register.offset }
    }
}

/// A 32-bit register that a queue half writes once a burst: a tail, a producer index.
pub struct Doorbell<B> {
    bar: B,
    offset: usize,
}

impl<B: Registers> Doorbell<B> {
    /// Writes it; whatever was stored to descriptors before is visible to the device first.
    #[inline(always)]
    pub fn ring(&self, value: u32) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        self.bar.write32(self.offset, value);
    }
}
