//! A tenant's bucket comes and goes: the bucket under an unguessable name, the mark of its owner, a user whose policy opens it and
//! nothing else, and that user's access key.
//!
//! Where the server has no API for users, the operator makes bucket and access key and names them in the configuration. Then only
//! the mark is made here.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{Method, StatusCode};
use zeroize::Zeroizing;

use super::bucket::{Bucket, LISTED_MAX, abort_uploads};
use super::objects::Objects;
use super::wire::{Answer, Http, Wire};
use crate::error::{Error, Result};
use crate::name::{TenantId, hex};
use crate::place::{ObjectsPlace, S3Config, S3Credentials, S3Tenant, Secret};
use crate::seal::{self, Key};

/// The name of the mark in its bucket.
pub(super) const MARK: &str = "insula-owner";
/// The name of a user's only policy.
const POLICY: &str = "bucket";
/// AWS takes a while until a new access key works everywhere.
const KEY_READY_SECONDS_MAX: u64 = 60;
const KEY_READY_POLL_MILLIS: u64 = 250;
/// Removals side by side.
const REMOVALS_MAX: usize = 16;
/// Rounds of 1,000 removals.
const EMPTYING_ROUNDS_MAX: usize = 1_000_000;
/// A bucket's name has at most 63 characters: this, a dash, and 32 hex digits.
const PREFIX_CHARACTERS_MAX: usize = 30;
/// Days after which the server itself ends an upload that nobody finished.
const UPLOAD_DAYS_MAX: u8 = 1;

/// The S3 service of a configuration; cheap to clone.
#[derive(Clone)]
pub(crate) struct S3 {
    config: std::sync::Arc<S3Config>,
    http: Http,
    service: [u8; 16],
    key: Key,
}

impl S3 {
    /// For this service (its id and its control key).
    ///
    /// # Errors
    /// [`Error::Invalid`] when the configuration cannot be used: a URL, a prefix, or a bucket or access key of two tenants.
    pub(crate) fn new(config: S3Config, service: [u8; 16], key: &Key) -> Result<Self> {
        let prefix = &config.bucket_prefix;
        let fits = prefix.len() <= PREFIX_CHARACTERS_MAX
            && prefix.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !fits {
            return Err(Error::Invalid(format!("`{prefix}` is no prefix of buckets: at most 30 of a-z, 0-9 and -")));
        }
        if let S3Credentials::Configured(tenants) = &config.credentials {
            distinct(tenants)?;
        }
        let s3 = Self { config: config.into(), http: Http::new()?, service, key: key.clone() };
        s3.wire()?;
        Wire::iam(&s3.config, &s3.http)?;
        Ok(s3)
    }

    /// Gives a tenant its place. `taken` are the buckets of all tenants; `fresh` is what its own will be called where the service makes
    /// it. What a failure leaves behind is removed if the server lets us.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the bucket is somebody's already; [`Error::Invalid`] if the configuration names none for this tenant.
    pub(crate) async fn provision(&self, tenant: TenantId, tenant_name: &str, taken: &[String], fresh: &str) -> Result<ObjectsPlace> {
        match (&self.config.credentials, Wire::iam(&self.config, &self.http)?) {
            (S3Credentials::Configured(tenants), _) => {
                let given = tenants.get(tenant_name).ok_or_else(|| {
                    Error::Invalid(format!("the configuration has no bucket for `{tenant_name}`: add it to the S3 credentials"))
                })?;
                self.adopt(tenant, given, taken).await
            }
            (S3Credentials::Iam { .. }, Some(iam)) => self.make_or_unmake(&iam, tenant, fresh).await,
            (S3Credentials::Iam { .. }, None) => Err(Error::internal("no wire to the IAM API")),
        }
    }

    /// Opens a tenant's place. Asks nobody yet; the first use compares the mark.
    pub(crate) fn open(&self, tenant: TenantId, name: &str, key_id: &str, sealed_secret: &str) -> Result<Objects> {
        let secret = self.unseal(tenant, name, sealed_secret)?;
        let bucket = Bucket::new(&self.config, &self.http, name, key_id, &secret, self.mark(tenant, name))?;
        Ok(Objects::Bucket(bucket.into()))
    }

    /// Removes all that [`S3::provision`] made and all that lies in it. Idempotent. A bucket that the operator made stays, empty.
    ///
    /// # Errors
    /// [`Error::Integrity`] if the bucket holds something but bears no mark of this tenant: then nothing is removed from it.
    pub(crate) async fn destroy(&self, tenant: TenantId, name: &str, key_id: &str, sealed_secret: &str) -> Result<()> {
        match Wire::iam(&self.config, &self.http)? {
            Some(iam) => self.unmake(&iam, tenant, name).await,
            None => {
                let wire = Wire::s3(&self.config, &self.http, key_id, &self.unseal(tenant, name, sealed_secret)?)?;
                if self.ours(&wire, tenant, name).await? {
                    empty(&wire, name).await?;
                }
                Ok(())
            }
        }
    }

    /// The tenant's own access key.
    pub(super) fn tenant_wire(&self, tenant: TenantId, name: &str, key_id: &str, sealed_secret: &str) -> Result<Wire> {
        Wire::s3(&self.config, &self.http, key_id, &self.unseal(tenant, name, sealed_secret)?)
    }

    /// A name that a new bucket would have.
    pub(crate) fn fresh_name(&self) -> Result<String> {
        Ok(format!("{}-{}", self.config.bucket_prefix, hex(&seal::random::<16>()?)))
    }

    /// The service's own access key.
    fn wire(&self) -> Result<Wire> {
        Wire::s3(&self.config, &self.http, &self.config.access_key_id, &self.config.secret_access_key)
    }

    fn mark(&self, tenant: TenantId, bucket: &str) -> Mark {
        Mark::new(&self.key, self.service, tenant, bucket)
    }

    /// Uses what the operator made.
    async fn adopt(&self, tenant: TenantId, given: &S3Tenant, taken: &[String]) -> Result<ObjectsPlace> {
        if taken.contains(&given.bucket) {
            return Err(Error::Conflict(format!("bucket `{}` holds another tenant's objects", given.bucket)));
        }
        let wire = Wire::s3(&self.config, &self.http, &given.access_key_id, &given.secret_access_key)?;
        let mark = self.mark(tenant, &given.bucket);
        let listed = wire.call(Method::GET, &format!("/{}", given.bucket), &[("list-type", "2"), ("max-keys", "2")], Bytes::new()).await?;
        if listed.status == StatusCode::NOT_FOUND {
            return Err(Error::Invalid(format!("there is no bucket `{}`: make it first", given.bucket)));
        }
        let found = listed.done("listing a configured bucket")?.records("Contents");
        if found.iter().any(|object| object.get("Key").is_none_or(|key| key != MARK)) {
            return Err(Error::Conflict(format!("bucket `{}` is not empty", given.bucket)));
        }
        mark.put(&wire).await?;
        self.tidy(&wire, &given.bucket).await?;
        let sealed_secret = self.seal(tenant, &given.bucket, &given.secret_access_key)?;
        Ok(ObjectsPlace::Bucket { name: given.bucket.clone(), access_key_id: given.access_key_id.clone(), sealed_secret })
    }

    async fn make_or_unmake(&self, iam: &Wire, tenant: TenantId, name: &str) -> Result<ObjectsPlace> {
        let made = self.make(iam, tenant, name).await;
        let foreign = matches!(made, Err(Error::Conflict(_)));
        if made.is_err()
            && !foreign
            && let Err(error) = self.unmake(iam, tenant, name).await
        {
            tracing::error!(bucket = name, %error, context = error.private(), "a bucket was left behind that no tenant has");
        }
        made
    }

    /// Bucket, mark, user, policy, access key: in this order, so that whatever exists has an owner.
    async fn make(&self, iam: &Wire, tenant: TenantId, name: &str) -> Result<ObjectsPlace> {
        let wire = self.wire()?;
        let path = format!("/{name}");
        let location = match (self.config.endpoint.as_ref(), self.config.region.as_str()) {
            (None, region) if region != "us-east-1" => format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
            ),
            _ => String::new(),
        };
        // Making a bucket that one has is no error on every server.
        let before = wire.call(Method::GET, &path, &[("list-type", "2"), ("max-keys", "1")], Bytes::new()).await?;
        if before.status != StatusCode::NOT_FOUND {
            return Err(Error::Conflict(format!("bucket `{name}` exists already")));
        }
        let created = wire.call(Method::PUT, &path, &[], location).await?;
        match created.code().as_str() {
            // The answer to the first attempt was lost; the mark shows whether it was ours.
            "BucketAlreadyOwnedByYou" => {}
            "BucketAlreadyExists" => return Err(Error::Conflict(format!("bucket `{name}` exists already"))),
            _ => drop(created.done("making a bucket")?),
        }
        self.mark(tenant, name).put(&wire).await?;
        self.close(&wire, name).await?;
        self.tidy(&wire, name).await?;
        let user = iam.action("CreateUser", &[("UserName", name)], false).await?;
        if user.code() != "EntityAlreadyExists" {
            user.done("making a user")?;
        }
        let policy = policy(name);
        let fields = [("UserName", name), ("PolicyName", POLICY), ("PolicyDocument", &policy)];
        iam.action("PutUserPolicy", &fields, false).await?.done("giving a user its policy")?;
        let made = iam.action("CreateAccessKey", &[("UserName", name)], true).await?;
        if !made.status.is_success() {
            return Err(Error::internal(format!("object store: making an access key: {} {}", made.status, made.code())));
        }
        let mut made = made.records("AccessKey").into_iter().next().unwrap_or_default();
        let (Some(access_key_id), Some(secret)) = (made.remove("AccessKeyId"), made.remove("SecretAccessKey")) else {
            return Err(Error::internal("object store: a new access key came without its secret"));
        };
        let secret = Secret::new(secret);
        self.ready(&Wire::s3(&self.config, &self.http, &access_key_id, &secret)?, name).await?;
        Ok(ObjectsPlace::Bucket { name: name.to_owned(), access_key_id, sealed_secret: self.seal(tenant, name, &secret)? })
    }

    /// Waits until the new access key opens the bucket.
    async fn ready(&self, wire: &Wire, name: &str) -> Result<()> {
        let begun = tokio::time::Instant::now();
        loop {
            let answer = wire.call(Method::GET, &format!("/{name}"), &[("list-type", "2"), ("max-keys", "1")], Bytes::new()).await?;
            if answer.status.is_success() {
                return Ok(());
            }
            if begun.elapsed() > Duration::from_secs(KEY_READY_SECONDS_MAX) {
                return Err(answer.refused("a new access key does not open its bucket"));
            }
            tokio::time::sleep(Duration::from_millis(KEY_READY_POLL_MILLIS)).await;
        }
    }

    /// Nothing in the bucket can be made public, where the server knows such a thing.
    async fn close(&self, wire: &Wire, name: &str) -> Result<()> {
        let block = "<PublicAccessBlockConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>true</IgnorePublicAcls><BlockPublicPolicy>true</BlockPublicPolicy><RestrictPublicBuckets>true</RestrictPublicBuckets></PublicAccessBlockConfiguration>";
        let answer = wire.call(Method::PUT, &format!("/{name}"), &[("publicAccessBlock", "")], block).await?;
        optional(answer, name, "blocking public access")
    }

    /// The server itself ends uploads that nobody finished, where it knows such a thing.
    async fn tidy(&self, wire: &Wire, name: &str) -> Result<()> {
        let rule = format!(
            "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Rule><ID>unfinished-uploads</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status><AbortIncompleteMultipartUpload><DaysAfterInitiation>{UPLOAD_DAYS_MAX}</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>"
        );
        let answer = wire.call(Method::PUT, &format!("/{name}"), &[("lifecycle", "")], rule).await?;
        if answer.status == StatusCode::FORBIDDEN {
            // A tenant's own access key need not be allowed to; the operator who made the bucket is.
            tracing::warn!(bucket = name, "the access key may not set a lifecycle: set one that aborts unfinished uploads");
            return Ok(());
        }
        optional(answer, name, "a lifecycle")
    }

    /// User and bucket go, in this order: from then on nobody fills what is being emptied.
    async fn unmake(&self, iam: &Wire, tenant: TenantId, name: &str) -> Result<()> {
        let wire = self.wire()?;
        let there = self.ours(&wire, tenant, name).await?;
        let user = [("UserName", name)];
        let keys = iam.action("ListAccessKeys", &user, false).await?.done_or_absent("listing a user's access keys")?;
        // Also those that were made when an answer got lost.
        for key in keys.records("member").iter().filter_map(|key| key.get("AccessKeyId")) {
            let fields = [("UserName", name), ("AccessKeyId", key)];
            iam.action("DeleteAccessKey", &fields, false).await?.done_or_absent("removing an access key")?;
        }
        let fields = [("UserName", name), ("PolicyName", POLICY)];
        iam.action("DeleteUserPolicy", &fields, false).await?.done_or_absent("removing a user's policy")?;
        iam.action("DeleteUser", &user, false).await?.done_or_absent("removing a user")?;
        if there {
            empty(&wire, name).await?;
            wire.call(Method::DELETE, &format!("/{name}"), &[], Bytes::new()).await?.done_or_absent("removing a bucket")?;
        }
        Ok(())
    }

    /// Whether there is such a bucket, which is this tenant's or empty.
    ///
    /// # Errors
    /// [`Error::Integrity`] if it is another's.
    async fn ours(&self, wire: &Wire, tenant: TenantId, name: &str) -> Result<bool> {
        let mark = self.mark(tenant, name);
        let marked = wire.call(Method::GET, &mark.path(), &[], Bytes::new()).await?;
        if marked.status != StatusCode::NOT_FOUND {
            return mark.check(&marked.done("reading the mark of a bucket")?.text).map(|()| true);
        }
        if marked.code() == "NoSuchBucket" {
            return Ok(false);
        }
        // It may have been made, or emptied, and then the service died.
        if contents(wire, name).await?.is_empty() {
            return Ok(true);
        }
        Err(Error::integrity(format!("bucket {name}: it holds something, but does not bear this service's mark")))
    }

    fn sealing(&self, tenant: TenantId) -> Key {
        self.key.derive("placement", &tenant.0)
    }

    fn seal(&self, tenant: TenantId, bucket: &str, secret: &Secret) -> Result<String> {
        let sealed = seal::seal(&self.sealing(tenant), bucket.as_bytes(), secret.expose().as_bytes())?;
        Ok(STANDARD.encode(sealed))
    }

    fn unseal(&self, tenant: TenantId, bucket: &str, sealed: &str) -> Result<Secret> {
        let sealed = STANDARD.decode(sealed).map_err(|_| Error::integrity("a sealed secret that is no base64"))?;
        let plain = Zeroizing::new(seal::open(&self.sealing(tenant), bucket.as_bytes(), &sealed)?);
        let text = std::str::from_utf8(&plain).map_err(|_| Error::integrity("a sealed secret that is no text"))?;
        Ok(Secret::new(text.to_owned()))
    }
}

/// Whose a bucket is.
pub(super) struct Mark {
    bucket: String,
    text: String,
}

impl Mark {
    fn new(key: &Key, service: [u8; 16], tenant: TenantId, bucket: &str) -> Self {
        let mac = seal::mac(&key.derive("bucket mark", &[]), &[&service, &tenant.0, bucket.as_bytes()]);
        let text = format!("insula bucket v1\nservice {}\ntenant {}\nmac {}\n", hex(&service), tenant.hex(), hex(&mac));
        Self { bucket: bucket.to_owned(), text }
    }

    /// Where it lies.
    pub(super) fn path(&self) -> String {
        format!("/{}/{MARK}", self.bucket)
    }

    /// It is this one.
    ///
    /// # Errors
    /// [`Error::Integrity`] if it is another's.
    pub(super) fn check(&self, found: &str) -> Result<()> {
        if seal::same(found.as_bytes(), self.text.as_bytes()) {
            return Ok(());
        }
        Err(Error::integrity(format!("bucket {}: it bears another's mark", self.bucket)))
    }

    /// Puts it where none is.
    ///
    /// # Errors
    /// [`Error::Conflict`] if another's is there.
    async fn put(&self, wire: &Wire) -> Result<()> {
        let answer = wire.create(&self.path(), self.text.clone()).await?;
        if answer.status == StatusCode::PRECONDITION_FAILED || answer.status == StatusCode::CONFLICT {
            let found = wire.call(Method::GET, &self.path(), &[], Bytes::new()).await?.done("reading the mark of a bucket")?;
            return self.check(&found.text).map_err(|_| Error::Conflict(format!("bucket `{}` belongs to somebody else", self.bucket)));
        }
        answer.done("marking a bucket")?;
        // A server that does not know the condition would have replaced another's: then it does not refuse now either.
        let again = wire.create(&self.path(), self.text.clone()).await?;
        if again.status.is_success() {
            return Err(Error::Invalid("this object store does not know conditional writes (`If-None-Match`)".to_owned()));
        }
        Ok(())
    }
}

/// One object or version in a bucket.
struct Found {
    key: String,
    version: Option<String>,
}

impl Found {
    async fn remove(self, wire: &Wire, bucket: &str) -> Result<()> {
        let query = self.version.as_ref().map(|version| ("versionId", version.as_str()));
        let path = format!("/{bucket}/{}", self.key);
        wire.call(Method::DELETE, &path, query.as_slice(), Bytes::new()).await?.done_or_absent("removing an object").map(drop)
    }
}

/// Removes everything from a bucket, the mark last.
async fn empty(wire: &Wire, name: &str) -> Result<()> {
    abort_uploads(wire, name).await?;
    for _ in 0..EMPTYING_ROUNDS_MAX {
        let (marks, objects): (Vec<_>, Vec<_>) = contents(wire, name).await?.into_iter().partition(|object| object.key == MARK);
        let go = if objects.is_empty() { marks } else { objects };
        if go.is_empty() {
            return Ok(());
        }
        let removals = futures_util::stream::iter(go).map(|object| async move { object.remove(wire, name).await });
        removals.buffer_unordered(REMOVALS_MAX).try_collect::<()>().await?;
    }
    Err(Error::internal(format!("bucket {name}: it does not become empty")))
}

/// The first things in a bucket, all versions of them; without the versions where these may not be seen.
async fn contents(wire: &Wire, bucket: &str) -> Result<Vec<Found>> {
    let (path, max) = (format!("/{bucket}"), LISTED_MAX.to_string());
    let field = |mut object: BTreeMap<String, String>| {
        let version = object.remove("VersionId");
        object.remove("Key").map(|key| Found { key, version })
    };
    let versions = wire.call(Method::GET, &path, &[("versions", ""), ("max-keys", &max)], Bytes::new()).await?;
    if versions.status.is_success() {
        let all = versions.records("Version").into_iter().chain(versions.records("DeleteMarker"));
        let mut all: Vec<Found> = all.filter_map(field).collect();
        // Without versions each object has one of this name, and removing the object needs no right to remove versions.
        if all.iter().all(|object| object.version.as_deref() == Some("null")) && versions.records("DeleteMarker").is_empty() {
            all.iter_mut().for_each(|object| object.version = None);
        }
        return Ok(all);
    }
    let listed = wire.call(Method::GET, &path, &[("list-type", "2"), ("max-keys", &max)], Bytes::new()).await?;
    Ok(listed.done("listing a bucket")?.records("Contents").into_iter().filter_map(field).collect())
}

/// What its user may do. Servers know different sets of actions; all know these.
fn policy(bucket: &str) -> String {
    let arn = format!("arn:aws:s3:::{bucket}");
    serde_json::json!({ "Version": "2012-10-17", "Statement": [
        // Of the actions that list, those on one bucket: `ListAllMyBuckets` is none of them.
        { "Effect": "Allow", "Action": ["s3:List*"], "Resource": [arn, format!("{arn}/*")] },
        { "Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"], "Resource": format!("{arn}/*") },
    ]})
    .to_string()
}

/// Done, or the server does not know such a thing: the operator is told.
fn optional(answer: Answer, bucket: &str, what: &str) -> Result<()> {
    if answer.not_implemented() {
        tracing::warn!(bucket, "this object store does not know {what}");
        return Ok(());
    }
    answer.done(what).map(drop)
}

/// No bucket and no access key twice.
fn distinct(tenants: &BTreeMap<String, S3Tenant>) -> Result<()> {
    let mut seen = BTreeMap::new();
    for (tenant, given) in tenants {
        for (what, value) in [("bucket", &given.bucket), ("access key", &given.access_key_id)] {
            if let Some(other) = seen.insert((what, value), tenant) {
                return Err(Error::Invalid(format!("`{other}` and `{tenant}` have the same {what}: each tenant needs its own")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
impl S3 {
    pub(super) fn unsealed(&self, tenant: TenantId, bucket: &str, sealed: &str) -> String {
        self.unseal(tenant, bucket, sealed).unwrap().expose().to_owned()
    }

    pub(crate) fn sealed(&self, tenant: TenantId, bucket: &str, secret: &Secret) -> String {
        self.seal(tenant, bucket, secret).unwrap()
    }

    pub(super) async fn make_named(&self, tenant: TenantId, name: &str) -> Result<ObjectsPlace> {
        let iam = Wire::iam(&self.config, &self.http).unwrap().unwrap();
        self.make_or_unmake(&iam, tenant, name).await
    }
}
