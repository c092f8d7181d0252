//! Reads a key set over HTTP: one request, bounded in time and size, without redirects.
use super::source::LARGEST;
use crate::config::provider;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{ACCEPT, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version::TLS13,
};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a key set cannot be fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The address is none that is taken.
    #[error(
        "{0:?} is no address of a key set; write it like \"https://issuer.example/keys\" (http only for this machine)"
    )]
    Address(String),
    /// There is nobody to trust.
    #[error("authorities for https: {0}")]
    Authorities(String),
    /// The server cannot be reached, or is another one.
    #[error("{address}: {reason}")]
    Connection {
        /// The address.
        address: Uri,
        /// What went wrong.
        reason: String,
    },
    /// The server answered something else.
    #[error("{address}: answered {status}")]
    Status {
        /// The address.
        address: Uri,
        /// What it answered.
        status: StatusCode,
    },
    /// It took too long.
    #[error("{address}: no answer within {LIMIT:?}")]
    Late {
        /// The address.
        address: Uri,
    },
}

/// Where a key set is served.
pub(super) struct Endpoint {
    address: Uri,
    host: String,
    port: u16,
    /// `None`: `http`, on this machine.
    tls: Option<Secured>,
}

/// Whom to expect, and who may say so.
#[derive(Clone)]
struct Secured {
    name: ServerName<'static>,
    ca_file: Option<PathBuf>,
}

impl Endpoint {
    pub(super) fn new(url: &str, ca_file: Option<&Path>) -> Result<Self, FetchError> {
        let wrong = || FetchError::Address(url.to_owned());
        let address: Uri = url.parse().map_err(|_| wrong())?;
        let authority = address.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let (tls, usual) = match address.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
                let ca_file = ca_file.map(Path::to_owned);
                (Some(Secured { name, ca_file }), 443)
            }
            Some("http") if is_here(&host) => (None, 80),
            _ => return Err(wrong()),
        };
        let port = authority.port_u16().unwrap_or(usual);
        Ok(Self {
            address,
            host,
            port,
            tls,
        })
    }

    /// Whether there are authorities.
    pub(super) fn check(&self) -> Result<(), FetchError> {
        self.tls
            .as_ref()
            .map_or(Ok(()), |tls| tls.connector().map(|_| ()))
    }

    pub(super) async fn fetch(&self) -> Result<Bytes, FetchError> {
        let late = |_| FetchError::Late {
            address: self.address.clone(),
        };
        // Read each time: authorities change, and are files. Without a limit, since a thread that
        // waits for a disk stays: this way there is one at most.
        let connector = match self.tls.clone() {
            Some(tls) => {
                let connector = spawn_blocking(move || tls.connector()).await;
                Some(connector.map_err(|error| self.failed(&error))??)
            }
            None => None,
        };
        timeout(LIMIT, self.get(connector)).await.map_err(late)?
    }

    async fn get(&self, connector: Option<TlsConnector>) -> Result<Bytes, FetchError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|error| self.failed(&error))?;
        match self.tls.as_ref().zip(connector) {
            // The name of this machine may be resolved to another.
            None => match stream.peer_addr() {
                Ok(server) if server.ip().is_loopback() => self.ask(stream).await,
                Ok(_) => Err(FetchError::Address(self.address.to_string())),
                Err(error) => Err(self.failed(&error)),
            },
            Some((tls, connector)) => {
                let secured = connector.connect(tls.name.clone(), stream).await;
                self.ask(secured.map_err(|error| self.failed(&error))?)
                    .await
            }
        }
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Bytes, FetchError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.failed(&error))?;
        let answer = async {
            let answer = sender.send_request(self.request()?).await;
            self.body(answer.map_err(|error| self.failed(&error))?)
                .await
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection may end before the last of the body was taken.
            ended = connection => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(self.failed(&error)),
            },
        }
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, FetchError> {
        let path = self
            .address
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let host = self
            .address
            .authority()
            .map_or("", |authority| authority.as_str());
        Request::get(path)
            .header(HOST, host)
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .body(Empty::new())
            .map_err(|error| self.failed(&error))
    }

    async fn body(&self, answer: Response<Incoming>) -> Result<Bytes, FetchError> {
        let status = answer.status();
        if status != StatusCode::OK {
            let address = self.address.clone();
            return Err(FetchError::Status { address, status });
        }
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        Ok(body
            .map_err(|error| self.failed(error.as_ref()))?
            .to_bytes())
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static)) -> FetchError {
        FetchError::Connection {
            address: self.address.clone(),
            reason: crate::error_chain(error),
        }
    }
}

fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

impl Secured {
    fn connector(&self) -> Result<TlsConnector, FetchError> {
        let wrong = FetchError::Authorities;
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(file) => {
                let told = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
                let all = CertificateDer::pem_file_iter(file).map_err(|e| wrong(told(&e)))?;
                for one in all {
                    let one = one.map_err(|e| wrong(told(&e)))?;
                    roots.add(one).map_err(|e| wrong(told(&e)))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(wrong(
                "there are none; name a file that has some".to_owned(),
            ));
        }
        let config = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    #[tokio::test]
    async fn what_the_name_of_this_machine_leads_to_has_to_be_this_machine() {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                let _ = stream.write_all(answer).await;
            }
        });
        let mut endpoint = Endpoint::new(&format!("http://localhost:{port}/"), None).unwrap();
        assert!(endpoint.fetch().await.is_ok());
        // As a resolver may have it that is not ours: sends nothing, and tells our own address.
        let outwards = UdpSocket::bind("0.0.0.0:0").unwrap();
        outwards.connect("192.0.2.1:9").unwrap();
        endpoint.host = outwards.local_addr().unwrap().ip().to_string();
        let fetched = endpoint.fetch().await;
        assert!(
            matches!(fetched, Err(FetchError::Address(_))),
            "{fetched:?}"
        );
    }
}
