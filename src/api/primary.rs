//! `/v1/processes`, `/v1/cpu_*` and `/v1/primary/...`: what spp-ctl tells of all processes and of the primary.

use std::sync::PoisonError;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use spp_pipeline::compat::{self, CpuUsage, PrimaryJson, Process, SocketJson};

use super::Api;
use super::error::{ApiError, ApiResult};

/// `GET /v1/processes`
pub async fn processes(State(api): State<Api>) -> ApiResult<Json<Vec<Process>>> {
    api.call(|node| compat::processes(node.topology())).await.map(Json)
}

/// `GET /v1/cpu_usage`
pub async fn cpu_usage(State(api): State<Api>) -> ApiResult<Json<Vec<CpuUsage>>> {
    api.call(|node| compat::cpu_usage(node.topology())).await.map(Json)
}

/// `GET /v1/cpu_layout`
pub async fn cpu_layout() -> ApiResult<Json<Vec<SocketJson>>> {
    let cpus =
        compat::read_cpus().map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(Json(compat::cpu_layout(&cpus)))
}

/// `GET /v1/primary/status`
pub async fn status(State(api): State<Api>) -> ApiResult<Json<PrimaryJson>> {
    let now = api.call(|node| PrimaryJson::new(&node.status())).await?;
    let cleared = api.0.cleared.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Json(match &*cleared {
        Some(base) => now.since(base),
        None => now,
    }))
}

/// `DELETE /v1/primary/status`
pub async fn clear(State(api): State<Api>) -> ApiResult<StatusCode> {
    let now = api.call(|node| PrimaryJson::new(&node.status())).await?;
    *api.0.cleared.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /v1/primary`
pub async fn cannot_stop() -> ApiError {
    ApiError::refused("The primary is this process: stop it with SIGTERM.")
}

/// `PUT /v1/primary/{forward,ports,patches}`
pub async fn no_forwarder() -> ApiError {
    ApiError::refused("The primary of this node has no forwarder: use the components of a vf.")
}

/// `PUT /v1/primary/launch`
pub async fn cannot_launch() -> ApiError {
    ApiError::refused("This node starts no processes: its vfs are those of its configuration.")
}
