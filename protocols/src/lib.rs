//! The vocabulary of missions, and one module per protocol.
//!
//! Adapters never name each other; they meet only in the vocabulary: [`ids`], [`mission`] and
//! [`adapter`]. A protocol module turns that vocabulary into its wire and back, and nothing else:
//! what a mission promises is kept by the engine above.

pub mod adapter;
mod copies;
pub mod grpc;
pub mod ids;
pub mod mission;
pub mod mqtt;
mod peers;

pub use peers::ConnectedPeer;
