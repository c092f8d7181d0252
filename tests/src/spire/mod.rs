//! A SPIRE server and its agent, as users install them.

mod authorities;
mod command;
mod entries;
mod federation;

use crate::{PATIENCE, Process, free_port, until};
use command::{call, parsed, program, string};
use spiffe::{WorkloadApiClient, X509Context, transport::Endpoint};
use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{sync::OnceCell, task::spawn_blocking};

pub use entries::Registration;

/// Where tests of real SPIRE run: `tests/run --spire` sets it to 1.
const WANTED: &str = "PORTARIUM_SPIRE";

/// Whether identities are to come from real SPIRE.
pub fn on_spire() -> bool {
    std::env::var_os(WANTED).is_some_and(|value| value == "1")
}

/// A server and an agent of one trust domain, on loopback, with all of their files in one folder.
///
/// Whoever runs as this user gets every SVID, as from the embedded authority.
pub struct Spire {
    trust_domain: String,
    dir: TempDir,
    port: u16,
    bundle_port: u16,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    server: Option<Process>,
    agent: Option<Process>,
    entries: Vec<Registration>,
    parent: String,
}

impl Spire {
    /// The one that all tests of this process share, without entries. It takes seconds to start.
    pub async fn shared() -> Arc<Self> {
        static SHARED: OnceCell<Arc<Spire>> = OnceCell::const_new();
        let start = async || Arc::new(Self::start("portarium.robotics").await);
        let shared = SHARED.get_or_init(start).await;
        shared.register(Vec::new()).await;
        shared.clone()
    }

    /// Started, and serving the Workload API, without entries.
    pub async fn start(trust_domain: &str) -> Self {
        let spire = Self {
            trust_domain: trust_domain.to_owned(),
            dir: tempfile::tempdir().unwrap(),
            port: free_port(),
            bundle_port: free_port(),
            running: Mutex::default(),
        };
        spire.configure();
        spire.start_server().await;
        let bundle = spire.server(&["bundle", "show"]).await;
        fs::write(spire.path("bundle.pem"), bundle).unwrap();
        let token = spire
            .server(&["token", "generate", "-output", "json"])
            .await;
        let token = string(&parsed(&token)["value"]);
        spire.running().parent = format!("spiffe://{trust_domain}/spire/agent/join_token/{token}");
        spire.launch_agent(&["-joinToken", &token]);
        spire.agent_serves().await;
        spire
    }

    /// What the server says it is.
    pub fn version() -> String {
        let said = Command::new(program("spire-server"))
            .arg("--version")
            .output()
            .unwrap();
        let said = [said.stdout, said.stderr].concat();
        String::from_utf8_lossy(&said).trim().to_owned()
    }

    /// The Workload API's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    /// Where other trust domains fetch this one's bundle.
    fn bundle_endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.bundle_port)
    }

    /// What the server and the agent wrote.
    pub fn output(&self) -> String {
        let read = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
        read("server.log") + &read("agent.log")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configure(&self) {
        let dir = self.dir.path().display();
        let Self {
            trust_domain,
            port,
            bundle_port,
            ..
        } = self;
        for folder in ["server", "agent"] {
            fs::create_dir(self.path(folder)).unwrap();
        }
        let server = format!(
            r#"
server {{
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{dir}/server.sock"
    trust_domain = "{trust_domain}"
    data_dir = "{dir}/server"
    log_level = "INFO"
    agent_ttl = "1h"
    federation {{
        bundle_endpoint {{
            address = "127.0.0.1"
            port = {bundle_port}
            refresh_hint = "1s"
            profile "https_spiffe" {{}}
        }}
    }}
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{dir}/server/datastore.sqlite3"
        }}
    }}
    KeyManager "disk" {{ plugin_data {{ keys_path = "{dir}/server/keys.json" }} }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"#
        );
        let agent = format!(
            r#"
agent {{
    server_address = "127.0.0.1"
    server_port = "{port}"
    socket_path = "{dir}/agent.sock"
    trust_bundle_path = "{dir}/bundle.pem"
    trust_domain = "{trust_domain}"
    data_dir = "{dir}/agent"
    log_level = "INFO"
    experimental {{ sync_interval = "1s" }}
}}
plugins {{
    KeyManager "disk" {{ plugin_data {{ directory = "{dir}/agent" }} }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#
        );
        fs::write(self.path("server.conf"), server).unwrap();
        fs::write(self.path("agent.conf"), agent).unwrap();
    }

    /// Starts the server (again) and waits until it answers.
    pub async fn start_server(&self) {
        let server = self.launch("spire-server", "server", &[]);
        self.running().server = Some(server);
        until("the SPIRE server", async || {
            self.try_server(&["healthcheck"], None).await.is_ok()
        })
        .await;
    }

    /// `kill -9`
    pub fn kill_server(&self) {
        self.running().server = None;
    }

    /// Starts the agent (again), which makes its socket anew, and does not wait for it.
    pub fn start_agent(&self) {
        self.launch_agent(&[]);
    }

    /// `kill -9`. Its socket file stays.
    pub fn kill_agent(&self) {
        self.running().agent = None;
    }

    fn launch_agent(&self, more: &[&str]) {
        let agent = self.launch("spire-agent", "agent", more);
        self.running().agent = Some(agent);
    }

    fn launch(&self, name: &str, kind: &str, more: &[&str]) -> Process {
        let (program, log) = (program(name), self.path(&format!("{kind}.log")));
        let config = self.path(&format!("{kind}.conf")).into_os_string();
        let mut arguments: Vec<OsString> = vec!["run".into(), "-config".into(), config];
        arguments.extend(more.iter().map(OsString::from));
        lasting(move || Process::start(&program, arguments, &log))
    }

    /// Waits until the agent answers, whatever it says.
    pub async fn agent_serves(&self) {
        until("the SPIRE agent", async || match self.fetch().await {
            Ok(_) => true,
            Err(error) => error.contains("no identity issued"),
        })
        .await;
    }

    /// What the Workload API gives whoever runs as this user, now.
    pub async fn fetch(&self) -> Result<X509Context, String> {
        let endpoint = Endpoint::parse(&format!("unix://{}", self.socket().display())).unwrap();
        let asked = async {
            let client = WorkloadApiClient::connect(endpoint).await?;
            client.fetch_x509_context().await
        };
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await;
        let answer = answer.map_err(|_| "no answer".to_owned())?;
        answer.map_err(|error| format!("{error:?}: {error}").to_lowercase())
    }

    /// Has the server do something and returns what it says.
    pub async fn server(&self, words: &[&str]) -> String {
        let said = self.try_server(words, None).await;
        said.unwrap_or_else(|said| panic!("spire-server {words:?}: {said}"))
    }

    async fn server_told(&self, words: &[&str], input: String) -> String {
        let said = self.try_server(words, Some(input)).await;
        said.unwrap_or_else(|said| panic!("spire-server {words:?}: {said}"))
    }

    /// As [`Self::server`], where it may refuse.
    async fn try_server(&self, words: &[&str], input: Option<String>) -> Result<String, String> {
        let socket = self.path("server.sock");
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let called = spawn_blocking(move || {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            call(&socket, &words, input)
        });
        called.await.unwrap()
    }
}

/// Does this on a thread that lasts as long as this process: the kernel ends a child with the
/// thread that started it, and tests have threads of their own.
fn lasting<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(make());
        loop {
            thread::park();
        }
    });
    receiver.recv_timeout(PATIENCE).unwrap()
}
