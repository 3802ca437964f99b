// UNSAFETY: maps the guest's memory and copies to and from it, as a card does.
//! The guest's memory as the card may reach it: what QEMU mapped for it, nothing else.

use std::fs::File;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use spp_drivers::ixgbe::model::Memory;

struct Mapping {
    iova: u64,
    map: MmapRaw,
}

/// All mappings. Any thread may use it.
#[derive(Default)]
pub struct Maps {
    mappings: Mutex<Vec<Mapping>>,
}

impl Maps {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Mapping>> {
        self.mappings.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes `len` bytes of the file at `offset` reachable at `iova`.
    pub fn map(&self, iova: u64, len: u64, file: &File, offset: u64) -> io::Result<()> {
        let map = MmapOptions::new().offset(offset).len(len as usize).map_raw(file)?;
        self.lock().push(Mapping { iova, map });
        Ok(())
    }

    /// Takes mappings inside the range away.
    pub fn unmap(&self, iova: u64, len: u64) {
        self.lock().retain(|m| m.iova < iova || m.iova + m.map.len() as u64 > iova + len);
    }

    /// Takes all away.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Calls `access` with the place of each mapped piece of the range; false when some of it is not mapped.
    fn each(&self, iova: u64, len: usize, mut access: impl FnMut(*mut u8, usize, usize)) -> bool {
        let mappings = self.lock();
        let mut done = 0;
        while done < len {
            let at = iova + done as u64;
            let inside = |m: &&Mapping| at >= m.iova && at - m.iova < m.map.len() as u64;
            let Some(mapping) = mappings.iter().find(inside) else { return false };
            let offset = (at - mapping.iova) as usize;
            let n = (mapping.map.len() - offset).min(len - done);
            access(mapping.map.as_mut_ptr().wrapping_add(offset), done, n);
            done += n;
        }
        true
    }
}

impl Memory for Maps {
    fn read(&self, iova: u64, into: &mut [u8]) -> bool {
        let to = into.as_mut_ptr();
        self.each(iova, into.len(), |from, at, n| {
            let to = to.wrapping_add(at);
            // SAFETY: `each` vouches for n mapped bytes at `from`, under the lock; `at + n` is inside `into`.
            unsafe { std::ptr::copy_nonoverlapping(from, to, n) }
        })
    }

    fn write(&self, iova: u64, bytes: &[u8]) -> bool {
        self.each(iova, bytes.len(), |to, at, n| {
            let from = bytes[at..at + n].as_ptr();
            // SAFETY: `each` vouches for n mapped bytes at `to`, under the lock; `from` has n bytes.
            unsafe { std::ptr::copy_nonoverlapping(from, to, n) }
        })
    }

    fn write_last(&self, iova: u64, word: u64) -> bool {
        assert!(iova.is_multiple_of(8), "a done bit lies in an aligned word");
        self.each(iova, 8, |to, _, _| {
            // SAFETY: `each` vouches for 8 bytes at `to`; mappings start on a page, so it is aligned as the IOVA is.
            let place = unsafe { AtomicU64::from_ptr(to.cast()) };
            place.store(word.to_le(), Ordering::Release);
        })
    }
}
