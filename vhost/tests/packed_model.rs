//! The packed walk against a model of its driver: every ring of up to four descriptors, every place in both laps, every
//! way to cut what is available into chains.

#[path = "support/packed.rs"]
mod packed_ring;
mod support;

use packed_ring::*;
use spp_vhost::FromGuest;
use support::*;

/// All ways to cut `n` descriptors into chains.
fn cuts(n: u16) -> Vec<Vec<u16>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for first in 1..=n {
        for mut rest in cuts(n - first) {
            rest.insert(0, first);
            all.push(rest);
        }
    }
    all
}

#[test]
fn every_small_ring_place_and_cut_is_taken_and_given_back_as_the_model_says() {
    let mut n_cases = 0;
    for size in 1..=4u16 {
        for start in 0..size {
            for wrap in [false, true] {
                for in_order in [false, true] {
                    let mut bench: Packed<FromGuest> =
                        Packed::new(size, (start, wrap), packed(false, in_order));
                    if !wrap {
                        // What the driver's last lap left: used.
                        (0..size)
                            .for_each(|slot| bench.memory.desc(DESC, slot, 0, 0, 0, AVAIL_FLAG | USED_FLAG));
                    }
                    // On and on in the same ring, so that each cut meets each place.
                    for n in (1..=size).chain(1..=size) {
                        for cut in cuts(n) {
                            n_cases += 1;
                            round(&mut bench, &cut, in_order);
                        }
                    }
                    assert_eq!(bench.fault(), None);
                    bench.assert_no_leak();
                }
            }
        }
    }
    assert_eq!(n_cases, 704);
}

/// Offers chains of so many descriptors each, and expects their frames, and the used elements a driver counts on.
fn round(bench: &mut Packed<FromGuest>, cut: &[u16], in_order: bool) {
    let mut expected = Vec::new();
    for (i, &n) in cut.iter().enumerate() {
        let good = frame(60 + 7 * i, i as u8);
        let at = BUFFERS + 0x1000 * i as u64;
        bench.memory.write(at, &[0; 12]);
        bench.memory.write(at + 12, &good);
        // Header and frame over n descriptors, cut after each 20 bytes.
        let total = 12 + good.len() as u32;
        let part = |k: u16| {
            let last = k + 1 == n;
            let start = 20 * u32::from(k);
            let len = if last { total - start } else { 20 };
            (at + u64::from(start), len, if last { 0 } else { NEXT })
        };
        let chain: Vec<_> = (0..n).map(part).collect();
        bench.offer(bench.size - 1 - i as u16, &chain);
        expected.push(good);
    }
    assert_eq!(bench.receive(), expected, "{cut:?}");
    let size = bench.size;
    let id = |i: usize| size - 1 - i as u16;
    if in_order {
        let all = cut.iter().sum();
        let last = id(cut.len() - 1);
        assert_eq!(bench.take_used(all), Some((last, 0)), "one element for {cut:?}");
    } else {
        for (i, n) in cut.iter().enumerate() {
            let id = id(i);
            assert_eq!(bench.take_used(*n), Some((id, 0)), "element {i} of {cut:?}");
        }
    }
    assert!(bench.receive().is_empty());
    assert_eq!(bench.used, bench.avail);
}
