//! [`Tally`]: what a burst is, in one look at one word of each packet.

use super::buf::PacketBuf;

/// What there is to say of packets together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes of all of them.
    pub bytes: u64,
    /// Buffers beyond the first of each.
    pub extra: u64,
    /// At least one has checksum or segmentation work with it.
    pub has_offload: bool,
    /// At least one is too short for an Ethernet header.
    pub has_runt: bool,
}

const ETHERNET_HEADER: u64 = 14;

impl Tally {
    /// Of packets in order. Nearly all are one buffer each; then this is a loop without branches.
    #[inline(always)]
    pub fn of(packets: &[PacketBuf]) -> Tally {
        let (mut bytes, mut flags, mut short) = (0, 0, 0);
        for packet in packets {
            let len = packet.len() as u64;
            bytes += len;
            flags |= packet.slot_flags();
            // Borrows into the uppermost bit.
            short |= len.wrapping_sub(ETHERNET_HEADER);
        }
        match PacketBuf::is_chain(flags) {
            true => Tally::of_chains(packets),
            false => Tally {
                bytes,
                extra: 0,
                has_offload: PacketBuf::is_work(flags),
                has_runt: short >> (u64::BITS - 1) != 0,
            },
        }
    }

    /// Of packets with so many bytes in all, each in one buffer, without work and no runt.
    #[inline(always)]
    pub fn of_plain(bytes: u64) -> Tally {
        Tally { bytes, ..Tally::default() }
    }

    /// Those packets come to these.
    #[inline(always)]
    pub fn add(&mut self, those: &Tally) {
        self.bytes += those.bytes;
        self.extra += those.extra;
        self.has_offload |= those.has_offload;
        self.has_runt |= those.has_runt;
    }

    #[cold]
    fn of_chains(packets: &[PacketBuf]) -> Tally {
        packets.iter().fold(Tally::default(), |sum, packet| {
            let len = packet.total_len() as u64;
            Tally {
                bytes: sum.bytes + len,
                extra: sum.extra + packet.n_segments() as u64 - 1,
                has_offload: sum.has_offload | packet.has_offload(),
                has_runt: sum.has_runt | (len < ETHERNET_HEADER),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DmaSpace, Offload, Pool, PoolCache, PoolConfig};

    fn packet(cache: &mut PoolCache, len: usize) -> PacketBuf {
        let mut packet = cache.alloc().unwrap();
        packet.set_len(len).unwrap();
        packet
    }

    #[test]
    fn plain_packets_are_summed_and_a_runt_is_noticed() {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 64 }).unwrap();
        let mut cache = pool.cache();
        let plain = [packet(&mut cache, 14), packet(&mut cache, 1500)];
        let wanted = Tally { bytes: 1514, ..Tally::default() };
        assert_eq!(Tally::of(&plain), wanted);
        let mut sum = Tally::of(&plain[..1]);
        sum.add(&Tally::of(&plain[1..]));
        assert_eq!(sum, wanted);
        let with_runt = [packet(&mut cache, 1500), packet(&mut cache, 13)];
        assert_eq!(Tally::of(&with_runt), Tally { bytes: 1513, has_runt: true, ..Tally::default() });
        assert_eq!(Tally::of(&[]), Tally::default());
    }

    #[test]
    fn chains_count_with_all_their_buffers_and_work_is_noticed() {
        let pool = Pool::new(&DmaSpace::new(), PoolConfig { n_buffers: 64 }).unwrap();
        let mut cache = pool.cache();
        let mut chain = packet(&mut cache, 10);
        chain.chain(packet(&mut cache, 4));
        let mut work = packet(&mut cache, 60);
        work.set_offload(Some(Offload::default()));
        assert_eq!(Tally::of(&[chain]), Tally { bytes: 14, extra: 1, ..Tally::default() });
        assert_eq!(Tally::of(&[work]), Tally { bytes: 60, has_offload: true, ..Tally::default() });
    }
}
