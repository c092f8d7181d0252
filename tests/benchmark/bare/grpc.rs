//! To robots that serve gRPC: the same call, and a watch of what they say of it.

use super::{Southbound, Waiting};
use hyper::{body::Incoming, client::conn::http2, http, http::Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portarium_protocols::grpc::{
    ALPN,
    pb::{self, mission_service_client::MissionServiceClient},
};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    collections::HashMap,
    net::SocketAddrV4,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{body::Body, codegen::Service};

/// Robots `r-0` and so on, each on an IP address of its own.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Addresses {
    #[arg(long)]
    first: SocketAddrV4,
    #[arg(long)]
    robots: u32,
}

pub(super) struct Robots {
    clients: HashMap<String, MissionServiceClient<Channel>>,
    waiting: Waiting,
}

impl Southbound for Robots {
    async fn carry(&self, mission: &pb::DispatchMissionRequest) {
        let ended = self.waiting.wait(mission);
        let mut client = self.clients[&mission.robot_id].clone();
        client.dispatch_mission(mission.clone()).await.unwrap();
        if let Some(ended) = ended {
            ended.await.unwrap();
        }
    }
}

impl Robots {
    pub(super) async fn connect(addresses: Addresses, mut tls: ClientConfig) -> Self {
        tls.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
        let tls = TlsConnector::from(Arc::new(tls));
        let waiting = Waiting::default();
        let mut clients = HashMap::new();
        for n in 0..addresses.robots {
            let ip = addresses.first.ip().to_bits() + n;
            let address = SocketAddrV4::new(ip.into(), addresses.first.port());
            let client = connect(address, &tls).await;
            tokio::spawn(listen(client.clone(), waiting.clone()));
            clients.insert(format!("r-{n}"), client);
        }
        Self { clients, waiting }
    }
}

async fn listen(mut robot: MissionServiceClient<Channel>, waiting: Waiting) {
    let from_now = pb::WatchMissionsRequest {
        from_now: true,
        ..Default::default()
    };
    let mut updates = robot.watch_missions(from_now).await.unwrap().into_inner();
    while let Some(update) = updates.message().await.unwrap() {
        if update.status == "Succeeded" {
            waiting.succeeded(&update.mission_id);
        }
    }
}

async fn connect(to: SocketAddrV4, tls: &TlsConnector) -> MissionServiceClient<Channel> {
    let tcp = TcpStream::connect(to).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    // They share the identity of the fleet.
    let name = ServerName::try_from("fleet").unwrap();
    let stream = TokioIo::new(tls.connect(name, tcp).await.unwrap());
    let handshake = http2::handshake(TokioExecutor::new(), stream);
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    MissionServiceClient::with_origin(Channel(sender), Uri::from_static("https://localhost"))
}

/// A connection, as tonic's clients want it.
#[derive(Clone)]
struct Channel(http2::SendRequest<Body>);

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = futures::future::BoxFuture<'static, hyper::Result<Self::Response>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
