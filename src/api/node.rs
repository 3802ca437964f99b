//! `/v1/node/...`: what spp-ctl has no path for, the node as a whole and plugs.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use spp_agent::{AgentStatus, StatusCell};
use spp_drivers::MacAddr;
use spp_pipeline::node::NodeError;
use spp_pipeline::status::NodeStatus;
use spp_pipeline::topology::Plug;

use super::Api;
use super::body::Body;
use super::error::{ApiError, ApiResult};
use crate::fail::chain;

/// Answer of `GET /v1/node`: the node's status, and the agent's where one wires the node.
#[derive(Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    #[serde(flatten)]
    pub node: NodeStatus,
    /// The agent; null without etcd.
    pub agent: Option<Value>,
}

/// `GET /v1/node`
pub async fn status(State(api): State<Api>) -> ApiResult<Json<NodeReport>> {
    let node = api.call(|node| node.status()).await?;
    let agent = api.0.agent.as_ref().map(|cell| serde_json::to_value(cell.get()));
    let agent =
        agent.transpose().map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(Json(NodeReport { node, agent }))
}

/// Answer of `GET /v1/node/agent`: there while the node still waits for its configuration, too.
#[derive(Debug, Serialize)]
pub struct AgentReport {
    /// Connected, and everything as etcd wants it.
    in_order: bool,
    #[serde(flatten)]
    status: AgentStatus,
}

/// `GET /v1/node/agent`
pub async fn agent(State(api): State<Api>) -> ApiResult<Json<AgentReport>> {
    let status = agent_of(&api)?.get();
    Ok(Json(AgentReport { in_order: status.in_order(), status }))
}

/// `POST /v1/node/agent/restart`: the agent forgets everything and starts anew; nothing changes for traffic.
pub async fn restart_agent(State(api): State<Api>) -> ApiResult<StatusCode> {
    agent_of(&api)?.ask_restart();
    Ok(StatusCode::ACCEPTED)
}

fn agent_of(api: &Api) -> ApiResult<&StatusCell> {
    let none = || ApiError::new(StatusCode::NOT_FOUND, "This node has no agent: it runs without etcd.");
    api.0.agent.as_ref().ok_or_else(none)
}

/// A plug in bodies and answers, spelt as in the `bind_port` key.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PlugJson {
    vhost_id: u32,
    mac_address: MacAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan_id: Option<u16>,
}

impl From<Plug> for PlugJson {
    fn from(plug: Plug) -> PlugJson {
        PlugJson { vhost_id: plug.vhost, mac_address: plug.mac, vlan_id: plug.vlan }
    }
}

/// `GET /v1/node/plugs`
pub async fn plugs(State(api): State<Api>) -> ApiResult<Json<Vec<PlugJson>>> {
    let plugs = api.call(|node| node.plugs()).await?;
    Ok(Json(plugs.into_iter().map(PlugJson::from).collect()))
}

/// `PUT /v1/node/plugs/{vhost}` with `{"mac_address": MAC[, "vlan_id": 1..4094]}`
pub async fn plug(
    State(api): State<Api>,
    Path(vhost): Path<String>,
    uri: Uri,
    body: ApiResult<Body>,
) -> ApiResult<Json<PlugJson>> {
    let plug = read_plug(parse_vhost(&vhost, &uri)?, &body?)?;
    refuse_beside_agent(&api)?;
    let done = api.call(move |node| node.plug(&plug)).await?;
    done.map(|()| Json(plug.into())).map_err(|error| in_words(&error))
}

/// `DELETE /v1/node/plugs/{vhost}`; one that is not plugged is fine.
pub async fn unplug(State(api): State<Api>, Path(vhost): Path<String>, uri: Uri) -> ApiResult<StatusCode> {
    let vhost = parse_vhost(&vhost, &uri)?;
    refuse_beside_agent(&api)?;
    let done = api.call(move |node| node.unplug(vhost)).await?;
    done.map(|()| StatusCode::NO_CONTENT).map_err(|error| in_words(&error))
}

fn parse_vhost(text: &str, uri: &Uri) -> ApiResult<u32> {
    text.parse().map_err(|_| ApiError::no_path(uri))
}

fn read_plug(vhost: u32, body: &Body) -> ApiResult<Plug> {
    let mac = body.read("mac_address", |value| value.as_str()?.parse().ok())?;
    let vlan = match body.get("vlan_id") {
        None | Some(Value::Null) => None,
        Some(_) => Some(body.read("vlan_id", |value| u16::try_from(value.as_u64()?).ok())?),
    };
    Ok(Plug { vhost, mac, vlan })
}

/// What etcd asks for is the agent's to wire; it would undo what others do.
fn refuse_beside_agent(api: &Api) -> ApiResult<()> {
    let reason = "This node is wired from etcd: plug and unplug through neutron.";
    if api.0.agent.is_some() { Err(ApiError::new(StatusCode::CONFLICT, reason)) } else { Ok(()) }
}

/// Why a plug is refused, in a sentence.
fn in_words(error: &NodeError) -> ApiError {
    match error {
        NodeError::Edit(edit) => ApiError::new(StatusCode::BAD_REQUEST, edit.what.clone()),
        other => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, chain(other)),
    }
}
