//! The HTTP API: spp-ctl's paths, so that SPP's own tools and scripts work, and ours beside them.
//!
//! Handlers run on tokio's threads and own nothing: each sends one closure to the node's control
//! thread and waits for it on the blocking pool. Until the node is up they say so.

mod body;
mod error;
pub mod listen;
mod node;
pub use node::NodeReport;
mod primary;
mod vf;
mod vf_body;

use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, Uri};
use axum::routing::{any, delete, get, post, put};
use spp_agent::StatusCell;
use spp_pipeline::compat::PrimaryJson;
use spp_pipeline::node::{Node, NodeHandle};

use error::{ApiError, ApiResult};

/// What the handlers share.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

struct Shared {
    node: OnceLock<NodeHandle>,
    agent: Option<StatusCell>,
    /// The counters at the last `DELETE /v1/primary/status`.
    cleared: Mutex<Option<PrimaryJson>>,
}

impl Api {
    /// An API whose node is not up yet; `agent` where one wires the node.
    pub fn new(agent: Option<StatusCell>) -> Api {
        Api(Arc::new(Shared { node: OnceLock::new(), agent, cleared: Mutex::new(None) }))
    }

    /// The node is up: requests reach it from now on. To be called once.
    pub fn node_is_up(&self, node: NodeHandle) {
        let first = self.0.node.set(node).is_ok();
        assert!(first, "a process has one node");
    }

    /// Runs `work` on the node's control thread.
    async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node) -> R + Send + 'static,
    ) -> ApiResult<R> {
        let waiting = "The node waits for its configuration.";
        let node = self.0.node.get().cloned();
        let node = node.ok_or_else(|| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, waiting))?;
        match tokio::task::spawn_blocking(move || node.call(work)).await {
            Ok(answer) => answer.map_err(|gone| ApiError::node_gone(&gone)),
            Err(panicked) => Err(ApiError::node_gone(&panicked)),
        }
    }

    /// All paths.
    pub fn router(&self) -> Router {
        let unknown = |uri: Uri| async move { ApiError::no_path(&uri) };
        Router::new()
            .route("/v1/processes", get(primary::processes))
            .route("/v1/cpu_usage", get(primary::cpu_usage))
            .route("/v1/cpu_layout", get(primary::cpu_layout))
            .route("/v1/primary", delete(primary::cannot_stop))
            .route("/v1/primary/status", get(primary::status).delete(primary::clear))
            .route("/v1/primary/forward", put(primary::no_forwarder))
            .route("/v1/primary/ports", put(primary::no_forwarder))
            .route("/v1/primary/patches", put(primary::no_forwarder).delete(primary::no_forwarder))
            .route("/v1/primary/launch", put(primary::cannot_launch))
            .route("/v1/vfs/{id}", get(vf::status).delete(vf::cannot_stop))
            .route("/v1/vfs/{id}/components", post(vf::start_component))
            .route("/v1/vfs/{id}/components/{name}", delete(vf::stop_component))
            .route("/v1/vfs/{id}/components/{name}/ports", put(vf::change_port))
            .route("/v1/vfs/{id}/classifier_table", put(vf::change_table))
            .route("/v1/mirrors/{id}", get(vf::mirrors).fallback(vf::no_such_process))
            .route("/v1/{kind}/{id}", any(vf::no_such_process))
            .route("/v1/{kind}/{id}/{*rest}", any(vf::no_such_process))
            .route("/v1/node", get(node::status))
            .route("/v1/node/agent", get(node::agent))
            .route("/v1/node/agent/restart", post(node::restart_agent))
            .route("/v1/node/plugs", get(node::plugs))
            .route("/v1/node/plugs/{vhost}", put(node::plug).delete(node::unplug))
            .fallback(unknown)
            .method_not_allowed_fallback(|| async { ApiError::wrong_method() })
            .layer(DefaultBodyLimit::max(body::MAX_BODY_BYTES))
            .with_state(self.clone())
    }
}
