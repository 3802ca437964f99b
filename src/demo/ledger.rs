//! The demo's book-keeping: what was sent, what arrived, and everything that is wrong with it.
//!
//! Pure: the traffic loop tells it what it sent and what each station received. Frames of one flow
//! keep their order all the way, so a number that is skipped is lost and one that comes again is a duplicate.

use serde::Serialize;
use spp_drivers::MacAddr;

use super::frames::{self, Header, Label};

/// Receiver of frames that must not arrive.
const NOBODY: u8 = u8::MAX;

/// One direction between two stations.
#[derive(Debug, Clone, Serialize)]
pub struct Flow {
    /// Name of the sending station.
    pub from: &'static str,
    /// Name of the receiving station.
    pub to: &'static str,
    /// VLAN tag the sender puts on.
    pub vlan_sent: Option<u16>,
    /// VLAN tag the receiver must see.
    pub vlan_expected: Option<u16>,
    /// Frames given to the sender's ring.
    pub sent: u64,
    /// Frames received, right ones only.
    pub received: u64,
    /// Numbers that were skipped, or never came.
    pub lost: u64,
    /// Numbers that came again.
    pub duplicated: u64,
    /// Frames with the wrong tag, or none, or one too many.
    pub wrong_tag: u64,
    #[serde(skip)]
    header: Header,
    #[serde(skip)]
    label: (u8, u8),
    #[serde(skip)]
    next: u64,
}

/// A place where frames start and end.
#[derive(Debug, Clone, Copy)]
pub struct Station {
    /// For people.
    pub name: &'static str,
    /// Its address.
    pub mac: MacAddr,
}

/// All flows, and what belongs to none.
#[derive(Debug, Clone, Serialize)]
pub struct Ledger {
    /// The flows.
    pub flows: Vec<Flow>,
    /// Frames that came to a station they were not for.
    pub misdelivered: u64,
    /// Frames that were altered on the way.
    pub damaged: u64,
    #[serde(skip)]
    stations: Vec<Station>,
}

impl Ledger {
    /// Books for these stations; a flow is (from, to, tag sent, tag expected), stations by index.
    pub fn new(stations: &[Station], flows: &[(usize, usize, Option<u16>, Option<u16>)]) -> Ledger {
        let flow = |&(from, to, sent, expected): &(usize, usize, Option<u16>, Option<u16>)| Flow {
            from: stations[from].name,
            to: stations[to].name,
            vlan_sent: sent,
            vlan_expected: expected,
            sent: 0,
            received: 0,
            lost: 0,
            duplicated: 0,
            wrong_tag: 0,
            header: Header { dst: stations[to].mac, src: stations[from].mac, vlan: sent },
            label: (from as u8, to as u8),
            next: 0,
        };
        Ledger {
            flows: flows.iter().map(flow).collect(),
            misdelivered: 0,
            damaged: 0,
            stations: stations.to_vec(),
        }
    }

    /// Station that sends flow `i`.
    pub fn sender(&self, i: usize) -> usize {
        usize::from(self.flows[i].label.0)
    }

    /// Frames of flow `i` on their way, as far as known.
    pub fn in_flight(&self, i: usize) -> u64 {
        self.flows[i].sent - self.flows[i].next.min(self.flows[i].sent)
    }

    /// Writes the next frame of flow `i`; it counts as sent only with [`sent`](Self::sent).
    pub fn next_frame(&self, i: usize, out: &mut Vec<u8>) {
        let flow = &self.flows[i];
        frames::write(out, &flow.header, Label { from: flow.label.0, to: flow.label.1, seq: flow.sent });
    }

    /// The frame of [`next_frame`](Self::next_frame) went out.
    pub fn sent(&mut self, i: usize) {
        self.flows[i].sent += 1;
    }

    /// Writes a frame from station `from` to the address of station `to` that must not arrive anywhere.
    pub fn stray(&self, from: usize, to: usize, vlan: Option<u16>, out: &mut Vec<u8>) {
        let header = Header { dst: self.stations[to].mac, src: self.stations[from].mac, vlan };
        frames::write(out, &header, Label { from: from as u8, to: NOBODY, seq: 0 });
    }

    /// `station` received `frame`.
    pub fn received(&mut self, station: usize, frame: &[u8]) {
        let Ok((header, label)) = frames::read(frame) else {
            self.damaged += 1;
            return;
        };
        let mine = usize::from(label.to) == station && header.dst == self.stations[station].mac;
        let flow = self.flows.iter_mut().find(|flow| flow.label == (label.from, label.to));
        match flow {
            Some(flow) if mine => flow.arrived(&header, label.seq),
            _ => self.misdelivered += 1,
        }
    }

    /// Closes the books: what has not come by now is lost.
    pub fn close(&mut self) {
        for flow in &mut self.flows {
            flow.lost += flow.sent - flow.next.min(flow.sent);
            flow.next = flow.sent;
        }
    }

    /// Everything that is wrong, in words; empty when all is well. Call after [`close`](Self::close).
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut note = |n: u64, what: &str, of: &str| {
            if n > 0 {
                faults.push(format!("{n} frames {what}{of}"));
            }
        };
        for flow in &self.flows {
            let of = format!(" from {} to {}", flow.from, flow.to);
            note(flow.lost, "lost", &of);
            note(flow.duplicated, "duplicated", &of);
            note(flow.wrong_tag, "with a wrong VLAN tag", &of);
        }
        note(self.misdelivered, "misdelivered", "");
        note(self.damaged, "damaged", "");
        let idle = self.flows.iter().filter(|flow| flow.received == 0);
        faults.extend(idle.map(|flow| format!("nothing arrived from {} at {}", flow.from, flow.to)));
        faults
    }
}

impl Flow {
    fn arrived(&mut self, header: &Header, seq: u64) {
        if seq >= self.sent || seq < self.next {
            self.duplicated += 1;
            return;
        }
        self.lost += seq - self.next;
        self.next = seq + 1;
        if header.vlan == self.vlan_expected && header.src == self.header.src {
            self.received += 1;
        } else {
            self.wrong_tag += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATIONS: [Station; 2] = [
        Station { name: "wire", mac: MacAddr([2, 0, 0, 0, 0, 0]) },
        Station { name: "guest", mac: MacAddr([2, 0, 0, 0, 0, 1]) },
    ];

    /// A ledger whose wire has sent `n` frames with tag 100, and those frames as the guest gets them.
    fn sent(n: usize) -> (Ledger, Vec<Vec<u8>>) {
        let mut ledger = Ledger::new(&STATIONS, &[(0, 1, Some(100), None)]);
        let untagged = Header { dst: STATIONS[1].mac, src: STATIONS[0].mac, vlan: None };
        let frames = (0..n as u64).map(|seq| {
            let mut frame = Vec::new();
            frames::write(&mut frame, &untagged, Label { from: 0, to: 1, seq });
            ledger.sent(0);
            frame
        });
        let frames = frames.collect();
        (ledger, frames)
    }

    fn faults(mut ledger: Ledger) -> Vec<String> {
        ledger.close();
        ledger.faults()
    }

    #[test]
    fn everything_in_order_has_no_fault() {
        let (mut ledger, frames) = sent(5);
        frames.iter().for_each(|frame| ledger.received(1, frame));
        assert_eq!(ledger.in_flight(0), 0);
        assert!(faults(ledger).is_empty());
    }

    #[test]
    fn lost_duplicated_misdelivered_and_altered_frames_are_each_named() {
        let (mut ledger, frames) = sent(4);
        ledger.received(1, &frames[0]);
        ledger.received(1, &frames[2]);
        assert_eq!(faults(ledger), ["2 frames lost from wire to guest"]);

        let (mut ledger, frames) = sent(1);
        ledger.received(1, &frames[0]);
        ledger.received(1, &frames[0]);
        assert_eq!(faults(ledger), ["1 frames duplicated from wire to guest"]);

        let (mut ledger, frames) = sent(2);
        ledger.received(1, &frames[0]);
        ledger.received(0, &frames[1]);
        assert_eq!(faults(ledger), ["1 frames lost from wire to guest", "1 frames misdelivered"]);

        let (mut ledger, mut frames) = sent(2);
        frames[1][40] ^= 1;
        frames.iter().for_each(|frame| ledger.received(1, frame));
        assert_eq!(faults(ledger), ["1 frames lost from wire to guest", "1 frames damaged"]);
    }

    #[test]
    fn stray_that_arrives_is_misdelivered() {
        let (mut ledger, _) = sent(0);
        let mut frame = Vec::new();
        ledger.stray(0, 1, Some(200), &mut frame);
        ledger.received(1, &frame);
        assert_eq!(ledger.misdelivered, 1);
    }

    #[test]
    fn tag_that_should_have_gone_is_a_fault() {
        let (mut ledger, _) = sent(0);
        let mut tagged = Vec::new();
        ledger.next_frame(0, &mut tagged);
        ledger.sent(0);
        ledger.received(1, &tagged);
        let faults = faults(ledger);
        assert!(faults[0].contains("wrong VLAN tag"), "{faults:?}");
    }

    #[test]
    fn number_nobody_sent_is_a_fault_and_silence_is_one_too() {
        let (mut ledger, frames) = sent(3);
        ledger.flows[0].sent = 1;
        ledger.received(1, &frames[0]);
        ledger.received(1, &frames[2]);
        assert_eq!(faults(ledger), ["1 frames duplicated from wire to guest"]);
        let (ledger, _) = sent(0);
        assert_eq!(faults(ledger), ["nothing arrived from wire at guest"]);
    }
}
