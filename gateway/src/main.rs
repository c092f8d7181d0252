//! The binary `portarium-gateway`. All of it is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    portarium_gateway::cli::main()
}
