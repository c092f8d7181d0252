//! Bytes as no well-behaved client sends them.

use crate::forge::Shown;
use portarium_protocols::grpc::ALPN;
use portarium_tests::House;
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme, client::ResolvesClientCert,
    crypto::aws_lc_rs::sign::any_supported_type, pki_types::CertificateDer, sign::CertifiedKey,
};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long the gateway may take to say something.
const ANSWER: Duration = Duration::from_secs(20);

/// Shows what it is told to, whether it fits together or not.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The gateway's port, and a client's side of TLS that shows this.
#[derive(Clone)]
pub struct Door {
    port: u16,
    tls: TlsConnector,
}

impl Door {
    pub fn of(house: &House, shown: Option<&Shown>) -> Self {
        Self::speaking(house, shown, ALPN)
    }

    pub fn speaking(house: &House, shown: Option<&Shown>, alpn: &[&[u8]]) -> Self {
        let mut roots = RootCertStore::empty();
        for authority in house.identities.authority().bundle() {
            roots.add(CertificateDer::from(authority)).unwrap();
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match shown {
            None => config.with_no_client_auth(),
            Some(shown) => {
                let key = any_supported_type(&shown.key).unwrap();
                let shown = CertifiedKey::new(shown.chain.clone(), key);
                config.with_client_cert_resolver(Arc::new(Shows(Arc::new(shown))))
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Self {
            port: house.gateway.ports.grpc,
            tls: TlsConnector::from(Arc::new(config)),
        }
    }

    pub async fn tcp(&self) -> io::Result<TcpStream> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// Our part of the handshake. Whether we are let in shows with the first bytes.
    pub async fn knock(&self) -> io::Result<TlsStream<TcpStream>> {
        let name = "localhost".try_into().unwrap();
        self.tls.connect(name, self.tcp().await?).await
    }

    /// Knocks, and returns the first bytes of whoever is in: HTTP/2's settings.
    pub async fn enter(&self) -> io::Result<Vec<u8>> {
        let mut stream = timeout(ANSWER, self.knock()).await??;
        stream.write_all(PREFACE).await?;
        let mut first = vec![0; 64];
        let n = timeout(ANSWER, stream.read(&mut first)).await??;
        first.truncate(n);
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(first)
    }
}
