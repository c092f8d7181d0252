//! gRPC: the contract, its listener and client connections over our own mutual TLS, and robots
//! that serve it.

mod adapter;
mod channel;
mod connection;
mod connections;
pub mod convert;
mod door;
mod error;
pub mod server;
mod share;
mod stream;
mod target;

#[cfg(fuzzing)]
pub use adapter::fuzzing;
pub use adapter::{GrpcAdapter, GrpcRobot, GrpcStats};
pub use channel::{Channel, ChannelError, Credential, connect};
pub use connection::{Connection, Down};
pub use connections::{Admission, Connections, ServerStats};
pub use error::GrpcError;
pub use share::{Crowded, REQUESTS};
pub use target::Target;

/// The application protocol that both sides' TLS has to name: HTTP/2.
pub const ALPN: &[&[u8]] = &[b"h2"];

/// Messages, client and server of `portarium.robotics.v1`, as generated.
#[allow(missing_docs, unreachable_pub, clippy::all)] // generated code
pub mod pb {
    tonic::include_proto!("portarium.robotics.v1");

    /// The encoded descriptors of the contract, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
