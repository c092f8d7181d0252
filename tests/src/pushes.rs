//! How soon the gateway presents what the agent has pushed.

use crate::{Identities, hints, only};
use portarium_identity::SvidManager;
use portarium_protocols::grpc::ALPN;
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, task::JoinHandle, time::sleep};

/// The pause between two handshakes that look for the new SVID.
const PAUSE: Duration = Duration::from_millis(2);

/// After each new SVID of the gateway, makes handshakes with it until it shows that.
pub struct Pushes {
    took: Arc<Mutex<Vec<Duration>>>,
    task: JoinHandle<()>,
}

impl Pushes {
    /// Begins, with the gateway at this port.
    pub async fn start(identities: &Identities, port: u16) -> Self {
        let gateway = identities.manager(hints::GATEWAY).await;
        let caller = identities.manager(hints::CONTROL_PLANE).await;
        let took = Arc::<Mutex<Vec<Duration>>>::default();
        let task = tokio::spawn(follow(gateway, caller, port, took.clone()));
        Self { took, task }
    }

    /// From each push to the first handshake with what it brought.
    pub fn took(&self) -> Vec<Duration> {
        self.took.lock().unwrap().clone()
    }
}

impl Drop for Pushes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(
    gateway: SvidManager,
    caller: SvidManager,
    port: u16,
    took: Arc<Mutex<Vec<Duration>>>,
) {
    let tls = caller.client_tls(only(hints::GATEWAY), ALPN);
    let presented = async || {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let name = "localhost".try_into().unwrap();
        let (_, peer) = tls.connect(name, stream).await.ok()?;
        Some(peer.serial)
    };
    let mut snapshots = gateway.snapshots();
    let mut old = HashSet::new();
    old.extend(gateway.current().map(|svid| svid.serial.clone()));
    while snapshots.changed().await.is_ok() {
        let pushed = Instant::now();
        let Some(svid) = snapshots.borrow_and_update().clone() else {
            continue;
        };
        if old.contains(&svid.serial) {
            continue;
        }
        while presented().await.is_none_or(|serial| old.contains(&serial)) {
            sleep(PAUSE).await;
        }
        took.lock().unwrap().push(pushed.elapsed());
        old.insert(svid.serial.clone());
    }
}
