//! Instructions per packet of a driver beside Debian's dpdk-testpmd, on the same emulated NICs, in the same machine.
//!
//!     cargo bench --bench lab              all families
//!     cargo bench --bench lab -- igb       one
//!     cargo bench --bench lab -- --json    for programs
//!
//! The machine counts time in its own instructions, so that a difference of two readings of the time-stamp counter
//! is the number executed in between, whatever else the host does. Two NICs of a family are the ends of one cable. Each
//! side in turn starts them, sends a burst of 32 out of both, and from then on sends what a NIC receives out of it again;
//! it reads the counter before it receives and after it has sent, as testpmd does in io mode with `record-core-cycles`.
//! QEMU moves a burst to the other NIC at once, so that the next one is of 32 too.

#[path = "../tests/support/lab/mod.rs"]
mod lab;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use lab::Lab;
use lab::machine::{Builder, Machine};
use lab::testpmd::{Testpmd, reserve_huge_pages};
use serde_json::{Value, json};

/// Samples of each side; the median is printed.
const SAMPLES: usize = 5;
/// Of the guest's time, which is 1,000 million instructions a second.
const SAMPLE_SECONDS: f64 = 0.1;
/// For testpmd's 4096 buffers, and the rings of both sides.
const HUGE_PAGES: u32 = 224;

/// A row of the table.
struct Family {
    name: &'static str,
    /// QEMU's device.
    device: &'static str,
    /// What testpmd is told besides.
    options: &'static str,
}

const FAMILIES: &[Family] = &[
    Family { name: "e1000e", device: "e1000e", options: "" },
    Family { name: "igb", device: "igb", options: "" },
    Family {
        name: "virtio-net",
        // The timer moves a burst whole. Otherwise another thread of QEMU's would, frame by frame, under the driver's eyes.
        device: "virtio-net-pci,iommu_platform=on,disable-legacy=on,ats=on,ioeventfd=off,tx=timer,x-txtimer=20000",
        options: "",
    },
    Family { name: "vmxnet3", device: "vmxnet3", options: "--txd=512" },
];

#[derive(Parser)]
struct Options {
    /// Only this family
    family: Option<String>,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one side took.
struct Cost {
    /// Instructions per packet of each sample, ascending.
    samples: Vec<f64>,
    /// Packets in a burst, on average.
    mean_burst: f64,
}

impl Cost {
    fn of(mut samples: Vec<f64>, mean_burst: f64) -> Cost {
        samples.sort_unstable_by(f64::total_cmp);
        Cost { samples, mean_burst }
    }

    fn median(&self) -> f64 {
        self.samples[self.samples.len() / 2]
    }

    fn json(&self) -> Value {
        json!({"median": self.median(), "samples": self.samples, "mean_burst": self.mean_burst})
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let lab = match Lab::with(&["dpdk-testpmd"]) {
        Ok(lab) => lab,
        Err(reason) => {
            eprintln!("nothing is measured: {reason}");
            return ExitCode::FAILURE;
        }
    };
    let wanted = |family: &&Family| options.family.as_ref().is_none_or(|name| name == family.name);
    let families: Vec<&Family> = FAMILIES.iter().filter(wanted).collect();
    if families.is_empty() {
        eprintln!("there are {}", FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", "));
        return ExitCode::FAILURE;
    }
    let dir = tempfile::tempdir().expect("scratch space");
    let mut machine = boot(&lab, dir.path(), &families);
    reserve_huge_pages(&mut machine, HUGE_PAGES);
    let mut table = serde_json::Map::new();
    if !options.json {
        println!(
            "instructions per packet, receive and send, median of {SAMPLES} samples (packets in a burst)"
        );
        println!("{:12} {:>16} {:>16} {:>8}", "", "spp", "dpdk-testpmd", "ratio");
    }
    for (n, family) in families.iter().enumerate() {
        let addresses = [0, 1].map(|end| format!("0000:{:02x}:00.0", 2 * n + end + 1));
        let [ours, theirs] = [spp(&mut machine, &addresses), testpmd(&mut machine, family, &addresses)];
        let ratio = ours.median() / theirs.median();
        if !options.json {
            let cell = |cost: &Cost| format!("{:.1} ({:.1})", cost.median(), cost.mean_burst);
            println!("{:12} {:>16} {:>16} {ratio:8.2}", family.name, cell(&ours), cell(&theirs));
        }
        let row = json!({"spp": ours.json(), "testpmd": theirs.json(), "ratio": ratio});
        table.insert(family.name.to_owned(), row);
    }
    if options.json {
        println!("{}", Value::Object(table));
    }
    ExitCode::SUCCESS
}

fn boot(lab: &Lab, dir: &Path, families: &[&Family]) -> Machine {
    let forward = lab::build(&["--release", "-p", "spp-drivers", "--example", "nic_forward"], "nic_forward");
    let mut builder = Builder::new(lab, "counting")
        .memory_mib(1536)
        .counts_instructions()
        .viommu()
        .host_root()
        .program("bin/nic_forward", &forward);
    for (n, family) in families.iter().enumerate() {
        for end in 0..2 {
            let (id, mac) = (format!("n{n}{end}"), format!("52:54:00:00:{n:02x}:{end:02x}"));
            builder = builder.nic_at(family.device, &id, &mac, format!("hubport,id={id},hubid={n}"));
        }
    }
    builder.boot(dir)
}

fn spp(machine: &mut Machine, [a, b]: &[String; 2]) -> Cost {
    let said =
        machine.sh(&format!("mkdir -p /run/forward; nic_forward /run/forward {} {a} {b}", SAMPLES + 1));
    let numbers = |line: &str| -> Option<[f64; 3]> {
        let words: Vec<&str> = line.split(' ').collect();
        let ["packets", packets, "ticks", ticks, "bursts", bursts] = words[..] else { return None };
        Some([packets, ticks, bursts].map(|word| word.parse().expect("a number")))
    };
    // The first sample warms up.
    let rows: Vec<[f64; 3]> = said.lines().filter_map(numbers).skip(1).collect();
    assert_eq!(rows.len(), SAMPLES, "{said}");
    let sum = |column: usize| rows.iter().map(|row| row[column]).sum::<f64>();
    Cost::of(rows.iter().map(|[packets, ticks, _]| ticks / packets).collect(), sum(0) / sum(2))
}

fn testpmd(machine: &mut Machine, family: &Family, addresses: &[String; 2]) -> Cost {
    for address in addresses {
        machine.sh(&format!(
            "cd /sys/bus/pci/devices/{address}
             [ ! -e driver ] || echo {address} >driver/unbind
             echo vfio-pci >driver_override
             echo {address} >/sys/bus/pci/drivers_probe
             [ $(basename $(readlink driver)) = vfio-pci ]"
        ));
    }
    let [a, b] = addresses;
    let app = "--forward-mode=io --port-topology=loop --record-core-cycles --record-burst-stats";
    let (name, options) = (family.name, family.options);
    let testpmd = Testpmd::start(machine, name, &format!("-a {a} -a {b}"), &format!("{app} {options}"));
    let sample = format!(
        "echo 'clear fwd stats all' >/run/{name}.in; sleep {SAMPLE_SECONDS}
         echo 'show fwd stats all' >/run/{name}.in; sleep {SAMPLE_SECONDS}\n"
    );
    machine.sh(&format!(
        "echo 'start tx_first' >/run/{name}.in; sleep {SAMPLE_SECONDS}\n{}
         echo quit >/run/{name}.in",
        sample.repeat(SAMPLES)
    ));
    let bye = format!("grep -q '^Bye' {name}.log");
    machine.wait_sh("testpmd's end", std::time::Duration::from_secs(120), &bye);
    let log = testpmd.log(machine);
    // Another one, of all samples together, comes with its end.
    let reports: Vec<Report> = log.split("MHz Clock").filter_map(Report::parse).take(SAMPLES).collect();
    assert_eq!(reports.len(), SAMPLES, "{log}");
    let sum = |what: fn(&Report) -> f64| reports.iter().map(what).sum::<f64>();
    let mean_burst = sum(|report| report.n_packets) / sum(|report| report.n_bursts);
    Cost::of(reports.iter().map(|report| report.ticks / report.n_packets).collect(), mean_burst)
}

/// What testpmd says of a sample.
struct Report {
    ticks: f64,
    n_packets: f64,
    /// Sent ones. Polls that found nothing are among the received ones.
    n_bursts: f64,
}

impl Report {
    /// Reads the lines `CPU cycles/packet=260.95 (total cycles=107543581 / total io packets=412128) at 1000 MHz Clock`
    /// and, before it and for each port, `TX-bursts : 6543 [0% of 0 pkts + 100% of 32 pkts]`.
    fn parse(text: &str) -> Option<Report> {
        let after = |word: &'static str| {
            text.match_indices(word).filter_map(move |(at, _)| {
                let number = text[at + word.len()..].split(|c: char| !c.is_ascii_digit()).next()?;
                number.parse::<f64>().ok()
            })
        };
        let (ticks, n_packets) = (after("total cycles=").next()?, after("io packets=").next()?);
        Some(Report { ticks, n_packets, n_bursts: after("TX-bursts : ").sum() })
    }
}
