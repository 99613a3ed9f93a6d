//! Credentials: being filled in.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::act::ResourceKind;
use crate::error::Result;

/// Public part of a key: 16 characters of base 62.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CredentialId([u8; 16]);

impl CredentialId {
    pub(crate) fn as_str(&self) -> &str {
        todo!()
    }
    pub(crate) fn parse(_text: &str) -> Option<Self> {
        todo!()
    }
}

/// A freshly made key: the text is shown once, the MAC is stored.
pub(crate) struct IssuedKey {
    pub(crate) id: CredentialId,
    pub(crate) secret_mac: [u8; 32],
    pub(crate) text: Zeroizing<String>,
}

/// Makes a key. `server_key` comes from the root, not from the data.
pub(crate) fn issue(_server_key: &[u8; 32]) -> Result<IssuedKey> {
    todo!()
}

/// What a caller presented, well-formed but not yet verified.
pub(crate) struct Presented {
    pub(crate) id: CredentialId,
    secret: Zeroizing<[u8; 32]>,
}

impl Presented {
    /// Bounded; refuses on form and checksum.
    pub(crate) fn parse(_text: &str) -> Option<Self> {
        todo!()
    }
    /// Constant time; the same work when there is no such key (`None`).
    pub(crate) fn verify(&self, _server_key: &[u8; 32], _stored: Option<&[u8; 32]>) -> bool {
        let _ = &self.secret;
        todo!()
    }
}

/// The operator's one-time secret: (text `insula_bootstrap_…`, MAC to store).
pub(crate) fn issue_bootstrap(_server_key: &[u8; 32]) -> Result<(Zeroizing<String>, [u8; 32])> {
    todo!()
}

/// Whether this is the bootstrap secret with the stored MAC.
pub(crate) fn verify_bootstrap(_text: &str, _server_key: &[u8; 32], _stored: Option<&[u8; 32]>) -> bool {
    todo!()
}

/// What a credential is narrowed to. It never adds to what the roles allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Names of acts, or `*`.
    acts: Vec<String>,
    /// `*`, `dataset:*` or `model:fraud`.
    resources: Vec<String>,
}

impl Scope {
    /// Everything the roles allow.
    #[must_use]
    pub fn all() -> Self {
        todo!()
    }
    /// Checked scope.
    ///
    /// # Errors
    /// `Invalid` naming the word.
    pub fn new(_acts: Vec<String>, _resources: Vec<String>) -> Result<Self> {
        todo!()
    }
    /// As in the `scope` claim and parameter of OAuth: words with a blank between.
    #[must_use]
    pub fn to_claim(&self) -> String {
        todo!()
    }
    /// From [`Scope::to_claim`].
    ///
    /// # Errors
    /// `Invalid` naming the word.
    pub fn from_claim(_text: &str) -> Result<Self> {
        todo!()
    }
    /// Whether the act on this resource is inside.
    #[must_use]
    pub fn matches(&self, _act: &str, _kind: ResourceKind, _name: &str) -> bool {
        todo!()
    }
    /// Whether everything inside `other` is inside this too.
    #[must_use]
    pub fn covers(&self, _other: &Self) -> bool {
        todo!()
    }
}
