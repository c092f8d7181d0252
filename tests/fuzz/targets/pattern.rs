//! A pattern of SPIFFE IDs, a line end, and an ID that may match it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_identity::{SpiffeId, SpiffeIdPattern};

fuzz_target!(|text: &str| {
    let (pattern, id) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(parsed) = pattern.parse::<SpiffeIdPattern>() else {
        return;
    };
    assert_eq!(parsed.to_string(), pattern);
    let Ok(id) = SpiffeId::new(id) else { return };
    let id = id.to_string();
    let same = |(pattern, id): (&str, &str)| pattern == "*" || pattern == id;
    let (wanted, given) = (pattern.split('/'), id.split('/'));
    let matches = wanted.clone().count() == given.clone().count() && wanted.zip(given).all(same);
    assert_eq!(parsed.matches(&SpiffeId::new(&id).unwrap()), matches);
});
