//! What is printed: a table for people, JSON for programs.

use std::fs;

use serde::Serialize;
use serde_json::{Value, json};

use crate::runner::{Case, Placement, Plan, Spread, State};
use crate::testpmd::huge_pages_mib;

/// The machine and the settings, said before any number.
#[derive(Serialize)]
pub struct Machine {
    cpu: String,
    kernel: String,
    n_cpus: usize,
    huge_pages_mib: u32,
    backend_cpu: usize,
    frontend_cpu: usize,
    n_samples: usize,
    window_ms: u64,
    share_min: f64,
    load: String,
}

impl Machine {
    /// This machine now.
    pub fn look(plan: &Plan) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        Machine {
            cpu: model.and_then(|line| line.split(": ").nth(1)).unwrap_or_default().to_owned(),
            kernel: read("/proc/sys/kernel/osrelease"),
            n_cpus: std::thread::available_parallelism().map_or(0, usize::from),
            huge_pages_mib: huge_pages_mib(),
            backend_cpu: plan.backend_cpu,
            frontend_cpu: plan.frontend_cpu,
            n_samples: plan.n_samples,
            window_ms: plan.window.as_millis() as u64,
            share_min: plan.share_min,
            load: read("/proc/loadavg"),
        }
    }

    /// For people.
    pub fn print(&self) {
        println!("{}, {} CPUs, Linux {}, load {}", self.cpu, self.n_cpus, self.kernel, self.load);
        println!(
            "backend on CPU {}, frontend on CPU {}; {} samples of {} ms each, in turns; {} MiB of huge pages",
            self.backend_cpu, self.frontend_cpu, self.n_samples, self.window_ms, self.huge_pages_mib
        );
        println!(
            "~: a polling thread had less than {:.0} % of its CPU; near, far: do the CPUs share a cache",
            self.share_min * 100.0
        );
    }
}

/// Column heads.
pub fn print_head() {
    println!(
        "\n{:3} {:46} {:>8} {:>25} {:>25} {:>7} {:>7}  {:>15} {:>6} {:>6}  samples",
        "row",
        "case",
        "unit",
        "ours min/median/max",
        "baseline",
        "ratio",
        "target",
        "cycles/packet",
        "ratio",
        "target"
    );
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{v:.0}"),
        v if v >= 100.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or("-".to_owned(), |s| [s.min, s.median, s.max].map(number).join("/"))
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), number)
}

fn state(State { placement, shared }: State) -> String {
    let place = match placement {
        Placement::One => "one",
        Placement::Near => "near",
        Placement::Far => "far",
    };
    match shared {
        [false, false] => place.to_owned(),
        [true, false] => format!("{place}, backend's core shared"),
        [false, true] => format!("{place}, frontend's core shared"),
        [true, true] => format!("{place}, cores shared"),
    }
}

/// One line.
pub fn print_case(case: &Case, share_min: f64) {
    let result = case.compare(share_min);
    let cycles = format!("{} {}", or_dash(result.cycles.0), or_dash(result.cycles.1));
    println!(
        "{:3} {:46} {:>8} {:>25} {:>25} {:>7} {:>7}  {:>15} {:>6} {:>6}  {}{}/{} of {} {}",
        case.row,
        case.name,
        case.unit,
        spread(result.ours),
        spread(result.baseline),
        or_dash(result.ratio),
        or_dash(case.target),
        cycles,
        or_dash(result.cycles_ratio),
        or_dash(case.cycles_target),
        if result.disturbed { "~" } else { "" },
        result.n_used.0,
        result.n_used.1,
        case.ours.len().max(case.baseline.len()),
        state(result.state),
    );
    if let Some(remark) = &case.remark {
        println!("    {remark}");
    } else if result.ratio.is_none() {
        println!(
            "    no ratio: no two samples were taken in one state of the machine; more --samples may find some"
        );
    }
}

/// Everything.
pub fn json(machine: &Machine, cases: &[Case]) -> Value {
    let case = |case: &Case| json!({ "case": case, "result": case.compare(machine.share_min) });
    json!({ "machine": machine, "cases": cases.iter().map(case).collect::<Vec<_>>() })
}
