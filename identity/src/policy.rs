//! Who may be on the other end.
use crate::SpiffeId;
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{pattern:?} is no SPIFFE ID pattern: {reason}")]
pub struct PatternError {
    /// As written.
    pub pattern: String,
    /// What is wrong.
    pub reason: String,
}

/// A SPIFFE ID, or a pattern of them: `*` stands for exactly one path segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeIdPattern {}

impl SpiffeIdPattern {
    /// Whether the ID matches, segment by segment.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        todo!("{id:?}")
    }
}

impl FromStr for SpiffeIdPattern {
    type Err = PatternError;
    fn from_str(text: &str) -> Result<Self, PatternError> {
        todo!("{text}")
    }
}

impl fmt::Display for SpiffeIdPattern {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

/// Who may be on the other end of a connection. There is no default and no "anyone".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPolicy {}

impl PeerPolicy {
    /// Admits who matches one of the patterns. An empty list admits nobody.
    pub fn new(patterns: impl IntoIterator<Item = SpiffeIdPattern>) -> Self {
        let _ = patterns.into_iter().count();
        todo!()
    }
    /// Whether the policy admits this ID.
    pub fn admits(&self, id: &SpiffeId) -> bool {
        todo!("{id}")
    }
}
