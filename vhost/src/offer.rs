//! What a port offers to its frontend, and keeping it for the life of a VM.
//!
//! A frontend remembers what it was offered: QEMU refuses a backend that comes back with one
//! feature less ("vhost lacks feature mask"), and its port is dead until the VM is restarted. So the first
//! offer a VM gets is written down beside the node's state, and the same VM gets the same offer
//! again, whatever a newer or differently configured spp would offer to a new one.
//!
//! Which VM it is: where we connect, the socket file (each start of a VM makes a new one); where
//! we listen, the process at the other end. Nothing of it is ever asked of the guest.
//!
//! Control threads only.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::setup::offered;
use crate::{MAX_PAIRS, Role, setup};

/// Virtio features, protocol features and queue pairs offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// GET_FEATURES.
    pub features: u64,
    /// GET_PROTOCOL_FEATURES.
    pub protocol: u64,
    /// GET_QUEUE_NUM. QEMU refuses a backend that has fewer than its VM was started with.
    pub n_pairs: u16,
}

impl Offer {
    /// All that is implemented, which is what a new VM is offered. The `vhost` crate adds REPLY_ACK of its own.
    pub fn implemented() -> Offer {
        let protocol = Protocol::MQ
            | Protocol::LOG_SHMFD
            | Protocol::RARP
            | Protocol::REPLY_ACK
            | Protocol::MTU
            | Protocol::RESET_DEVICE
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::STATUS;
        Offer { features: offered(), protocol: protocol.bits(), n_pairs: MAX_PAIRS as u16 }
    }

    fn and(self, other: Offer) -> Offer {
        Offer {
            features: self.features & other.features,
            protocol: self.protocol & other.protocol,
            n_pairs: self.n_pairs.min(other.n_pairs),
        }
    }

    fn or(self, other: Offer) -> Offer {
        Offer {
            features: self.features | other.features,
            protocol: self.protocol | other.protocol,
            n_pairs: self.n_pairs.max(other.n_pairs),
        }
    }
}

/// An offer that was made, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Made {
    /// The VM as far as it can be told; `None` when it can't.
    vm: Option<String>,
    offer: Offer,
}

impl Made {
    /// What to offer a VM next. The same VM gets what it got; a new one what is `wanted`; where that can't be
    /// told, nothing is withdrawn. Never more than what is implemented.
    fn next(made: Option<&Made>, vm: Option<&str>, wanted: Offer, implemented: Offer) -> Offer {
        let offer = match made {
            None => wanted,
            Some(made) => match (&made.vm, vm) {
                (Some(before), Some(now)) if before == now => made.offer,
                (Some(_), Some(_)) => wanted,
                _ => made.offer.or(wanted),
            },
        };
        offer.and(implemented)
    }

    fn parse(text: &str) -> Option<Made> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let hex = |name: &str| u64::from_str_radix(field(name)?.strip_prefix("0x")?, 16).ok();
        let vm = field("vm").map(str::to_owned);
        // Versions that wrote none offered 16.
        let n_pairs = field("pairs").map_or(Some(16), |text| text.parse().ok().filter(|n| *n > 0))?;
        Some(Made { vm, offer: Offer { features: hex("features")?, protocol: hex("protocol")?, n_pairs } })
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        if let Some(vm) = &self.vm {
            let _ = writeln!(text, "vm {vm}");
        }
        let Offer { features, protocol, n_pairs } = self.offer;
        let _ = writeln!(text, "features {features:#x}\nprotocol {protocol:#x}\npairs {n_pairs}");
        text
    }
}

/// Remembers the offer of one socket, over restarts when it has a file.
pub(crate) struct Keeper {
    role: Role,
    socket: PathBuf,
    file: Option<PathBuf>,
    made: Option<Made>,
    complained: bool,
}

impl Keeper {
    /// For a socket; `file` is where the offer is kept. A file that can't be read counts as none.
    pub fn new(role: Role, socket: &Path, file: Option<PathBuf>) -> Keeper {
        let text = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        let made = text.as_deref().and_then(Made::parse);
        Keeper { role, socket: socket.to_owned(), file, made, complained: false }
    }

    /// The offer for the frontend that has just connected; written down before it is made.
    pub fn offer_to(&mut self, peer: &UnixStream) -> Offer {
        let implemented = Offer::implemented();
        let vm = self.vm(peer);
        let offer = Made::next(self.made.as_ref(), vm.as_deref(), implemented, implemented);
        self.tell_what_is_missing(vm.as_deref(), offer);
        let made = Made { vm, offer };
        if self.made.as_ref() != Some(&made) {
            let written = self.file.as_deref().map_or(Ok(()), |file| write(file, &made.to_text()));
            if let (Err(error), false) = (written, self.complained) {
                let (socket, file) = (&self.socket, &self.file);
                tracing::warn!(?socket, ?file, %error, "what is offered to the VM can't be written down");
                self.complained = true;
            }
            self.made = Some(made);
        }
        offer
    }

    fn tell_what_is_missing(&self, vm: Option<&str>, offer: Offer) {
        let Some(made) = &self.made else { return };
        let lost = made.offer.features & !offer.features;
        if lost != 0 && made.vm.as_deref() == vm {
            let names = setup::names(lost);
            tracing::error!(
                socket = ?self.socket,
                "the VM was offered features ({lost:#x} {names:?}) that this version does not have: QEMU will refuse the port until the VM is restarted"
            );
        }
    }

    fn vm(&self, peer: &UnixStream) -> Option<String> {
        match self.role {
            Role::Client => {
                // Changed by nobody but who makes the file: neither by connecting nor by chmod or chown.
                let meta = std::fs::symlink_metadata(&self.socket).ok()?;
                Some(format!(
                    "socket {} {} {}.{:09}",
                    meta.dev(),
                    meta.ino(),
                    meta.mtime(),
                    meta.mtime_nsec()
                ))
            }
            Role::Server => {
                let pid = rustix::net::sockopt::socket_peercred(peer).ok()?.pid.as_raw_nonzero();
                Some(format!("process {pid} {}", start_time(pid.get())?))
            }
        }
    }
}

/// When a process was started, in clock ticks since boot: tells it from a later one of the same number.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name, in parentheses, and may contain anything (proc_pid_stat(5)).
    let behind_name = &stat[stat.rfind(')')? + 1..];
    behind_name.split_whitespace().nth(19)?.parse().ok()
}

/// Replaces a file at once: readers see the old or the new one.
fn write(file: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const ALL: Offer = Offer { features: 0xff, protocol: 0xf, n_pairs: 16 };

    fn made(vm: Option<&str>, features: u64) -> Option<Made> {
        Some(Made { vm: vm.map(str::to_owned), offer: Offer { features, protocol: 0x3, n_pairs: 4 } })
    }

    #[test]
    fn running_vm_keeps_its_offer_and_only_a_new_one_gets_a_new_bit() {
        let next = |made: Option<Made>, vm, wanted| {
            Made::next(made.as_ref(), vm, Offer { features: wanted, protocol: 0x3, n_pairs: 4 }, ALL).features
        };
        assert_eq!(next(None, Some("a"), 0x7), 0x7);
        // Upgraded, and configured down: the same VM notices neither.
        assert_eq!(next(made(Some("a"), 0x7), Some("a"), 0xf), 0x7);
        assert_eq!(next(made(Some("a"), 0x7), Some("a"), 0x1), 0x7);
        // Another VM on the same socket is new.
        assert_eq!(next(made(Some("a"), 0x7), Some("b"), 0x9), 0x9);
        // Where it can't be told, nothing is withdrawn.
        assert_eq!(next(made(Some("a"), 0x7), None, 0x9), 0xf);
        assert_eq!(next(made(None, 0x7), Some("a"), 0x9), 0xf);
        // What isn't there can't be offered.
        assert_eq!(next(made(Some("a"), 0x107), Some("a"), 0x7), 0x7);
    }

    #[test]
    fn running_vm_keeps_its_number_of_queue_pairs() {
        let next = |n_pairs, vm, wanted| {
            let made = Made { vm: Some("a".to_owned()), offer: Offer { n_pairs, ..ALL } };
            Made::next(Some(&made), vm, Offer { n_pairs: wanted, ..ALL }, ALL).n_pairs
        };
        assert_eq!(next(8, Some("a"), 2), 8, "configured down");
        assert_eq!(next(2, Some("a"), 8), 2);
        assert_eq!(next(8, Some("b"), 2), 2, "a new VM");
        assert_eq!(next(8, None, 2), 8, "where it can't be told, nothing is withdrawn");
        let old = "vm a\nfeatures 0x1\nprotocol 0x1\n";
        assert_eq!(Made::parse(old).unwrap().offer.n_pairs, 16, "what versions before offered");
        assert_eq!(Made::parse(&format!("{old}pairs 0\n")), None);
    }

    #[test]
    fn offer_survives_in_its_file_and_garbage_counts_as_none() {
        for made in [made(Some("socket 1 2 3.000000004"), 0x7_0000_0001), made(None, 0)] {
            assert_eq!(Made::parse(&made.as_ref().unwrap().to_text()), made);
        }
        for text in ["", "features 0x1", "features 1\nprotocol 0x1", "protocol 0x1\nfeatures 0xg", "\0"] {
            assert_eq!(Made::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn offer_outlives_the_keeper_for_the_same_socket_file_and_not_for_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file) = (dir.path().join("sock0"), dir.path().join("state/vhost-0.offer"));
        let listener = UnixListener::bind(&socket).unwrap();
        let peer = UnixStream::connect(&socket).unwrap();
        let first = Keeper::new(Role::Client, &socket, Some(file.clone())).offer_to(&peer);
        assert_eq!(first, Offer::implemented());
        // As an older version would have left it: one bit less.
        let text = std::fs::read_to_string(&file).unwrap();
        let less = Offer { features: first.features & !setup::EVENT_IDX, ..first };
        let old = Made { offer: less, ..Made::parse(&text).unwrap() };
        std::fs::write(&file, old.to_text()).unwrap();
        let mut keeper = Keeper::new(Role::Client, &socket, Some(file.clone()));
        assert_eq!(keeper.offer_to(&peer), less, "the same VM, after an upgrade");
        drop(listener);
        std::fs::remove_file(&socket).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(keeper.offer_to(&peer), first, "a new VM on the same path");
        assert_eq!(Made::parse(&std::fs::read_to_string(&file).unwrap()).unwrap().offer, first);
    }

    #[test]
    fn frontend_that_connects_is_known_by_its_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let keeper = Keeper::new(Role::Server, Path::new("/none"), None);
        let vm = keeper.vm(&ours).unwrap();
        assert!(vm.starts_with(&format!("process {} ", std::process::id())), "{vm}");
        assert_eq!(keeper.vm(&ours), Some(vm), "and does not change");
    }

    #[test]
    fn file_that_cannot_be_written_costs_nothing_but_memory_over_restarts() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut keeper = Keeper::new(Role::Server, Path::new("/none"), Some("/proc/no/such/file".into()));
        assert_eq!(keeper.offer_to(&ours), Offer::implemented());
        assert!(keeper.made.is_some());
    }
}
