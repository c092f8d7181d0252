//! A client that shows a certificate that it holds, whatever became of it since, and takes down what
//! it is shown.

use portarium_identity::Snapshot;
use portarium_protocols::grpc::ALPN;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How long a server may take to say something.
const ANSWER: Duration = Duration::from_secs(20);

/// Shows one certificate, always the same.
#[derive(Clone)]
pub struct Stranger {
    tls: TlsConnector,
}

/// What came of a handshake.
#[derive(Debug)]
pub struct Entered {
    /// The SPIFFE ID in the server's certificate, where it came to show one.
    pub shown: Option<String>,
    /// The end of that certificate.
    pub not_after: Option<SystemTime>,
    /// Whether the server spoke HTTP/2 with us.
    pub entered: io::Result<()>,
}

impl Stranger {
    /// Who holds the SVID of this moment.
    pub fn holding(svid: &Snapshot) -> Self {
        let chain = CertificateDer::pem_slice_iter(svid.chain_pem().as_bytes())
            .map(|certificate| certificate.unwrap())
            .collect();
        let key = PrivateKeyDer::from_pem_slice(svid.key_pem().as_bytes()).unwrap();
        Self::showing(chain, key)
    }

    /// Who has this certificate, before those it rests on, and its key.
    pub fn showing(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        let mut config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
        Self {
            tls: TlsConnector::from(Arc::new(config)),
        }
    }

    /// Tries to get in at this port of this machine.
    pub async fn enter(&self, port: u16) -> Entered {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => self.enter_on(stream).await,
            Err(error) => Entered {
                shown: None,
                not_after: None,
                entered: Err(error),
            },
        }
    }

    /// As [`Self::enter`], on a connection that is there.
    pub async fn enter_on(&self, stream: TcpStream) -> Entered {
        let mut shown = (None, None);
        let entered = async {
            let mut stream = self.handshake(stream).await?;
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            shown = chain.first().map_or((None, None), read);
            speak(&mut stream).await
        };
        let entered = entered.await;
        let (shown, not_after) = shown;
        Entered {
            shown,
            not_after,
            entered,
        }
    }

    /// Gets in and stays, for the caller to read from.
    pub async fn stay(&self, port: u16) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let mut stream = self.handshake(stream).await?;
        speak(&mut stream).await?;
        Ok(stream)
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        timeout(ANSWER, self.tls.connect(name, stream)).await?
    }
}

/// Whether the server speaks HTTP/2 with us: only then have we been let in.
async fn speak(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    stream.write_all(PREFACE).await?;
    let mut first = [0; 64];
    match timeout(ANSWER, stream.read(&mut first)).await?? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// The SPIFFE ID and the end of a certificate.
fn read(leaf: &CertificateDer<'_>) -> (Option<String>, Option<SystemTime>) {
    let (_, certificate) = X509Certificate::from_der(leaf).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let id = names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(id) => Some((*id).to_owned()),
            _ => None,
        });
    let end = certificate.validity().not_after.timestamp();
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(end).unwrap());
    (id, Some(end))
}

/// Believes whatever it is shown, as long as the key goes with it.
#[derive(Debug)]
struct Credulous;

fn provider() -> &'static CryptoProvider {
    CryptoProvider::get_default().unwrap()
}

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
