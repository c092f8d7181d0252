//! A gateway that answers as the test says, and an authority beside it.

use portarium_identity::{
    PeerPolicy, SvidConfig, SvidManager,
    authority::{Authority, AuthorityConfig, Entry},
};
use portarium_protocols::grpc::{
    ALPN, Connections,
    pb::{
        self,
        mission_service_server::{MissionService, MissionServiceServer},
    },
    server::{ServerLimits, serve},
};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::PathBuf,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, process::Command, time::timeout};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

pub const TRUST_DOMAIN: &str = "portarium.robotics";
pub const GATEWAY: &str = "spiffe://portarium.robotics/ns/portarium/sa/robotics-gateway/dev";

/// How one watch goes: the updates, and the error that it ends with.
pub type Watch = (Vec<pb::MissionUpdate>, Option<Status>);

/// What is asked and what is answered.
#[derive(Default)]
pub struct Script {
    pub dispatched: Mutex<Vec<pb::DispatchMissionRequest>>,
    pub answer: Mutex<pb::DispatchMissionResponse>,
    pub refuse: Mutex<Option<Status>>,
    pub status: Mutex<pb::GetMissionStatusResponse>,
    pub accepted: Mutex<bool>,
    pub noted: Mutex<Vec<String>>,
    pub robots: Mutex<Vec<pb::Robot>>,
    pub peers: Mutex<pb::ListPeersResponse>,
    pub watched: Mutex<Vec<pb::WatchMissionsRequest>>,
    pub watches: Mutex<VecDeque<Watch>>,
    /// The position that the next watch is told to begin behind.
    pub position: Mutex<Option<u64>>,
}

struct Service(Arc<Script>);

impl Service {
    fn note(&self, call: String) -> Result<(), Status> {
        self.0.noted.lock().unwrap().push(call);
        match self.0.refuse.lock().unwrap().clone() {
            Some(status) => Err(status),
            None => Ok(()),
        }
    }

    fn robot(&self) -> Response<pb::Robot> {
        Response::new(self.0.robots.lock().unwrap()[0].clone())
    }
}

type Updates = std::pin::Pin<Box<dyn Stream<Item = Result<pb::MissionUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl MissionService for Service {
    async fn dispatch_mission(
        &self,
        request: Request<pb::DispatchMissionRequest>,
    ) -> Result<Response<pb::DispatchMissionResponse>, Status> {
        let request = request.into_inner();
        let mut answer = self.0.answer.lock().unwrap().clone();
        answer.mission_id = request.mission_id.clone();
        self.0.dispatched.lock().unwrap().push(request);
        self.note("dispatch".into())?;
        Ok(Response::new(answer))
    }

    async fn cancel_mission(
        &self,
        request: Request<pb::CancelMissionRequest>,
    ) -> Result<Response<pb::CancelMissionResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("cancel {} {}", request.mission_id, request.reason))?;
        Ok(Response::new(pb::CancelMissionResponse {
            accepted: *self.0.accepted.lock().unwrap(),
            cancelled_at: "2026-01-02T03:04:05Z".into(),
            message: "so it is".into(),
        }))
    }

    async fn get_mission_status(
        &self,
        request: Request<pb::GetMissionStatusRequest>,
    ) -> Result<Response<pb::GetMissionStatusResponse>, Status> {
        self.note(format!("status {}", request.into_inner().mission_id))?;
        Ok(Response::new(self.0.status.lock().unwrap().clone()))
    }

    type WatchMissionsStream = Updates;

    async fn watch_missions(
        &self,
        request: Request<pb::WatchMissionsRequest>,
    ) -> Result<Response<Updates>, Status> {
        self.0.watched.lock().unwrap().push(request.into_inner());
        self.note("watch".into())?;
        let next = self.0.watches.lock().unwrap().pop_front();
        let stream: Updates = match next {
            // Nothing more is scripted: nothing more happens.
            None => Box::pin(tokio_stream::pending()),
            Some((updates, end)) => {
                let items = updates.into_iter().map(Ok).chain(end.map(Err));
                Box::pin(tokio_stream::iter(items.collect::<Vec<_>>()))
            }
        };
        let mut response = Response::new(stream);
        if let Some(position) = *self.0.position.lock().unwrap() {
            let position = position.to_string().parse().unwrap();
            response
                .metadata_mut()
                .insert("portarium-position", position);
        }
        Ok(response)
    }

    async fn confirm_mission(
        &self,
        request: Request<pb::ConfirmMissionRequest>,
    ) -> Result<Response<pb::ConfirmMissionResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("confirm {} {}", request.mission_id, request.note))?;
        let accepted = *self.0.accepted.lock().unwrap();
        Ok(Response::new(pb::ConfirmMissionResponse {
            accepted,
            message: String::new(),
        }))
    }

    async fn resolve_mission(
        &self,
        request: Request<pb::ResolveMissionRequest>,
    ) -> Result<Response<pb::ResolveMissionResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("resolve {} {}", request.mission_id, request.status))?;
        let accepted = *self.0.accepted.lock().unwrap();
        Ok(Response::new(pb::ResolveMissionResponse {
            accepted,
            message: String::new(),
        }))
    }

    async fn list_robots(
        &self,
        _: Request<pb::ListRobotsRequest>,
    ) -> Result<Response<pb::ListRobotsResponse>, Status> {
        self.note("list".into())?;
        let robots = self.0.robots.lock().unwrap().clone();
        Ok(Response::new(pb::ListRobotsResponse { robots }))
    }

    async fn get_robot(
        &self,
        request: Request<pb::GetRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        self.note(format!("show {}", request.into_inner().robot_id))?;
        Ok(self.robot())
    }

    async fn hold_robot(
        &self,
        request: Request<pb::HoldRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        let request = request.into_inner();
        self.note(format!("hold {} {}", request.robot_id, request.reason))?;
        Ok(self.robot())
    }

    async fn release_robot(
        &self,
        request: Request<pb::ReleaseRobotRequest>,
    ) -> Result<Response<pb::Robot>, Status> {
        let request = request.into_inner();
        self.note(format!("release {} {}", request.robot_id, request.reason))?;
        Ok(self.robot())
    }

    async fn list_peers(
        &self,
        request: Request<pb::ListPeersRequest>,
    ) -> Result<Response<pb::ListPeersResponse>, Status> {
        self.note(format!("peers {}", request.into_inner().authority_id))?;
        Ok(Response::new(self.0.peers.lock().unwrap().clone()))
    }
}

/// Authority and gateway; both end with it.
pub struct World {
    pub authority: Authority,
    pub script: Arc<Script>,
    pub address: SocketAddr,
    pub folder: TempDir,
    _stop: tokio_util::sync::DropGuard,
}

fn entry(hint: &str) -> Entry {
    Entry {
        spiffe_id: format!("spiffe://{TRUST_DOMAIN}/ns/portarium/sa/{hint}/dev"),
        hint: hint.into(),
        dns_names: vec!["localhost".into(), format!("{hint}.svc")],
    }
}

impl World {
    /// A gateway that admits operators, over mutual TLS.
    pub async fn new() -> Self {
        portarium_identity::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::start(AuthorityConfig {
            trust_domain: TRUST_DOMAIN.into(),
            socket: folder.path().join("agent.sock"),
            svid_ttl: Duration::from_secs(3600),
            entries: ["robotics-gateway", "operator", "stranger"]
                .map(entry)
                .to_vec(),
        })
        .await
        .unwrap();
        let manager = SvidManager::start(SvidConfig {
            endpoint_socket: Some(format!(
                "unix://{}",
                folder.path().join("agent.sock").display()
            )),
            hint: Some("robotics-gateway".into()),
            ..SvidConfig::default()
        })
        .unwrap();
        timeout(Duration::from_secs(10), manager.ready())
            .await
            .unwrap();
        let operators = "spiffe://portarium.robotics/ns/*/sa/operator/*"
            .parse()
            .unwrap();
        let tls = manager.server_tls(PeerPolicy::new([operators]), ALPN);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Script::default());
        let service = MissionServiceServer::new(Service(Arc::clone(&script)));
        let stop = CancellationToken::new();
        let serving = serve(
            listener,
            Some(tls),
            tonic::service::Routes::new(service),
            ServerLimits::default(),
            Connections::new(),
            stop.clone(),
        );
        tokio::spawn(serving);
        Self {
            authority,
            script,
            address,
            folder,
            _stop: stop.drop_guard(),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// The binary as an operator calls it; `words` are split at blanks.
    pub fn command(&self, words: &str) -> Command {
        let mut command = bare(words);
        command
            .env(
                "SPIFFE_ENDPOINT_SOCKET",
                format!("unix://{}", self.socket().display()),
            )
            .env(
                "PORTARIUM_SERVER",
                format!("localhost:{}", self.address.port()),
            )
            .env("PORTARIUM_SERVER_ID", GATEWAY)
            .args(["--hint", "operator"]);
        command
    }

    /// Exit code, standard output and standard error of the binary.
    pub async fn says(&self, words: &str) -> (i32, String, String) {
        ended(self.command(words)).await
    }
}

/// The binary without anything from this process's environment that it reads.
pub fn bare(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portarium-gateway"));
    for name in [
        "SPIFFE_ENDPOINT_SOCKET",
        "PORTARIUM_SERVER",
        "PORTARIUM_SERVER_ID",
        "RUST_LOG",
    ] {
        command.env_remove(name);
    }
    command
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

pub async fn ended(mut command: Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = timeout(Duration::from_secs(20), command.output())
        .await
        .unwrap()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}
