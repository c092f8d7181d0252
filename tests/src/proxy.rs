//! A passage for TCP connections that notes when each began and ended.

use portarium_identity::{Snapshot, SvidManager};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A handshake may take this long; SVIDs that arrive meanwhile may be the ones presented.
const HANDSHAKE: Duration = Duration::from_millis(500);

/// One connection that passed.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// When it began.
    pub opened: SystemTime,
    /// When it ended; `None`: it has not.
    pub closed: Option<SystemTime>,
    /// The end of the shorter-lived of the two newest certificates that it can have begun with.
    pub not_after: SystemTime,
}

impl Link {
    /// What was left of the certificates when it ended, or now; `None` if they were over.
    pub fn margin(&self) -> Option<Duration> {
        let end = self.closed.unwrap_or_else(SystemTime::now);
        self.not_after.duration_since(end).ok()
    }
}

/// Forwards a port to another one. It cannot see certificates, since TLS 1.3 hides them; it knows
/// which ones there were, because it follows the same authority as both ends do.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    links: Arc<Mutex<Vec<Link>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Between two workloads, to this port of this machine.
    pub async fn start(to: u16, ends: [SvidManager; 2]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let links = Arc::new(Mutex::new(Vec::new()));
        let noted = links.clone();
        let task = tokio::spawn(async move {
            loop {
                let (inside, _) = listener.accept().await.unwrap();
                tokio::spawn(pass(inside, to, ends.clone(), noted.clone()));
            }
        });
        Self { port, links, task }
    }

    /// Every connection that carried anything so far.
    pub fn links(&self) -> Vec<Link> {
        self.links.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut inside: TcpStream,
    to: u16,
    ends: [SvidManager; 2],
    links: Arc<Mutex<Vec<Link>>>,
) {
    let Ok(mut outside) = TcpStream::connect(("127.0.0.1", to)).await else {
        return;
    };
    inside.set_nodelay(true).unwrap();
    outside.set_nodelay(true).unwrap();
    let opened = SystemTime::now();
    let number = {
        let mut links = links.lock().unwrap();
        links.push(Link {
            opened,
            closed: None,
            not_after: opened + Duration::from_secs(3600),
        });
        links.len() - 1
    };
    let noted = links.clone();
    let bound = tokio::spawn(async move {
        tokio::time::sleep(HANDSHAKE).await;
        let ends = ends.iter().filter_map(SvidManager::current);
        if let Some(first) = ends.map(|svid: Arc<Snapshot>| svid.not_after).min() {
            noted.lock().unwrap()[number].not_after = first;
        }
    });
    // How it ends does not matter, only when.
    let _ = copy_bidirectional(&mut inside, &mut outside).await;
    links.lock().unwrap()[number].closed = Some(SystemTime::now());
    let _ = bound.await;
}
