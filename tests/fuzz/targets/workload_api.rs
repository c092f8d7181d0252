//! What whoever sits on the Workload API's socket answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portarium_identity::fuzzing::workload_api_answer;

fuzz_target!(|bytes: &[u8]| workload_api_answer(bytes));
