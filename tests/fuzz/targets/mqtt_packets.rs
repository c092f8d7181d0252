//! What a broker sends, in two parts: the first byte says how long the first is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_protocols::mqtt::fuzz_packets;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, packets)) = bytes.split_first() else {
        return;
    };
    // However they are cut, they are the same packets.
    let all = fuzz_packets(packets, 0);
    assert_eq!(fuzz_packets(packets, usize::from(*first)), all);
});
