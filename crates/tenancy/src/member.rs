//! Members: who a principal is inside one tenant.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::act::ResourceKind;
use crate::name::Name;
use crate::policy::{Grant, Role};
use crate::rows::Record;

/// Longest description in bytes.
pub(crate) const DESCRIPTION_BYTES_MAX: usize = 256;

/// Most grants of one member.
pub(crate) const GRANTS_MAX: usize = 1000;

/// Finds members by what they are.
pub(crate) const ROLE: &str = "role";

/// A person or service account of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Unique in the tenant.
    pub name: Name,
    /// What it is in the tenant; at least one.
    pub roles: Vec<Role>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// On single experiments and registered models, as in `experiment:7`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grants: BTreeMap<String, Grant>,
}

impl Record for Member {
    const KIND: &'static str = "member";
    fn key(&self) -> String {
        self.name.to_string()
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        self.roles.iter().map(|role| (ROLE, role.name().to_owned())).collect()
    }
}

impl Member {
    /// What it was granted on this one thing.
    pub(crate) fn grant(&self, kind: ResourceKind, name: &str) -> Option<Grant> {
        if self.grants.is_empty() { None } else { self.grants.get(&grant_key(kind, name)).copied() }
    }

    /// Whether it holds the role.
    #[must_use]
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// Under what a grant is kept.
pub(crate) fn grant_key(kind: ResourceKind, name: &str) -> String {
    format!("{}:{name}", kind.word())
}
