//! The rivals: programs that do the same over the same wires, with nothing in between. No
//! journal, no policy, no state machine, no audit, no rotation.

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
use rumqttc::{
    TlsConfiguration, Transport,
    v5::{
        AsyncClient, Event, EventLoop, MqttOptions,
        mqttbytes::{QoS, v5::Packet},
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

/// Where a rival listens, which broker it uses, and the folder with its certificates.
#[derive(Debug, Clone, clap::Args)]
pub struct Bare {
    #[arg(long)]
    listen: u16,
    /// Where it does nothing but handshakes.
    #[arg(long)]
    accept: u16,
    #[arg(long)]
    broker: u16,
    #[arg(long)]
    certificates: PathBuf,
    #[arg(long)]
    client_id: String,
}

/// Waits for the robot's `Succeeded`, by mission.
type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

struct Bridge {
    mqtt: AsyncClient,
    waiting: Waiting,
}

/// The bare bridge; its `GetMissionStatus` is the bare call.
pub async fn run(bare: Bare) {
    let files = Files::read(&bare.certificates);
    let (mqtt, events) = connect(&bare, &files);
    let waiting = Waiting::default();
    tokio::spawn(listen(events, waiting.clone()));
    mqtt.subscribe(
        "portarium/acme/robots/+/missions/+/status",
        QoS::AtLeastOnce,
    )
    .await
    .unwrap();
    let routes = Routes::new(MissionServiceServer::new(Bridge { mqtt, waiting }));
    tokio::spawn(accept(bare.accept, files.server()));
    serve(bare.listen, files.server(), routes).await;
}

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
impl MissionService for Bridge {
    type WatchMissionsStream = futures::stream::Pending<Result<pb::MissionUpdate, Status>>;

    async fn dispatch_mission(
        &self,
        request: Request<pb::DispatchMissionRequest>,
    ) -> Result<Response<pb::DispatchMissionResponse>, Status> {
        let mission = request.into_inner();
        let ended = (mission.action_type == "robot:execute_action").then(|| {
            let (tell, ended) = oneshot::channel();
            let mut waiting = self.waiting.lock().unwrap();
            waiting.insert(mission.mission_id.clone(), tell);
            ended
        });
        let topic = format!(
            "portarium/acme/robots/{}/commands/{}",
            mission.robot_id, mission.mission_id
        );
        self.mqtt
            .publish(topic, QoS::AtLeastOnce, false, command(&mission))
            .await
            .unwrap();
        if let Some(ended) = ended {
            ended.await.unwrap();
        }
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
    }
}

/// The same command as the gateway's.
fn command(mission: &pb::DispatchMissionRequest) -> Vec<u8> {
    let parameters = mission.parameters.as_ref().map(|all| &all.fields);
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 1,
        "sentAt": "2026-01-01T00:00:00.000Z",
        "payload": {
            "missionId": mission.mission_id,
            "correlationId": mission.correlation_id,
            "planEffectIdempotencyKey": mission.plan_effect_idempotency_key,
            "robotId": mission.robot_id,
            "fleetId": mission.fleet_id,
            "gatewayId": "bare",
            "actionType": mission.action_type,
            "actionName": mission.action_name,
            "parameters": parameters,
            "idempotencyKey": mission.idempotency_key,
            "supportsPreemption": mission.supports_preemption,
            "bypassTierEvaluation": mission.bypass_tier_evaluation,
            "completionMode": mission.completion_mode,
            "requiresOperatorConfirmation": mission.requires_operator_confirmation,
            "requestedAt": mission.requested_at,
        },
    }))
    .unwrap()
}

async fn listen(mut events: EventLoop, waiting: Waiting) {
    loop {
        let Event::Incoming(Packet::Publish(publish)) = events.poll().await.unwrap() else {
            continue;
        };
        // An empty one clears a retained status.
        let Ok(status) = serde_json::from_slice::<serde_json::Value>(&publish.payload) else {
            continue;
        };
        if status["payload"]["status"] == "succeeded" {
            let topic = std::str::from_utf8(&publish.topic).unwrap();
            let mission = topic.split('/').nth(5).unwrap();
            if let Some(tell) = waiting.lock().unwrap().remove(mission) {
                // The caller may have gone.
                let _ = tell.send(());
            }
        }
    }
}

fn connect(bare: &Bare, files: &Files) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(&bare.client_id, "localhost", bare.broker);
    let tls = TlsConfiguration::Rustls(Arc::new(files.client()));
    options
        .set_transport(Transport::Tls(tls))
        .set_outgoing_inflight_upper_limit(1000);
    let mut network = rumqttc::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    AsyncClient::new(options, 1000)
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
