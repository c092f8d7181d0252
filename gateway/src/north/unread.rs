//! Calls that end before they reach their method: they cannot be read, or there is no such method.
//! Nobody asked the policy about them, and each is a line of the audit all the same.

use super::{SERVICE, gate::Gate, places::Place};
use crate::policy::Method;
use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http_body_util::BodyExt as _;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use tonic::{Code, Status};

/// Set once the call has come to its method, which writes its own line.
#[derive(Debug, Clone, Default)]
pub(super) struct Arrived(Arc<AtomicBool>);

impl Arrived {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A place that a call keeps until its answer is read, or given up.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Option<Place>>>);

impl Kept {
    pub(super) fn keep(&self, place: Place) {
        *self.lock() = Some(place);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kubelets and the like ask often, and learn nothing about missions.
const HEALTH: &str = "/grpc.health.v1.Health/";

pub(super) async fn told(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    if request.uri().path().starts_with(HEALTH) {
        return next.run(request).await;
    }
    let (arrived, kept) = (Arrived::default(), Kept::default());
    request.extensions_mut().insert(arrived.clone());
    request.extensions_mut().insert(kept.clone());
    let caller = gate.principal(request.extensions());
    let method = method(request.uri().path());
    let response = next.run(request).await;
    if !arrived.0.load(Ordering::Relaxed)
        && let Some(status) = Status::from_header_map(response.headers())
        && status.code() != Code::Ok
    {
        gate.unread(caller.as_ref(), method, &status);
    }
    match kept.lock().take() {
        None => response,
        Some(place) => response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _kept = &place;
                frame
            }))
        }),
    }
}

/// Only names that the contract has: callers choose the path.
fn method(path: &str) -> &'static str {
    let ours = path
        .strip_prefix('/')
        .and_then(|path| path.strip_prefix(SERVICE));
    let name = ours.and_then(|path| path.strip_prefix('/'));
    let mut known = Method::ALL.iter().map(|method| method.as_str());
    known
        .find(|known| name == Some(known))
        .unwrap_or("not known")
}

pub(super) fn outcome(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        _ => "not read",
    }
}
