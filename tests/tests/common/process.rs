//! A program of ours as a child.

use super::{LIMIT, until};
use portarium_tests::binary;
use std::{
    env,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, timeout},
};

/// The shipped binary with these words, in an environment without anything that it reads.
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(binary("portarium-gateway"));
    let ours = |name: &str| name.starts_with("PORTARIUM") || name.starts_with("SPIFFE");
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if ours(&name) || name == "RUST_LOG" || name == "KUBERNETES_SERVICE_HOST" {
            command.env_remove(name.as_ref());
        }
    }
    command.args(words);
    command
}

/// How a process ended, and all it said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    /// From the first byte of waiting for it on.
    pub took: Duration,
}

/// A process that ends with the test.
pub struct Process {
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
    readers: [JoinHandle<()>; 2],
    started: Instant,
}

impl Process {
    pub fn spawn(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (out, err) = (Arc::default(), Arc::default());
        let readers = [
            read(child.stdout.take().unwrap(), Arc::clone(&out)),
            read(child.stderr.take().unwrap(), Arc::clone(&err)),
        ];
        Self {
            child,
            out,
            err,
            readers,
            started: Instant::now(),
        }
    }

    pub fn out(&self) -> String {
        self.out.lock().unwrap().clone()
    }

    pub fn err(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    /// Waits until standard output holds the text.
    pub async fn says(&self, text: &str) {
        until(&format!("standard output says {text:?}"), || async {
            self.out().contains(text).then_some(())
        })
        .await;
    }

    /// Waits until standard error holds the text.
    pub async fn complains(&self, text: &str) {
        until(&format!("standard error says {text:?}"), || async {
            self.err().contains(text).then_some(())
        })
        .await;
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id().expect("it runs")).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn interrupt(&self) {
        self.signal(rustix::process::Signal::INT);
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ended {
        let ended = timeout(LIMIT, self.child.wait()).await;
        let Ok(status) = ended else {
            panic!("it does not end: {}{}", self.out(), self.err());
        };
        let took = self.started.elapsed();
        for reader in &mut self.readers {
            reader.await.unwrap();
        }
        Ended {
            code: status.unwrap().code(),
            out: self.out(),
            err: self.err(),
            took,
        }
    }
}

fn read(from: impl AsyncRead + Unpin + Send + 'static, to: Arc<Mutex<String>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut to = to.lock().unwrap();
            to.push_str(&line);
            to.push('\n');
        }
    })
}

/// Runs the binary to its end.
pub async fn run(words: &[&str]) -> Ended {
    Process::spawn(command(words)).ended().await
}
