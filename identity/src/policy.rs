//! Who may be on the other end.
use crate::SpiffeId;
use std::{fmt, str::FromStr};
use thiserror::Error;

/// The longest pattern accepted, in bytes: SPIFFE's own limit for an ID.
const MAX_PATTERN_BYTES: usize = 2048;
/// The longest trust domain accepted, in bytes: SPIFFE's own limit.
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

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
///
/// `spiffe://portarium.robotics/ns/*/sa/robot` matches that service account in any namespace.
/// The trust domain is never a pattern, and a `*` is never part of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeIdPattern {
    trust_domain: String,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Segment {
    Exactly(String),
    Any,
}

impl SpiffeIdPattern {
    /// Whether the ID matches, segment by segment.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        let Some(path) = id.path().strip_prefix('/') else {
            return false;
        };
        let mut segments = path.split('/');
        self.trust_domain == id.trust_domain_name()
            && self
                .segments
                .iter()
                .all(|wanted| match (wanted, segments.next()) {
                    (_, None) => false,
                    (Segment::Any, Some(_)) => true,
                    (Segment::Exactly(wanted), Some(segment)) => wanted == segment,
                })
            && segments.next().is_none()
    }
}

impl FromStr for SpiffeIdPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        parse(text).map_err(|reason| PatternError {
            pattern: text.chars().take(MAX_PATTERN_BYTES).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<SpiffeIdPattern, String> {
    if text.len() > MAX_PATTERN_BYTES {
        return Err(format!("it is longer than {MAX_PATTERN_BYTES} bytes"));
    }
    let rest = text
        .strip_prefix("spiffe://")
        .ok_or("it must begin with spiffe://, in lower case")?;
    let (trust_domain, path) = rest
        .split_once('/')
        .ok_or("a path must follow the trust domain")?;
    check_trust_domain(trust_domain)?;
    let segments = path
        .split('/')
        .map(parse_segment)
        .collect::<Result<_, _>>()?;
    Ok(SpiffeIdPattern {
        trust_domain: trust_domain.to_owned(),
        segments,
    })
}

fn check_trust_domain(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the trust domain is missing".into());
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(format!(
            "the trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes"
        ));
    }
    if name.contains('*') {
        return Err("the trust domain must be written out, without *".into());
    }
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    match name.chars().find(|c| !allowed(*c)) {
        Some(c) => Err(format!(
            "the trust domain contains {c:?}; lower-case letters, digits, '.', '-' and '_' are allowed"
        )),
        None => Ok(()),
    }
}

fn parse_segment(segment: &str) -> Result<Segment, String> {
    match segment {
        "*" => return Ok(Segment::Any),
        "" => return Err("it has an empty path segment or ends with a slash".into()),
        "." | ".." => return Err(format!("{segment:?} is no path segment")),
        _ => {}
    }
    if segment.contains('*') {
        return Err(format!(
            "in {segment:?} the * must be the whole path segment"
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match segment.chars().find(|c| !allowed(*c)) {
        Some(c) => Err(format!(
            "a path segment contains {c:?}; letters, digits, '.', '-' and '_' are allowed"
        )),
        None => Ok(Segment::Exactly(segment.to_owned())),
    }
}

impl fmt::Display for SpiffeIdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        self.segments.iter().try_for_each(|segment| match segment {
            Segment::Exactly(text) => write!(f, "/{text}"),
            Segment::Any => f.write_str("/*"),
        })
    }
}

/// Who may be on the other end of a connection. There is no default and no "anyone".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPolicy {
    patterns: Vec<SpiffeIdPattern>,
}

impl PeerPolicy {
    /// Admits who matches one of the patterns. An empty list admits nobody.
    pub fn new(patterns: impl IntoIterator<Item = SpiffeIdPattern>) -> Self {
        Self {
            patterns: patterns.into_iter().collect(),
        }
    }

    /// Whether the policy admits this ID.
    pub fn admits(&self, id: &SpiffeId) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(id))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn matches(pattern: &str, id: &str) -> bool {
        let pattern: SpiffeIdPattern = pattern.parse().unwrap();
        pattern.matches(&SpiffeId::new(id).unwrap())
    }

    #[test]
    fn a_star_stands_for_exactly_one_segment() {
        let pattern = "spiffe://a.b/ns/*/sa/x";
        assert!(matches(pattern, "spiffe://a.b/ns/a/sa/x"));
        for other in [
            "spiffe://a.b/ns/a/b/sa/x",
            "spiffe://a.b/ns/sa/x",
            "spiffe://a.b/ns/a/sa/x/pod",
            "spiffe://a.b/ns/a/sa/X",
            "spiffe://a.b/ns/a/sa",
            "spiffe://a.b",
            "spiffe://a.c/ns/a/sa/x",
            "spiffe://x.a.b/ns/a/sa/x",
        ] {
            assert!(!matches(pattern, other), "{other}");
        }
        assert!(!matches("spiffe://a.b/*", "spiffe://a.b"));
    }

    #[test]
    fn a_pattern_without_a_star_is_one_id() {
        assert!(matches("spiffe://a.b/c", "spiffe://a.b/c"));
        assert!(!matches("spiffe://a.b/c", "spiffe://a.b/c/d"));
        assert!(!matches("spiffe://a.b/c/d", "spiffe://a.b/c"));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_no_pattern() {
        let long = format!("spiffe://a/{}", "x".repeat(MAX_PATTERN_BYTES));
        let long_domain = format!("spiffe://{}/x", "x".repeat(MAX_TRUST_DOMAIN_BYTES + 1));
        for bad in [
            "",
            "*",
            "a.b/c",
            "http://a.b/c",
            "SPIFFE://a.b/c",
            "spiffe:///c",
            "spiffe://a.b",
            "spiffe://a.b/",
            "spiffe://a.b/c/",
            "spiffe://a.b//c",
            "spiffe://a.b/./c",
            "spiffe://a.b/../c",
            "spiffe://A.b/c",
            "spiffe://*/c",
            "spiffe://*.b/c",
            "spiffe://a.b:443/c",
            "spiffe://user@a.b/c",
            "spiffe://a.b/c?d",
            "spiffe://a.b/c#d",
            "spiffe://a.b/%63",
            "spiffe://a%2eb/c",
            "spiffe://a.b/a*",
            "spiffe://a.b/*a",
            "spiffe://a.b/**",
            "spiffe://a.b/ns/*/sa/x*",
            "spiffe://a.b/ü",
            "spiffe://a.b/a b",
            " spiffe://a.b/c",
            "spiffe://a.b/c\n",
            long.as_str(),
            long_domain.as_str(),
        ] {
            assert!(bad.parse::<SpiffeIdPattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_displays_as_it_was_written() {
        for text in [
            "spiffe://a.b/c",
            "spiffe://a.b/ns/*/sa/x_1-2.3",
            "spiffe://a/*/*",
        ] {
            assert_eq!(text.parse::<SpiffeIdPattern>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_empty_policy_admits_nobody() {
        let id = SpiffeId::new("spiffe://a.b/c").unwrap();
        assert!(!PeerPolicy::new([]).admits(&id));
        let policy =
            PeerPolicy::new(["spiffe://a.b/x", "spiffe://a.b/*"].map(|p| p.parse().unwrap()));
        assert!(policy.admits(&id));
    }
}
