//! What all clients of a gateway have in common.

use super::{
    Usage,
    output::{self, remark},
};
use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use portarium_identity::{
    ClientTls, IdentityState, PeerPolicy, Snapshot, SpiffeIdPattern, SvidConfig, SvidManager,
};
use portarium_protocols::grpc::{
    ALPN, Channel, ChannelError, Connection, Credential, GrpcError, Target, connect,
    pb::mission_service_client::MissionServiceClient,
};
use std::{
    convert::Infallible, env, fmt, fs, io, net::IpAddr, path::PathBuf, sync::Arc, time::Duration,
};
use tokio::{task::spawn_blocking, time::timeout};
use tonic::{Request, Response, Status};

/// How long to wait for an SVID before saying what is in its way.
pub(super) const SVID_LIMIT: Duration = Duration::from_secs(4);

/// How long a token's file may take to be read: it may be on a disk that hangs.
const TOKEN_LIMIT: Duration = Duration::from_millis(500);

/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Where this workload's identity comes from.
#[derive(Debug, Clone, Args)]
pub(super) struct IdentityArgs {
    /// The Workload API's socket, a path or unix:///PATH; SPIFFE_ENDPOINT_SOCKET otherwise.
    #[arg(long, value_name = "SOCKET")]
    socket: Option<String>,
    /// The hint of the SVID to use, where there are several.
    #[arg(long)]
    hint: Option<String>,
}

/// Which gateway to call, and as whom.
#[derive(Debug, Clone, Args)]
pub(super) struct ClientArgs {
    #[command(flatten)]
    identity: IdentityArgs,
    /// The gateway.
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "PORTARIUM_SERVER",
        default_value = "localhost:50051"
    )]
    server: Target,
    /// Who the gateway must be: a SPIFFE ID, or a pattern with * for whole path segments.
    #[arg(
        long,
        value_name = "SPIFFE_ID",
        env = "PORTARIUM_SERVER_ID",
        required_unless_present = "plaintext"
    )]
    server_id: Option<SpiffeIdPattern>,
    /// Call a development gateway on this machine, without any identity.
    #[arg(long)]
    plaintext: bool,
    /// A file with an access token; read for each call.
    #[arg(
        long,
        value_name = "FILE",
        env = "PORTARIUM_TOKEN_FILE",
        conflicts_with = "plaintext"
    )]
    token_file: Option<PathBuf>,
    /// Answer in JSON, one object per line.
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) type Missions = MissionServiceClient<Channel>;

/// An access token as its file had it for this call.
struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

impl Credential for Token {
    fn bearer(&self) -> io::Result<Option<String>> {
        Ok(Some(self.0.clone()))
    }
}

impl IdentityArgs {
    pub(super) fn manager(&self) -> anyhow::Result<SvidManager> {
        Ok(SvidManager::start(self.config()?)?)
    }

    pub(super) fn config(&self) -> anyhow::Result<SvidConfig> {
        let endpoint_socket = self
            .socket
            .as_ref()
            .map(|socket| match socket.strip_prefix('/') {
                Some(_) => format!("unix://{socket}"),
                None => socket.clone(),
            });
        let inherited = env::var_os("SPIFFE_ENDPOINT_SOCKET").is_some_and(|v| !v.is_empty());
        if endpoint_socket.is_none() && !inherited {
            bail!("no Workload API socket is named; give --socket or set SPIFFE_ENDPOINT_SOCKET");
        }
        Ok(SvidConfig {
            endpoint_socket,
            hint: self.hint.clone(),
            ..SvidConfig::default()
        })
    }
}

/// The SVID, or after a while what is in its way.
pub(super) async fn svid(manager: &SvidManager) -> anyhow::Result<Arc<Snapshot>> {
    match timeout(SVID_LIMIT, manager.ready()).await {
        Ok(snapshot) => Ok(snapshot),
        Err(_) => {
            let state = manager.state();
            let advice = match state {
                IdentityState::NoSuchHint { .. } => "; choose one with --hint",
                _ => "",
            };
            Err(anyhow!("no SVID within {SVID_LIMIT:?}: {state}{advice}"))
        }
    }
}

/// As whom the gateway is called.
struct Own {
    manager: SvidManager,
    tls: ClientTls,
    svid: Arc<Snapshot>,
}

/// A connection that is kept up for as long as the command runs.
pub(super) struct Kept {
    pub(super) connection: Connection,
    manager: Option<SvidManager>,
}

impl Kept {
    /// Cuts the connection whenever the gateway, or we ourselves, would not be accepted now.
    pub(super) async fn recheck(&self) -> Infallible {
        if let Some(manager) = &self.manager {
            let mut snapshots = manager.snapshots();
            while snapshots.changed().await.is_ok() {
                self.connection.recheck();
            }
        }
        std::future::pending().await
    }
}

impl ClientArgs {
    /// Connects once, for a few calls.
    pub(super) async fn connect(&self) -> anyhow::Result<Missions> {
        let tls = self.tls().await?;
        self.missions(self.reach(tls.as_ref()).await?).await
    }

    /// As [`ClientArgs::connect`], for a stop: it goes out as well where there is no token, since the
    /// gateway may not ask for one.
    pub(super) async fn connect_to_stop(&self) -> anyhow::Result<Missions> {
        let tls = self.tls().await?;
        let (channel, token) = tokio::join!(self.reach(tls.as_ref()), self.token());
        let token = token.unwrap_or_else(|error| {
            remark(format_args!("{error:#}; the stop goes out without a token"));
            None
        });
        Ok(MissionServiceClient::new(channel?.showing(token)))
    }

    /// The service behind this connection, with the token that is in its file now.
    pub(super) async fn missions(&self, channel: Channel) -> anyhow::Result<Missions> {
        let token = self.token().await?;
        Ok(MissionServiceClient::new(channel.showing(token)))
    }

    async fn token(&self) -> anyhow::Result<Option<Arc<dyn Credential>>> {
        let Some(file) = self.token_file.clone() else {
            return Ok(None);
        };
        let whose = format!("--token-file {}", file.display());
        let read = timeout(TOKEN_LIMIT, spawn_blocking(|| fs::read_to_string(file)));
        let read = read
            .await
            .map_err(|_| anyhow!("it cannot be read within {TOKEN_LIMIT:?}"));
        let text = read.and_then(|read| Ok(read??)).context(whose.clone())?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("{whose}: it has no token in it, or more than one");
        }
        Ok(Some(Arc::new(Token(token.to_owned()))))
    }

    /// A connection that is kept up, once it stood for the first time.
    pub(super) async fn keep_connected(&self) -> anyhow::Result<Kept> {
        let tls = self.tls().await?;
        // One attempt tells more precisely what is wrong than a connection that goes on trying.
        self.reach(tls.as_ref()).await?;
        let (manager, tls) = tls.map(|own| (own.manager, own.tls)).unzip();
        Ok(Kept {
            connection: Connection::start(self.server.clone(), tls, "gateway"),
            manager,
        })
    }

    async fn reach(&self, tls: Option<&Own>) -> anyhow::Result<Channel> {
        let channel = connect(&self.server, tls.map(|own| &own.tls)).await;
        let as_whom = || match tls {
            Some(own) => format!("{} as {}", self.server, own.svid.spiffe_id),
            None => format!("{} in plaintext", self.server),
        };
        match channel {
            // With TLS 1.3 this is how a server turns a client away.
            Err(error @ GrpcError::Refused(_)) if tls.is_some() => Err(anyhow!(
                "{error}; check that a policy rule of the gateway names this ID"
            )
            .context(as_whom())),
            other => other.with_context(as_whom),
        }
    }

    async fn tls(&self) -> anyhow::Result<Option<Own>> {
        let Some(server) = self.server_id.clone().filter(|_| !self.plaintext) else {
            return self.on_this_machine().map(|()| None);
        };
        let manager = self.identity.manager()?;
        let svid = svid(&manager).await?;
        let tls = manager.client_tls(PeerPolicy::new([server]), ALPN);
        Ok(Some(Own { manager, tls, svid }))
    }

    fn on_this_machine(&self) -> anyhow::Result<()> {
        let host = self.server.host();
        let loopback = host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        if loopback || host == "localhost" {
            return Ok(());
        }
        Err(Usage(format!(
            "--plaintext is for a gateway on this machine, and {host} is not; name it with --server-id"
        ))
        .into())
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The gateway has not seen it, for certain.
    #[error("the gateway was not reached: {0}")]
    NotSent(String),
    /// It may have been carried out.
    #[error("no answer, so that it may have been carried out: {0}")]
    Unknown(String),
    /// The gateway refused it.
    #[error("{0}")]
    Refused(String),
}

/// Makes a call, bounded in time.
pub(super) async fn call<T, F>(request: impl FnOnce() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    match timeout(CALL_LIMIT, request()).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(CallError::of(&status)),
        Err(_) => Err(CallError::Unknown(format!("nothing within {CALL_LIMIT:?}"))),
    }
}

impl CallError {
    fn of(status: &Status) -> Self {
        use tonic::Code;
        let told = output::clean(status.message());
        if ChannelError::was_not_sent(status) {
            return Self::NotSent(told);
        }
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
                Self::Unknown(told)
            }
            code if told.is_empty() => Self::Refused(code.description().to_owned()),
            _ => Self::Refused(told),
        }
    }
}

/// A request that the server need not work on longer than we wait.
pub(super) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}
