//! One connection to one broker: TCP, TLS, a relay that screens what comes, and the AMQP client.
//!
//! The client library has a thread of its own for each connection and talks to a socket pair; the relay
//! task moves bytes between that and the broker. Ending the relay ends the library's thread, whatever
//! state it is in, so that a broker that hangs costs a deadline and nothing else.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_compat::CompatExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::uri::{AMQPQueryString, AMQPScheme, AMQPUri};
use lapin::{
    AsyncTcpStream, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind,
    ExchangeKind,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::ServerName;

use super::message::ROUTING_KEY;
use super::screen::{FRAME_MAX_BYTES, HEADER_BYTES, Refused, Screen};
use super::url::Brokers;
use crate::resolve::{NameFiles, ResolveError};
use crate::tls::{self, TlsError, TlsFiles};

/// The exchange of neutron's RPC.
const EXCHANGE: &str = "neutron";

/// Longest time for a TCP connection to one address.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Longest time from nothing to a channel that takes reports.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// Longest time for the broker to confirm a report.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(10);

/// A connection that is silent for twice this long is dead (AMQP 0-9-1, 4.2.7).
const KEEP_ALIVE_S: u16 = 10;

/// Longest text taken over from a broker, in characters.
const REASON_MAX_CHARS: usize = 300;

/// Why no report gets through.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The host name has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The files of `--amqp-ca` and its like are no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No TCP connection.
    #[error("no connection to {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    /// TLS fails.
    #[error("TLS: {0}{hint}", hint = hint(.1))]
    Handshake(String, Option<String>),
    /// No answer: the broker hangs, or is none.
    #[error("{0} took longer than {1:?}{hint}", hint = hint(.2))]
    Deadline(&'static str, Duration, Option<&'static str>),
    /// The broker sent something it must not.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The broker says no, or the connection is lost.
    #[error("{0}{hint}", hint = hint(.1))]
    Broker(String, Option<&'static str>),
}

fn hint(remedy: &Option<impl AsRef<str>>) -> String {
    remedy.as_ref().map(|remedy| format!(" ({})", remedy.as_ref())).unwrap_or_default()
}

impl From<lapin::Error> for BrokerError {
    fn from(error: lapin::Error) -> BrokerError {
        let text = match error.kind() {
            ErrorKind::ProtocolError(error) => error.get_message().to_string(),
            _ => error.to_string(),
        };
        let text: String = text.chars().filter(|c| !c.is_control()).take(REASON_MAX_CHARS).collect();
        let code = match error.kind() {
            ErrorKind::ProtocolError(error) => error.get_id(),
            _ => 0,
        };
        let remedy = match code {
            403 if text.contains("Login was refused") || text.contains("ogin") => {
                Some("check the user and the password of --amqp")
            }
            403 => Some("give the user write permission on the exchange neutron"),
            404 => Some(
                "no neutron-server has been here yet: is this the broker and virtual host of its transport_url?",
            ),
            530 => Some("check the virtual host at the end of --amqp, and the user's permissions on it"),
            _ => None,
        };
        BrokerError::Broker(text, remedy)
    }
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It is in a queue of neutron-server.
    Taken,
    /// There is no such queue: nobody listens.
    Unrouted,
}

/// An open channel.
pub struct Session {
    connection: Connection,
    channel: Channel,
    relay: Relay,
}

impl Session {
    /// Connects to broker number `idx`.
    pub async fn open(
        brokers: &Brokers,
        idx: usize,
        tls: &TlsFiles,
        names: &NameFiles,
        host: &str,
    ) -> Result<Session, BrokerError> {
        let open = async {
            let (relay, ours) = dial(brokers, idx, tls, names).await?;
            Session::handshake(brokers, idx, host, relay, ours).await
        };
        let late =
            || BrokerError::Deadline("opening the connection", OPEN_DEADLINE, Some(silent(brokers.tls)));
        tokio::time::timeout(OPEN_DEADLINE, open).await.unwrap_or_else(|_| Err(late()))
    }

    async fn handshake(
        brokers: &Brokers,
        idx: usize,
        host: &str,
        relay: Relay,
        ours: TcpStream,
    ) -> Result<Session, BrokerError> {
        let broker = &brokers.list[idx % brokers.list.len()];
        let mut uri =
            AMQPUri { scheme: AMQPScheme::AMQP, vhost: brokers.vhost.clone(), ..AMQPUri::default() };
        uri.authority.userinfo.username = broker.user.clone();
        uri.authority.userinfo.password =
            broker.password.as_ref().map_or(String::new(), |password| password.reveal().into());
        uri.query = AMQPQueryString {
            frame_max: Some(FRAME_MAX_BYTES as u32),
            heartbeat: Some(KEEP_ALIVE_S),
            ..AMQPQueryString::default()
        };
        let properties = ConnectionProperties::default().with_connection_name(format!("spp:{host}").into());
        let stream = Mutex::new(Some(ours.compat()));
        let runtime = lapin::runtime::default_runtime()?;
        let opened = async {
            let connect = async move |_, _| {
                let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                let once = std::io::Error::from(std::io::ErrorKind::NotConnected);
                stream.map(AsyncTcpStream::Plain).ok_or_else(|| lapin::Error::from(once))
            };
            let connection = Connection::connector(uri, runtime, connect, properties).await?;
            let channel = connection.create_channel().await?;
            // Whatever it is, it is as neutron-server made it; ours might not be as it wants it.
            let as_it_is = ExchangeDeclareOptions { passive: true, ..Default::default() };
            let topic = ExchangeKind::Topic;
            channel.exchange_declare(EXCHANGE.into(), topic, as_it_is, FieldTable::default()).await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>((connection, channel))
        };
        match opened.await {
            Ok((connection, channel)) => Ok(Session { connection, channel, relay }),
            Err(error) => Err(relay.reason(error)),
        }
    }

    /// Sends a report and waits for the broker's word that it has it.
    pub async fn publish(&self, body: &[u8]) -> Result<Delivery, BrokerError> {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_delivery_mode(2)
            .with_priority(0);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publish = async {
            let (exchange, key) = (EXCHANGE.into(), ROUTING_KEY.into());
            self.channel.basic_publish(exchange, key, options, body, properties).await?.await
        };
        self.relay.restart_screen();
        let Ok(confirmed) = tokio::time::timeout(CONFIRM_DEADLINE, publish).await else {
            let blocked = self.connection.status().blocked();
            let remedy = blocked.then_some("the broker blocks publishers: free its memory or disk");
            return Err(BrokerError::Deadline("the report's confirmation", CONFIRM_DEADLINE, remedy));
        };
        match confirmed.map_err(|error| self.relay.reason(error))? {
            Confirmation::Ack(None) => Ok(Delivery::Taken),
            Confirmation::Ack(Some(_)) => Ok(Delivery::Unrouted),
            _ => Err(BrokerError::Broker("the broker did not take the report".into(), None)),
        }
    }

    /// Resolves when the connection is lost.
    pub async fn lost(&mut self) -> BrokerError {
        let _ = (&mut self.relay.task).await;
        let aborted = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
        self.relay.reason(lapin::Error::from(aborted))
    }

    /// Says good-bye.
    pub async fn close(&self) {
        let _ = self.connection.close(200, "OK".into()).await;
    }
}

fn silent(tls: bool) -> &'static str {
    if tls {
        "the port is open, and nobody speaks AMQP there"
    } else {
        "the port is open, and nobody speaks AMQP there: does the broker want TLS, amqps://?"
    }
}

/// The task between broker and client library; ends with this handle.
struct Relay {
    task: JoinHandle<()>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    screen: Screen,
    refused: Option<Refused>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Between `broker` and the socket that is returned.
    fn start(broker: impl AsyncRead + AsyncWrite + Send + 'static) -> std::io::Result<(Relay, TcpStream)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let as_stream = |fd| TcpStream::from_std(std::net::TcpStream::from(fd));
        let (ours, theirs) = (as_stream(ours)?, as_stream(theirs)?);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let task = tokio::spawn(relay(broker, theirs, shared.clone()));
        Ok((Relay { task, shared }, ours))
    }

    fn shared<T>(&self, use_it: impl FnOnce(&mut Shared) -> T) -> T {
        use_it(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn restart_screen(&self) {
        self.shared(|shared| shared.screen.restart());
    }

    /// Why it ended, if the screen ended it; else what the library says.
    fn reason(&self, error: lapin::Error) -> BrokerError {
        match self.shared(|shared| shared.refused.clone()) {
            Some(refused) => BrokerError::Refused(refused),
            None if error.is_io_error() => {
                BrokerError::Broker("the broker closed the connection".into(), None)
            }
            None => error.into(),
        }
    }
}

async fn relay(broker: impl AsyncRead + AsyncWrite, library: TcpStream, shared: Arc<Mutex<Shared>>) {
    let (mut from_broker, mut to_broker) = tokio::io::split(broker);
    let (mut from_library, mut to_library) = library.into_split();
    tokio::select! {
        _ = inbound(&mut from_broker, &mut to_library, &shared) => {}
        _ = tokio::io::copy(&mut from_library, &mut to_broker) => {}
    }
}

/// Frame by frame through the screen. None: the connection is over.
async fn inbound(
    broker: &mut (impl AsyncRead + Unpin),
    library: &mut (impl AsyncWrite + Unpin),
    shared: &Mutex<Shared>,
) -> Option<Infallible> {
    let locked = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rest = Vec::new();
    loop {
        let mut header = [0; HEADER_BYTES];
        broker.read_exact(&mut header).await.ok()?;
        let checked = locked().screen.header(&header);
        let len = checked.map_err(|refused| locked().refused = Some(refused)).ok()?;
        rest.resize(len, 0);
        broker.read_exact(&mut rest).await.ok()?;
        let checked = locked().screen.rest(header[0], &rest);
        checked.map_err(|refused| locked().refused = Some(refused)).ok()?;
        library.write_all(&header).await.ok()?;
        library.write_all(&rest).await.ok()?;
    }
}

/// TCP, and TLS where it is wanted, up to a relay.
async fn dial(
    brokers: &Brokers,
    idx: usize,
    tls: &TlsFiles,
    names: &NameFiles,
) -> Result<(Relay, TcpStream), BrokerError> {
    let broker = &brokers.list[idx % brokers.list.len()];
    let connector = if brokers.tls { Some(tls.connector("--amqp-ca")?) } else { None };
    let stream = first_that_connects(&names.resolve(&broker.host).await?, broker.port).await?;
    let fail = |error: std::io::Error| BrokerError::Broker(error.to_string(), None);
    let Some(connector) = connector else { return Relay::start(stream).map_err(fail) };
    let name = ServerName::try_from(broker.host.clone());
    let name = name.map_err(|error| BrokerError::Handshake(error.to_string(), None))?;
    let shaken = connector.connect(name, stream).await.map_err(|error| {
        let text = error.to_string();
        let remedy = tls::remedy(&text, "--amqp");
        BrokerError::Handshake(text, remedy)
    })?;
    Relay::start(shaken).map_err(fail)
}

async fn first_that_connects(addresses: &[std::net::IpAddr], port: u16) -> Result<TcpStream, BrokerError> {
    let mut last = None;
    for &address in addresses {
        let address = SocketAddr::new(address, port);
        match in_connect_deadline(TcpStream::connect(address)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = last.or(Some(BrokerError::Connect(address, error))),
        }
    }
    Err(last.expect("a name resolves to one address at least"))
}

async fn in_connect_deadline(
    connect: impl Future<Output = std::io::Result<TcpStream>>,
) -> std::io::Result<TcpStream> {
    let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut));
    tokio::time::timeout(CONNECT_DEADLINE, connect).await.unwrap_or_else(late)
}
