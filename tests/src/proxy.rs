//! A passage for TCP connections that notes when each began and ended.

use portarium_identity::SvidManager;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
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
    frozen: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Between two workloads, to this port of this machine.
    pub async fn start(to: u16, ends: [SvidManager; 2]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let links = Arc::new(Mutex::new(Vec::new()));
        let frozen = watch::Sender::new(false);
        let passage = Passage {
            to,
            ends,
            links: links.clone(),
            frozen: frozen.subscribe(),
        };
        let task = tokio::spawn(async move {
            loop {
                let (inside, _) = listener.accept().await.unwrap();
                tokio::spawn(passage.clone().pass(inside));
            }
        });
        Self {
            port,
            links,
            frozen,
            task,
        }
    }

    /// As a network that fails: what is sent from now on arrives nowhere, and neither end is told.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// The network is back. The connections of before are gone.
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
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

#[derive(Clone)]
struct Passage {
    to: u16,
    ends: [SvidManager; 2],
    links: Arc<Mutex<Vec<Link>>>,
    frozen: watch::Receiver<bool>,
}

impl Passage {
    async fn pass(mut self, mut inside: TcpStream) {
        let _ = self.frozen.wait_for(|frozen| !frozen).await;
        let Ok(mut outside) = TcpStream::connect(("127.0.0.1", self.to)).await else {
            return;
        };
        inside.set_nodelay(true).unwrap();
        outside.set_nodelay(true).unwrap();
        let number = self.opened();
        let noted = self.clone();
        let bound = tokio::spawn(async move { noted.bound(number).await });
        let lost = tokio::select! {
            // How it ends does not matter, only when.
            _ = copy_bidirectional(&mut inside, &mut outside) => false,
            _ = self.frozen.wait_for(|frozen| *frozen) => true,
        };
        if lost {
            let _ = self.frozen.wait_for(|frozen| !frozen).await;
        }
        self.links.lock().unwrap()[number].closed = Some(SystemTime::now());
        let _ = bound.await;
    }

    fn opened(&self) -> usize {
        let opened = SystemTime::now();
        let mut links = self.links.lock().unwrap();
        links.push(Link {
            opened,
            closed: None,
            not_after: opened + Duration::from_secs(3600),
        });
        links.len() - 1
    }

    async fn bound(&self, number: usize) {
        sleep(HANDSHAKE).await;
        let ends = self.ends.iter().filter_map(SvidManager::current);
        if let Some(first) = ends.map(|svid| svid.not_after).min() {
            self.links.lock().unwrap()[number].not_after = first;
        }
    }
}

/// A line that takes its time: what is sent arrives so much later, in order and complete.
pub struct SlowLine {
    /// Where it listens.
    pub port: u16,
    task: JoinHandle<()>,
}

impl SlowLine {
    /// To this port of this machine.
    pub async fn start(to: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else {
                        return;
                    };
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    let (from_near, to_near) = near.into_split();
                    let (from_far, to_far) = far.into_split();
                    tokio::join!(
                        carry(from_near, to_far, delay),
                        carry(from_far, to_near, delay)
                    );
                });
            }
        });
        Self { port, task }
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let arrive = async move {
        while let Some((at, bytes)) = under_way.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        sleep(delay).await;
        let _ = to.shutdown().await;
    };
    let depart = async move {
        let mut bytes = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let at = Instant::now() + delay;
            if sender.send((at, bytes[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(arrive, depart);
}
