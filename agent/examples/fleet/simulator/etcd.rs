//! The site's etcd: one server on loopback, its data in a directory that goes with it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use spp_agent::Endpoints;
use tempfile::TempDir;
use tokio::time::sleep;

use super::FleetError;

/// The server; killed and forgotten when dropped.
pub struct Etcd {
    dir: TempDir,
    child: Option<Child>,
    port: u16,
    peer_port: u16,
}

fn free_port() -> Result<u16, FleetError> {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    Ok(bound.map_err(|error| FleetError::System("no free port on loopback", error))?.port())
}

impl Etcd {
    /// Starts one, with its data below `data_dir`.
    pub async fn start(data_dir: Option<&Path>) -> Result<Etcd, FleetError> {
        let mut version = Command::new("etcd");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().map_err(|_| FleetError::NoEtcd)?;
        let dir = match data_dir {
            Some(dir) => tempfile::tempdir_in(dir),
            None => tempfile::tempdir(),
        };
        let dir = dir.map_err(|error| FleetError::System("no directory for etcd's data", error))?;
        let mut etcd = Etcd { dir, child: None, port: free_port()?, peer_port: free_port()? };
        etcd.run().await?;
        Ok(etcd)
    }

    /// Runs it on its ports and data, and waits until it answers.
    pub async fn run(&mut self) -> Result<(), FleetError> {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer_port));
        let child = Command::new("etcd")
            .args(["--name", "only", "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("only={peer}"), "--log-level", "error", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.map_err(|error| FleetError::System("etcd", error))?);
        while !self.answers().await {
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn answers(&self) -> bool {
        match self.client().await {
            Ok(mut client) => client.get("x", None).await.is_ok(),
            Err(_) => false,
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn endpoints(&self) -> Endpoints {
        self.url().parse().expect("it is an endpoint")
    }

    /// A connection for the simulator itself.
    pub async fn client(&self) -> Result<Client, FleetError> {
        let deadline = Duration::from_secs(10);
        let options = ConnectOptions::new().with_connect_timeout(deadline).with_timeout(deadline);
        Ok(Client::connect([self.url()], Some(options)).await?)
    }

    /// A connection for watching: its requests last.
    pub async fn watching_client(&self) -> Result<Client, FleetError> {
        Ok(Client::connect([self.url()], None).await?)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
