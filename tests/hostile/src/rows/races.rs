//! Memory that changes while it is read: another thread writes what the backend is looking at.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::arena::{Arena, Ended, Trouble, done};
use crate::frontend::{Frontend, RX, TX, feature, tx_buffers};
use crate::memory::{At, BUFFERS, GPA_END, SCRATCH, SharedMemory};
use crate::ring::{Desc, Layout, write_table};
use crate::traffic::{Flow, frame};

/// Changes a race makes at least.
const N_CHANGES: u64 = 1_000_000;
/// Chains a race wants to get through, and how long it tries for them.
const N_CHAINS: u64 = 2_000;
const TIME: Duration = Duration::from_secs(2);
/// A ring that gives nothing back for this long has failed, and is set up anew: where that is to be expected, and where
/// the ring must never fail (a busy machine may well leave a thread alone for a tenth of a second).
const QUIET: Duration = Duration::from_millis(100);
const FOR_EVER: Duration = Duration::from_secs(5);

/// A pseudo-random sequence.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.roll() as usize % choices.len()]
    }
}

/// Plays `body` again and again while another thread makes changes; both go on until there were enough of either. The
/// body returns how many chains came back; a ring that stands is set up anew.
fn race(
    arena: &mut Arena<'_>,
    frontend: Frontend,
    change: impl Fn(&SharedMemory, &mut Dice) + Sync,
    body: impl FnMut(&mut Arena<'_>, &mut Frontend) -> u64,
) -> Result<(Frontend, String), Trouble> {
    race_within(QUIET, arena, frontend, change, body)
}

/// As [`race`], with a ring that counts as standing after `quiet`.
fn race_within(
    quiet: Duration,
    arena: &mut Arena<'_>,
    mut frontend: Frontend,
    change: impl Fn(&SharedMemory, &mut Dice) + Sync,
    mut body: impl FnMut(&mut Arena<'_>, &mut Frontend) -> u64,
) -> Result<(Frontend, String), Trouble> {
    let wanted = if arena.thorough { 20 * N_CHANGES } else { N_CHANGES };
    let (stop, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let memory = frontend.memory.clone();
    let (mut chains, mut resets) = (0, 0);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice(0x2545_f491_4f6c_dd1d);
            while !stop.load(Ordering::Relaxed) {
                (0..256).for_each(|_| change(&memory, &mut dice));
                changes.fetch_add(256, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        let (end, mut moved) = (Instant::now() + TIME, Instant::now());
        let mut play = || loop {
            let n = body(arena, &mut frontend);
            chains += n;
            if n > 0 {
                moved = Instant::now();
            } else if moved.elapsed() > quiet {
                frontend.reset()?;
                resets += 1;
                moved = Instant::now();
            }
            let changed = changes.load(Ordering::Relaxed) >= wanted;
            // Time is not over for a ring that stands and was not found out yet.
            let over = Instant::now() > end && (n > 0 || resets > 0);
            if changed && (chains >= N_CHAINS || over) {
                return Ok(());
            }
        };
        let result: Result<(), Trouble> = play();
        stop.store(true, Ordering::Relaxed);
        result
    });
    result?;
    let changes = changes.load(Ordering::Relaxed);
    let words = if arena.is_strict() { "harmless" } else { "survived" };
    Ok((frontend, format!("{words}: {changes} changes, {chains} chains, {resets} resets")))
}

/// Offers `chain` as often as the ring takes it (at most a burst) and counts what came back.
fn offer(frontend: &mut Frontend, index: usize, chain: &[Desc]) -> u64 {
    for _ in 0..32 {
        if frontend.rings[index].push(chain).is_none() {
            break;
        }
    }
    frontend.kick(index);
    std::thread::sleep(Duration::from_micros(100));
    frontend.rings[index].take_all().len() as u64
}

pub fn g09(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    let entries: Vec<Desc> = (0..64).map(|i| Desc::read(SCRATCH.plus(0x1_0000 + 64 * i).gpa(), 20)).collect();
    write_table(&frontend.memory, SCRATCH, arena.layout, &entries);
    let (desc, size) = (frontend.rings[TX].place.desc, u64::from(frontend.rings[TX].size));
    let change = move |memory: &SharedMemory, dice: &mut Dice| {
        let at = desc.plus(16 * (dice.roll() % size) + 8);
        memory.store32(at, dice.of(&[16, 64, 16 * 64, 16 * 65, 17, 0, 1 << 20, !15]));
    };
    frontend.wish.buffers = true;
    let (frontend, words) = race(arena, frontend, change, |_, frontend| {
        offer(frontend, TX, &[Desc::table(SCRATCH.gpa(), 16 * 64)])
    })?;
    done(words, frontend)
}

/// Writes a random descriptor, whole or one field of it, into a ring or a table.
fn any_field(memory: &SharedMemory, dice: &mut Dice, table: At, size: u64) {
    let at = table.plus(16 * (dice.roll() % size));
    let addresses = [
        BUFFERS.gpa(),
        BUFFERS.gpa() - 50,
        GPA_END - 9,
        u64::MAX - 5,
        0,
        table.gpa(),
        SCRATCH.gpa(),
        dice.roll(),
    ];
    match dice.roll() % 4 {
        0 => memory.store64(at, dice.of(&addresses)),
        1 => {
            let any = dice.roll() as u32;
            memory.store32(at.plus(8), dice.of(&[64, 76, 1514, 0, 16, 32, 4096, any]));
        }
        2 => memory.store16(at.plus(12), dice.roll() as u16 & 7),
        _ => memory.store16(at.plus(14), dice.roll() as u16),
    }
}

pub fn g10(arena: &mut Arena<'_>) -> Ended {
    let mut said = Vec::new();
    let mut frontend = arena.victim()?;
    for index in [TX, RX] {
        let (ring, size) = (frontend.rings[index].place.desc, u64::from(frontend.rings[index].size));
        let change = move |memory: &SharedMemory, dice: &mut Dice| {
            let (table, n) = dice.of(&[(ring, size), (ring, size), (SCRATCH, 64)]);
            any_field(memory, dice, table, n);
        };
        frontend.wish.buffers = index == TX;
        frontend.reset()?;
        let words;
        (frontend, words) = race(arena, frontend, change, |arena, frontend| {
            if index == RX {
                arena.provoke(frontend, 8, 300);
                return offer(frontend, RX, &[Desc::write(SCRATCH.plus(0x2000).gpa(), 2000)]);
            }
            let direct = [Desc::read(SCRATCH.plus(0x2000).gpa(), 12), Desc::read(SCRATCH.gpa(), 60)];
            offer(frontend, TX, &direct) + offer(frontend, TX, &[Desc::table(SCRATCH.gpa(), 64)])
        })?;
        said.push(words);
    }
    done(said.join("; "), frontend)
}

pub fn g11(arena: &mut Arena<'_>) -> Ended {
    let offloads =
        feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::GUEST_TSO4;
    let frontend = arena.victim_with(|wish| wish.features = offloads)?;
    let change = |memory: &SharedMemory, dice: &mut Dice| {
        // The header's words, in each of the buffers frames are sent from.
        let at = tx_buffers(0).plus(5 * 2048 * (dice.roll() % 64) + 2 * (dice.roll() % 6));
        let any = dice.roll() as u16;
        memory.store16(at, dice.of(&[0, 0x0101, 0x0401, 34, 54, 1460, 8, 1, u16::MAX, any]));
    };
    let mut number = 0;
    let (frontend, words) = race(arena, frontend, change, |_, frontend| {
        let before = frontend.rings[TX].n_out();
        for _ in 0..16 {
            number += 1;
            let mut bytes = frame(Flow::FromVictim, number, [60, 1514, 4000][number as usize % 3]);
            bytes[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 6]);
            frontend.send(&bytes);
        }
        std::thread::sleep(Duration::from_micros(100));
        let sent = frontend.rings[TX].n_out() as u64;
        frontend.rings[TX].take_all().len() as u64 + u64::from(sent < before as u64 + 16)
    })?;
    done(words, frontend)
}

pub fn g18(arena: &mut Arena<'_>) -> Ended {
    let frontend = arena.victim_with(|wish| wish.buffers = false)?;
    let (ring, size) = (frontend.rings[RX].place.desc, u64::from(frontend.rings[RX].size));
    // Only addresses change, and only to other good ones: the ring itself must go on for ever.
    let change = move |memory: &SharedMemory, dice: &mut Dice| {
        let at = ring.plus(16 * (dice.roll() % size));
        memory.store64(at, SCRATCH.plus(64 * (dice.roll() % 4096)).gpa());
    };
    let (frontend, words) = race_within(FOR_EVER, arena, frontend, change, |arena, frontend| {
        arena.provoke(frontend, 4, 1500);
        offer(frontend, RX, &[Desc::write(SCRATCH.gpa(), 64)])
    })?;
    if arena.is_strict() && !words.ends_with("0 resets") {
        return Err(Trouble::Wrong(format!("the ring stood still: {words}")));
    }
    done(words, frontend)
}

pub fn g21(arena: &mut Arena<'_>) -> Ended {
    let frontend = arena.victim_with(|wish| wish.features = feature::EVENT_IDX)?;
    let (places, layout, size) =
        ([frontend.rings[TX].place, frontend.rings[RX].place], arena.layout, frontend.rings[TX].size);
    let change = move |memory: &SharedMemory, dice: &mut Dice| {
        let (place, value) = (dice.of(&places), dice.roll() as u16);
        match layout {
            // used_event and the flags of the available ring; what the device writes is overwritten as well.
            Layout::Split => {
                memory.store16(place.driver.plus(4 + 2 * u64::from(size)), value);
                memory.store16(place.driver, value & 1);
                memory.store16(place.device.plus(4 + 8 * u64::from(size)), value);
            }
            Layout::Packed => {
                memory.store32(place.driver, dice.roll() as u32);
                memory.store32(place.device, dice.roll() as u32);
            }
        }
    };
    let (frontend, words) =
        race_within(FOR_EVER, arena, frontend, change, |arena, frontend| match arena.pass(frontend) {
            Ok(()) => 200,
            Err(_) => 0,
        })?;
    if arena.is_strict() && !words.ends_with("0 resets") {
        return Err(Trouble::Wrong(format!("frames did not pass: {words}")));
    }
    done(words, frontend)
}

pub fn g22(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    let kicks: Vec<_> = frontend.kicks.iter().map(|fd| fd.try_clone()).collect::<Result<_, _>>()?;
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let passed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for kick in &kicks {
                    let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let passed = arena.neighbour_goes_on(512).and_then(|()| arena.pass(&mut frontend));
        stop.store(true, Ordering::Relaxed);
        passed
    });
    match passed {
        Err(trouble) if arena.is_strict() => Err(trouble),
        _ => done(format!("harmless: {} kicks", 2 * count.into_inner()), frontend),
    }
}
