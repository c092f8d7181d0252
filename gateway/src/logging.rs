//! Logs on standard error.
//!
//! Other crates are heard from `warn` on, unless a filter names them, and never below `info`:
//! below it some of them print what goes over the wire, and no payload belongs into a log.

use crate::config::{ConfigError, LogConfig, LogFormat, Place};
use std::{
    env,
    io::{self, IsTerminal as _},
};
use tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::filter_fn,
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Stands before the configured filter.
const VARIABLE: &str = "RUST_LOG";

/// Whose logs are ours.
const OURS: [&str; 3] = [
    "portarium_gateway",
    "portarium_protocols",
    "portarium_identity",
];

/// Starts logging as configured. To be called once; later calls change nothing.
pub fn init(config: &LogConfig) -> Result<(), ConfigError> {
    let filter = match env::var(VARIABLE) {
        Ok(filter) if !filter.is_empty() => parse(&filter)?,
        _ => parse(&config.filter)?,
    };
    start(config.format, filter);
    Ok(())
}

/// Starts logging only where `RUST_LOG` asks for it: for clients, whose output is their answer.
pub fn init_client() -> Result<(), ConfigError> {
    match env::var(VARIABLE) {
        Ok(filter) if !filter.is_empty() => {
            start(LogFormat::Text, parse(&filter)?);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn start(format: LogFormat, filter: EnvFilter) {
    let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
    // An error means that a test has its own.
    let _ = subscriber(format, filter, color, io::stderr).try_init();
}

fn subscriber<W>(format: LogFormat, filter: EnvFilter, color: bool, to: W) -> impl Subscriber
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(to);
    let layer: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Text => layer.with_ansi(color).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    Registry::default()
        .with(filter)
        .with(layer.with_filter(filter_fn(without_payloads)))
}

fn without_payloads(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || OURS.iter().any(|ours| metadata.target().starts_with(ours))
}

/// A level alone is ours; everything else is a list of `target=level`, beside `warn` for all.
fn parse(filter: &str) -> Result<EnvFilter, ConfigError> {
    let directives = match filter.parse::<LevelFilter>() {
        Ok(level) => {
            let ours: Vec<String> = OURS.iter().map(|ours| format!("{ours}={level}")).collect();
            format!("{},{}", level.min(LevelFilter::WARN), ours.join(","))
        }
        Err(_) => format!("warn,{filter}"),
    };
    // The configuration's own filter was checked when it was parsed.
    EnvFilter::try_new(directives).map_err(|_| ConfigError::Key {
        place: Place::Variable(VARIABLE.to_owned()),
        problem: format!(
            "{filter:?} is no filter; write a level like \"info\" or pairs like \"portarium_gateway=debug\""
        ),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged under a filter.
    fn logged(format: LogFormat, filter: &str) -> String {
        let buffer = Buffer::default();
        let to = buffer.clone();
        let subscriber = subscriber(format, parse(filter).unwrap(), false, move || to.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "portarium_gateway::engine", robot = "amr-7", "our info");
            tracing::debug!(target: "portarium_protocols", "our debug");
            tracing::warn!(target: "rumqttc", "their warning");
            tracing::info!(target: "rumqttc", "their info");
            tracing::debug!(target: "rumqttc", "their payload");
        });
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_level_is_for_our_crates_and_others_are_heard_from_warnings_on() {
        let text = logged(LogFormat::Text, "info");
        assert!(
            text.contains("our info") && text.contains("their warning"),
            "{text}"
        );
        assert!(
            !text.contains("our debug") && !text.contains("their info"),
            "{text}"
        );
        assert!(logged(LogFormat::Text, "debug").contains("our debug"));
        let text = logged(LogFormat::Text, "error");
        assert!(text.is_empty(), "{text}");
    }

    #[test]
    fn others_can_be_asked_for_but_never_for_what_shows_payloads() {
        let text = logged(LogFormat::Text, "rumqttc=trace,portarium_protocols=trace");
        assert!(
            text.contains("their info") && text.contains("our debug"),
            "{text}"
        );
        assert!(!text.contains("their payload"), "{text}");
    }

    #[test]
    fn json_is_one_object_per_line_with_the_fields_at_its_top() {
        let text = logged(LogFormat::Json, "info");
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first["message"], "our info");
        assert_eq!(first["robot"], "amr-7");
        assert_eq!(first["level"], "INFO");
    }

    #[test]
    fn a_wrong_filter_is_named_with_its_variable() {
        assert_eq!(
            parse("a=b=c").unwrap_err().to_string(),
            "environment variable RUST_LOG: \"a=b=c\" is no filter; write a level like \"info\" or pairs like \"portarium_gateway=debug\""
        );
    }
}
