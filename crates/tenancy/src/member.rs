//! Members: who a principal is inside one tenant.

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::policy::Role;
use crate::rows::Record;

/// Longest description in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 256;

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
}

impl Record for Member {
    const KIND: &'static str = "member";
    fn key(&self) -> String {
        self.name.to_string()
    }
}

impl Member {
    /// Whether it holds the role.
    #[must_use]
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}
