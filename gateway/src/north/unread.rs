//! Calls that end before they reach their method: they cannot be read, or there is no such method.
//! Nobody asked the policy about them, and each is a line of the audit all the same.

use super::{SERVICE, gate::Gate};
use crate::policy::Method;
use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use std::sync::{
    Arc,
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

/// Kubelets and the like ask often, and learn nothing about missions.
const HEALTH: &str = "/grpc.health.v1.Health/";

pub(super) async fn told(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    if request.uri().path().starts_with(HEALTH) {
        return next.run(request).await;
    }
    let arrived = Arrived::default();
    request.extensions_mut().insert(arrived.clone());
    let caller = gate.principal(request.extensions());
    let method = method(request.uri().path());
    let response = next.run(request).await;
    if !arrived.0.load(Ordering::Relaxed)
        && let Some(status) = Status::from_header_map(response.headers())
        && status.code() != Code::Ok
    {
        gate.unread(caller.as_ref(), method, &status);
    }
    response
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
