//! The stage of `dev` (authority, broker, robots) here, and the shipped gateway on it.

use super::{LIMIT, Process, process, until};
use portarium_gateway::dev::{Stage, StageOptions, hints};
use portarium_identity::{
    PeerPolicy, SvidConfig, SvidManager,
    authority::{Entry, Minted},
    install_crypto_provider,
};
use portarium_protocols::grpc::{
    ALPN, Channel, connect,
    pb::{ListRobotsRequest, mission_service_client::MissionServiceClient},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::Value;
use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::id as process_id,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// `spiffe://portarium.robotics/ns/portarium/sa/HINT/dev`
pub fn id(hint: &str) -> String {
    format!("spiffe://portarium.robotics/ns/portarium/sa/{hint}/dev")
}

/// A port outside of what the system gives out by itself, so that it is still free when a child
/// binds it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let from = u16::try_from(process_id() % 1_000).unwrap() * 12;
    loop {
        let port = 20_000 + (from + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub struct World {
    pub stage: Stage,
    pub grpc: u16,
    pub health: u16,
    pub admin: u16,
    dir: TempDir,
}

/// A client of the mission service with an identity of its own.
pub struct Client {
    pub calls: MissionServiceClient<Channel>,
    _identity: SvidManager,
}

impl World {
    /// Authority, broker and two robots; the configuration is written, nothing serves yet.
    pub async fn new(svid_ttl: Duration) -> Self {
        install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::start(StageOptions {
            dir: dir.path().to_path_buf(),
            svid_ttl,
            usual_ports: false,
        });
        let world = Self {
            stage: stage.await.unwrap(),
            grpc: free_port(),
            health: free_port(),
            admin: free_port(),
            dir,
        };
        world.write(&world.config());
        world
    }

    /// The configuration of `dev` with this world's ports.
    pub fn config(&self) -> String {
        [self.grpc, self.health, self.admin].iter().fold(
            self.stage
                .config()
                .replace("filter = \"warn\"", "filter = \"info\""),
            |config, port| config.replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1),
        )
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, config: &str) {
        fs::write(self.file("gateway.toml"), config).unwrap();
    }

    /// Adds workloads, each with `id(hint)` and its hint.
    pub fn add_workloads(&self, added: &[&str]) {
        let entry = |hint: &str| Entry {
            spiffe_id: id(hint),
            hint: hint.into(),
            dns_names: match hint {
                hints::GATEWAY | hints::BROKER => vec!["localhost".into()],
                _ => Vec::new(),
            },
        };
        let all = hints::ALL.iter().chain(added).copied().map(entry);
        self.stage.authority.set_entries(all.collect());
    }

    /// Starts the shipped gateway without waiting for anything.
    pub fn start(&self) -> Process {
        let file = self.file("gateway.toml");
        Process::spawn(process::command(&[
            "run",
            "--config",
            file.to_str().unwrap(),
        ]))
    }

    /// Starts the shipped gateway and waits until it can reach both robots.
    pub async fn serve(&self) -> Process {
        let gateway = self.start();
        gateway.complains("serving missions").await;
        let operator = self.client(hints::OPERATOR).await;
        until("both robots are reachable", || async {
            let listed = operator
                .calls
                .clone()
                .list_robots(ListRobotsRequest::default())
                .await;
            let robots = listed.ok()?.into_inner().robots;
            let ready = robots
                .iter()
                .all(|robot| robot.reachable && robot.reconciled);
            (robots.len() >= 2 && ready).then_some(())
        })
        .await;
        gateway
    }

    pub fn socket(&self) -> String {
        format!("unix://{}", self.file("agent.sock").display())
    }

    pub async fn identity(&self, hint: &str) -> SvidManager {
        let manager = SvidManager::start(SvidConfig {
            endpoint_socket: Some(self.socket()),
            hint: Some(hint.into()),
            ..SvidConfig::default()
        })
        .unwrap();
        timeout(LIMIT, manager.ready())
            .await
            .unwrap_or_else(|_| panic!("no SVID for {hint}: {}", manager.state()));
        manager
    }

    /// A connection as this workload; it lasts as long as the second part.
    pub async fn try_channel(&self, hint: &str) -> Result<(Channel, SvidManager), String> {
        let identity = self.identity(hint).await;
        let gateway = PeerPolicy::new([id(hints::GATEWAY).parse().unwrap()]);
        let tls = identity.client_tls(gateway, ALPN);
        let target = format!("localhost:{}", self.grpc).parse().unwrap();
        let channel = connect(&target, Some(&tls)).await;
        Ok((channel.map_err(|e| e.to_string())?, identity))
    }

    pub async fn channel(&self, hint: &str) -> (Channel, SvidManager) {
        self.try_channel(hint).await.unwrap()
    }

    pub async fn try_client(&self, hint: &str) -> Result<Client, String> {
        let (channel, identity) = self.try_channel(hint).await?;
        Ok(Client {
            calls: MissionServiceClient::new(channel),
            _identity: identity,
        })
    }

    pub async fn client(&self, hint: &str) -> Client {
        self.try_client(hint).await.unwrap()
    }

    /// Shows the gateway this certificate, or none, and returns what comes back first: an error
    /// where the gateway refuses it.
    pub async fn show(&self, certificate: Option<&Minted>) -> std::io::Result<Vec<u8>> {
        let mut roots = RootCertStore::empty();
        for authority in self.stage.authority.bundle() {
            roots.add(CertificateDer::from(authority)).unwrap();
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(minted) => {
                let chain = minted.chain_der.iter().cloned().map(CertificateDer::from);
                let key = PrivatePkcs8KeyDer::from(minted.key_pkcs8_der.to_vec());
                builder
                    .with_client_auth_cert(chain.collect(), PrivateKeyDer::Pkcs8(key))
                    .unwrap()
            }
        };
        config.alpn_protocols = ALPN.iter().map(|p| p.to_vec()).collect();
        let tcp = TcpStream::connect(("127.0.0.1", self.grpc)).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let mut tls = timeout(LIMIT, connecting).await.unwrap()?;
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let mut first = vec![0; 64];
        let n = timeout(LIMIT, tls.read(&mut first)).await.unwrap()?;
        first.truncate(n);
        Ok(first)
    }

    /// The lines of the audit until now.
    pub fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.file("audit.jsonl")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The first audit line after `seen` lines that this is true of.
    pub async fn audited(&self, seen: usize, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        until(&format!("an audit line: {what}"), || async {
            self.audit().into_iter().skip(seen).find(|line| is(line))
        })
        .await
    }

    /// The sum of the metric's samples whose labels contain all of these.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, page) = until("metrics answer", || http_get(self.admin, "/metrics")).await;
        sum(&page, name, labels)
    }
}

/// Status and body of a plain HTTP request; `None` where nobody answers.
pub async fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    let read = timeout(LIMIT, tcp.read_to_string(&mut answer)).await;
    read.ok()?.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The sum of a metric's samples whose labels contain all of these.
pub fn sum(page: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(key, _)| {
            key.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
                && labels.iter().all(|label| key.contains(label))
        })
        .map(|(_, value)| value.parse::<f64>().unwrap())
        .sum()
}
