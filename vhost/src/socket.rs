//! Finding, making and leaving the socket file. Control threads only.
//!
//! The default directory is world-writable, so a path is never followed through a symbolic
//! link, and only a stale socket (one nobody listens on) is ever removed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connects to a socket file; never blocks, never follows a symbolic link in its place.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    expect_socket(path, &file)?;
    // By way of the open file: nobody can put something else in its place now, and long paths fit.
    let by_fd = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let address = if by_fd.exists() { SocketAddrUnix::new(&by_fd)? } else { SocketAddrUnix::new(path)? };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    blocking(UnixStream::from(socket))
}

fn blocking(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn expect_socket(path: &Path, file: &OwnedFd) -> io::Result<()> {
    let what = match FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) {
        FileType::Socket => return Ok(()),
        FileType::Symlink => "a symbolic link, which is never followed",
        _ => "no socket",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is {what}", path.display())))
}

/// A listening socket and the file it made.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file, so that nobody else's is removed.
    file: (u64, u64),
}

impl Listener {
    /// Listens at `path`. A socket file nobody listens on is removed first; anything else in
    /// the way is an error that names it.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        match connect(path) {
            Ok(_) => {
                let text = format!("another process listens on {}", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Listener { listener, path: path.to_owned(), file: (meta.dev(), meta.ino()) })
    }

    /// The next peer, if one is waiting.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => blocking(stream).map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl std::os::fd::AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_link_is_neither_followed_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        let _listener = Listener::bind(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(connect(&real).is_ok());
        assert!(connect(&link).unwrap_err().to_string().contains("symbolic link"));
        assert!(Listener::bind(&link).is_err());
        assert!(link.is_symlink());
    }

    #[test]
    fn only_a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file: a stale socket");
        let listener = Listener::bind(&path).unwrap();
        let in_use = Listener::bind(&path).err().map(|e| e.kind());
        assert_eq!(in_use, Some(io::ErrorKind::AddrInUse));
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn file_somebody_else_put_in_our_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn path_longer_than_a_socket_address_can_be_connected() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let short = dir.path().join("s");
        let listener = UnixListener::bind(&short).unwrap();
        let long = deep.join("sock");
        std::fs::rename(&short, &long).unwrap();
        assert!(connect(&long).is_ok());
        drop(listener);
    }
}
