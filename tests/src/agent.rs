//! A SPIRE agent that restarts, hangs or refuses, between one workload and the authority.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// Passes a Workload API on, at a socket of its own.
pub struct Agent {
    socket: PathBuf,
    authority: PathBuf,
    silent: watch::Sender<bool>,
    serving: Option<JoinHandle<()>>,
}

impl Agent {
    /// Between this folder's authority and whoever uses it.
    pub fn start(dir: &Path) -> Self {
        let mut agent = Self {
            socket: dir.join("between.sock"),
            authority: dir.join("agent.sock"),
            silent: watch::Sender::new(false),
            serving: None,
        };
        agent.replace();
        agent
    }

    /// The command behind which the gateway asks it.
    pub fn prefix(&self) -> Vec<OsString> {
        let mut word = OsString::from("PORTARIUM__IDENTITY__ENDPOINT_SOCKET=unix://");
        word.push(&self.socket);
        vec!["env".into(), word]
    }

    /// As an agent that restarts: another socket is at its place, all streams have ended.
    pub fn replace(&mut self) {
        self.refuse();
        // As agents do it, which remove what they left behind.
        let _ = fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).unwrap();
        let passage = (self.authority.clone(), self.silent.subscribe());
        self.serving = Some(tokio::spawn(async move {
            let mut streams = JoinSet::new();
            while let Ok((inside, _)) = listener.accept().await {
                streams.spawn(pass(inside, passage.clone()));
            }
        }));
    }

    /// As an agent that died: the socket is there, and nobody listens.
    pub fn refuse(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }

    /// As an agent that died, on a machine that cleans up behind it.
    pub fn vanish(&mut self) {
        self.refuse();
        fs::remove_file(&self.socket).unwrap();
    }

    /// As an agent that hangs: connections are taken, and nothing is answered or sent.
    pub fn hang(&self) {
        self.silent.send_replace(true);
    }

    /// Ends [`Self::hang`].
    pub fn go_on(&self) {
        self.silent.send_replace(false);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.refuse();
    }
}

async fn pass(mut inside: UnixStream, passage: (PathBuf, watch::Receiver<bool>)) {
    let (authority, mut silent) = passage;
    let mut outside: Option<UnixStream> = None;
    loop {
        if silent.wait_for(|silent| !silent).await.is_err() {
            return;
        }
        let outside = match &mut outside {
            Some(outside) => outside,
            None => match UnixStream::connect(&authority).await {
                Ok(stream) => outside.insert(stream),
                Err(_) => return,
            },
        };
        tokio::select! {
            _ = copy_bidirectional(&mut inside, outside) => return,
            _ = silent.wait_for(|silent| *silent) => {}
        }
    }
}
