//! How the service speaks to an S3 server: one HTTP client for everything, and the calls that the object library does not have
//! (buckets, unfinished uploads, users and their keys), signed by its SigV4.
//!
//! No proxy of the environment, no redirect: what is sent carries a signature that is good for one server.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::{BackoffConfig, RetryConfig};
use quick_xml::events::Event;
use url::Url;

use crate::error::{Error, Result};
use crate::place::{S3Config, S3Credentials, Secret};

/// Until a connection stands.
const CONNECT_SECONDS_MAX: u64 = 5;
/// Without a byte from the server.
const SILENCE_SECONDS_MAX: u64 = 30;
/// One request with its answer, at most one part of 8 MiB either way.
const REQUEST_SECONDS_MAX: u64 = 120;
/// A request that the server did not answer or was too busy for is sent again so often …
const RETRIES_MAX: usize = 6;
/// … if no more than this has passed since it was sent first.
const RETRY_SECONDS_MAX: u64 = 15;
const BACKOFF_MILLIS_MIN: u64 = 100;
const BACKOFF_MILLIS_MAX: u64 = 2_000;
/// Answer to a call of [`Wire`]: a listing of 1,000 names has less than 1 MiB.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
const IDLE_SECONDS_MAX: u64 = 20;

/// What the caller reads when a server does not answer.
const UNREACHABLE: &str = "the object store cannot be reached; try again";

/// The HTTP client; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Http(reqwest::Client);

impl Http {
    pub(super) fn new() -> Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
            .read_timeout(Duration::from_secs(SILENCE_SECONDS_MAX))
            .timeout(Duration::from_secs(REQUEST_SECONDS_MAX))
            .pool_idle_timeout(Duration::from_secs(IDLE_SECONDS_MAX))
            .retry(reqwest::retry::never());
        client.build().map(Self).map_err(Error::internal)
    }
}

impl HttpConnector for Http {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl HttpService for Http {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string()).map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(match body.as_bytes() {
            Some(bytes) => bytes.clone().into(),
            None => reqwest::Body::wrap(body),
        });
        let answer = self.0.execute(request).await.map_err(failed)?;
        let status = answer.status();
        if matches!(status.as_u16(), 429 | 500 | 502..=504) {
            // As good as no answer: it is asked again, and in the end nobody takes it for a refusal.
            return Err(HttpError::new(HttpErrorKind::Request, Busy(status)));
        }
        let (parts, body) = http::Response::<reqwest::Body>::from(answer).into_parts();
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body.map_err(failed))))
    }
}

/// The server cannot do it now.
#[derive(Debug, thiserror::Error)]
#[error("the server is too busy or broken: {0}")]
struct Busy(StatusCode);

fn failed(error: reqwest::Error) -> HttpError {
    let kind = if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_connect() {
        HttpErrorKind::Connect
    } else if error.is_builder() {
        HttpErrorKind::Unknown
    } else {
        HttpErrorKind::Interrupted
    };
    HttpError::new(kind, error.without_url())
}

/// The budget for repetitions, of every request.
pub(super) fn retries() -> RetryConfig {
    let (init_backoff, max_backoff) = (Duration::from_millis(BACKOFF_MILLIS_MIN), Duration::from_millis(BACKOFF_MILLIS_MAX));
    RetryConfig {
        backoff: BackoffConfig { init_backoff, max_backoff, base: 2.0 },
        max_retries: RETRIES_MAX,
        retry_timeout: Duration::from_secs(RETRY_SECONDS_MAX),
    }
}

/// What went wrong, if it was not an answer about the object: unreachable, refused, or a fault.
pub(super) fn fault(context: &str, error: &object_store::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if inner.is::<HttpError>() {
            return unreachable(context, error);
        }
        cause = inner.source();
    }
    Error::internal(format!("object store: {context}: {error}"))
}

fn unreachable(context: &str, error: &dyn std::fmt::Display) -> Error {
    tracing::warn!(context, %error, "the object store cannot be reached");
    Error::Unavailable(UNREACHABLE)
}

/// An access key and the server it is for.
#[derive(Clone)]
pub(super) struct Wire {
    http: Http,
    endpoint: Url,
    service: &'static str,
    region: String,
    key_id: String,
    secret: Secret,
}

impl Wire {
    /// To the S3 server, with this access key.
    pub(super) fn s3(config: &S3Config, http: &Http, key_id: &str, secret: &Secret) -> Result<Self> {
        let endpoint = endpoint(config)?;
        Ok(Self {
            http: http.clone(),
            endpoint,
            service: "s3",
            region: word(&config.region, "region")?,
            key_id: word(key_id, "access key id")?,
            secret: secret.clone(),
        })
    }

    /// To the API of users and keys, with the service's own access key. `None` where the operator makes credentials.
    ///
    /// # Errors
    /// [`Error::Invalid`] when secrets would come over the network in clear.
    pub(super) fn iam(config: &S3Config, http: &Http) -> Result<Option<Self>> {
        let S3Credentials::Iam { endpoint: own } = &config.credentials else { return Ok(None) };
        let (url, region) = match own.as_ref().or(config.endpoint.as_ref()) {
            Some(url) => (base(url)?, config.region.as_str()),
            // AWS has one for all regions.
            None => (base("https://iam.amazonaws.com")?, "us-east-1"),
        };
        if url.scheme() == "http" && !loopback(&url) {
            return Err(Error::Invalid("the IAM endpoint answers with secrets: take an `https` URL".to_owned()));
        }
        let wire = Self::s3(config, http, &config.access_key_id, &config.secret_access_key)?;
        Ok(Some(Self { endpoint: url, service: "iam", region: word(region, "region")?, ..wire }))
    }

    /// A call on a bucket (path `/bucket`), an object (`/bucket/key`) or the server (`/`). Safe to send twice.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the server does not answer in time. Whatever it answers is an [`Answer`].
    pub(super) async fn call(&self, method: Method, path: &str, query: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Answer> {
        self.send(method, path, query, &[], body.into(), RETRIES_MAX).await
    }

    /// As [`Wire::call`], only if there is no such object yet.
    pub(super) async fn create(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        self.send(Method::PUT, path, &[], &[("if-none-match", "*")], body.into(), RETRIES_MAX).await
    }

    /// An action of the IAM query API; sent once where `once`.
    pub(super) async fn action(&self, action: &str, fields: &[(&str, &str)], once: bool) -> Result<Answer> {
        let form = {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("Action", action).append_pair("Version", "2010-05-08").extend_pairs(fields);
            form.finish()
        };
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let retries_max = if once { 0 } else { RETRIES_MAX };
        self.send(Method::POST, "/", &[], &headers, form.into(), retries_max).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, &'static str)],
        body: Bytes,
        retries_max: usize,
    ) -> Result<Answer> {
        let begun = tokio::time::Instant::now();
        let mut retried = 0;
        loop {
            let error = match self.attempt(&method, path, query, headers, body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Fault(error)) => return Err(error),
                Err(Attempt::Http(error)) => error,
            };
            if retried >= retries_max || begun.elapsed() > Duration::from_secs(RETRY_SECONDS_MAX) {
                return Err(unreachable(path, &error));
            }
            let wait = BACKOFF_MILLIS_MIN.saturating_mul(1 << retried.min(10)).min(BACKOFF_MILLIS_MAX);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            retried += 1;
        }
    }

    async fn attempt(
        &self,
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, &'static str)],
        body: Bytes,
    ) -> Result<Answer, Attempt> {
        let fault = |error: &dyn std::fmt::Display| Attempt::Fault(Error::internal(error));
        let mut url = located(&self.endpoint, path).map_err(Attempt::Fault)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let digest = digest::digest(&digest::SHA256, &body);
        let mut request =
            http::Request::builder().method(method.clone()).uri(url.as_str()).body(HttpRequestBody::from(body)).map_err(|e| fault(&e))?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        if self.service == "s3" && !request.body().is_empty() {
            let checksum = HeaderValue::try_from(STANDARD.encode(digest)).map_err(|e| fault(&e))?;
            request.headers_mut().insert("x-amz-checksum-sha256", checksum);
        }
        let credential = AwsCredential { key_id: self.key_id.clone(), secret_key: self.secret.expose().to_owned(), token: None };
        AwsAuthorizer::new(&credential, self.service, &self.region).authorize(&mut request, Some(digest.as_ref()));
        let (parts, body) = self.http.call(request).await.map_err(Attempt::Http)?.into_parts();
        let mut body = http_body_util::Limited::new(body, ANSWER_BYTES_MAX);
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.downcast::<HttpError>() {
                Ok(error) => Attempt::Http(*error),
                Err(error) => fault(&error),
            })?;
            text.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
        Ok(Answer { status: parts.status, text: String::from_utf8_lossy(&text).into_owned() })
    }
}

/// Why an attempt brought no answer.
enum Attempt {
    Http(HttpError),
    Fault(Error),
}

/// What a server answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl Answer {
    /// The server's word for an error, or nothing.
    pub(super) fn code(&self) -> String {
        if self.status.is_success() {
            return String::new();
        }
        let field = |of: &str| records(&self.text, of).into_iter().next().and_then(|mut error| error.remove("Code"));
        field("Error").unwrap_or_default()
    }

    /// Whether the server does not know such a call.
    pub(super) fn not_implemented(&self) -> bool {
        matches!(self.status, StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED) || self.code() == "NotImplemented"
    }

    /// It was done.
    ///
    /// # Errors
    /// [`Error::Internal`] with the server's words, if it was not.
    pub(super) fn done(self, what: &str) -> Result<Self> {
        if self.status.is_success() { Ok(self) } else { Err(self.refused(what)) }
    }

    /// It was done, or what it was done to is not there (any more).
    pub(super) fn done_or_absent(self, what: &str) -> Result<Self> {
        let absent =
            self.status == StatusCode::NOT_FOUND || ["NoSuchEntity", "NoSuchBucket", "NoSuchUpload"].contains(&self.code().as_str());
        if absent { Ok(self) } else { self.done(what) }
    }

    /// The error, with the server's words.
    pub(super) fn refused(&self, what: &str) -> Error {
        let words: String = self.text.chars().take(400).collect();
        Error::internal(format!("object store: {what}: {} {words}", self.status))
    }

    /// Each element of this name, as its inner elements' text by name.
    pub(super) fn records(&self, element: &str) -> Vec<BTreeMap<String, String>> {
        records(&self.text, element)
    }

    /// The text of the first element of this name.
    pub(super) fn text_of(&self, element: &str) -> Option<String> {
        // Whatever encloses everything is an element too.
        let root = self.text.split('<').skip(1).find(|tag| !tag.starts_with(['?', '!']))?;
        let root = root.split(|c: char| c.is_whitespace() || c == '>').next()?;
        self.records(root).into_iter().next()?.remove(element)
    }
}

/// Elements of one name in an answer; what is no XML has none.
fn records(xml: &str, element: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = quick_xml::Reader::from_str(xml);
    let mut found = Vec::new();
    let (mut record, mut name, mut text) = (None, String::new(), String::new());
    loop {
        match reader.read_event() {
            Ok(Event::Start(start)) => {
                name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
                text.clear();
                if name == element && record.is_none() {
                    record = Some(BTreeMap::new());
                }
            }
            Ok(Event::Text(part)) => text.push_str(&part.decode().unwrap_or_default()),
            Ok(Event::GeneralRef(part)) => text.push_str(&reference(&part)),
            Ok(Event::End(end)) => {
                let ended = String::from_utf8_lossy(end.local_name().as_ref()).into_owned();
                if ended == element {
                    found.extend(record.take());
                } else if let Some(record) = record.as_mut().filter(|_| ended == name) {
                    // The first one: an element may have an inner one of the same name.
                    record.entry(ended).or_insert_with(|| std::mem::take(&mut text));
                }
            }
            Ok(Event::Eof) | Err(_) => return found,
            Ok(_) => {}
        }
    }
}

/// The character behind `&…;`.
fn reference(part: &quick_xml::events::BytesRef<'_>) -> String {
    if let Ok(Some(character)) = part.resolve_char_ref() {
        return character.to_string();
    }
    let word = part.decode().unwrap_or_default();
    quick_xml::escape::resolve_predefined_entity(&word).unwrap_or_default().to_owned()
}

/// The S3 server's URL.
pub(super) fn endpoint(config: &S3Config) -> Result<Url> {
    match &config.endpoint {
        Some(url) => base(url),
        None => base(&format!("https://s3.{}.amazonaws.com", word(&config.region, "region")?)),
    }
}

fn base(text: &str) -> Result<Url> {
    let invalid = || Error::Invalid(format!("`{text}` is no base URL of an object store: take `https://host` or `https://host:port`"));
    let url = Url::parse(text).map_err(|_| invalid())?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    if !plain || !["http", "https"].contains(&url.scheme()) || !url.has_host() || url.path() != "/" {
        return Err(invalid());
    }
    Ok(url)
}

fn loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Visible characters without a comma or slash, since it goes into a signature's header.
fn word(text: &str, what: &str) -> Result<String> {
    let fits = !text.is_empty() && text.len() <= 128 && text.chars().all(|c| c.is_ascii_graphic() && !",/".contains(c));
    if fits { Ok(text.to_owned()) } else { Err(Error::Invalid(format!("the object store's {what} is not a word"))) }
}

/// Where something is: the path segment by segment as it is, whatever a name in it has. A server lists what somebody else wrote, and `..` in it
/// must not lead to another bucket.
fn located(endpoint: &Url, path: &str) -> Result<Url> {
    if path.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(Error::integrity(format!(
            "`{path}`: an object whose name has the part `.` or `..` is none of ours; remove it from its bucket"
        )));
    }
    let mut url = endpoint.clone();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    let encoded: String =
        path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect();
    url.set_path(&encoded);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_its_bucket() {
        let endpoint: Url = "http://localhost:9000/".parse().unwrap();
        for (name, encoded) in [
            ("objects/0a", "objects/0a"),
            ("%2e%2e/other/x", "%252e%252e/other/x"),
            (".\t./other/x", ".%09./other/x"),
            ("..\\other\\x", "..%5Cother%5Cx"),
            ("a?versionId=1#x", "a%3FversionId%3D1%23x"),
            ("ä b", "%C3%A4%20b"),
        ] {
            let url = located(&endpoint, &format!("/mine/{name}")).unwrap();
            assert_eq!((url.path(), url.query()), (format!("/mine/{encoded}").as_str(), None), "{name:?}");
        }
        for name in ["../other/x", "a/../../other/x", "./x", "a/.."] {
            assert!(matches!(located(&endpoint, &format!("/mine/{name}")), Err(Error::Integrity(_))), "{name:?}");
        }
    }

    #[test]
    fn answers_are_read() {
        let text = "<?xml version=\"1.0\"?>\n<R xmlns=\"x\"><Upload><Key>a&amp;b&#x2F;c</Key><Owner><ID>1</ID></Owner><UploadId>u</UploadId></Upload>\
             <Upload><Key>d</Key></Upload><Next>n</Next></R>";
        let answer = Answer { status: StatusCode::OK, text: text.to_owned() };
        let uploads = answer.records("Upload");
        let field = |at: usize, name: &str| uploads[at].get(name).map(String::as_str);
        assert_eq!((uploads.len(), field(0, "Key"), field(0, "UploadId"), field(1, "Key")), (2, Some("a&b/c"), Some("u"), Some("d")));
        assert_eq!(answer.text_of("Next").as_deref(), Some("n"));
        assert_eq!(answer.text_of("Absent"), None);
        for broken in ["", "<", "<a><b></a>", "no xml", "<R><Upload><Key>a"] {
            assert!(records(broken, "Upload").is_empty(), "{broken}");
        }
    }

    #[test]
    fn only_base_urls_are_taken() {
        for (url, fits) in [
            ("https://s3.example", true),
            ("http://127.0.0.1:9000", true),
            ("http://[::1]:9000/", true),
            ("ftp://s3.example", false),
            ("https://key:secret@s3.example", false),
            ("https://s3.example/base", false),
            ("https://s3.example/?x=y", false),
            ("s3.example", false),
        ] {
            assert_eq!(base(url).is_ok(), fits, "{url}");
        }
    }

    #[test]
    fn secrets_do_not_come_over_the_network_in_clear() {
        let with = |endpoint: &str| S3Config {
            endpoint: Some(endpoint.to_owned()),
            region: "r".to_owned(),
            access_key_id: "k".to_owned(),
            secret_access_key: Secret::new("s".to_owned()),
            credentials: S3Credentials::Iam { endpoint: None },
            bucket_prefix: "p".to_owned(),
        };
        let http = Http::new().unwrap();
        assert!(Wire::iam(&with("http://127.0.0.1:1"), &http).is_ok());
        assert!(Wire::iam(&with("https://s3.example"), &http).is_ok());
        assert!(matches!(Wire::iam(&with("http://s3.example"), &http), Err(Error::Invalid(_))));
    }
}
