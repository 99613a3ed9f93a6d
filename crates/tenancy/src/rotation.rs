//! Rotation of a tenant's encryption key, online and resumable.
//!
//! ```text
//! 1 added     control: version n+1 active, n old; data keys wrapped under n+1 (one transaction)
//! 2 re-wrapped rows: object keys move from n to n+1, a batch a transaction; both versions read
//! 3 retired   control: the wrapped key of n is gone
//! ```
//! A crash between any two leaves an old version that still reads; the next rotation, or [`resume`], goes on from there.

use std::sync::Arc;

use crate::clock::now_micros;
use crate::error::Result;
use crate::island::Island;
use crate::kernel::Kernel;
use crate::keyring::{KeyState, Keyring};

/// Object keys re-wrapped in one transaction.
const BATCH: u32 = 500;

/// All three steps; returns the new version.
pub(crate) async fn rotate(kernel: &Kernel, island: &Island) -> Result<u32> {
    let _one = island.rotating.lock().await;
    finish(kernel, island).await?;
    let version = added(kernel, island).await?;
    finish(kernel, island).await?;
    Ok(version)
}

/// Step 1.
pub(crate) async fn added(kernel: &Kernel, island: &Island) -> Result<u32> {
    let _shared = kernel.0.epoch_gate.read().await;
    let rows = kernel.0.control.keys_of(island.id).await?;
    let (next, rows) = island.store.keyring()?.next_version(&kernel.0.root, &rows, now_micros())?;
    kernel.0.control.keys_replace(island.id, &rows).await?;
    let version = next.version();
    if let Some((number, key)) = next.ledger_keys().into_iter().max_by_key(|(number, _)| *number) {
        island.ledger.add_content_key(number, &(*key.bytes()).into())?;
    }
    island.store.keyring_replace(Arc::new(next));
    Ok(version)
}

/// Steps 2 and 3 for every old version that is left.
pub(crate) async fn finish(kernel: &Kernel, island: &Island) -> Result<()> {
    let rows = kernel.0.control.keys_of(island.id).await?;
    let old: Vec<u32> = rows.tenant.iter().filter(|row| row.state == KeyState::Old).map(|row| row.version).collect();
    if old.is_empty() {
        return Ok(());
    }
    while island.store.blobs_rewrap(BATCH).await? > 0 {}
    let _shared = kernel.0.epoch_gate.read().await;
    for version in old {
        let rows = kernel.0.control.keys_of(island.id).await?;
        let (keyring, left): (Keyring, _) = island.store.keyring()?.retire(&kernel.0.root, &rows, version)?;
        kernel.0.control.keys_replace(island.id, &left).await?;
        island.store.keyring_replace(Arc::new(keyring));
    }
    Ok(())
}
