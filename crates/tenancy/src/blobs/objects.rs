//! Where a tenant's sealed objects lie. Here they are only bytes under an id: written once, read in ranges, removed.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::BlobId;
use super::bucket::{Bucket, Remote, Upload};
use crate::error::{Error, Result};
use crate::name::unhex;
use crate::rows::db::blocking;

/// Bytes that are copied at once from one place to another.
const COPY_BYTES: u64 = 4 * 1024 * 1024;

/// A place for objects; cheap to clone.
#[derive(Clone)]
pub(crate) enum Objects {
    /// A file each, in 256 folders of this one.
    Folder(Arc<Path>),
    /// An S3 bucket of the tenant's own.
    Bucket(Arc<Bucket>),
}

impl Objects {
    /// Makes an empty folder of objects; its parent is there and is synced by the caller.
    pub(crate) fn create_folder(dir: &Path) -> Result<Self> {
        DirBuilder::new().mode(0o700).create(dir)?;
        Ok(Self::folder(dir))
    }

    /// What [`Objects::create_folder`] made.
    pub(crate) fn folder(dir: &Path) -> Self {
        Self::Folder(dir.into())
    }

    /// Begins an object. Nothing is left of it if [`Draft`] is dropped before [`Draft::keep`].
    pub(crate) fn begin(&self, id: BlobId) -> Result<(Draft, Sink)> {
        let sink = match self {
            Self::Folder(dir) => Sink::File { file: file_create(dir, id)?, folder: folder_of(dir, id) },
            Self::Bucket(bucket) => Sink::Upload { sealed: Vec::new(), upload: Upload::new(bucket, id) },
        };
        Ok((Draft { objects: self.clone(), id, kept: false }, sink))
    }

    /// Opens an object for reading in ranges.
    ///
    /// # Errors
    /// [`Error::Integrity`] if it is gone or has another length than `bytes`; [`Error::Unavailable`] when the server does not answer.
    pub(crate) async fn open(&self, id: BlobId, bytes: u64) -> Result<Source> {
        match self {
            Self::Folder(dir) => {
                let path = path(dir, id);
                blocking(move || file_open(&path, id, bytes).map(Source::File)).await
            }
            Self::Bucket(bucket) => bucket.open(id, bytes).await.map(Source::Remote),
        }
    }

    /// Removes objects whose rows and keys are gone. One that could not be removed is unreadable, and is swept later.
    pub(crate) fn remove(&self, ids: &[BlobId]) {
        match self {
            Self::Folder(dir) => {
                for error in ids.iter().filter_map(|id| fs::remove_file(path(dir, *id)).err()) {
                    tracing::warn!(%error, "a deleted object's file could not be removed; the next sweep will");
                }
            }
            Self::Bucket(bucket) => bucket.remove(ids),
        }
    }

    /// Whether something is left behind that only a sweep removes.
    pub(crate) fn littered(&self) -> bool {
        match self {
            Self::Folder(_) => false,
            Self::Bucket(bucket) => bucket.littered(),
        }
    }

    /// Removes everything that is not `known`: left-overs of a crash. Nothing is being written meanwhile.
    pub(crate) async fn sweep(&self, known: HashSet<BlobId>) -> Result<()> {
        match self {
            Self::Folder(dir) => {
                let dir = Arc::clone(dir);
                blocking(move || folder_sweep(&dir, &known)).await
            }
            Self::Bucket(bucket) => bucket.sweep(&known).await,
        }
    }

    /// Copies the stored bytes of an object to another place, where they open just as well. Again after it was broken off.
    ///
    /// # Errors
    /// As [`Objects::open`], and what the other place runs into.
    pub(crate) async fn copy(&self, id: BlobId, bytes: u64, to: &Self) -> Result<()> {
        if let Self::Folder(dir) = to {
            match fs::remove_file(path(dir, id)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let source = Arc::new(self.open(id, bytes).await?);
        let (draft, mut sink) = to.begin(id)?;
        let mut offset = 0;
        while offset < bytes {
            let piece = source.read(offset, COPY_BYTES.min(bytes - offset)).await?;
            offset += piece.len() as u64;
            sink = blocking(move || sink.write(&piece).map(|()| sink)).await?;
            sink.ship().await?;
        }
        blocking(move || sink.flush().map(|()| sink)).await?.finish().await?;
        draft.keep();
        Ok(())
    }

    /// Removes all of them, and of a folder the folder itself. Idempotent.
    #[cfg(test)]
    pub(crate) async fn remove_all(&self) -> Result<()> {
        match self {
            Self::Folder(dir) => {
                let dir = Arc::clone(dir);
                blocking(move || match fs::remove_dir_all(&dir) {
                    Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
                    _ => Ok(()),
                })
                .await
            }
            Self::Bucket(bucket) => bucket.sweep(&HashSet::new()).await,
        }
    }
}

/// An object that no row knows yet. Dropped, nothing is left of it.
pub(crate) struct Draft {
    objects: Objects,
    id: BlobId,
    kept: bool,
}

impl Draft {
    /// Its id.
    pub(crate) fn id(&self) -> BlobId {
        self.id
    }

    /// Where it lies.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Opens it before a row knows it, as [`Objects::open`].
    pub(crate) async fn open(&self, bytes: u64) -> Result<Source> {
        self.objects.open(self.id, bytes).await
    }

    /// From now on the rows decide whether it stays.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        match &self.objects {
            Objects::Bucket(bucket) => bucket.remove(&[self.id]),
            Objects::Folder(dir) => {
                if let Err(error) = fs::remove_file(path(dir, self.id)) {
                    tracing::warn!(%error, "an unfinished object could not be removed; the next sweep will");
                }
            }
        }
    }
}

/// Where the sealed bytes of one object go.
pub(crate) enum Sink {
    /// Straight into the file.
    File { file: File, folder: PathBuf },
    /// Into memory, and from there in parts.
    Upload { sealed: Vec<u8>, upload: Upload },
}

impl Sink {
    /// Appends. File work: off the async threads.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::File { file, .. } => file.write_all(bytes)?,
            Self::Upload { sealed, .. } => sealed.extend_from_slice(bytes),
        }
        Ok(())
    }

    /// Sends full parts away, after every [`Sink::write`] of at most some MiB.
    pub(crate) async fn ship(&mut self) -> Result<()> {
        match self {
            Self::File { .. } => Ok(()),
            Self::Upload { sealed, upload } => upload.ship(sealed).await,
        }
    }

    /// A file is durable. File work: off the async threads.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if let Self::File { file, folder } = self {
            file.sync_all()?;
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    /// After [`Sink::flush`]: all of it is durable.
    pub(crate) async fn finish(self) -> Result<()> {
        match self {
            Self::File { .. } => Ok(()),
            Self::Upload { mut sealed, mut upload } => {
                upload.ship(&mut sealed).await?;
                upload.finish(sealed).await
            }
        }
    }
}

/// One object, open for reading.
pub(crate) enum Source {
    /// A file that is read in place; it stays readable after its removal.
    File(File),
    /// An object in a bucket.
    Remote(Remote),
}

impl Source {
    /// These bytes of what is stored; all of them.
    pub(crate) async fn read(self: &Arc<Self>, offset: u64, len: u64) -> Result<Bytes> {
        if let Self::Remote(remote) = &**self {
            return remote.read(offset..offset.saturating_add(len)).await;
        }
        let source = Arc::clone(self);
        let read = move || {
            let Self::File(file) = &*source else { return Err(Error::internal("a place changed its kind")) };
            let mut bytes = vec![0u8; usize::try_from(len).map_err(Error::internal)?];
            file.read_exact_at(&mut bytes, offset).map_err(|error| Error::integrity(format!("an object's file: {error}")))?;
            Ok(bytes.into())
        };
        blocking(read).await
    }
}

/// Where an object lies in its folder.
pub(super) fn path(dir: &Path, id: BlobId) -> PathBuf {
    folder_of(dir, id).join(id.to_string())
}

fn folder_of(dir: &Path, id: BlobId) -> PathBuf {
    dir.join(id.to_string().get(..2).unwrap_or_default())
}

fn file_create(dir: &Path, id: BlobId) -> Result<File> {
    match DirBuilder::new().mode(0o700).create(folder_of(dir, id)) {
        Ok(()) => File::open(dir)?.sync_all()?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    Ok(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path(dir, id))?)
}

fn file_open(path: &Path, id: BlobId, bytes: u64) -> Result<File> {
    let file = File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::integrity(format!("object {id}: {error}")),
        _ => error.into(),
    })?;
    let found = file.metadata()?.len();
    if found != bytes {
        return Err(Error::integrity(format!("object {id}: the file has {found} bytes instead of {bytes}")));
    }
    Ok(file)
}

fn folder_sweep(dir: &Path, known: &HashSet<BlobId>) -> Result<()> {
    for folder in fs::read_dir(dir)? {
        for file in fs::read_dir(folder?.path())? {
            let file = file?;
            let id = file.file_name().to_str().and_then(unhex).map(BlobId);
            if !id.is_some_and(|id| known.contains(&id)) {
                fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}
