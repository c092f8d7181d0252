//! Lets callers in that name the socket's path as HTTP/2's `:authority`.
//!
//! gRPC's C core (so Python, C++, Ruby) and Java do so on Unix sockets. The server below refuses
//! such a request, since a path is no host name. Nobody reads the value, so each is replaced by
//! one letter before the server sees it. The header block need not be understood for that, only
//! walked: every other field passes as it came. A value that becomes shorter keeps the two ends'
//! header tables in step, because indices count from the newest entry.

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// The largest frame that the server allows: it announces no other size than HTTP/2's default.
const MAX_FRAME: usize = 16_384;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in HPACK's static table.
const AUTHORITY_INDEX: usize = 1;
const AUTHORITY_NAME: &[u8] = b":authority";
/// The value's new encoding: length one, no Huffman code.
const REPLACEMENT: &[u8] = &[1, b'a'];

/// What a caller sends is no HTTP/2 that the server would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Rewrites what one caller sends.
#[derive(Default)]
pub(super) struct Rewriter {
    preface_seen: bool,
    pending: Vec<u8>,
    /// A header block that goes on in the next frame, with its frame's header.
    open: Option<(Frame, Vec<u8>)>,
}

#[derive(Clone, Copy)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

impl Rewriter {
    /// Takes the next bytes; returns what to pass on. At most one frame is held back.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        self.pending.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(self.pending.len());
        if !self.preface_seen {
            if self.pending.len() < PREFACE {
                return Ok(out);
            }
            out.extend(self.pending.drain(..PREFACE));
            self.preface_seen = true;
        }
        let mut taken = 0;
        while let Some((header, rest)) = self.pending[taken..].split_at_checked(FRAME_HEADER) {
            let length =
                usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            if length > MAX_FRAME {
                return Err(Malformed);
            }
            let Some(payload) = rest.get(..length) else {
                break;
            };
            let frame = Frame {
                kind: header[3],
                flags: header[4],
                stream: [header[5], header[6], header[7], header[8]],
            };
            take_frame(&mut self.open, frame, payload, &mut out)?;
            taken += FRAME_HEADER + length;
        }
        self.pending.drain(..taken);
        Ok(out)
    }
}

fn take_frame(
    open: &mut Option<(Frame, Vec<u8>)>,
    frame: Frame,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let (first, block) = match (frame.kind, open.take()) {
        (HEADERS, None) => (frame, unpadded(frame, payload)?.to_vec()),
        (CONTINUATION, Some((first, mut block))) if block.len() + payload.len() <= MAX_FRAME => {
            block.extend_from_slice(payload);
            (first, block)
        }
        (HEADERS | CONTINUATION, _) | (_, Some(_)) => return Err(Malformed),
        (_, None) => return write_frame(frame, payload, out),
    };
    if frame.flags & END_HEADERS == 0 {
        *open = Some((first, block));
        return Ok(());
    }
    let priority = if first.flags & PRIORITY == 0 { 0 } else { 5 };
    let (priority, fields) = block.split_at_checked(priority).ok_or(Malformed)?;
    let block = [priority, &rewrite(fields)?].concat();
    let flags = (first.flags | END_HEADERS) & !PADDED;
    write_frame(Frame { flags, ..first }, &block, out)
}

fn unpadded(frame: Frame, payload: &[u8]) -> Result<&[u8], Malformed> {
    if frame.flags & PADDED == 0 {
        return Ok(payload);
    }
    let (padding, payload) = payload.split_first().ok_or(Malformed)?;
    let length = payload
        .len()
        .checked_sub(usize::from(*padding))
        .ok_or(Malformed)?;
    Ok(&payload[..length])
}

fn write_frame(frame: Frame, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let length = u32::try_from(payload.len()).map_err(|_| Malformed)?;
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[frame.kind, frame.flags]);
    out.extend_from_slice(&frame.stream);
    out.extend_from_slice(payload);
    Ok(())
}

/// Walks an HPACK block (RFC 7541, section 6) and replaces the value of `:authority`.
fn rewrite(block: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(block.len());
    let mut rest = block;
    while let Some(first) = rest.first() {
        let field = rest;
        let prefix = match first {
            0x80.. => 7,
            0x40..=0x7f => 6,
            0x20..=0x3f => 5,
            0..=0x1f => 4,
        };
        let index = integer(&mut rest, prefix)?;
        // An indexed field or a size update is done; a literal brings a name or its index.
        if matches!(prefix, 5 | 7) {
            out.extend_from_slice(&field[..field.len() - rest.len()]);
            continue;
        }
        let is_authority = match index {
            0 => string(&mut rest)? == AUTHORITY_NAME,
            index => index == AUTHORITY_INDEX,
        };
        let before_value = field.len() - rest.len();
        let empty = string(&mut rest)?.is_empty();
        if is_authority && !empty {
            out.extend_from_slice(&field[..before_value]);
            out.extend_from_slice(REPLACEMENT);
        } else {
            out.extend_from_slice(&field[..field.len() - rest.len()]);
        }
    }
    Ok(out)
}

/// An integer with a prefix of so many bits.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(next(rest)?) & mask;
    if value < mask {
        return Ok(value);
    }
    // Nothing here is longer than a frame, so four more bytes are plenty.
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(next(rest)?);
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// A string as encoded: with Huffman's code it is not decoded.
fn string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = integer(rest, 7)?;
    let (string, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok(string)
}

fn next(rest: &mut &[u8]) -> Result<u8, Malformed> {
    let (first, after) = rest.split_first().ok_or(Malformed)?;
    *rest = after;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PATH: &[u8] = b"%2Ftmp%2Fagent.sock";

    fn text(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let stream = [0, 0, 0, 1];
        write_frame(
            Frame {
                kind,
                flags,
                stream,
            },
            payload,
            &mut out,
        )
        .unwrap();
        out
    }

    /// :method POST, :authority as given, a literal of a dynamic name, a size update.
    fn block(authority: &[u8]) -> Vec<u8> {
        [
            &[0x83],
            authority,
            &[0x7e],
            &text(b"value"),
            &[0x3f, 0xe1, 0x1f],
        ]
        .concat()
    }

    fn authority(prefix: &[u8], value: &[u8]) -> Vec<u8> {
        block(&[prefix, value].concat())
    }

    #[test]
    fn only_the_value_of_authority_changes_however_it_is_encoded() {
        let literal_name = [&[0x40][..], &text(AUTHORITY_NAME)].concat();
        for prefix in [&[0x41][..], &[0x01], &[0x11], &literal_name] {
            let given = authority(prefix, &text(PATH));
            assert_eq!(
                rewrite(&given).unwrap(),
                authority(prefix, REPLACEMENT),
                "{prefix:x?}"
            );
        }
        let huffman = authority(&[0x41], &[0x83, 1, 2, 3]);
        assert_eq!(rewrite(&huffman).unwrap(), authority(&[0x41], REPLACEMENT));
        for untouched in [
            authority(&[0x44], &text(PATH)),
            authority(&[0x41], &[0]),
            vec![],
        ] {
            assert_eq!(rewrite(&untouched).unwrap(), untouched);
        }
    }

    #[test]
    fn frames_pass_in_whatever_pieces_they_come() {
        let given = authority(&[0x41], &text(PATH));
        let wanted = authority(&[0x41], REPLACEMENT);
        let padded = [&[2], &[9; 5][..], &given, &[0, 0]].concat();
        let input = [
            vec![b'P'; PREFACE],
            frame(4, 0, &[]),
            frame(HEADERS, END_HEADERS, &given),
            frame(0, 1, b"data"),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
            frame(HEADERS, 1, &given[..7]),
            frame(CONTINUATION, END_HEADERS, &given[7..]),
        ]
        .concat();
        let output = [
            vec![b'P'; PREFACE],
            frame(4, 0, &[]),
            frame(HEADERS, END_HEADERS, &wanted),
            frame(0, 1, b"data"),
            frame(
                HEADERS,
                END_HEADERS | PRIORITY,
                &[&[9; 5], &wanted[..]].concat(),
            ),
            frame(HEADERS, END_HEADERS | 1, &wanted),
        ]
        .concat();
        for piece in [1, 3, 10, 1_000] {
            let mut rewriter = Rewriter::default();
            let pieces = input
                .chunks(piece)
                .map(|bytes| rewriter.feed(bytes).unwrap());
            assert_eq!(pieces.collect::<Vec<_>>().concat(), output, "{piece}");
        }
    }

    #[test]
    fn what_is_no_http2_is_an_error_and_never_a_panic() {
        let bad = [
            frame(CONTINUATION, END_HEADERS, &[]),
            [frame(HEADERS, 0, &[]), frame(0, 0, &[])].concat(),
            frame(HEADERS, END_HEADERS, &[0x41]),
            frame(HEADERS, END_HEADERS, &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff]),
            frame(HEADERS, END_HEADERS | PADDED, &[9, 1]),
            frame(HEADERS, END_HEADERS | PRIORITY, &[1]),
            vec![0xff; 9],
        ];
        for bad in bad {
            let mut rewriter = Rewriter::default();
            rewriter.feed(&[0; PREFACE]).unwrap();
            assert_eq!(rewriter.feed(&bad), Err(Malformed), "{bad:x?}");
        }
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut block = vec![0; random.usize(..40)];
            random.fill(&mut block);
            let _ = rewrite(&block);
            let _ = Rewriter::default().feed(&block);
        }
    }
}
