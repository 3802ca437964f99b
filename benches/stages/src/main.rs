//! What each stage of the packet path costs, at bursts of 1, 4, 8 and 32.
//!
//!     cargo run --release -p spp-stages            ticks of the time-stamp counter per packet
//!     cargo run --release -p spp-stages -- forward  the same for rows whose name has "forward" in it
//!     cargo test -p spp-stages                      instructions per packet, against instructions.txt
//!
//! One thread plays the stage and what lies before and behind it, in turns; only the stage's turn is
//! counted. `--count` is what the test runs under callgrind: it does a fixed number of turns with fixed
//! inputs, so that the same binary gives the same counts.
#![forbid(unsafe_code)]

mod components;
mod guests;
mod nic;
mod node;
mod posted;
mod ring;
mod stage;

use std::process::ExitCode;

use stage::{BURSTS, Row};

fn rows() -> impl Iterator<Item = Row> {
    ring::rows()
        .into_iter()
        .chain(components::rows())
        .chain(guests::rows())
        .chain(node::rows())
        .chain(nic::rows())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--count") => {
            let part = args.get(1).map_or("", String::as_str);
            for row in rows().filter(|row| row.guarded && row.name.contains(part)) {
                for burst in BURSTS {
                    stage::count(&row, burst);
                    println!("{}\t{burst}\t{}", row.name, stage::packets_counted(burst));
                }
            }
        }
        Some(option) if option.starts_with('-') => {
            eprintln!("unknown option {option}: there are --count, and part of a row's name");
            return ExitCode::FAILURE;
        }
        part => print_ticks(part.unwrap_or_default()),
    }
    ExitCode::SUCCESS
}

fn print_ticks(part: &str) {
    println!("{:44} {:>7} {:>7} {:>7} {:>7}", "ticks per packet at a burst of", 1, 4, 8, 32);
    for row in rows().filter(|row| row.name.contains(part)) {
        let [a, b, c, d] = BURSTS.map(|burst| stage::ticks_per_packet(&row, burst));
        println!("{:44} {a:7.1} {b:7.1} {c:7.1} {d:7.1}", row.name);
    }
}
