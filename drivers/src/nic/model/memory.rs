// UNSAFETY: the model reads and writes packet memory through raw pointers, as a device does.
//! A model's view of memory: it reaches what is mapped for it, by IOVA, and nothing else.

use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dma::{DmaError, DmaMapper, Iova, IovaRange};

struct Mapping {
    iova: u64,
    host: NonNull<u8>,
    len: usize,
}

// SAFETY: the pointer is only used under the lock, and only while the region is mapped.
unsafe impl Send for Mapping {}

/// Memory as a device sees it. A model works over any: what is mapped in this process ([`ModelMemory`]), or the memory of
/// a VM that another process serves.
pub trait DeviceMemory: Send + Sync {
    /// Reads; false (and `into` untouched) where not all of it is mapped.
    fn read(&self, iova: u64, into: &mut [u8]) -> bool;
    /// Writes; false (and nothing written) where not all of it is mapped.
    fn write(&self, iova: u64, bytes: &[u8]) -> bool;
    /// Writes eight aligned bytes at once, after all earlier writes: how a device sets a done bit.
    fn write_last(&self, iova: u64, word: u64) -> bool;
}

/// An IOMMU in software: attach it to the [`DmaSpace`](crate::dma::DmaSpace) of the driver.
#[derive(Default)]
pub struct ModelMemory {
    mappings: Mutex<Vec<Mapping>>,
    stray: Mutex<Vec<u64>>,
}

impl ModelMemory {
    /// Calls `access` with the host address of `len` bytes at `iova`, if one mapping holds them all;
    /// otherwise remembers a fault, like a real IOMMU.
    fn with(&self, iova: u64, len: usize, access: impl FnOnce(NonNull<u8>)) -> bool {
        let mappings = self.mappings.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let hit = mappings.iter().find_map(|m| {
            let offset = usize::try_from(iova.checked_sub(m.iova)?).ok()?;
            (offset.checked_add(len)? <= m.len).then_some((m.host, offset))
        });
        let Some((host, offset)) = hit else {
            self.stray.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(iova);
            return false;
        };
        // SAFETY: offset + len lies within the mapping, as just checked; the lock keeps it mapped.
        access(unsafe { host.add(offset) });
        true
    }

    /// As [`DeviceMemory::read`].
    pub fn read(&self, iova: u64, into: &mut [u8]) -> bool {
        let len = into.len();
        // SAFETY: `with` vouches for `len` bytes at `from`; `into` is private memory.
        self.with(iova, len, |from| unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), len)
        })
    }

    /// As [`DeviceMemory::write`].
    pub fn write(&self, iova: u64, bytes: &[u8]) -> bool {
        // SAFETY: `with` vouches for the bytes at `to`; `bytes` is private memory.
        self.with(iova, bytes.len(), |to| unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len())
        })
    }

    /// Two bytes; all ones where nothing is mapped.
    pub fn read16(&self, iova: u64) -> u16 {
        let mut bytes = [0xff; 2];
        self.read(iova, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Accesses outside of what was mapped, by address.
    pub fn stray_accesses(&self) -> Vec<u64> {
        self.stray.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl DeviceMemory for ModelMemory {
    fn read(&self, iova: u64, into: &mut [u8]) -> bool {
        ModelMemory::read(self, iova, into)
    }

    fn write(&self, iova: u64, bytes: &[u8]) -> bool {
        ModelMemory::write(self, iova, bytes)
    }

    fn write_last(&self, iova: u64, word: u64) -> bool {
        assert!(iova.is_multiple_of(8), "a done bit lies in an aligned word");
        self.with(iova, 8, |to| {
            // SAFETY: `with` vouches for 8 bytes at `to`; mappings start on a page, so it is aligned as the IOVA is.
            let word_at = unsafe { AtomicU64::from_ptr(to.as_ptr().cast()) };
            word_at.store(word.to_le(), Ordering::Release);
        })
    }
}

impl DmaMapper for ModelMemory {
    fn usable_ranges(&self) -> Vec<IovaRange> {
        let (low, high) = ((0, 0xfedf_ffff), (0xfef0_0000, (1 << 48) - 1));
        [low, high].map(|(first, last)| IovaRange { first, last }).to_vec()
    }

    fn map(&self, iova: Iova, host: NonNull<u8>, len: usize) -> Result<(), DmaError> {
        let mut mappings = self.mappings.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        mappings.push(Mapping { iova: iova.0, host, len });
        Ok(())
    }

    fn unmap(&self, iova: Iova, _len: usize) {
        let mut mappings = self.mappings.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        mappings.retain(|m| m.iova != iova.0);
    }
}
