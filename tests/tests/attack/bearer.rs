//! Access tokens and JWT-SVIDs that the test knows, so that it can look for them.

use crate::servers::listen;
use hyper::{Request, Response};
use portarium_identity::{
    SvidManager,
    token::{SigningKey, Thumbprint, bind},
};
use portarium_protocols::grpc::{Credential, pb::mission_service_server::SERVICE_NAME};
use portarium_tests::{Caller, House, hints, spiffe_id, until};
use rcgen::KeyPair;
use serde_json::json;
use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    future::{Ready, ready},
    io,
    path::Path,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{task::JoinHandle, time::sleep};
use tonic::{Code, Status, body::Body, server::NamedService, service::Routes};
use tower::Service;

const KID: &str = "2026-11";
const ISSUER: &str = "https://issuer.portarium.example";
const AUDIENCE: &str = "portarium-gateway";

/// Who issues access tokens.
pub struct Issuer(SigningKey);

impl Issuer {
    pub fn new() -> Self {
        let pem = KeyPair::generate().unwrap().serialize_pem();
        Self(SigningKey::from_pem(pem.as_bytes()).unwrap())
    }

    /// The configuration by which nobody resolves a mission without a token; the keys in this folder.
    pub fn config(&self, dir: &Path) -> String {
        let keys = dir.join("keys.json");
        fs::write(&keys, self.0.key_set(KID).to_string()).unwrap();
        format!(
            "[tokens]\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\nmethods = [\"ResolveMission\"]\n\
             keys_file = \"{}\"\n",
            keys.display()
        )
    }

    /// Good for so many seconds from now, or over since.
    fn mint(&self, to: &Thumbprint, seconds: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = i64::try_from(now.as_secs()).unwrap();
        let claims = json!({"iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + seconds});
        let mut claims = claims.as_object().unwrap().clone();
        bind(&mut claims, to);
        self.0.sign(&claims, KID).unwrap()
    }
}

/// What the next calls show.
#[derive(Debug, Default)]
struct Shown(Mutex<Option<String>>);

impl Credential for Shown {
    fn bearer(&self) -> io::Result<Option<String>> {
        Ok(self.0.lock().unwrap().clone())
    }
}

/// An operator who shows tokens: one that is over, one that is bound to another certificate, and one
/// that is taken.
pub struct Bearer {
    caller: Caller,
    manager: SvidManager,
    shown: Arc<Shown>,
    issuer: Issuer,
}

impl Bearer {
    pub async fn of(house: &House, issuer: Issuer) -> Self {
        let manager = house.identities.manager(hints::OPERATOR).await;
        let shown = Arc::<Shown>::default();
        let credential = Some(shown.clone() as Arc<dyn Credential>);
        let port = house.gateway.ports.grpc;
        Self {
            caller: Caller::showing(credential, &manager, port).await,
            manager,
            shown,
            issuer,
        }
    }

    /// Resolves a mission with each; all tokens that were shown.
    pub async fn resolve(&self, house: &House, mission: &str) -> Vec<String> {
        let others = house.identities.manager(hints::CONTROL_PLANE).await;
        let mut all = Vec::new();
        let (own, theirs) = (&self.manager, &others);
        for (manager, seconds) in [(own, -1), (theirs, 300)] {
            let answer = self.show(manager, seconds, mission, &mut all).await;
            assert_eq!(answer.unwrap_err().code(), Code::Unauthenticated);
        }
        // The connection may be one of the SVID before.
        until("a token that is taken", async || {
            sleep(Duration::from_millis(100)).await;
            self.show(own, 300, mission, &mut all).await.is_ok()
        })
        .await;
        all
    }

    async fn show(
        &self,
        to: &SvidManager,
        seconds: i64,
        mission: &str,
        all: &mut Vec<String>,
    ) -> Result<(), Status> {
        let thumbprint = to.current().unwrap().thumbprint;
        let token = self.issuer.mint(&thumbprint, seconds);
        all.push(token.clone());
        *self.shown.0.lock().unwrap() = Some(token);
        self.caller.resolve(mission, "Failed").await.map(|_| ())
    }
}

/// A robot that does nothing of what it is asked, and keeps what was shown to it.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<BTreeSet<String>>>);

impl Recorder {
    /// The robot `x`, to which the gateway shows a JWT-SVID.
    pub fn config(port: u16) -> String {
        format!(
            "[[robots]]\nid = \"x\"\nfleet = \"test\"\nadapter = \"grpc\"\naddress = \"localhost:{port}\"\n\
             peers = [\"{}\"]\nactions = [\"navigate_to\"]\njwt_audience = \"arm-1\"\n",
            spiffe_id("x")
        )
    }

    pub async fn listen(&self, house: &House, port: u16) -> JoinHandle<()> {
        listen(house, port, Routes::new(self.clone())).await
    }

    /// The tokens that came.
    pub fn tokens(&self) -> Vec<String> {
        let shown = self.0.lock().unwrap();
        let tokens = shown.iter().filter_map(|text| text.strip_prefix("Bearer "));
        tokens.map(str::to_owned).collect()
    }
}

impl Service<Request<Body>> for Recorder {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if let Some(shown) = request.headers().get("authorization") {
            let shown = shown.to_str().unwrap().to_owned();
            self.0.lock().unwrap().insert(shown);
        }
        ready(Ok(Status::unimplemented("it does nothing").into_http()))
    }
}

impl NamedService for Recorder {
    const NAME: &'static str = SERVICE_NAME;
}

/// What a token could be recognised by: payload and signature.
pub fn parts(token: &str) -> Vec<String> {
    let parts: Vec<_> = token.split('.').skip(1).map(str::to_owned).collect();
    assert_eq!(parts.len(), 2, "{token}");
    parts
}
