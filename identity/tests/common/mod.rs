//! What the tests share: an authority on a socket of its own, and waiting on state.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    missing_docs
)]

use portarium_identity::{
    ClientTls, IdentityState, Peer, PeerPolicy, ServerTls, Snapshot, SvidConfig, SvidManager,
    TlsError,
    authority::{Authority, AuthorityConfig, Entry},
};
use rustls::pki_types::ServerName;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{client, server};

pub const DOMAIN: &str = "portarium.test";

/// An authority in a folder of its own.
pub struct Agent {
    pub authority: Authority,
    folder: TempDir,
}

impl Agent {
    pub async fn start(hints: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = serve(&folder.path().join("agent.sock"), hints).await;
        Self { authority, folder }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub fn manager(&self, hint: &str) -> SvidManager {
        follow(&self.socket(), Some(hint))
    }

    /// Ends the authority; its folder stays.
    pub fn stop(self) -> TempDir {
        self.folder
    }
}

pub async fn serve(socket: &Path, hints: &[&str]) -> Authority {
    serve_for(socket, hints, Duration::from_secs(3_600)).await
}

pub async fn serve_for(socket: &Path, hints: &[&str], svid_ttl: Duration) -> Authority {
    portarium_identity::install_crypto_provider();
    Authority::start(AuthorityConfig {
        trust_domain: DOMAIN.into(),
        socket: socket.to_owned(),
        svid_ttl,
        entries: entries(hints),
    })
    .await
    .unwrap()
}

pub fn entries(hints: &[&str]) -> Vec<Entry> {
    let entry = |hint: &&str| Entry {
        spiffe_id: id(hint),
        hint: (*hint).into(),
        dns_names: vec![format!("{hint}.test")],
    };
    hints.iter().map(entry).collect()
}

pub fn id(name: &str) -> String {
    format!("spiffe://{DOMAIN}/ns/test/sa/{name}")
}

pub fn follow(socket: &Path, hint: Option<&str>) -> SvidManager {
    SvidManager::start(SvidConfig {
        endpoint_socket: Some(format!("unix://{}", socket.display())),
        hint: hint.map(str::to_owned),
        ..SvidConfig::default()
    })
    .unwrap()
}

pub fn admit(pattern: &str) -> PeerPolicy {
    PeerPolicy::new([pattern.parse().unwrap()])
}

pub fn anyone() -> PeerPolicy {
    admit(&format!("spiffe://{DOMAIN}/ns/*/sa/*"))
}

pub async fn ready(manager: &SvidManager) -> Arc<Snapshot> {
    let waiting = tokio::time::timeout(Duration::from_secs(5), manager.ready());
    waiting
        .await
        .unwrap_or_else(|_| panic!("not ready: {}", manager.state()))
}

/// Waits for a condition on state; returns how long that took.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "not within 20 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

pub async fn until_state(manager: &SvidManager, state: &IdentityState) -> Duration {
    until(&format!("{state:?}"), || manager.state() == *state).await
}

/// Waits for a generation after the given one.
pub async fn after(manager: &SvidManager, generation: u64) -> Arc<Snapshot> {
    until("a new generation", || {
        manager.current().is_some_and(|s| s.generation > generation)
    })
    .await;
    manager.current().unwrap()
}

pub type Accepted = Result<(server::TlsStream<TcpStream>, Peer), TlsError>;
pub type Connected = Result<(client::TlsStream<TcpStream>, Peer), TlsError>;

pub fn name() -> ServerName<'static> {
    "whatever.example".try_into().unwrap()
}

pub async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A handshake between two of ours; the server's word is the last one in TLS 1.3.
pub async fn shake(client: &ClientTls, server: &ServerTls) -> (Connected, Accepted) {
    let (near, far) = tcp().await;
    tokio::join!(client.connect(name(), near), server.accept(far))
}
