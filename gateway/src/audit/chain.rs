//! Each line carries a hash over itself and the line before.
//!
//! A line ends in `,"chain":"HASH"}`. HASH is the SHA-256, in lower-case hex, of the HASH of the
//! line before (its 64 characters; 64 zeros before the first line of all) followed by this line's
//! text up to that comma. So what is hashed is what stands in the file, byte for byte.

use aws_lc_rs::digest::{Context, SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Between a line's text and its hash, ...
const OPEN: &[u8] = b",\"chain\":\"";

/// ... and behind it.
const CLOSE: &[u8] = b"\"}";

const BYTES: usize = 32;

/// The hash of a line and, by it, of all lines before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChainHash([u8; BYTES]);

/// It is no hash of a line.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a hash has 64 characters of 0-9 and a-f")]
pub struct NoHash;

impl ChainHash {
    /// What stands before the first line of all.
    pub const START: Self = Self([0; BYTES]);

    /// The hash of the line after this one, by its text up to the comma.
    pub(super) fn next(&self, text: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&self.hex());
        context.update(text);
        Self::of_digest(context.finish().as_ref())
    }

    /// The hash of any bytes by themselves.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::of_digest(digest(&SHA256, bytes).as_ref())
    }

    /// Writes an object as the line after this one.
    pub(super) fn seal(&self, object: &[u8], out: &mut Vec<u8>) -> Self {
        let text = object.strip_suffix(b"}").unwrap_or(object);
        let sealed = self.next(text);
        for part in [text, OPEN, &sealed.hex(), CLOSE, b"\n"] {
            out.extend_from_slice(part);
        }
        sealed
    }

    fn of_digest(digest: &[u8]) -> Self {
        let mut bytes = [0; BYTES];
        for (byte, of) in bytes.iter_mut().zip(digest) {
            *byte = *of;
        }
        Self(bytes)
    }

    fn hex(&self) -> [u8; 2 * BYTES] {
        let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
        let mut hex = [0; 2 * BYTES];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
        hex
    }

    /// In lower case only, so that a hash is written in one way.
    fn from_hex(hex: &[u8]) -> Option<Self> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        if hex.len() != 2 * BYTES {
            return None;
        }
        let mut bytes = [0; BYTES];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }
}

/// A line, without its end, as its text up to the comma and its hash; `None` where it has none.
pub(super) fn split(line: &[u8]) -> Option<(&[u8], ChainHash)> {
    let rest = line.strip_suffix(CLOSE)?;
    let (rest, hex) = rest.split_at_checked(rest.len().checked_sub(2 * BYTES)?)?;
    Some((rest.strip_suffix(OPEN)?, ChainHash::from_hex(hex)?))
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ChainHash {
    type Err = NoHash;
    fn from_str(text: &str) -> Result<Self, NoHash> {
        Self::from_hex(text.as_bytes()).ok_or(NoHash)
    }
}

impl Serialize for ChainHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChainHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A line of the audit about itself: where it goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) audit: Goes,
    /// The hash of the line before.
    pub(super) after: ChainHash,
    /// What stands between that line and this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) torn: Option<Torn>,
}

/// How the audit goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Goes {
    /// In a file that has no line yet.
    Begun,
    /// In one that has: after a start, or a write that failed in the middle of a line.
    Resumed,
}

/// Text without an end, left by a crash or a full disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Torn {
    pub(super) bytes: u64,
    pub(super) sha256: ChainHash,
}

impl Torn {
    pub(super) fn of(text: &[u8]) -> Option<Self> {
        (!text.is_empty()).then(|| Self {
            bytes: text.len() as u64,
            sha256: ChainHash::of(text),
        })
    }
}
