//! `vhost-user:PATH` as a NIC: a listening vhost-user socket plays the wire, so that virtio-user or a
//! VM can play the physical network. Frames the node transmits go to the peer's receive ring.

use std::path::{Path, PathBuf};

use spp_drivers::MacAddr;
use spp_drivers::dma::Pool;
use spp_drivers::port::{Device, DeviceInfo, Link, PortError, Queues, RxQueue, TxQueue};

use crate::from_guest::MAX_FRAME_BYTES;
use crate::socket::Listener;
use crate::{PortConfig, PortState, PortStatus, Role, VhostPort};

/// The device. Its socket exists while it is started.
pub struct Wire {
    path: PathBuf,
    running: Option<VhostPort>,
}

impl Wire {
    /// A wire at `path`. Fails when something that is no stale socket is in the way.
    pub fn open(path: &Path) -> Result<Wire, PortError> {
        let wire = Wire { path: path.to_owned(), running: None };
        Listener::bind(path).map_err(|error| wire.error(error.to_string()).caused_by(error))?;
        Ok(wire)
    }

    /// The state of its socket while it is started.
    pub fn status(&self) -> Option<PortStatus> {
        self.running.as_ref().map(VhostPort::status)
    }

    fn address(&self) -> String {
        format!("vhost-user:{}", self.path.display())
    }

    fn error(&self, what: impl Into<String>) -> PortError {
        PortError::new(self.address(), what, "choose a path that no other process uses")
    }
}

impl Device for Wire {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            address: self.address(),
            driver: "vhost-user",
            max_frame_bytes: MAX_FRAME_BYTES as u32,
            n_queue_pairs: 1,
            numa_node: None,
        }
    }

    fn mac(&self) -> Option<MacAddr> {
        None
    }

    fn link(&mut self) -> Link {
        let Some(status) = self.status() else {
            return Link::Down { reason: "not started".to_owned() };
        };
        match status.state {
            PortState::Running => Link::Up { speed_mbps: 0 },
            state if status.detail.is_empty() => Link::Down { reason: state.to_string() },
            state => Link::Down { reason: format!("{state}, {}", status.detail) },
        }
    }

    fn set_promiscuous(&mut self, _on: bool) -> Result<(), PortError> {
        Ok(()) // the peer's frames all come through
    }

    fn start(&mut self, pool: &Pool, n_queue_pairs: u16) -> Result<Queues, PortError> {
        if n_queue_pairs != 1 || self.running.is_some() {
            return Err(self.error("a vhost-user wire has one queue pair, started once"));
        }
        let config = PortConfig::new(self.address(), &self.path, Role::Server);
        let opened = VhostPort::open(config, pool);
        let (port, to_guest, from_guest) =
            opened.map_err(|error| self.error(error.to_string()).caused_by(error))?;
        self.running = Some(port);
        let (rx, tx): (Box<dyn RxQueue>, Box<dyn TxQueue>) = (Box::new(from_guest), Box::new(to_guest));
        Ok(Queues { rx: vec![rx], tx: vec![tx] })
    }

    fn stop(&mut self, mut queues: Queues) {
        let Some(port) = self.running.take() else { return };
        port.close_with(|| {
            queues.rx.iter_mut().for_each(|half| half.poll_control());
            queues.tx.iter_mut().for_each(|half| half.poll_control());
        });
    }
}
