//! The sockets the API is served on, and who may talk to them.
//!
//! A unix socket is created with mode 0600, replaces only a socket nobody listens on, and is removed
//! at the end. TCP is loopback only unless the operator says otherwise, and requests a web page could
//! send (foreign `Host`, any `Origin`) are refused there: the API has no passwords.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Router, serve};
use rustix::fs::Mode;
use tokio::net::{TcpListener, UnixListener, UnixSocket};
use tokio::sync::watch;

use super::error::ApiError;
use crate::cli::ApiAddress;

/// A bound socket, ready to serve.
pub struct Bound {
    socket: Socket,
    address: ApiAddress,
}

enum Socket {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener, SocketAddr),
}

/// Why an address can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else serves it.
    #[error("{0} is served by another process: stop it, or give another --api")]
    Taken(ApiAddress),
    /// A file that is no socket is in the way.
    #[error("{} exists and is not a socket: remove it, or give another --api", .0.display())]
    NotASocket(PathBuf),
    /// Not loopback.
    #[error(
        "{0} is not a loopback address, and whoever reaches it controls the node: use tcp:127.0.0.1:PORT, or add --api-allow-remote"
    )]
    NotLoopback(SocketAddr),
    /// The OS refuses.
    #[error("can't listen on {address}: {source} ({remedy})")]
    Os {
        /// The address.
        address: ApiAddress,
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

/// Binds one address. Must be called from within the runtime.
pub async fn bind(address: &ApiAddress, allow_remote: bool) -> Result<Bound, ListenError> {
    let socket = match address {
        ApiAddress::Unix(path) => {
            let (listener, file) = bind_unix(path, address)?;
            Socket::Unix(listener, file)
        }
        ApiAddress::Tcp(tcp) => {
            if !tcp.ip().is_loopback() && !allow_remote {
                return Err(ListenError::NotLoopback(*tcp));
            }
            let listener = TcpListener::bind(tcp).await.map_err(|source| os_error(address, source))?;
            let local = listener.local_addr().map_err(|source| os_error(address, source))?;
            Socket::Tcp(listener, local)
        }
    };
    Ok(Bound { socket, address: address.clone() })
}

fn os_error(address: &ApiAddress, source: io::Error) -> ListenError {
    let remedy = match source.kind() {
        io::ErrorKind::PermissionDenied => "run as root, or give --api unix:PATH in a directory of yours",
        io::ErrorKind::AddrInUse => return ListenError::Taken(address.clone()),
        io::ErrorKind::NotFound => "create the directory first",
        _ => "give another --api",
    };
    ListenError::Os { address: address.clone(), source, remedy }
}

fn bind_unix(path: &Path, address: &ApiAddress) -> Result<(UnixListener, SocketFile), ListenError> {
    let os = |source: io::Error| os_error(address, source);
    make_parent(path).map_err(os)?;
    remove_stale(path, address)?;
    let socket = UnixSocket::new_stream().map_err(os)?;
    // The file takes its mode from the unbound socket: it never exists with a wider one.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|e| os(e.into()))?;
    socket.bind(path).map_err(os)?;
    let file = SocketFile::claim(path).map_err(os)?;
    Ok((socket.listen(64).map_err(os)?, file))
}

/// Makes the directory of the socket, one level deep (`/run/spp`).
fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        Some(dir) => std::fs::create_dir(dir),
        None => Ok(()),
    }
}

fn remove_stale(path: &Path, address: &ApiAddress) -> Result<(), ListenError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!("removing {}, left behind by a process that is gone", path.display());
            std::fs::remove_file(path).map_err(|source| os_error(address, source))
        }
        Ok(_) => Err(ListenError::Taken(address.clone())),
        Err(source) => Err(os_error(address, source)),
    }
}

/// The socket's file; removed when dropped, unless another file has taken its place.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn claim(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

impl Bound {
    /// Where it listens; with the port the OS chose if it was asked for port 0.
    pub fn address(&self) -> ApiAddress {
        match &self.socket {
            Socket::Unix(..) => self.address.clone(),
            Socket::Tcp(_, local) => ApiAddress::Tcp(*local),
        }
    }

    /// Serves `router` until `stop` becomes true, then lets open requests end.
    pub async fn serve(self, router: Router, stop: watch::Receiver<bool>) -> io::Result<()> {
        let stopped = wait_true(stop);
        match self.socket {
            Socket::Unix(listener, _file) => serve(listener, router).with_graceful_shutdown(stopped).await,
            Socket::Tcp(listener, local) => {
                let router =
                    router.layer(middleware::from_fn(move |request, next| guard(local, request, next)));
                serve(listener, router).with_graceful_shutdown(stopped).await
            }
        }
    }
}

async fn wait_true(mut stop: watch::Receiver<bool>) {
    // An error means the sender is gone, which is a stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Refuses what a browser on this machine could be made to send.
async fn guard(local: SocketAddr, request: Request, next: Next) -> Response {
    match allowed(local.ip(), request.headers()) {
        true => next.run(request).await,
        false => ApiError::new(StatusCode::FORBIDDEN, "Requests from web pages are refused.").into_response(),
    }
}

fn allowed(local: IpAddr, headers: &HeaderMap) -> bool {
    if headers.contains_key(header::ORIGIN) {
        return false;
    }
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    // With a name that resolves here (DNS rebinding) a page would be of the same origin.
    !local.is_loopback() || is_loopback_host(host)
}

fn is_loopback_host(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = host
        .rsplit_once(':')
        .map_or(host, |(name, port)| if port.bytes().all(|c| c.is_ascii_digit()) { name } else { host });
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn unix_socket_is_private_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/api.sock");
        let bound = runtime().block_on(bind(&ApiAddress::Unix(path.clone()), false)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn stale_socket_is_replaced_but_a_served_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = |name: &str| ApiAddress::Unix(dir.path().join(name));
        let rt = runtime();
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("stale")).unwrap());
        assert!(rt.block_on(bind(&address("stale"), false)).is_ok());

        let _served = std::os::unix::net::UnixListener::bind(dir.path().join("served")).unwrap();
        let error = rt.block_on(bind(&address("served"), false)).err().unwrap();
        assert!(matches!(error, ListenError::Taken(_)), "{error}");

        std::fs::write(dir.path().join("file"), "kept").unwrap();
        let error = rt.block_on(bind(&address("file"), false)).err().unwrap();
        assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"kept");
    }

    #[test]
    fn tcp_beyond_loopback_needs_the_flag() {
        let any = ApiAddress::Tcp("0.0.0.0:0".parse().unwrap());
        let error = runtime().block_on(bind(&any, false)).err().unwrap();
        assert!(error.to_string().contains("--api-allow-remote"), "{error}");
        assert!(runtime().block_on(bind(&any, true)).is_ok());
    }

    #[test]
    fn requests_of_web_pages_are_refused_on_loopback() {
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        let headers = |pairs: &[(header::HeaderName, &str)]| {
            pairs.iter().map(|(k, v)| (k.clone(), v.parse().unwrap())).collect::<HeaderMap>()
        };
        for host in ["127.0.0.1:7777", "localhost:7777", "localhost", "[::1]:7777", "127.0.0.1"] {
            assert!(allowed(loopback, &headers(&[(header::HOST, host)])), "{host}");
        }
        for host in ["evil.example:7777", "evil.example", "10.0.0.1:7777"] {
            assert!(!allowed(loopback, &headers(&[(header::HOST, host)])), "{host}");
        }
        let page = headers(&[(header::HOST, "127.0.0.1"), (header::ORIGIN, "http://evil.example")]);
        assert!(!allowed(loopback, &page));
    }
}
