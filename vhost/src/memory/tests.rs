use super::*;
use crate::vring::layout::Descriptor;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const VA: u64 = 0x7f00_0000_0000;

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create(c"guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, len).unwrap();
    file
}

fn info(gpa: u64, len_bytes: u64, file_offset: u64) -> RegionInfo {
    RegionInfo { gpa, len_bytes, frontend_va: VA + gpa, file_offset }
}

fn map(regions: &[RegionInfo], file: &File) -> Result<GuestMap, MemoryError> {
    GuestMap::new(regions.iter().map(|info| (*info, file.try_clone().unwrap())))
}

#[test]
fn two_regions_of_one_file_with_odd_offsets_are_mapped_each_at_its_own() {
    // As a q35 guest has it: low memory, a hole for the VGA frame buffer, the rest.
    let file = memfd(4 << 20);
    let low = info(0, 0xa_0000, 0);
    let high = info(0xc_0000, (4 << 20) - 0xc_0000 - 0x123, 0xc_0123);
    let map = map(&[high, low], &file).unwrap();
    let mut memory = Translator::new(&map);
    for (gpa, file_offset) in [(0x9_fff0u64, 0x9_fff0u64), (0xc_0000, 0xc_0123), (0x10_0000, 0x10_0123)] {
        rustix::io::pwrite(&file, &gpa.to_le_bytes(), file_offset).unwrap();
        let words = Descriptor::from_words(memory.slice(Gpa(gpa), 16).unwrap().read_words());
        assert_eq!(words.addr, gpa);
    }
    assert!(memory.slice(Gpa(0x9_fff1), 16).is_none(), "the end of a region is the end");
    assert!(memory.slice(Gpa(0xa_0000), 1).is_none(), "a hole is no memory");
}

#[test]
fn ranges_are_checked_whole() {
    let file = memfd(0x4000);
    let map = map(&[info(0x1000, 0x1000, 0), info(0x2000, 0x1000, 0x2000)], &file).unwrap();
    let mut memory = Translator::new(&map);
    let mut has = |gpa: u64, len: u32| memory.slice(Gpa(gpa), len).is_some();
    assert!(has(0x1000, 0x1000) && has(0x2000, 0x1000) && has(0x2fff, 1));
    assert!(!has(0x1fff, 2), "adjacent regions are not joined");
    assert!(!has(0xfff, 1) && !has(0x3000, 1) && !has(0x2fff, 2));
    assert!(!has(u64::MAX, 2) && !has(u64::MAX - 5, u32::MAX) && !has(0x1001, u32::MAX));
    assert!(map.translate_va(FrontendVa(VA + 0x1000), 0x1000).is_some());
    assert!(map.translate_va(FrontendVa(VA + 0x1fff), 2).is_none());
    assert!(map.translate_va(FrontendVa(0x1000), 1).is_none(), "guest addresses are no frontend addresses");
}

#[test]
fn what_is_nearby_is_what_a_slice_would_be_as_far_as_the_longest_fits_behind_it() {
    let file = memfd(0x4000);
    let map = map(&[info(0x1000, 0x1000, 0)], &file).unwrap();
    let mut memory = Translator::new(&map);
    let nearby = memory.nearby(26, 100);
    let edges =
        [0u64, 0xfff, 0x1000, 0x1001, 0x1f9b, 0x1f9c, 0x1f9d, 0x1fff, 0x2000, u64::MAX, u64::MAX - 25];
    for gpa in edges.map(Gpa) {
        for len in [0, 1, 25, 26, 27, 99, 100, 101, u32::MAX] {
            let fits = (26..=100).contains(&len) && (0x1000..=0x2000 - 100).contains(&gpa.0);
            let found = nearby.slice(gpa, len);
            assert_eq!(found.is_some(), fits, "{gpa:x?} {len}");
            let same = memory.slice(gpa, len).map(|slice| (slice.start(), slice.len()));
            assert!(found.is_none_or(|slice| same == Some((slice.start(), slice.len()))), "{gpa:x?} {len}");
        }
    }
    // A region shorter than the longest, and a guest without memory.
    assert!(memory.nearby(1, 0x1001).slice(Gpa(0x1000), 1).is_none());
    assert!(memory.nearby(1, 0x1000).slice(Gpa(0x1000), 0x1000).is_some());
    let nothing = GuestMap::default();
    assert!(Translator::new(&nothing).nearby(0, 1).slice(Gpa(0), 0).is_none());
}

#[test]
fn regions_that_can_not_be_are_refused() {
    let file = memfd(0x4000);
    let refused = |regions: &[RegionInfo]| map(regions, &file).unwrap_err().to_string();
    assert!(refused(&[info(0, 0, 0)]).contains("empty"));
    assert!(refused(&[info(0, 0x5000, 0)]).contains("beyond the end"));
    assert!(refused(&[info(0, 0x1000, 0x3001)]).contains("beyond the end"));
    assert!(refused(&[info(0, 0x1000, u64::MAX)]).contains("wraps"));
    assert!(refused(&[RegionInfo { gpa: u64::MAX, ..info(0, 0x1000, 0) }]).contains("wraps"));
    assert!(refused(&[RegionInfo { frontend_va: u64::MAX, ..info(0, 0x1000, 0) }]).contains("wraps"));
    assert!(refused(&[info(0, 0x2000, 0), info(0x1fff, 0x1000, 0)]).contains("overlaps"));
    assert!(refused(&[info(0, 0x1000, 0), info(0, 0x1000, 0)]).contains("overlaps"));
    let many: Vec<_> = (0..=MAX_REGIONS as u64).map(|i| info(i * 0x1000, 0x1000, 0)).collect();
    assert!(refused(&many).contains("more than"));
    assert_eq!(map(&many[..MAX_REGIONS], &file).unwrap().regions().len(), MAX_REGIONS);
}

#[test]
fn pipe_in_place_of_memory_is_refused() {
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    assert!(GuestMap::new([(info(0, 0x1000, 0), File::from(pipe))]).is_err());
}

#[test]
fn region_added_or_removed_leaves_the_old_map_as_it_was() {
    let file = memfd(0x4000);
    let one = map(&[info(0, 0x1000, 0)], &file).unwrap();
    let two = one.with(info(0x1000, 0x1000, 0x1000), &file).unwrap();
    let back = two.without(info(0, 0x1000, 0)).unwrap();
    let has = |map: &GuestMap, gpa| Translator::new(map).slice(Gpa(gpa), 16).is_some();
    assert_eq!([has(&one, 0), has(&one, 0x1000)], [true, false]);
    assert_eq!([has(&two, 0), has(&two, 0x1000)], [true, true]);
    assert_eq!([has(&back, 0), has(&back, 0x1000)], [false, true]);
    assert!(matches!(back.without(info(0, 0x1000, 0)), Err(MemoryError::Unknown(_))));
}
