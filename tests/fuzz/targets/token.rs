//! A key set and, behind the first line break, an access token that is to be verified with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_identity::fuzzing::access_token;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (Some(keys), Some(token)) = (parts.next(), parts.next()) else {
        return;
    };
    if let Ok(token) = std::str::from_utf8(token) {
        access_token(keys, token.trim_end());
    }
});
