//! Takes samples of ours and of the baseline in turns, keeps those that may be compared, and sums them up.

use std::time::Duration;

use serde::Serialize;

use crate::cpu;

/// Errors here are read by whoever runs the benchmark.
pub type Result<T> = std::result::Result<T, String>;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Samples of each side; up to twice as many where fewer than half of them can be compared.
    pub n_samples: usize,
    /// Length of each.
    pub window: Duration,
    /// Leaves the less telling cases out.
    pub quick: bool,
    /// Where the measured thread runs.
    pub backend_cpu: usize,
    /// Where the traffic comes from.
    pub frontend_cpu: usize,
    /// Least share of its CPU a polling thread must have had.
    pub share_min: f64,
    /// The `spp` to measure whole, if whoever started the benchmark has built one for it.
    pub spp: Option<&'static str>,
}

impl Plan {
    /// The backend's CPU, and the other one.
    pub fn backend_first(&self) -> [usize; 2] {
        [self.backend_cpu, self.frontend_cpu]
    }

    /// The frontend's CPU, and the other one.
    pub fn frontend_first(&self) -> [usize; 2] {
        [self.frontend_cpu, self.backend_cpu]
    }

    fn pace_ns(&self) -> Result<[f64; 2]> {
        Ok([cpu::pace_ns(self.backend_cpu)?, cpu::pace_ns(self.frontend_cpu)?])
    }

    /// A reading, and what the machine was like before and after it.
    fn sample(&self, side: &mut dyn Side) -> Result<Sample> {
        let handover_ns = cpu::handover_ns(self.backend_cpu, self.frontend_cpu);
        let before = self.pace_ns()?;
        let reading = side.sample(self.window)?;
        let after = self.pace_ns()?;
        let pace_ns = [0, 1].map(|cpu| f64::max(before[cpu], after[cpu]));
        Ok(Sample { reading, handover_ns, pace_ns })
    }
}

/// What a side measured in one window.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Reading {
    /// In the case's unit.
    pub value: f64,
    /// The backend's cycles per packet, counted in turns that had packets.
    pub cycles_per_packet: Option<f64>,
    /// The smallest share of its CPU that any polling thread had.
    pub cpu_share: f64,
}

/// A reading and the machine's state beside it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// What was measured.
    #[serde(flatten)]
    pub reading: Reading,
    /// One hand-over of a cache line between the two CPUs, just before.
    pub handover_ns: f64,
    /// What a piece of work took on the backend's CPU and on the frontend's: the longer one of just before and just after.
    pub pace_ns: [f64; 2],
}

/// Where the hypervisor had put the two CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// They share a core.
    One,
    /// They share a cache.
    Near,
    /// They don't.
    Far,
}

/// What samples must have in common to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct State {
    /// Where the CPUs were.
    pub placement: Placement,
    /// Whether others used the backend's core, and the frontend's.
    pub shared: [bool; 2],
}

/// Between the kinds of hand-over seen: 20 ns, 45 to 60, and 95 to 250.
const ONE_MAX_NS: f64 = 30.0;
const NEAR_MAX_NS: f64 = 75.0;
/// A core that others use as well takes 1.5 to 1.9 times as long as by itself.
const SHARED_MIN: f64 = 1.25;

impl Sample {
    /// `best` is what the work takes on CPUs that are alone on their cores.
    fn state(&self, best: [f64; 2]) -> State {
        let placement = match self.handover_ns {
            ns if ns < ONE_MAX_NS => Placement::One,
            ns if ns < NEAR_MAX_NS => Placement::Near,
            _ => Placement::Far,
        };
        State { placement, shared: [0, 1].map(|cpu| self.pace_ns[cpu] > SHARED_MIN * best[cpu]) }
    }
}

/// One of the two that are compared. Samples can be taken again and again; between them it keeps its CPUs free.
pub trait Side {
    /// Runs for `window`.
    fn sample(&mut self, window: Duration) -> Result<Reading>;
}

/// What is compared.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// `P1` to `P9`.
    pub row: &'static str,
    /// In words.
    pub name: String,
    /// Of all values.
    pub unit: &'static str,
    /// True when less is better.
    pub less_is_better: bool,
    /// Target for [`Comparison::ratio`], where there is one.
    pub target: Option<f64>,
    /// The target of [`Comparison::cycles_ratio`].
    pub cycles_target: Option<f64>,
    /// Ours.
    pub ours: Vec<Sample>,
    /// The baseline's; empty without one.
    pub baseline: Vec<Sample>,
    /// Why there are no samples of one side, or other remarks.
    pub remark: Option<String>,
}

/// Smallest, middle and largest of some values.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Middle one.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// None of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Some(Spread { min: *values.first()?, median: values[values.len() / 2], max: *values.last()? })
    }
}

/// What the samples that may be compared came to.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// What the machine was like in them.
    pub state: State,
    /// Samples used of ours and of the baseline.
    pub n_used: (usize, usize),
    /// True when polling threads had less than their share of the CPU in them: there were no better ones.
    pub disturbed: bool,
    /// Ours.
    pub ours: Option<Spread>,
    /// The baseline.
    pub baseline: Option<Spread>,
    /// Medians: ours over the baseline's, or the other way round where less is better. 2 is twice as good.
    pub ratio: Option<f64>,
    /// Cycles per packet, median of ours and of the baseline.
    pub cycles: (Option<f64>, Option<f64>),
    /// Ours over the baseline's.
    pub cycles_ratio: Option<f64>,
}

impl Case {
    /// A case without samples.
    pub fn new(row: &'static str, name: impl Into<String>, unit: &'static str, target: Option<f64>) -> Case {
        Case {
            row,
            name: name.into(),
            unit,
            less_is_better: false,
            target,
            cycles_target: None,
            ours: Vec::new(),
            baseline: Vec::new(),
            remark: None,
        }
    }

    /// The same, where less is better.
    pub fn less_is_better(self) -> Case {
        Case { less_is_better: true, ..self }
    }

    /// Takes samples A B A B ... A side that can't be had is said in the remark, and the other one measured alone.
    pub fn measure(
        mut self,
        plan: &Plan,
        ours: Result<Box<dyn Side>>,
        baseline: Result<Box<dyn Side>>,
    ) -> Case {
        let mut remarks = Vec::new();
        let mut usable = |side: Result<Box<dyn Side>>, who: &str| {
            side.map_err(|why| remarks.push(format!("{who}: {why}"))).ok()
        };
        let mut sides = [usable(ours, "ours"), usable(baseline, "no baseline")];
        for n_taken in 0..2 * plan.n_samples {
            if n_taken >= plan.n_samples && self.is_enough(plan) {
                break;
            }
            for (side, samples) in sides.iter_mut().zip([&mut self.ours, &mut self.baseline]) {
                let Some(running) = side else { continue };
                match plan.sample(running.as_mut()) {
                    Ok(sample) => samples.push(sample),
                    Err(why) => {
                        remarks.push(why);
                        *side = None;
                    }
                }
            }
        }
        self.remark = (!remarks.is_empty()).then(|| remarks.join("; "));
        self
    }

    /// Whether half the samples wanted of each side that there is can be compared.
    fn is_enough(&self, plan: &Plan) -> bool {
        let result = self.compare(plan.share_min);
        let n_wanted = plan.n_samples.div_ceil(2);
        let suffices = |n_used: usize, all: &[Sample]| all.is_empty() || n_used >= n_wanted;
        !result.disturbed
            && suffices(result.n_used.0, &self.ours)
            && suffices(result.n_used.1, &self.baseline)
    }

    /// Compares samples of the state that has most of them on both sides, and of those the undisturbed.
    pub fn compare(&self, share_min: f64) -> Comparison {
        let all = || self.ours.iter().chain(&self.baseline);
        let best = [0, 1].map(|cpu| all().map(|s| s.pace_ns[cpu]).fold(f64::MAX, f64::min));
        let fits =
            |s: &Sample, state: State, share: f64| s.state(best) == state && s.reading.cpu_share >= share;
        let weight = |state: State, share: f64| {
            let count = |samples: &[Sample]| samples.iter().filter(|s| fits(s, state, share)).count();
            let (a, b) = (count(&self.ours), count(&self.baseline));
            if self.baseline.is_empty() || self.ours.is_empty() { a + b } else { a.min(b) }
        };
        // The first of the best.
        let most = |share: f64| {
            let choices = all().map(|s| (weight(s.state(best), share), s.state(best)));
            choices.reduce(|a, b| if b.0 > a.0 { b } else { a })
        };
        let nowhere = State { placement: Placement::Far, shared: [false; 2] };
        let is_clean = most(share_min).is_some_and(|(n, _)| n > 0);
        let share = if is_clean { share_min } else { 0.0 };
        let state = most(share).map_or(nowhere, |(_, state)| state);
        let keep = |samples: &[Sample]| -> Vec<Reading> {
            samples.iter().filter(|s| fits(s, state, share)).map(|s| s.reading).collect()
        };
        let (a, b) = (keep(&self.ours), keep(&self.baseline));
        let spread = |of: &[Reading]| Spread::of(of.iter().map(|r| r.value));
        let cycles =
            |of: &[Reading]| Spread::of(of.iter().filter_map(|r| r.cycles_per_packet)).map(|s| s.median);
        let (ours, baseline, cycles) = (spread(&a), spread(&b), (cycles(&a), cycles(&b)));
        let ratio = ours
            .zip(baseline)
            .map(|(a, b)| if self.less_is_better { b.median / a.median } else { a.median / b.median });
        Comparison {
            state,
            n_used: (a.len(), b.len()),
            disturbed: !is_clean,
            ours,
            baseline,
            ratio,
            cycles,
            cycles_ratio: cycles.0.zip(cycles.1).map(|(a, b)| a / b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: f64, handover_ns: f64, cpu_share: f64) -> Sample {
        let reading = Reading { value, cycles_per_packet: Some(100.0 / value), cpu_share };
        Sample { reading, handover_ns, pace_ns: [10.0, 20.0] }
    }

    #[test]
    fn only_undisturbed_samples_of_equal_placement_are_compared() {
        let mut case = Case::new("P1", "x", "M/s", None);
        case.ours = vec![sample(10.0, 50.0, 1.0), sample(90.0, 200.0, 1.0), sample(12.0, 50.0, 0.99)];
        case.baseline = vec![sample(5.0, 50.0, 1.0), sample(6.0, 55.0, 1.0), sample(1.0, 50.0, 0.5)];
        let result = case.compare(0.95);
        let near = State { placement: Placement::Near, shared: [false; 2] };
        assert_eq!((result.state, result.n_used, result.disturbed), (near, (2, 2), false));
        assert_eq!((result.ours.unwrap().median, result.baseline.unwrap().min), (12.0, 5.0));
        assert_eq!(result.ratio, Some(2.0));
        assert_eq!(case.less_is_better().compare(0.95).ratio, Some(0.5));
    }

    #[test]
    fn samples_of_a_core_that_others_use_are_compared_with_such_only() {
        let slowed = |value, pace_ns| Sample { pace_ns, ..sample(value, 100.0, 1.0) };
        let mut case = Case::new("P1", "x", "M/s", None);
        case.ours = vec![sample(10.0, 120.0, 1.0), slowed(5.0, [17.0, 20.0]), slowed(6.0, [18.0, 20.0])];
        case.baseline = vec![slowed(2.5, [16.0, 21.0]), slowed(9.0, [10.0, 38.0]), slowed(3.0, [19.0, 22.0])];
        let result = case.compare(0.95);
        assert_eq!(result.state, State { placement: Placement::Far, shared: [true, false] });
        assert_eq!((result.n_used, result.ratio), ((2, 2), Some(2.0)));
    }

    #[test]
    fn disturbed_samples_are_used_only_for_want_of_others_and_it_is_said() {
        let mut case = Case::new("P1", "x", "M/s", None);
        case.ours = vec![sample(10.0, 50.0, 0.5)];
        case.baseline = vec![sample(5.0, 50.0, 0.6)];
        let result = case.compare(0.95);
        assert_eq!((result.disturbed, result.n_used, result.ratio), (true, (1, 1), Some(2.0)));
        case.ours.push(sample(10.0, 200.0, 1.0));
        assert!(case.compare(0.95).disturbed, "the baseline has no undisturbed one");
    }

    #[test]
    fn without_a_baseline_ours_stands_alone() {
        let mut case = Case::new("P1", "x", "M/s", None);
        case.ours = vec![sample(10.0, 50.0, 1.0)];
        let result = case.compare(0.95);
        assert_eq!((result.n_used, result.ratio, result.disturbed), ((1, 0), None, false));
    }

    #[test]
    fn side_that_cannot_be_had_is_a_remark() {
        struct Constant(f64);
        impl Side for Constant {
            fn sample(&mut self, _: Duration) -> Result<Reading> {
                Ok(Reading { value: self.0, cycles_per_packet: None, cpu_share: 1.0 })
            }
        }
        let plan = Plan {
            n_samples: 3,
            window: Duration::ZERO,
            quick: true,
            backend_cpu: 0,
            frontend_cpu: 0,
            share_min: 0.95,
            spp: None,
        };
        let case = Case::new("P1", "x", "M/s", None);
        let case = case.measure(&plan, Ok(Box::new(Constant(3.0))), Err("not installed".into()));
        assert_eq!((case.ours.len(), case.baseline.len()), (3, 0));
        assert_eq!(case.remark.as_deref(), Some("no baseline: not installed"));
    }
}
