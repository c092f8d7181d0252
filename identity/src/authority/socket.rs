//! The socket: 0600 from the first moment, taken from nobody, and for one user only.
use super::{AuthorityError, http2::Rewriter};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    os::unix::net::{UnixListener as StdListener, UnixStream as StdStream},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};

/// Connections accepted and not yet taken by the server.
const BACKLOG: usize = 16;
/// Connections at one time; further ones wait.
const MAX_CONNECTIONS: usize = 256;
/// Bytes on their way between a caller and the server, each way.
const RELAY_BYTES: usize = 16 * 1024;
/// The pause after a failed accept (too many open files, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound socket; its file goes with it.
pub(super) struct Socket {
    path: PathBuf,
    /// Device and inode, so that a successor's file is left alone.
    file: (u64, u64),
    owner: u32,
}

impl Socket {
    /// Binds in a private folder and moves the socket to its place in one step, so that it is
    /// never there with other permissions, and never half made.
    pub(super) fn bind(path: &Path) -> Result<(Self, UnixListener), AuthorityError> {
        let failed = |source| AuthorityError::Socket {
            path: path.to_owned(),
            source,
        };
        refuse_a_live_one(path).map_err(failed)?;
        let (listener, file) = bind_privately(path).map_err(failed)?;
        let socket = Self {
            path: path.to_owned(),
            file: (file.dev(), file.ino()),
            owner: file.uid(),
        };
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        Ok((socket, listener))
    }

    pub(super) fn owner(&self) -> u32 {
        self.owner
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        if ours {
            // Nothing is lost with a file that stays: the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn refuse_a_live_one(path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if !there.file_type().is_socket() {
        let message = "a file that is no socket is in the way";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    match StdStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another authority serves there",
        )),
    }
}

fn bind_privately(path: &Path) -> io::Result<(StdListener, fs::Metadata)> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let private = folder.join(format!(".{:06x}", fastrand::u32(..0x0100_0000)));
    fs::DirBuilder::new().mode(0o700).create(&private)?;
    let bound = bind_in(&private, path);
    let removed = fs::remove_dir_all(&private);
    let bound = bound?;
    removed?;
    Ok(bound)
}

fn bind_in(private: &Path, path: &Path) -> io::Result<(StdListener, fs::Metadata)> {
    let made = private.join("s");
    let listener = StdListener::bind(&made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
    let file = fs::symlink_metadata(&made)?;
    fs::rename(&made, path)?;
    Ok((listener, file))
}

/// Accepts connections of the socket's owner; all others are closed without a word. Dropping the
/// future closes all connections.
pub(super) fn accept(
    listener: UnixListener,
    owner: u32,
) -> (
    impl Future<Output = ()> + Send + 'static,
    mpsc::Receiver<io::Result<DuplexStream>>,
) {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let accepting = async move {
        let mut relays = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept(), if relays.len() < MAX_CONNECTIONS => accepted,
                Some(_) = relays.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) if is_owner(&stream, owner) => {
                    let (ours, servers) = tokio::io::duplex(RELAY_BYTES);
                    relays.spawn(relay(stream, ours));
                    if sender.send(Ok(servers)).await.is_err() {
                        return;
                    }
                }
                Ok(_) => tracing::warn!("a caller of another user was turned away"),
                Err(error) => {
                    tracing::warn!("cannot accept Workload API callers: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    (accepting, receiver)
}

fn is_owner(stream: &UnixStream, owner: u32) -> bool {
    stream.peer_cred().is_ok_and(|caller| caller.uid() == owner)
}

/// Passes on what a caller sends, as the server takes it, and what the server answers, until
/// either closes.
async fn relay(caller: UnixStream, server: DuplexStream) {
    let (mut from_caller, mut to_caller) = caller.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let inward = async {
        let mut rewriter = Rewriter::default();
        let mut bytes = vec![0; RELAY_BYTES];
        loop {
            let count = from_caller.read(&mut bytes).await?;
            if count == 0 {
                return Ok(());
            }
            let Ok(rewritten) = rewriter.feed(&bytes[..count]) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            to_server.write_all(&rewritten).await?;
        }
    };
    let ended: io::Result<()> = tokio::select! {
        ended = inward => ended,
        ended = tokio::io::copy(&mut from_server, &mut to_caller) => ended.map(|_| ()),
    };
    if let Err(error) = ended {
        tracing::debug!("a Workload API caller is gone: {error}");
    }
}
