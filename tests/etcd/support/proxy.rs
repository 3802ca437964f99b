//! A wire to a server that can be cut, go dead or trickle.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    /// Bytes flow.
    Up,
    /// A byte in a tenth of a second.
    Trickle,
    /// Connections are closed, new ones too.
    Cut,
    /// Connections of before stay open and silent, for ever; new ones flow.
    DeadSince(u64),
}

const TRICKLE: std::time::Duration = std::time::Duration::from_millis(100);

/// The wire.
pub struct Proxy {
    port: u16,
    state: Arc<watch::Sender<State>>,
    n_connections: Arc<std::sync::atomic::AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// To the server at `to` on loopback.
    pub async fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(watch::Sender::new(State::Up));
        let n_connections = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (sender, n) = (state.clone(), n_connections.clone());
        let task = tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { return };
                let id = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::spawn(connection(near, to, id, sender.subscribe()));
            }
        });
        Proxy { port, state, n_connections, task }
    }

    /// Where it listens on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Closes everything, and what comes.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Lets bytes through, one in a tenth of a second each way.
    pub fn trickle(&self) {
        self.state.send_replace(State::Trickle);
    }

    /// Lets the connections there are go silent without closing them.
    pub fn deaden(&self) {
        let n = self.n_connections.load(std::sync::atomic::Ordering::Relaxed);
        self.state.send_replace(State::DeadSince(n));
    }

    /// Lets new connections flow again.
    pub fn mend(&self) {
        self.state.send_replace(State::Up);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn connection(near: TcpStream, to: u16, id: u64, state: watch::Receiver<State>) {
    if *state.borrow() == State::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let ((near_rx, near_tx), (far_rx, far_tx)) = (near.into_split(), far.into_split());
    tokio::join!(pump(near_rx, far_tx, id, state.clone()), pump(far_rx, near_tx, id, state));
}

/// At once, or byte by byte for as long as the wire trickles.
async fn write(
    to: &mut OwnedWriteHalf,
    mut bytes: &[u8],
    state: &watch::Receiver<State>,
) -> std::io::Result<()> {
    let trickles = || *state.borrow() == State::Trickle;
    while let (true, [first, rest @ ..]) = (trickles(), bytes) {
        to.write_all(&[*first]).await?;
        tokio::time::sleep(TRICKLE).await;
        bytes = rest;
    }
    to.write_all(bytes).await
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, id: u64, mut state: watch::Receiver<State>) {
    let mut bytes = [0; 16384];
    loop {
        let now = *state.borrow_and_update();
        match now {
            State::Cut => return,
            State::DeadSince(n) if id < n => {
                // Reads nothing, closes nothing, until the wire is cut.
                let _ = state.wait_for(|state| *state == State::Cut).await;
                return;
            }
            _ => {}
        }
        tokio::select! {
            _ = state.changed() => {}
            n = from.read(&mut bytes) => match n {
                Ok(n) if n > 0 && write(&mut to, &bytes[..n], &state).await.is_ok() => {}
                _ => return,
            },
        }
    }
}
