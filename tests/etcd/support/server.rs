//! An etcd server of a test's own: loopback ports, a directory that goes with it, killed by pid.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::until;

/// The running server; it and its data are gone when this is dropped.
pub struct Etcd {
    dir: TempDir,
    child: Option<Child>,
    client_port: u16,
    peer_port: u16,
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Says that the test is skipped where there is no etcd.
pub fn binary_is_there(test: &str) -> bool {
    let run = Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if run.is_err() {
        println!("SKIPPED: {test}: there is no etcd binary (Debian package etcd-server)");
    }
    run.is_ok()
}

impl Etcd {
    /// Starts one and waits until it answers. None without the binary: the test is skipped.
    pub async fn start(test: &str) -> Option<Etcd> {
        let etcd = Etcd::prepare(test)?;
        Some(etcd.started().await)
    }

    /// Ports and directory, nothing running yet.
    pub fn prepare(test: &str) -> Option<Etcd> {
        if !binary_is_there(test) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        Some(Etcd { dir, child: None, client_port: free_port(), peer_port: free_port() })
    }

    async fn started(mut self) -> Etcd {
        self.run().await;
        self
    }

    /// Runs it on its ports and data, and waits until it answers.
    pub async fn run(&mut self) {
        let client = self.url();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new("etcd")
            .args(["--name", "only", "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("only={peer}"), "--data-dir"])
            .arg(self.dir.path().join("data"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let url = self.url();
        until("etcd answers", || async {
            let options = etcd_client::ConnectOptions::new().with_timeout(std::time::Duration::from_secs(1));
            match etcd_client::Client::connect([&url], Some(options)).await {
                Ok(mut client) => client.get("x", None).await.is_ok(),
                Err(_) => false,
            }
        })
        .await;
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Killed, and all it knew is gone.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    /// Its client port.
    pub fn port(&self) -> u16 {
        self.client_port
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// A client straight to it.
    pub async fn client(&self) -> etcd_client::Client {
        etcd_client::Client::connect([self.url()], None).await.unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
