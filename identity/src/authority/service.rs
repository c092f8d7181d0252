//! The Workload API itself.
use super::{
    mint::{Issued, Mint},
    proto::{
        JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
        ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
        X509svidRequest, X509svidResponse, spiffe_workload_api_server::SpiffeWorkloadApi,
    },
};
use futures::{Stream, StreamExt as _, stream};
use prost_types::{ListValue, Struct, Value, value::Kind};
use std::{collections::HashMap, pin::Pin, sync::Arc, time::SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// The longest list of audiences of one JWT-SVID.
const MAX_AUDIENCES: usize = 32;

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What SPIFFE demands of every call, so that a browser or proxy cannot be tricked into one.
#[allow(clippy::result_large_err)]
pub(super) fn check_header(request: Request<()>) -> Result<Request<()>, Status> {
    match request.metadata().get("workload.spiffe.io") {
        Some(value) if value == "true" => Ok(request),
        _ => Err(Status::invalid_argument(
            "security header missing from request",
        )),
    }
}

pub(super) struct Service {
    pub(super) mint: Arc<Mint>,
    pub(super) paused: watch::Receiver<bool>,
    pub(super) closed: CancellationToken,
}

impl Service {
    /// Waits while the authority is paused.
    async fn unless_paused(&self) -> Result<(), Status> {
        wait_out(self.paused.clone(), self.closed.clone()).await
    }

    /// What is issued, and each change, as a stream of one kind of message.
    fn updates<T: Send + 'static>(
        &self,
        message: impl Fn(&Issued) -> Result<T, Status> + Send + Sync + 'static,
    ) -> Response<Updates<T>> {
        let mut issued = self.mint.issued();
        issued.mark_changed();
        let follower = Follower {
            issued,
            paused: self.paused.clone(),
            closed: self.closed.clone(),
            message,
            over: false,
        };
        let updates = stream::unfold(follower, |mut follower| async move {
            let next = follower.next().await?;
            Some((next, follower))
        });
        Response::new(updates.boxed())
    }
}

struct Follower<F> {
    issued: watch::Receiver<Arc<Issued>>,
    paused: watch::Receiver<bool>,
    closed: CancellationToken,
    message: F,
    over: bool,
}

impl<F> Follower<F> {
    /// The next message; after an error none.
    async fn next<T>(&mut self) -> Option<Result<T, Status>>
    where
        F: Fn(&Issued) -> Result<T, Status>,
    {
        if self.over {
            return None;
        }
        let next = self
            .changed()
            .await
            .and_then(|issued| (self.message)(&issued));
        self.over = next.is_err();
        Some(next)
    }

    async fn changed(&mut self) -> Result<Arc<Issued>, Status> {
        tokio::select! {
            () = self.closed.cancelled() => return Err(closing()),
            changed = self.issued.changed() => changed.map_err(|_| closing())?,
        }
        wait_out(self.paused.clone(), self.closed.clone()).await?;
        Ok(Arc::clone(&self.issued.borrow_and_update()))
    }
}

async fn wait_out(
    mut paused: watch::Receiver<bool>,
    closed: CancellationToken,
) -> Result<(), Status> {
    tokio::select! {
        () = closed.cancelled() => Err(closing()),
        running = paused.wait_for(|paused| !paused) => running.map(|_| ()).map_err(|_| closing()),
    }
}

fn closing() -> Status {
    Status::unavailable("the authority is closing")
}

fn denied() -> Status {
    Status::permission_denied("no identity issued")
}

/// SPIRE's answer to a workload without an entry.
#[allow(clippy::result_large_err)]
fn unless_denied(issued: &Issued) -> Result<(), Status> {
    if issued.entries.is_empty() {
        return Err(denied());
    }
    Ok(())
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Updates<X509svidResponse>;
    type FetchX509BundlesStream = Updates<X509BundlesResponse>;
    type FetchJWTBundlesStream = Updates<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.unless_paused().await?;
        Ok(self.updates(|issued| {
            unless_denied(issued)?;
            Ok(issued.x509.clone())
        }))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.unless_paused().await?;
        let domain = self.mint.trust_domain.id_string();
        Ok(self.updates(move |issued| {
            unless_denied(issued)?;
            Ok(X509BundlesResponse {
                crl: Vec::new(),
                bundles: HashMap::from([(domain.clone(), issued.bundle.clone())]),
            })
        }))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        self.unless_paused().await?;
        let JwtsvidRequest {
            audience,
            spiffe_id,
        } = request.into_inner();
        if audience.is_empty() || audience.len() > MAX_AUDIENCES {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let issued = Arc::clone(&self.mint.issued().borrow());
        let now = SystemTime::now();
        let svids = issued
            .entries
            .iter()
            .filter(|(id, _)| spiffe_id.is_empty() || id.to_string() == spiffe_id)
            .map(|(id, entry)| {
                Ok(Jwtsvid {
                    spiffe_id: id.to_string(),
                    svid: self.mint.jwt.token(id, &audience, now)?,
                    hint: entry.hint.clone(),
                })
            })
            .collect::<Result<Vec<_>, super::AuthorityError>>()
            .map_err(|e| Status::internal(e.to_string()))?;
        if svids.is_empty() {
            return Err(denied());
        }
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.unless_paused().await?;
        let domain = self.mint.trust_domain.id_string();
        let jwks = self.mint.jwt.jwks();
        Ok(self.updates(move |issued| {
            unless_denied(issued)?;
            Ok(JwtBundlesResponse {
                bundles: HashMap::from([(domain.clone(), jwks.clone())]),
            })
        }))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.unless_paused().await?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let (subject, claims) = self
            .mint
            .jwt
            .validate(&svid, &audience, SystemTime::now())
            .map_err(Status::invalid_argument)?;
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: subject.to_string(),
            claims: Some(structure(claims)),
        }))
    }
}

fn structure(object: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct {
        fields: object
            .into_iter()
            .map(|(key, json)| (key, value(json)))
            .collect(),
    }
}

fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(truth) => Kind::BoolValue(truth),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(value).collect(),
        }),
        Json::Object(object) => Kind::StructValue(structure(object)),
    };
    Value { kind: Some(kind) }
}
