//! The key that shows that this node is alive: kept by a lease, gone when the node is.
//!
//! `<node prefix>/<host>`, outside the keys shared with the control node, which carry no leases. A task
//! and a connection of its own: whatever happens here touches neither the agent nor the data plane.

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use etcd_client::{Client, Error, GetOptions, LeaseKeepAliveStream, LeaseKeeper, PutOptions};
use serde::Serialize;

use crate::connect::{Dialer, Endpoints, Fault};
use crate::keys::{self, Name, PrefixError};
use crate::link::Lost;
use crate::schedule::Backoff;
use crate::status::{NodeKeyStatus, StatusCell};

/// How long the key outlives its node.
pub const DEFAULT_TTL: Duration = Duration::from_secs(10);

/// Longest time for one request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(3);

/// Longest time for giving the key back at the end.
const REVOKE_DEADLINE: Duration = Duration::from_millis(500);

/// Where the key is, what it says and how long it is kept.
#[derive(Debug, Clone)]
pub struct NodeKey {
    /// The etcd cluster.
    pub endpoints: Endpoints,
    /// The full key.
    pub key: String,
    /// This host's name.
    pub host: Name,
    /// The version the key tells.
    pub version: String,
    /// How long the key outlives the node; whole seconds.
    pub ttl: Duration,
}

impl NodeKey {
    /// The key of `host` below `prefix`, such as `/spp-nodes`.
    pub fn new(
        endpoints: Endpoints,
        prefix: &str,
        host: Name,
        version: &str,
    ) -> Result<NodeKey, PrefixError> {
        let key = format!("{}/{host}", keys::prefix(prefix)?);
        Ok(NodeKey { endpoints, key, host, version: version.into(), ttl: DEFAULT_TTL })
    }
}

/// The key's value.
#[derive(Debug, Serialize)]
struct Value<'a> {
    host: &'a str,
    version: &'a str,
    address: Option<IpAddr>,
}

/// Keeps the key until `shutdown` resolves, then gives it back.
pub async fn keep(node_key: NodeKey, status: StatusCell, shutdown: impl Future<Output = ()>) {
    let mut keeper =
        Keeper { dialer: Dialer::new(node_key.endpoints.clone()), node_key, status, lease: None };
    tokio::select! {
        biased;
        () = shutdown => {}
        never = keeper.serve() => match never {},
    }
    if let Some((mut client, id)) = keeper.lease.take() {
        // Unanswered, it is gone with its time to live.
        let _ = tokio::time::timeout(REVOKE_DEADLINE, client.lease_revoke(id)).await;
    }
}

struct Keeper {
    dialer: Dialer,
    node_key: NodeKey,
    status: StatusCell,
    /// The lease that holds the key, and who gave it.
    lease: Option<(Client, i64)>,
}

impl Keeper {
    async fn serve(&mut self) -> std::convert::Infallible {
        let mut pauses = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut said_lost = false;
        loop {
            let Err(lost) = self.hold(&mut pauses, &mut said_lost).await;
            let (key, reason) = (&self.node_key.key, lost.to_string());
            if !std::mem::replace(&mut said_lost, true) {
                tracing::warn!(key, reason, "the node's key is not kept, trying again");
            }
            self.say(false, Some(reason));
            self.dialer.failed();
            tokio::time::sleep(pauses.pause_with_jitter()).await;
        }
    }

    /// One lease, from its grant to its loss.
    async fn hold(
        &mut self,
        pauses: &mut Backoff,
        said_lost: &mut bool,
    ) -> Result<std::convert::Infallible, Lost> {
        let ttl = self.node_key.ttl;
        let mut client = self.dialer.dial().await?;
        let granted = in_time("lease", client.lease_grant(ttl.as_secs() as i64, None)).await?;
        let id = granted.id();
        self.lease = Some((client.clone(), id));
        self.put(&mut client, id).await?;
        let (mut keeper, mut answers) = in_time("lease", client.lease_keep_alive(id)).await?;
        tracing::info!(key = self.node_key.key, "the node's key is there");
        self.say(true, None);
        pauses.reset();
        *said_lost = false;
        loop {
            tokio::time::sleep(ttl / 3).await;
            renew(&mut keeper, &mut answers).await?;
            // Somebody may have removed the key; the lease does not notice.
            let count = Some(GetOptions::new().with_count_only());
            let found = in_time("the node's key", client.get(self.node_key.key.as_str(), count)).await?;
            if found.count() == 0 {
                tracing::warn!(key = self.node_key.key, "somebody removed the node's key: put again");
                self.put(&mut client, id).await?;
            }
        }
    }

    async fn put(&self, client: &mut Client, lease: i64) -> Result<(), Lost> {
        let address = self.local_address().await;
        let (host, version) = (self.node_key.host.as_str(), self.node_key.version.as_str());
        let value = serde_json::to_string(&Value { host, version, address }).expect("plain text and numbers");
        let options = Some(PutOptions::new().with_lease(lease));
        in_time("the node's key", client.put(self.node_key.key.as_str(), value, options)).await?;
        Ok(())
    }

    /// The address this machine has towards etcd: what others can reach it by, as far as we know. Asks
    /// the routing table; nothing is sent.
    async fn local_address(&self) -> Option<IpAddr> {
        let to = self.dialer.address().await.ok()?;
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = tokio::net::UdpSocket::bind(any).await.ok()?;
        socket.connect(to).await.ok()?;
        Some(socket.local_addr().ok()?.ip())
    }

    fn say(&self, held: bool, last_error: Option<String>) {
        let key = self.node_key.key.clone();
        self.status.update(|status| {
            let last_error = last_error.or(status.node_key.take().and_then(|before| before.last_error));
            status.node_key = Some(NodeKeyStatus { key, held, last_error });
        });
    }
}

async fn renew(keeper: &mut LeaseKeeper, answers: &mut LeaseKeepAliveStream) -> Result<(), Lost> {
    in_time("renewing the lease", keeper.keep_alive()).await?;
    let answer = in_time("renewing the lease", answers.message()).await?;
    match answer {
        Some(answer) if answer.ttl() > 0 => Ok(()),
        Some(_) => Err(Lost::WatchEnded("the lease has expired".into())),
        None => Err(Lost::WatchEnded("the member closed the stream".into())),
    }
}

async fn in_time<T>(what: &'static str, request: impl Future<Output = Result<T, Error>>) -> Result<T, Lost> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(answer) => answer.map_err(|error| Lost::Request(what, Fault::from(error))),
        Err(_) => Err(Lost::Deadline(what, REQUEST_DEADLINE)),
    }
}
