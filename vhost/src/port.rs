//! [`VhostPort`]: what a node opens, asks and closes. The control half of a port; its two queue
//! halves go to cores.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spp_drivers::dma::Pool;
use spp_drivers::port::{RxQueue, TxQueue};

use crate::device::Device;
use crate::handover::{Handover, RingState, handover};
use crate::lanes::{Lane, LaneStats};
use crate::offer::Keeper;
use crate::protocol::Backend;
use crate::session::{Session, Source, Stop};
use crate::socket::Listener;
use crate::status::Board;
use crate::vring::{MAX_PAIRS, N_RINGS};
use crate::{FromGuest, PortStatus, Role, ToGuest};

/// Which socket, and who listens on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// The port's name in status and logs: `vhost:0`.
    pub name: String,
    /// The socket file.
    pub path: PathBuf,
    /// Whether we connect or listen.
    pub role: Role,
    /// Where to remember what a VM was offered, so that the next spp offers it again; `None` forgets.
    pub offer_file: Option<PathBuf>,
}

impl PortConfig {
    /// A port that remembers nothing over restarts.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>, role: Role) -> PortConfig {
        PortConfig { name: name.into(), path: path.into(), role, offer_file: None }
    }
}

/// Why a port can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// The socket can't be made.
    #[error("{name}: can't listen on {path}: {source}")]
    Socket {
        /// The port.
        name: String,
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No thread, or no descriptor to wake it.
    #[error("{name}: no control thread: {source}")]
    Thread {
        /// The port.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

/// How long [`VhostPort::close`] waits for the control thread.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// An open vhost-user port: its control half, with a thread of its own.
pub struct VhostPort {
    config: PortConfig,
    board: Arc<Board>,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl VhostPort {
    /// Opens the port and starts its control thread. A client's socket need not exist yet: it is
    /// tried for ever. Frames received from the guest go into buffers of caches of `pool`. Each half has all queues
    /// of its direction.
    pub fn open(config: PortConfig, pool: &Pool) -> Result<(VhostPort, ToGuest, FromGuest), VhostError> {
        let (port, mut to_guest, mut from_guest) = VhostPort::open_split(config, pool, 1)?;
        let one = "a port split into one";
        Ok((port, to_guest.pop().expect(one), from_guest.pop().expect(one)))
    }

    /// As [`open`](Self::open), with the queues dealt out to `n_sets` halves a direction (1 to [`MAX_PAIRS`]), so that
    /// several components share the port: queue pair `q` belongs to halves number `q % n_sets`. A half none of whose
    /// queues the guest has enabled drops what it is to send (`not_running`).
    ///
    /// # Panics
    /// If there are no sets or too many.
    pub fn open_split(
        config: PortConfig,
        pool: &Pool,
        n_sets: usize,
    ) -> Result<(VhostPort, Vec<ToGuest>, Vec<FromGuest>), VhostError> {
        assert!((1..=MAX_PAIRS).contains(&n_sets), "a port has 1 to {MAX_PAIRS} queue sets");
        let thread_error = |source| VhostError::Thread { name: config.name.clone(), source };
        let source = match config.role {
            Role::Client => Source::Connect(config.path.clone()),
            Role::Server => Source::Listen(Listener::bind(&config.path).map_err(|source| {
                VhostError::Socket { name: config.name.clone(), path: config.path.clone(), source }
            })?),
        };
        let Rings { handovers, states, to_guest, from_guest } = Rings::new(pool, n_sets);
        let stats = [
            to_guest.iter().map(|half| half.stats()).collect(),
            from_guest.iter().map(|half| half.stats()).collect(),
        ];
        let board = Arc::new(Board::new(states, stats));
        let stop = Stop::new().map_err(thread_error)?;
        let session = Session {
            name: config.name.clone(),
            source,
            backend: Arc::new(Mutex::new(Backend { device: Device::new(handovers, board.clone()) })),
            keeper: Keeper::new(config.role, &config.path, config.offer_file.clone()),
            board: board.clone(),
            stop: stop.clone(),
        };
        let builder = std::thread::Builder::new().name(config.name.clone());
        let thread = builder.spawn(move || session.run()).map_err(thread_error)?;
        Ok((VhostPort { config, board, stop, thread: Some(thread) }, to_guest, from_guest))
    }

    /// The port now. From any thread; never waits for a core.
    pub fn status(&self) -> PortStatus {
        self.board.status(&self.config.name, &self.config.path, self.config.role)
    }

    /// Name, socket and role.
    pub fn config(&self) -> &PortConfig {
        &self.config
    }

    /// Ends the connection, takes both halves back, and frees all. The halves must not be polled any more.
    /// Takes well under a second.
    pub fn close(self, mut to_guest: ToGuest, mut from_guest: FromGuest) {
        self.close_with(|| {
            to_guest.poll_control();
            from_guest.poll_control();
        });
    }

    /// As [`close`](Self::close), for whoever has the halves in boxes; `serve_halves` polls the control side of both.
    pub fn close_with(mut self, mut serve_halves: impl FnMut()) {
        self.stop.request();
        let Some(thread) = self.thread.take() else { return };
        let deadline = Instant::now() + CLOSE_DEADLINE;
        // The control thread asks the halves for their rings: somebody has to answer.
        while !thread.is_finished() && Instant::now() < deadline {
            serve_halves();
            std::thread::sleep(Duration::from_micros(200));
        }
        if !thread.is_finished() {
            tracing::error!(port = self.config.name, "the control thread did not end in time");
        } else if thread.join().is_err() {
            tracing::error!(port = self.config.name, "the control thread had panicked");
        }
    }
}

impl Drop for VhostPort {
    fn drop(&mut self) {
        // Without the halves at hand the thread can only be told; it ends by itself.
        self.stop.request();
    }
}

/// Both sides of every ring a port could have.
struct Rings {
    /// By ring index, as `states`.
    handovers: Vec<Handover>,
    states: Vec<(Arc<RingState>, LaneStats)>,
    to_guest: Vec<ToGuest>,
    from_guest: Vec<FromGuest>,
}

impl Rings {
    fn new(pool: &Pool, n_sets: usize) -> Rings {
        // By half: number of the set, side.
        let bells: Vec<[Arc<AtomicUsize>; 2]> = (0..n_sets).map(|_| Default::default()).collect();
        let mut lanes: Vec<[Vec<Lane>; 2]> = (0..n_sets).map(|_| Default::default()).collect();
        let (mut handovers, mut states) = (Vec::new(), Vec::new());
        for index in 0..N_RINGS {
            let (set, side) = (index / 2 % n_sets, index % 2);
            let (handover, mailbox) = handover(bells[set][side].clone());
            let stats = LaneStats::default();
            states.push((handover.state().clone(), stats.clone()));
            handovers.push(handover);
            lanes[set][side].push(Lane::new(mailbox, stats));
        }
        let (mut to_guest, mut from_guest) = (Vec::new(), Vec::new());
        for (lanes, bells) in lanes.into_iter().zip(bells) {
            let ([to_lanes, from_lanes], [to_bell, from_bell]) = (lanes, bells);
            to_guest.push(ToGuest::new(to_lanes, to_bell));
            from_guest.push(FromGuest::new(from_lanes, from_bell, pool));
        }
        Rings { handovers, states, to_guest, from_guest }
    }
}
