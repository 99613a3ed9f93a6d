//! Buckets that are being made are written down before they exist: one whose maker died before any tenant had it does not stay.

use serde::{Deserialize, Serialize};

use super::*;

/// Where they are written down.
const BEGUN: &str = "buckets_begun";
/// A bucket that no tenant has so long after it was begun is nobody's: making one takes seconds.
const MAKING_MAX: Duration = Duration::from_mins(15);
/// Buckets that are being made, or that could not be removed yet. More are not begun.
const BEGUN_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begun {
    tenant: String,
    bucket: String,
    /// Unix microseconds.
    at: i64,
}

impl Kernel {
    /// Writes down that a bucket is about to be made for a tenant. What was begun before and came to nothing goes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if too many could not be removed.
    pub(super) async fn bucket_begin(&self, id: TenantId, bucket: &str) -> Result<()> {
        self.bucket_begin_at(id, bucket, now_micros()).await
    }

    async fn bucket_begin_at(&self, id: TenantId, bucket: &str, at: i64) -> Result<()> {
        let _one = self.0.stores.begun.lock().await;
        let mut begun = self.still_begun().await?;
        if begun.len() >= BEGUN_MAX {
            return Err(Error::Unavailable("too many buckets were begun that cannot be removed: see the log"));
        }
        begun.push(Begun { tenant: id.hex(), bucket: bucket.to_owned(), at });
        self.begun_put(&begun).await
    }

    /// Removes what was begun and came to nothing, aside; for a new leader.
    pub(super) fn buckets_sweep_later(&self) {
        if self.0.stores.s3().is_err() {
            return;
        }
        let kernel = self.clone();
        tokio::spawn(async move {
            if let Err(error) = kernel.buckets_sweep().await {
                tracing::warn!(%error, context = error.private(), "buckets that were begun could not be looked at");
            }
        });
    }

    async fn buckets_sweep(&self) -> Result<()> {
        let _one = self.0.stores.begun.lock().await;
        let begun = self.still_begun().await?;
        self.begun_put(&begun).await
    }

    /// What is begun, without what a tenant or an import that is under way has by now, and without what is removed here because nobody will
    /// have it.
    async fn still_begun(&self) -> Result<Vec<Begun>> {
        // First: an import that comes to its end between the two has become a tenant.
        let importing = bundle::importing(self).await?;
        let mut left = Vec::new();
        for begun in self.begun().await? {
            let id = TenantId::parse(&begun.tenant).ok_or_else(|| Error::integrity("a bucket of no tenant"))?;
            let row = self.0.control.tenant_by_id(id).await?;
            let placement = row.map(|row| Placement::parse(&row.placement)).transpose()?;
            let imported = importing.iter().find(|(tenant, _)| *tenant == id).map(|(_, placement)| placement.clone());
            if placement.or(imported).is_some_and(|placement| placement.buckets().any(|bucket| bucket == begun.bucket)) {
                continue;
            }
            let age = Duration::from_micros(u64::try_from(now_micros().saturating_sub(begun.at)).unwrap_or_default());
            if age < MAKING_MAX || !self.bucket_removed(id, &begun.bucket).await? {
                left.push(begun);
            }
        }
        Ok(left)
    }

    async fn bucket_removed(&self, id: TenantId, bucket: &str) -> Result<bool> {
        // The service's own access key does it: the tenant's, if there was one, died with its maker.
        let removed = self.0.stores.s3()?.destroy(id, bucket, "", "").await;
        match &removed {
            Ok(()) => tracing::info!(bucket, "a bucket that was begun and became nobody's is gone"),
            Err(error) => {
                tracing::warn!(bucket, %error, context = error.private(), "a bucket that is nobody's could not be removed yet");
            }
        }
        Ok(removed.is_ok())
    }

    async fn begun(&self) -> Result<Vec<Begun>> {
        let note = self.0.control.meta(BEGUN).await?.filter(|note| !note.is_empty());
        note.map_or(Ok(Vec::new()), |note| serde_json::from_slice(&note).map_err(Error::integrity))
    }

    async fn begun_put(&self, begun: &[Begun]) -> Result<()> {
        if begun == self.begun().await? {
            return Ok(());
        }
        self.0.control.meta_set(BEGUN, &serde_json::to_vec(begun).map_err(Error::internal)?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::tests::home::{config, server};
    use crate::place::{ObjectsPlace, S3Credentials, Tier};

    #[tokio::test]
    async fn a_bucket_of_an_import_is_the_imports() {
        let Some(server) = server() else { return };
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path(), server).await;
        let id = TenantId::random().unwrap();
        let objects = kernel.objects_place_new(id, &"a".parse().unwrap(), Tier::Pooled).await.unwrap();
        let placement = Placement { objects, ..Placement::default() };
        // It is a large bundle.
        let mut begun = kernel.begun().await.unwrap();
        begun[0].at = long_ago();
        kernel.begun_put(&begun).await.unwrap();
        bundle::died(&kernel, id, placement.clone()).await;
        kernel.buckets_sweep().await.unwrap();
        assert!(writes(&kernel, id, &placement.objects).await, "the import goes on");
        assert!(kernel.begun().await.unwrap().is_empty());
        bundle::sweep(&kernel).await.unwrap();
        assert!(!writes(&kernel, id, &placement.objects).await, "and it goes with the import");
        kernel.close().await.unwrap();
    }

    async fn kernel(dir: &Path, server: [String; 3]) -> Kernel {
        let s3 = config(server, S3Credentials::Iam { endpoint: None });
        let kernel_config = KernelConfig {
            data_dir: dir.join("data"),
            keystore_dir: dir.join("keystore"),
            issuer: "https://localhost".to_owned(),
            stores_open_max: 4,
            limits: Limits::default(),
            stores: StoresConfig { s3: Some(s3), tier: Tier::Embedded, ..StoresConfig::default() },
        };
        Kernel::open(kernel_config).await.unwrap().0
    }

    fn long_ago() -> i64 {
        now_micros() - i64::try_from(MAKING_MAX.as_micros()).unwrap()
    }

    async fn writes(kernel: &Kernel, id: TenantId, objects: &ObjectsPlace) -> bool {
        let placement = Placement { objects: objects.clone(), ..Placement::default() };
        let objects = kernel.objects_place(id, &placement).unwrap();
        objects.sweep(std::collections::HashSet::new()).await.is_ok()
    }

    #[tokio::test]
    async fn a_bucket_whose_maker_died_is_removed_and_one_that_is_had_or_made_stays() {
        let Some(server) = server() else { return };
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path(), server).await;
        // Both died after the bucket was made and before a tenant had it, one of them just now.
        let (old, young) = (TenantId::random().unwrap(), TenantId::random().unwrap());
        let name = "a".parse().unwrap();
        let place = async |id| kernel.objects_place_new(id, &name, Tier::Pooled).await.unwrap();
        let (old_place, young_place) = (place(old).await, place(young).await);
        let bucket = |place: &ObjectsPlace| match place {
            ObjectsPlace::Bucket { name, .. } => name.clone(),
            ObjectsPlace::Folder => panic!("no bucket"),
        };
        let mut begun = kernel.begun().await.unwrap();
        assert_eq!(begun.iter().map(|begun| &begun.bucket).collect::<Vec<_>>(), [&bucket(&old_place), &bucket(&young_place)]);
        begun[0].at = long_ago();
        kernel.begun_put(&begun).await.unwrap();
        assert!(writes(&kernel, old, &old_place).await && writes(&kernel, young, &young_place).await);
        kernel.buckets_sweep().await.unwrap();
        assert!(!writes(&kernel, old, &old_place).await, "it is gone");
        assert!(writes(&kernel, young, &young_place).await, "somebody may still be at it");
        assert_eq!(kernel.begun().await.unwrap(), begun[1..]);
        kernel.objects_place_destroy(young, &young_place).await.unwrap();
        kernel.close().await.unwrap();
    }
}
