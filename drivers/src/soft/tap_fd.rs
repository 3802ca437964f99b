// UNSAFETY: ioctls that make, raise and look at a tap interface.
//! A kernel tap interface as a file descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Makes (or takes over) the tap interface `name`, non-blocking, one frame per read and write.
pub(super) fn attach(name: &str) -> io::Result<File> {
    let tap =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: an open tun file and a zero-terminated name in a request of ours.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    answer(result)?;
    Ok(tap)
}

/// Flags of an interface, and the setting of them.
pub(super) struct Flags(OwnedFd);

impl Flags {
    /// For the interfaces of this thread's network namespace, as it is now.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Flags(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?))
    }

    fn get(&self, name: &str) -> io::Result<libc::ifreq> {
        let mut request = named(name);
        // SAFETY: a socket and a zero-terminated name in a request of ours.
        answer(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) })?;
        Ok(request)
    }

    /// Raises the interface.
    pub(super) fn bring_up(&self, name: &str) -> io::Result<()> {
        let mut request = self.get(name)?;
        // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
        // SAFETY: a socket and a request of ours with name and flags.
        answer(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })
    }

    /// Whether the interface is up.
    pub(super) fn is_up(&self, name: &str) -> io::Result<bool> {
        let request = self.get(name)?;
        // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(i32::from(flags) & libc::IFF_UP != 0)
    }
}

fn answer(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A request with the interface's name; [`super::tap::open`] has checked its length.
fn named(name: &str) -> libc::ifreq {
    // SAFETY: all-zero is a valid ifreq: an empty name and a zero union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

#[cfg(test)]
pub(super) mod testing {
    //! A raw socket on an interface, and a network namespace for one thread.

    use super::*;
    use std::ffi::CString;
    use std::os::fd::FromRawFd;

    /// Moves this thread into a network namespace of its own; an error where that isn't allowed.
    pub(crate) fn own_network() -> io::Result<()> {
        // SAFETY: no memory is involved; only this thread changes its namespace.
        answer(unsafe { libc::unshare(libc::CLONE_NEWNET) })
    }

    /// A socket that sends and receives whole frames on `interface`, waiting up to two seconds for one.
    pub(crate) fn packet_socket(interface: &str) -> io::Result<File> {
        let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        answer(fd)?;
        // SAFETY: a new fd that nobody else owns.
        let socket = unsafe { File::from_raw_fd(fd) };
        let name = CString::new(interface)?;
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol as u16;
        // SAFETY: a zero-terminated name.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: an address of ours with its own length.
        answer(unsafe { libc::bind(fd, (&raw const address).cast(), len) })?;
        let wait = libc::timeval { tv_sec: 2, tv_usec: 0 };
        let len = size_of::<libc::timeval>() as u32;
        // SAFETY: an option value of ours with its own length.
        let set = unsafe {
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const wait).cast(), len)
        };
        answer(set)?;
        Ok(socket)
    }

    /// Sets the interface's MTU.
    pub(crate) fn set_mtu(name: &str, mtu: i32) -> io::Result<()> {
        let mut request = named(name);
        request.ifr_ifru.ifru_mtu = mtu;
        let flags = Flags::new()?;
        // SAFETY: a socket and a request of ours with name and MTU.
        answer(unsafe { libc::ioctl(flags.0.as_raw_fd(), libc::SIOCSIFMTU as _, &raw mut request) })
    }

    /// Takes the interface down.
    pub(crate) fn bring_down(name: &str) -> io::Result<()> {
        let mut request = named(name);
        let flags = Flags::new()?;
        request.ifr_ifru.ifru_flags = 0;
        // SAFETY: a socket and a request of ours with name and flags.
        answer(unsafe { libc::ioctl(flags.0.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })
    }
}
