//! The attacks, one function each, named as in the attack list: G for what a guest's code can do, F for what
//! the holder of the vhost-user socket can do.

mod chains;
mod features;
mod frames;
mod memory;
mod messages;
mod races;
mod resets;
mod rings;

use crate::arena::{Arena, Ended};
use crate::ring::Layout;

/// One attack.
pub struct Row {
    /// `G07`.
    pub id: &'static str,
    /// What is done.
    pub what: &'static str,
    /// Ring layouts it is run on.
    pub layouts: &'static [Layout],
    /// Does it.
    pub run: fn(&mut Arena<'_>) -> Ended,
}

const BOTH: &[Layout] = &[Layout::Split, Layout::Packed];
const SPLIT: &[Layout] = &[Layout::Split];
const PACKED: &[Layout] = &[Layout::Packed];

const fn row(
    id: &'static str,
    layouts: &'static [Layout],
    run: fn(&mut Arena<'_>) -> Ended,
    what: &'static str,
) -> Row {
    Row { id, what, layouts, run }
}

/// All of them. Rows of the socket's holder don't depend on the ring's layout and run once.
pub static ROWS: [Row; 54] = [
    row("G01", BOTH, chains::g01, "buffer across the end of a region, or into the next one"),
    row("G02", BOTH, chains::g02, "address that wraps, lies nowhere, or is 0"),
    row("G03", BOTH, frames::g03, "header spread over many descriptors, down to single bytes"),
    row("G04", BOTH, frames::g04, "chain no longer than the header, empty or runt payload"),
    row("G05", BOTH, frames::g05, "receive buffers shorter than the header"),
    row("G06", BOTH, chains::g06, "chain that loops, with and without length"),
    row("G07", BOTH, chains::g07, "link, head or id outside the ring"),
    row("G08", BOTH, chains::g08, "indirect table of impossible length, place or nesting"),
    row("G09", BOTH, races::g09, "indirect table's length changed while it is read"),
    row("G10", BOTH, races::g10, "every descriptor field flipped while it is read, a million times"),
    row("G11", BOTH, races::g11, "frame header flipped between check and use"),
    row("G12", BOTH, rings::g12, "available index that jumps or goes back; descriptors out of turn"),
    row("G13", BOTH, chains::g13, "buffers of the wrong direction, mixed order"),
    row("G14", BOTH, frames::g14, "checksum asked for outside the frame"),
    row("G15", BOTH, frames::g15, "segmentation with impossible sizes"),
    row("G16", BOTH, chains::g16, "long frames in thousands of descriptors of a byte"),
    row("G17", BOTH, frames::g17, "no receive buffers, then buffers of one byte, under a flood"),
    row("G18", BOTH, races::g18, "small receive buffers moved while frames are merged into them"),
    row("G19", BOTH, chains::g19, "descriptors that point at the rings themselves"),
    row("G20", BOTH, chains::g20, "buffers that overlap"),
    row("G21", BOTH, races::g21, "random event indices and flags"),
    row("G22", BOTH, races::g22, "kicks at the highest rate"),
    row("G23", BOTH, rings::g23, "malformed commands on a control queue"),
    row("G24", BOTH, resets::g24, "a thousand driver resets with frames in flight"),
    row("G25", BOTH, resets::g25, "queue pairs switched on and off in a loop"),
    row("G26", PACKED, rings::g26, "wrap counters that lie, foreign ids, skipped descriptors"),
    row("G27", BOTH, frames::g27, "chains of different lengths, in order"),
    row("G28", BOTH, rings::g28, "every kind of index beyond the ring"),
    row("G29", BOTH, frames::g29, "bytes of other frames behind a short one"),
    row("G30", BOTH, frames::g30, "frames with odd tags, addresses and lengths, and a multicast flood"),
    row("F01", SPLIT, memory::f01, "memory tables that can't be"),
    row("F02", SPLIT, memory::f02, "memory file truncated under running rings"),
    row("F03", SPLIT, memory::f03, "regions that overlap, come twice, or are not there, while rings run"),
    row("F04", SPLIT, memory::f04, "dirty log of impossible size, or without its file"),
    row("F05", SPLIT, memory::f05, "dirty log shorter than the memory, under traffic"),
    row("F06", SPLIT, rings::f06, "ring number out of range, in every message that has one"),
    row("F07", SPLIT, rings::f07, "ring sizes that can't be, and 100,000 good ones"),
    row("F08", SPLIT, rings::f08, "ring size changed while the ring runs"),
    row("F09", SPLIT, rings::f09, "ring addresses unaligned, outside, or just outside"),
    row("F10", SPLIT, rings::f10, "ring bases out of range, or at odds with the ring"),
    row("F11", SPLIT, features::f11, "100,000 requests for in-flight memory"),
    row("F12", SPLIT, features::f12, "in-flight memory that lies"),
    row("F13", SPLIT, messages::f13, "descriptors with every message that should have none"),
    row("F14", SPLIT, messages::f14, "wrong headers, half messages, single bytes"),
    row("F15", SPLIT, messages::f15, "random messages in random order, answers compared with a model"),
    row("F16", SPLIT, features::f16, "features never offered, or changed while rings run"),
    row("F17", SPLIT, resets::f17, "pipes, directories, sockets and blocking eventfds as kick and call"),
    row("F18", SPLIT, resets::f18, "a second peer, and connections in quick succession"),
    row("F19", SPLIT, resets::f19, "disconnect in the middle of everything"),
    row("F20", SPLIT, features::f20, "address translations that can't be"),
    row("F21", SPLIT, features::f21, "random MTU, status, reset and announcements"),
    row("F22", SPLIT, messages::f22, "requests nobody knows"),
    row("F23", SPLIT, rings::f23, "128 queue pairs and a control queue"),
    row("F24", SPLIT, memory::f24, "a thousand regions, again and again, and no descriptors left"),
];

/// The row with this name.
pub fn find(id: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.id.eq_ignore_ascii_case(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_thirty_and_twenty_four_are_there_in_order() {
        let numbered = |letter: char, n: usize| (1..=n).map(move |i| format!("{letter}{i:02}"));
        let expected: Vec<_> = numbered('G', 30).chain(numbered('F', 24)).collect();
        assert_eq!(ROWS.iter().map(|row| row.id).collect::<Vec<_>>(), expected);
        assert_eq!(find("g07").map(|row| row.id), Some("G07"));
    }
}
