//! What a broker may send to somebody who only publishes: everything else ends the connection.
//!
//! The client library behind this parses whatever arrives, tables within tables by recursion and
//! without a bound, in buffers as large as the broker wishes. Here frames are bounded, few and of the
//! kinds a publisher sees, before the library sees them. Pure; called by the relay's task.

/// Longest frame, in bytes with header and end. Negotiated with the broker; a report has a few hundred.
pub const FRAME_MAX_BYTES: usize = 16 << 10;

/// Bytes in front of a frame's payload: kind, channel, length.
pub const HEADER_BYTES: usize = 7;

/// The byte behind every payload.
pub const FRAME_END: u8 = 0xce;

/// Deepest table in a table. RabbitMQ's have 2.
const DEPTH_MAX: usize = 4;

/// Frames taken between two reports. An honest broker sends a few, and one keep-alive every 5 s.
const FRAMES_MAX: u32 = 1000;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const CONTENT_BODY: u8 = 3;
const KEEP_ALIVE: u8 = 8;

/// Methods a broker sends to a publisher, as (class, method). AMQP 0-9-1, 1.4 and RabbitMQ's extensions.
const METHODS: [(u16, u16); 17] = [
    (10, 10),  // connection.start
    (10, 30),  // connection.tune
    (10, 41),  // connection.open-ok
    (10, 50),  // connection.close
    (10, 51),  // connection.close-ok
    (10, 60),  // connection.blocked
    (10, 61),  // connection.unblocked
    (20, 11),  // channel.open-ok
    (20, 20),  // channel.flow
    (20, 21),  // channel.flow-ok
    (20, 40),  // channel.close
    (20, 41),  // channel.close-ok
    (40, 11),  // exchange.declare-ok
    (60, 50),  // basic.return
    (60, 80),  // basic.ack
    (60, 120), // basic.nack
    (85, 11),  // confirm.select-ok
];

/// Why a connection was ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a frame.
    #[error("that is not AMQP 0-9-1: is it the broker's port, and is TLS as it should be?")]
    NotAmqp,
    /// Longer than agreed.
    #[error("the broker sent a frame of {0} bytes")]
    TooLong(usize),
    /// Nothing for a publisher.
    #[error("the broker sent what no publisher gets: {0}")]
    Unasked(String),
    /// A table that goes too deep, or not to its end.
    #[error("the broker sent a malformed table")]
    Table,
    /// Too many frames.
    #[error("the broker floods us with frames")]
    Flood,
}

/// Counts and checks the frames of one connection.
#[derive(Debug, Default)]
pub struct Screen {
    n_frames: u32,
}

impl Screen {
    /// A report was sent: the count starts over.
    pub fn restart(&mut self) {
        self.n_frames = 0;
    }

    /// Reads a frame's header. How many bytes follow, the end included.
    pub fn header(&mut self, header: &[u8; HEADER_BYTES]) -> Result<usize, Refused> {
        self.n_frames += 1;
        if self.n_frames > FRAMES_MAX {
            return Err(Refused::Flood);
        }
        if !matches!(header[0], METHOD | CONTENT_HEADER | CONTENT_BODY | KEEP_ALIVE) {
            return Err(Refused::NotAmqp);
        }
        let len = u32::from_be_bytes([header[3], header[4], header[5], header[6]]) as usize;
        let total = len.saturating_add(HEADER_BYTES + 1);
        if total > FRAME_MAX_BYTES { Err(Refused::TooLong(total)) } else { Ok(len + 1) }
    }

    /// Checks what follows the header, the end included.
    pub fn rest(&self, kind: u8, rest: &[u8]) -> Result<(), Refused> {
        let Some((&FRAME_END, payload)) = rest.split_last() else { return Err(Refused::NotAmqp) };
        match kind {
            METHOD => method(payload),
            CONTENT_HEADER => content_header(payload),
            _ => Ok(()),
        }
    }
}

fn method(payload: &[u8]) -> Result<(), Refused> {
    let mut fields = Fields(payload);
    let (Some(class), Some(method)) = (fields.u16(), fields.u16()) else { return Err(Refused::NotAmqp) };
    if !METHODS.contains(&(class, method)) {
        return Err(Refused::Unasked(format!("method {class}.{method}")));
    }
    if (class, method) == (10, 10) {
        // Version, then the one table a publisher gets.
        fields.u16().ok_or(Refused::Table)?;
        let len = fields.u32().ok_or(Refused::Table)?;
        let table = fields.take(len as usize).ok_or(Refused::Table)?;
        return values(table, true, 1).ok_or(Refused::Table);
    }
    Ok(())
}

/// Of a report nobody wanted, sent back: no headers table, which we send none of.
fn content_header(payload: &[u8]) -> Result<(), Refused> {
    const HEADERS: u16 = 1 << 13;
    const MORE_FLAGS: u16 = 1;
    let mut fields = Fields(payload);
    let flags = fields.take(12).and_then(|_| fields.u16()).ok_or(Refused::NotAmqp)?;
    if flags & (HEADERS | MORE_FLAGS) != 0 {
        return Err(Refused::Unasked("a message with headers".into()));
    }
    Ok(())
}

/// Goes through the entries of a table (`named`) or an array. None: malformed or too deep. The lengths
/// are those RabbitMQ uses, which differ from the standard's for `s` and `U`.
fn values(bytes: &[u8], named: bool, depth: usize) -> Option<()> {
    if depth > DEPTH_MAX {
        return None;
    }
    let mut fields = Fields(bytes);
    while !fields.0.is_empty() {
        if named {
            let len = fields.u8()?;
            fields.take(len.into())?;
        }
        let len = match fields.u8()? {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'u' | b'U' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' => fields.u32()? as usize,
            kind @ (b'A' | b'F') => {
                let len = fields.u32()? as usize;
                values(fields.take(len)?, kind == b'F', depth + 1)?;
                0
            }
            _ => return None,
        };
        fields.take(len)?;
    }
    Some(())
}

/// Big-endian fields from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// connection.start with this table.
    fn start(table: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 10, 0, 10, 0, 9];
        payload.extend((table.len() as u32).to_be_bytes());
        payload.extend(table);
        payload.extend(b"\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US\xce");
        payload
    }

    /// `depth` arrays in each other.
    fn nested(depth: usize) -> Vec<u8> {
        let mut value = vec![b'V'];
        for _ in 0..depth {
            let mut outer = vec![b'A'];
            outer.extend((value.len() as u32).to_be_bytes());
            outer.extend(value);
            value = outer;
        }
        [b"\x01n".to_vec(), value].concat()
    }

    #[test]
    fn tables_as_rabbitmq_sends_them_pass_and_deep_ones_do_not() {
        let screen = Screen::default();
        let capabilities = b"\x0ccapabilitiesF\x00\x00\x00\x15\x12publisher_confirmst\x01";
        let table = [&capabilities[..], b"\x07productS\x00\x00\x00\x08RabbitMQ"].concat();
        assert_eq!(screen.rest(METHOD, &start(&table)), Ok(()));
        assert_eq!(screen.rest(METHOD, &start(&nested(3))), Ok(()));
        for depth in [4, 5, 2000] {
            assert_eq!(screen.rest(METHOD, &start(&nested(depth))), Err(Refused::Table), "{depth}");
        }
        for cut in 0..table.len() {
            let entry_ends = [0, capabilities.len()].contains(&cut);
            assert_eq!(screen.rest(METHOD, &start(&table[..cut])).is_ok(), entry_ends, "{cut}");
        }
    }

    #[test]
    fn only_what_a_publisher_gets_passes() {
        let screen = Screen::default();
        let method = |class: u8, method: u8| screen.rest(METHOD, &[0, class, 0, method, FRAME_END]);
        assert_eq!(method(60, 80), Ok(()));
        assert_eq!(method(60, 60), Err(Refused::Unasked("method 60.60".into())));
        assert_eq!(screen.rest(METHOD, &[0, 60, FRAME_END]), Err(Refused::NotAmqp));
        assert_eq!(screen.rest(METHOD, &[0, 60, 0, 80, 0]), Err(Refused::NotAmqp));
        let header = |flags: u16| {
            let payload = [&[0; 12][..], &flags.to_be_bytes(), &[FRAME_END]].concat();
            screen.rest(CONTENT_HEADER, &payload)
        };
        assert_eq!(header(0x8000), Ok(()));
        assert!(header(0x2000).is_err() && header(0x8001).is_err());
        assert_eq!(screen.rest(KEEP_ALIVE, &[FRAME_END]), Ok(()));
    }

    #[test]
    fn frames_are_bounded_in_length_and_number() {
        let mut screen = Screen::default();
        let header = |kind: u8, len: u32| {
            let len = len.to_be_bytes();
            [kind, 0, 0, len[0], len[1], len[2], len[3]]
        };
        assert_eq!(screen.header(&header(METHOD, 100)), Ok(101));
        assert_eq!(screen.header(&header(METHOD, u32::MAX)), Err(Refused::TooLong(u32::MAX as usize + 8)));
        assert_eq!(
            screen.header(&header(METHOD, (FRAME_MAX_BYTES - 7) as u32)),
            Err(Refused::TooLong(FRAME_MAX_BYTES + 1))
        );
        // "HTTP/1.1", and the answer of a broker that speaks another version.
        assert_eq!(screen.header(b"HTTP/1."), Err(Refused::NotAmqp));
        assert_eq!(screen.header(b"AMQP\x01\x01\x00"), Err(Refused::NotAmqp));
        screen.restart();
        let flood =
            (0..2000).map(|_| screen.header(&header(KEEP_ALIVE, 0))).position(|result| result.is_err());
        assert_eq!(flood, Some(1000));
    }
}
