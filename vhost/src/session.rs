//! The control thread of a port: gets a peer, serves its messages, cleans up behind it, for
//! ever, until told to stop. Owns the socket and the device.
//!
//! A panic in here, which would be a bug of ours, costs the connection and no more: the device is
//! reset, the port says so, and the next peer is served.
//!
//! It sleeps in `poll` on the socket and on a wake-up descriptor, reads a message only when it
//! is there whole, and writes a reply only when the peer leaves room for it: no peer can hold it up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::RecvFlags;

use crate::offer::Keeper;
use crate::protocol::{Backend, HEADER_BYTES, Handled, Header, Protocol, lock};
use crate::socket::{self, Listener};
use crate::status::Board;

/// Time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(50);
/// The same while a peer has just gone, which most often comes back: a VM's frames are lost for so long.
const RETRY_SOON: Duration = Duration::from_millis(10);
/// How long a peer has just gone.
const SOON: Duration = Duration::from_secs(2);
/// How long a message may take to arrive, and a peer to read its replies.
const PATIENCE: Duration = Duration::from_secs(1);
/// Looks between two looks at a message that has come in part.
const PARTIAL: Duration = Duration::from_millis(1);

/// Tells a session to end. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stop(Arc<(AtomicBool, OwnedFd)>);

impl Stop {
    pub fn new() -> io::Result<Stop> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Stop(Arc::new((AtomicBool::new(false), wake))))
    }

    /// Asks the session to end, and wakes it.
    pub fn request(&self) {
        self.0.0.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.0.1, &1u64.to_ne_bytes());
    }

    fn is_requested(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    /// Waits for `fd` to become ready, for a stop request, or for the time to pass. True when `fd` is ready.
    fn wait(&self, fd: Option<(BorrowedFd<'_>, PollFlags)>, time: Option<Duration>) -> bool {
        let wake = PollFd::new(&self.0.1, PollFlags::IN);
        let time =
            time.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
        let Some((fd, events)) = fd else {
            let _ = poll(&mut [wake], time.as_ref());
            return false;
        };
        let mut fds = [PollFd::from_borrowed_fd(fd, events), wake];
        // Interrupted counts as nothing ready: every caller loops.
        poll(&mut fds, time.as_ref()).is_ok() && !fds[0].revents().is_empty()
    }
}

/// Where peers come from.
pub(crate) enum Source {
    Connect(PathBuf),
    Listen(Listener),
}

/// Everything the thread owns.
pub(crate) struct Session {
    pub name: String,
    pub source: Source,
    pub backend: Arc<Mutex<Backend>>,
    pub keeper: Keeper,
    pub board: Arc<Board>,
    pub stop: Stop,
}

impl Session {
    /// The thread's body.
    pub fn run(mut self) {
        let mut gone_at: Option<Instant> = None;
        while !self.stop.is_requested() {
            let just_gone = gone_at.is_some_and(|at| at.elapsed() < SOON);
            let pause = if just_gone { RETRY_SOON } else { RETRY };
            let Some(stream) = self.next_peer(pause) else { continue };
            tracing::info!(port = self.name, "vhost-user frontend connected");
            self.board_connected();
            let since = Instant::now();
            let failure = self.serve_contained(stream);
            let failed = failure.is_some();
            self.board_disconnected(failure);
            // A peer that fails, or accepts and hangs up, again and again must not keep this thread busy.
            if failed {
                self.stop.wait(None, Some(RETRY));
            } else if matches!(self.source, Source::Connect(_)) && since.elapsed() < RETRY {
                self.stop.wait(None, Some(RETRY_SOON));
            }
            gone_at = Some(Instant::now());
        }
    }

    /// Serves one connection, and resets the device behind it. Returns why it failed, if it did.
    fn serve_contained(&mut self, stream: UnixStream) -> Option<String> {
        let served = self.contain(|session| {
            let offer = session.keeper.offer_to(&stream);
            lock(&session.backend).device.begin(offer);
            serve(stream, session)
        });
        let reset =
            self.contain(|session| lock(&session.backend).device.reset().err().map(|e| e.to_string()));
        served.unwrap_or_else(Some).or(reset.unwrap_or_else(Some))
    }

    /// Runs `work`; a panic becomes its words and is counted.
    fn contain<T>(&mut self, work: impl FnOnce(&mut Session) -> T) -> Result<T, String> {
        std::panic::catch_unwind(AssertUnwindSafe(|| work(self))).map_err(|panic| {
            self.board.progress().panics += 1;
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            format!("a bug in the port's control thread: {text}")
        })
    }

    /// Without one, it has waited for `pause`.
    fn next_peer(&mut self, pause: Duration) -> Option<UnixStream> {
        let got = match &self.source {
            Source::Connect(path) => socket::connect(path).map(Some),
            Source::Listen(listener) => {
                self.stop.wait(Some((listener.as_fd(), PollFlags::IN)), None);
                listener.accept()
            }
        };
        match got {
            Ok(peer) => peer,
            Err(error) => {
                self.board.progress().waiting_for = waiting_for(&error);
                self.stop.wait(None, Some(pause));
                None
            }
        }
    }

    fn board_connected(&self) {
        let mut progress = self.board.progress();
        progress.connected = true;
        progress.connections += 1;
        progress.failure = None;
        progress.waiting_for.clear();
    }

    fn board_disconnected(&self, failure: Option<String>) {
        match &failure {
            Some(reason) => tracing::warn!(port = self.name, reason, "vhost-user connection failed"),
            None => tracing::info!(port = self.name, "vhost-user frontend disconnected"),
        }
        let fault = self.board.fault().map(|f| f.words().to_owned());
        let mut progress = self.board.progress();
        progress.connected = false;
        progress.last_failure = failure.clone().or(fault).or(progress.last_failure.take());
        progress.failure = failure;
    }
}

fn waiting_for(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "for the VM to create the socket".to_owned(),
        io::ErrorKind::ConnectionRefused => "for the VM to listen on the socket".to_owned(),
        _ => error.to_string(),
    }
}

/// Serves one connection to its end. Returns why it failed, if it did.
fn serve(stream: UnixStream, session: &Session) -> Option<String> {
    // The crate's handler takes one descriptor of the socket; we look at it and answer through two more.
    let (socket, answers) = match stream.try_clone().and_then(|socket| Ok((socket, stream.try_clone()?))) {
        Ok(sockets) => sockets,
        Err(error) => return Some(error.to_string()),
    };
    let Session { name, source, stop, backend, .. } = session;
    let mut protocol = Protocol::new(stream, answers, backend.clone());
    let mut refusals = 0u32;
    loop {
        let header = match next_header(&socket, source, stop) {
            Ok(Some(header)) => header,
            Ok(None) => return None,
            Err(reason) => return Some(reason),
        };
        match protocol.handle(header) {
            Handled::Done => {}
            Handled::Refused(reason) => {
                // Said once per connection: a peer must not be able to fill the log.
                if refusals == 0 {
                    tracing::warn!(port = name, reason, "vhost-user request refused");
                }
                refusals += 1;
            }
            Handled::Close(reason) => return reason,
        }
    }
}

/// Waits for a message to arrive whole, and for room for its reply. `None`: the peer is gone, or we are told
/// to stop. A second peer that comes meanwhile is turned away.
fn next_header(socket: &UnixStream, source: &Source, stop: &Stop) -> Result<Option<Header>, String> {
    let mut deadline: Option<Instant> = None;
    while !stop.is_requested() {
        turn_away_others(socket, source, stop);
        let (n, bytes) = peek(socket)?;
        if n == 0 {
            return Ok(None);
        }
        let Some(n) = n.checked_sub(1) else { return Ok(None) };
        if n == 0 {
            // Nothing has come yet: sleep until something does. The listener is looked at now and then.
            let nap = matches!(source, Source::Listen(_)).then_some(RETRY);
            stop.wait(Some((socket.as_fd(), PollFlags::IN)), nap);
            continue;
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
        if n == HEADER_BYTES {
            let header = Header::parse(bytes)?;
            let whole = HEADER_BYTES as u64 + u64::from(header.size);
            let arrived = rustix::io::ioctl_fionread(socket).map_err(|e| e.to_string())?;
            let room = stop.wait(Some((socket.as_fd(), PollFlags::OUT)), Some(Duration::ZERO));
            if arrived >= whole && room {
                return Ok(Some(header));
            }
        }
        if Instant::now() >= deadline {
            return Err("the frontend stopped in the middle of a message, or reads no replies".to_owned());
        }
        stop.wait(None, Some(PARTIAL));
    }
    Ok(None)
}

/// Refuses a second peer, unless the first has hung up: then the second is its successor, and is
/// accepted when what the first still sent has been read.
fn turn_away_others(socket: &UnixStream, source: &Source, stop: &Stop) {
    let Source::Listen(listener) = source else { return };
    // In this order: a peer that reconnects has hung up before it is seen again.
    let others = stop.wait(Some((listener.as_fd(), PollFlags::IN)), Some(Duration::ZERO));
    let hung_up = stop.wait(Some((socket.as_fd(), PollFlags::RDHUP)), Some(Duration::ZERO));
    if others && !hung_up && listener.accept().is_ok() {
        tracing::debug!("a second vhost-user peer was turned away");
    }
}

/// Looks at up to a header's worth of bytes without taking them. Returns 0 for the end of the stream,
/// else one more than the number of bytes there.
fn peek(socket: &UnixStream) -> Result<(usize, [u8; HEADER_BYTES]), String> {
    let mut bytes = [0; HEADER_BYTES];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut bytes, flags) {
        Ok((_, 0)) => Ok((0, bytes)),
        Ok((_, n)) => Ok((n + 1, bytes)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok((1, bytes)),
        // Reset by a peer that died with replies unread: gone, like any other.
        Err(rustix::io::Errno::CONNRESET) => Ok((0, bytes)),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
