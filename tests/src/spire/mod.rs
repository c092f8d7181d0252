//! A SPIRE server and its agent, as users install them.

use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{sync::OnceCell, task::spawn_blocking};

use crate::{PATIENCE, Process, free_port, until};
use spiffe::{WorkloadApiClient, X509Context, transport::Endpoint};

/// Where tests of real SPIRE run: `tests/run --spire` sets it to 1.
const WANTED: &str = "PORTARIUM_SPIRE";

/// Whether identities are to come from real SPIRE.
pub fn on_spire() -> bool {
    std::env::var_os(WANTED).is_some_and(|value| value == "1")
}

/// A registration entry. Its id is its hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The full SPIFFE ID.
    pub spiffe_id: String,
    /// The hint.
    pub hint: String,
    /// DNS names; the first becomes the CN.
    pub dns_names: Vec<String>,
    /// How long its SVIDs live.
    pub ttl: Duration,
    /// Trust domains whose bundles come with it.
    pub federates_with: Vec<String>,
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
    pub fn bundle_endpoint(&self) -> String {
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

    /// Has these entries in place of those that were there, and waits until the agent serves them.
    pub async fn register(&self, entries: Vec<Registration>) {
        let before = std::mem::replace(&mut self.running().entries, entries.clone());
        self.delete(before.iter().filter(|entry| !entries.contains(entry)))
            .await;
        let stay = |hint: &str| before.iter().any(|b| b.hint == hint && entries.contains(b));
        until("the agent to forget entries", async || {
            let hints = self.hints().await;
            hints.is_some_and(|hints| hints.iter().all(|hint| stay(hint)))
        })
        .await;
        self.create(entries.iter().filter(|entry| !before.contains(entry)))
            .await;
        until("the agent to serve all entries", async || {
            let hints = self.hints().await;
            hints.is_some_and(|hints| hints.len() == entries.len())
        })
        .await;
    }

    /// Adds entries without waiting for anything but the server's word.
    async fn create(&self, entries: impl Iterator<Item = &Registration>) {
        let parent = self.running().parent.clone();
        let uid = rustix::process::getuid().as_raw();
        let entries: Vec<Value> = entries
            .map(|entry| {
                json!({
                    "entry_id": entry.hint,
                    "parent_id": parent,
                    "spiffe_id": entry.spiffe_id,
                    "selectors": [{"type": "unix", "value": format!("uid:{uid}")}],
                    "hint": entry.hint,
                    "dns_names": entry.dns_names,
                    "x509_svid_ttl": entry.ttl.as_secs(),
                    "federates_with": entry.federates_with,
                })
            })
            .collect();
        if !entries.is_empty() {
            let data = json!({ "entries": entries }).to_string();
            self.server_told(&["entry", "create", "-data", "-"], data)
                .await;
        }
    }

    async fn delete(&self, entries: impl Iterator<Item = &Registration>) {
        let ids: Vec<_> = entries.map(|entry| entry.hint.as_str()).collect();
        if !ids.is_empty() {
            let data = json!({ "ids": ids }).to_string();
            self.server_told(&["entry", "delete", "-file", "-"], data)
                .await;
        }
    }

    /// The hints that are served in the order in which they are, none where access is denied.
    pub async fn hints(&self) -> Option<Vec<String>> {
        match self.fetch().await {
            Ok(context) => {
                let hints = context.svids().iter().map(|svid| svid.hint());
                Some(hints.map(|h| h.unwrap_or_default().to_owned()).collect())
            }
            Err(error) if error.contains("no identity issued") => Some(Vec::new()),
            Err(_) => None,
        }
    }

    /// Makes the next X.509 authority, and waits until the agent serves it.
    pub async fn prepare(&self) {
        let before = self.authorities().await;
        self.authority("prepare", &[]).await;
        let more = async || self.authorities().await > before;
        until("the agent to serve the next authority", more).await;
    }

    /// Has the prepared authority sign from now on.
    pub async fn activate(&self) {
        let next = self.authority_in("prepared").await;
        self.authority("activate", &["-authorityID", &next]).await;
    }

    /// Has everything issued anew that the authority before signed, and waits for that.
    pub async fn taint(&self) {
        let leaves = async || -> Vec<Vec<u8>> {
            let context = self.fetch().await.unwrap();
            let leaves = context.svids().iter().map(|svid| svid.leaf().as_bytes());
            leaves.map(<[u8]>::to_vec).collect()
        };
        let before = leaves().await;
        let old = self.authority_in("old").await;
        self.authority("taint", &["-authorityID", &old]).await;
        until("the agent to serve new SVIDs", async || {
            !leaves().await.iter().any(|leaf| before.contains(leaf))
        })
        .await;
    }

    /// Takes the tainted authority out of the bundle.
    pub async fn revoke(&self) {
        let old = self.authority_in("old").await;
        self.authority("revoke", &["-authorityID", &old]).await;
    }

    async fn authority(&self, what: &str, flags: &[&str]) -> String {
        let command = ["localauthority", "x509", what, "-output", "json"];
        self.server(&[&command, flags].concat()).await
    }

    /// The id of the authority that signs.
    pub async fn signing(&self) -> String {
        self.authority_in("active").await
    }

    /// The id of the authority in this state.
    async fn authority_in(&self, state: &str) -> String {
        let shown = parsed(&self.authority("show", &[]).await);
        string(&shown[state]["authority_id"])
    }

    /// How many authorities the agent serves for the trust domain.
    async fn authorities(&self) -> usize {
        let Ok(context) = self.fetch().await else {
            return 0;
        };
        let bundles = context.bundle_set().iter();
        bundles.map(|(_, bundle)| bundle.authorities().len()).sum()
    }

    /// Mints an SVID that nobody renews: `svid.pem`, `key.pem` and `bundle.pem` in this folder.
    pub fn mint(&self, spiffe_id: &str, dns_names: &[String], ttl: Duration, dir: &Path) {
        let ttl = format!("{}s", ttl.as_secs());
        let dir = dir.display().to_string();
        let mut words = vec![
            "x509",
            "mint",
            "-spiffeID",
            spiffe_id,
            "-ttl",
            &ttl,
            "-write",
            &dir,
        ];
        for name in dns_names {
            words.extend(["-dns", name]);
        }
        call(&self.path("server.sock"), &words, None).unwrap();
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

/// One command of `spire-server`, to the server at this socket.
fn call(socket: &Path, words: &[&str], input: Option<String>) -> Result<String, String> {
    // Flags come behind the words of the command and before anything else.
    let flags = words.iter().position(|word| word.starts_with('-'));
    let (command, flags) = words.split_at(flags.unwrap_or(words.len()));
    let mut child = Command::new(program("spire-server"))
        .args(command)
        .arg("-socketPath")
        .arg(socket)
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(input.unwrap_or_default().as_bytes())
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(said + &String::from_utf8_lossy(&output.stderr))
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn string(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value}"))
        .to_owned()
}

/// A program of SPIRE on the `PATH`.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let executable = |file: &PathBuf| {
        let found = fs::metadata(file);
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(executable)
        .unwrap_or_else(|| panic!("{name} is not on the PATH; install a release of SPIRE"))
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
