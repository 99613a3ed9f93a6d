//! Objects on their way from one place to another: as sealed bytes, which nothing on the way can read.

use std::io::ErrorKind;
use std::sync::Arc;

use aws_lc_rs::digest;

use super::{BlobId, BlobWriter, Objects, sealed_bytes};
use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::seal::Key;

/// Sealed bytes held at once.
const PIECE_BYTES: u64 = 1 << 20;

impl Objects {
    /// Whether it is the same place.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Folder(here), Self::Folder(there)) => here == there,
            (Self::Bucket(here), Self::Bucket(there)) => here.name() == there.name(),
            _ => false,
        }
    }

    /// Makes the folder of a tenant that had no objects here before. Idempotent.
    pub(crate) fn ensure(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let Self::Folder(dir) = self else { return Ok(()) };
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Copies an object of `bytes` plaintext bytes to another place, unless it is there. Read back, it has the same digest.
    pub(crate) async fn carry(&self, id: BlobId, bytes: u64, to: &Self) -> Result<()> {
        let wanted = self.sealed_sha256(id, bytes).await?;
        match to.sealed_sha256(id, bytes).await {
            Ok(found) if found == wanted => return Ok(()),
            // It is not there, or not whole.
            Ok(_) | Err(Error::Integrity(_)) => {}
            // It may be there: to write it again would begin with taking it away.
            Err(error) => return Err(error),
        }
        self.copy(id, sealed_bytes(bytes), to).await?;
        if to.sealed_sha256(id, bytes).await? != wanted {
            return Err(Error::integrity(format!("object {id} did not arrive as it was sent")));
        }
        Ok(())
    }

    /// SHA-256 of what is stored.
    async fn sealed_sha256(&self, id: BlobId, bytes: u64) -> Result<[u8; 32]> {
        let (length, mut offset, mut context) = (sealed_bytes(bytes), 0, digest::Context::new(&digest::SHA256));
        let source = Arc::new(self.open(id, length).await?);
        while offset < length {
            let piece = source.read(offset, PIECE_BYTES.min(length - offset)).await?;
            context.update(&piece);
            offset += piece.len() as u64;
        }
        context.finish().as_ref().try_into().map_err(Error::internal)
    }
}

impl BlobWriter {
    /// Begins an object under an id it has already: its records name it.
    pub(crate) fn create_as(objects: &Objects, tenant: TenantId, id: BlobId) -> Result<Self> {
        Self::begin(objects, tenant, id, Key::random()?)
    }
}
