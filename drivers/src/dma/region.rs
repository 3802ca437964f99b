// UNSAFETY: hands out raw pointers into mapped memory; mapping itself is memmap2's.
//! Memory that devices may reach: memfd-backed, huge pages if there are any, mapped once
//! for us and once, at a fixed IOVA, for every IOMMU container in use. Set-up only.

use std::any::Any;
use std::ffi::CString;
use std::fs::File;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::iova::{Iova, IovaAllocator, IovaRange};

/// Page size behind a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum PageSize {
    /// 4 KiB pages.
    Base,
    /// 2 MiB pages.
    Huge2M,
    /// 1 GiB pages.
    Huge1G,
}

impl PageSize {
    /// In bytes.
    pub const fn bytes(self) -> usize {
        match self {
            PageSize::Base => 4096,
            PageSize::Huge2M => 2 << 20,
            PageSize::Huge1G => 1 << 30,
        }
    }

    const fn memfd_flags(self) -> MemfdFlags {
        match self {
            PageSize::Base => MemfdFlags::CLOEXEC,
            PageSize::Huge2M => MemfdFlags::CLOEXEC.union(MemfdFlags::HUGETLB).union(MemfdFlags::HUGE_2MB),
            PageSize::Huge1G => MemfdFlags::CLOEXEC.union(MemfdFlags::HUGETLB).union(MemfdFlags::HUGE_1GB),
        }
    }
}

/// Why device memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// The kernel gave no memory.
    #[error("no memory for {what} ({len_bytes} bytes): {source}")]
    Memory {
        /// What it was for.
        what: String,
        /// Bytes asked for.
        len_bytes: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// No free IOVA range is long enough.
    #[error("no IOVA range of {len_bytes} bytes is free in the IOMMU's aperture")]
    NoIova {
        /// Bytes asked for.
        len_bytes: usize,
    },
    /// A region placed before lies outside the ranges of a new IOMMU.
    #[error(
        "the IOMMU can't map {iova:?}, where packet memory already is; start spp with this NIC in its configuration"
    )]
    OutsideAperture {
        /// Where the memory is.
        iova: Iova,
    },
    /// The IOMMU refused the mapping.
    #[error("IOMMU mapping of {len_bytes} bytes at {iova:?} failed: {reason}")]
    Map {
        /// Where.
        iova: Iova,
        /// How much.
        len_bytes: usize,
        /// The cause and the remedy.
        reason: String,
    },
}

/// An IOMMU container that memory can be mapped into. Implemented by the VFIO layer.
pub trait DmaMapper: Any + Send + Sync {
    /// Ranges the IOMMU accepts.
    fn usable_ranges(&self) -> Vec<IovaRange>;
    /// Makes `len` bytes at host address `host` visible to devices at `iova`, readable and writable.
    fn map(&self, iova: Iova, host: NonNull<u8>, len: usize) -> Result<(), DmaError>;
    /// Takes a mapping back. Errors are logged by the implementation: nothing can be done about them.
    fn unmap(&self, iova: Iova, len: usize);
}

#[derive(Default)]
struct SpaceInner {
    iovas: IovaAllocator,
    mappers: Vec<Arc<dyn DmaMapper>>,
    live: Vec<LiveRegion>,
}

struct LiveRegion {
    iova: Iova,
    host: NonNull<u8>,
    len: usize,
}

// SAFETY: the pointers in `live` are only passed on to mappers, never read through.
unsafe impl Send for SpaceInner {}

/// The address space all devices of this process share: every region is mapped at the same IOVA in
/// every container. Cheap to clone.
#[derive(Clone, Default)]
pub struct DmaSpace(Arc<Mutex<SpaceInner>>);

impl DmaSpace {
    /// An empty space with no IOMMU.
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, SpaceInner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a container: maps all regions there are, and all that come.
    pub fn attach(&self, mapper: Arc<dyn DmaMapper>) -> Result<(), DmaError> {
        let mut inner = self.inner();
        let outside = |r: IovaRange| DmaError::OutsideAperture { iova: Iova(r.first) };
        inner.iovas.restrict(&mapper.usable_ranges()).map_err(outside)?;
        for (done, region) in inner.live.iter().enumerate() {
            if let Err(error) = mapper.map(region.iova, region.host, region.len) {
                inner.live[..done].iter().for_each(|r| mapper.unmap(r.iova, r.len));
                return Err(error);
            }
        }
        inner.mappers.push(mapper);
        Ok(())
    }

    /// The container of this kind, when one is attached.
    pub fn mapper<T: DmaMapper>(&self) -> Option<Arc<T>> {
        let inner = self.inner();
        inner.mappers.iter().find_map(|mapper| {
            let any: Arc<dyn Any + Send + Sync> = mapper.clone();
            any.downcast().ok()
        })
    }

    /// Forgets a container that no device is in any more: the kernel has dropped its mappings.
    pub fn detach(&self, mapper: &Arc<dyn DmaMapper>) {
        self.inner().mappers.retain(|attached| !Arc::ptr_eq(attached, mapper));
    }

    /// Narrows the usable addresses after an attached container took in a device behind another
    /// IOMMU. Changes nothing when memory lies outside of them.
    pub fn narrow(&self, ranges: &[IovaRange]) -> Result<(), DmaError> {
        let outside = |r: IovaRange| DmaError::OutsideAperture { iova: Iova(r.first) };
        self.inner().iovas.restrict(ranges).map_err(outside)
    }

    /// Allocates zeroed memory of at least `len` bytes (rounded up to whole pages), visible to all
    /// devices. Tries 1 GiB pages for whole gigabytes, then 2 MiB, then ordinary pages.
    pub fn allocate(&self, what: &str, len: usize) -> Result<Region, DmaError> {
        let (map, page) = map_memory(what, len)?;
        let (host, len) = (NonNull::new(map.as_mut_ptr()).expect("mmap never returns null"), map.len());
        let mut inner = self.inner();
        let align = page.bytes().max(PageSize::Huge2M.bytes()) as u64;
        let iova = inner.iovas.allocate(len as u64, align).ok_or(DmaError::NoIova { len_bytes: len })?;
        for (done, mapper) in inner.mappers.iter().enumerate() {
            if let Err(error) = mapper.map(iova, host, len) {
                inner.mappers[..done].iter().for_each(|m| m.unmap(iova, len));
                inner.iovas.release(iova);
                return Err(error);
            }
        }
        inner.live.push(LiveRegion { iova, host, len });
        drop(inner);
        Ok(Region { map, page, iova, space: self.clone() })
    }
}

fn map_memory(what: &str, len: usize) -> Result<(MmapRaw, PageSize), DmaError> {
    let mut sizes = vec![PageSize::Base];
    if len >= PageSize::Huge2M.bytes() / 2 {
        sizes.insert(0, PageSize::Huge2M);
    }
    if len >= PageSize::Huge1G.bytes() {
        sizes.insert(0, PageSize::Huge1G);
    }
    let mut last_error = None;
    for page in sizes {
        match map_with(what, len.next_multiple_of(page.bytes()), page) {
            Ok(map) => return Ok((map, page)),
            Err(error) => last_error = Some(error),
        }
    }
    let source = last_error.expect("at least one page size was tried");
    Err(DmaError::Memory { what: what.to_owned(), len_bytes: len, source })
}

fn map_with(what: &str, len: usize, page: PageSize) -> std::io::Result<MmapRaw> {
    let name = CString::new(format!("spp-{what}")).unwrap_or_default();
    let file = File::from(memfd_create(&name, page.memfd_flags())?);
    ftruncate(&file, len as u64)?;
    // Huge pages are reserved by mmap, so a shortage is an error here and not a SIGBUS later.
    MmapOptions::new().len(len).map_raw(&file)
}

/// Mapped memory with a fixed IOVA. Dropping it takes it from the devices, then unmaps it:
/// whoever lets a device use it keeps it alive until that device is stopped.
pub struct Region {
    map: MmapRaw,
    page: PageSize,
    iova: Iova,
    space: DmaSpace,
}

impl Region {
    /// First byte. Memory behind it may be written by devices: raw access only.
    pub fn as_ptr(&self) -> NonNull<u8> {
        NonNull::new(self.map.as_mut_ptr()).expect("mmap never returns null")
    }

    /// Length in bytes, a whole number of pages.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Where devices see the first byte.
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// The pages behind it.
    pub fn page_size(&self) -> PageSize {
        self.page
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let mut inner = self.space.inner();
        inner.mappers.iter().for_each(|mapper| mapper.unmap(self.iova, self.map.len()));
        inner.live.retain(|region| region.iova != self.iova);
        inner.iovas.release(self.iova);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(Iova, usize)>>);

    impl DmaMapper for Recorder {
        fn usable_ranges(&self) -> Vec<IovaRange> {
            vec![
                IovaRange { first: 0, last: 0xfedf_ffff },
                IovaRange { first: 0xfef0_0000, last: (1 << 48) - 1 },
            ]
        }
        fn map(&self, iova: Iova, _host: NonNull<u8>, len: usize) -> Result<(), DmaError> {
            self.0.lock().unwrap().push((iova, len));
            Ok(())
        }
        fn unmap(&self, iova: Iova, len: usize) {
            self.0.lock().unwrap().retain(|m| *m != (iova, len));
        }
    }

    #[test]
    fn regions_are_mapped_into_containers_that_come_before_and_after_them() {
        let space = DmaSpace::new();
        let early = space.allocate("early", 10_000).unwrap();
        let mapper = Arc::new(Recorder::default());
        space.attach(mapper.clone()).unwrap();
        let late = space.allocate("late", 5_000).unwrap();
        let mapped = mapper.0.lock().unwrap().clone();
        assert_eq!(mapped, vec![(early.iova(), early.len()), (late.iova(), late.len())]);
        drop(early);
        drop(late);
        assert!(mapper.0.lock().unwrap().is_empty(), "dropping a region unmaps it everywhere");
    }

    #[test]
    fn detached_container_is_not_found_and_not_asked_to_unmap() {
        let space = DmaSpace::new();
        let mapper = Arc::new(Recorder::default());
        space.attach(mapper.clone()).unwrap();
        let region = space.allocate("held", 4096).unwrap();
        assert!(Arc::ptr_eq(&space.mapper::<Recorder>().unwrap(), &mapper));
        let attached: Arc<dyn DmaMapper> = mapper.clone();
        space.detach(&attached);
        assert!(space.mapper::<Recorder>().is_none());
        drop(region);
        assert_eq!(mapper.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn lengths_are_whole_pages() {
        let region = DmaSpace::new().allocate("odd", 1).unwrap();
        assert_eq!((region.len(), region.page_size()), (4096, PageSize::Base));
    }
}
