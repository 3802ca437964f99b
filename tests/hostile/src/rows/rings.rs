//! Lies about rings: their indices, numbers, sizes, addresses and bases.

use crate::arena::{Arena, Done, Ended, Trouble, done};
use crate::frontend::{Frontend, RX, TX, feature, ring_address};
use crate::line::Line;
use crate::memory::{At, BUFFERS, GPA_END, REGIONS, SCRATCH};
use crate::message::{Answer, request, words32, words64};
use crate::ring::{AVAIL, Desc, Layout, Ring, USED, WRITE};

pub fn g12(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    if arena.layout == Layout::Packed {
        return out_of_turn(arena, frontend);
    }
    let mut words = String::new();
    for index in [TX, RX] {
        for step in [2 * frontend.rings[index].size, 0x8000, 0xffff] {
            // On the receive ring buffers are out; its index counts from the first of them.
            frontend.rings[index].take_all();
            let taken = frontend.rings[index].avail().wrapping_sub(frontend.rings[index].n_out() as u16);
            frontend.rings[index].publish(taken.wrapping_add(step));
            frontend.kick(index);
            arena.provoke(&mut frontend, 1, 60);
            words = arena.expect_failed("jumped")?;
            frontend.reset()?;
        }
    }
    done(words, frontend)
}

/// A descriptor made available before its turn must wait for it.
fn out_of_turn(arena: &mut Arena<'_>, mut frontend: Frontend) -> Ended {
    let (avail, size) = (frontend.rings[TX].avail(), frontend.rings[TX].size);
    let at = frontend.rings[TX].desc_at((avail + 3) % size);
    frontend.memory.store64(at, SCRATCH.gpa());
    frontend.memory.store64(at.plus(8), 100 | u64::from(AVAIL) << 48);
    frontend.kick(TX);
    arena.neighbour_goes_on(16)?;
    let flags = frontend.memory.load16(at.plus(14));
    if arena.is_strict() && flags != AVAIL {
        return Err(Trouble::Wrong(format!("a descriptor out of turn was used: flags {flags:#x}")));
    }
    frontend.reset()?;
    arena.unharmed(frontend)
}

pub fn g28(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.buffers = false)?;
    let size = frontend.rings[TX].size;
    let beyond = [size, size + 1, 2 * size, 1024, 0x0fff, 0x7fff, 0x8000, 0xff00, 0xffff];
    let mut words = String::new();
    for index in [TX, RX] {
        for value in beyond {
            match arena.layout {
                Layout::Split => frontend.rings[index].offer(value),
                // Here the like of a head is the buffer's id.
                Layout::Packed => {
                    let flags = if index == RX { WRITE } else { 0 };
                    frontend.rings[index].push_as(value, &[Desc::read(SCRATCH.gpa(), 200).with(flags)]);
                }
            }
            frontend.kick(index);
            arena.provoke(&mut frontend, 1, 60);
            let fault = if arena.layout == Layout::Split { "outside the ring" } else { "buffer id" };
            words = arena.expect_failed(fault)?;
            frontend.reset()?;
        }
    }
    done(words, frontend)
}

pub fn g26(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim()?;
    // Bases whose wrap counters are at odds with each other and with the ring.
    for base in [0u32, 0x8000_0000, 0x0000_8000, 0x7fff_ffff, 0xffff_ffff, 0x8100_8100] {
        frontend.stop_ring(TX)?;
        frontend.rings[TX] = Ring::new(frontend.memory.clone(), TX, Layout::Packed, 256);
        let answer = frontend.connection.order(request::SET_VRING_BASE, &words32(&[TX as u32, base]), &[])?;
        if answer == Answer::Closed {
            frontend = arena.victim()?;
            continue;
        }
        let _ = frontend.connection.order(request::SET_VRING_KICK, &words64(&[0x100 | TX as u64]), &[])?;
        frontend.rings[TX].push(&[Desc::read(SCRATCH.gpa(), 100)]);
        frontend.kick(TX);
        arena.neighbour_goes_on(8)?;
    }
    frontend.reset()?;
    // A burst in which one has length 0 and no address, and every phase there is over the whole ring.
    let good = Desc::read(SCRATCH.gpa(), 100);
    for chain in [good, good, Desc::read(u64::MAX, 0), good, Desc::read(0, 0), good] {
        frontend.rings[TX].push(&[chain]);
    }
    frontend.kick(TX);
    arena.comes_back(&mut frontend, TX)?;
    for phase in [AVAIL | USED, 0, AVAIL, USED, AVAIL | WRITE, USED | WRITE | 4] {
        for slot in 0..frontend.rings[TX].size {
            let at = frontend.rings[TX].desc_at(slot);
            frontend.memory.store64(at, SCRATCH.gpa());
            frontend.memory.store64(at.plus(8), 100 | 0xffff << 32 | u64::from(phase) << 48);
        }
        frontend.kick(TX);
        arena.neighbour_goes_on(8)?;
    }
    frontend.reset()?;
    arena.unharmed(frontend)
}

/// Sets up one more ring with commands no driver sends, if the backend takes one.
pub fn g23(arena: &mut Arena<'_>) -> Ended {
    let mut frontend = arena.victim_with(|wish| wish.features = feature::CTRL_VQ)?;
    let offered = frontend.features & feature::CTRL_VQ != 0;
    let control = 2u32;
    let mut ring = Ring::new(frontend.memory.clone(), control as usize, arena.layout, 64);
    let settings = [
        (request::SET_VRING_NUM, words32(&[control, 64])),
        (request::SET_VRING_BASE, words32(&[control, ring.base()])),
        (request::SET_VRING_ADDR, ring_address(control as usize, &ring, 0, 0)),
        (request::SET_VRING_KICK, words64(&[0x100 | u64::from(control)])),
        (request::SET_VRING_ENABLE, words32(&[control, 1])),
    ];
    for (request, payload) in settings {
        match frontend.connection.order(request, &payload, &[])? {
            Answer::Done(_) => {}
            _ if offered => return Err(Trouble::Wrong(format!("request {request} for the control queue"))),
            Answer::Refused => {}
            Answer::Closed => return crate::arena::over("not offered: closed"),
        }
    }
    let at = SCRATCH;
    frontend.memory.fill(at, 4096, 0);
    frontend.memory.write(at, &[1, 0, 0xff, 0xff, 0xff, 0xff]);
    frontend.memory.write(at.plus(64), &[0xee, 0xee]);
    let status = Desc::write(at.plus(2048).gpa(), 1);
    let commands: [Vec<Desc>; 8] = [
        vec![Desc::read(at.gpa(), 1), status],
        vec![Desc::read(at.gpa(), 2), Desc::read(at.plus(2).gpa(), 4), status],
        vec![Desc::read(at.gpa(), 2)],
        vec![status],
        vec![Desc::read(at.plus(64).gpa(), 2), status],
        vec![Desc::read(at.plus(64).gpa(), 0), status],
        vec![Desc::read(at.gpa(), 2), Desc::read(u64::MAX - 3, 16), status],
        vec![Desc::read(at.gpa(), u32::MAX), Desc::write(GPA_END - 1, 9)],
    ];
    for command in &commands {
        ring.push(command);
    }
    arena.neighbour_goes_on(64)?;
    // Where there is no control queue, this may have been a receive ring, and takes frames nobody reads.
    drop(frontend);
    crate::arena::over(if offered { "commands survived" } else { "not offered" })
}

/// Every ring number that is too high for a backend with `n` rings.
fn numbers_beyond(n: u32) -> [u32; 7] {
    [n, n + 1, 254, 255, 256, 0x1_0000, u32::MAX]
}

/// Rings the backend has, by its own word.
fn n_rings(line: &mut Line<'_, '_>) -> Result<u32, Trouble> {
    let answer = line.ask(request::GET_QUEUE_NUM, &[])?;
    Ok(2 * answer.word().unwrap_or(1).clamp(1, 127) as u32)
}

pub fn f06(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    let n = n_rings(&mut line)?;
    let place = Ring::new(line.frontend()?.memory.clone(), 63, Layout::Split, 16);
    for number in numbers_beyond(n) {
        let state = words32(&[number, 1]);
        for request in [request::SET_VRING_NUM, request::SET_VRING_BASE, request::SET_VRING_ENABLE] {
            line.must_refuse(format!("ring {number}"), request, &state, &[])?;
        }
        let mut address = ring_address(0, &place, 0, 0);
        address[..4].copy_from_slice(&number.to_ne_bytes());
        line.must_refuse(format!("ring {number}"), request::SET_VRING_ADDR, &address, &[])?;
        let answer = line.ask(request::GET_VRING_BASE, &state)?;
        if arena.is_strict() && answer != Answer::Closed {
            return Err(Trouble::Wrong(format!("GET_VRING_BASE of ring {number}: {answer:?}")));
        }
        for request in [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR] {
            // These carry the number in 8 bits.
            let payload = words64(&[u64::from(number) & 0xff | 0x100]);
            if number & 0xff >= n {
                line.must_refuse(format!("ring {number}"), request, &payload, &[])?;
            } else {
                line.order(request, &words64(&[u64::from(number)]), &[])?;
            }
        }
    }
    ended(line)
}

/// The end of a row of single messages.
pub fn ended(line: Line<'_, '_>) -> Ended {
    let (words, frontend) = line.end();
    Ok(Done { words, frontend })
}

pub fn f07(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::greeted(arena);
    for size in [0, 3, 255, 0x8001, 0xffff, 0x1_0000, 0x1_0100, 1 << 31, u32::MAX] {
        line.must_refuse(format!("size {size}"), request::SET_VRING_NUM, &words32(&[0, size]), &[])?;
    }
    let connection = &mut line.frontend()?.connection;
    for turn in 0..100_000u32 {
        connection.tell(request::SET_VRING_NUM, &words32(&[turn & 1, 256]), &[])?;
        if turn % 1000 == 999 {
            connection.ask(request::GET_FEATURES, &[], &[])?;
        }
    }
    ended(line)
}

pub fn f08(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    for size in [32_768, 1, 2, 512, 0, 16, 3, 256] {
        for index in [TX, RX] {
            line.order(request::SET_VRING_NUM, &words32(&[index as u32, size]), &[])?;
            line.frontend()?.send(&[0; 100]);
        }
        arena.neighbour_goes_on(8)?;
    }
    line.frontend()?.reset()?;
    ended(line)
}

pub fn f09(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::greeted(arena);
    let place = Ring::new(line.frontend()?.memory.clone(), 4, Layout::Split, 256).place;
    let good = [place.desc, place.device, place.driver].map(At::frontend_va);
    let first_end = REGIONS[0].frontend_va + REGIONS[0].len_bytes;
    let last_end = REGIONS[1].frontend_va + REGIONS[1].len_bytes;
    let mut bad = Vec::new();
    for part in 0..3 {
        let bytes = [16 * 256, 4 + 8 * 256 + 2, 4 + 2 * 256 + 2][part];
        let unaligned = good[part] + 1;
        let edges = [first_end - bytes + 16, last_end - bytes + 16, last_end, REGIONS[0].frontend_va - 16];
        let nowhere = [0, 1 << 62, u64::MAX - 100, u64::MAX, BUFFERS.gpa()];
        for address in edges.into_iter().chain(nowhere).chain([unaligned]) {
            let mut addresses = good;
            addresses[part] = address;
            bad.push(addresses);
        }
    }
    for addresses in bad {
        line.hang_up();
        let frontend = line.frontend()?;
        frontend.set_features(frontend.features)?;
        frontend.share_memory()?;
        let connection = &mut frontend.connection;
        for index in [0u32, 1] {
            connection.order(request::SET_VRING_NUM, &words32(&[index, 256]), &[])?;
            connection.order(request::SET_VRING_ENABLE, &words32(&[index, 1]), &[])?;
        }
        for index in [0u32, 1] {
            let payload = [words32(&[index, 0]), words64(&addresses), words64(&[0])].concat();
            if line.order(request::SET_VRING_ADDR, &payload, &[])? == Answer::Closed
                || line.order(request::SET_VRING_KICK, &words64(&[0x100 | u64::from(index)]), &[])?
                    == Answer::Closed
            {
                break;
            }
        }
        let state = arena.expect_state(|state| state != "running", "anything but running")?;
        debug_assert!(!state.is_empty());
    }
    ended(line)
}

pub fn f10(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    for base in [0x1_0000, 0x8000_0000, u32::MAX] {
        line.must_refuse(
            format!("base {base:#x} of a split ring"),
            request::SET_VRING_BASE,
            &words32(&[0, base]),
            &[],
        )?;
    }
    for base in [0x8001, 0xffff, 300, 5, 0] {
        let frontend = line.frontend()?;
        frontend.stop_ring(TX)?;
        frontend.renew_rings();
        line.order(request::SET_VRING_BASE, &words32(&[TX as u32, base]), &[])?;
        line.order(request::SET_VRING_KICK, &words64(&[0x100 | TX as u64]), &[])?;
        line.frontend()?.send(&[0; 100]);
        arena.neighbour_goes_on(8)?;
    }
    line.frontend()?.reset()?;
    ended(line)
}

pub fn f23(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    let mut offered = 0;
    for index in 0..=257u32 {
        let place = Ring::new(line.frontend()?.memory.clone(), index as usize % 60 + 2, Layout::Split, 64);
        let mut address = ring_address(0, &place, 0, 0);
        address[..4].copy_from_slice(&index.to_ne_bytes());
        if index >= 2 {
            line.order(request::SET_VRING_NUM, &words32(&[index, 64]), &[])?;
            line.order(request::SET_VRING_ADDR, &address, &[])?;
            line.order(request::SET_VRING_KICK, &words64(&[0x100 | u64::from(index & 0xff)]), &[])?;
            let answer = line.order(request::SET_VRING_ENABLE, &words32(&[index, 1]), &[])?;
            offered += u32::from(!answer.is_no());
        }
    }
    arena.neighbour_goes_on(64)?;
    let (words, frontend) = line.end();
    // Rings beside the first pair still run on memory nobody serves: they are left to the reconnect.
    drop(frontend);
    crate::arena::over(format!("{offered} rings beside the first pair, {words}"))
}
