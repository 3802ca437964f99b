//! A node that records what it is asked, and an agent that runs on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use spp_agent::{
    AgentConfig, Configuration, DataPlane, DataPlaneError, Endpoints, Key, Layout, Name, Plug, StatusCell,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{in_time, until};

/// Where in a call the hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    BeforePlug,
    AfterPlug,
    BeforeUnplug,
    AfterUnplug,
}

type Hook = Box<dyn Fn(Moment) + Send>;

/// Two physical networks with two vhosts each.
#[derive(Default)]
pub struct Node {
    wired: Mutex<BTreeMap<u32, Plug>>,
    calls: Mutex<Vec<String>>,
    hook: Mutex<Option<Hook>>,
    mute: AtomicBool,
}

impl Node {
    pub fn new() -> Arc<Node> {
        Arc::default()
    }

    pub fn wired(&self) -> BTreeMap<u32, Plug> {
        self.wired.lock().unwrap().clone()
    }

    /// All calls so far, in words.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Calls `hook` at every moment from now on.
    pub fn set_hook(&self, hook: impl Fn(Moment) + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// Whether it refuses to say what is wired.
    pub fn set_mute(&self, mute: bool) {
        self.mute.store(mute, Ordering::Relaxed);
    }

    fn moment(&self, moment: Moment) {
        if let Some(hook) = &*self.hook.lock().unwrap() {
            hook(moment);
        }
    }

    pub async fn until_wired(&self, vhosts: &[u32]) {
        until(&format!("{vhosts:?} are wired"), || async {
            self.wired().keys().copied().eq(vhosts.iter().copied())
        })
        .await;
    }
}

impl DataPlane for Node {
    fn plug(&self, plug: &Plug) -> Result<(), DataPlaneError> {
        self.moment(Moment::BeforePlug);
        self.calls.lock().unwrap().push(format!("plug {plug}"));
        self.wired.lock().unwrap().insert(plug.vhost, *plug);
        self.moment(Moment::AfterPlug);
        Ok(())
    }

    fn unplug(&self, vhost: u32) -> Result<(), DataPlaneError> {
        self.moment(Moment::BeforeUnplug);
        self.calls.lock().unwrap().push(format!("unplug {vhost}"));
        self.wired.lock().unwrap().remove(&vhost);
        self.moment(Moment::AfterUnplug);
        Ok(())
    }

    fn plugs(&self) -> Result<Vec<Plug>, DataPlaneError> {
        if self.mute.load(Ordering::Relaxed) {
            return Err(DataPlaneError("busy".into()));
        }
        Ok(self.wired().into_values().collect())
    }

    fn layout(&self) -> Layout {
        [(0, "phys1"), (1, "phys1"), (2, "phys2"), (3, "phys2")]
            .map(|(v, net)| (v, Name::new(net).unwrap()))
            .into()
    }
}

/// An agent at work.
pub struct Agent {
    pub status: StatusCell,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<()>,
}

pub fn config(endpoints: &str, host: &str) -> AgentConfig {
    AgentConfig::new(endpoints.parse().unwrap(), Name::new(host).unwrap(), None)
}

impl Agent {
    pub fn start(endpoints: &str, host: &str, node: &Arc<Node>) -> Agent {
        Agent::with(config(endpoints, host), node)
    }

    pub fn with(config: AgentConfig, node: &Arc<Node>) -> Agent {
        let (stop, stopped) = oneshot::channel();
        let status = StatusCell::default();
        let shutdown = async move { drop(stopped.await) };
        let task = tokio::spawn(spp_agent::run(config, node.clone(), status.clone(), shutdown));
        Agent { status, stop: Some(stop), task }
    }

    pub async fn until_connected(&self) {
        until("the agent is connected", || async { self.status.get().etcd.connected }).await;
    }

    pub async fn until_disconnected(&self) {
        until("the agent has noticed", || async { !self.status.get().etcd.connected }).await;
    }

    /// As `kill -9` has it: nothing is finished, nothing is said.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// As SIGTERM has it. Must end at once, whatever is under way.
    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        let second = std::time::Duration::from_secs(1);
        tokio::time::timeout(second, &mut self.task).await.expect("the agent does not stop").unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The document's host: configuration and one `None` per vhost, as `spp config put` writes them.
pub async fn put_config(endpoints: &str, host: &str, json: &str) {
    let slots: Vec<_> = Node::default()
        .layout()
        .into_iter()
        .map(|(vhost, physnet)| Key::Vhost(spp_agent::SlotId { physnet, vhost }))
        .collect();
    let endpoints: Endpoints = endpoints.parse().unwrap();
    let host = Name::new(host).unwrap();
    let put = spp_agent::config_put(&endpoints, &host, json, &slots, false);
    in_time("config put", put).await.unwrap();
}

/// What the node would have been built from.
pub async fn configuration(endpoints: &str, host: &str) -> Configuration {
    let (endpoints, host) = (endpoints.parse().unwrap(), Name::new(host).unwrap());
    in_time("waiting for the configuration", spp_agent::wait_for_configuration(&endpoints, &host, None)).await
}
