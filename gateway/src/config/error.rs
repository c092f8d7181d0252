//! What can be wrong with a configuration.

use std::{fmt, path::Path};
use thiserror::Error;

/// The exit code of a process whose configuration is wrong: `EX_CONFIG` of `sysexits.h`.
pub const EXIT_BAD_CONFIG: u8 = 78;

/// What is wrong with a configuration. One line that names the place, the key and what to do.
///
/// A process that ends because of it ends with [`EXIT_BAD_CONFIG`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {reason}")]
    Read {
        /// The file, as named by the user.
        file: String,
        /// What the system said.
        reason: String,
    },
    /// The file is no TOML.
    #[error("{file}: line {line}, column {column}: {reason}")]
    Syntax {
        /// The file, as named by the user.
        file: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What the parser expected.
        reason: String,
    },
    /// A key is unknown, missing, or has a value that cannot be.
    #[error("{place}: {problem}")]
    Key {
        /// Where.
        place: Place,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A running gateway cannot take these changes; it keeps all it had.
    #[error(
        "{file}: nothing was reloaded: only robots and policy can change while the gateway runs; restart it for: {}",
        keys.join(", ")
    )]
    NeedsRestart {
        /// The file, as named by the user.
        file: String,
        /// The keys that changed, in the order of the reference.
        keys: Vec<String>,
    },
}

impl ConfigError {
    pub(super) fn read(file: &Path, error: &std::io::Error) -> Self {
        Self::Read {
            file: one_line(&file.display().to_string()),
            reason: one_line(&error.to_string()),
        }
    }
}

/// Where a value of the configuration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the file, under a key such as `robots[3].address`.
    File {
        /// The file, as named by the user.
        file: String,
        /// The key's path.
        key: String,
    },
    /// In a variable of the environment.
    Variable(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, key } => write!(f, "{file}: {key}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// Text of a file or of the environment, such that it stays on the line it is put into.
pub(super) fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escape = c.is_control();
            escape
                .then(|| c.escape_default())
                .into_iter()
                .flatten()
                .chain((!escape).then_some(c))
        })
        .collect()
}

/// The candidate that the user most likely meant: at most two typing errors away, and nearer than
/// to another word of that length would be.
pub(super) fn did_you_mean<'a>(
    text: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (distance(text, c), c))
        .filter(|(d, c)| *d <= 2 && d * 2 < c.chars().count())
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// The number of insertions, deletions and replacements that make one text of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_proposed_and_far_ones_are_not() {
        let keys = ["address", "adapter", "actions", "id"];
        assert_eq!(did_you_mean("adress", keys), Some("address"));
        assert_eq!(did_you_mean("adaptor", keys), Some("adapter"));
        assert_eq!(did_you_mean("speed", keys), None);
        assert_eq!(did_you_mean("xy", keys), None);
    }

    #[test]
    fn what_would_break_the_line_is_escaped() {
        assert_eq!(one_line("a\nb\u{1b}[31m ö"), "a\\nb\\u{1b}[31m ö");
    }
}
