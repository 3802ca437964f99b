//! What the model does with buffers: frames out, frames in, commands.

use super::queue::Chain;
use super::{Lie, N_PAIRS, Shown, VirtioModel};
use crate::mac::MacAddr;
use crate::nic::model::Fault;
use crate::virtio::desc::NetHdr;
use crate::virtio::regs::{feature, status};

/// Unicast addresses the model takes.
const TABLE_ENTRIES: usize = 64;

impl VirtioModel {
    /// Sends what the driver has posted, and receives what waits on the wire, as far as buffers go.
    pub(super) fn work(&mut self) {
        if !self.is_live() {
            return;
        }
        self.queues.iter_mut().for_each(|queue| queue.show_late(&self.card));
        for pair in 0..usize::from(self.asked.n_pairs) {
            self.send(2 * pair + 1);
        }
        while let Some(frame) = self.card.wire.to_nic.pop_front() {
            if self.lets_in(&frame) && !self.receive(&frame) {
                self.card.wire.to_nic.push_front(frame);
                return;
            }
        }
    }

    fn send(&mut self, queue: usize) {
        let mut batch: Vec<Chain> = Vec::new();
        while let Some(chain) = self.queues[queue].take(&self.card) {
            let mut bytes = chain.read(&self.card);
            self.tx_headers.extend(NetHdr::parse(&bytes));
            self.card.wire.from_nic.push(bytes.split_off(NetHdr::BYTES.min(bytes.len())));
            if self.batches && self.has(feature::IN_ORDER) {
                batch.push(chain);
                continue;
            }
            let shown = self.next_shown();
            self.queues[queue].complete(&self.card, &chain, 0, shown);
        }
        if !batch.is_empty() {
            let shown = self.next_shown();
            self.queues[queue].complete_all(&self.card, &batch, 0, shown);
        }
    }

    /// Address filters (5.1.6.5.1); all are open before the driver has said anything.
    fn lets_in(&self, frame: &[u8]) -> bool {
        let Some(dst) = frame.first_chunk().map(|dst| MacAddr(*dst)) else { return true };
        let [promiscuous, all_multicast] = self.asked.receive_modes;
        match () {
            () if promiscuous != Some(false) || dst == MacAddr::BROADCAST => true,
            () if dst.is_group() => all_multicast != Some(false),
            () => dst.0 == self.config[..6] || self.asked.addresses.contains(&dst),
        }
    }

    /// Any hash will do, over where IPv4 has its addresses and ports.
    fn queue_of(&self, frame: &[u8]) -> usize {
        let fields = frame.iter().skip(26).take(12);
        let hash = fields.fold(0usize, |hash, byte| (hash * 31 + usize::from(*byte)) % 65_521);
        let pair = match self.asked.table.len() {
            0 => hash % usize::from(self.asked.n_pairs),
            n => usize::from(self.asked.table[hash % n]),
        };
        2 * pair
    }

    /// False: it waits for buffers.
    fn receive(&mut self, frame: &[u8]) -> bool {
        let queue = self.queue_of(frame);
        let mergeable = self.has(feature::MRG_RXBUF);
        let (mut chains, mut room) = (Vec::<Chain>::new(), 0);
        let needed = NetHdr::BYTES + frame.len();
        while room < needed && (mergeable || chains.is_empty()) {
            let Some(chain) = self.queues[queue].take(&self.card) else { break };
            room += chain.room();
            chains.push(chain);
        }
        if room < needed {
            if let Some(first) = chains.first() {
                self.queues[queue].untake(first);
            }
            return !mergeable && !chains.is_empty(); // too long for one buffer: the device drops it
        }
        let shown = self.next_shown();
        let num_buffers = match shown.lie {
            Some(Lie::NumBuffers(lie)) => lie,
            _ => chains.len() as u16,
        };
        let header = NetHdr { num_buffers, ..self.rx_headers.pop_front().unwrap_or_default() };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(frame);
        self.fill(queue, &chains, &bytes, shown);
        true
    }

    fn fill(&mut self, queue: usize, chains: &[Chain], bytes: &[u8], shown: Shown) {
        let (mut rest, mut len) = (bytes, 0);
        // In order, one completion may stand for all, since all but the last are full (2.7.14).
        let one_for_all = self.batches && self.has(feature::IN_ORDER);
        for chain in chains {
            let (now, later) = rest.split_at(rest.len().min(chain.room()));
            len = chain.write(&self.card, now);
            if !one_for_all {
                self.queues[queue].complete(&self.card, chain, len, shown);
            }
            rest = later;
        }
        if one_for_all {
            self.queues[queue].complete_all(&self.card, chains, len, shown);
        }
    }

    /// Behind all the others the device has, once they can be used (5.1.2).
    pub(super) fn control_queue(&self) -> usize {
        let max_pairs = usize::from(u16::from_le_bytes([self.config[8], self.config[9]]));
        if self.has(feature::MQ | feature::RSS) { 2 * max_pairs } else { 2 }
    }

    pub(super) fn serve_control(&mut self) {
        let queue = self.control_queue();
        while let Some(chain) = self.queues[queue].take(&self.card) {
            let command = chain.read(&self.card);
            let refused = matches!((self.lie, &command[..]),
                (Some(Lie::RefusesCommand(class, code)), [c, n, ..]) if (class, code) == (*c, *n));
            let done = !refused && self.status & status::DRIVER_OK != 0 && self.carry_out(&command).is_some();
            let len = chain.write(&self.card, &[u8::from(!done)]);
            if self.lie != Some(Lie::NoAnswer) && self.card.fault != Some(Fault::Hang) {
                self.queues[queue].complete(&self.card, &chain, len, Shown::default());
            }
        }
    }

    /// `None`: it is no command the model knows and that the driver may give.
    fn carry_out(&mut self, command: &[u8]) -> Option<()> {
        let (head, body) = command.split_first_chunk::<2>()?;
        match (head, body) {
            ([0, mode @ (0 | 1)], [on @ (0 | 1)]) if self.has(feature::CTRL_RX) => {
                self.asked.receive_modes[usize::from(*mode)] = Some(*on == 1);
            }
            ([1, 0], table) if self.has(feature::CTRL_RX) => {
                let (unicast, rest) = addresses(table)?;
                let (_, rest) = addresses(rest)?;
                if unicast.len() > TABLE_ENTRIES || !rest.is_empty() {
                    return None;
                }
                self.asked.addresses = unicast;
            }
            ([4, 0], [low, high]) if self.has(feature::MQ) => {
                self.set_pairs(u16::from_le_bytes([*low, *high]))?;
                self.asked.table.clear();
            }
            ([4, 1], config) if self.has(feature::RSS) => self.configure_rss(config)?,
            _ => return None,
        }
        Some(())
    }

    fn set_pairs(&mut self, n: u16) -> Option<()> {
        let all_there =
            (1..=N_PAIRS).contains(&n) && self.queues[..2 * usize::from(n)].iter().all(|queue| queue.enabled);
        all_there.then(|| self.asked.n_pairs = n)
    }

    /// 5.1.6.5.7.
    fn configure_rss(&mut self, config: &[u8]) -> Option<()> {
        let (types, rest) = config.split_first_chunk::<4>()?;
        let (mask, rest) = words(rest, 1)?;
        let (unclassified, rest) = words(rest, 1)?;
        let n_entries = usize::from(mask[0]) + 1;
        let (table, rest) = words(rest, n_entries)?;
        let (max_tx, rest) = words(rest, 1)?;
        let (key_bytes, key) = rest.split_first()?;
        let most = usize::from(u16::from_le_bytes([self.config[18], self.config[19]]));
        let sane = n_entries.is_power_of_two()
            && n_entries <= most
            && u32::from_le_bytes(*types) & !0x3f == 0
            && key.len() == usize::from(*key_bytes)
            && key.len() <= 40
            && table.iter().chain(&unclassified).all(|pair| *pair < max_tx[0]);
        if !sane {
            return None;
        }
        self.set_pairs(max_tx[0])?;
        (self.asked.table, self.asked.key) = (table, key.to_vec());
        Some(())
    }
}

/// A counted list of addresses, and what is behind it.
fn addresses(bytes: &[u8]) -> Option<(Vec<MacAddr>, &[u8])> {
    let (n, rest) = bytes.split_first_chunk::<4>()?;
    let n_bytes = 6 * usize::try_from(u32::from_le_bytes(*n)).ok()?;
    let (table, rest) = rest.split_at_checked(n_bytes)?;
    Some((table.as_chunks::<6>().0.iter().map(|mac| MacAddr(*mac)).collect(), rest))
}

fn words(bytes: &[u8], n: usize) -> Option<(Vec<u16>, &[u8])> {
    let (these, rest) = bytes.split_at_checked(2 * n)?;
    Some((these.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect(), rest))
}
