//! A bucket of one tenant's own, reached with that tenant's own access key.
//!
//! | name in the bucket | what |
//! |---|---|
//! | `insula-owner` | the mark: which service and which tenant the bucket belongs to, with a MAC |
//! | `objects/<id>` | a sealed object |
//!
//! Whatever the bucket's other users or its server do to an object is found out when it is opened or read: its bytes are sealed. The
//! mark is compared once before the first use, so that nothing is put into a bucket which somebody else made under the same name.

use std::collections::HashSet;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::Method;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum, S3ConditionalPut};
use object_store::path::Path;
use object_store::{Error as StoreError, MultipartUpload, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::BlobId;
use super::provision::Mark;
use super::wire::{Http, Wire, endpoint, fault, retries};
use crate::error::{Error, Result};
use crate::name::unhex;
use crate::place::{S3Config, Secret};

/// Every object lies under it.
const FOLDER: &str = "objects";
/// Up to this an object is one put, above it parts of this size. The least part size of S3 is 5 MiB.
pub(super) const PART_BYTES: usize = 8 * 1024 * 1024;
/// What S3 takes.
const PARTS_MAX: usize = 10_000;
/// Parts of one object on their way; with the one being filled that is 32 MiB of memory an upload.
const PARTS_IN_FLIGHT_MAX: usize = 3;
/// Removals side by side.
const REMOVALS_MAX: usize = 8;

/// One tenant's bucket.
pub(crate) struct Bucket {
    name: String,
    store: AmazonS3,
    wire: Wire,
    mark: Mark,
    owned: OnceCell<()>,
    /// Something may lie in it that no row knows.
    littered: AtomicBool,
    /// Removals that are under way.
    chores: AtomicUsize,
}

impl Bucket {
    /// Asks nobody yet.
    pub(super) fn new(config: &S3Config, http: &Http, name: &str, key_id: &str, secret: &Secret, mark: Mark) -> Result<Self> {
        let (wire, url) = (Wire::s3(config, http, key_id, secret)?, endpoint(config)?);
        let store = AmazonS3Builder::new()
            .with_endpoint(url.as_str().trim_end_matches('/'))
            .with_allow_http(url.scheme() == "http")
            .with_virtual_hosted_style_request(false)
            .with_region(config.region.as_str())
            .with_bucket_name(name)
            .with_access_key_id(key_id)
            .with_secret_access_key(secret.expose())
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_checksum_algorithm(Checksum::SHA256)
            .with_retry(retries())
            .with_http_connector(http.clone())
            .build()
            .map_err(|error| Error::internal(format!("object store: {error}")))?;
        let (owned, littered, chores) = (OnceCell::new(), AtomicBool::new(false), AtomicUsize::new(0));
        Ok(Self { name: name.to_owned(), store, wire, mark, owned, littered, chores })
    }

    /// No other bucket of the server has it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The bucket is the one that was made for this tenant. Asked once.
    ///
    /// # Errors
    /// [`Error::Integrity`] if it is not.
    pub(super) async fn owned(&self) -> Result<()> {
        let check = || async {
            let answer = self.wire.call(Method::GET, &self.mark.path(), &[], Bytes::new()).await?;
            if answer.status == http::StatusCode::NOT_FOUND {
                return Err(Error::integrity(format!("bucket {}: it does not bear this service's mark", self.name)));
            }
            self.mark.check(&answer.done("reading the mark of a bucket")?.text)
        };
        self.owned.get_or_try_init(check).await.map(drop)
    }

    /// Opens an object: it is there and has this many bytes.
    pub(super) async fn open(self: &Arc<Self>, id: BlobId, bytes: u64) -> Result<Remote> {
        self.owned().await?;
        let found = match self.store.head(&path(id)).await {
            Ok(meta) => meta.size,
            Err(StoreError::NotFound { .. }) => return Err(Error::integrity(format!("object {id}: it is not in its bucket"))),
            Err(error) => return Err(fault("opening an object", &error)),
        };
        if found != bytes {
            return Err(Error::integrity(format!("object {id}: the bucket has {found} bytes of it instead of {bytes}")));
        }
        Ok(Remote { bucket: Arc::clone(self), id })
    }

    pub(super) fn littered(&self) -> bool {
        self.littered.load(Ordering::Acquire) || self.chores.load(Ordering::Acquire) > 0
    }

    /// Removes them in the background: the commit that took their rows away has happened.
    pub(super) fn remove(self: &Arc<Self>, ids: &[BlobId]) {
        let (bucket, ids) = (Arc::clone(self), ids.to_vec());
        self.chore(async move {
            let removals = futures_util::stream::iter(ids).map(|id| {
                let bucket = Arc::clone(&bucket);
                async move { bucket.delete(&path(id)).await }
            });
            removals.buffer_unordered(REMOVALS_MAX).try_collect().await
        });
    }

    async fn delete(&self, path: &Path) -> Result<()> {
        match self.store.delete(path).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(fault("removing an object", &error)),
        }
    }

    /// Removes all objects but the known ones, and all unfinished uploads.
    /// Objects of open writers would go too: nothing is being written meanwhile.
    pub(super) async fn sweep(&self, known: &HashSet<BlobId>) -> Result<()> {
        self.owned().await?;
        self.littered.store(false, Ordering::Release);
        let swept = self.sweep_now(known).await;
        if swept.is_err() {
            self.littered.store(true, Ordering::Release);
        }
        swept
    }

    async fn sweep_now(&self, known: &HashSet<BlobId>) -> Result<()> {
        abort_uploads(&self.wire, &self.name).await?;
        let listed = self.store.list(Some(&Path::from(FOLDER))).map_err(|error| fault("listing a bucket", &error));
        let strays = listed.try_filter_map(|object| async move {
            let id = object.location.filename().and_then(unhex).map(BlobId).filter(|id| path(*id) == object.location);
            Ok((!id.is_some_and(|id| known.contains(&id))).then_some(object.location))
        });
        strays.try_for_each_concurrent(REMOVALS_MAX, |path| async move { self.delete(&path).await }).await
    }

    /// Begins something that leaves litter unless it is done.
    fn undertake(self: &Arc<Self>) -> Chore {
        self.chores.fetch_add(1, Ordering::AcqRel);
        Chore { bucket: Arc::clone(self), done: false }
    }

    /// Does it in the background; if it fails or is cut off, the bucket counts as littered.
    fn chore(self: &Arc<Self>, work: impl Future<Output = Result<()>> + Send + 'static) {
        let chore = self.undertake();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let mut chore = chore;
            match work.await {
                Ok(()) => chore.done = true,
                Err(error) => {
                    tracing::warn!(%error, context = error.private(), "an object could not be removed from its bucket; the next sweep will");
                }
            }
        });
    }
}

/// Something that leaves litter unless it is done.
struct Chore {
    bucket: Arc<Bucket>,
    done: bool,
}

impl Drop for Chore {
    fn drop(&mut self) {
        if !self.done {
            self.bucket.littered.store(true, Ordering::Release);
        }
        self.bucket.chores.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One object in a bucket, open for reading.
pub(crate) struct Remote {
    bucket: Arc<Bucket>,
    id: BlobId,
}

impl Remote {
    /// These bytes of what is stored.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it was removed since it was opened; [`Error::Integrity`] if it became shorter.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let expected = range.end.saturating_sub(range.start);
        match self.bucket.store.get_range(&path(self.id), range).await {
            Ok(bytes) if bytes.len() as u64 == expected => Ok(bytes),
            Ok(bytes) => Err(Error::integrity(format!("object {}: {} bytes came instead of {expected}", self.id, bytes.len()))),
            Err(StoreError::NotFound { .. }) => Err(Error::NotFound("object")),
            Err(error @ (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. })) => {
                Err(fault("reading an object", &error))
            }
            Err(error) => match fault("reading an object", &error) {
                // The server answered, but with something else than these bytes.
                Error::Internal(context) => Err(Error::integrity(format!("object {}: {context}", self.id))),
                error => Err(error),
            },
        }
    }
}

/// An object on its way into a bucket.
pub(crate) struct Upload {
    bucket: Arc<Bucket>,
    id: BlobId,
    multipart: Option<Box<dyn MultipartUpload>>,
    parts: usize,
    in_flight: JoinSet<Result<(), StoreError>>,
}

impl Upload {
    pub(super) fn new(bucket: &Arc<Bucket>, id: BlobId) -> Self {
        Self { bucket: Arc::clone(bucket), id, multipart: None, parts: 0, in_flight: JoinSet::new() }
    }

    /// Takes full parts out of `sealed`, keeps the rest there.
    ///
    /// # Errors
    /// [`Error::Invalid`] above 78 GiB; [`Error::Unavailable`] when the server does not answer. The object is lost then.
    pub(super) async fn ship(&mut self, sealed: &mut Vec<u8>) -> Result<()> {
        while sealed.len() > PART_BYTES {
            let rest = sealed.split_off(PART_BYTES);
            self.part(std::mem::replace(sealed, rest)).await?;
        }
        Ok(())
    }

    /// All of it is stored.
    pub(super) async fn finish(&mut self, rest: Vec<u8>) -> Result<()> {
        if self.multipart.is_none() {
            self.bucket.owned().await?;
            return Self::put(&self.bucket, self.id, rest.into()).await;
        }
        self.part(rest).await?;
        while let Some(done) = self.in_flight.join_next().await {
            self.landed(done)?;
        }
        let Some(multipart) = &mut self.multipart else { return Err(Error::internal("an upload without parts")) };
        multipart.complete().await.map_err(|error| fault("completing an upload", &error))?;
        self.multipart = None;
        Ok(())
    }

    async fn part(&mut self, part: Vec<u8>) -> Result<()> {
        if self.parts == PARTS_MAX {
            return Err(Error::Invalid(format!("an object has at most {} GiB", (PARTS_MAX * PART_BYTES) >> 30)));
        }
        if self.multipart.is_none() {
            self.bucket.owned().await?;
            // Whoever drops this future leaves an upload behind whose number nobody knows.
            let mut unseen = self.bucket.undertake();
            let begun = self.bucket.store.put_multipart(&path(self.id)).await;
            self.multipart = Some(begun.map_err(|error| fault("beginning an upload", &error))?);
            unseen.done = true;
        }
        if self.in_flight.len() >= PARTS_IN_FLIGHT_MAX
            && let Some(done) = self.in_flight.join_next().await
        {
            self.landed(done)?;
        }
        let Some(multipart) = &mut self.multipart else { return Err(Error::internal("an upload without parts")) };
        self.in_flight.spawn(multipart.put_part(PutPayload::from(part)));
        self.parts += 1;
        Ok(())
    }

    fn landed(&self, done: Result<Result<(), StoreError>, tokio::task::JoinError>) -> Result<()> {
        done.map_err(Error::internal)?.map_err(|error| fault("uploading a part", &error))
    }

    /// A small object in one put, which never replaces another.
    async fn put(bucket: &Arc<Bucket>, id: BlobId, content: Bytes) -> Result<()> {
        // Whoever drops this future does not see whether the object came to be after all.
        let mut unseen = bucket.undertake();
        Self::put_unseen(&bucket.store, id, content).await?;
        unseen.done = true;
        Ok(())
    }

    async fn put_unseen(store: &AmazonS3, id: BlobId, content: Bytes) -> Result<()> {
        let (path, create) = (path(id), PutOptions::from(PutMode::Create));
        match store.put_opts(&path, PutPayload::from(content.clone()), create).await {
            Ok(_) => Ok(()),
            Err(StoreError::AlreadyExists { .. }) => {
                // The answer to the first attempt was lost. Nobody else knows this name.
                let there = store.get(&path).await.map_err(|error| fault("comparing an object", &error))?;
                let there = there.bytes().await.map_err(|error| fault("comparing an object", &error))?;
                if there == content { Ok(()) } else { Err(Error::internal(format!("object {id}: the bucket has another one"))) }
            }
            Err(error) => Err(fault("storing an object", &error)),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.in_flight.abort_all();
        if let Some(mut multipart) = self.multipart.take() {
            self.bucket.chore(async move { multipart.abort().await.map_err(|error| fault("aborting an upload", &error)) });
        }
    }
}

fn path(id: BlobId) -> Path {
    Path::from_iter([FOLDER, id.to_string().as_str()])
}

/// Unfinished uploads of a bucket end.
pub(super) async fn abort_uploads(wire: &Wire, bucket: &str) -> Result<()> {
    let path = format!("/{bucket}");
    loop {
        // What is aborted is not listed again: always from the start.
        let listed = wire.call(Method::GET, &path, &[("uploads", "")], Bytes::new()).await?;
        if listed.status == http::StatusCode::NOT_FOUND {
            return Ok(());
        }
        let uploads = listed.done("listing unfinished uploads")?.records("Upload");
        let mut aborted = HashSet::new();
        for upload in &uploads {
            let (Some(key), Some(upload)) = (upload.get("Key"), upload.get("UploadId")) else { continue };
            let answer = wire.call(Method::DELETE, &format!("{path}/{key}"), &[("uploadId", upload)], Bytes::new()).await?;
            answer.done_or_absent("aborting an upload")?;
            aborted.insert(upload.clone());
        }
        if aborted.is_empty() || uploads.len() < LISTED_MAX {
            return Ok(());
        }
    }
}

/// Names in one answer of a listing.
pub(super) const LISTED_MAX: usize = 1_000;
