//! TLS: always on, 1.3 preferred and 1.2 at least. The certificate is the operator's, or comes from a development CA that
//! is made at the first start and lives in the keystore:
//!
//! ```text
//! KEYSTORE/ca.key   0600   signs nothing but this service's certificate
//! KEYSTORE/ca.pem          what clients are told to trust (INSULA_CACERT)
//! ```
//!
//! A certificate under the development CA is never stored: it is made at start, valid for 90 days, and replaced while the
//! service runs. An operator's certificate is read again when its file changes, so that renewal needs no restart.
//!
//! Several nodes know each other by the hash of another certificate, which each process makes for itself, shows only to who asks
//! for [`NODE_NAME`], and keeps to its end: renewal of the public certificate does not come between nodes.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::RwLock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use time::OffsetDateTime;

use crate::config::TlsFiles;

/// Life of the development CA.
const CA_LIFE: Duration = Duration::from_hours(24 * 3650);
/// Life of a certificate under the development CA.
const LEAF_LIFE: Duration = Duration::from_hours(24 * 90);
/// When a running service replaces it.
const LEAF_RENEW_AFTER: Duration = Duration::from_hours(24 * 30);
/// How often certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Clocks may be wrong by this much.
const BACKDATE: Duration = Duration::from_hours(1);

/// The TLS name under which nodes ask each other.
pub(crate) const NODE_NAME: &str = "node.insula.internal";

/// Why there is no TLS. The message is for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TlsError(pub(crate) String);

/// Where the certificate comes from, and the one in use.
pub(crate) struct Certificates {
    source: Source,
    current: RwLock<Held>,
    /// For other nodes, when there are several.
    node: OnceLock<NodeCertificate>,
}

enum Source {
    Files(TlsFiles),
    Development { ca: Box<Ca>, names: Vec<String> },
}

struct Held {
    key: Arc<CertifiedKey>,
    /// When it was made, or when its file was changed.
    dated: SystemTime,
}

impl Certificates {
    /// From the operator's files.
    pub(crate) fn from_files(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let held = Held { key: Arc::new(read_files(&files)?), dated: changed(&files.certificate) };
        Ok(Arc::new(Self { source: Source::Files(files), current: RwLock::new(held), node: OnceLock::new() }))
    }

    /// From the development CA in the keystore, which is made if it is missing. `listen` joins the certificate's names.
    pub(crate) fn development(keystore: &Path, listen: IpAddr) -> Result<Arc<Self>, TlsError> {
        let ca = Box::new(Ca::open_or_create(keystore)?);
        let names = names(listen);
        let held = Held { key: Arc::new(ca.issue(&names)?), dated: SystemTime::now() };
        Ok(Arc::new(Self { source: Source::Development { ca, names }, current: RwLock::new(held), node: OnceLock::new() }))
    }

    /// The development CA's certificate, for clients.
    pub(crate) fn ca_path(&self) -> Option<&Path> {
        match &self.source {
            Source::Files(_) => None,
            Source::Development { ca, .. } => Some(&ca.certificate_path),
        }
    }

    /// From now on other nodes are shown this one.
    pub(crate) fn for_nodes(&self, certificate: NodeCertificate) {
        let _ = self.node.set(certificate);
    }

    /// Replaces the certificate when it is due; for ever.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.refresh(SystemTime::now()) {
                Ok(true) => tracing::info!("the TLS certificate was replaced"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "the TLS certificate could not be replaced; the old one stays"),
            }
        }
    }

    fn refresh(&self, now: SystemTime) -> Result<bool, TlsError> {
        let dated = self.current.read().dated;
        let held = match &self.source {
            Source::Files(files) => {
                let date = changed(&files.certificate);
                if date == dated {
                    return Ok(false);
                }
                Held { key: Arc::new(read_files(files)?), dated: date }
            }
            Source::Development { ca, names } => {
                if now.duration_since(dated).unwrap_or_default() < LEAF_RENEW_AFTER {
                    return Ok(false);
                }
                Held { key: Arc::new(ca.issue(names)?), dated: now }
            }
        };
        *self.current.write() = held;
        Ok(true)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match (self.node.get(), hello.server_name()) {
            (Some(node), Some(NODE_NAME)) => Some(node.key.clone()),
            _ => Some(self.current.read().key.clone()),
        }
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates")
    }
}

/// How a node proves to the others that it is itself: they know its hash from the control database.
pub(crate) struct NodeCertificate {
    key: Arc<CertifiedKey>,
    sha256: String,
}

impl NodeCertificate {
    /// A new one, for this process alone; never stored.
    pub(crate) fn new() -> Result<Self, TlsError> {
        let fault = |error: &dyn std::fmt::Display| TlsError(format!("a certificate for other nodes cannot be made: {error}"));
        let made = rcgen::generate_simple_self_signed([NODE_NAME.to_owned()]).map_err(|error| fault(&error))?;
        let sha256 = sha256_hex(made.cert.der());
        let der = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(|error| fault(&error))?;
        let key = certified(vec![made.cert.der().clone()], der).map_err(|error| fault(&error))?;
        Ok(Self { key: Arc::new(key), sha256 })
    }

    /// SHA-256 of its DER, hex.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// The client side of TLS between nodes: 1.3 with the one certificate of this hash, whoever signed it, and no other.
pub(crate) fn node_client_config(sha256: &str) -> Result<ClientConfig, TlsError> {
    let algorithms = provider().signature_verification_algorithms;
    let pinned = Arc::new(Pinned { sha256: sha256.to_ascii_lowercase(), algorithms });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError(format!("TLS cannot be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Trusts one certificate. That the other side has its key is proven by the handshake's signature, which is checked as always.
#[derive(Debug)]
struct Pinned {
    sha256: String,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match sha256_hex(leaf) == self.sha256 {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The server side of TLS: aws-lc-rs, 1.3 and 1.2, `h2` and `http/1.1`.
pub(crate) fn server_config(certificates: Arc<Certificates>) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| TlsError(format!("TLS cannot be set up: {error}")))?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Reads and checks the operator's certificate and key: both readable, matching, and the leaf valid now.
pub(crate) fn read_files(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let unreadable = |path: &Path, error: &dyn std::fmt::Display| TlsError(format!("cannot read `{}` as PEM: {error}", path.display()));
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(&files.certificate, &error))?;
    if chain.is_empty() {
        return Err(TlsError(format!("there is no certificate in `{}`", files.certificate.display())));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unreadable(&files.key, &error))?;
    certified(chain, key)
        .map_err(|error| TlsError(format!("`{}` and `{}` do not work together: {error}", files.certificate.display(), files.key.display())))
}

fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(chain, key, &provider())
}

fn changed(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What a certificate for development is valid for.
fn names(listen: IpAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let fits = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    if fits && host != "localhost" {
        names.push(host);
    }
    if !listen.is_unspecified() && !listen.is_loopback() {
        names.push(listen.to_string());
    }
    names
}

/// The development CA.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_path: PathBuf,
}

impl Ca {
    fn open_or_create(keystore: &Path) -> Result<Self, TlsError> {
        let (key_path, certificate_path) = (keystore.join("ca.key"), keystore.join("ca.pem"));
        let fault = |error: &dyn std::fmt::Display| TlsError(format!("the development CA in `{}`: {error}", keystore.display()));
        if !key_path.exists() {
            fs::create_dir_all(keystore).map_err(|error| fault(&error))?;
            fs::set_permissions(keystore, fs::Permissions::from_mode(0o700)).map_err(|error| fault(&error))?;
            let key = KeyPair::generate().map_err(|error| fault(&error))?;
            let certificate = ca_params().self_signed(&key).map_err(|error| fault(&error))?;
            // The key last: a start that dies in between makes both anew.
            write_new(&certificate_path, certificate.pem().as_bytes(), 0o644).map_err(|error| fault(&error))?;
            write_new(&key_path, key.serialize_pem().as_bytes(), 0o600).map_err(|error| fault(&error))?;
        }
        let mode = fs::metadata(&key_path).map_err(|error| fault(&error))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(fault(&format!("`ca.key` can be read by others; run `chmod 600 {}`", key_path.display())));
        }
        let key = KeyPair::from_pem(&fs::read_to_string(&key_path).map_err(|error| fault(&error))?).map_err(|error| fault(&error))?;
        let certificate = CertificateDer::from_pem_file(&certificate_path).map_err(|error| fault(&error))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| fault(&error))?;
        Ok(Self { issuer, certificate, certificate_path })
    }

    fn issue(&self, names: &[String]) -> Result<CertifiedKey, TlsError> {
        let fault = |error: &dyn std::fmt::Display| TlsError(format!("a certificate cannot be made: {error}"));
        let key = KeyPair::generate().map_err(|error| fault(&error))?;
        let mut params = CertificateParams::default();
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(|error: rcgen::Error| fault(&error))?),
            });
        }
        params.distinguished_name = called("insula");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(LEAF_LIFE);
        let leaf = params.signed_by(&key, &self.issuer).map_err(|error| fault(&error))?;
        let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| fault(&error))?;
        certified(vec![leaf.der().clone(), self.certificate.clone()], der).map_err(|error| fault(&error))
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = called("Insula development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(CA_LIFE);
    params
}

fn called(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn validity(life: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATE, now + life)
}

/// Writes a file that appears whole or not at all.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ca_is_made_once_and_its_key_is_private() {
        let keystore = tempfile::tempdir().unwrap();
        let first = Certificates::development(keystore.path(), "127.0.0.1".parse().unwrap()).unwrap();
        let pem = fs::read(first.ca_path().unwrap()).unwrap();
        let mode = |name: &str| fs::metadata(keystore.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("ca.key"), mode("ca.pem")), (0o600, 0o644));
        let second = Certificates::development(keystore.path(), "127.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(fs::read(second.ca_path().unwrap()).unwrap(), pem, "a second start keeps the CA");
        fs::set_permissions(keystore.path().join("ca.key"), fs::Permissions::from_mode(0o644)).unwrap();
        let error = Certificates::development(keystore.path(), "127.0.0.1".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_certificate_is_renewed_when_due() {
        let keystore = tempfile::tempdir().unwrap();
        let certificates = Certificates::development(keystore.path(), "127.0.0.1".parse().unwrap()).unwrap();
        let before = certificates.current.read().key.clone();
        assert!(!certificates.refresh(SystemTime::now()).unwrap());
        assert!(certificates.refresh(SystemTime::now() + LEAF_RENEW_AFTER + LOOK_EVERY).unwrap());
        assert_ne!(certificates.current.read().key.cert, before.cert);
    }

    #[tokio::test]
    async fn nodes_are_shown_their_certificate_and_nobody_else_is() {
        let keystore = tempfile::tempdir().unwrap();
        let certificates = Certificates::development(keystore.path(), "127.0.0.1".parse().unwrap()).unwrap();
        let node = NodeCertificate::new().unwrap();
        let sha256 = node.sha256().to_owned();
        assert_ne!(sha256, NodeCertificate::new().unwrap().sha256(), "each process has its own");
        certificates.for_nodes(node);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(certificates).unwrap()));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(node_client_config(&sha256).unwrap()));
        for (name, believed) in [(NODE_NAME, true), ("localhost", false)] {
            let (near, far) = tokio::io::duplex(64 << 10);
            let (shaken, _) = tokio::join!(connector.connect(ServerName::try_from(name).unwrap(), near), acceptor.accept(far));
            assert_eq!(shaken.is_ok(), believed, "{name}");
        }
    }

    #[test]
    fn the_operators_files_are_checked_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { certificate: dir.path().join("c.pem"), key: dir.path().join("k.pem") };
        let write = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            fs::write(&files.certificate, made.cert.pem()).unwrap();
            fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        };
        assert!(Certificates::from_files(files.clone()).unwrap_err().to_string().contains("c.pem"));
        write("a");
        let certificates = Certificates::from_files(files.clone()).unwrap();
        assert!(!certificates.refresh(SystemTime::now()).unwrap());
        write("b");
        let later = fs::File::options().write(true).open(&files.certificate).unwrap();
        later.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
        assert!(certificates.refresh(SystemTime::now()).unwrap());
        let other = rcgen::generate_simple_self_signed(["c".to_owned()]).unwrap();
        fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        assert!(read_files(&files).unwrap_err().to_string().contains("do not work together"));
    }
}
