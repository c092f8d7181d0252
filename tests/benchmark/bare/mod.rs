//! The rivals: programs that do the same over the same wires, with nothing in between. No
//! journal, no policy, no state machine, no audit, no rotation.

mod grpc;
mod mqtt;

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use portarium_protocols::grpc::{
    ALPN,
    pb::{
        self,
        mission_service_server::{MissionService, MissionServiceServer},
    },
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use std::{
    collections::HashMap,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, sync::oneshot};
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, service::Routes};

/// Where a rival listens, the folder with its certificates, and where the robots are.
#[derive(Debug, Clone, clap::Args)]
pub struct Bare {
    #[arg(long)]
    listen: u16,
    /// Where it does nothing but handshakes.
    #[arg(long)]
    accept: u16,
    #[arg(long)]
    certificates: PathBuf,
    #[command(subcommand)]
    robots: Robots,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Robots {
    Mqtt(mqtt::Broker),
    Grpc(grpc::Addresses),
}

/// The bare bridge; its `GetMissionStatus` is the bare call.
pub async fn run(bare: Bare) {
    let files = Files::read(&bare.certificates);
    tokio::spawn(accept(bare.accept, files.server()));
    let routes = match bare.robots {
        Robots::Mqtt(broker) => bridge(mqtt::Robots::connect(broker, files.client()).await),
        Robots::Grpc(addresses) => bridge(grpc::Robots::connect(addresses, files.client()).await),
    };
    serve(bare.listen, files.server(), routes).await;
}

fn bridge(robots: impl Southbound) -> Routes {
    Routes::new(MissionServiceServer::new(Bridge(robots)))
}

/// The side of the robots.
trait Southbound: Send + Sync + 'static {
    /// Hands a mission over; waits for its end, unless it is a stop.
    fn carry(&self, mission: &pb::DispatchMissionRequest) -> impl Future<Output = ()> + Send;
}

/// Who waits for the robot's `Succeeded`, by mission.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>);

impl Waiting {
    /// Nothing for a stop.
    fn wait(&self, mission: &pb::DispatchMissionRequest) -> Option<oneshot::Receiver<()>> {
        (mission.action_type == "robot:execute_action").then(|| {
            let (tell, ended) = oneshot::channel();
            let mut waiting = self.0.lock().unwrap();
            waiting.insert(mission.mission_id.clone(), tell);
            ended
        })
    }

    fn succeeded(&self, mission: &str) {
        if let Some(tell) = self.0.lock().unwrap().remove(mission) {
            // The caller may have gone.
            let _ = tell.send(());
        }
    }
}

struct Bridge<R>(R);

/// What the rest of the contract answers, as `async_trait` would write it.
macro_rules! not_served {
    ($($name:ident($request:ident) -> $response:ident;)*) => {$(
        fn $name<'a, 'async_trait>(
            &'a self,
            _: Request<pb::$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<pb::$response>, Status>> + Send + 'async_trait>>
        where
            'a: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented("a bare bridge")) })
        }
    )*};
}

#[tonic::async_trait]
impl<R: Southbound> MissionService for Bridge<R> {
    type WatchMissionsStream = futures::stream::Pending<Result<pb::MissionUpdate, Status>>;

    async fn dispatch_mission(
        &self,
        request: Request<pb::DispatchMissionRequest>,
    ) -> Result<Response<pb::DispatchMissionResponse>, Status> {
        let mission = request.into_inner();
        self.0.carry(&mission).await;
        Ok(Response::new(pb::DispatchMissionResponse {
            status: pb::DispatchStatus::Dispatched.into(),
            mission_id: mission.mission_id,
            ..Default::default()
        }))
    }

    async fn get_mission_status(
        &self,
        _: Request<pb::GetMissionStatusRequest>,
    ) -> Result<Response<pb::GetMissionStatusResponse>, Status> {
        Ok(Response::new(pb::GetMissionStatusResponse::default()))
    }

    async fn watch_missions(
        &self,
        _: Request<pb::WatchMissionsRequest>,
    ) -> Result<Response<Self::WatchMissionsStream>, Status> {
        Err(Status::unimplemented("a bare bridge"))
    }

    not_served! {
        cancel_mission(CancelMissionRequest) -> CancelMissionResponse;
        confirm_mission(ConfirmMissionRequest) -> ConfirmMissionResponse;
        resolve_mission(ResolveMissionRequest) -> ResolveMissionResponse;
        list_robots(ListRobotsRequest) -> ListRobotsResponse;
        get_robot(GetRobotRequest) -> Robot;
        hold_robot(HoldRobotRequest) -> Robot;
        release_robot(ReleaseRobotRequest) -> Robot;
        list_peers(ListPeersRequest) -> ListPeersResponse;
    }
}

async fn serve(port: u16, tls: ServerConfig, routes: Routes) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let routes = routes.prepare();
    println!("ready");
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, routes) = (acceptor.clone(), routes.clone());
        tokio::spawn(async move {
            tcp.set_nodelay(true).unwrap();
            let Ok(stream) = acceptor.accept(tcp).await else {
                return;
            };
            let service = TowerToHyperService::new(routes);
            // It ends with its client.
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The bare accept loop: a handshake and a byte.
async fn accept(port: u16, tls: ServerConfig) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            tcp.set_nodelay(true).unwrap();
            if let Ok(mut stream) = acceptor.accept(tcp).await {
                // The client may have gone.
                let _ = stream.write_all(b"x").await;
            }
        });
    }
}

/// Certificates that are not renewed.
struct Files {
    bundle: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Files {
    fn read(dir: &Path) -> Self {
        let certificates = |name| {
            let all = CertificateDer::pem_file_iter(dir.join(name)).unwrap();
            all.map(Result::unwrap).collect()
        };
        Self {
            bundle: certificates("bundle.pem"),
            chain: certificates("svid.pem"),
            key: PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap(),
        }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.bundle.clone());
        Arc::new(roots)
    }

    fn server(&self) -> ServerConfig {
        let verifier = WebPkiClientVerifier::builder(self.roots()).build().unwrap();
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .unwrap();
        config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
        config
    }

    fn client(&self) -> ClientConfig {
        ClientConfig::builder()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .unwrap()
    }
}
