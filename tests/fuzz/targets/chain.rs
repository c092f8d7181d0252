//! The certificates that a peer shows: each behind its length of two bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_identity::fuzzing::peer_chain;

fuzz_target!(|bytes: &[u8]| {
    let mut certificates = Vec::new();
    let mut rest = bytes;
    while let Some((length, more)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(more.len());
        let (certificate, more) = more.split_at(length);
        certificates.push(certificate);
        rest = more;
    }
    if let Some(id) = peer_chain(&certificates) {
        assert!(id.path().starts_with('/') && id.to_string().len() <= 2048);
    }
});
