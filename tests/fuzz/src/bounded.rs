//! Runs a target on a bounded number of random inputs. The generator is seeded: a failure names the seed, and
//! `SPP_FUZZ_SEED=n` runs just that one; `SPP_FUZZ_RUNS=n` runs more.

/// SplitMix64: enough for test inputs, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let len = self.next() as usize % max;
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `target` on `n` inputs of up to `max` bytes.
pub fn run(n: u64, max: usize, target: impl Fn(&[u8])) {
    let n = setting("SPP_FUZZ_RUNS").unwrap_or(n);
    let seeds = setting("SPP_FUZZ_SEED").map_or(0..n, |seed| seed..seed + 1);
    for seed in seeds {
        let input = Random(seed).bytes(max);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&input)));
        assert!(result.is_ok(), "seed {seed} failed: run with SPP_FUZZ_SEED={seed}");
    }
}
