//! spp beside DPDK on one machine.
//!
//! ```text
//! cargo bench --bench node -- --quick               every row, under a minute and a half
//! cargo bench --bench node -- --row P1 --row P6     some rows
//! cargo bench --bench node -- --json --plot bench.svg
//! ```
//!
//! On a machine that others use too, in a session of its own that goes before theirs:
//!
//! ```text
//! setsid -w bash -c 'echo -20 > /proc/self/autogroup; cargo bench --bench node'
//! ```
//!
//! The same is a program of its own, `cargo run --release -p spp-bench`, for which P9 needs a `spp` built before. It
//! starts everything itself and takes samples of ours and of the baseline in turns, so that both see the same
//! machine. [`runner`] takes samples and compares them, [`rows`] knows what is compared, [`cpu`] and
//! [`testpmd`] and [`dpdk`] are the means, [`report`] and [`plot`] print.
#![forbid(unsafe_code)]

mod cpu;
mod dpdk;
mod node;
mod plot;
mod port;
mod report;
mod rows;
mod runner;
mod testpmd;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;

use runner::{Plan, Result};

/// Measures spp beside DPDK, in turns, on this machine.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Args {
    /// Less telling cases are left out, and samples are few and short: shows whether all works, and roughly who is faster.
    #[arg(long)]
    quick: bool,
    /// Only this row; again for each.
    #[arg(long, value_name = "ROW", ignore_case = true, value_parser = rows::ROWS.map(|(row, _)| row))]
    row: Vec<String>,
    /// Samples of each side [default: 9, or 3 with --quick]; up to twice as many where they can't be compared.
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    samples: Option<usize>,
    /// Length of one sample [default: 500, or 30 with --quick].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    window_ms: Option<u64>,
    /// Two CPUs: that of the backend, and that of the frontend.
    #[arg(long, value_name = "CPU,CPU", default_value = "1,0", value_parser = parse_cpus)]
    cpus: (usize, usize),
    /// Samples in which a polling thread got less than this share of its CPU count only if there are no others.
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    share_min: f64,
    /// Prints all samples as JSON at the end, and on standard error what is done.
    #[arg(long)]
    json: bool,
    /// Draws the ratios.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// What `cargo bench` says to every bench.
    #[arg(long = "bench", hide = true)]
    _from_cargo: bool,
}

const EXAMPLES: &str = "\
Examples:
  cargo bench --bench node -- --quick                      all rows in less than a minute
  cargo bench --bench node -- --row P1 --row P6            two of them, in full
  cargo bench --bench node -- --json --plot ratios.svg     all samples for a program, and a picture";

fn parse_cpus(text: &str) -> std::result::Result<(usize, usize), String> {
    let pair = text.split_once(',').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    pair.filter(|(a, b)| a != b).ok_or_else(|| "two different CPU numbers, as in 1,0".to_owned())
}

/// The whole program, with the arguments of this process. `spp` is the binary that P9 is about; without one, what `SPP_BIN`
/// names or was built last.
pub fn main(spp: Option<&'static str>) -> ExitCode {
    let args = Args::parse();
    match run(&args, spp) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spp-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, spp: Option<&'static str>) -> Result<()> {
    let (backend_cpu, frontend_cpu) = args.cpus;
    let plan = Plan {
        n_samples: args.samples.unwrap_or(if args.quick { 3 } else { 9 }),
        window: Duration::from_millis(args.window_ms.unwrap_or(if args.quick { 30 } else { 500 })),
        quick: args.quick,
        backend_cpu,
        frontend_cpu,
        share_min: args.share_min,
        spp,
    };
    let wanted = |row: &str| args.row.is_empty() || args.row.iter().any(|r| r.eq_ignore_ascii_case(row));
    let mut cases = Vec::new();
    let machine = report::Machine::look(&plan);
    if !args.json {
        machine.print();
        report::print_head();
    }
    for (row, measure) in rows::ROWS {
        if !wanted(row) {
            continue;
        }
        measure(&plan, &mut |case| {
            if args.json {
                eprintln!("{} {}", case.row, case.name);
            } else {
                report::print_case(&case, plan.share_min);
            }
            cases.push(case);
        });
    }
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&report::json(&machine, &cases)).map_err(|e| e.to_string())?
        );
    }
    match &args.plot {
        Some(path) => plot::draw(path, &cases, plan.share_min),
        None => Ok(()),
    }
}
