//! VMs that send every frame back with its addresses swapped, seen from the network's far end.

use super::frame::{Frame, Mac};
use super::wire::Wire;
use std::time::Duration;

/// The network's far end.
pub const FAR: Mac = Mac([0x02, 0, 0, 0, 0, 0xfe]);
/// How long is waited before it is believed that nothing comes.
pub const SILENCE: Duration = Duration::from_secs(3);
/// Frames to each VM in [`exchange`].
pub const FRAMES: u32 = 50;

const PATIENCE: Duration = Duration::from_secs(120);
const MOST_UNDER_WAY: usize = 8;

/// One of them, behind this wire.
#[derive(Clone, Copy)]
pub struct Echo<'a> {
    /// Where it is reached.
    pub wire: &'a Wire,
    /// Its address.
    pub mac: Mac,
    /// The VLAN it is in, as the wire has it.
    pub vlan: Option<u16>,
}

impl Echo<'_> {
    fn frame(&self, number: u32, payload_len_bytes: usize) -> Frame {
        Frame::numbered(self.mac, FAR, self.vlan, number, payload_len_bytes)
    }

    /// Sends frames until one comes back.
    pub fn wait_up(&self, payload_len_bytes: usize) {
        let first = self.frame(0, payload_len_bytes);
        self.wire.probe(&first, &first.swapped(), PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// What arrives on the wires of these in a while, each wire once.
fn drain(echoes: &[Echo<'_>]) -> Vec<Frame> {
    let mut wires: Vec<&Wire> = Vec::new();
    for echo in echoes {
        if !wires.iter().any(|wire| std::ptr::eq(*wire, echo.wire)) {
            wires.push(echo.wire);
        }
    }
    let windows = std::iter::once(SILENCE).chain(std::iter::repeat(SILENCE / 10));
    wires.into_iter().zip(windows).flat_map(|(wire, window)| wire.drain(window)).collect()
}

/// Once all are up: [`exchange`].
pub fn every_frame_returns_once(echoes: &[Echo<'_>], payload_len_bytes: usize) {
    echoes.iter().for_each(|echo| echo.wait_up(payload_len_bytes));
    drain(echoes); // answers to further copies of the probes
    exchange(echoes, payload_len_bytes);
}

/// [`FRAMES`] numbered frames to each, in turns, few under way at a time: all come back swapped, in order, none twice.
pub fn exchange(echoes: &[Echo<'_>], payload_len_bytes: usize) {
    let mut returned = vec![Vec::new(); echoes.len()];
    for number in 1..=FRAMES {
        for (n, echo) in echoes.iter().enumerate() {
            echo.wire.send(&echo.frame(number, payload_len_bytes)).expect("the NIC takes frames");
            while number as usize - returned[n].len() >= MOST_UNDER_WAY {
                take_one(echoes, echo.wire, &mut returned);
            }
        }
    }
    for (n, echo) in echoes.iter().enumerate() {
        while returned[n].len() < FRAMES as usize {
            take_one(echoes, echo.wire, &mut returned);
        }
        let expected: Vec<_> =
            (1..=FRAMES).map(|number| echo.frame(number, payload_len_bytes).swapped()).collect();
        assert_eq!(returned[n], expected);
    }
    assert_eq!(drain(echoes), [], "frames came back twice");
}

/// The next frame of a wire, to those of the VM it is from.
fn take_one(echoes: &[Echo<'_>], wire: &Wire, returned: &mut [Vec<Frame>]) {
    let so_far: Vec<usize> = returned.iter().map(Vec::len).collect();
    let frame = wire.receive(PATIENCE).unwrap_or_else(|| panic!("lost after {so_far:?} frames"));
    let is_from = |echo: &Echo<'_>| {
        std::ptr::eq(echo.wire, wire) && echo.mac == frame.src && echo.vlan.is_some() == frame.vlan.is_some()
    };
    let Some(n) = echoes.iter().position(is_from) else { panic!("a frame of nobody's: {frame:?}") };
    returned[n].push(frame);
}
