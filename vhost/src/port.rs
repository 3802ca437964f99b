//! [`VhostPort`]: what a node opens, asks and closes. The control half of a port; its two queue
//! halves go to cores.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spp_drivers::dma::Pool;
use spp_drivers::port::{RxQueue, TxQueue};

use crate::deal::Dealer;
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
    pool: Pool,
    /// Of the queues to the guest, and from it. Never locked: the status of a port may be asked for by several threads.
    dealers: Mutex<[Dealer; 2]>,
}

/// A further pair of halves of a port, see [`VhostPort::add_halves`].
pub struct Halves {
    /// Their number; what [`VhostPort::open`] returns has number 0.
    pub number: usize,
    /// The sending half.
    pub to_guest: ToGuest,
    /// The receiving half.
    pub from_guest: FromGuest,
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
        let Rings { handovers, states, dealers, to_guest, from_guest } = Rings::new(pool, n_sets);
        let board = Arc::new(Board::new(states));
        for (to, from) in to_guest.iter().zip(&from_guest) {
            board.add_halves([to.stats(), from.stats()]);
        }
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
        let thread = Some(builder.spawn(move || session.run()).map_err(thread_error)?);
        let port =
            VhostPort { config, board, stop, thread, pool: pool.clone(), dealers: Mutex::new(dealers) };
        Ok((port, to_guest, from_guest))
    }

    fn dealers(&mut self) -> &mut [Dealer; 2] {
        self.dealers.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A further pair of halves, without queues as yet: [`gather`](Self::gather) and
    /// [`hand_out`](Self::hand_out) give it some. It belongs to the port until the end.
    pub fn add_halves(&mut self) -> Halves {
        let pool = self.pool.clone();
        let [to, from] = self.dealers();
        let mut to_guest = ToGuest::new([], to.bell.clone());
        let mut from_guest = FromGuest::new([], from.bell.clone(), &pool);
        let (number, seat) = to.add();
        to_guest.sit(seat);
        let (twin, seat) = from.add();
        from_guest.sit(seat);
        self.board.add_halves([to_guest.stats(), from_guest.stats()]);
        debug_assert_eq!(number, twin, "halves come and go in pairs");
        Halves { number, to_guest, from_guest }
    }

    /// Says which pair of halves each queue is to be with, to the guest and from it, and takes those that are elsewhere from
    /// their halves; running rings stay what they are, and the guest's frames wait. True when all of them are in hand, for
    /// [`hand_out`](Self::hand_out); else to be called again, while the halves are polled.
    ///
    /// # Panics
    /// If there are no such halves.
    pub fn gather(&mut self, wanted: [[usize; MAX_PAIRS]; 2]) -> bool {
        let gathered = self.dealers().iter_mut().zip(wanted).map(|(dealer, wanted)| {
            dealer.want(wanted);
            dealer.ask()
        });
        gathered.fold(true, |all, one| all & one)
    }

    /// True when queues are in hand, to the guest or from it.
    pub fn has_gathered(&mut self) -> [bool; 2] {
        self.dealers().each_ref().map(Dealer::holds_any)
    }

    /// Gives the queues in hand to the halves that are to have them. True when all queues are where they are to be.
    pub fn hand_out(&mut self) -> bool {
        self.dealers().iter_mut().fold(true, |all, dealer| all & dealer.hand_out())
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
    dealers: [Dealer; 2],
    to_guest: Vec<ToGuest>,
    from_guest: Vec<FromGuest>,
}

impl Rings {
    fn new(pool: &Pool, n_sets: usize) -> Rings {
        let mut dealers = [Dealer::new(n_sets), Dealer::new(n_sets)];
        let mut lanes: Vec<[Vec<Lane>; 2]> = (0..n_sets).map(|_| Default::default()).collect();
        let (mut handovers, mut states) = (Vec::new(), Vec::new());
        for index in 0..N_RINGS {
            let (queue, side) = (index / 2, index % 2);
            let (handover, mailbox) = handover(dealers[side].bell.clone());
            let stats = LaneStats::default();
            states.push((handover.state().clone(), stats.clone()));
            handovers.push(handover);
            lanes[queue % n_sets][side].push(Lane::new(mailbox, stats).of_queue(queue));
        }
        let (mut to_guest, mut from_guest) = (Vec::new(), Vec::new());
        for [to_lanes, from_lanes] in lanes {
            let [to, from] = &mut dealers;
            let mut half = ToGuest::new(to_lanes, to.bell.clone());
            half.sit(to.add().1);
            to_guest.push(half);
            let mut half = FromGuest::new(from_lanes, from.bell.clone(), pool);
            half.sit(from.add().1);
            from_guest.push(half);
        }
        Rings { handovers, states, dealers, to_guest, from_guest }
    }
}
