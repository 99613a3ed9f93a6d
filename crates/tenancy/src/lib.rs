//! The kernel: identity, policy, quota, keys, rows, blobs, ledger, erasure. The only code that can touch tenant bytes.
//!
//! Authority is a value here. A verified credential becomes a [`Caller`], a caller opens a [`Tenant`], and a tenant is *asked*:
//! [`Tenant::allow`] answers with a [`Permit`] of one act, and only a permit opens [`Rows`], [`Blobs`] and, if the act writes,
//! a [`Tx`]. No signature outside this crate takes a tenant id, so a function over two tenants cannot be written there.
//!
//! ```no_run
//! # async fn example(kernel: tenancy::Kernel, token: &str) -> tenancy::Result<()> {
//! use tenancy::{Identity, Presented, RequestId, act::MemberRead};
//!
//! let request = RequestId::fresh();
//! if let Identity::Tenant(caller) = kernel.authenticate(Presented::Bearer(token), &request).await? {
//!     let tenant = kernel.open_tenant(caller).await?;
//!     let permit = tenant.allow::<MemberRead>("")?; // policy yes, quota slot held, entry opened
//!     let members = permit.members(None, 100);
//!     let _closed = permit.finish()?; // the entry is written; only now may an answer leave
//!     println!("{} members", members.len());
//! }
//! # Ok(()) }
//! ```
//!
//! Deliberately missing: HTTP, and any idea of what a data set or a model is. Records are generic ([`Record`]), objects are bytes.

pub mod act;
mod anchor;
mod blobs;
mod bundle;
mod clock;
mod cluster;
mod control;
mod credential;
mod digest;
mod erasure;
mod error;
mod freeze;
mod island;
mod joint;
mod kernel;
mod keyring;
mod ledger;
mod manage;
mod member;
mod metering;
mod moving;
mod name;
mod operator;
mod permit;
#[allow(dead_code, reason = "its users are being moved over")]
mod place;
mod policy;
mod quota;
mod root;
mod rotation;
mod rows;
mod seal;
mod stores;
mod tenant;
mod token;
mod usage;
mod verify;

pub use blobs::{BlobId, BlobReader};
pub use bundle::{Export, ExportInfo, FormerLedger};
pub use credential::Scope;
pub use digest::{Collecting, Digest, Digested, Digesting};
pub use erasure::{Compute, ErasureInfo, ErasureState, ErasureStatement, name_digest, verify_certificate};
pub use error::{Error, Result};
pub use joint::Working;
pub use kernel::places::migrate;
pub use kernel::{AccessToken, FirstStart, Identity, Kernel, KernelConfig, Presented, TenantUsage};
pub use ledger::{
    Entry, Filter, Found, Numbered, Outcome, Receipt, ReceiptReport, ReceiptStatement, Report, verify_export, verify_receipt,
};
pub use manage::{IssuedKey, KEY_DAYS_MAX, KeyInfo, KeySpec, KeyringVersion, LedgerView, QuotaUse, TenantInfo};
pub use member::Member;
pub use metering::{Metered, MeteredPages, Neighbour, USAGE_DAYS_MAX, UsageHistory};
pub use moving::{MoveInfo, MoveState};
pub use name::{NAME_BYTES_MAX, Name};
pub use operator::{CreatedTenant, OPERATOR_ACTS, Operator, TenantSpec};
pub use permit::{Blobs, Closed, Held, MeterHandle, Permit, StoredUpload, Tx, Upload};
pub use place::{NodeConfig, Peer, PostgresConfig, S3Config, S3Credentials, S3Tenant, Secret, StoresConfig, Tier};
pub use policy::{Grant, Role};
pub use quota::{Exceeded, IsolationClass, Limits, RateLimitState, Resource};
pub use rows::{Got, Listed, PAGE_BYTES_MAX, Record, Rows, Snapshot};
pub use stores::{StoreFinding, check_stores};
pub use tenant::{Caller, IslandToken, Lease, RequestId, Scoped, Tenant};
pub use usage::{Bucket, Usage};
pub use verify::{Finding, Isolation};
