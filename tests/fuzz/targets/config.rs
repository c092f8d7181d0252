//! A configuration file. It is nobody's but the operator's; that it is wrong must not crash.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_gateway::config::Config;
use std::path::Path;

fuzz_target!(|text: &str| {
    if let Err(error) = Config::from_text(Path::new("gateway.toml"), text, &[]) {
        assert!(!error.to_string().is_empty());
    }
});
