//! The agent: wires a node from etcd.
//!
//! The control node (neutron's SPP mechanism driver) writes what it wants of this host into etcd;
//! [`run`] reads it, plugs and unplugs a [`DataPlane`], and answers. [`reconcile`] decides and
//! [`machine`] goes about it, both sans-IO; [`agent`] carries out; [`keys`] has every key; [`link`] and [`connect`] talk to etcd;
//! [`configuration`] serves `spp run` before there is a node, and `spp config`; [`mod@bind`] is the control
//! node's side for fleets without one.
#![forbid(unsafe_code)]

pub mod agent;
pub mod bind;
pub mod configuration;
pub mod connect;
pub mod dataplane;
pub mod heartbeat;
mod journal;
pub mod keys;
pub mod link;
pub mod machine;
pub mod node_key;
pub mod reconcile;
pub mod resolve;
pub mod schedule;
pub mod secret;
#[cfg(test)]
mod simulation;
mod state;
pub mod status;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod txn;
pub mod view;

pub use agent::{AgentConfig, run};
pub use bind::{BindError, BindRequest, ControlNode, bind, unbind};
pub use configuration::{
    ConfigError, Configuration, PutReport, ShownKey, config_destroy, config_put, config_show,
    wait_for_configuration,
};
pub use connect::{EndpointError, Endpoints};
pub use dataplane::{DataPlane, DataPlaneError, Layout, Live, Place, Plug, Tap, TapDirection, Wiring};
pub use heartbeat::HeartbeatConfig;
pub use keys::{Key, Name, Root, SlotId, Subject};
pub use node_key::NodeKey;
pub use resolve::NameFiles;
pub use secret::{Secret, SecretError};
pub use status::{
    AgentStatus, EtcdStatus, HeartbeatStatus, NodeKeyStatus, PortReport, PortState, StatusCell, TapReport,
    VhostCount,
};
pub use tls::TlsFiles;
