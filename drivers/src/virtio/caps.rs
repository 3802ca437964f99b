//! Where a modern virtio device keeps its register blocks: the vendor capabilities of its config
//! space (virtio 1.2, 4.1.4). Pure: 256 bytes in, places out. The list is the device's word, so it is bounded.

/// Common configuration.
const COMMON_CFG: u8 = 1;
/// Doorbells.
const NOTIFY_CFG: u8 = 2;
/// Device configuration.
const DEVICE_CFG: u8 = 4;

const STATUS: usize = 0x06;
const STATUS_CAP_LIST: u8 = 1 << 4;
const CAP_POINTER: usize = 0x34;
const VENDOR_SPECIFIC: u8 = 0x09;
/// Config space behind the header holds this many capabilities at most.
const MAX_CAPS: usize = (256 - 64) / 4;

/// A piece of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// 0 to 5.
    pub bar: u8,
    /// From the start of the BAR.
    pub offset: u32,
    /// In bytes.
    pub len: u32,
}

/// The blocks the driver needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Common configuration.
    pub common: Place,
    /// Doorbells.
    pub notify: Place,
    /// Bytes between two doorbells; 0: all queues share one.
    pub notify_multiplier: u32,
    /// Device configuration.
    pub device: Place,
}

/// Finds the blocks. Of several capabilities of one kind the first counts (virtio 1.2, 4.1.4.1).
pub fn find(config: &[u8; 256]) -> Result<Places, &'static str> {
    if config[STATUS] & STATUS_CAP_LIST == 0 {
        return Err("it has no PCI capabilities");
    }
    let (mut common, mut notify, mut device, mut notify_multiplier) = (None, None, None, 0);
    let mut at = usize::from(config[CAP_POINTER] & !3);
    for _ in 0..MAX_CAPS {
        if at == 0 {
            break;
        }
        let Some(cap) = config.get(at..at + 16).filter(|_| at >= 64) else {
            // A short capability at the very end of config space can't be one of ours.
            at = if at >= 64 { usize::from(config[at + 1] & !3) } else { 0 };
            continue;
        };
        if cap[0] == VENDOR_SPECIFIC && cap[2] >= 16 && cap[4] < 6 {
            let word = |i: usize| u32::from_le_bytes([cap[i], cap[i + 1], cap[i + 2], cap[i + 3]]);
            let place = Place { bar: cap[4], offset: word(8), len: word(12) };
            match cap[3] {
                COMMON_CFG if common.is_none() => common = Some(place),
                DEVICE_CFG if device.is_none() => device = Some(place),
                NOTIFY_CFG if notify.is_none() && cap[2] >= 20 => {
                    let Some(word) = config.get(at + 16..at + 20) else {
                        return Err("its notify capability is cut off");
                    };
                    notify_multiplier = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                    notify = Some(place);
                }
                _ => {}
            }
        }
        at = usize::from(cap[1] & !3);
    }
    if at != 0 {
        return Err("its capability list does not end");
    }
    match (common, notify, device) {
        (Some(common), Some(notify), Some(device)) => {
            Ok(Places { common, notify, notify_multiplier, device })
        }
        (None, ..) => Err("it has no common configuration (a legacy device: set disable-legacy=on)"),
        (_, None, _) => Err("it has no doorbells"),
        (.., None) => Err("it has no device configuration"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cap(config: &mut [u8; 256], at: usize, next: u8, kind: u8, bar: u8, offset: u32) {
        config[at..at + 5].copy_from_slice(&[VENDOR_SPECIFIC, next, 20, kind, bar]);
        config[at + 8..at + 12].copy_from_slice(&offset.to_le_bytes());
        config[at + 12..at + 16].copy_from_slice(&0x1000u32.to_le_bytes());
        config[at + 16..at + 20].copy_from_slice(&4u32.to_le_bytes());
    }

    fn config() -> [u8; 256] {
        let mut config = [0; 256];
        config[STATUS] = STATUS_CAP_LIST;
        config[CAP_POINTER] = 0x40;
        cap(&mut config, 0x40, 0x60, COMMON_CFG, 4, 0);
        cap(&mut config, 0x60, 0x80, NOTIFY_CFG, 4, 0x3000);
        cap(&mut config, 0x80, 0, DEVICE_CFG, 4, 0x2000);
        config
    }

    #[test]
    fn blocks_are_found_in_the_order_of_the_list() {
        let mut config = config();
        let places = find(&config).unwrap();
        assert_eq!((places.notify.offset, places.notify_multiplier), (0x3000, 4));
        assert_eq!(places.device, Place { bar: 4, offset: 0x2000, len: 0x1000 });
        config[0x81] = 0xa0;
        cap(&mut config, 0xa0, 0, DEVICE_CFG, 1, 0);
        assert_eq!(find(&config).unwrap(), places, "the first of a kind counts");
    }

    #[test]
    fn endless_list_is_refused() {
        let mut config = config();
        config[0x81] = 0x40;
        assert_eq!(find(&config), Err("its capability list does not end"));
    }

    #[test]
    fn pointers_into_the_header_or_the_last_bytes_end_the_walk() {
        let mut config = config();
        config[0x81] = 0x10;
        assert!(find(&config).is_ok());
        config[0x81] = 0xfc;
        assert!(find(&config).is_ok());
        config[CAP_POINTER] = 0xfc;
        assert!(find(&config).is_err());
    }

    #[test]
    fn reserved_bar_and_missing_blocks_are_refused() {
        let mut config = config();
        config[0x44] = 6;
        assert!(find(&config).unwrap_err().contains("common configuration"));
        let mut config = self::config();
        config[0x63] = 9;
        assert_eq!(find(&config), Err("it has no doorbells"));
        assert!(find(&[0; 256]).is_err());
    }

    #[test]
    fn any_bytes_are_walked_without_a_panic() {
        let mut state = 1u32;
        for _ in 0..2000 {
            let mut config = [0u8; 256];
            for byte in &mut config {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8;
            }
            config[STATUS] |= STATUS_CAP_LIST;
            let _ = find(&config);
        }
    }
}
