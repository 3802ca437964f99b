//! Runs the attacks against a backend from the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use vhost_hostile::backend::{Role, Spec};
use vhost_hostile::ring::Layout;
use vhost_hostile::rows::{ROWS, Row, find};
use vhost_hostile::suite::{Report, Suite};

const EXAMPLES: &str = "\
Examples:
  vhost-hostile --testpmd                                  Debian's dpdk-testpmd, started and restarted as needed
  vhost-hostile --spp target/x86_64-unknown-linux-gnu/release/spp --layout both
  vhost-hostile --socket /tmp/sock0 --neighbour /tmp/sock1 --pid 4711 --rows G05,F02
  vhost-hostile --socket /tmp/s0 --neighbour /tmp/s1 --restart-cmd 'my-backend /tmp/s0 /tmp/s1'

The ports of a backend given by --socket must loop: a frame that goes in comes out of the same port. Verdicts: ok and survived are
good; crashed, hung, neighbour lost frames, leaked, not recovered and wrong are not. Exit code 0 if all are good.";

/// A hostile vhost-user frontend: attacks a backend's port and watches what becomes of it and its neighbour.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES, group = clap::ArgGroup::new("backend").required(true))]
struct Options {
    /// Socket of the port to attack
    #[arg(long, value_name = "PATH", group = "backend")]
    socket: Option<PathBuf>,
    /// Attack this spp binary: a node is started with it
    #[arg(long, value_name = "BINARY", group = "backend")]
    spp: Option<PathBuf>,
    /// Attack dpdk-testpmd: it is started with two vhost ports
    #[arg(long, group = "backend")]
    testpmd: bool,
    /// Socket of another port of the same backend, whose traffic must go on
    #[arg(long, value_name = "PATH", requires = "socket")]
    neighbour: Option<PathBuf>,
    /// The backend's process, to watch what it holds
    #[arg(long, value_name = "PID", requires = "socket")]
    pid: Option<u32>,
    /// Shell command that starts the backend, now and whenever it has crashed or hung
    #[arg(long, value_name = "COMMAND", requires = "socket", conflicts_with = "pid")]
    restart_cmd: Option<String>,
    /// Connect to the backend's socket [default]
    #[arg(long, conflicts_with = "server")]
    client: bool,
    /// Listen on the socket: the backend connects
    #[arg(long)]
    server: bool,
    /// Rows to run, by name [default: all]
    #[arg(long, value_name = "ROW,...", value_delimiter = ',')]
    rows: Vec<String>,
    /// Ring layouts to run them on
    #[arg(long, value_enum, default_value_t = Layouts::Both)]
    layout: Layouts,
    /// Do in full what is otherwise done in part: a million random messages, longer races (takes minutes)
    #[arg(long)]
    thorough: bool,
    /// Print one JSON object a row
    #[arg(long)]
    json: bool,
    /// Show what the backend wrote when a row goes wrong
    #[arg(long)]
    log: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layouts {
    Split,
    Packed,
    Both,
}

impl Layouts {
    fn include(self, layout: Layout) -> bool {
        match self {
            Layouts::Split => layout == Layout::Split,
            Layouts::Packed => layout == Layout::Packed,
            Layouts::Both => true,
        }
    }
}

impl Options {
    fn spec(&self) -> Spec {
        let role = if self.server { Role::Server } else { Role::Client };
        match (&self.socket, &self.spp) {
            (Some(socket), _) => Spec::Other {
                socket: socket.clone(),
                neighbour: self.neighbour.clone(),
                role,
                pid: self.pid,
                command: self.restart_cmd.clone(),
            },
            (None, Some(binary)) => Spec::Spp { binary: binary.clone(), role },
            (None, None) => Spec::Testpmd,
        }
    }

    fn rows(&self) -> Result<Vec<&'static Row>, String> {
        if self.rows.is_empty() {
            return Ok(ROWS.iter().collect());
        }
        let named =
            |id: &String| find(id).ok_or_else(|| format!("no row is called {id}: G01 to G30, F01 to F24"));
        self.rows.iter().map(named).collect()
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("vhost-hostile: {error}");
            ExitCode::from(3)
        }
    }
}

/// Runs all rows asked for; true when every one ended well.
fn run(options: &Options) -> Result<bool, String> {
    let (rows, mut suite) = (options.rows()?, Suite::new(options.spec(), options.thorough));
    let mut all_good = true;
    for row in rows {
        for layout in row.layouts.iter().copied().filter(|layout| options.layout.include(*layout)) {
            let report = suite.run(row, layout).map_err(|trouble| trouble.to_string())?;
            print(&report, options.json);
            all_good &= report.verdict.is_good();
            if !report.verdict.is_good() && options.log {
                eprintln!("{}", suite.log());
            }
        }
    }
    Ok(all_good)
}

fn print(report: &Report, json: bool) {
    if json {
        println!("{}", serde_json::to_string(report).expect("a report has no maps with odd keys"));
    } else {
        println!("{report}");
    }
}
