//! `/v1/vfs/{id}/...`: spp-ctl's commands to a vf, with its status codes and texts.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use spp_pipeline::compat::{ProcessJson, VfJson};
use spp_pipeline::node::{Node, NodeError};

use super::Api;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use super::vf_body::{self, PortChange, TableChange};
use crate::fail::chain;

/// The number of a vf in a path. Whatever is no number is another path to spp-ctl.
fn parse_id(id: &str, uri: &Uri) -> ApiResult<i64> {
    id.parse().map_err(|_| ApiError::no_path(uri))
}

/// Runs an edit on a vf.
async fn edit<F>(api: &Api, vf: u32, work: F) -> ApiResult<StatusCode>
where
    F: FnOnce(&mut Node, u32) -> Result<(), NodeError> + Send + 'static,
{
    let done = api.call(move |node| work(node, vf)).await?;
    done.map(|()| StatusCode::NO_CONTENT).map_err(|error| refusal(&error))
}

/// spp-ctl looks for the process before it looks at the body.
async fn existing(api: &Api, id: &str, uri: &Uri) -> ApiResult<u32> {
    let number = parse_id(id, uri)?;
    let id = u32::try_from(number).ok();
    let found = match id {
        Some(id) => api.call(move |node| node.topology().vf(id).is_ok()).await?,
        None => false,
    };
    id.filter(|_| found).ok_or_else(|| ApiError::no_process(&number.to_string()))
}

/// `GET /v1/vfs/{id}`
pub async fn status(State(api): State<Api>, Path(id): Path<String>, uri: Uri) -> ApiResult<Json<VfJson>> {
    let number = parse_id(&id, &uri)?;
    let unknown = || ApiError::no_process(&number.to_string());
    let id = u32::try_from(number).map_err(|_| unknown())?;
    let vf = api.call(move |node| VfJson::new(node.topology(), id)).await?;
    vf.map(Json).ok_or_else(unknown)
}

/// `DELETE /v1/vfs/{id}`
pub async fn cannot_stop(State(api): State<Api>, Path(id): Path<String>, uri: Uri) -> ApiResult<StatusCode> {
    let id = existing(&api, &id, &uri).await?;
    let reason = format!(
        "vf {id} is a part of this node and can't be stopped alone: take its NIC out of the configuration and restart spp."
    );
    Err(ApiError::refused(reason))
}

/// `POST /v1/vfs/{id}/components`
pub async fn start_component(
    State(api): State<Api>,
    Path(id): Path<String>,
    uri: Uri,
    body: ApiResult<Body>,
) -> ApiResult<StatusCode> {
    let vf = existing(&api, &id, &uri).await?;
    let start = vf_body::component_start(&body?)?;
    edit(&api, vf, move |node, vf| node.component_start(vf, &start.name, start.core, start.kind)).await
}

/// `DELETE /v1/vfs/{id}/components/{name}`
pub async fn stop_component(
    State(api): State<Api>,
    Path((id, name)): Path<(String, String)>,
    uri: Uri,
) -> ApiResult<StatusCode> {
    let vf = existing(&api, &id, &uri).await?;
    edit(&api, vf, move |node, vf| node.component_stop(vf, &name)).await
}

/// `PUT /v1/vfs/{id}/components/{name}/ports`
pub async fn change_port(
    State(api): State<Api>,
    Path((id, name)): Path<(String, String)>,
    uri: Uri,
    body: ApiResult<Body>,
) -> ApiResult<StatusCode> {
    let vf = existing(&api, &id, &uri).await?;
    let change = vf_body::port_change(&body?)?;
    edit(&api, vf, move |node, vf| match change {
        PortChange::Attach(port, direction, vlan) => node.port_attach(vf, &name, port, direction, vlan),
        PortChange::Detach(port, direction) => node.port_detach(vf, &name, port, direction),
    })
    .await
}

/// `PUT /v1/vfs/{id}/classifier_table`
pub async fn change_table(
    State(api): State<Api>,
    Path(id): Path<String>,
    uri: Uri,
    body: ApiResult<Body>,
) -> ApiResult<StatusCode> {
    let vf = existing(&api, &id, &uri).await?;
    let change = vf_body::table_change(&body?)?;
    edit(&api, vf, move |node, vf| match change {
        TableChange::Add(entry) => node.table_add(vf, entry),
        TableChange::Del(entry) => node.table_del(vf, entry),
    })
    .await
}

/// `GET /v1/mirrors/{id}`
pub async fn mirrors(
    State(api): State<Api>,
    Path(id): Path<String>,
    uri: Uri,
) -> ApiResult<Json<ProcessJson>> {
    let number = parse_id(&id, &uri)?;
    let unknown = || ApiError::no_process(&number.to_string());
    let id = u32::try_from(number).map_err(|_| unknown())?;
    let mirrors = api.call(move |node| ProcessJson::mirrors(node.topology(), id)).await?;
    mirrors.map(Json).ok_or_else(unknown)
}

/// Processes of other types (`nfvs`, `pcaps`), of which a node has none, and commands to mirrors, which only taps wire.
pub async fn no_such_process(uri: Uri) -> ApiError {
    let mut parts = uri.path().split('/').skip(2);
    let (kind, id) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match id.parse::<i64>() {
        Ok(_) if ["nfvs", "mirrors", "pcaps"].contains(&kind) => ApiError::no_process(id),
        _ => ApiError::no_path(&uri),
    }
}

/// How spp-ctl words it when the process refuses a command, or fails to carry it out. The sentence
/// behind its word goes to the log: there is no place for it in spp-ctl's answers.
fn refusal(error: &NodeError) -> ApiError {
    match error {
        NodeError::Edit(edit) if edit.code.starts_with("sec_id") => {
            ApiError::new(StatusCode::NOT_FOUND, edit.code.clone())
        }
        NodeError::Edit(edit) => {
            tracing::info!("refused: {}", edit.what);
            ApiError::new(StatusCode::BAD_REQUEST, format!("command error: {}", edit.code))
        }
        other => {
            tracing::error!("failed: {}", chain(other));
            ApiError::new(StatusCode::BAD_REQUEST, "command error: error occur")
        }
    }
}
