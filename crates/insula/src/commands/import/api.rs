//! MLflow's REST API as a client asks for it. Source and target speak the same, so one reader serves both: what is compared was read alike.
//!
//! A refusal is an answer: it belongs to the one thing that was asked for, is noted, and the import goes on. Anything else that does not
//! pass by waiting ends it, and it can be started again.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::{Class, Failure};

/// Largest answer that is held in memory, in bytes.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Longest excerpt of an answer in an error, in characters.
const EXCERPT_CHARS_MAX: usize = 200;
/// How often something that broke is tried.
pub(crate) const TRIES_MAX: u32 = 6;
/// Wait before the second try; it doubles.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// Longest wait that a side may ask for at once.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest time that one request waits for a rate in all.
const BUSY_TOTAL_MAX: Duration = Duration::from_secs(15 * 60);
/// What to do when a side stops answering.
const AGAIN: &str = "start the same command again when it answers: it goes on where it stopped";

/// An answer that is no good one, about what was asked.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: u16,
    code: String,
    pub(crate) message: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// This cannot be had; the next thing can.
    Refused(Refusal),
    /// The rate is used up for so long.
    Busy(Duration),
    /// It may go at the next try.
    Broken(Failure),
    /// It will not go.
    Failed(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Result of everything that asks.
pub(crate) type Answer<T> = Result<T, Trouble>;

impl Refusal {
    /// Refused on this side already.
    pub(crate) fn ours(message: impl Into<String>) -> Trouble {
        Trouble::Refused(Self { status: 0, code: String::new(), message: message.into() })
    }

    fn absent(&self) -> bool {
        self.status == 404 || self.code == "RESOURCE_DOES_NOT_EXIST"
    }
}

/// That there is no such thing is an answer too.
pub(crate) fn found<T>(answer: Answer<T>) -> Answer<Option<T>> {
    match answer {
        Ok(thing) => Ok(Some(thing)),
        Err(Trouble::Refused(refusal)) if refusal.absent() => Ok(None),
        Err(trouble) => Err(trouble),
    }
}

/// That it is there already is as good: a request that was cut off may have arrived.
pub(crate) fn made<T>(answer: Answer<T>) -> Answer<()> {
    match answer {
        Err(Trouble::Refused(refusal)) if refusal.code == "RESOURCE_ALREADY_EXISTS" => Ok(()),
        answer => answer.map(drop),
    }
}

/// Tries until it is done, refused, or has failed too often.
pub(crate) async fn patient<T, F: Future<Output = Answer<T>>>(mut attempt: impl FnMut() -> F) -> Answer<T> {
    let (mut tries, mut waited) = (1, Duration::ZERO);
    loop {
        match attempt().await {
            Err(Trouble::Busy(wait)) if waited < BUSY_TOTAL_MAX => {
                waited += wait;
                tokio::time::sleep(wait).await;
            }
            Err(Trouble::Busy(_)) => {
                let help =
                    "raise the tenant's rate (`insula tenant limits`), and start the same command again: it goes on where it stopped";
                return Err(Failure::new(Class::Quota, "the rate of the tenant is used up, and stays so").help(help).into());
            }
            Err(Trouble::Broken(_)) if tries < TRIES_MAX => {
                tokio::time::sleep(RETRY_WAIT * (1 << tries)).await;
                tries += 1;
            }
            Err(Trouble::Broken(failure)) => return Err(Trouble::Failed(failure.help(AGAIN))),
            answer => return answer,
        }
    }
}

/// How one is known.
pub(crate) enum Credential {
    None,
    Basic(String, Option<String>),
    Bearer(String),
}

/// One side.
pub(crate) struct Api {
    pub(crate) http: reqwest::Client,
    pub(crate) base: Url,
    pub(crate) credential: Credential,
    pub(crate) timeout: Duration,
    /// As people are told of it.
    pub(crate) name: String,
}

/// Bytes on their way in.
pub(crate) struct Incoming {
    pub(crate) bytes: Option<u64>,
    pub(crate) pieces: BoxStream<'static, std::io::Result<Bytes>>,
}

/// A page of a list in whatever field it is.
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next: Option<String>,
}

impl Api {
    /// `GET` below MLflow's API.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Answer<T> {
        self.ask(|| Ok(self.request(Method::GET, &format!("api/2.0/mlflow/{path}"), "")?.query(query))).await
    }

    /// Anything with a body below MLflow's API.
    pub(crate) async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: &Value) -> Answer<T> {
        self.ask(|| Ok(self.request(method.clone(), &format!("api/2.0/mlflow/{path}"), "")?.json(body))).await
    }

    /// `POST` whose answer says nothing.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer<()> {
        self.send::<Value>(Method::POST, path, body).await.map(drop)
    }

    /// The same for what must not be done twice: whether an answer came. Without one it may be done or not.
    pub(crate) async fn post_once(&self, path: &str, body: &Value) -> Answer<bool> {
        let attempt = || async {
            let request = self.request(Method::POST, &format!("api/2.0/mlflow/{path}"), "")?.json(body).timeout(self.timeout);
            match self.answer(request).await {
                Err(Trouble::Broken(_)) => Ok(false),
                answer => answer.map(|_| true),
            }
        };
        patient(attempt).await
    }

    /// One page of a list that is asked for with `POST`.
    pub(crate) async fn page<T: DeserializeOwned>(&self, path: &str, field: &str, body: &Value) -> Answer<Page<T>> {
        cut(self.send(Method::POST, path, body).await?, field)
    }

    /// One page of a list that is asked for with `GET`.
    pub(crate) async fn page_get<T: DeserializeOwned>(&self, path: &str, field: &str, query: &[(&str, &str)]) -> Answer<Page<T>> {
        cut(self.get(path, query).await?, field)
    }

    /// All of a list that is asked for with `GET`, page by page.
    pub(crate) async fn all<T: DeserializeOwned>(&self, path: &str, field: &str, query: &[(&str, &str)]) -> Answer<Vec<T>> {
        let (mut all, mut token) = (Vec::new(), None::<String>);
        loop {
            let mut asked = query.to_vec();
            asked.extend(token.as_deref().map(|token| ("page_token", token)));
            let page = self.page_get(path, field, &asked).await?;
            all.extend(page.items);
            token = page.next;
            if token.is_none() {
                return Ok(all);
            }
        }
    }

    /// The same of any address, where answers come in one piece.
    pub(crate) async fn list<T: DeserializeOwned>(&self, fixed: &str, field: &str, query: &[(&str, &str)]) -> Answer<Vec<T>> {
        Ok(cut(self.ask(|| Ok(self.request(Method::GET, fixed, "")?.query(query))).await?, field)?.items)
    }

    /// A file: below `fixed` the parts of `path` are names.
    pub(crate) async fn open(&self, fixed: &str, path: &str, query: &[(&str, &str)]) -> Answer<Incoming> {
        let answer = self.answer(self.request(Method::GET, fixed, path)?.query(query)).await?;
        let (bytes, name) = (answer.content_length(), self.name.clone());
        let pieces = answer.bytes_stream().map(move |piece| piece.map_err(|error| std::io::Error::other(format!("{name}: {error}"))));
        Ok(Incoming { bytes, pieces: pieces.boxed() })
    }

    /// The other way.
    pub(crate) async fn put(&self, fixed: &str, path: &str, file: Incoming) -> Answer<()> {
        let mut request = self.request(Method::PUT, fixed, path)?.header(CONTENT_TYPE, "application/octet-stream");
        if let Some(bytes) = file.bytes {
            request = request.header(CONTENT_LENGTH, bytes);
        }
        self.answer(request.body(Body::wrap_stream(file.pieces))).await.map(drop)
    }

    fn request(&self, method: Method, fixed: &str, path: &str) -> Answer<RequestBuilder> {
        let mut url = self.base.clone();
        let names = || path.split('/').filter(|_| !path.is_empty());
        // `Url` would silently drop these, and the request would be about something else.
        if names().any(|name| matches!(name, "" | "." | "..")) {
            return Err(Refusal::ours(format!("`{path}` is no path of names")));
        }
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(fixed.split('/')).extend(names()),
            Err(()) => return Err(Failure::usage(format!("the address of {} is not valid", self.name)).into()),
        };
        let request = self.http.request(method, url);
        Ok(match &self.credential {
            Credential::None => request,
            Credential::Basic(user, password) => request.basic_auth(user, password.as_deref()),
            Credential::Bearer(token) => request.bearer_auth(token),
        })
    }

    async fn ask<T: DeserializeOwned>(&self, request: impl Fn() -> Answer<RequestBuilder>) -> Answer<T> {
        let bytes = patient(|| async {
            let answer = self.answer(request()?.timeout(self.timeout)).await?;
            self.body(answer).await
        });
        let bytes = bytes.await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let help = "is the address that of an MLflow server?";
            Failure::new(Class::Failed, format!("{} answered something that is not MLflow's: {error}", self.name)).help(help).into()
        })
    }

    async fn answer(&self, request: RequestBuilder) -> Answer<Response> {
        let answer = request.send().await.map_err(|error| Trouble::Broken(Failure::unreachable(&self.name, &error)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (retry, location) = (header(RETRY_AFTER), header(LOCATION));
        let body = self.body(answer).await.unwrap_or_default();
        Err(self.trouble(status, retry.as_deref(), location, &body))
    }

    fn trouble(&self, status: StatusCode, retry: Option<&str>, location: Option<String>, body: &[u8]) -> Trouble {
        #[derive(Deserialize, Default)]
        struct Said {
            #[serde(default)]
            error_code: String,
            message: Option<String>,
        }
        let Said { error_code, message } = serde_json::from_slice(body).unwrap_or_default();
        let message = message.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
        let message: String = message.chars().take(EXCERPT_CHARS_MAX).collect();
        let failed = |class| Failure::new(class, format!("{} answered {status}: {message}", self.name));
        let seconds = retry.map(|seconds| Duration::from_secs(seconds.parse().unwrap_or(1)).clamp(Duration::from_secs(1), BUSY_WAIT_MAX));
        match (status.as_u16(), seconds) {
            (429, Some(wait)) => Trouble::Busy(wait),
            (429, None) => {
                let help =
                    "free or raise the tenant's limits (`insula quota`), and start the same command again: it goes on where it stopped";
                failed(Class::Quota).help(help).into()
            }
            (401, _) => failed(Class::Unauthenticated).help("is the credential of that side valid?").into(),
            (300..=399, _) => {
                failed(Class::Usage).help(format!("redirects are not followed; it points to `{}`", location.unwrap_or_default())).into()
            }
            (408 | 502..=504, _) => Trouble::Broken(failed(Class::Unavailable)),
            (status, _) => {
                let message = if message.is_empty() { format!("status {status}") } else { message };
                Trouble::Refused(Refusal { status, code: error_code, message })
            }
        }
    }

    async fn body(&self, answer: Response) -> Answer<Vec<u8>> {
        let (mut bytes, mut pieces) = (Vec::new(), answer.bytes_stream());
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| Trouble::Broken(Failure::unreachable(&self.name, &error)))?);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(
                    Failure::new(Class::Failed, format!("an answer of {} has more than {ANSWER_BYTES_MAX} bytes", self.name)).into()
                );
            }
        }
        Ok(bytes)
    }
}

fn cut<T: DeserializeOwned>(mut answer: Value, field: &str) -> Answer<Page<T>> {
    let next = answer.get("next_page_token").and_then(Value::as_str).filter(|token| !token.is_empty()).map(str::to_owned);
    let items = match answer.get_mut(field).map(Value::take) {
        None | Some(Value::Null) => Vec::new(),
        Some(items) => serde_json::from_value(items)
            .map_err(|error| Failure::new(Class::Failed, format!("`{field}` in an answer is not MLflow's: {error}")))?,
    };
    Ok(Page { items, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_busy_passes_and_what_failed_ends() {
        let mut left = 3;
        let busy = patient(|| {
            left -= 1;
            let answer = if left > 0 { Err(Trouble::Busy(Duration::from_millis(1))) } else { Ok(7) };
            async { answer }
        });
        assert_eq!(busy.await.unwrap(), 7);
        let mut tries = 0;
        let failed = patient(|| {
            tries += 1;
            async { Err::<(), _>(Trouble::Failed(Failure::new(Class::Unauthenticated, "no"))) }
        });
        assert!(matches!(failed.await, Err(Trouble::Failed(_))));
        assert_eq!(tries, 1, "what does not go is not tried again");
    }

    #[test]
    fn an_answer_is_sorted_by_what_helps() {
        let api = Api {
            http: reqwest::Client::new(),
            base: Url::parse("http://h/base").unwrap(),
            credential: Credential::None,
            timeout: Duration::from_secs(1),
            name: "h".to_owned(),
        };
        let said =
            |status: u16, retry: Option<&str>, body: &str| api.trouble(StatusCode::from_u16(status).unwrap(), retry, None, body.as_bytes());
        assert!(matches!(said(429, Some("3"), ""), Trouble::Busy(wait) if wait == Duration::from_secs(3)));
        assert!(matches!(said(429, None, "{}"), Trouble::Failed(failure) if failure.class() == Class::Quota));
        assert!(matches!(said(503, Some("1"), "{}"), Trouble::Broken(_)));
        assert!(matches!(said(401, None, "{}"), Trouble::Failed(failure) if failure.class() == Class::Unauthenticated));
        let absent = said(404, None, r#"{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"no run"}"#);
        assert!(found::<()>(Err(absent)).unwrap().is_none());
        let taken = said(400, None, r#"{"error_code":"RESOURCE_ALREADY_EXISTS","message":"taken"}"#);
        assert!(made::<()>(Err(taken)).is_ok());
        let url = |path| api.request(Method::GET, "api/x", path).unwrap().build().unwrap().url().to_string();
        assert_eq!(url("a b/50%/#1/a%20b"), "http://h/base/api/x/a%20b/50%25/%231/a%2520b");
        assert!(api.request(Method::GET, "api/x", "a/../b").is_err());
    }
}
