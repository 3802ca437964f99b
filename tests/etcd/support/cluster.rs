//! Three members on loopback as operators run them: TLS with client certificates, users and passwords.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, Permission, PermissionType, TlsOptions};
use spp_agent::{Endpoints, Secret, TlsFiles};
use tempfile::TempDir;

use super::certificates::{Authority, Files};
use super::server::{binary_is_there, free_port};
use super::until;

/// The user the node logs in as, who may touch what is below these prefixes.
pub const USER: &str = "spp";
pub const PASSWORD: &str = "not-for-the-log";
const PREFIXES: [&str; 2] = ["/spp/", "/spp-nodes/"];

/// How long a login lasts unused; shorter than the agent's pings are apart.
const TOKEN_TTL_S: u32 = 1;

struct Member {
    port: u16,
    peer_port: u16,
    child: Option<Child>,
}

pub struct Cluster {
    dir: TempDir,
    pub ca: Authority,
    client: Files,
    server: Files,
    members: Vec<Member>,
}

impl Cluster {
    /// Starts three and lets users in. None: skipped.
    pub async fn start(test: &str) -> Option<Cluster> {
        if !binary_is_there(test) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::new(dir.path(), "lab-ca");
        let (server, client) = (ca.issue("etcd", &["localhost", "127.0.0.1"]), ca.issue("client", &[]));
        let member = || Member { port: free_port(), peer_port: free_port(), child: None };
        let members = (0..3).map(|_| member()).collect();
        let mut cluster = Cluster { dir, ca, client, server, members };
        for id in 0..3 {
            cluster.run(id);
        }
        cluster.until_serving(None).await;
        let mut root = cluster.connect(None).await.unwrap();
        root.user_add("root", PASSWORD, None).await.unwrap();
        root.role_add("root").await.unwrap();
        root.user_grant_role("root", "root").await.unwrap();
        root.user_add(USER, PASSWORD, None).await.unwrap();
        root.role_add("node").await.unwrap();
        for prefix in PREFIXES {
            let permission = Permission::new(PermissionType::Readwrite, prefix).with_prefix();
            root.role_grant_permission("node", permission).await.unwrap();
        }
        root.user_grant_role(USER, "node").await.unwrap();
        root.auth_enable().await.unwrap();
        Some(cluster)
    }

    /// Runs a member on its ports and data.
    pub fn run(&mut self, id: usize) {
        let peers = self.members.iter().enumerate();
        let peers: Vec<String> =
            peers.map(|(i, m)| format!("m{i}=http://127.0.0.1:{}", m.peer_port)).collect();
        let member = &self.members[id];
        let (client, peer) = (self.url(id), format!("http://127.0.0.1:{}", member.peer_port));
        let log = std::fs::File::create(self.dir.path().join(format!("log{id}"))).unwrap();
        let child = Command::new("etcd")
            .args(["--name", &format!("m{id}"), "--initial-cluster", &peers.join(",")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--client-cert-auth", "--auth-token-ttl", &TOKEN_TTL_S.to_string(), "--bcrypt-cost", "4"])
            .arg("--trusted-ca-file")
            .arg(&self.ca.file)
            .arg("--cert-file")
            .arg(&self.server.cert)
            .arg("--key-file")
            .arg(&self.server.key)
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("data{id}")))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[id].child = Some(child);
    }

    /// `kill -9` of one member.
    pub fn kill(&mut self, id: usize) {
        if let Some(mut child) = self.members[id].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A member stops answering, its connections stay; or goes on.
    pub fn hang(&self, id: usize, hangs: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let child = self.members[id].child.as_ref().expect("it runs");
        let signal = if hangs { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    pub fn url(&self, id: usize) -> String {
        format!("https://127.0.0.1:{}", self.members[id].port)
    }

    /// All members, by the host name in their certificate.
    pub fn urls(&self) -> String {
        let urls: Vec<String> = (0..3).map(|id| self.url(id).replace("127.0.0.1", "localhost")).collect();
        urls.join(",")
    }

    /// The member an endpoint names.
    pub fn member(&self, endpoint: &str) -> usize {
        let is_it = |m: &Member| endpoint.ends_with(&format!(":{}", m.port));
        self.members.iter().position(is_it).expect("one of ours")
    }

    pub fn tls_files(&self) -> TlsFiles {
        let identity = Some((self.client.cert.clone(), self.client.key.clone()));
        TlsFiles { ca: Some(self.ca.file.clone()), identity }
    }

    /// As the node is configured.
    pub fn endpoints(&self) -> Endpoints {
        let endpoints: Endpoints = self.urls().parse().unwrap();
        endpoints.with_tls(self.tls_files()).with_login(USER, Secret::new(PASSWORD))
    }

    async fn connect(&self, user: Option<&str>) -> Result<Client, etcd_client::Error> {
        self.connect_without(user, None).await
    }

    /// A client that may do everything, of all members but one.
    pub async fn client_without(&self, id: usize) -> Client {
        self.connect_without(Some("root"), Some(id)).await.unwrap()
    }

    async fn connect_without(
        &self,
        user: Option<&str>,
        without: Option<usize>,
    ) -> Result<Client, etcd_client::Error> {
        let read = |path: &PathBuf| std::fs::read(path).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read(&self.ca.file)))
            .identity(Identity::from_pem(read(&self.client.cert), read(&self.client.key)));
        let mut options = ConnectOptions::new().with_tls(tls).with_connect_timeout(Duration::from_secs(1));
        options = options.with_timeout(Duration::from_secs(3));
        if let Some(user) = user {
            options = options.with_user(user, PASSWORD).with_auto_token_refresh(true);
        }
        let running = (0..3).filter(|&id| self.members[id].child.is_some() && Some(id) != without);
        let urls: Vec<String> = running.map(|id| self.url(id)).collect();
        Client::connect(urls, Some(options)).await
    }

    /// A client that may do everything, of the members that run.
    pub async fn client(&self) -> Client {
        self.until_serving(Some("root")).await;
        self.connect(Some("root")).await.unwrap()
    }

    /// Until there is a leader and a quorum.
    async fn until_serving(&self, user: Option<&str>) {
        until("the cluster serves", || async {
            match self.connect(user).await {
                Ok(mut client) => client.get("x", None).await.is_ok(),
                Err(_) => false,
            }
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for id in 0..3 {
            self.kill(id);
        }
    }
}
