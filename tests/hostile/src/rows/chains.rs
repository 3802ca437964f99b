//! Descriptor chains that lie: where buffers are, how chains go on, who may write.

use crate::arena::{Arena, Ended, Trouble, done};
use crate::backend::Way;
use crate::frontend::{Frontend, RX, TX};
use crate::memory::{BUFFERS, GPA_END, SCRATCH};
use crate::ring::{Desc, INDIRECT, Layout, NEXT, WRITE, write_table};

const BAD_ADDRESS: &[&str] = &["bad_address"];
const BAD_CHAIN: &[&str] = &["bad_chain"];

/// Offers each range once in either direction.
fn bad_ranges(arena: &mut Arena<'_>, ranges: &[(u64, u32)]) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    for (addr, len) in ranges {
        arena.transmit(&mut frontend, &[Desc::read(*addr, *len)])?;
        arena.receive_into(&mut frontend, &[Desc::write(*addr, *len)], 60)?;
    }
    let n = ranges.len() as u64;
    arena.expect_drops(Way::FromGuest, BAD_ADDRESS, n)?;
    done(arena.expect_drops(Way::ToGuest, BAD_ADDRESS, n)?, frontend)
}

pub fn g01(arena: &mut Arena<'_>) -> Ended {
    // Where the two regions meet for the guest; they don't in the backend.
    let seam = BUFFERS.gpa();
    bad_ranges(arena, &[(seam - 50, 100), (seam - 1, 2), (GPA_END - 99, 100), (GPA_END - 1, 1 << 20)])
}

pub fn g02(arena: &mut Arena<'_>) -> Ended {
    let everything = (BUFFERS.gpa(), u32::MAX);
    let ranges = [(u64::MAX - 10, 100), (u64::MAX, 1), (0, 100), (GPA_END, 64), everything, (1 << 63, 64)];
    bad_ranges(arena, &ranges)
}

/// Split: offers a chain laid out by hand on one ring and waits for it.
fn crafted(
    arena: &mut Arena<'_>,
    frontend: &mut Frontend,
    index: usize,
    descriptors: &[(u16, Desc)],
    head: u16,
) -> Result<(), Trouble> {
    for (slot, desc) in descriptors {
        frontend.rings[index].craft(*slot, *desc);
    }
    frontend.rings[index].offer_crafted(head);
    frontend.kick(index);
    if index == RX {
        arena.provoke(frontend, 1, 60);
    }
    arena.comes_back(frontend, index).map(drop)
}

/// A descriptor of either direction over some buffer.
fn buffer(index: usize, len: u32) -> Desc {
    let flags = if index == RX { WRITE } else { 0 };
    Desc::read(SCRATCH.gpa(), len).with(flags)
}

pub fn g06(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    if arena.layout == Layout::Packed {
        return endless(arena, frontend);
    }
    let loops = [(0, 0, 64), (1, 0, 64), (0, 0, 0), (1, 1, 0)];
    for index in [TX, RX] {
        for (a, b, len) in loops {
            let chain = [(0, buffer(index, len).linked(a)), (1, buffer(index, len).linked(b))];
            crafted(arena, &mut frontend, index, &chain, 0)?;
        }
    }
    arena.expect_drops(Way::FromGuest, BAD_CHAIN, loops.len() as u64)?;
    done(arena.expect_drops(Way::ToGuest, BAD_CHAIN, loops.len() as u64)?, frontend)
}

/// Packed rings have no links; the like of a loop is a ring whose every descriptor says that the chain goes on.
fn endless(arena: &mut Arena<'_>, mut frontend: Frontend) -> Ended {
    let mut words = Vec::new();
    for (index, way) in [(TX, Way::FromGuest), (RX, Way::ToGuest)] {
        for len in [64, 0] {
            let chain = vec![buffer(index, len).with(NEXT); usize::from(frontend.rings[index].size)];
            frontend.rings[index].push(&chain);
            frontend.kick(index);
            if index == RX {
                arena.provoke(&mut frontend, 1, 60);
            }
            words.push(arena.expect_drop_or_failure(way)?);
            frontend.reset()?;
        }
    }
    words.dedup();
    done(words.join("; "), frontend)
}

pub fn g07(arena: &mut Arena<'_>) -> Ended {
    if arena.layout == Layout::Packed {
        return foreign_ids(arena);
    }
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    let size = frontend.rings[TX].size;
    let links = [size, size + 1, u16::MAX];
    for index in [TX, RX] {
        for link in links {
            crafted(arena, &mut frontend, index, &[(0, buffer(index, 64).linked(link))], 0)?;
        }
    }
    arena.expect_drops(Way::FromGuest, BAD_CHAIN, links.len() as u64)?;
    arena.expect_drops(Way::ToGuest, BAD_CHAIN, links.len() as u64)?;
    frontend.rings[TX].offer(size);
    frontend.kick(TX);
    let failed = arena.expect_failed("outside the ring")?;
    done(if arena.is_strict() { format!("dropped bad_chain; {failed}") } else { failed }, frontend)
}

/// Packed: ids beyond the ring's size.
fn foreign_ids(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    let mut words = String::new();
    for index in [TX, RX] {
        let size = frontend.rings[index].size;
        frontend.rings[index].push_as(size, &[buffer(index, 200)]);
        frontend.kick(index);
        if index == RX {
            arena.provoke(&mut frontend, 1, 60);
        }
        words = arena.expect_failed("buffer id")?;
        frontend.reset()?;
    }
    done(words, frontend)
}

pub fn g08(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    let (layout, at) = (arena.layout, SCRATCH);
    let entries = [Desc::read(at.plus(0x8000).gpa(), 40), Desc::read(at.plus(0x9000).gpa(), 40)];
    let (outside, wraps) = (GPA_END - 8, u64::MAX - 7);
    let mut bad: Vec<Vec<Desc>> =
        [15, 0, 40, 16 * 65_537, !15].map(|bytes| vec![Desc::table(at.gpa(), bytes)]).to_vec();
    bad.push(vec![Desc::table(at.gpa(), 32), Desc::read(at.gpa(), 64)]);
    for chain in &bad {
        write_table(&frontend.memory, at, layout, &entries);
        arena.transmit(&mut frontend, chain)?;
    }
    write_table(&frontend.memory, at, layout, &[Desc::table(at.gpa(), 32), entries[0]]);
    arena.transmit(&mut frontend, &[Desc::table(at.gpa(), 32)])?;
    let mut n_bad = bad.len() as u64 + 1;
    if layout == Layout::Split {
        // Only split tables have links that could lead out of them.
        write_table(&frontend.memory, at, layout, &[entries[0].linked(2)]);
        arena.transmit(&mut frontend, &[Desc::table(at.gpa(), 16)])?;
        n_bad += 1;
    }
    for addr in [outside, wraps] {
        arena.transmit(&mut frontend, &[Desc::table(addr, 32)])?;
    }
    arena.expect_drops(Way::FromGuest, BAD_CHAIN, n_bad)?;
    arena.expect_drops(Way::FromGuest, BAD_ADDRESS, 2)?;
    drop(frontend);
    let mut frontend = arena.victim_with(|wish| wish.without = crate::frontend::feature::INDIRECT_DESC)?;
    write_table(&frontend.memory, at, layout, &entries);
    arena.transmit(&mut frontend, &[Desc::table(at.gpa(), 32)])?;
    arena.expect_drops(Way::FromGuest, BAD_CHAIN, n_bad + 1)?;
    done(if arena.is_strict() { "dropped bad_chain, bad_address" } else { "survived" }, frontend)
}

pub fn g13(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    let (read, write) = (Desc::read(SCRATCH.gpa(), 40), Desc::write(SCRATCH.plus(0x1000).gpa(), 40));
    for chain in [vec![write], vec![read, write], vec![write, read]] {
        arena.transmit(&mut frontend, &chain)?;
    }
    for chain in [vec![read], vec![write, read], vec![read, write]] {
        arena.receive_into(&mut frontend, &chain, 60)?;
    }
    arena.expect_drops(Way::FromGuest, BAD_CHAIN, 3)?;
    done(arena.expect_drops(Way::ToGuest, BAD_CHAIN, 3)?, frontend)
}

pub fn g16(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| (wish.size, wish.buffers) = (1024, false))?;
    let (layout, table) = (arena.layout, SCRATCH);
    // A table of 1024 single bytes that every chain of the ring names.
    let bytes: Vec<Desc> = (0..1024).map(|i| Desc::read(BUFFERS.plus(i).gpa(), 1)).collect();
    write_table(&frontend.memory, table, layout, &bytes);
    let rounds = if arena.thorough { 20 } else { 2 };
    for _ in 0..rounds {
        while frontend.rings[TX].push(&[Desc::table(table.gpa(), 16 * 1024)]).is_some() {}
        frontend.kick(TX);
        arena.neighbour_goes_on(64)?;
        arena.comes_back(&mut frontend, TX)?;
    }
    // 64 KiB in 1024 pieces, and 1024 single bytes, in the ring itself.
    for len in [64, 1] {
        let chain: Vec<Desc> = (0..1024).map(|i| Desc::read(BUFFERS.plus(64 * i).gpa(), len)).collect();
        arena.transmit(&mut frontend, &chain)?;
    }
    done("harmless", frontend)
}

pub fn g19(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    let places = [frontend.rings[TX].place, frontend.rings[RX].place];
    for place in places {
        for at in [place.desc, place.driver, place.device] {
            arena.transmit(&mut frontend, &[Desc::read(at.gpa(), 1500)])?;
        }
    }
    // Frames land on the rings: what they say then is anything, and the ring may fail. Only the guest's own harm.
    for place in places {
        for at in [place.desc, place.driver, place.device] {
            frontend.rings[RX].push(&[Desc::write(at.gpa(), 2048)]);
            frontend.kick(RX);
            arena.provoke(&mut frontend, 3, 1500);
            std::thread::sleep(std::time::Duration::from_millis(20));
            frontend.reset()?;
        }
    }
    done("own rings only", frontend)
}

pub fn g20(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    let at = SCRATCH.gpa();
    for (a, b) in [(0, 0), (0, 30), (30, 0)] {
        arena.transmit(&mut frontend, &[Desc::read(at + a, 60), Desc::read(at + b, 60)])?;
        arena.receive_into(&mut frontend, &[Desc::write(at + a, 60), Desc::write(at + b, 2000)], 300)?;
    }
    let table = SCRATCH.plus(0x1000);
    write_table(&frontend.memory, table, arena.layout, &[Desc::read(table.gpa(), 64), Desc::read(at, 64)]);
    arena.transmit(&mut frontend, &[Desc::table(table.gpa(), 32)])?;
    debug_assert_eq!(Desc::table(0, 0).flags, INDIRECT);
    frontend.reset()?;
    frontend.post_buffers(0);
    arena.unharmed(frontend)
}
