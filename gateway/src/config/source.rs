//! From file and environment to one raw tree, with errors that say where each value came from.

use super::{
    error::{ConfigError, Place, did_you_mean, one_line},
    raw::Raw,
};
use ::config::{Config as Tree, ConfigError as TreeError, Environment, File, FileFormat};
use std::{collections::BTreeMap, ffi::OsString, path::Path};

const PREFIX: &str = "PORTARIUM";
const SEPARATOR: &str = "__";

/// The file's name and the environment: what turns a key into the place where it stands.
pub(super) struct Source {
    file: String,
    /// The variables of the gateway by the key they set.
    variables: BTreeMap<String, String>,
}

impl Source {
    /// Reads text and environment into the raw tree.
    pub(super) fn read(
        file: &Path,
        text: &str,
        environment: &[(OsString, OsString)],
    ) -> Result<(Self, Raw), ConfigError> {
        let mut source = Self {
            file: one_line(&file.display().to_string()),
            variables: BTreeMap::new(),
        };
        let values = source.take_variables(environment)?;
        let tree = Tree::builder()
            .add_source(File::from_str(text, FileFormat::Toml))
            .add_source(
                Environment::with_prefix(PREFIX)
                    .separator(SEPARATOR)
                    .source(Some(values)),
            )
            .build()
            .map_err(|error| source.syntax(&error))?;
        let raw = serde_path_to_error::deserialize(tree)
            .map_err(|error| source.wrong_value(&error.path().to_string(), error.into_inner()))?;
        Ok((source, raw))
    }

    /// An error at a key.
    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let place = match self.variables.get(key) {
            Some(variable) => Place::Variable(variable.clone()),
            None => Place::File {
                file: self.file.clone(),
                key: one_line(key),
            },
        };
        ConfigError::Key {
            place,
            problem: problem.into(),
        }
    }

    /// The file's name, for messages.
    pub(super) fn file(&self) -> String {
        self.file.clone()
    }

    /// Picks the gateway's own variables, and refuses those that could be misread.
    fn take_variables(
        &mut self,
        environment: &[(OsString, OsString)],
    ) -> Result<::config::Map<String, String>, ConfigError> {
        let mut values = ::config::Map::new();
        let prefix = format!("{PREFIX}{SEPARATOR}");
        for (name, value) in environment {
            let shown = one_line(&name.to_string_lossy());
            if !shown.to_ascii_uppercase().starts_with(&prefix) {
                continue;
            }
            let refuse = |problem: &str| ConfigError::Key {
                place: Place::Variable(shown.clone()),
                problem: problem.to_owned(),
            };
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
                return Err(refuse("is no UTF-8; write it as such or remove it"));
            };
            if name != name.to_uppercase() {
                return Err(refuse("is not all upper case; write it so or remove it"));
            }
            let key = name[prefix.len()..].to_lowercase().replace(SEPARATOR, ".");
            let plain = |part: &str| {
                !part.is_empty()
                    && part
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
            };
            if !key.split('.').all(plain) {
                return Err(refuse(
                    "names no key; write PORTARIUM__SECTION__KEY or remove it",
                ));
            }
            if let Some(problem) = only_in_the_file(&key) {
                return Err(refuse(problem));
            }
            self.variables.insert(key, name.to_owned());
            values.insert(name.to_owned(), value.to_owned());
        }
        self.refuse_nested()?;
        Ok(values)
    }

    /// `PORTARIUM__GRPC` beside `PORTARIUM__GRPC__LISTEN` would silently be overwritten.
    fn refuse_nested(&self) -> Result<(), ConfigError> {
        for key in self.variables.keys() {
            let inner = format!("{key}.");
            if self.variables.keys().any(|other| other.starts_with(&inner)) {
                return Err(self.error(key, "names a section, not a key; remove it"));
            }
        }
        Ok(())
    }

    /// The parser's message without the excerpt that it draws.
    fn syntax(&self, error: &TreeError) -> ConfigError {
        let text = error.to_string();
        let mut numbers = text
            .lines()
            .next()
            .unwrap_or_default()
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok());
        let (line, column) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(1));
        let reason: Vec<&str> = text
            .lines()
            .skip(1)
            .filter(|line| {
                !line
                    .trim_start()
                    .starts_with(|c: char| c == '|' || c.is_ascii_digit())
            })
            .collect();
        let reason = if reason.is_empty() {
            text
        } else {
            reason.join(", ")
        };
        ConfigError::Syntax {
            file: self.file(),
            line,
            column,
            reason: one_line(&reason),
        }
    }

    fn wrong_value(&self, path: &str, error: TreeError) -> ConfigError {
        match error {
            TreeError::At { error, .. } => self.wrong_value(path, *error),
            TreeError::Message(message) => self.message(path, &message),
            other => self.error(path, one_line(&other.to_string())),
        }
    }

    fn message(&self, path: &str, message: &str) -> ConfigError {
        if let Some(list) = message.strip_prefix("unknown field ") {
            // "`adress`, expected one of `id`, `fleet`": serde tells the known keys only so.
            let mut words = list.split('`').skip(1).step_by(2);
            let wrong = words.next().unwrap_or_default();
            let known: Vec<&str> = words.collect();
            return self.error(path, unknown_key(wrong, &known));
        }
        let problem = match message
            .strip_prefix("invalid type: ")
            .and_then(|m| m.split_once(", expected "))
        {
            Some((_, wanted)) if wanted.contains("struct") || wanted.contains("map") => {
                "is a section of keys, not a value; write it as a table".to_owned()
            }
            Some((found, "a sequence")) => {
                format!("is {found}; write a list, [\"…\"]")
            }
            Some((found, wanted)) => format!("is {found}; write {wanted}"),
            None => message.to_owned(),
        };
        self.error(path, one_line(&problem))
    }
}

/// Why a key cannot be set in the environment, if so.
fn only_in_the_file(key: &str) -> Option<&'static str> {
    let mut parts = key.split('.');
    match (parts.next(), key.rsplit('.').next()) {
        (Some("development"), _) => Some(
            "development mode cannot be switched on in the environment; write development = true in the file, or remove the variable",
        ),
        (Some("robots" | "policy"), _) | (_, Some("peers")) => {
            Some("lists stand in the file only; write it there and remove the variable")
        }
        _ => None,
    }
}

fn unknown_key(wrong: &str, known: &[&str]) -> String {
    match did_you_mean(wrong, known.iter().copied()) {
        Some(near) => format!("unknown key; did you mean {near:?}?"),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}
