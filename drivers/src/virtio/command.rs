//! What can be asked for on the control queue (virtio 1.2, 5.1.6.5): each command with its name and its bytes. Pure.

use arrayvec::ArrayVec;

use crate::mac::MacAddr;

/// Class, command and the longest of all bodies.
pub(super) const MAX_BYTES: usize = 512;
/// Unicast addresses in one table. No device says how many it takes; one that takes fewer refuses, or receives all.
pub(super) const MAX_ADDRESSES: usize = 64;

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_MQ: u8 = 4;

/// Longest indirection table we write.
const MAX_TABLE: u16 = 128;
const KEY_BYTES: usize = 40;
/// Any even spread will do; this one also sends both directions of a flow to one queue.
const KEY: [u8; 2] = [0x6d, 0x5a];
/// Addresses of IP alone, with the ports of TCP, and of UDP; IPv4 and IPv6.
const HASH_TYPES: u32 = 0x3f;

/// One command.
pub(super) struct Command {
    /// As the specification has it, without VIRTIO_NET_CTRL_.
    pub(super) name: &'static str,
    bytes: ArrayVec<u8, MAX_BYTES>,
}

impl Command {
    fn new(name: &'static str, class: u8, code: u8) -> Command {
        Command { name, bytes: ArrayVec::from_iter([class, code]) }
    }

    #[must_use]
    fn with(mut self, bytes: &[u8]) -> Command {
        let fits = self.bytes.try_extend_from_slice(bytes);
        debug_assert!(fits.is_ok(), "the longest command fits");
        self
    }

    /// As the device reads it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Receive everything, or not (5.1.6.5.1).
    pub(super) fn promiscuous(on: bool) -> Command {
        Command::new("RX_PROMISC", CLASS_RX, 0).with(&[u8::from(on)])
    }

    /// Receive all group addresses, or not.
    pub(super) fn all_multicast(on: bool) -> Command {
        Command::new("RX_ALLMULTI", CLASS_RX, 1).with(&[u8::from(on)])
    }

    /// Receive these as well as the device's own; no group addresses (5.1.6.5.2).
    pub(super) fn mac_table(unicast: &[MacAddr]) -> Command {
        let unicast = &unicast[..unicast.len().min(MAX_ADDRESSES)];
        let lead = Command::new("MAC_TABLE_SET", CLASS_MAC, 0).with(&(unicast.len() as u32).to_le_bytes());
        let table = unicast.iter().fold(lead, |command, mac| command.with(&mac.0));
        table.with(&0u32.to_le_bytes())
    }

    /// Use this many pairs (5.1.6.5.5).
    pub(super) fn queue_pairs(n: u16) -> Command {
        Command::new("MQ_VQ_PAIRS_SET", CLASS_MQ, 0).with(&n.to_le_bytes())
    }

    /// Spread flows over `n` pairs by their hash (5.1.6.5.7).
    pub(super) fn rss(n: u16, limits: RssLimits) -> Command {
        let n_entries = limits.n_entries();
        let lead = Command::new("MQ_RSS_CONFIG", CLASS_MQ, 1)
            .with(&(limits.hash_types & HASH_TYPES).to_le_bytes())
            .with(&(n_entries - 1).to_le_bytes())
            .with(&0u16.to_le_bytes());
        // Bits 1 to 16 of a receive queue's number: the number of its pair.
        let table = (0..n_entries).fold(lead, |command, entry| command.with(&(entry % n).to_le_bytes()));
        table.with(&n.to_le_bytes()).with(&[KEY_BYTES as u8]).with(KEY.repeat(KEY_BYTES / 2).as_slice())
    }
}

/// What a device with RSS can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RssLimits {
    pub(super) max_key_bytes: u8,
    pub(super) max_table: u16,
    pub(super) hash_types: u32,
}

impl RssLimits {
    /// Whether that is enough to spread anything.
    pub(super) fn are_sound(self) -> bool {
        usize::from(self.max_key_bytes) >= KEY_BYTES
            && self.max_table > 1
            && self.hash_types & HASH_TYPES != 0
    }

    /// A power of two.
    fn n_entries(self) -> u16 {
        1 << self.max_table.clamp(1, MAX_TABLE).ilog2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_laid_out_as_the_specification_says() {
        assert_eq!(Command::promiscuous(true).bytes(), [0, 0, 1]);
        assert_eq!(Command::all_multicast(false).bytes(), [0, 1, 0]);
        assert_eq!(Command::queue_pairs(0x102).bytes(), [4, 0, 2, 1]);
        let table = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
        let expected = [1, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0];
        assert_eq!(Command::mac_table(&table).bytes(), expected);
    }

    #[test]
    fn rss_spreads_evenly_within_what_the_device_takes() {
        let limits = RssLimits { max_key_bytes: 40, max_table: 9, hash_types: 0x1ff };
        assert!(limits.are_sound());
        let command = Command::rss(3, limits);
        let bytes = command.bytes();
        assert_eq!(bytes[..10], [4, 1, 0x3f, 0, 0, 0, 7, 0, 0, 0], "types, mask, unclassified");
        assert_eq!(bytes[10..26], [0, 0, 1, 0, 2, 0, 0, 0, 1, 0, 2, 0, 0, 0, 1, 0]);
        assert_eq!(bytes[26..29], [3, 0, 40]);
        assert_eq!((bytes.len(), &bytes[29..31], &bytes[67..]), (69, &KEY[..], &KEY[..]));
    }

    #[test]
    fn longest_commands_fit() {
        let all = [MacAddr([2; 6]); 100];
        assert_eq!(Command::mac_table(&all).bytes().len(), 2 + 4 + 64 * 6 + 4);
        let limits = RssLimits { max_key_bytes: 255, max_table: u16::MAX, hash_types: u32::MAX };
        assert_eq!(Command::rss(64, limits).bytes().len(), 2 + 8 + 256 + 2 + 1 + 40);
    }

    #[test]
    fn device_that_can_hash_nothing_has_no_rss() {
        let sound = RssLimits { max_key_bytes: 40, max_table: 128, hash_types: 2 };
        assert!(sound.are_sound());
        for bad in [
            RssLimits { max_key_bytes: 39, ..sound },
            RssLimits { max_table: 1, ..sound },
            RssLimits { max_table: 0, ..sound },
            RssLimits { hash_types: 0x1c0, ..sound },
        ] {
            assert!(!bad.are_sound(), "{bad:?}");
        }
    }
}
