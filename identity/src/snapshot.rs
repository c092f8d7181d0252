//! One coherent moment of the identity.
use crate::SpiffeId;
use std::time::SystemTime;

/// One coherent moment: key, chain and bundles of the same update.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows with each update that changed anything; 1 is the first.
    pub generation: u64,
    /// Who we are.
    pub spiffe_id: SpiffeId,
    /// When the SVID ends.
    pub not_after: SystemTime,
    /// When it began.
    pub not_before: SystemTime,
    /// The leaf's serial number, lower-case hex.
    pub serial: String,
    /// The hint it came with.
    pub hint: Option<String>,
}

impl Snapshot {
    /// The certificate chain, leaf first, PEM.
    pub fn chain_pem(&self) -> String {
        todo!()
    }
    /// The private key, PKCS#8 PEM; zeroized on drop. Never log it.
    pub fn key_pem(&self) -> zeroize::Zeroizing<String> {
        todo!()
    }
    /// The bundles of all trust domains delivered (own first), PEM.
    pub fn bundle_pem(&self) -> String {
        todo!()
    }
}
