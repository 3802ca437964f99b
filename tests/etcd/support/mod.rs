//! What the etcd tests run against: a real server, the driver's side of the keys, a node that
//! records, a wire that can be cut.

pub mod certificates;
pub mod cluster;
pub mod driver;
pub mod node;
pub mod proxy;
pub mod server;

use std::future::Future;
use std::time::Duration;

/// Longest wait for anything that is sure to come; only a hang gets there.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until `check` says so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never came true: {what}"));
}

/// A future that must end.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("hangs: {what}"))
}
