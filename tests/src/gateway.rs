//! The shipped binary as a process.

use crate::{Config, PATIENCE, Ports, Process, binary};
use rustix::process::Signal;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// `portarium-gateway run`, on a configuration in a folder of the test.
pub struct GatewayProcess {
    /// Where it listens.
    pub ports: Ports,
    dir: PathBuf,
    prefix: Vec<OsString>,
    process: Process,
}

impl GatewayProcess {
    /// Writes the configuration, starts the gateway and waits until it is ready.
    pub async fn start(dir: &Path, config: &Config) -> Self {
        let gateway = Self::launch(dir, config);
        gateway.ready().await;
        gateway
    }

    /// As [`Self::start`], without waiting.
    pub fn launch(dir: &Path, config: &Config) -> Self {
        Self::launch_behind(Vec::new(), dir, config)
    }

    /// As [`Self::start`], by a command that becomes the gateway, also when it is started again.
    pub async fn start_behind(prefix: Vec<OsString>, dir: &Path, config: &Config) -> Self {
        let gateway = Self::launch_behind(prefix, dir, config);
        gateway.ready().await;
        gateway
    }

    /// As [`Self::start_behind`], without waiting.
    pub fn launch_behind(prefix: Vec<OsString>, dir: &Path, config: &Config) -> Self {
        fs::write(config_file(dir), config.render()).unwrap();
        Self {
            ports: config.ports,
            dir: dir.to_owned(),
            process: spawn(&prefix, dir),
            prefix,
        }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until `/readyz` says yes.
    pub async fn ready(&self) {
        let mut last = String::new();
        let ready = async {
            loop {
                match get(self.ports.health, "/readyz").await {
                    Some((200, _)) => return,
                    Some((_, reasons)) => last = reasons,
                    None => {}
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = timeout(PATIENCE, ready).await;
        assert!(waited.is_ok(), "the gateway is not ready: {last}");
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on what it left behind, without waiting.
    pub fn relaunch(&mut self) {
        self.process = spawn(&self.prefix, &self.dir);
    }

    /// Starts it again on what it left behind, and waits until it is ready.
    pub async fn restart(&mut self) {
        self.relaunch();
        self.ready().await;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    pub async fn wait(&mut self, patience: Duration) -> ExitStatus {
        self.process.wait(patience).await
    }

    /// What it wrote to standard error and output, over all its starts.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// The journal's file.
    pub fn journal_file(&self) -> PathBuf {
        self.dir.join("journal.sqlite")
    }

    /// The audit log's file.
    pub fn audit_file(&self) -> PathBuf {
        self.dir.join("audit.jsonl")
    }
}

fn config_file(dir: &Path) -> PathBuf {
    dir.join("gateway.toml")
}

fn spawn(prefix: &[OsString], dir: &Path) -> Process {
    Process::start_behind(
        prefix,
        &binary("portarium-gateway"),
        [
            "run".as_ref(),
            "--config".as_ref(),
            config_file(dir).as_os_str(),
        ],
        &dir.join("gateway.log"),
    )
}

/// Status and body of a plain HTTP GET on this machine; `None` where nobody answers.
pub(crate) async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
