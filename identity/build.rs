//! Compiles the Workload API for the embedded authority, with a protobuf compiler in Rust.

use std::{env, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/workload.proto");
    if env::var_os("CARGO_FEATURE_AUTHORITY").is_some() {
        let descriptors = protox::compile(["workload.proto"], ["proto"])?;
        tonic_prost_build::configure()
            .build_client(false)
            .compile_fds(descriptors)?;
    }
    Ok(())
}
