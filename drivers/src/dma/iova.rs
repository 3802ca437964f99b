//! I/O virtual addresses: what a device puts on the bus, and who hands them out.
//!
//! Addresses are chosen by us, never "IOVA = virtual address": a host pointer can lie
//! beyond the IOMMU's width or inside its reserved MSI window.

use std::fmt;

/// An address as a device sees it. Not a pointer and not a guest address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Iova(pub u64);

impl Iova {
    /// This address plus `bytes`.
    #[inline(always)]
    pub const fn offset(self, bytes: u64) -> Iova {
        Iova(self.0 + bytes)
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iova:{:#x}", self.0)
    }
}

/// Usable addresses, both ends included, as VFIO reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IovaRange {
    /// First usable address.
    pub first: u64,
    /// Last usable address.
    pub last: u64,
}

impl IovaRange {
    fn holds(&self, at: u64, len: u64) -> bool {
        len > 0 && at >= self.first && at.checked_add(len - 1).is_some_and(|last| last <= self.last)
    }
}

/// Hands out IOVA ranges: first fit, above 4 GiB when the ranges allow (the low part is scarce and
/// holds the MSI window), never twice. Set-up only.
#[derive(Debug, Clone)]
pub struct IovaAllocator {
    ranges: Vec<IovaRange>,
    taken: Vec<IovaRange>,
}

const FOUR_GIB: u64 = 1 << 32;

impl Default for IovaAllocator {
    /// Ranges that any x86 IOMMU of at least 39 bits has: no first megabyte, no MSI window.
    fn default() -> Self {
        let low = IovaRange { first: 1 << 20, last: 0xfedf_ffff };
        let high = IovaRange { first: 0xfef0_0000, last: (1 << 39) - 1 };
        IovaAllocator { ranges: vec![low, high], taken: Vec::new() }
    }
}

impl IovaAllocator {
    /// Narrows the usable ranges to those of an IOMMU. Fails, changing nothing, when an
    /// allocation made before lies outside of them; returns that allocation.
    pub fn restrict(&mut self, ranges: &[IovaRange]) -> Result<(), IovaRange> {
        let fits = |t: &IovaRange| ranges.iter().any(|r| r.holds(t.first, t.last - t.first + 1));
        if let Some(outside) = self.taken.iter().find(|t| !fits(t)) {
            return Err(*outside);
        }
        let mut narrowed = Vec::new();
        for ours in &self.ranges {
            for theirs in ranges {
                let (first, last) = (ours.first.max(theirs.first), ours.last.min(theirs.last));
                if first <= last {
                    narrowed.push(IovaRange { first, last });
                }
            }
        }
        narrowed.sort_by_key(|r| r.first);
        self.ranges = narrowed;
        Ok(())
    }

    /// Takes `len` bytes aligned to `align` (a power of two). `None` when nothing fits.
    pub fn allocate(&mut self, len: u64, align: u64) -> Option<Iova> {
        assert!(align.is_power_of_two(), "IOVA alignment is a power of two");
        let at = self.first_fit(len, align, FOUR_GIB).or_else(|| self.first_fit(len, align, 0))?;
        self.taken.push(IovaRange { first: at, last: at + (len - 1) });
        self.taken.sort_by_key(|t| t.first);
        Some(Iova(at))
    }

    fn first_fit(&self, len: u64, align: u64, floor: u64) -> Option<u64> {
        self.ranges.iter().find_map(|range| {
            let mut at = range.first.max(floor).checked_next_multiple_of(align)?;
            for taken in &self.taken {
                if at.checked_add(len)? > taken.first && at <= taken.last {
                    at = taken.last.checked_add(1)?.checked_next_multiple_of(align)?;
                }
            }
            range.holds(at, len).then_some(at)
        })
    }

    /// Gives back what starts at `iova`.
    pub fn release(&mut self, iova: Iova) {
        self.taken.retain(|t| t.first != iova.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSI: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

    #[test]
    fn allocations_never_overlap_each_other_or_the_msi_window() {
        let mut a = IovaAllocator::default();
        a.restrict(&[
            IovaRange { first: 0, last: 0xfedf_ffff },
            IovaRange { first: 0xfef0_0000, last: 1 << 33 },
        ])
        .unwrap();
        let mut got: Vec<(u64, u64)> = Vec::new();
        while let Some(iova) = a.allocate(0x3000_0000, 0x20_0000) {
            got.push((iova.0, iova.0 + 0x2fff_ffff));
        }
        assert!(got.len() > 8, "low range is used once the high one is full: {got:x?}");
        for (i, x) in got.iter().enumerate() {
            assert!(x.1 < *MSI.start() || x.0 > *MSI.end());
            assert!(got.iter().skip(i + 1).all(|y| x.1 < y.0 || y.1 < x.0));
        }
    }

    #[test]
    fn released_addresses_are_reused() {
        let mut a = IovaAllocator::default();
        let first = a.allocate(4096, 4096).unwrap();
        let second = a.allocate(4096, 4096).unwrap();
        assert_ne!(first, second);
        a.release(first);
        assert_eq!(a.allocate(4096, 4096), Some(first));
    }

    #[test]
    fn narrower_iommu_is_refused_when_an_allocation_lies_outside() {
        let mut a = IovaAllocator::default();
        a.allocate(4096, 4096).unwrap();
        let low_only = [IovaRange { first: 0, last: 0xffff_ffff }];
        assert!(a.restrict(&low_only).is_err());
        assert!(a.allocate(4096, 4096).unwrap().0 >= FOUR_GIB, "nothing changed");
    }

    #[test]
    fn a_32_bit_aperture_still_serves() {
        let mut a = IovaAllocator::default();
        a.restrict(&[IovaRange { first: 0, last: 0xfedf_ffff }]).unwrap();
        assert!(a.allocate(1 << 21, 1 << 21).unwrap().0 < 0xfee0_0000);
        assert_eq!(a.allocate(1 << 40, 4096), None);
    }
}
