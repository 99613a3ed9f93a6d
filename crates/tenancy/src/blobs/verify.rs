//! Proves with a tenant's own access key that other buckets refuse it.
//!
//! Every act is really tried. Refused means that the server said so (403); what it did not answer is not proven. The same acts on
//! the tenant's own bucket must succeed: a key that opens nothing at all proves nothing.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Serialize;

use super::provision::{MARK, S3};
use super::wire::{Answer, Wire};
use crate::error::{Error, Result};
use crate::name::{TenantId, hex};
use crate::place::ObjectsPlace;
use crate::seal;

/// How one attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeOutcome {
    /// As it must be: another's refused, the own one worked.
    Holds,
    /// The isolation is broken: another's was not refused, or the own one was.
    Broken,
    /// The server did not answer, or something else than yes or no.
    NotProven,
}

/// One attempt.
#[derive(Debug, Clone, Serialize)]
pub struct IsolationProbe {
    /// The bucket, or `*` for the server.
    pub bucket: String,
    /// What was tried.
    pub act: &'static str,
    /// Whether it was expected to work.
    pub own: bool,
    /// How it ended.
    pub outcome: ProbeOutcome,
    /// The server's answer: a status and its word for it.
    pub answer: String,
}

impl S3 {
    /// Tries each act on the tenant's bucket and on each of the `others`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the tenant has no bucket. What the attempts bring is in the probes.
    pub(crate) async fn verify_isolation(&self, tenant: TenantId, mine: &ObjectsPlace, others: &[String]) -> Result<Vec<IsolationProbe>> {
        let ObjectsPlace::Bucket { name, access_key_id, sealed_secret } = mine else {
            return Err(Error::Invalid("this tenant has no bucket: its objects lie in the data folder".to_owned()));
        };
        let wire = self.tenant_wire(tenant, name, access_key_id, sealed_secret)?;
        let mut probes = Vec::new();
        probe(&wire, name, true, &mut probes).await?;
        for other in others {
            if other == name {
                probes.push(IsolationProbe {
                    bucket: other.clone(),
                    act: "share",
                    own: false,
                    outcome: ProbeOutcome::Broken,
                    answer: "another tenant has the same bucket".to_owned(),
                });
                continue;
            }
            probe(&wire, other, false, &mut probes).await?;
        }
        probes.push(list_buckets(&wire, name).await);
        let fresh = self.fresh_name()?;
        probes.push(create_bucket(&wire, &fresh).await);
        Ok(probes)
    }
}

/// All acts on one bucket. What is written is removed again if it should not have been possible.
async fn probe(wire: &Wire, bucket: &str, own: bool, probes: &mut Vec<IsolationProbe>) -> Result<()> {
    let path = format!("/{bucket}");
    let object = format!("{path}/insula-probe-{}", hex(&seal::random::<16>()?));
    let note = |act, answer: &Result<Answer>| judged(bucket, act, own, answer);
    let list = wire.call(Method::GET, &path, &[("list-type", "2"), ("max-keys", "1")], Bytes::new()).await;
    probes.push(note("list", &list));
    let uploads = wire.call(Method::GET, &path, &[("uploads", ""), ("max-uploads", "1")], Bytes::new()).await;
    probes.push(note("list uploads", &uploads));
    let get = wire.call(Method::GET, &format!("{path}/{MARK}"), &[], Bytes::new()).await;
    probes.push(note("get", &get));
    let put = wire.call(Method::PUT, &object, &[], "an attempt to write that should have been refused, or a test").await;
    probes.push(note("put", &put));
    let begin = wire.call(Method::POST, &object, &[("uploads", "")], Bytes::new()).await;
    probes.push(note("begin an upload", &begin));
    if let Some(upload) = begin.ok().and_then(|answer| answer.text_of("UploadId")) {
        wire.call(Method::DELETE, &object, &[("uploadId", &upload)], Bytes::new()).await?;
    }
    // If the put went through, this also clears it away.
    let delete = wire.call(Method::DELETE, &object, &[], Bytes::new()).await;
    probes.push(note("delete", &delete));
    if !own {
        let policy = wire.call(Method::GET, &path, &[("policy", "")], Bytes::new()).await;
        probes.push(note("read the policy", &policy));
    }
    Ok(())
}

/// Some servers answer with the buckets that the key opens, which must be the own one alone.
async fn list_buckets(wire: &Wire, own: &str) -> IsolationProbe {
    let answer = wire.call(Method::GET, "/", &[], Bytes::new()).await;
    let mut probe = judged("*", "list buckets", false, &answer);
    if let Ok(answer) = answer
        && answer.status.is_success()
    {
        let shown: Vec<String> = answer.records("Bucket").into_iter().filter_map(|mut bucket| bucket.remove("Name")).collect();
        let understood = answer.text.contains("ListAllMyBucketsResult");
        let strange = shown.iter().any(|name| name != own);
        probe.outcome = if !strange && understood { ProbeOutcome::Holds } else { ProbeOutcome::Broken };
        probe.answer = format!("{}, showing {} buckets", answer.status.as_u16(), shown.len());
    }
    probe
}

async fn create_bucket(wire: &Wire, name: &str) -> IsolationProbe {
    let path = format!("/{name}");
    let answer = wire.call(Method::PUT, &path, &[], Bytes::new()).await;
    let probe = judged("*", "create a bucket", false, &answer);
    if answer.is_ok_and(|answer| answer.status.is_success())
        && let Err(error) = wire.call(Method::DELETE, &path, &[], Bytes::new()).await
    {
        tracing::error!(bucket = name, %error, "a bucket of an isolation probe was left behind");
    }
    probe
}

fn judged(bucket: &str, act: &'static str, own: bool, answer: &Result<Answer>) -> IsolationProbe {
    let (outcome, words) = match answer {
        Ok(answer) => {
            let outcome = match (answer.status, own) {
                (status, true) if status.is_success() => ProbeOutcome::Holds,
                (StatusCode::FORBIDDEN, false) => ProbeOutcome::Holds,
                (StatusCode::FORBIDDEN, true) => ProbeOutcome::Broken,
                (status, false) if status.is_success() => ProbeOutcome::Broken,
                _ => ProbeOutcome::NotProven,
            };
            (outcome, format!("{} {}", answer.status.as_u16(), answer.code()).trim_end().to_owned())
        }
        Err(error) => (ProbeOutcome::NotProven, error.to_string()),
    };
    IsolationProbe { bucket: bucket.to_owned(), act, own, outcome, answer: words }
}
