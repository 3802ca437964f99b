//! One stage between a feeder and a drain that are not counted.

use std::hint::black_box;

use spp_drivers::tsc;

/// Packets that move together.
pub const BURSTS: [usize; 4] = [1, 4, 8, 32];

/// Turns before counting starts: caches of buffers, branch history and rings are in their usual state then.
const WARM_UP_TURNS: usize = 64;
/// Packets counted in a row under callgrind: a multiple of the buffers in a magazine and of every burst.
const COUNTED: usize = 2048;
/// Turns timed. The median is printed: other work on the machine hits few turns, hard.
const TIMED_TURNS: usize = 20_001;

/// A stage with its surroundings.
pub trait Stage {
    /// Puts `burst` packets in front of the stage.
    fn feed(&mut self, burst: usize);
    /// The stage's turn.
    fn work(&mut self);
    /// Takes everything from behind the stage; returns how many packets there were.
    fn drain(&mut self) -> usize;
}

/// A line of the table.
pub struct Row {
    /// What is measured.
    pub name: &'static str,
    /// Whether its instructions are in the committed table. Rows that differ from another one only in
    /// what the caches hold are not.
    pub guarded: bool,
    /// Makes the stage for a burst.
    pub make: Box<dyn Fn(usize) -> Box<dyn Stage>>,
}

impl Row {
    /// A row of the committed table.
    pub fn new<S: Stage + 'static>(name: &'static str, make: impl Fn(usize) -> S + 'static) -> Row {
        Row { name, guarded: true, make: Box::new(move |burst| Box::new(make(burst))) }
    }

    /// Only its cycles matter.
    pub fn timed_only(self) -> Row {
        Row { guarded: false, ..self }
    }
}

fn turn(row: &Row, stage: &mut dyn Stage, burst: usize, work: impl Fn(&mut dyn Stage)) {
    stage.feed(burst);
    work(stage);
    assert_eq!(stage.drain(), burst, "{}: every packet comes out", row.name);
}

/// Packets of one [`count`].
pub const fn packets_counted(burst: usize) -> usize {
    COUNTED / burst * burst
}

/// A fixed number of turns. callgrind collects inside `counted_turn` only, and writes its sum and starts
/// again at zero when `row_is_over` is called.
pub fn count(row: &Row, burst: usize) {
    let mut stage = (row.make)(burst);
    (0..WARM_UP_TURNS).for_each(|_| turn(row, &mut *stage, burst, |stage| stage.work()));
    (0..COUNTED / burst).for_each(|_| turn(row, &mut *stage, burst, counted_turn));
    row_is_over(row.name);
}

/// The only thing counted. Its name is known to the test.
#[inline(never)]
fn counted_turn(stage: &mut dyn Stage) {
    black_box(stage).work();
}

/// Its name is known to the test.
#[inline(never)]
fn row_is_over(name: &str) {
    black_box(name);
}

/// Median of many turns.
pub fn ticks_per_packet(row: &Row, burst: usize) -> f64 {
    let mut stage = (row.make)(burst);
    let mut ticks = vec![0; TIMED_TURNS];
    for spent in &mut ticks {
        stage.feed(burst);
        let start = tsc::now();
        stage.work();
        *spent = tsc::now() - start;
        assert_eq!(stage.drain(), burst, "{}: every packet comes out", row.name);
    }
    ticks.sort_unstable();
    ticks[TIMED_TURNS / 2] as f64 / burst as f64
}

/// Ethernet header and payload of a frame of `len` bytes to `dst`, with a tag if `vlan` says so.
pub fn frame(dst: [u8; 6], vlan: Option<u16>, len: usize) -> Vec<u8> {
    let mut bytes = dst.to_vec();
    bytes.extend([2, 0, 0, 0, 0, 1]);
    if let Some(vid) = vlan {
        bytes.extend([0x81, 0]);
        bytes.extend(vid.to_be_bytes());
    }
    bytes.extend([8, 0]);
    bytes.resize(len, 0x5a);
    bytes
}
