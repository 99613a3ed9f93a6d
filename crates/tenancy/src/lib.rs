//! The kernel: identity, policy, quota, keys, rows, blobs, ledger, erasure. The only code that can touch tenant bytes.

pub mod act;
mod anchor;
mod blobs;
mod control;
mod credential;
mod error;
mod keyring;
mod ledger;
mod name;
mod policy;
mod quota;
mod root;
mod rows;
mod seal;
mod token;

pub use error::{Error, Result};
pub use name::{NAME_BYTES_MAX, Name};
