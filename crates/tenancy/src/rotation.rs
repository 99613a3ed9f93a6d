//! Rotation of a tenant's encryption key, online and resumable.
//!
//! ```text
//! 1 stored    control: version n+1 active, n old; data keys wrapped under n+1 (one transaction)
//! 2 taken up  memory: new objects are wrapped under n+1
//! 3 re-wrapped rows: object keys move from n to n+1, a batch a transaction; both versions read
//! 4 retired   control: the wrapped key of n is gone
//! ```
//! A crash between any two leaves an old version that still reads. Opening the tenant goes on from there, and so does the next
//! rotation. Each begins with the keys *as stored*: what memory holds may be older than them if a rotation was broken off
//! between 1 and 2, and retiring by that would destroy the version that objects are still wrapped under.

use std::sync::Arc;

use crate::clock::now_micros;
use crate::error::Result;
use crate::island::Island;
use crate::kernel::{Kernel, unbroken};
use crate::keyring::{KeyRows, KeyState, Keyring};

/// Object keys re-wrapped in one transaction.
const BATCH: u32 = 500;

/// Steps, each true once it is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Stored,
    TakenUp,
    Rewrapped,
    Retired,
}

/// What is called between steps; refusing stops there, as a crash would.
type Between = fn(Step) -> Result<()>;

/// All steps; returns the new version. Goes on when whoever asked is gone.
pub(crate) async fn rotate(kernel: &Kernel, island: &Arc<Island>) -> Result<u32> {
    let (kernel, island) = (kernel.clone(), Arc::clone(island));
    unbroken(async move { rotate_with(&kernel, &island, |_| Ok(())).await }).await
}

async fn rotate_with(kernel: &Kernel, island: &Island, between: Between) -> Result<u32> {
    let _one = island.rotating.lock().await;
    finish(kernel, island, between).await?;
    let version = begin(kernel, island, between).await?;
    finish(kernel, island, between).await?;
    Ok(version)
}

/// What a rotation left undone when the service died.
pub(crate) async fn resume(kernel: &Kernel, island: &Island) -> Result<()> {
    let _one = island.rotating.lock().await;
    finish(kernel, island, |_| Ok(())).await
}

/// Steps 1 and 2.
async fn begin(kernel: &Kernel, island: &Island, between: Between) -> Result<u32> {
    let _shared = kernel.0.epoch_gate.read().await;
    island.thawed()?;
    let rows = kernel.0.control.keys_of(island.id).await?;
    let (next, new) = Keyring::load(&kernel.0.root, island.id, &rows)?.next_version(&kernel.0.root, &rows, now_micros())?;
    kernel.0.control.keys_replace(island.id, fence(island), &rows, &new).await?;
    between(Step::Stored)?;
    let version = next.version();
    take_up(island, next)?;
    between(Step::TakenUp)?;
    Ok(version)
}

/// Steps 3 and 4 for every old version that is left.
async fn finish(kernel: &Kernel, island: &Island, between: Between) -> Result<()> {
    let old = |rows: &KeyRows| rows.tenant.iter().find(|row| row.state == KeyState::Old).map(|row| row.version);
    let rows = kernel.0.control.keys_of(island.id).await?;
    if old(&rows).is_none() {
        return Ok(());
    }
    take_up(island, Keyring::load(&kernel.0.root, island.id, &rows)?)?;
    while island.store.blobs_rewrap(BATCH).await? > 0 {}
    between(Step::Rewrapped)?;
    let _shared = kernel.0.epoch_gate.read().await;
    island.thawed()?;
    let mut rows = kernel.0.control.keys_of(island.id).await?;
    while let Some(version) = old(&rows) {
        let (keyring, left): (Keyring, _) = island.store.keyring()?.retire(&kernel.0.root, &rows, version)?;
        kernel.0.control.keys_replace(island.id, fence(island), &rows, &left).await?;
        between(Step::Retired)?;
        island.store.keyring_replace(Arc::new(keyring));
        rows = left;
    }
    Ok(())
}

/// Of the lease under which this node is the tenant's home.
fn fence(island: &Island) -> Option<u64> {
    island.hold().map(|hold| hold.fence())
}

fn take_up(island: &Island, keyring: Keyring) -> Result<()> {
    let keys: Vec<_> = keyring.ledger_keys().into_iter().map(|(number, key)| (number, (*key.bytes()).into())).collect();
    island.ledger.take_up_keys(&keys)?;
    island.store.keyring_replace(Arc::new(keyring));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::act::{DatasetRead, DatasetWrite};
    use crate::{BlobId, Error, Identity, KernelConfig, Limits, Presented, RequestId, Tenant, TenantSpec};

    const TEXT: &[u8] = b"sealed under version 1";
    const STOPS: [(Step, Between); 4] = [
        (Step::Stored, |step| stop(step, Step::Stored)),
        (Step::TakenUp, |step| stop(step, Step::TakenUp)),
        (Step::Rewrapped, |step| stop(step, Step::Rewrapped)),
        (Step::Retired, |step| stop(step, Step::Retired)),
    ];

    fn stop(step: Step, at: Step) -> Result<()> {
        if step == at { Err(Error::Unavailable("stopped here")) } else { Ok(()) }
    }

    async fn open(dir: &std::path::Path) -> Kernel {
        loop {
            let config = KernelConfig {
                data_dir: dir.join("data"),
                keystore_dir: dir.join("keystore"),
                issuer: "https://localhost".to_owned(),
                stores_open_max: 4,
                limits: Limits::default(),
                stores: Default::default(),
            };
            match Kernel::open(config).await {
                Ok((kernel, _)) => return kernel,
                // The one before is just letting go.
                Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    async fn tenant(kernel: &Kernel, key: &str) -> Tenant {
        match kernel.authenticate(Presented::Bearer(key), &RequestId::fresh()).await.unwrap() {
            Identity::Tenant(caller) => kernel.open_tenant(caller).await.unwrap(),
            Identity::Operator(_) => panic!("a tenant's key"),
        }
    }

    /// A service with a tenant and an object; the tenant's key and the object.
    async fn house(dir: &std::path::Path) -> (Kernel, String, BlobId) {
        let kernel = open(dir).await;
        let secret = std::fs::read_to_string(dir.join("keystore/bootstrap.secret")).unwrap();
        let operator = kernel.bootstrap(secret.trim(), &RequestId::fresh()).await.unwrap();
        let identity = kernel.authenticate(Presented::Bearer(operator.secret()), &RequestId::fresh()).await.unwrap();
        let Identity::Operator(operator) = identity else { panic!("an operator's key") };
        let spec = TenantSpec { name: "a".parse().unwrap(), admin: "ada".parse().unwrap(), limits: None, tier: None };
        let key = operator.tenant_create(spec).await.unwrap().admin_key.secret().to_owned();
        let id = put(&tenant(&kernel, &key).await).await;
        (kernel, key, id)
    }

    async fn put(tenant: &Tenant) -> BlobId {
        let permit = tenant.allow::<DatasetWrite>("x").unwrap();
        let mut upload = permit.blob_create().await.unwrap();
        upload.write(Bytes::from_static(TEXT)).await.unwrap();
        let stored = upload.finish().await.unwrap();
        let mut tx = permit.tx().await.unwrap();
        let id = tx.attach(stored).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    async fn reads(kernel: &Kernel, key: &str, id: BlobId) -> bool {
        let permit = tenant(kernel, key).await.allow::<DatasetRead>("x").unwrap();
        match permit.blobs().open(id).await {
            Ok(reader) => reader.read_at(0, 100).await.unwrap() == TEXT,
            Err(_) => false,
        }
    }

    async fn states(kernel: &Kernel, tenant: &Tenant) -> Vec<KeyState> {
        kernel.0.control.keys_of(tenant.island.id).await.unwrap().tenant.iter().map(|row| row.state).collect()
    }

    #[tokio::test]
    async fn broken_off_anywhere_the_next_rotation_loses_nothing() {
        for (at, between) in STOPS {
            let dir = tempfile::tempdir().unwrap();
            let (kernel, key, first) = house(dir.path()).await;
            let handle = tenant(&kernel, &key).await;
            assert!(rotate_with(&kernel, &handle.island, between).await.is_err(), "stopped at {at:?}");
            let second = put(&handle).await;
            assert!(reads(&kernel, &key, first).await && reads(&kernel, &key, second).await, "after the stop at {at:?}");
            rotate(&kernel, &handle.island).await.unwrap();
            assert!(reads(&kernel, &key, first).await && reads(&kernel, &key, second).await, "after the rotation that followed {at:?}");
            assert_eq!(states(&kernel, &handle).await, [KeyState::Retired, KeyState::Retired, KeyState::Active], "{at:?}");
        }
    }

    #[tokio::test]
    async fn dead_between_any_two_steps_the_next_opening_goes_on() {
        for (at, between) in STOPS {
            let dir = tempfile::tempdir().unwrap();
            let (kernel, key, id) = house(dir.path()).await;
            let handle = tenant(&kernel, &key).await;
            assert!(rotate_with(&kernel, &handle.island, between).await.is_err());
            drop((handle, kernel));
            let kernel = open(dir.path()).await;
            let handle = tenant(&kernel, &key).await;
            assert!(reads(&kernel, &key, id).await, "{at:?}");
            for _ in 0..200 {
                if !states(&kernel, &handle).await.contains(&KeyState::Old) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(states(&kernel, &handle).await, [KeyState::Retired, KeyState::Active], "finished by itself after {at:?}");
            assert!(reads(&kernel, &key, id).await, "{at:?}");
            drop((handle, kernel));
            assert!(reads(&open(dir.path()).await, &key, id).await, "{at:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn uploads_during_rotations_stay_readable() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, key, _) = house(dir.path()).await;
        let handle = Arc::new(tenant(&kernel, &key).await);
        let uploads = tokio::spawn({
            let handle = Arc::clone(&handle);
            async move {
                let mut ids = Vec::new();
                for _ in 0..60 {
                    ids.push(put(&handle).await);
                }
                ids
            }
        });
        for _ in 0..10 {
            rotate(&kernel, &handle.island).await.unwrap();
        }
        for id in uploads.await.unwrap() {
            assert!(reads(&kernel, &key, id).await, "{id}");
        }
    }
}
