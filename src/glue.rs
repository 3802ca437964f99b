//! The node as the agent sees it.
//!
//! Called on tokio's blocking pool; each call waits for the node's control thread.

use std::collections::BTreeSet;

use spp_agent::{DataPlane, DataPlaneError, Layout, Name, Plug, Tap, TapDirection};
use spp_pipeline::config::NodeConfig;
use spp_pipeline::node::{Node, NodeError, NodeHandle};
use spp_pipeline::topology::{self, Way};

use crate::fail::{Failure, chain};

/// A node with the names its vhosts have in etcd.
pub struct WiredNode {
    node: NodeHandle,
    layout: Layout,
    n_mirrors: u32,
}

impl WiredNode {
    /// For the agent of this node.
    pub fn new(node: NodeHandle, layout: Layout, n_mirrors: u32) -> WiredNode {
        WiredNode { node, layout, n_mirrors }
    }

    fn edit(
        &self,
        work: impl FnOnce(&mut Node) -> Result<(), NodeError> + Send + 'static,
    ) -> Result<(), DataPlaneError> {
        let done = self.node.call(work).map_err(|gone| DataPlaneError(chain(&gone)))?;
        done.map_err(|error| DataPlaneError(chain(&error)))
    }
}

/// The vhosts of a configuration as keys name them; a network whose name can't be part of a key is refused.
pub fn layout(config: &NodeConfig) -> Result<Layout, Failure> {
    let entry = |(network, vhost): (String, u32)| {
        let name = Name::new(&network).map_err(|e| Failure::bad_config(format!("physical network: {e}")))?;
        Ok((vhost, name))
    };
    config.layout().into_iter().map(entry).collect()
}

impl DataPlane for WiredNode {
    fn plug(&self, plug: &Plug) -> Result<(), DataPlaneError> {
        let plug = *plug;
        self.edit(move |node| node.plug(&plug))
    }

    fn unplug(&self, vhost: u32) -> Result<(), DataPlaneError> {
        self.edit(move |node| node.unplug(vhost))
    }

    fn plugs(&self) -> Result<Vec<Plug>, DataPlaneError> {
        self.node.call(|node| node.plugs()).map_err(|gone| DataPlaneError(chain(&gone)))
    }

    fn awaited(&self) -> Result<BTreeSet<u32>, DataPlaneError> {
        let awaited = self.node.call(|node| node.awaited()).map_err(|gone| DataPlaneError(chain(&gone)))?;
        Ok(awaited.into_iter().collect())
    }

    fn layout(&self) -> Layout {
        self.layout.clone()
    }

    fn n_mirrors(&self) -> u32 {
        self.n_mirrors
    }

    fn tap(&self, tap: &Tap) -> Result<(), DataPlaneError> {
        let Tap { mirror, direction, source, service: dest } = *tap;
        let way = match direction {
            TapDirection::In => Way::In,
            TapDirection::Out => Way::Out,
        };
        self.edit(move |node| node.tap(&topology::Tap { mirror, way, source, dest }))
    }

    fn untap(&self, mirror: u32) -> Result<(), DataPlaneError> {
        self.edit(move |node| node.untap(mirror))
    }

    fn taps(&self) -> Result<Vec<Tap>, DataPlaneError> {
        let taps = self.node.call(|node| node.taps()).map_err(|gone| DataPlaneError(chain(&gone)))?;
        let direction = |way| match way {
            Way::In => TapDirection::In,
            Way::Out => TapDirection::Out,
        };
        let tap = |tap: topology::Tap| {
            let topology::Tap { mirror, way, source, dest } = tap;
            Tap { mirror, direction: direction(way), source, service: dest }
        };
        Ok(taps.into_iter().map(tap).collect())
    }
}
