//! Messages as bytes: headers, sizes, descriptors, order.

use std::os::fd::AsFd;
use std::time::Duration;

use super::rings::ended;
use crate::arena::{Arena, Ended, Trouble, over};
use crate::frontend::{Frontend, copies, memory_table, single_region};
use crate::line::Line;
use crate::memory::{REGIONS, memfd};
use crate::message::{Answer, NEED_REPLY, REPLY, VERSION, message, request, words32, words64};

/// A well-formed payload for a request.
fn payload_of(request: u32) -> Vec<u8> {
    match request {
        request::SET_MEM_TABLE => memory_table(&REGIONS),
        request::ADD_MEM_REG | request::REM_MEM_REG => single_region(&REGIONS[0]),
        request::SET_VRING_ADDR => [words32(&[0, 0]), words64(&[0; 4])].concat(),
        request::SET_LOG_BASE => words64(&[4096, 0]),
        request::GET_INFLIGHT_FD | request::SET_INFLIGHT_FD => vec![0; 20],
        request::IOTLB_MSG => vec![0; 32],
        24 | request::SET_CONFIG => vec![0; 16],
        request::GET_FEATURES
        | request::SET_OWNER
        | request::RESET_OWNER
        | request::GET_PROTOCOL_FEATURES
        | request::GET_QUEUE_NUM
        | request::RESET_DEVICE
        | request::GET_MAX_MEM_SLOTS
        | request::GET_STATUS => Vec::new(),
        _ => vec![0; 8],
    }
}

/// Descriptors a request may come with.
fn fds_of(request: u32) -> usize {
    match request {
        request::SET_MEM_TABLE => 2,
        request::SET_VRING_KICK
        | request::SET_VRING_CALL
        | request::SET_VRING_ERR
        | request::SET_LOG_BASE
        | request::SET_LOG_FD
        | request::SET_BACKEND_REQ_FD
        | request::SET_INFLIGHT_FD
        | request::ADD_MEM_REG => 1,
        _ => 0,
    }
}

pub fn f13(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    let file = memfd(1 << 20)?;
    for number in 0..=42 {
        for n_fds in [1, 2, 8].into_iter().filter(|n| *n > fds_of(number)) {
            let payload = payload_of(number);
            let bytes = message(number, VERSION, payload.len() as u32, &payload);
            line.bytes(&bytes, &copies(&file, n_fds))?;
        }
    }
    // None may be kept while the connection lasts.
    line.hang_up();
    line.frontend()?;
    let held = || arena.backend.process.and_then(|process| process.holdings()).map_or(0, |held| held.fds);
    let before = held();
    for _ in 0..50 {
        for number in [request::GET_FEATURES, request::SET_VRING_NUM, 1000] {
            let payload = if number == request::SET_VRING_NUM { words32(&[0, 256]) } else { Vec::new() };
            let bytes = message(number, VERSION, payload.len() as u32, &payload);
            line.bytes(&bytes, &copies(&file, 8))?;
        }
    }
    line.frontend()?;
    let kept = held().saturating_sub(before);
    // A connection that was closed and came back may hold a few of its own for a moment.
    if kept > 8 {
        return Err(Trouble::Harm(format!("{kept} descriptors are kept")));
    }
    line.hang_up();
    ended(line)
}

/// Headers that are wrong on their own: flags, payload bytes claimed, payload bytes sent.
fn wrong_headers() -> Vec<(u32, u32, u32, usize)> {
    let mut all = Vec::new();
    for flags in [0, 2, 3, VERSION | REPLY, REPLY, u32::MAX] {
        all.push((request::GET_FEATURES, flags, 0, 0));
    }
    for size in [1, 8, 4096, 4097, 1 << 20, 1 << 31, u32::MAX] {
        all.push((request::GET_FEATURES, VERSION, size, 0));
        all.push((request::SET_VRING_NUM, VERSION, size, 8));
        all.push((request::SET_MEM_TABLE, VERSION, size, 8));
    }
    for (number, sent) in [
        (request::SET_FEATURES, 4),
        (request::SET_VRING_NUM, 0),
        (request::SET_VRING_ADDR, 8),
        (request::SET_VRING_KICK, 1),
        (request::SET_MEM_TABLE, 0),
        (request::SET_MEM_TABLE, 3),
        (request::ADD_MEM_REG, 39),
        (request::SET_VRING_ENABLE, 7),
        (request::SET_VRING_ENABLE, 9),
    ] {
        all.push((number, VERSION, sent as u32, sent));
    }
    all
}

pub fn f14(arena: &mut Arena<'_>) -> Ended {
    let mut n_closed = 0;
    for (number, flags, size, sent) in wrong_headers() {
        let mut frontend = arena.greeted()?;
        let bytes = message(number, flags, size, &vec![0; sent]);
        let _ = frontend.connection.send_bytes(&bytes, &[]);
        // What is claimed and never comes must not be waited for for ever. Backends that can't be asked
        // are hung up on instead.
        let wait = if arena.is_strict() { arena.patience() } else { Duration::from_millis(20) };
        let ended = size as usize == sent || frontend.connection.wait_for_end(wait);
        n_closed += u32::from(ended);
        if arena.is_strict() && !ended {
            return Err(Trouble::Wrong(format!("{number} {flags:#x} {size} {sent}: the connection stays")));
        }
    }
    for slow in [half_message, byte_by_byte] {
        match slow(arena) {
            // Another backend may hang up on a slow frontend.
            Err(Trouble::Socket(_)) if !arena.is_strict() => {}
            result => result?,
        }
    }
    over(format!("{n_closed} of {} closed; single bytes understood", wrong_headers().len()))
}

/// Half a message, then silence: others go on, and a backend that can be asked gives up in time.
fn half_message(arena: &Arena<'_>) -> Result<(), Trouble> {
    for cut in [1, 12, 19] {
        let mut frontend = arena.victim()?;
        let bytes = message(request::SET_VRING_NUM, VERSION, 8, &words32(&[0, 256]));
        frontend.connection.send_bytes(&bytes[..cut], &[])?;
        arena.neighbour_goes_on(64)?;
        if arena.is_strict() && !frontend.connection.wait_for_end(arena.patience()) {
            return Err(Trouble::Wrong(format!("{cut} bytes of a message are waited on for ever")));
        }
    }
    Ok(())
}

/// A slow frontend is no bad one.
fn byte_by_byte(arena: &Arena<'_>) -> Result<(), Trouble> {
    let mut frontend = arena.greeted()?;
    let acknowledged = frontend.connection.acknowledges;
    let ask = if acknowledged { VERSION | NEED_REPLY } else { VERSION };
    let bytes = message(request::SET_VRING_NUM, ask, 8, &words32(&[0, 128]));
    for byte in bytes {
        frontend.connection.send_bytes(&[byte], &[])?;
        std::thread::sleep(Duration::from_millis(1));
    }
    let answer = match acknowledged {
        true => frontend.connection.answer(request::SET_VRING_NUM)?,
        false => frontend.connection.ask(request::GET_FEATURES, &[], &[])?,
    };
    match answer {
        Answer::Closed if arena.is_strict() => {
            Err(Trouble::Wrong("a slow message was not understood".into()))
        }
        _ => Ok(()),
    }
}

/// What a backend must remember of one connection, as far as answers show it.
struct Model {
    /// Base of each ring, where it is known.
    bases: [Option<u32>; 2],
}

impl Default for Model {
    fn default() -> Model {
        Model { bases: [Some(0); 2] }
    }
}

pub fn f15(arena: &mut Arena<'_>) -> Ended {
    let n = if arena.thorough { 1_000_000 } else { 10_000 };
    let (mut frontend, mut model) = (arena.greeted()?, Model::default());
    let (mut sent, mut refused, mut closed) = (0, 0, 0);
    while sent < n {
        let answer = random_message(arena, &mut frontend, &mut model)?;
        sent += 1;
        refused += u32::from(answer == Answer::Refused);
        // A connection that goes on too long gets into few states.
        if answer == Answer::Closed || arena.random(200) == 0 {
            closed += u32::from(answer == Answer::Closed);
            drop(frontend);
            (frontend, model) = (arena.greeted()?, Model::default());
        }
    }
    over(format!("{sent} messages, {refused} refused, {closed} closed"))
}

/// One random message; its answer is compared with what the model says where it says anything.
fn random_message(
    arena: &mut Arena<'_>,
    frontend: &mut Frontend,
    model: &mut Model,
) -> Result<Answer, Trouble> {
    let ring = arena.random(2) as u32;
    let strict = arena.is_strict();
    let expect = |what: &str, so: bool, answer: Answer| match so || !strict {
        true => Ok(answer),
        false => Err(Trouble::Wrong(format!("{what}: {answer:?}"))),
    };
    let value = [0, 1, 2, 3, 64, 256, 300, 0x8000, 0xffff, 0x1_0000, u32::MAX][arena.random(11) as usize];
    let features = frontend.features;
    let connection = &mut frontend.connection;
    let state = words32(&[ring, value]);
    match arena.random(14) {
        0 => {
            let answer = connection.ask(request::GET_FEATURES, &[], &[])?;
            let same = answer.word() == Some(frontend.offered);
            expect("the offered features change", same, answer)
        }
        1 => Ok(connection.order(request::SET_FEATURES, &words64(&[features]), &[])?),
        2 => {
            let answer = connection.order(request::SET_VRING_NUM, &state, &[])?;
            let good = value.is_power_of_two() && value <= 0x8000;
            expect(&format!("size {value}"), answer.is_no() != good, answer)
        }
        3 => {
            let answer = connection.order(request::SET_VRING_BASE, &state, &[])?;
            // Higher ones are good for packed rings, and which those are nobody has said yet.
            let good = value <= 0xffff;
            if !answer.is_no() {
                model.bases[ring as usize] = good.then_some(value);
            }
            expect(&format!("base {value}"), !good || !answer.is_no(), answer)
        }
        4 => {
            let answer = connection.ask(request::GET_VRING_BASE, &state, &[])?;
            // No ring ever gets all it needs here, so none moves on from its base.
            let base = answer.word().map(|word| (word >> 32) as u32);
            let known = model.bases[ring as usize];
            let same = known.is_none() || base == known;
            expect(&format!("base of ring {ring}, which is {known:?}"), same, answer)
        }
        5 => Ok(connection.order(request::SET_VRING_ENABLE, &words32(&[ring, value & 1]), &[])?),
        6 => Ok(connection.order(request::SET_VRING_KICK, &words64(&[0x100 | u64::from(ring)]), &[])?),
        7 => {
            let call = frontend.calls[ring as usize].as_fd();
            Ok(connection.order(request::SET_VRING_CALL, &words64(&[u64::from(ring)]), &[call])?)
        }
        8 => {
            let fds = copies(&frontend.memory, 2);
            Ok(connection.order(request::SET_MEM_TABLE, &memory_table(&REGIONS), &fds)?)
        }
        9 => {
            let fd = [frontend.memory.as_fd()];
            Ok(connection.order(request::ADD_MEM_REG, &single_region(&REGIONS[0]), &fd)?)
        }
        10 => Ok(connection.order(request::REM_MEM_REG, &single_region(&REGIONS[0]), &[])?),
        11 => {
            let answer = connection.ask(request::GET_QUEUE_NUM, &[], &[])?;
            let good = answer.word().is_some_and(|n| n >= 1);
            expect("queue pairs", good, answer)
        }
        12 => {
            let number = arena.random(60) as u32 + 41;
            let answer = connection.order(number, &words64(&[u64::from(value)]), &[])?;
            let refused = answer == Answer::Refused || !connection.acknowledges;
            expect(&format!("unknown request {number}"), refused, answer)
        }
        _ => {
            let address = [words32(&[ring, 0]), words64(&[u64::from(value); 4])].concat();
            Ok(connection.order(request::SET_VRING_ADDR, &address, &[])?)
        }
    }
}

pub fn f22(arena: &mut Arena<'_>) -> Ended {
    let mut line = Line::running(arena);
    let numbers = [0, 23, 26, 27, 28, 29, 30, 33, 35].into_iter().chain(41..80).chain([1000, u32::MAX]);
    for number in numbers {
        for payload in [vec![], vec![0; 8], vec![0xff; 200]] {
            let acknowledges = line.frontend()?.connection.acknowledges;
            let answer = line.order(number, &payload, &[])?;
            if arena.is_strict() && (!acknowledges || answer != Answer::Refused) {
                return Err(Trouble::Wrong(format!("unknown request {number} was answered with {answer:?}")));
            }
            // Without asking for an answer none may come: the next answer is to the next question.
            line.bytes(&message(number, VERSION, payload.len() as u32, &payload), &[])?;
        }
    }
    arena.neighbour_goes_on(32)?;
    let (words, frontend) = line.end();
    match frontend {
        Some(frontend) => arena.unharmed(frontend).map(|done| crate::arena::Done { words, ..done }),
        None => over(words),
    }
}
