//! The frame that announces a guest which has moved here and can't do it itself: a RARP request for
//! its own address, as QEMU sends in its stead elsewhere (RFC 903). Pure.

use spp_drivers::MacAddr;

/// Shortest Ethernet frame without its check sequence.
const FRAME_BYTES: usize = 60;

/// A broadcast RARP request in which `mac` asks for its own protocol address.
pub fn rarp(mac: MacAddr) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&0x8035u16.to_be_bytes()); // RARP
    frame[14..16].copy_from_slice(&1u16.to_be_bytes()); // hardware: Ethernet
    frame[16..18].copy_from_slice(&0x0800u16.to_be_bytes()); // protocol: IPv4
    frame[18..20].copy_from_slice(&[6, 4]); // lengths of the addresses
    frame[20..22].copy_from_slice(&3u16.to_be_bytes()); // request reverse
    frame[22..28].copy_from_slice(&mac.0);
    frame[32..38].copy_from_slice(&mac.0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_is_a_broadcast_that_names_the_guest_three_times() {
        let mac = MacAddr([0xfa, 0x16, 0x3e, 1, 2, 3]);
        let frame = rarp(mac);
        assert_eq!((&frame[..6], frame.len()), (&[0xff; 6][..], 60));
        for at in [6, 22, 32] {
            assert_eq!(frame[at..at + 6], mac.0, "at {at}");
        }
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    }
}
