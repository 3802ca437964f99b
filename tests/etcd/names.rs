//! An etcd host name resolves through the hosts file, through DNS, and in a root with nothing else
//! in it: a static binary has no name service of the C library to lean on.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

use crate::support;
use crate::support::server::Etcd;
use spp_agent::{Endpoints, Name, NameFiles, config_show};

const HOST: &str = "spp4";

/// Endpoints by name, looked up in `dir`'s files.
fn endpoints(url: &str, dir: &Path) -> Endpoints {
    let files = NameFiles { hosts: dir.join("hosts"), resolv_conf: dir.join("resolv.conf") };
    url.parse::<Endpoints>().unwrap().with_name_files(files)
}

async fn keys_through(endpoints: &Endpoints) -> Result<usize, String> {
    let host = Name::new(HOST).unwrap();
    let shown = support::in_time("config show", config_show(endpoints, &host)).await;
    shown.map(|keys| keys.len()).map_err(|error| error.to_string())
}

/// A server with one key of the host.
async fn etcd(test: &str) -> Option<Etcd> {
    let etcd = Etcd::start(test).await?;
    let mut client = etcd.client().await;
    client.put("/spp/openstack/configuration/spp4", "[]", None).await.unwrap();
    Some(etcd)
}

#[tokio::test]
async fn name_in_the_hosts_file_is_found() {
    let Some(etcd) = etcd("name_in_the_hosts_file_is_found").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let hosts = "# comment\n127.0.0.1 localhost\nbroken line\n127.0.0.1\tetcd.lab etcd # trailing\n";
    std::fs::write(dir.path().join("hosts"), hosts).unwrap();
    for name in ["etcd.lab", "etcd", "ETCD.lab", "localhost", "127.0.0.1"] {
        let endpoints = endpoints(&format!("http://{name}:{}", etcd.port()), dir.path());
        assert_eq!(keys_through(&endpoints).await, Ok(1), "{name}");
    }
    let unknown = endpoints(&format!("http://other.lab:{}", etcd.port()), dir.path());
    let error = keys_through(&unknown).await.unwrap_err();
    assert!(error.contains("host name other.lab does not resolve"), "{error}");
}

/// Answers every A question for `etcd.lab` with 127.0.0.1 and all others with "no such name".
fn serve_dns(socket: UdpSocket) {
    const WANTED: &[u8] = b"\x04etcd\x03lab\x00";
    let mut question = [0u8; 512];
    while let Ok((n, from)) = socket.recv_from(&mut question) {
        let name_len = question[12..n].iter().position(|&b| b == 0).map_or(0, |end| end + 1);
        let name = question[12..12 + name_len].to_ascii_lowercase();
        let end = 12 + name_len + 4;
        let asks_a = question[12 + name_len..end] == [0, 1, 0, 1];
        let mut answer = question[..end].to_vec();
        let known = name == WANTED;
        // Response, recursion available; NXDOMAIN for names other than ours. One question, no extras.
        answer[2..4].copy_from_slice(&if known { [0x81, 0x80] } else { [0x81, 0x83] });
        answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(known && asks_a), 0, 0, 0, 0]);
        if known && asks_a {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        if socket.send_to(&answer, from).is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn name_in_dns_is_found_with_its_search_domain() {
    let test = "name_in_dns_is_found_with_its_search_domain";
    let Ok(socket) = UdpSocket::bind("127.77.83.80:53") else {
        println!("SKIPPED: {test}: no right to serve DNS on a loopback address's port 53");
        return;
    };
    let Some(etcd) = etcd(test).await else { return };
    std::thread::spawn(move || serve_dns(socket));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("resolv.conf"), "search lab\nnameserver 127.77.83.80\n").unwrap();
    for name in ["etcd.lab", "etcd"] {
        let endpoints = endpoints(&format!("http://{name}:{}", etcd.port()), dir.path());
        assert_eq!(keys_through(&endpoints).await, Ok(1), "{name}");
    }
    let unknown = endpoints(&format!("http://nobody.lab:{}", etcd.port()), dir.path());
    assert!(keys_through(&unknown).await.unwrap_err().contains("nobody.lab does not resolve"));
}

/// Runs itself again in a root that has this binary, /etc/hosts and nothing else.
#[tokio::test]
async fn name_is_found_in_an_empty_root() {
    const TEST: &str = "name_is_found_in_an_empty_root";
    const URL: &str = "SPP_TEST_URL_IN_EMPTY_ROOT";
    if let Ok(url) = std::env::var(URL) {
        assert_eq!(keys_through(&url.parse().unwrap()).await, Ok(1));
        return;
    }
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/hosts"), "127.0.0.1 etcd.lab\n").unwrap();
    std::fs::copy(std::env::current_exe().unwrap(), root.path().join("test")).unwrap();
    let chroot = |args: &[&str], url: &str| {
        Command::new("chroot")
            .arg(root.path())
            .args(args)
            .env(URL, url)
            .output()
            .expect("chroot is in coreutils")
    };
    let allowed = chroot(&["/test", "--list"], "");
    if !allowed.status.success() && String::from_utf8_lossy(&allowed.stderr).contains("not permitted") {
        println!("SKIPPED: {TEST}: no right to chroot");
        return;
    }
    let Some(etcd) = etcd(TEST).await else { return };
    let inside =
        chroot(&["/test", "--exact", &format!("names::{TEST}")], &format!("http://etcd.lab:{}", etcd.port()));
    let output =
        String::from_utf8_lossy(&inside.stdout).into_owned() + &String::from_utf8_lossy(&inside.stderr);
    assert!(inside.status.success() && output.contains("1 passed"), "{output}");
}
