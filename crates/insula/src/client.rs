//! The public API over HTTPS. No proxy from the environment, no redirects, nothing but TLS: a credential goes to the address that was
//! named, or nowhere.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use indicatif::ProgressBar;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Body, Certificate, ClientBuilder, Method, RequestBuilder, Response, Url};
use serde_json::Value;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::failure::{Class, Failure, Result};
use crate::settings::Settings;

/// Largest answer that is held in memory, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Pieces in which files are read, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Items that a list command fetches at most.
const LIST_ITEMS_MAX: usize = 10_000;
/// Items in one page.
const PAGE_ITEMS: usize = 500;
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A service and a credential.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    timeout: Duration,
}

/// What a download is asked with.
pub(crate) struct Wanted<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a [&'a str],
    pub(crate) query: &'a [(&'a str, String)],
    /// A header beside the credential; never shown.
    pub(crate) header: Option<(&'static str, &'a str)>,
}

/// A file or standard input on its way out.
pub(crate) struct Outgoing {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Length in bytes, where it is known.
    pub(crate) bytes: Option<u64>,
}

impl Outgoing {
    /// Opens the file; `-` is standard input.
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self { reader: Box::new(tokio::io::stdin()), bytes: None });
        }
        let failed = |error: std::io::Error| Failure::file("read", path, &error);
        let file = File::open(path).await.map_err(failed)?;
        let facts = file.metadata().await.map_err(failed)?;
        if facts.is_dir() {
            return Err(Failure::usage(format!("`{}` is a folder", path.display())));
        }
        Ok(Self { reader: Box::new(file), bytes: facts.is_file().then_some(facts.len()) })
    }

    fn stream(self, bar: ProgressBar) -> BoxStream<'static, std::io::Result<Bytes>> {
        futures_util::stream::unfold(Some((self.reader, bar)), |state| async move {
            let (mut reader, bar) = state?;
            let mut piece = vec![0; PIECE_BYTES];
            match reader.read(&mut piece).await {
                Ok(0) => {
                    bar.finish_and_clear();
                    None
                }
                Ok(read) => {
                    piece.truncate(read);
                    bar.inc(read as u64);
                    Some((Ok(Bytes::from(piece)), Some((reader, bar))))
                }
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}

/// What all connections have in common: no proxy from the environment, no redirects, deadlines, and the authority that was named.
pub(crate) fn http(cacert: Option<&Path>, timeout: Duration) -> Result<ClientBuilder> {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .read_timeout(timeout)
        .user_agent(concat!("insula/", env!("CARGO_PKG_VERSION")));
    let Some(path) = cacert else { return Ok(builder) };
    let pem = std::fs::read(path).map_err(|error| Failure::file("read", path, &error))?;
    let bad = || Failure::usage(format!("`{}` holds no PEM certificate", path.display()));
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|_| bad())?;
    if certificates.is_empty() {
        return Err(bad());
    }
    Ok(builder.tls_certs_only(certificates))
}

/// The same, ready.
pub(crate) fn built(builder: ClientBuilder) -> Result<reqwest::Client> {
    builder.build().map_err(|error| Failure::new(Class::Failed, format!("cannot set up TLS: {error}")))
}

impl Client {
    /// Ready to ask.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let timeout = Duration::from_secs(settings.timeout_seconds);
        let http = built(http(settings.cacert.as_deref(), timeout)?.https_only(true))?;
        let base =
            Url::parse(&settings.url).map_err(|error| Failure::usage(format!("the address `{}` is not valid: {error}", settings.url)))?;
        Ok(Self { http, base, token: settings.token.clone(), timeout })
    }

    /// The address asked.
    pub(crate) fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// JSON of a `GET`.
    pub(crate) async fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value> {
        self.json(self.request(Method::GET, path)?.query(query)).await
    }

    /// JSON of a request with a JSON body.
    pub(crate) async fn send(&self, method: Method, path: &[&str], body: &Value) -> Result<Value> {
        self.json(self.request(method, path)?.json(body)).await
    }

    /// JSON of a request without a body.
    pub(crate) async fn call(&self, method: Method, path: &[&str]) -> Result<Value> {
        self.json(self.request(method, path)?).await
    }

    /// The same with a query.
    pub(crate) async fn call_with(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> Result<Value> {
        self.json(self.request(method, path)?.query(query)).await
    }

    /// All items of a list, page by page.
    pub(crate) async fn list(&self, path: &[&str], query: &[(&str, String)]) -> Result<Vec<Value>> {
        self.list_some(path, query, LIST_ITEMS_MAX).await
    }

    /// The first `most` items of a list.
    pub(crate) async fn list_some(&self, path: &[&str], query: &[(&str, String)], most: usize) -> Result<Vec<Value>> {
        let mut items: Vec<Value> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut asked = query.to_vec();
            asked.push(("limit", PAGE_ITEMS.min(most - items.len()).to_string()));
            asked.extend(after.take().map(|after| ("after", after)));
            let mut page = self.get(path, &asked).await?;
            if let Some(Value::Array(found)) = page.get_mut("items").map(Value::take) {
                items.extend(found);
            }
            after = page.get("next").and_then(|next| next.as_str().map(str::to_owned).or_else(|| next.as_u64().map(|n| n.to_string())));
            if after.is_none() || items.len() >= most {
                items.truncate(most);
                return Ok(items);
            }
        }
    }

    /// A body given whole, an answer given whole, and the answer's headers.
    pub(crate) async fn post_bytes(&self, path: &[&str], headers: &[(&str, &str)], body: Vec<u8>) -> Result<(Vec<u8>, HeaderMap)> {
        let request = self.request(Method::POST, path)?.timeout(self.timeout).body(body);
        let answer = self.answer(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await?;
        let headers = answer.headers().clone();
        Ok((self.body(answer).await?, headers))
    }

    /// A file goes out, JSON comes back. Time is not limited, silence is.
    pub(crate) async fn upload(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        media: &str,
        file: Outgoing,
        bar: ProgressBar,
    ) -> Result<Value> {
        self.sent(self.request(method, path)?.query(query).header(CONTENT_TYPE, media), file, bar).await
    }

    /// The same with a header beside the credential.
    pub(crate) async fn upload_with(
        &self,
        path: &[&str],
        header: (&'static str, &str),
        media: &str,
        file: Outgoing,
        bar: ProgressBar,
    ) -> Result<Value> {
        let request = self.request(Method::POST, path)?.header(header.0, header.1).header(CONTENT_TYPE, media);
        self.sent(request, file, bar).await
    }

    async fn sent(&self, mut request: RequestBuilder, file: Outgoing, bar: ProgressBar) -> Result<Value> {
        if let Some(bytes) = file.bytes {
            request = request.header(CONTENT_LENGTH, bytes);
        }
        let answer = self.answer(request.body(Body::wrap_stream(file.stream(bar.clone())))).await;
        bar.finish_and_clear();
        let bytes = self.body(answer?).await?;
        parse(&bytes)
    }

    /// An answer of any size goes to `to`; `seen` sees every piece. Returns the number of bytes.
    pub(crate) async fn download(
        &self,
        wanted: &Wanted<'_>,
        to: &mut (dyn AsyncWrite + Send + Unpin),
        bar: &ProgressBar,
        mut seen: impl FnMut(&[u8]),
    ) -> Result<u64> {
        let mut request = self.request(wanted.method.clone(), wanted.path)?.query(wanted.query);
        if let Some((name, value)) = wanted.header {
            request = request.header(name, value);
        }
        let answer = self.answer(request).await?;
        let expected = answer.content_length();
        if let Some(length) = expected {
            bar.set_length(length);
        }
        let written = |error: std::io::Error| Failure::new(Class::Failed, format!("cannot write the download: {error}"));
        let mut pieces = answer.bytes_stream();
        let mut bytes = 0u64;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| Failure::unreachable(self.url(), &error))?;
            to.write_all(&piece).await.map_err(written)?;
            seen(&piece);
            bytes += piece.len() as u64;
            bar.inc(piece.len() as u64);
        }
        to.flush().await.map_err(written)?;
        bar.finish_and_clear();
        if expected.is_some_and(|expected| expected != bytes) {
            return Err(Failure::new(Class::Unavailable, "the download broke off before its end"));
        }
        Ok(bytes)
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder> {
        let mut url = self.base.clone();
        // `Url` would silently drop these, and the request would be about something else.
        if let Some(odd) = path.iter().find(|segment| matches!(**segment, "" | "." | "..")) {
            return Err(Failure::usage(format!("`{odd}` is not a name")));
        }
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => return Err(Failure::usage(format!("the address `{}` is not valid", self.url()))),
        };
        let request = self.http.request(method, url);
        Ok(match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value> {
        let answer = self.answer(request.timeout(self.timeout)).await?;
        let bytes = self.body(answer).await?;
        parse(&bytes)
    }

    /// The answer, when it is a good one.
    async fn answer(&self, request: RequestBuilder) -> Result<Response> {
        let answer = request.send().await.map_err(|error| Failure::unreachable(self.url(), &error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (status, request_id, retry) = (answer.status(), header("x-request-id"), header(RETRY_AFTER.as_str()));
        let body = self.body(answer).await.unwrap_or_default();
        let failure = Failure::answered(status, request_id, retry.as_deref(), &body);
        Err(match self.token {
            None if failure.class() == Class::Unauthenticated => {
                Failure::new(Class::Unauthenticated, "no credential was given").help("set INSULA_TOKEN, or store a key with `insula login`")
            }
            _ => failure,
        })
    }

    async fn body(&self, answer: Response) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut pieces = answer.bytes_stream();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| Failure::unreachable(self.url(), &error))?);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(Failure::new(Class::Failed, format!("the answer is larger than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        Ok(bytes)
    }
}

fn parse(bytes: &[u8]) -> Result<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|_| {
        Failure::new(Class::Failed, "the service answered something that is no JSON").help("is the address that of an Insula service?")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_names() {
        assert!(
            rustls::crypto::aws_lc_rs::default_provider().install_default().is_ok()
                || rustls::crypto::CryptoProvider::get_default().is_some()
        );
        let settings = Settings { url: "https://h/base/".to_owned(), token: Some("t".to_owned()), cacert: None, timeout_seconds: 1 };
        let client = Client::new(&settings).unwrap();
        let url = |path: &[&str]| client.request(Method::GET, path).map(|request| request.build().unwrap().url().to_string());
        assert_eq!(url(&["v1", "datasets", "a/b?c#d %"]).unwrap(), "https://h/base/v1/datasets/a%2Fb%3Fc%23d%20%25");
        for odd in ["..", ".", ""] {
            assert!(url(&["v1", "datasets", odd]).is_err(), "`{odd}`");
        }
    }
}
