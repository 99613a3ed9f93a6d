//! Members: who a principal is inside one tenant.

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::policy::Role;
use crate::rows::Record;

/// Longest description in bytes.
pub(crate) const DESCRIPTION_BYTES_MAX: usize = 256;

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
    /// Whether it holds the role.
    #[must_use]
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}
