//! Debian's broker, with an ACL by identity.

use crate::{Identities, Place, Process, free_port, hints, until};
use portarium_identity::{Snapshot, SvidManager};
use rustix::process::Signal;
use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpStream, task::JoinHandle};

/// The gateway writes commands and cancels, reads what robots say, and clears retained statuses.
/// A robot reads its own commands and writes its own statuses, and the status topic that all robots
/// share. `fleet` is many robots behind one connection.
const ACL: &str = "\
user robotics-gateway.portarium.svc
topic write portarium/+/robots/+/commands/+
topic write portarium/+/missions/+/cancel
topic readwrite portarium/+/missions/+/status
topic readwrite portarium/+/robots/+/missions/+/status
topic read portarium/+/robots/+/presence

user fleet
topic read portarium/+/robots/+/commands/+
topic read portarium/+/missions/+/cancel
topic write portarium/+/robots/+/missions/+/status
topic write portarium/+/robots/+/presence

pattern read portarium/+/robots/%u/commands/+
pattern read portarium/+/missions/+/cancel
pattern write portarium/+/robots/%u/missions/+/status
pattern write portarium/+/robots/%u/presence
pattern write portarium/+/missions/+/status
";

/// How long a broker lives that does not renew its certificate.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// A mosquitto with mutual TLS.
pub struct Mosquitto {
    /// Where it listens.
    pub port: u16,
    place: Place,
    dir: PathBuf,
    process: Arc<Mutex<Process>>,
    rotations: Arc<AtomicU64>,
    follower: Option<JoinHandle<()>>,
}

impl Mosquitto {
    /// Started, and listening, with a certificate that outlives the test.
    ///
    /// mosquitto 2.0.11 reads its certificate again on SIGHUP, and frees its ACL with it, which
    /// clients that are away for the moment still point to: it crashes when it next has something
    /// for such a one. Where clients are killed, its certificate therefore stays.
    pub async fn start(dir: &Path, identities: &Identities) -> Self {
        Self::start_at(Place::default(), dir, identities).await
    }

    /// As [`Self::start`], somewhere else.
    pub async fn start_at(place: Place, dir: &Path, identities: &Identities) -> Self {
        let svid = identities.lasting(hints::BROKER, LONG);
        Self::with(place, dir, mutual_tls, |dir| svid.write(dir)).await
    }

    /// Started, and listening, on loopback in plaintext for anybody.
    pub async fn plaintext(dir: &Path) -> Self {
        Self::with(
            Place::default(),
            dir,
            |_| "allow_anonymous true\n".into(),
            |_| (),
        )
        .await
    }

    /// Started, and listening, with an SVID and authorities that follow the agent's. While an
    /// authority is taken away it is started anew: OpenSSL keeps what it has read.
    pub async fn rotating(dir: &Path, identities: &Identities) -> Self {
        let manager = identities.manager(hints::BROKER).await;
        let first = manager.ready().await;
        let mut broker = Self::with(Place::default(), dir, mutual_tls, |dir| {
            Files::of(&first).write(dir)
        })
        .await;
        let follower = Follower {
            place: broker.place.clone(),
            dir: broker.dir.clone(),
            process: broker.process.clone(),
            rotations: broker.rotations.clone(),
            authorities: split(&first.bundle_pem()),
        };
        broker.follower = Some(tokio::spawn(follower.follow(manager)));
        broker
    }

    async fn with(
        place: Place,
        dir: &Path,
        admission: fn(&Path) -> String,
        write_svid: impl FnOnce(&Path),
    ) -> Self {
        let dir = dir.join("mosquitto");
        fs::create_dir_all(&dir).unwrap();
        let port = free_port();
        write_svid(&dir);
        fs::write(dir.join("acl"), ACL).unwrap();
        let settings = settings(&place, port) + &admission(&dir);
        fs::write(dir.join("mosquitto.conf"), settings).unwrap();
        let broker = Self {
            port,
            process: Arc::new(Mutex::new(spawn(&place, &dir))),
            place,
            dir,
            rotations: Arc::default(),
            follower: None,
        };
        broker.listening().await;
        broker
    }

    /// `kill -9`. What it had in memory is gone.
    pub fn kill(&self) {
        lock(&self.process).kill();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        lock(&self.process).signal(signal);
    }

    /// Starts it again and waits until it listens.
    pub async fn restart(&self) {
        *lock(&self.process) = spawn(&self.place, &self.dir);
        self.listening().await;
    }

    /// How often its certificate was renewed while it ran.
    pub fn rotations(&self) -> u64 {
        self.rotations.load(Ordering::Relaxed)
    }

    async fn listening(&self) {
        until("mosquitto to listen", async || {
            let address = (self.place.host.as_str(), self.port);
            TcpStream::connect(address).await.is_ok()
        })
        .await;
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}

fn lock(process: &Mutex<Process>) -> std::sync::MutexGuard<'_, Process> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(place: &Place, dir: &Path) -> Process {
    let program = [
        "/usr/sbin/mosquitto",
        "/usr/local/sbin/mosquitto",
        "/usr/bin/mosquitto",
    ]
    .map(Path::new)
    .into_iter()
    .find(|path| path.exists())
    .expect("mosquitto is to be installed: tests/run does it");
    Process::start_behind(
        &place.prefix,
        program,
        ["-c".as_ref(), dir.join("mosquitto.conf").as_os_str()],
        &dir.join("log"),
    )
}

fn settings(place: &Place, port: u16) -> String {
    let listen = place.listen();
    // Otherwise it runs as its own user, who cannot read what the test's user wrote.
    let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
    format!(
        "user {user}\n\
         listener {port} {listen}\n\
         set_tcp_nodelay true\n\
         max_queued_messages 10000\n\
         max_inflight_messages 1000\n\
         persistence false\n\
         log_dest stderr\n\
         connection_messages true\n\
         log_timestamp_format %H:%M:%S\n"
    )
}

/// Who may come in, and what they may do.
fn mutual_tls(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "require_certificate true\n\
         capath {dir}/authorities\n\
         certfile {dir}/svid.pem\n\
         keyfile {dir}/key.pem\n\
         tls_version tlsv1.3\n\
         use_identity_as_username true\n\
         acl_file {dir}/acl\n\
         allow_anonymous false\n"
    )
}

/// Keeps a mosquitto's files as its identity is.
struct Follower {
    place: Place,
    dir: PathBuf,
    process: Arc<Mutex<Process>>,
    rotations: Arc<AtomicU64>,
    authorities: Vec<String>,
}

impl Follower {
    async fn follow(mut self, manager: SvidManager) {
        let mut snapshots = manager.snapshots();
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            if let Some(snapshot) = snapshot {
                self.take(&snapshot);
            }
        }
    }

    fn take(&mut self, snapshot: &Snapshot) {
        let files = Files::of(snapshot);
        files.write(&self.dir);
        let next = split(&files.bundle);
        let revoked = self.authorities.iter().any(|before| !next.contains(before));
        self.authorities = next;
        let mut process = lock(&self.process);
        // Whoever runs one has it started again when it crashes, as it may (see [`Mosquitto::start`]).
        if revoked || process.ended().is_some() {
            process.kill();
            *process = spawn(&self.place, &self.dir);
        } else {
            // It reads its certificate and key again. Authorities that were added it finds by itself.
            process.signal(Signal::HUP);
        }
        self.rotations.fetch_add(1, Ordering::Relaxed);
    }
}

/// The certificates of a bundle.
fn split(bundle: &str) -> Vec<String> {
    let certificates = bundle.split_inclusive("-----END CERTIFICATE-----\n");
    certificates.map(str::to_owned).collect()
}

/// What mosquitto reads, PEM.
pub(crate) struct Files {
    pub(crate) bundle: String,
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Files {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            bundle: snapshot.bundle_pem(),
            chain: snapshot.chain_pem(),
            key: snapshot.key_pem().to_string(),
        }
    }

    /// What [`Self::write`] wrote, or SPIRE's server minted.
    pub(crate) fn read(dir: &Path) -> Self {
        let read = |name| fs::read_to_string(dir.join(name)).unwrap();
        Self {
            bundle: read("bundle.pem"),
            chain: read("svid.pem"),
            key: read("key.pem"),
        }
    }

    pub(crate) fn write(&self, dir: &Path) {
        write(&dir.join("bundle.pem"), &self.bundle);
        write(&dir.join("svid.pem"), &self.chain);
        write(&dir.join("key.pem"), &self.key);
        self.write_authorities(&dir.join("authorities"));
    }

    /// Each in a file of its own, under the names by which OpenSSL looks for them.
    fn write_authorities(&self, dir: &Path) {
        let _ = fs::remove_dir_all(dir.with_extension("old"));
        let new = dir.with_extension("new");
        let _ = fs::remove_dir_all(&new);
        fs::create_dir(&new).unwrap();
        for (n, certificate) in split(&self.bundle).iter().enumerate() {
            fs::write(new.join(format!("{n}.pem")), certificate).unwrap();
        }
        let hashed = Command::new("openssl").arg("rehash").arg(&new).status();
        assert!(hashed.is_ok_and(|ended| ended.success()), "openssl rehash");
        let _ = fs::rename(dir, dir.with_extension("old"));
        fs::rename(new, dir).unwrap();
    }
}

fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
    fs::rename(new, path).unwrap();
}
