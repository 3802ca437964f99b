//! Runs rows one after the other against one backend, and holds each against what all must leave behind: a live
//! process, a neighbour without a loss, a port that works again, and nothing held.

use std::time::Duration;

use serde::Serialize;

use crate::arena::{Arena, Trouble, goes_on, pass};
use crate::backend::{Backend, Spec};
use crate::frontend::{Frontend, FrontendError, Wish};
use crate::message::PATIENCE;
use crate::process::Holdings;
use crate::ring::Layout;
use crate::rows::Row;
use crate::traffic::Traffic;

/// Frames the neighbour must get through each way while a row's attack stands.
const NEIGHBOUR_FRAMES: u64 = 64;
/// Memory an allocator may keep: a backend that can be asked is held to the first.
const SLACK_KIB: [u64; 2] = [8 << 10, 64 << 10];

/// What became of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything as it should be, by the backend's own account too.
    Ok,
    /// Everything as it should be as far as can be seen from outside.
    Survived,
    /// The process ended.
    Crashed,
    /// The port, its neighbour, or the control socket stood still until the backend was restarted.
    Hung,
    /// The neighbour lost frames.
    Lost,
    /// The process holds more than before.
    Leaked,
    /// The attacked port works no more.
    NotRecovered,
    /// The backend did or said something else than it must.
    Wrong,
    /// The backend lacks what the row attacks.
    NotOffered,
}

impl Verdict {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Survived => "survived",
            Verdict::Crashed => "crashed",
            Verdict::Hung => "hung",
            Verdict::Lost => "neighbour lost frames",
            Verdict::Leaked => "leaked",
            Verdict::NotRecovered => "not recovered",
            Verdict::Wrong => "wrong",
            Verdict::NotOffered => "not offered",
        }
    }

    /// True when nothing is held against the backend.
    pub fn is_good(self) -> bool {
        matches!(self, Verdict::Ok | Verdict::Survived | Verdict::NotOffered)
    }
}

/// One row's result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `G07`.
    pub row: &'static str,
    /// What is done.
    pub what: &'static str,
    /// Split or packed.
    pub layout: Layout,
    /// Held against all that must be so.
    pub verdict: Verdict,
    /// What became of the attack.
    pub words: String,
    /// Frames the neighbour got each way meanwhile.
    pub neighbour_frames: u64,
    /// Wall-clock time, for information.
    pub took_ms: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (row, layout, verdict) = (self.row, self.layout.name(), self.verdict.name());
        write!(f, "{row} {layout:<6} {verdict:<13} {} ({})", self.words, self.what)
    }
}

/// A backend with traffic on it.
struct Stage {
    // Dropped in this order: the traffic's connections go before the backend.
    traffic: Traffic,
    backend: Backend,
    level: Option<Holdings>,
}

/// The rows' runner.
pub struct Suite {
    spec: Spec,
    thorough: bool,
    stage: Option<Stage>,
    number: u64,
    /// Log of a backend that is gone.
    last_log: String,
}

impl Suite {
    /// A suite against this backend, which is started with the first row.
    pub fn new(spec: Spec, thorough: bool) -> Suite {
        Suite { spec, thorough, stage: None, number: 0, last_log: String::new() }
    }

    /// Runs a row. `Err` when there is no backend to run it against.
    pub fn run(&mut self, row: &'static Row, layout: Layout) -> Result<Report, Trouble> {
        let mut stage = match self.stage.take() {
            Some(stage) if stage.backend.is_alive() => stage,
            _ => Stage::build(&self.spec, &mut self.number)?,
        };
        let start = std::time::Instant::now();
        let arrived = stage.traffic.arrived();
        let (mut verdict, mut words) = stage.judge(row, layout, self.thorough, &mut self.number);
        if !stage.backend.is_alive() {
            (verdict, words) = (Verdict::Crashed, stage.backend.epitaph());
        }
        assert!(stage.traffic.is_sound(), "the neighbour's thread failed: a mistake of this suite");
        let neighbour_frames = stage.traffic.arrived() - arrived;
        let took_ms = start.elapsed().as_millis() as u64;
        let report =
            Report { row: row.id, what: row.what, layout, verdict, words, neighbour_frames, took_ms };
        if report.verdict.is_good() {
            self.stage = Some(stage);
        } else {
            // Whatever a bad row left behind must not be held against the next.
            self.last_log = stage.backend.log();
        }
        Ok(report)
    }

    /// What the backend has written: the present one, or the one that is gone.
    pub fn log(&self) -> String {
        self.stage.as_ref().map_or_else(|| self.last_log.clone(), |stage| stage.backend.log())
    }
}

/// A backend and its traffic.
impl Stage {
    fn build(spec: &Spec, number: &mut u64) -> Result<Stage, Trouble> {
        let backend = Backend::start(spec)?;
        let patience = 3 * PATIENCE;
        let attach = |port: &crate::backend::Port| -> Result<Frontend, Trouble> {
            Ok(Frontend::attach(port.connect(patience)?, Wish::new(Layout::Split))?)
        };
        let mut built = || -> Result<(Traffic, Frontend), Trouble> {
            let neighbour = backend.neighbour.as_ref().map(attach).transpose()?;
            let wire = backend.wire.as_ref().map(attach).transpose()?;
            // The port itself is used once before anything is measured.
            let mut first = attach(&backend.victim)?;
            let traffic = Traffic::start(neighbour, wire);
            pass(&mut first, &traffic, number)?;
            Ok((traffic, first))
        };
        let (traffic, first) = match built() {
            Ok(built) => built,
            Err(trouble) => {
                return Err(Trouble::Wrong(format!("{trouble}; {spec} says: {}", backend.last_words())));
            }
        };
        drop(first);
        std::thread::sleep(Duration::from_millis(100));
        let mut stage = Stage { traffic, backend, level: None };
        stage.level = stage.settled();
        Ok(stage)
    }

    /// What the process holds once that has stopped falling.
    fn settled(&self) -> Option<Holdings> {
        let process = self.backend.process?;
        let mut level = process.holdings()?;
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(20));
            let now = process.holdings()?;
            let fds = level.fds.min(now.fds);
            level = Holdings { fds, threads: level.threads.min(now.threads), ..now };
        }
        Some(level)
    }

    fn judge(
        &mut self,
        row: &'static Row,
        layout: Layout,
        thorough: bool,
        number: &mut u64,
    ) -> (Verdict, String) {
        let lost = self.traffic.lost();
        let target = self.traffic.arrived() + NEIGHBOUR_FRAMES;
        let strict = self.backend.speaks();
        let mut arena = Arena::new(&self.backend, &self.traffic, layout, thorough, number);
        let ended = (row.run)(&mut arena);
        // While the attack stands: its frontend is still connected.
        let neighbour_goes_on = goes_on(&self.traffic, target);
        let (mut words, frontend) = match ended {
            Ok(done) => (done.words, done.frontend),
            Err(Trouble::Frontend(FrontendError::NotOffered(what))) => {
                return (Verdict::NotOffered, what.to_owned());
            }
            Err(Trouble::Harm(what)) => return (Verdict::Wrong, what),
            Err(trouble) if strict => return (Verdict::Wrong, trouble.to_string()),
            // Another backend may close a connection where ours goes on; that it hangs is told by what follows.
            Err(trouble) => (trouble.to_string(), None),
        };
        if !neighbour_goes_on && self.backend.is_alive() {
            return (Verdict::Hung, format!("the neighbour's traffic stands; {words}"));
        }
        if let Some(mut frontend) = frontend {
            frontend.wish.buffers = true;
            let reset = frontend.reset().map_err(Trouble::from);
            let again = reset.and_then(|()| pass(&mut frontend, &self.traffic, number));
            match again {
                Err(trouble) if strict => {
                    return (Verdict::NotRecovered, format!("after a driver's reset: {trouble}; {words}"));
                }
                Err(_) => words += ", no reset without reconnect",
                Ok(()) => {}
            }
        }
        if let Err(trouble) = self.reconnect(number) {
            return (Verdict::NotRecovered, format!("after a reconnect: {trouble}; {words}"));
        }
        if self.traffic.lost() > lost {
            let n = self.traffic.lost() - lost;
            return (Verdict::Lost, format!("{n} of {} frames; {words}", self.traffic.arrived()));
        }
        if let Some(what) = self.traffic.broken() {
            return (Verdict::Wrong, what);
        }
        if let (Some(process), Some(level)) = (self.backend.process, self.level) {
            let slack = SLACK_KIB[usize::from(!strict)];
            // What a core on a crowded machine gave back too late for one connection is collected by the next.
            let back = process
                .returns_to(level, slack, PATIENCE / 4)
                .or_else(|_| self.reconnect(number).map_err(|trouble| trouble.to_string()))
                .and_then(|()| process.returns_to(level, slack, PATIENCE));
            if let Err(more) = back {
                return (Verdict::Leaked, format!("{more}; {words}"));
            }
        }
        (if strict { Verdict::Ok } else { Verdict::Survived }, words)
    }

    /// A good frontend comes to the attacked port and passes frames both ways.
    fn reconnect(&self, number: &mut u64) -> Result<(), Trouble> {
        let connection = self.backend.victim.connect(PATIENCE)?;
        let mut frontend = Frontend::attach(connection, Wish::new(Layout::Split))?;
        pass(&mut frontend, &self.traffic, number)
    }
}
