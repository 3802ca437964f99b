// UNSAFETY: ioctls that vfio-ioctls has no wrapper for.
//! What `vfio-ioctls` leaves out: the IOMMU's aperture, and whether and with what result a function was reset.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FLAGS_RESET, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_TYPE, vfio_device_info, vfio_iommu_type1_info,
};

use crate::dma::IovaRange;

/// `_IO(VFIO_TYPE, VFIO_BASE + nr)` of linux/vfio.h.
const fn request(nr: u32) -> libc::c_ulong {
    ((VFIO_TYPE as libc::c_ulong) << 8) | (VFIO_BASE + nr) as libc::c_ulong
}

const DEVICE_GET_INFO: libc::c_ulong = request(7);
const DEVICE_RESET: libc::c_ulong = request(11);
const IOMMU_GET_INFO: libc::c_ulong = request(12);

fn answer(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the device can be reset (VFIO_DEVICE_GET_INFO).
pub(super) fn can_reset(device: BorrowedFd<'_>) -> io::Result<bool> {
    let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..Default::default() };
    // SAFETY: a VFIO device fd, and a struct of ours with its own size in argsz, which the kernel fills.
    answer(unsafe { libc::ioctl(device.as_raw_fd(), DEVICE_GET_INFO, &raw mut info) })?;
    Ok(info.flags & VFIO_DEVICE_FLAGS_RESET != 0)
}

/// Resets the device (VFIO_DEVICE_RESET): function-level, or whatever the kernel has for it.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a VFIO device fd; this request has no argument.
    answer(unsafe { libc::ioctl(device.as_raw_fd(), DEVICE_RESET) })
}

/// The addresses the container's IOMMU accepts (VFIO_IOMMU_GET_INFO); `None` from kernels before 5.4, which don't say.
pub(super) fn iova_ranges(container: BorrowedFd<'_>) -> io::Result<Option<Vec<IovaRange>>> {
    let mut words = vec![0u64; size_of::<vfio_iommu_type1_info>() / 8];
    loop {
        let had = words.len() * 8;
        words[0] = had as u64; // argsz, with flags = 0 above it
        // SAFETY: a VFIO container fd, and a buffer of ours as long as its argsz says; u64 aligns it.
        answer(unsafe { libc::ioctl(container.as_raw_fd(), IOMMU_GET_INFO, words.as_mut_ptr()) })?;
        let wanted = words[0] as u32 as usize;
        if wanted <= had {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            return Ok(parse_iova_ranges(&bytes));
        }
        words = vec![0; wanted.div_ceil(8)];
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Finds the IOVA capability in a `vfio_iommu_type1_info` with its capability chain.
/// A capability is { id: u16, version: u16, next: u32 }, then for this one { count: u32, reserved: u32, (first: u64, last: u64)... }.
fn parse_iova_ranges(info: &[u8]) -> Option<Vec<IovaRange>> {
    let (flags, mut at) = (u32_at(info, 4)?, u32_at(info, 16)? as usize);
    if flags & VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    // A chain visits each place at most once.
    for _ in 0..info.len() / 8 {
        if at == 0 {
            return None;
        }
        let (id, next) = (u32_at(info, at)? & 0xffff, u32_at(info, at + 4)? as usize);
        if id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let n_ranges = u32_at(info, at + 8)? as usize;
            let range = |i: usize| -> Option<IovaRange> {
                let at = at + 16 + i * 16;
                Some(IovaRange { first: u64_at(info, at)?, last: u64_at(info, at + 8)? })
            };
            return (0..n_ranges).map(range).collect();
        }
        at = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An info struct as a 6.1 kernel gives it: the DMA-available capability first, then the ranges.
    fn info(next: u32, count: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |word: u32| bytes.extend(word.to_ne_bytes());
        [88, VFIO_IOMMU_INFO_CAPS, 0, 0, 24, 0].into_iter().for_each(&mut put);
        [3 | 1 << 16, next, 65535, 0].into_iter().for_each(&mut put);
        [VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE | 1 << 16, 0, count, 0].into_iter().for_each(&mut put);
        for address in [0, 0xfedf_ffffu64, 0xfef0_0000, (1 << 48) - 1] {
            bytes.extend(address.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn ranges_are_found_behind_another_capability() {
        let ranges = parse_iova_ranges(&info(40, 2)).unwrap();
        let low = IovaRange { first: 0, last: 0xfedf_ffff };
        let high = IovaRange { first: 0xfef0_0000, last: (1 << 48) - 1 };
        assert_eq!(ranges, [low, high]);
    }

    #[test]
    fn broken_chains_end_without_ranges() {
        assert_eq!(parse_iova_ranges(&info(0, 2)), None, "chain ends before the ranges");
        assert_eq!(parse_iova_ranges(&info(24, 2)), None, "chain loops");
        assert_eq!(parse_iova_ranges(&info(u32::MAX, 2)), None, "chain leaves the buffer");
        assert_eq!(parse_iova_ranges(&info(40, 3)), None, "more ranges than bytes");
        assert_eq!(parse_iova_ranges(&info(40, 2)[..20]), None, "cut short");
    }

    #[test]
    fn request_numbers_are_those_of_the_kernel_header() {
        assert_eq!((DEVICE_GET_INFO, DEVICE_RESET, IOMMU_GET_INFO), (0x3b6b, 0x3b6f, 0x3b70));
    }

    proptest::proptest! {
        #[test]
        fn any_change_of_the_answer_is_read_without_harm(at in 0usize..88, byte: u8, end in 0usize..=88) {
            let mut bytes = info(40, 2);
            bytes[at] = byte;
            let ranges = parse_iova_ranges(&bytes[..end]).unwrap_or_default();
            proptest::prop_assert!(ranges.len() <= 4);
        }
    }
}
