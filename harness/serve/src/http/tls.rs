//! TLS: the certificate, which can be read again while it is served, and what carries requests with it or without.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_inputs as inputs;
use dpar_export_spec::Hinted;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{self, CertificateError, InconsistentKeys, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// Bytes of a file of certificates, or of a key.
const LARGEST: u64 = 1 << 20;
const DAY: u64 = 24 * 60 * 60;

/// Why a certificate cannot be shown to clients.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// A file is not what it should be.
    #[error("{path} holds no {what} as PEM: {source}")]
    Pem {
        /// The file.
        path: Utf8PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why not.
        source: pem::Error,
    },
    /// The key belongs to another certificate.
    #[error("the key in {key} is not that of the certificate in {certificate}")]
    OtherKey {
        /// File of the certificate.
        certificate: Utf8PathBuf,
        /// File of the key.
        key: Utf8PathBuf,
    },
    /// No client would take it any more.
    #[error("a certificate in {path} expired {} days ago", .since.as_secs() / DAY)]
    Expired {
        /// The file.
        path: Utf8PathBuf,
        /// How long ago.
        since: Duration,
    },
    /// No client takes it yet.
    #[error("a certificate in {path} is not valid for another {} days", .left.as_secs().div_ceil(DAY))]
    Early {
        /// The file.
        path: Utf8PathBuf,
        /// How long from now.
        left: Duration,
    },
    /// The library refuses it.
    #[error("the certificate in {path} and its key cannot be used: {source}")]
    Refused {
        /// File of the certificate.
        path: Utf8PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

impl Hinted for TlsError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read(_) | Self::Refused { .. } => return None,
            Self::Pem { .. } => {
                "certificates are PEM, the server's own first; the key is PEM without a password"
            }
            Self::OtherKey { .. } => {
                "give the two files of one pair; the server's own certificate comes first"
            }
            Self::Expired { .. } => "have it renewed, then start again, or send SIGHUP to what runs",
            Self::Early { .. } => "look at the clock of this machine",
        };
        Some(hint.to_owned())
    }
}

/// The certificate that clients see, and its files.
pub struct ServedCertificate {
    certificate: Utf8PathBuf,
    key: Utf8PathBuf,
    current: RwLock<Arc<ServerConfig>>,
}

impl ServedCertificate {
    /// A chain of certificates as PEM, the server's own first, and its key as PEM.
    ///
    /// # Errors
    /// When a file cannot be read or is something else, the key is that of another certificate, or the time of the server's own is
    /// over or has not begun.
    pub fn open(certificate: &Utf8Path, key: &Utf8Path) -> Result<Self, TlsError> {
        let current = RwLock::new(load(certificate, key)?);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), current })
    }

    /// Reads the files again: connections from now on get what they hold. A bad pair changes nothing.
    pub(super) fn change(&self) -> Result<(), TlsError> {
        let next = load(&self.certificate, &self.key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// TLS on a connection that was accepted. The handshake is done when it is first read or written, and has the time that
    /// the reader has.
    pub(super) fn carry(&self, stream: TcpStream) -> Carrier {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        Carrier::Greeting(Box::new(TlsAcceptor::from(config).accept(stream)))
    }
}

fn load(certificate: &Utf8Path, key: &Utf8Path) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let bad = |path: &Utf8Path, what| {
        let path = path.to_owned();
        move |source| TlsError::Pem { path, what, source }
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&inputs::read(certificate, LARGEST)?)
            .collect::<Result<_, _>>()
            .map_err(bad(certificate, "certificate"))?;
    if chain.is_empty() {
        return Err(bad(certificate, "certificate")(pem::Error::NoItemsFound));
    }
    for (i, one) in chain.iter().enumerate() {
        match check_time(one, certificate, &provider) {
            Ok(()) => {}
            // Clients find another way past an issuer that they do not need, such as an old one that signed a new one too.
            Err(e @ (TlsError::Expired { .. } | TlsError::Early { .. })) if i > 0 => {
                tracing::warn!("certificate {} of the chain: {e}", i + 1);
            }
            Err(e) => return Err(e),
        }
    }
    let secret =
        PrivateKeyDer::from_pem_slice(&inputs::read(key, LARGEST)?).map_err(bad(key, "private key"))?;
    let refused = |source| match source {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::OtherKey { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        source => TlsError::Refused { path: certificate.to_owned(), source },
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Holds a certificate against the clock. Who has signed it is for clients to judge.
fn check_time(
    certificate: &CertificateDer<'_>,
    path: &Utf8Path,
    provider: &CryptoProvider,
) -> Result<(), TlsError> {
    let refused = |source| TlsError::Refused { path: path.to_owned(), source };
    let parsed = ParsedCertificate::try_from(certificate).map_err(refused)?;
    // Its time is looked at before its issuer, whom nobody names here.
    let verified = verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        UnixTime::now(),
        provider.signature_verification_algorithms.all,
    );
    let between =
        |from: UnixTime, to: UnixTime| Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()));
    let path = path.to_owned();
    match verified {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after })) => {
            Err(TlsError::Expired { path, since: between(not_after, time) })
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before })) => {
            Err(TlsError::Early { path, left: between(time, not_before) })
        }
        _ => Ok(()),
    }
}

/// What bytes of requests go through.
trait Transport: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport for S {}

/// What carries the requests of a connection.
pub(super) enum Carrier {
    /// TCP alone.
    Plain(TcpStream),
    /// TLS whose handshake is not over.
    Greeting(Box<Accept<TcpStream>>),
    /// TLS.
    Secure(Box<TlsStream<TcpStream>>),
    /// TLS whose handshake failed.
    Broken,
}

impl Carrier {
    /// What is read and written, once there has been a handshake.
    fn greeted(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn Transport>>> {
        if let Self::Greeting(accept) = self {
            match ready!(Pin::new(accept).poll(context)) {
                Ok(stream) => *self = Self::Secure(Box::new(stream)),
                Err(e) => {
                    *self = Self::Broken;
                    return Poll::Ready(Err(e));
                }
            }
        }
        Poll::Ready(match self {
            Self::Plain(stream) => Ok(Pin::new(stream)),
            Self::Secure(stream) => Ok(Pin::new(stream)),
            Self::Greeting(_) | Self::Broken => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.greeted(context))?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.greeted(context))?.poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            // Nothing was written yet.
            Self::Greeting(_) | Self::Broken => Poll::Ready(Ok(())),
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Secure(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            // There is nothing to be ended.
            Self::Greeting(_) | Self::Broken => Poll::Ready(Ok(())),
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.greeted(context))?.poll_write_vectored(context, buffers)
    }

    /// Both do, and it is asked before there was a handshake.
    fn is_write_vectored(&self) -> bool {
        true
    }
}
