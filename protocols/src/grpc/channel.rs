//! One HTTP/2 connection as a tonic transport.
//!
//! Thinner than tonic's own channel (no worker task and queue between caller and connection), and
//! it tells what tonic's does not: whether a failed call can have reached the other end.

use super::{
    error::GrpcError,
    stream::{Cut, LeasedStream, OPENING, PLAINTEXT_LEASE, prepare_socket},
    target::Target,
};
use crate::peers::ConnectedPeer;
use futures::future::BoxFuture;
use hyper::{
    body::Incoming,
    client::conn::http2,
    http::{
        HeaderValue, Request, Response, Uri,
        header::AUTHORIZATION,
        uri::{Authority, PathAndQuery, Scheme},
    },
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use portarium_identity::{ClientTls, Lease, Peer};
use rustls::pki_types::CertificateDer;
use std::{
    fmt, io,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tonic::body::Body;

/// A ping after so much silence: a peer that vanished is missed within 5 s.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(2);

/// TCP resends a lost SYN after 1, 3 and 7 s. Trying anew after two finds a peer that came back
/// sooner than waiting for the third would.
const TCP_CONNECT: Duration = Duration::from_secs(2);

/// Makes one connection, for callers that live for a few calls. It ends with its certificates;
/// what lives longer uses [`Connection`](super::Connection).
pub async fn connect(target: &Target, tls: Option<&ClientTls>) -> Result<Channel, GrpcError> {
    open(target, tls, KEEPALIVE).await.map(|live| live.channel)
}

/// A connection as a transport for tonic's clients. Cheap to clone. Never connects again and
/// never sends anything twice. A call is not bounded in time: its caller does that.
#[derive(Debug, Clone)]
pub struct Channel {
    sender: http2::SendRequest<Body>,
    other_end: Arc<OtherEnd>,
    credential: Option<Arc<dyn Credential>>,
}

/// What calls show beside the certificate of their connection.
pub trait Credential: Send + Sync + fmt::Debug {
    /// The bearer token for the next call; `None`: it goes without one. Never waits.
    ///
    /// # Errors
    /// Where the call must not go without one and there is none: it is not sent.
    fn bearer(&self) -> io::Result<Option<String>>;
}

#[derive(Debug)]
struct OtherEnd {
    scheme: Scheme,
    authority: Authority,
    peer: Option<ConnectedPeer>,
    chain: Arc<[CertificateDer<'static>]>,
    cut: Arc<Cut>,
}

/// A hold on a connection for as long as it is open, and on nothing beyond.
#[derive(Debug)]
pub(super) struct Hold {
    peer: Option<ConnectedPeer>,
    chain: Arc<[CertificateDer<'static>]>,
    cut: Weak<Cut>,
}

impl Hold {
    pub(super) fn is_gone(&self) -> bool {
        self.cut.strong_count() == 0
    }

    /// Who is on the other end, while it is open and has TLS.
    pub(super) fn peer(&self) -> Option<&ConnectedPeer> {
        self.peer.as_ref().filter(|_| !self.is_gone())
    }

    /// Cuts the connection, with whatever is on it, if its peer would not be accepted now.
    pub(super) fn recheck(&self, tls: &ClientTls) {
        if let Some((cut, who)) = self.cut.upgrade().zip(self.peer.as_ref())
            && tls.recheck(&who.peer, &self.chain).is_err()
        {
            cut.cut();
        }
    }
}

impl Channel {
    /// Who is on the other end; `None` without TLS.
    pub fn peer(&self) -> Option<&Peer> {
        self.other_end.peer.as_ref().map(|who| who.peer.as_ref())
    }

    /// The same connection for calls that show this.
    pub fn showing(mut self, credential: Option<Arc<dyn Credential>>) -> Self {
        self.credential = credential;
        self
    }

    fn authorization(&self) -> io::Result<Option<HeaderValue>> {
        let Some(credential) = &self.credential else {
            return Ok(None);
        };
        let Some(token) = credential.bearer()? else {
            return Ok(None);
        };
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
            io::Error::other("the bearer token is none: it has forbidden characters")
        })?;
        // Kept out of debug output and of the compression's tables.
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Whether further calls are in vain.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// What outlives the last channel of a connection: its calls in flight.
    pub(super) fn hold(&self) -> Hold {
        Hold {
            peer: self.other_end.peer.clone(),
            chain: self.other_end.chain.clone(),
            cut: Arc::downgrade(&self.other_end.cut),
        }
    }
}

/// Why a call got no answer. Found as the `source()` of the `tonic::Status`.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The other end has not processed it, for certain.
    #[error("the call was not sent")]
    NotSent(#[source] tonic::ConnectError),
    /// It may have been processed.
    #[error("the connection failed during the call")]
    Broken(#[source] hyper::Error),
}

impl ChannelError {
    /// Whether a failed call cannot have reached the other end.
    pub fn was_not_sent(status: &tonic::Status) -> bool {
        let source = std::error::Error::source(status).and_then(|e| e.downcast_ref::<Self>());
        matches!(source, Some(Self::NotSent(_)))
    }

    fn of(error: hyper::Error, returned: bool) -> Self {
        if returned || refused_unprocessed(&error) {
            Self::NotSent(tonic::ConnectError(error.into()))
        } else {
            Self::Broken(error)
        }
    }
}

/// Streams above the last id of a GOAWAY, and those reset with REFUSED_STREAM, were not processed
/// (RFC 9113, 6.8 and 8.7).
fn refused_unprocessed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<h2::Error>());
    source.is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (refused || error.is_go_away())
    })
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = ChannelError;
    type Future = BoxFuture<'static, Result<Response<Incoming>, ChannelError>>;

    /// Always: a closed connection shows in the call, with its reason.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut uri = hyper::http::uri::Parts::default();
        uri.scheme = Some(self.other_end.scheme.clone());
        uri.authority = Some(self.other_end.authority.clone());
        let path = request.uri().path_and_query().cloned();
        uri.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(uri) {
            *request.uri_mut() = uri;
        }
        match self.authorization() {
            Ok(Some(value)) => drop(request.headers_mut().insert(AUTHORIZATION, value)),
            Ok(None) => {}
            Err(error) => {
                let not_sent = ChannelError::NotSent(tonic::ConnectError(error.into()));
                return Box::pin(std::future::ready(Err(not_sent)));
            }
        }
        let answer = self.sender.try_send_request(request);
        Box::pin(async move {
            answer.await.map_err(|mut error| {
                // hyper hands back what it has not begun to write.
                let returned = error.take_message().is_some();
                ChannelError::of(error.into_error(), returned)
            })
        })
    }
}

/// A connection that stands, and what its keeper has to know.
pub(super) struct Live {
    pub(super) channel: Channel,
    pub(super) lease: Lease,
    /// Ends with the connection; the reason, unless it was shut down in an orderly way.
    pub(super) driver: JoinHandle<Result<(), hyper::Error>>,
}

/// Connects, and returns once the other end has spoken HTTP/2: only then it has accepted our
/// certificate.
pub(super) async fn open(
    target: &Target,
    tls: Option<&ClientTls>,
    keepalive: Duration,
) -> Result<Live, GrpcError> {
    let connecting = TcpStream::connect((target.host(), target.port()));
    let tcp = timeout(TCP_CONNECT, connecting)
        .await
        .map_err(|_| GrpcError::ConnectTimeout(TCP_CONNECT))?
        .map_err(GrpcError::Connect)?;
    prepare_socket(&tcp).map_err(GrpcError::Connect)?;
    let remote = tcp.peer_addr().map_err(GrpcError::Connect)?;
    let Some(tls) = tls else {
        let lease = Lease::of(PLAINTEXT_LEASE);
        return speak_http2(target, tcp, keepalive, None, lease).await;
    };
    let (stream, peer) = timeout(OPENING, tls.connect(target.server_name().clone(), tcp))
        .await
        .map_err(|_| GrpcError::ConnectTimeout(OPENING))??;
    let lease = peer.lease(SystemTime::now());
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = chain.iter().cloned().map(CertificateDer::into_owned);
    let who = ConnectedPeer::now(peer, remote);
    let authenticated = Some((who, chain.collect::<Vec<_>>()));
    speak_http2(target, stream, keepalive, authenticated, lease).await
}

async fn speak_http2<IO>(
    target: &Target,
    io: IO,
    keepalive: Duration,
    authenticated: Option<(ConnectedPeer, Vec<CertificateDer<'static>>)>,
    lease: Lease,
) -> Result<Live, GrpcError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (heard, hears) = oneshot::channel();
    let cut = Arc::<Cut>::default();
    let stream = TokioIo::new(LeasedStream::new(
        io,
        cut.clone(),
        lease.ends,
        1,
        Some(heard),
    ));
    let refused = |error: hyper::Error| GrpcError::Refused(with_sources(&error));
    let (sender, connection) = http2_builder(keepalive)
        .handshake(stream)
        .await
        .map_err(refused)?;
    let mut driver = tokio::spawn(connection);
    tokio::select! {
        biased;
        Ok(()) = hears => {}
        ended = &mut driver => return Err(match ended {
            Ok(Err(error)) => refused(error),
            Ok(Ok(())) | Err(_) => GrpcError::Refused("it gave no reason".to_owned()),
        }),
    }
    let (peer, chain) = authenticated.unzip();
    let scheme = if peer.is_some() {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    };
    let authority = target.authority().clone();
    let other_end = Arc::new(OtherEnd {
        scheme,
        authority,
        peer,
        chain: chain.unwrap_or_default().into(),
        cut,
    });
    Ok(Live {
        channel: Channel {
            sender,
            other_end,
            credential: None,
        },
        lease,
        driver,
    })
}

fn http2_builder(keepalive: Duration) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(keepalive)
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        .max_header_list_size(16 * 1024)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .max_send_buf_size(256 * 1024);
    builder
}

/// Whether the peer ended the connection because of too many pings: gRPC servers built on the C
/// core or on Go take no more than one in five minutes unless they are told otherwise.
pub(super) fn asks_for_calm(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<h2::Error>());
    source.is_some_and(|e| e.is_go_away() && e.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// An error with its sources, for people: hyper's own text names only the layer.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}
