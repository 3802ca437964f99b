//! One connection to one etcd member: list, transact, ping, watch, each with a deadline.
//!
//! Owned by the agent's task (or by one `spp config` call). Turns typed keys into bytes and back;
//! any failure ends the connection, and the caller dials again.

use std::future::Future;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, KvClient, Txn, TxnOp, TxnOpResponse, TxnResponse,
    WatchOptions, WatchStream,
};

use crate::connect::{DialError, Dialer, Fault};
use crate::keys::{Family, HostKeys, Key};
use crate::txn::{Guard, KeyOp, KeyTxn};
use crate::view::{Change, KeyValue, Listing};

/// Longest time for one request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(3);

/// Largest answer taken, in bytes: the client's default of 4 MB would let a few fat values of one
/// port lock the agent out of all keys.
const ANSWER_MAX_BYTES: usize = 64 << 20;

/// Longest value kept of a port's key, in bytes. No honest one comes near, a longer one is refused by
/// its parser either way.
const VALUE_KEPT_BYTES: usize = 8192;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// No connection to begin with.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// A request failed.
    #[error("{0} failed: {1}")]
    Request(&'static str, Fault),
    /// No answer: the member hangs, or the connection is dead without saying so.
    #[error("{0} was not answered within {1:?}")]
    Deadline(&'static str, Duration),
    /// The watch's start is no longer in etcd's history.
    #[error("the history since revision {0} is compacted")]
    Compacted(i64),
    /// The member ended the watch, or the lease.
    #[error("ended by the member: {0}")]
    WatchEnded(String),
    /// The member shows an older or another state than before.
    #[error("etcd went back: it is at revision {now}, it was at {before}")]
    WentBack {
        /// Seen before.
        before: i64,
        /// Seen now.
        now: i64,
    },
    /// A bug, ours or the client library's, on what came in.
    #[error("the session panicked: {0}")]
    Panicked(String),
    /// An answer without its header.
    #[error("the answer to {0} makes no sense")]
    Nonsense(&'static str),
}

impl Lost {
    /// A member was reached, and does not let us.
    pub fn denied(&self) -> bool {
        match self {
            Lost::Request(_, fault) | Lost::Dial(DialError::Client { fault, .. }) => fault.denied(),
            _ => false,
        }
    }

    /// Says what to do: worth more than a refused connection.
    pub fn has_remedy(&self) -> bool {
        match self {
            Lost::Request(_, fault) | Lost::Dial(DialError::Client { fault, .. }) => fault.has_remedy(),
            Lost::Dial(DialError::Resolve(_) | DialError::Tls(_)) => true,
            _ => false,
        }
    }

    /// The member itself seems to be the trouble: another one may do better.
    pub fn member_fails(&self) -> bool {
        !matches!(self, Lost::WentBack { .. } | Lost::Compacted(_))
    }

    /// What an operator can do about it, where the text does not say so itself. All of these are tried
    /// again without anybody's doing.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            _ if self.has_remedy() => return None,
            Lost::Dial(_) => "check the name and port given with --etcd",
            Lost::Request(..) => "check that etcd runs there, answers, and has a leader",
            Lost::Deadline(..) => "check that the member and the network to it are not stuck",
            Lost::Compacted(_) | Lost::WatchEnded(_) => "nothing: all keys are listed again",
            Lost::WentBack { .. } => "bind those ports again whose keys the restored etcd does not have",
            Lost::Panicked(_) => "report it, with the log",
            Lost::Nonsense(_) => "check that there is etcd 3 at that address, and nothing else",
        })
    }
}

/// How a transaction went.
#[derive(Debug)]
pub enum Outcome {
    /// All guards held; written at this revision.
    Done(i64),
    /// Some guard did not hold. What the guarded keys say now.
    Changed(Vec<Change>),
}

async fn in_time<T>(what: &'static str, request: impl Future<Output = Result<T, Error>>) -> Result<T, Lost> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(answer) => answer.map_err(|error| Lost::Request(what, error.into())),
        Err(_) => Err(Lost::Deadline(what, REQUEST_DEADLINE)),
    }
}

/// The connection.
pub struct Link {
    client: Client,
    kv: KvClient,
    keys: HostKeys,
}

impl Link {
    /// Dials the member whose turn it is. The first request shows whether it is there.
    pub async fn dial(dialer: &Dialer, keys: HostKeys) -> Result<Link, Lost> {
        let client = dialer.dial().await?;
        let kv = client.kv_client().max_decoding_message_size(ANSWER_MAX_BYTES);
        Ok(Link { client, kv, keys })
    }

    /// All keys of the host, at one revision.
    pub async fn list(&mut self) -> Result<Listing, Lost> {
        let families = Family::ALL.map(|family| self.get_family(family));
        let answer = in_time("listing", self.kv.txn(Txn::new().and_then(families.to_vec()))).await?;
        let header = answer.header().ok_or(Lost::Nonsense("listing"))?;
        let (revision, cluster_id) = (header.revision(), header.cluster_id());
        let mut keys = Vec::new();
        let mut n_odd_keys = 0;
        for kv in key_values(&answer) {
            match self.keys.parse(kv.key()) {
                Some(key) => {
                    let value = bounded(&key, kv.value());
                    keys.push(KeyValue { key, value, mod_revision: kv.mod_revision() });
                }
                None => n_odd_keys += 1,
            }
        }
        Ok(Listing { keys, revision, cluster_id, n_odd_keys })
    }

    /// All keys of the host in the given families, as text.
    pub async fn dump(&mut self, families: &[Family]) -> Result<Vec<(String, String)>, Lost> {
        let gets: Vec<TxnOp> = families.iter().map(|&family| self.get_family(family)).collect();
        let answer = in_time("listing", self.kv.txn(Txn::new().and_then(gets))).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(key_values(&answer).iter().map(|kv| (text(kv.key()), text(kv.value()))).collect())
    }

    /// Deletes the host's keys of the given families in one transaction. How many there were.
    pub async fn delete_families(&mut self, families: &[Family]) -> Result<i64, Lost> {
        let delete = |&family: &Family| {
            let options =
                (family != Family::Configuration).then(|| etcd_client::DeleteOptions::new().with_prefix());
            TxnOp::delete(self.keys.prefix(family), options)
        };
        let deletes: Vec<TxnOp> = families.iter().map(delete).collect();
        let answer = in_time("deleting", self.kv.txn(Txn::new().and_then(deletes))).await?;
        let deleted = |response: &TxnOpResponse| match response {
            TxnOpResponse::Delete(delete) => delete.deleted(),
            _ => 0,
        };
        Ok(answer.op_responses().iter().map(deleted).sum())
    }

    /// Carries a transaction out; when its guards don't hold, reads the guarded keys in the same step.
    pub async fn txn(&mut self, txn: &KeyTxn) -> Result<Outcome, Lost> {
        let guards: Vec<Compare> = txn.guards.iter().map(|guard| self.compare(guard)).collect();
        let ops: Vec<TxnOp> = txn.ops.iter().map(|op| self.op(op)).collect();
        let reads: Vec<TxnOp> =
            txn.guarded_keys().map(|key| TxnOp::get(self.keys.spell(key), None)).collect();
        let request = Txn::new().when(guards).and_then(ops).or_else(reads);
        let answer = in_time("transaction", self.kv.txn(request)).await?;
        let revision = answer.header().ok_or(Lost::Nonsense("transaction"))?.revision();
        if answer.succeeded() {
            return Ok(Outcome::Done(revision));
        }
        let found = key_values(&answer);
        let read = |key: &Key| {
            let spelled = self.keys.spell(key);
            match found.iter().find(|kv| kv.key() == spelled.as_bytes()) {
                Some(kv) => {
                    let value = Some(bounded(key, kv.value()));
                    Change { key: key.clone(), value, revision: kv.mod_revision() }
                }
                None => Change { key: key.clone(), value: None, revision },
            }
        };
        Ok(Outcome::Changed(txn.guarded_keys().map(read).collect()))
    }

    /// The configuration and its revision, if there is one. Also the ping: it needs the connection,
    /// the member and its quorum. The second part is the store's revision.
    pub async fn configuration(&mut self) -> Result<(Option<(Vec<u8>, i64)>, i64), Lost> {
        let answer = in_time("ping", self.kv.get(self.keys.prefix(Family::Configuration), None)).await?;
        let revision = answer.header().ok_or(Lost::Nonsense("ping"))?.revision();
        let found = answer.kvs().first().map(|kv| (kv.value().to_vec(), kv.mod_revision()));
        Ok((found, revision))
    }

    /// Watches the host's keys from `revision` on. Nothing from there on is lost, however late the
    /// member gets to it; if its history no longer goes back that far, the watch says so and ends.
    pub async fn watch(&mut self, revision: i64) -> Result<Watch, Lost> {
        let options = |family| {
            let options = WatchOptions::new().with_start_revision(revision);
            if family == Family::Configuration { options } else { options.with_prefix() }
        };
        let [first, rest @ ..] = Family::ALL;
        let mut client = self.client.watch_client().max_decoding_message_size(ANSWER_MAX_BYTES);
        let mut stream =
            in_time("watch", client.watch(self.keys.prefix(first), Some(options(first)))).await?;
        for family in rest {
            in_time("watch", stream.watch(self.keys.prefix(family), Some(options(family)))).await?;
        }
        Ok(Watch { stream, keys: self.keys.clone() })
    }

    fn get_family(&self, family: Family) -> TxnOp {
        let options = (family != Family::Configuration).then(|| GetOptions::new().with_prefix());
        TxnOp::get(self.keys.prefix(family), options)
    }

    fn compare(&self, guard: &Guard) -> Compare {
        let key = self.keys.spell(guard.key());
        match guard {
            Guard::Unchanged(_, revision) => Compare::mod_revision(key, CompareOp::Equal, *revision),
            Guard::Absent(_) => Compare::create_revision(key, CompareOp::Equal, 0),
            Guard::Value(_, value) => Compare::value(key, CompareOp::Equal, value.as_str()),
        }
    }

    fn op(&self, op: &KeyOp) -> TxnOp {
        match op {
            KeyOp::Put(key, value) => TxnOp::put(self.keys.spell(key), value.as_str(), None),
            KeyOp::Delete(key) => TxnOp::delete(self.keys.spell(key), None),
        }
    }
}

fn key_values(answer: &TxnResponse) -> Vec<etcd_client::KeyValue> {
    let of_one = |response| match response {
        TxnOpResponse::Get(mut get) => get.take_kvs(),
        _ => Vec::new(),
    };
    answer.op_responses().into_iter().flat_map(of_one).collect()
}

fn bounded(key: &Key, value: &[u8]) -> Vec<u8> {
    let kept_bytes = if *key == Key::Configuration { value.len() } else { VALUE_KEPT_BYTES.min(value.len()) };
    value[..kept_bytes].to_vec()
}

/// A running watch on all of the host's keys.
pub struct Watch {
    stream: WatchStream,
    keys: HostKeys,
}

impl Watch {
    /// The next changes, in etcd's order per family. Waits as long as nothing changes; may be dropped
    /// and called again without losing any.
    pub async fn next(&mut self) -> Result<Vec<Change>, Lost> {
        let message = self.stream.message().await.map_err(|error| Lost::Request("watch", error.into()))?;
        let message = message.ok_or_else(|| Lost::WatchEnded("the member closed the stream".into()))?;
        if message.compact_revision() != 0 {
            return Err(Lost::Compacted(message.compact_revision()));
        }
        if message.canceled() {
            return Err(Lost::WatchEnded(message.cancel_reason().chars().take(200).collect()));
        }
        let change = |event: &etcd_client::Event| {
            let kv = event.kv()?;
            let key = self.keys.parse(kv.key())?;
            // A deletion comes as a key of version 0, and only a deletion does.
            let value = (kv.version() != 0).then(|| bounded(&key, kv.value()));
            Some(Change { key, value, revision: kv.mod_revision() })
        };
        Ok(message.events().iter().filter_map(change).collect())
    }
}
