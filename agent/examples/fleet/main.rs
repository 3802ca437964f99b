//! A site of many hosts on one etcd: every host's agent is the real one, only the nodes are none.
//!
//! `cargo run --release -p spp-agent --example fleet -- --hosts 1000 --ports 20 --rate 100`
//!
//! Starts an etcd server on loopback, writes the keys of all hosts, starts all agents, then binds and unbinds ports at a
//! fixed rate, and at the end kills etcd under all of them. What the figures mean is in docs/scale.md.

mod simulator;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use simulator::{FleetError, Outcome, Plan};

/// A site of many hosts on one etcd, measured.
#[derive(Debug, Parser)]
struct Args {
    /// How many hosts
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    /// Vhosts each host has
    #[arg(long, default_value_t = 20)]
    ports: u32,
    /// Of these, bound before the agents start and left so
    #[arg(long, default_value_t = 10)]
    resident: u32,
    /// Plugs per second over the whole site; as many unplugs besides, once the first ports have stayed long enough
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// How long ports are plugged; unplugging ends 20 s later
    #[arg(long, default_value_t = 25)]
    seconds: u64,
    /// Where etcd keeps its data, in a directory of its own that goes with it (default: the system's temporary directory)
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 180)]
    deadline: u64,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
    /// Write the graph there, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn main() {
    let args = Args::parse();
    let began = std::time::Instant::now();
    let plan = Plan {
        hosts: args.hosts,
        ports: args.ports,
        resident: args.resident.min(args.ports),
        rate: args.rate.max(1),
        seconds: args.seconds,
        data_dir: args.data_dir.clone(),
        say: Box::new(move |text| eprintln!("{:6.1} s  {text}", began.elapsed().as_secs_f64())),
        ..Plan::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .expect("threads can be started");
    let measured = runtime.block_on(async {
        let deadline = Duration::from_secs(args.deadline);
        let late = |_| Err(FleetError::Late { what: "the whole run".into(), deadline });
        tokio::time::timeout(deadline, simulator::measure(&plan)).await.unwrap_or_else(late)
    });
    runtime.shutdown_background();
    let shown = measured.map_err(|error| error.to_string()).and_then(|outcome| show(&args, &outcome));
    if let Err(error) = shown {
        eprintln!("fleet: {error}");
        std::process::exit(1);
    }
}

fn show(args: &Args, outcome: &Outcome) -> Result<(), String> {
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(outcome).expect("figures are JSON")),
        false => println!("{}", outcome.text()),
    }
    match &args.plot {
        Some(path) => std::fs::write(path, simulator::svg(outcome))
            .map_err(|error| format!("can't write {}: {error}", path.display())),
        None => Ok(()),
    }
}
