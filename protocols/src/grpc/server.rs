//! The listener: our own accept loop and handshakes under any tonic service.
//!
//! tonic's own server sets neither TLS version, tickets, a handshake timeout nor a limit of
//! pending handshakes, and gives no hold on a single connection, which must end with its
//! certificates. So sockets, TLS and the life of each connection are ours; HTTP/2 is hyper's and
//! everything above is tonic's.

use super::{
    connections::{Authenticated, Connections, Registered},
    door::{Door, Newcomer, Place},
    error::GrpcError,
    share::{Counted, Held, Share},
    stream::{LeasedStream, PLAINTEXT_LEASE, Silent, prepare_socket},
};
use crate::peers::ConnectedPeer;
use hyper::{
    body::Incoming,
    http::{Request, Response},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use portarium_identity::{Lease, Peer, ServerTls, TlsError};
use rustls::pki_types::CertificateDer;
use std::{
    convert::Infallible,
    error::Error,
    io,
    net::SocketAddr,
    num::NonZero,
    pin::pin,
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::Service as _;

tokio::task_local! {
    /// Set in the tasks that carry a connection's TLS and HTTP/2. What its calls ask for is worked on
    /// in tasks of their own, without it.
    static OF_ONE_CALLER: ();
}

/// Whether what runs now concerns one caller alone, so that its failure may be that caller's: libraries
/// read bytes there that anyone may send.
pub fn concerns_one_caller_alone() -> bool {
    OF_ONE_CALLER.try_with(|()| ()).is_ok()
}

/// The client's connection preface, which has to arrive within [`OPENING`].
const PREFACE_BYTES: usize = 24;

/// What one listener takes on.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections at a time. One more is closed at once, so that its client learns it.
    pub max_connections: usize,
    /// Connections of one SPIFFE ID at a time. One more is closed right after its handshake, so
    /// that no caller takes all places and keeps the stops of the others out.
    pub max_per_peer: usize,
    /// Connections at a time that have not finished their handshake. While there are as many,
    /// those that let us wait lose their place, the oldest first. Where all are at work, further
    /// ones wait in the kernel's queue: after a restart a whole fleet comes at once, and whoever
    /// is turned away then comes again and makes it worse.
    pub max_pending: usize,
    /// Handshakes computed at a time. One that waits for the other end does not count.
    pub max_handshakes: usize,
    /// Concurrent streams of one connection.
    pub max_streams: u32,
    /// A ping after so much silence.
    pub keepalive_interval: Duration,
    /// A connection whose ping is not answered in this time is closed.
    pub keepalive_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_per_peer: 256,
            max_pending: 1024,
            max_handshakes: available_parallelism().map_or(1, NonZero::get),
            max_streams: 1024,
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves until `shutdown`, then stops accepting, lets every connection finish what is on it and
/// returns. The caller bounds that wait by dropping the future, which cuts what is left.
///
/// `tls` may be `None` in development only, and then only on a loopback address. Handlers find
/// the authenticated caller by `request.extensions().get::<Arc<Peer>>()`; without TLS there is none.
///
/// A connection is asked to finish (GOAWAY) shortly before min(own, peer) NotAfter, at a jittered
/// time, and cut at it, whatever is on it.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    routes: Routes,
    limits: ServerLimits,
    connections: Arc<Connections>,
    shutdown: CancellationToken,
) -> Result<(), GrpcError> {
    let address = listener.local_addr().map_err(GrpcError::Listener)?;
    if tls.is_none() && !address.ip().is_loopback() {
        return Err(GrpcError::PlaintextOffLoopback(address));
    }
    let door = Door::new(limits.max_pending, limits.max_handshakes);
    let server = Arc::new(Server {
        tls,
        routes: routes.prepare(),
        http2: http2_builder(&limits),
        max_per_peer: limits.max_per_peer,
        connections,
        shutdown,
    });
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = server.shutdown.cancelled() => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = accept(&listener, &door) => match accepted {
                Ok((tcp, from, place)) => {
                    server.connections.count_accepted();
                    if tasks.len() >= limits.max_connections {
                        server.connections.turned_away(from, None);
                    } else {
                        let connection = server.clone().connection(tcp, from, place);
                        tasks.spawn(OF_ONE_CALLER.scope((), connection));
                    }
                }
                Err(error) => {
                    // Out of file descriptors, or a client that gave up: neither ends the loop.
                    tracing::warn!(%address, %error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    server.connections.drain();
    while tasks.join_next().await.is_some() {}
    Ok(())
}

fn http2_builder(limits: &ServerLimits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(16 * 1024)
        // What a peer can make us buffer: requests are small.
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .max_send_buf_size(64 * 1024)
        // Rapid reset: streams that the peer resets before we took them up, and streams that we
        // reset because of its errors. Beyond these it is disconnected.
        .max_pending_accept_reset_streams(64)
        .max_local_error_reset_streams(256);
    builder
}

async fn accept(
    listener: &TcpListener,
    door: &Arc<Door>,
) -> io::Result<(TcpStream, SocketAddr, Place)> {
    let place = door.place().await;
    let (tcp, from) = listener.accept().await?;
    Ok((tcp, from, place))
}

struct Server {
    tls: Option<ServerTls>,
    routes: Routes,
    http2: http2::Builder<TokioExecutor>,
    max_per_peer: usize,
    connections: Arc<Connections>,
    shutdown: CancellationToken,
}

impl Server {
    async fn connection(self: Arc<Self>, tcp: TcpStream, from: SocketAddr, place: Place) {
        if let Err(error) = prepare_socket(&tcp) {
            tracing::debug!(%from, %error, "the connection was gone before it began");
            return;
        }
        let Some(tls) = &self.tls else {
            drop(place);
            let ends = Lease::of(PLAINTEXT_LEASE).ends;
            let registered = self.connections.register();
            return self.established(tcp, from, None, registered, ends).await;
        };
        let rechecks = self.connections.rechecks();
        match handshake(tls, tcp, place.enter()).await {
            Ok((stream, peer)) => {
                let ends = peer.lease(SystemTime::now()).ends;
                let authenticated = Authenticated {
                    who: ConnectedPeer::now(peer, from),
                    chain: chain_of(&stream),
                };
                let peer = authenticated.who.peer.clone();
                let registered = self
                    .connections
                    .admit(authenticated.clone(), self.max_per_peer);
                let Some(registered) = registered else {
                    self.connections.turned_away(from, Some(&peer));
                    let peer = &peer.spiffe_id;
                    tracing::warn!(%from, %peer, "closed: this caller has as many connections as one may have");
                    return;
                };
                let stale = self.connections.rechecks() != rechecks;
                if stale && let Err(error) = tls.recheck(&peer, &authenticated.chain) {
                    return self.failed(from, &error.into());
                }
                self.connections.admitted(from, &peer);
                self.established(stream, from, Some(peer), registered, ends)
                    .await;
            }
            Err(error) => self.failed(from, &error.into()),
        }
    }

    fn failed(&self, from: SocketAddr, error: &GrpcError) {
        self.connections.failed(from, error);
        tracing::debug!(%from, %error, "handshake failed");
    }

    async fn established<IO>(
        &self,
        io: IO,
        from: SocketAddr,
        peer: Option<Arc<Peer>>,
        registered: Registered,
        ends: Instant,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if self.shutdown.is_cancelled() {
            return;
        }
        let stream = LeasedStream::new(io, registered.cut.clone(), ends, PREFACE_BYTES, None);
        let service = service_fn(|mut request: Request<Incoming>| {
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            answer(self.routes.clone(), &registered.share, request)
        });
        let connection = self.http2.serve_connection(TokioIo::new(stream), service);
        let ended = run(connection, &registered, goaway_at(Instant::now(), ends)).await;
        if let Err(error) = ended {
            if let (Some(peer), Some(error)) = (&peer, broken(&error)) {
                self.connections.broke(from, peer, error);
            }
            tracing::debug!(peer = peer.map(|p| p.spiffe_id.to_string()), %error, "connection ended");
        }
    }
}

async fn handshake(
    tls: &ServerTls,
    tcp: TcpStream,
    newcomer: Newcomer,
) -> Result<(tokio_rustls::server::TlsStream<TcpStream>, Peer), TlsError> {
    let done = newcomer.handshake(tls.accept(tcp)).await;
    done.map_err(TlsError::Timeout)?
}

/// Answers one request, within its caller's share.
fn answer(
    mut routes: Routes,
    share: &Arc<Share>,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Held>, Infallible>> + use<> {
    let taken = share.begin();
    if let Some(crowded) = taken.crowded() {
        request.extensions_mut().insert(crowded);
    }
    async move {
        let request = request.map(|body| Counted::new(body, taken.clone()));
        let answer = routes.call(request).await?;
        Ok(answer.map(|body| Held::new(body, taken)))
    }
}

/// Drives one connection to its end.
async fn run<IO, S>(
    connection: http2::Connection<IO, S, TokioExecutor>,
    registered: &Registered,
    goaway: Instant,
) -> hyper::Result<()>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = Held>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    TokioExecutor: hyper::rt::bounds::Http2ServerConnExec<S::Future, Held>,
{
    let mut connection = pin!(connection);
    {
        let mut goaway = pin!(sleep_until(goaway));
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = registered.drained() => {}
            () = &mut goaway => {}
        }
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// Why we ended a connection, where it was its peer that spoke HTTP/2 as nobody may, or did not begin
/// to. Pings that are not answered are no such reason: a network that is lost looks the same.
fn broken(error: &hyper::Error) -> Option<&(dyn Error + 'static)> {
    let source = error.source()?;
    if let Some(error) = source.downcast_ref::<h2::Error>() {
        return error.is_library().then_some(error);
    }
    let inner = source.downcast_ref::<io::Error>()?.get_ref()?;
    let silent: &Silent = inner.downcast_ref()?;
    Some(silent)
}

fn chain_of(stream: &tokio_rustls::server::TlsStream<TcpStream>) -> Arc<[CertificateDer<'static>]> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain
        .iter()
        .cloned()
        .map(CertificateDer::into_owned)
        .collect()
}

/// When to ask a connection to finish: in the last fifth of its lease, and at most a minute
/// before the end; jittered, so that not all clients come at once.
fn goaway_at(now: Instant, ends: Instant) -> Instant {
    let margin = (ends.saturating_duration_since(now) / 5).min(Duration::from_secs(60));
    ends - margin.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_asked_to_finish_in_the_last_tenth_to_fifth_of_their_lease() {
        let now = Instant::now();
        for (lease, latest, earliest) in [(10.0, 1.0, 2.0), (3600.0, 30.0, 60.0), (0.0, 0.0, 0.0)] {
            let ends = now + Duration::from_secs_f64(lease);
            for _ in 0..100 {
                let left = (ends - goaway_at(now, ends)).as_secs_f64();
                assert!((latest..=earliest).contains(&left), "{left} of {lease}");
            }
        }
    }
}
