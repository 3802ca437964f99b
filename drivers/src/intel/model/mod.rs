//! Parts of models of Intel's gigabit cards: rings as the device walks them, address filters, hash, checksums, PHY,
//! statistics ([`stats`]), queues with advanced descriptors ([`advanced`]). Written from the datasheets, apart from the
//! driver's own formats.

pub mod advanced;
pub mod stats;

/// The registers of one ring.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Base address, low and high.
    pub base: u64,
    /// Bytes.
    pub len_bytes: u32,
    /// Next descriptor of the device.
    pub head: u32,
    /// First descriptor that is not the device's.
    pub tail: u32,
}

impl Ring {
    /// Descriptors in the ring.
    pub fn size(&self) -> u32 {
        self.len_bytes / 16
    }

    /// Descriptors the device has.
    pub fn available(&self) -> u32 {
        if self.size() == 0 { 0 } else { (self.tail + self.size() - self.head) % self.size() }
    }

    /// Where descriptor `ahead` of the head is.
    pub fn at(&self, ahead: u32) -> u64 {
        self.base + u64::from((self.head + ahead) % self.size().max(1)) * 16
    }

    /// The device is through with `n` descriptors.
    pub fn advance(&mut self, n: u32) {
        self.head = (self.head + n) % self.size().max(1);
    }

    /// Register `index` of the ring: base low, base high, length.
    pub fn set_base_low(&mut self, value: u32) {
        self.base = self.base & !0xffff_ffff | u64::from(value & !0xf);
    }

    /// See [`set_base_low`](Self::set_base_low).
    pub fn set_base_high(&mut self, value: u32) {
        self.base = self.base & 0xffff_ffff | u64::from(value) << 32;
    }
}

/// Takes the tag off a frame whose type is `kind`, as VLAN mode does (8254x 9.2.2, 82576 7.4): the tag.
pub fn strip_tag(frame: &mut Vec<u8>, kind: u32) -> Option<u16> {
    let [.., a, b, c, d] = *frame.first_chunk::<16>()?;
    let tagged = u32::from(u16::from_be_bytes([a, b])) == kind & 0xffff && frame.len() >= 18;
    tagged.then(|| {
        frame.drain(12..16);
        u16::from_be_bytes([c, d])
    })
}

/// Inserts a tag behind the addresses.
pub fn insert_tag(frame: &mut Vec<u8>, kind: u16, tag: u16) {
    let bytes = kind.to_be_bytes().into_iter().chain(tag.to_be_bytes());
    frame.splice(12..12, bytes);
}

/// The ones' complement sum that ends up in a packet, over `bytes`.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What a card finds of the checksums of a frame.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// The IPv4 header was looked at: whether it is right.
    pub ip: Option<bool>,
    /// The transport layer was looked at: its protocol, and whether it is right.
    pub l4: Option<(u8, bool)>,
}

/// Checks what RXCSUM asks for (bit 8: IP, bit 9: TCP and UDP), over IPv4 without options.
pub fn checks(frame: &[u8], rxcsum: u32) -> Checks {
    if frame.len() < 34 || frame[12..15] != [8, 0, 0x45] || rxcsum & 1 << 8 == 0 {
        return Checks::default();
    }
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let ip = Some(internet_checksum(&frame[14..34]) == 0);
    let (protocol, segment) = (frame[23], frame.get(34..14 + total));
    let is_fragment = frame[20] & 0x3f != 0 || frame[21] != 0;
    let Some(segment) =
        segment.filter(|_| rxcsum & 1 << 9 != 0 && matches!(protocol, 6 | 17) && !is_fragment)
    else {
        return Checks { ip, l4: None };
    };
    let len = (segment.len() as u16).to_be_bytes();
    let pseudo = [&frame[26..34], &[0, protocol], &len, segment].concat();
    Checks { ip, l4: Some((protocol, internet_checksum(&pseudo) == 0)) }
}

/// The filters of RCTL and of the receive addresses, each as (low, high) (8254x 13.4.22, 82576 7.1.2): broadcast bit 15,
/// multicast promiscuous bit 4, unicast promiscuous bit 3, longer than 1522 bytes with FCS bit 5.
pub fn admits(frame: &[u8], rctl: u32, addresses: impl IntoIterator<Item = (u32, u32)>) -> bool {
    if frame.len() < 14 || (frame.len() > 1518 && rctl & 1 << 5 == 0) {
        return false;
    }
    match frame[..6] {
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => rctl & 1 << 15 != 0,
        [first, ..] if first & 1 == 1 => rctl & 1 << 4 != 0,
        _ if rctl & 1 << 3 != 0 => true,
        _ => addresses.into_iter().any(|(low, high)| {
            let address = [low.to_le_bytes(), high.to_le_bytes()].concat();
            high >> 31 == 1 && address[..6] == frame[..6]
        }),
    }
}

/// The hash over both IPv4 addresses with the key of RSSRK (82574 7.1.11, 82576 7.1.2.8); `None` without IPv4.
pub fn hash(frame: &[u8], key: impl Iterator<Item = u32>) -> Option<u32> {
    if frame.len() < 34 || frame[12..14] != [8, 0] {
        return None;
    }
    let key: Vec<u8> = key.flat_map(u32::to_le_bytes).collect();
    let bit = |n: usize| key[n / 8] >> (7 - n % 8) & 1;
    let window = |at: usize| (at..at + 32).fold(0u32, |w, n| w << 1 | u32::from(bit(n)));
    let mut hash = 0;
    for (index, byte) in frame[26..34].iter().enumerate() {
        (0..8).filter(|n| byte >> (7 - n) & 1 == 1).for_each(|n| hash ^= window(8 * index + n));
    }
    Some(hash)
}

/// A PHY behind MDIC, with its control register alone.
pub struct Phy {
    control: u16,
}

impl Default for Phy {
    fn default() -> Self {
        Phy { control: 0x1000 }
    }
}

impl Phy {
    /// Switches it off.
    pub fn power_down(&mut self) {
        self.control |= 1 << 11;
    }

    /// Whether it has a link when it has a cable.
    pub fn is_on(&self) -> bool {
        self.control & 1 << 11 == 0
    }

    /// A write of MDIC: what it reads as then.
    pub fn access(&mut self, command: u32) -> u32 {
        let control = command >> 16 & 0x1f == 0;
        match command >> 26 & 3 {
            1 if control => self.control = command as u16 & !(1 << 9),
            2 if control => return command & !0xffff | u32::from(self.control) | 1 << 28,
            _ => {}
        }
        command | 1 << 28
    }
}
