//! The one way out: whatever the service sends to an address that a tenant names goes through here.
//!
//! A tenant could name an address inside the operator's network, so that the service asks there in its own name. Therefore: https, unless the
//! operator allows plain http; the name is resolved once, every address it has must be a public one or lie in a network that the operator
//! allows, and the connection goes to just those addresses; no redirect is followed, no proxy asked; time and bytes are bounded.
//!
//! ```toml
//! [egress]
//! networks = ["10.20.0.0/16"]          # reachable although not public
//! authority = "/etc/insula/ca.pem"     # trusted beside the public authorities
//! http = false
//! ```
//! What is refused is not told apart by address: an answer must not map the operator's network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use platform::tenancy::IslandToken;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Resolving a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A request with its answer.
const POST_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one name that are looked at.
const ADDRESSES_MAX: usize = 16;
/// An answer's body that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// Requests on their way at once.
const POSTS_MAX: usize = 16;
/// Messages that wait or are on their way, of all tenants and of one.
const QUEUED_MAX: usize = 1024;
const QUEUED_PER_TENANT_MAX: usize = 64;
/// Waits before a message is sent again.
const AGAIN_AFTER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(16)];
const URL_BYTES_MAX: usize = 2048;

/// What the operator allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressConfig {
    /// Whether plain http may be spoken.
    pub http: bool,
    /// Networks that may be reached although they are not public.
    pub networks: Vec<Network>,
    /// A PEM file with authorities to trust beside the public ones.
    pub authority: Option<PathBuf>,
}

/// A network, as in `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a network: write it as `10.0.0.0/8` or `10.1.2.3`");
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if bits > most { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

impl Network {
    fn holds(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros() >= self.bits,
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros() >= self.bits,
            _ => false,
        }
    }
}

/// Why nothing came of a request. For the tenant who named the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EgressError {
    /// It may not be sent: trying again is in vain.
    #[error("{0}")]
    Refused(String),
    /// It could not be sent, or nothing came back.
    #[error("{0}")]
    Failed(&'static str),
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    /// The beginning of the body.
    pub(crate) body: String,
}

/// The way out.
pub(crate) struct Egress {
    config: EgressConfig,
    authorities: Vec<Certificate>,
    posts: Semaphore,
    /// Messages queued, by tenant.
    queued: Mutex<HashMap<IslandToken, usize>>,
}

/// A message and where it goes.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) url: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Egress {
    /// # Errors
    /// A file of authorities that cannot be read.
    pub(crate) fn new(config: EgressConfig) -> Result<Self, String> {
        let authorities = match &config.authority {
            None => Vec::new(),
            Some(path) => {
                let failed = |error: &dyn std::fmt::Display| format!("cannot read `egress.authority` `{}`: {error}", path.display());
                let pem = std::fs::read(path).map_err(|error| failed(&error))?;
                Certificate::from_pem_bundle(&pem).map_err(|error| failed(&error))?
            }
        };
        Ok(Self { config, authorities, posts: Semaphore::new(POSTS_MAX), queued: Mutex::default() })
    }

    /// Sends once.
    ///
    /// # Errors
    /// [`EgressError`].
    pub(crate) async fn post(&self, message: &Message) -> Result<Answered, EgressError> {
        let sending = async {
            let _place = self.posts.acquire().await.map_err(|_| EgressError::Failed("the service stops"))?;
            let url = self.checked(&message.url)?;
            let addresses = self.resolved(&url).await?;
            let client = self.client(&url, &addresses)?;
            let request = client.post(url).headers(message.headers.clone()).body(message.body.clone());
            let mut answer = request.send().await.map_err(|error| EgressError::Failed(failure(&error)))?;
            let status = answer.status().as_u16();
            let mut body = Vec::new();
            while body.len() < ANSWER_BYTES_MAX
                && let Ok(Some(piece)) = answer.chunk().await
            {
                body.extend_from_slice(&piece);
            }
            body.truncate(ANSWER_BYTES_MAX);
            Ok(Answered { status, body: String::from_utf8_lossy(&body).into_owned() })
        };
        timeout(POST_TIMEOUT, sending).await.unwrap_or(Err(EgressError::Failed("no answer came in time")))
    }

    /// Sends in the background, and again when it fails. False when too much is queued already: then it is not sent at all.
    pub(crate) fn queue(self: &Arc<Self>, island: IslandToken, message: Message) -> bool {
        {
            let mut queued = self.queued.lock();
            let all: usize = queued.values().sum();
            let own = queued.entry(island).or_default();
            if all >= QUEUED_MAX || *own >= QUEUED_PER_TENANT_MAX {
                return false;
            }
            *own += 1;
        }
        let place = Queued { egress: self.clone(), island };
        tokio::spawn(async move {
            for wait in AGAIN_AFTER.into_iter().map(Some).chain([None]) {
                let again = match place.egress.post(&message).await {
                    Ok(answered) => answered.status == 429 || answered.status >= 500,
                    Err(EgressError::Refused(_)) => false,
                    Err(EgressError::Failed(_)) => true,
                };
                match wait {
                    Some(wait) if again => sleep(wait).await,
                    _ => {
                        tracing::debug!(delivered = !again, "a message left the queue");
                        break;
                    }
                }
            }
        });
        true
    }

    /// An address that may be asked at all.
    ///
    /// # Errors
    /// [`EgressError::Refused`], with what to do.
    pub(crate) fn checked(&self, text: &str) -> Result<Url, EgressError> {
        let refused = |why: &str| Err(EgressError::Refused(format!("Invalid webhook URL: {why}")));
        if text.len() > URL_BYTES_MAX {
            return refused("it is longer than 2048 bytes");
        }
        let Ok(url) = Url::parse(text) else { return refused("it cannot be read") };
        match url.scheme() {
            "https" => {}
            "http" if self.config.http => {}
            "http" => return refused("it must begin with `https://`"),
            _ => return refused("its scheme is not `https`"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refused("it must not hold a user or password");
        }
        match url.host_str() {
            None | Some("") => return refused("it names no host"),
            Some(host) => {
                if let Some(address) = literal(host)
                    && !self.may_reach(address)
                {
                    return refused("its host cannot be reached from here");
                }
            }
        }
        Ok(url)
    }

    /// All addresses of the host, if each may be reached.
    async fn resolved(&self, url: &Url) -> Result<Vec<SocketAddr>, EgressError> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        let addresses: Vec<SocketAddr> = match literal(host) {
            Some(address) => vec![SocketAddr::new(address, port)],
            None => {
                let looked_up = timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await;
                let found = looked_up.ok().and_then(Result::ok).ok_or(EgressError::Failed("the host's name cannot be resolved"))?;
                found.take(ADDRESSES_MAX).collect()
            }
        };
        // One inner address among public ones is enough for a name that changes its mind.
        if addresses.is_empty() || !addresses.iter().all(|address| self.may_reach(address.ip())) {
            return Err(EgressError::Refused("Invalid webhook URL: its host cannot be reached from here".to_owned()));
        }
        Ok(addresses)
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.config.networks.iter().any(|network| network.holds(address))
    }

    /// A client that connects to these addresses and no others, for one request.
    fn client(&self, url: &Url, addresses: &[SocketAddr]) -> Result<Client, EgressError> {
        let builder = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .http1_only()
            .https_only(!self.config.http)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(POST_TIMEOUT)
            .pool_max_idle_per_host(0)
            .user_agent("insula")
            .resolve_to_addrs(url.host_str().unwrap_or_default(), addresses)
            .tls_certs_merge(self.authorities.clone());
        builder.build().map_err(|_| EgressError::Failed("the service cannot send now"))
    }
}

/// A place in the queue.
struct Queued {
    egress: Arc<Egress>,
    island: IslandToken,
}

impl Drop for Queued {
    fn drop(&mut self) {
        let mut queued = self.egress.queued.lock();
        if let Some(own) = queued.get_mut(&self.island) {
            *own -= 1;
            if *own == 0 {
                queued.remove(&self.island);
            }
        }
    }
}

/// A host that is an address; in URLs those of version 6 have brackets.
fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn failure(error: &reqwest::Error) -> &'static str {
    match error {
        error if error.is_timeout() => "no answer came in time",
        error if error.is_connect() => "no connection could be made, or its certificate is not trusted",
        _ => "the connection broke off",
    }
}

/// Whether the address belongs to the public internet (RFC 6890 and the registries it begins), and to nobody's cloud from within.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    /// Networks that are not public: address and bits.
    const INNER: [(Ipv4Addr, u32); 17] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        // Shared between providers and their customers; some clouds' metadata.
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        // Link-local; most clouds' metadata.
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 31, 196, 0), 24),
        (Ipv4Addr::new(192, 52, 193, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        // Multicast, reserved, broadcast.
        (Ipv4Addr::new(224, 0, 0, 0), 3),
        // Azure's host, from within.
        (Ipv4Addr::new(168, 63, 129, 16), 32),
    ];
    !INNER.iter().any(|(inner, bits)| Network { address: IpAddr::V4(*inner), bits: *bits }.holds(IpAddr::V4(address)))
}

/// Only global unicast is public; what embeds an address of version 4 is what that is.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let within = |inner: [u16; 2], bits| {
        let [first, second] = inner;
        Network { address: IpAddr::V6(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0)), bits }.holds(IpAddr::V6(address))
    };
    let global = within([0x2000, 0], 3);
    // Teredo and other protocols, documentation.
    let special = within([0x2001, 0], 23) || within([0x2001, 0xdb8], 32) || within([0x3fff, 0], 20);
    let [_, high, low, ..] = address.segments();
    let embedded = within([0x2002, 0], 16).then(|| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    global && !special && embedded.is_none_or(is_public_v4)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn egress(networks: &[&str], http: bool) -> Arc<Egress> {
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        Arc::new(Egress::new(EgressConfig { http, networks, authority: None }).unwrap())
    }

    fn message(url: &str) -> Message {
        Message { url: url.to_owned(), headers: HeaderMap::new(), body: Bytes::from_static(b"{}") }
    }

    /// A server that gives these answers, one a connection, and counts them.
    async fn server(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let mut served = 0;
            for answer in answers {
                let Ok(Ok((mut stream, _))) = timeout(Duration::from_secs(20), listener.accept()).await else { break };
                let mut seen = vec![0; 4096];
                let _ = stream.read(&mut seen).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
                served += 1;
            }
            served
        });
        (port, serving)
    }

    #[test]
    fn only_public_addresses() {
        let table = [
            ("93.184.216.34", true),
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("0.0.0.0", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.100.100.200", false),
            ("168.63.129.16", false),
            ("192.0.0.192", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:2800:220:1::1", true),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fd00:ec2::254", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:93.184.216.34", true),
            ("64:ff9b::7f00:1", false),
            ("2002:7f00:1::", false),
            ("2002:5db8:d822::", true),
            ("2001:db8::1", false),
            ("2001::1", false),
            ("ff02::1", false),
        ];
        let egress = egress(&[], false);
        for (address, expected) in table {
            assert_eq!(egress.may_reach(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn addresses_in_other_spellings_are_the_same() {
        let egress = egress(&[], true);
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:7f00:1]/",
            "http://１２７.0.0.1/",
            "https://169.254.169.254/latest/meta-data",
            "ftp://example.org/",
            "file:///etc/passwd",
            "https://user:secret@example.org/",
            "https:///",
            "not a url",
        ] {
            assert!(matches!(egress.checked(url), Err(EgressError::Refused(_))), "{url}");
        }
        assert!(egress.checked("https://example.org/hook?x=1").is_ok());
        assert!(super::tests::egress(&[], false).checked("http://example.org/").is_err());
    }

    #[test]
    fn networks() {
        for (text, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "10.0.0.1", false),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().holds(address.parse().unwrap()), expected, "{text} {address}");
        }
        for bad in ["10.0.0.0/33", "10.0.0/8", "x", "10.0.0.0/", "::/129"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn an_inner_server_is_reached_only_when_the_operator_allows_it() {
        let (port, serving) = server(vec!["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_owned()]).await;
        // A name that resolves to an inner address is no way around.
        for host in ["127.0.0.1", "localhost"] {
            let refused = egress(&[], true).post(&message(&format!("http://{host}:{port}/"))).await;
            assert!(matches!(&refused, Err(EgressError::Refused(why)) if !why.contains("127.0.0.1")), "{host}: {refused:?}");
        }
        let answered = egress(&["127.0.0.0/8", "::1"], true).post(&message(&format!("http://localhost:{port}/"))).await.unwrap();
        assert_eq!((answered.status, answered.body.as_str()), (200, "hi"));
        assert_eq!(serving.await.unwrap(), 1, "nothing was sent to it before");
    }

    #[tokio::test]
    async fn redirects_are_not_followed_and_answers_are_bounded() {
        let away = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_owned();
        let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
        let (port, _serving) = server(vec![away, long]).await;
        let egress = egress(&["127.0.0.1"], true);
        let url = format!("http://127.0.0.1:{port}/");
        assert_eq!(egress.post(&message(&url)).await.unwrap().status, 302);
        assert_eq!(egress.post(&message(&url)).await.unwrap().body.len(), ANSWER_BYTES_MAX);
    }
}
