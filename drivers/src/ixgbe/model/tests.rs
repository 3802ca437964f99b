//! The model by its registers alone, without any driver: what a driver would see.

use std::sync::Mutex;

use super::map::*;
use super::*;

/// 64 KiB of memory at bus address 0.
struct Ram(Mutex<Vec<u8>>);

impl Memory for Ram {
    fn read(&self, iova: u64, into: &mut [u8]) -> bool {
        let ram = self.0.lock().unwrap();
        let from = ram.get(iova as usize..iova as usize + into.len());
        from.map(|from| into.copy_from_slice(from)).is_some()
    }
    fn write(&self, iova: u64, bytes: &[u8]) -> bool {
        let mut ram = self.0.lock().unwrap();
        let to = ram.get_mut(iova as usize..iova as usize + bytes.len());
        to.map(|to| to.copy_from_slice(bytes)).is_some()
    }
    fn write_last(&self, iova: u64, word: u64) -> bool {
        self.write(iova, &word.to_le_bytes())
    }
}

impl Ram {
    fn words(&self, at: u64) -> [u32; 4] {
        let mut bytes = [0; 16];
        assert!(self.read(at, &mut bytes));
        std::array::from_fn(|i| u32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap()))
    }
    fn put(&self, at: u64, words: [u32; 4]) {
        assert!(words.iter().enumerate().all(|(i, word)| self.write(at + 4 * i as u64, &word.to_le_bytes())));
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const RX_RING: u64 = 0x1000;
const TX_RING: u64 = 0x2000;

/// A card with one queue each way of eight descriptors, receive buffers at 0x4000 and on.
fn running(kind: u32) -> (Model, Ram) {
    let ram = Ram(Mutex::new(vec![0; 0x1_0000]));
    let mut model = Model::new(Card::of_id(0x10f7, MAC));
    model.set_bus_master(true);
    for i in 0..8 {
        ram.put(RX_RING + 16 * i, [0x4000 + 0x800 * i as u32, 0, 0, 0]);
    }
    for (offset, value) in [
        (FCTRL, FCTRL_BAM),
        (HLREG0, HLREG0_RXCRCSTRP | HLREG0_TXPADEN | HLREG0_JUMBOEN),
        (MAXFRS, 9018 << 16),
        (RDRXCTL, RDRXCTL_CRCSTRIP),
        (0x1000, RX_RING as u32),
        (0x1008, 128),
        (0x1014, 1 | kind << 25),
        (0x1028, DCTL_ENABLE),
        (0x1018, 7),
        (RXCTRL, 1),
        (0x6000, TX_RING as u32),
        (0x6008, 128),
        (DMATXCTL, 0x8100_0001),
        (0x6028, DCTL_ENABLE),
    ] {
        model.write(offset, value);
    }
    (model, ram)
}

fn frame(len: usize) -> Vec<u8> {
    let mut bytes = [&MAC[..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5]].concat();
    bytes.extend((14..len).map(|i| i as u8));
    bytes
}

#[test]
fn eeprom_is_read_word_by_word_and_sums_up() {
    let mut model = Model::new(Card::of_id(0x10fb, MAC));
    let sum = (0..0x40).fold(0u16, |sum, at| {
        model.write(EERD, at << 2 | 1);
        let value = model.read(EERD);
        assert_eq!(value & 2, 2, "done");
        sum.wrapping_add((value >> 16) as u16)
    });
    assert_eq!(sum, 0xbaba);
}

#[test]
fn semaphore_is_taken_by_the_read_that_finds_it_clear() {
    let mut model = Model::new(Card::of_id(0x10fb, MAC));
    assert_eq!(model.read(SWSM) & 1, 0);
    assert_eq!(model.read(SWSM) & 1, 1);
    model.write(SWSM, 3);
    assert_eq!(model.read(SWSM) & 3, 3);
    model.write(SWSM, 0);
    assert_eq!(model.read(SWSM) & 1, 0);
}

#[test]
fn frame_over_several_buffers_is_written_back_in_order() {
    let (mut model, ram) = running(1);
    model.inject(&frame(2500));
    model.step(&ram);
    let back: Vec<_> = (0..3).map(|i| ram.words(RX_RING + 16 * i)).collect();
    assert_eq!(back.iter().map(|words| words[2] & 3).collect::<Vec<_>>(), [1, 1, 3]);
    assert_eq!(back.iter().map(|words| words[3] & 0xffff).collect::<Vec<_>>(), [1024, 1024, 452]);
    assert_eq!(model.read(0x1010), 3, "head");
    assert_eq!((model.read(0x4074), model.read(0x4074)), (1, 0), "GPRC clears when read");
    assert_eq!((model.read(0x4088), model.read(0x408c), model.read(0x4088)), (2504, 0, 0));
    assert!(model.violations().is_empty(), "{:?}", model.violations());
}

#[test]
fn tag_is_stripped_only_when_the_queue_says_so() {
    for (strip, len) in [(0, 68), (RXDCTL_VME, 64)] {
        let (mut model, ram) = running(1);
        model.write(0x1028, DCTL_ENABLE | strip);
        let mut tagged = frame(64);
        tagged.splice(12..12, [0x81, 0, 0x20, 0x64]);
        model.inject(&tagged);
        model.step(&ram);
        let [_, _, status, rest] = ram.words(RX_RING);
        let tag = if strip != 0 { 0x2064 } else { 0 };
        assert_eq!((rest & 0xffff, rest >> 16, status >> 3 & 1), (len, tag, u32::from(strip != 0)));
    }
}

#[test]
fn legacy_descriptors_carry_length_and_status() {
    let (mut model, ram) = running(0);
    model.inject(&frame(64));
    model.step(&ram);
    let [_, _, length, status] = ram.words(RX_RING);
    assert_eq!((length & 0xffff, status & 3), (64, 3));
    // Sending: EOP, IFCS, RS, tag in the descriptor.
    assert!(ram.write(0x9000, &frame(64)));
    ram.put(TX_RING, [0x9000, 0, 64 | 0x4b << 24, 0x0064 << 16]);
    model.write(0x6018, 1);
    model.step(&ram);
    let sent = model.take_sent();
    assert_eq!((sent.len(), sent[0].len(), &sent[0][12..16]), (1, 68, &[0x81, 0, 0, 0x64][..]));
    assert_eq!(ram.words(TX_RING)[3] & 1, 1, "done");
}

#[test]
fn frames_wait_for_descriptors_until_the_buffer_is_full() {
    let (mut model, ram) = running(1);
    (0..9).for_each(|_| model.inject(&frame(64)));
    model.step(&ram);
    assert_eq!(model.waiting(), 2, "seven descriptors are posted");
    model.write(0x1018, 1);
    model.step(&ram);
    assert_eq!(model.waiting(), 0);
    (0..200).for_each(|_| model.inject(&frame(9000)));
    model.step(&ram);
    assert!(model.read(0x3fa0) > 100, "MPC: half a megabyte holds less than 60");
}

#[test]
fn filters_let_in_what_they_hold() {
    let (mut model, ram) = running(1);
    let to = |address: [u8; 6]| [&address[..], &frame(64)[6..]].concat();
    for (address, setting, passes) in [
        (MAC, (FCTRL, FCTRL_BAM), true),
        ([2, 0, 0, 0, 0, 6], (FCTRL, FCTRL_BAM), false),
        ([2, 0, 0, 0, 0, 6], (FCTRL, FCTRL_UPE), true),
        ([0xff; 6], (FCTRL, 0), false),
        ([0xff; 6], (FCTRL, FCTRL_BAM), true),
        ([1, 0, 0x5e, 0, 0, 1], (FCTRL, FCTRL_BAM), false),
        ([1, 0, 0x5e, 0, 0, 1], (FCTRL, FCTRL_MPE), true),
    ] {
        model.write(setting.0, setting.1);
        model.read(0x4074);
        model.inject(&to(address));
        model.step(&ram);
        assert_eq!(model.read(0x4074) == 1, passes, "{address:x?} with {:#x}", setting.1);
        let tail = (model.read(0x1010) + 7) % 8;
        model.write(0x1018, tail);
    }
}

#[test]
fn causes_become_messages_once_and_clear_as_configured() {
    let (mut model, ram) = running(1);
    for (offset, value) in
        [(GPIE, GPIE_MSIX), (IVAR, 0x83), (EIAC, 8), (EIMS, 8 | EICR_LSC), (IVAR_MISC, 0x8500)]
    {
        model.write(offset, value);
    }
    model.read(EICR);
    model.inject(&frame(64));
    model.step(&ram);
    assert_eq!(model.take_interrupts(), 1 << 3);
    assert_eq!(model.take_interrupts(), 0);
    assert_eq!(model.read(EICR), 0, "EIAC has cleared it");
    model.set_cable(false);
    assert_eq!(model.take_interrupts(), 1 << 5);
    assert_eq!(model.read(EICS), EICR_LSC, "this read clears nothing");
    assert_eq!((model.read(EICR), model.read(EICS)), (EICR_LSC, 0));
    assert_eq!(model.read(LINKS), 0);
    model.write(EIMC, EICR_LSC);
    model.set_cable(true);
    assert_eq!(model.take_interrupts(), 0, "masked");
    model.write(EIMS, EICR_LSC);
    assert_eq!(model.take_interrupts(), 1 << 5, "unmasked with the cause still there");
}

#[test]
fn moderated_vector_fires_again_only_after_its_interval() {
    let (mut model, _) = running(1);
    for (offset, value) in [(GPIE, GPIE_MSIX), (0x820, 50 << 3), (EIMS, 1), (EIAC, 1)] {
        model.write(offset, value);
    }
    model.write(EICS, 1);
    assert_eq!(model.take_interrupts(), 1);
    model.write(EICS, 1);
    model.advance_us(99);
    assert_eq!(model.take_interrupts(), 0);
    model.advance_us(1);
    assert_eq!(model.take_interrupts(), 1, "50 units of 2 us");
}

#[test]
fn forbidden_things_are_noted() {
    let (mut model, ram) = running(1);
    model.write(0x1000, 0x40);
    model.write(0x1018, 8);
    ram.put(TX_RING, [0x9000, 0, 64 | 0x2b << 24 | 3 << 20, 60 << 14]);
    model.write(0x6018, 1);
    model.step(&ram);
    let all = model.violations().join("; ");
    for word in ["128-byte boundary", "tail of rx queue 0 is 8", "PAYLEN 60 of 64"] {
        assert!(all.contains(word), "{word}: {all}");
    }
}

#[test]
fn nothing_moves_without_the_bus() {
    let (mut model, ram) = running(1);
    model.set_bus_master(false);
    model.inject(&frame(64));
    model.step(&ram);
    assert_eq!((model.waiting(), ram.words(RX_RING)[2]), (1, 0));
}
