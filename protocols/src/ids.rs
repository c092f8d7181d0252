//! Identifiers, parsed once at the edge: what exists as one of these types is safe to put into a
//! topic, a log line or a file name.

use serde::{Deserialize, Deserializer, Serialize};
use std::{fmt, str::FromStr, sync::Arc};
use thiserror::Error;

/// The longest identifier accepted, in bytes.
pub const MAX_ID_BYTES: usize = 200;

/// Why a text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Longer than [`MAX_ID_BYTES`].
    #[error("is {0} bytes long; at most {MAX_ID_BYTES} are allowed")]
    TooLong(usize),
    /// A character that has a meaning in topics, paths or terminals.
    #[error(
        "contains {0:?}; letters, digits and other visible characters except / + # are allowed"
    )]
    Character(char),
}

fn parse(text: &str) -> Result<Arc<str>, IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > MAX_ID_BYTES {
        return Err(IdError::TooLong(text.len()));
    }
    // `/`, `+` and `#` structure MQTT topics; control characters, white space and bidirectional
    // overrides forge log lines; brokers end a connection on a topic with a non-character; a
    // leading `$` or a lone `.` or `..` would be a special topic or path.
    let forbidden = |c: char| {
        matches!(c, '/' | '+' | '#' | '\\' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
            || c.is_control()
            || c.is_whitespace()
            || is_noncharacter(c)
    };
    if let Some(c) = text.chars().find(|c| forbidden(*c)) {
        return Err(IdError::Character(c));
    }
    if text.starts_with('$') || text == "." || text == ".." {
        return Err(IdError::Character(text.chars().next().unwrap_or_default()));
    }
    Ok(Arc::from(text))
}

fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 1 to [`MAX_ID_BYTES`] bytes of visible characters except `/`, `+`, `#` and `\`.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|e| {
                    serde::de::Error::custom(format_args!("{text:?} {e}"))
                })
            }
        }
    };
}

id!(
    /// A mission, named by the control plane.
    MissionId
);
id!(
    /// A robot, named by the configuration.
    RobotId
);
id!(
    /// A group of robots.
    FleetId
);
id!(
    /// A tenant of the control plane; part of its MQTT topics.
    TenantId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_structures_topics_paths_or_log_lines_is_no_identifier() {
        for bad in [
            "",
            "a/b",
            "a+",
            "#",
            "a\0b",
            "a\nb",
            "a b",
            "$SYS",
            "..",
            "\u{202e}x",
            "a\\b",
            "\u{fdd0}",
            "a\u{ffff}",
            "\u{10fffe}",
        ] {
            assert!(bad.parse::<MissionId>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(MAX_ID_BYTES + 1).parse::<MissionId>().is_err());
        for good in [
            "m-1",
            "6f1c",
            "robot.7",
            "urn:x:y",
            "größe",
            &"x".repeat(MAX_ID_BYTES),
        ] {
            assert!(good.parse::<MissionId>().is_ok(), "{good:?}");
        }
    }
}
