//! Interrupt causes, masks and MSI-X messages (82599 7.3 and 8.2.3.5).

use super::map::{self, IVAR, IVAR_MISC};

/// Bits of EICR that are no queue's.
const OTHER: u32 = 0x7fff_0000;

#[derive(Debug, Clone, Default)]
pub(super) struct Interrupts {
    /// RTxQ causes: one bit per vector.
    queues: u64,
    other: u32,
    queue_mask: u64,
    other_mask: u32,
    /// Vectors that owe a message.
    owed: u64,
    owed_other: bool,
    /// When each vector fired last, in two halves.
    last_us: [[u64; 32]; 2],
    fired: u64,
    pub(super) now_us: u64,
}

impl Interrupts {
    pub(super) fn set_other(&mut self, causes: u32) {
        self.other |= causes & OTHER;
        self.owed_other = true;
    }

    fn set_queues(&mut self, vectors: u64) {
        self.queues |= vectors;
        self.owed |= vectors;
    }

    /// Queue `queue` received (`tx` false) or completed sending (true).
    pub(super) fn queue_event(&mut self, regs: &[u32], queue: usize, tx: bool) {
        let entry = regs[(IVAR + queue / 2 * 4) / 4] >> (16 * (queue & 1) + 8 * usize::from(tx));
        if entry & 0x80 != 0 {
            self.set_queues(1 << (entry & 0x3f));
        }
    }

    /// EICR; the read clears.
    pub(super) fn read_causes(&mut self, gpie: u32) -> u32 {
        let value = self.peek();
        self.other = 0;
        if gpie & map::GPIE_OCD == 0 {
            self.queues &= !0xffff;
        }
        value
    }

    pub(super) fn peek(&self) -> u32 {
        self.other | (self.queues & 0xffff) as u32
    }

    pub(super) fn clear(&mut self, value: u32) {
        self.other &= !value;
        self.queues &= !u64::from(value & 0xffff);
    }

    pub(super) fn set(&mut self, value: u32) {
        self.set_other(value & OTHER);
        self.set_queues(u64::from(value & 0xffff));
    }

    pub(super) fn mask(&self) -> u32 {
        self.other_mask | (self.queue_mask & 0xffff) as u32
    }

    pub(super) fn half_mask(&self, half: usize) -> u32 {
        (self.queue_mask >> (32 * half)) as u32
    }

    pub(super) fn set_half(&mut self, half: usize, value: u32) {
        self.set_queues(u64::from(value) << (32 * half));
    }

    pub(super) fn enable(&mut self, value: u32) {
        self.other_mask |= value & OTHER;
        self.owed_other |= self.other & value & OTHER != 0;
        self.enable_queues(u64::from(value & 0xffff));
    }

    pub(super) fn enable_half(&mut self, half: usize, value: u32) {
        self.enable_queues(u64::from(value) << (32 * half));
    }

    fn enable_queues(&mut self, vectors: u64) {
        self.queue_mask |= vectors;
        self.owed |= self.queues & vectors;
    }

    pub(super) fn disable(&mut self, value: u32) {
        self.other_mask &= !value;
        self.queue_mask &= !u64::from(value & 0xffff);
    }

    pub(super) fn disable_half(&mut self, half: usize, value: u32) {
        self.queue_mask &= !(u64::from(value) << (32 * half));
    }

    /// Whether moderation lets vector `vector` fire (EITR, 8.2.3.5.14: units of 2 us from bit 3 on).
    fn may_fire(&self, regs: &[u32], vector: usize) -> bool {
        let offset = if vector < 24 { 0x820 + vector * 4 } else { 0x1_2300 + (vector - 24) * 4 };
        let interval_us = u64::from(regs[offset / 4] >> 3 & 0x1ff) * 2;
        self.fired >> vector & 1 == 0 || self.now_us - self.last_us[vector / 32][vector % 32] >= interval_us
    }
}

/// The vectors that fire now.
pub(super) fn take(state: &mut Interrupts, regs: &[u32]) -> u64 {
    let reg = |offset: usize| regs[offset / 4];
    let gpie = reg(map::GPIE);
    let mut want = state.owed & state.queues & state.queue_mask;
    let misc = reg(IVAR_MISC) >> 8 & 0xff;
    let other = state.owed_other && state.other & state.other_mask != 0;
    let other_vector = if misc & 0x80 != 0 { 1u64 << (misc & 0x3f) } else { 0 };
    if other {
        want |= other_vector;
    }
    let fires = (0..super::N_VECTORS)
        .filter(|v| want >> v & 1 == 1 && state.may_fire(regs, *v))
        .fold(0u64, |bits, v| bits | 1 << v);
    for vector in (0..super::N_VECTORS).filter(|v| fires >> v & 1 == 1) {
        state.last_us[vector / 32][vector % 32] = state.now_us;
    }
    state.fired |= fires;
    let (by_queues, by_other) = (fires & state.queues & state.queue_mask, other && fires & other_vector != 0);
    state.owed &= !fires;
    // Auto-clear: bits 15:0 by EIAC, higher vectors always (7.3.1.5). Auto-mask: EIAM, with GPIE.EIAME.
    let eiac = reg(map::EIAC);
    state.queues &= !(by_queues & (u64::from(eiac & 0xffff) | !0xffff));
    if gpie & map::GPIE_EIAME != 0 {
        let eiam = u64::from(reg(map::EIAM) & 0xffff)
            | u64::from(reg(map::EIAM_EX))
            | u64::from(reg(map::EIAM_EX + 4)) << 32;
        state.queue_mask &= !(by_queues & eiam);
        if by_other {
            state.other_mask &= !(reg(map::EIAM) & OTHER & state.other);
        }
    }
    if by_other {
        state.owed_other = false;
        state.other &= !(eiac & OTHER);
    }
    // Without MSI-X the card would pull its INTx line, which this function does not have.
    if gpie & map::GPIE_MSIX != 0 { fires } else { 0 }
}
