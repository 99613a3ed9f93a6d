//! Proves with a tenant's own access key that other buckets refuse it.
//!
//! Every act is really tried. Refused means that the server said so (403); what is answered in another way is not proven. The same acts on
//! the tenant's own bucket must succeed: a key that opens nothing at all proves nothing.

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use http::{Method, StatusCode};

use super::provision::{MARK, S3};
use super::wire::{Answer, Wire};
use crate::error::{Error, Result};
use crate::name::{TenantId, hex};
use crate::place::ObjectsPlace;
use crate::seal;

/// Buckets that are tried side by side.
const BUCKETS_AT_ONCE_MAX: usize = 8;

/// How one attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeOutcome {
    /// As it must be: another's refused, the own one worked.
    Holds,
    /// The isolation is broken: another's was not refused, or the own one was.
    Broken,
    /// The server answered something else than yes or no.
    NotProven,
}

/// One attempt.
#[derive(Debug, Clone)]
pub(crate) struct IsolationProbe {
    /// The bucket, or `*` for the server.
    pub(crate) bucket: String,
    /// What was tried.
    pub(crate) act: &'static str,
    /// Whether it was expected to work.
    pub(crate) own: bool,
    /// How it ended.
    pub(crate) outcome: ProbeOutcome,
    /// The server's answer: a status and its word for it.
    pub(crate) answer: String,
}

impl S3 {
    /// Tries each act on the tenant's bucket and on each of the `others`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the tenant has no bucket; [`Error::Unavailable`] if the server stops answering. What the attempts bring is
    /// in the probes.
    pub(crate) async fn verify_isolation(&self, tenant: TenantId, mine: &ObjectsPlace, others: &[String]) -> Result<Vec<IsolationProbe>> {
        let ObjectsPlace::Bucket { name, access_key_id, sealed_secret } = mine else {
            return Err(Error::Invalid("this tenant has no bucket: its objects lie in the data folder".to_owned()));
        };
        let wire = &self.tenant_wire(tenant, name, access_key_id, sealed_secret)?;
        let mut probes = probe(wire, name, true).await?;
        let attempts: Vec<_> = others.iter().map(|other| anothers(wire, name, other).boxed()).collect();
        probes.extend(stream::iter(attempts).buffered(BUCKETS_AT_ONCE_MAX).try_concat().await?);
        probes.push(list_buckets(wire, name).await?);
        probes.push(create_bucket(wire, &self.fresh_name()?).await?);
        Ok(probes)
    }
}

/// All acts on a bucket that must not be the tenant's own.
async fn anothers(wire: &Wire, own: &str, other: &str) -> Result<Vec<IsolationProbe>> {
    if other != own {
        return probe(wire, other, false).await;
    }
    let answer = "another tenant has the same bucket".to_owned();
    Ok(vec![IsolationProbe { bucket: other.to_owned(), act: "share", own: false, outcome: ProbeOutcome::Broken, answer }])
}

/// All acts on one bucket. What is written is removed again if it should not have been possible.
async fn probe(wire: &Wire, bucket: &str, own: bool) -> Result<Vec<IsolationProbe>> {
    let path = format!("/{bucket}");
    let object = format!("{path}/insula-probe-{}", hex(&seal::random::<16>()?));
    let mut probes = Vec::new();
    let mut note = |act, answer: &Answer| probes.push(judged(bucket, act, own, answer));
    note("list", &wire.call(Method::GET, &path, &[("list-type", "2"), ("max-keys", "1")], Bytes::new()).await?);
    note("list uploads", &wire.call(Method::GET, &path, &[("uploads", ""), ("max-uploads", "1")], Bytes::new()).await?);
    note("get", &wire.call(Method::GET, &format!("{path}/{MARK}"), &[], Bytes::new()).await?);
    note("put", &wire.call(Method::PUT, &object, &[], "an attempt to write that should have been refused, or a test").await?);
    let begun = wire.call(Method::POST, &object, &[("uploads", "")], Bytes::new()).await?;
    note("begin an upload", &begun);
    if let Some(upload) = begun.text_of("UploadId") {
        wire.call(Method::DELETE, &object, &[("uploadId", &upload)], Bytes::new()).await?;
    }
    // If the put went through, this also clears it away.
    note("delete", &wire.call(Method::DELETE, &object, &[], Bytes::new()).await?);
    if !own {
        note("read the policy", &wire.call(Method::GET, &path, &[("policy", "")], Bytes::new()).await?);
    }
    Ok(probes)
}

/// Some servers answer with the buckets that the key opens, which must be the own one alone.
async fn list_buckets(wire: &Wire, own: &str) -> Result<IsolationProbe> {
    let answer = wire.call(Method::GET, "/", &[], Bytes::new()).await?;
    let mut probe = judged("*", "list buckets", false, &answer);
    if answer.status.is_success() {
        let shown: Vec<String> = answer.records("Bucket").into_iter().filter_map(|mut bucket| bucket.remove("Name")).collect();
        let understood = answer.text.contains("ListAllMyBucketsResult");
        let strange = shown.iter().any(|name| name != own);
        probe.outcome = if !strange && understood { ProbeOutcome::Holds } else { ProbeOutcome::Broken };
        probe.answer = format!("{}, showing {} buckets", answer.status.as_u16(), shown.len());
    }
    Ok(probe)
}

async fn create_bucket(wire: &Wire, name: &str) -> Result<IsolationProbe> {
    let path = format!("/{name}");
    let answer = wire.call(Method::PUT, &path, &[], Bytes::new()).await?;
    if answer.status.is_success()
        && let Err(error) = wire.call(Method::DELETE, &path, &[], Bytes::new()).await
    {
        tracing::error!(bucket = name, %error, "a bucket of an isolation probe was left behind");
    }
    Ok(judged("*", "create a bucket", false, &answer))
}

fn judged(bucket: &str, act: &'static str, own: bool, answer: &Answer) -> IsolationProbe {
    let outcome = match (answer.status, own) {
        (status, true) if status.is_success() => ProbeOutcome::Holds,
        (StatusCode::FORBIDDEN, false) => ProbeOutcome::Holds,
        (StatusCode::FORBIDDEN, true) => ProbeOutcome::Broken,
        (status, false) if status.is_success() => ProbeOutcome::Broken,
        _ => ProbeOutcome::NotProven,
    };
    let words = format!("{} {}", answer.status.as_u16(), answer.code()).trim_end().to_owned();
    IsolationProbe { bucket: bucket.to_owned(), act, own, outcome, answer: words }
}
