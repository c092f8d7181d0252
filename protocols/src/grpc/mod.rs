//! gRPC: the contract, and robots that serve it.

/// Messages, client and server of `portarium.robotics.v1`, as generated.
#[allow(missing_docs, unreachable_pub, clippy::all)] // generated code
pub mod pb {
    tonic::include_proto!("portarium.robotics.v1");

    /// The encoded descriptors of the contract, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
