//! Policy: being filled in.

use serde::{Deserialize, Serialize};

use crate::act::ResourceKind;
use crate::error::Result;
use crate::name::TenantId;

/// What a member is in a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Every act.
    Admin,
    /// Data sets, trainings, models, deployments, predictions.
    DataScientist,
    /// Sees what a data scientist makes.
    Viewer,
    /// Sees members, keys and the audit log, no content.
    Auditor,
    /// Asks deployments for predictions.
    Invoker,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::Admin, Self::DataScientist, Self::Viewer, Self::Auditor, Self::Invoker];
    /// Stable word, as in `data_scientist`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::DataScientist => "data_scientist",
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
            Self::Invoker => "invoker",
        }
    }
}

/// One question to the policy.
pub(crate) struct Question<'a> {
    /// Tenant of the principal.
    pub(crate) tenant: TenantId,
    pub(crate) principal: &'a str,
    pub(crate) roles: &'a [Role],
    /// Name of the act.
    pub(crate) act: &'a str,
    pub(crate) resource_kind: ResourceKind,
    /// Name of the resource; for lists and creations what the request names, may be empty.
    pub(crate) resource_name: &'a str,
    /// Tenant of the resource.
    pub(crate) resource_tenant: TenantId,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) allowed: bool,
    /// Ids of the policies that decided, or why there was no clean answer.
    pub(crate) reason: String,
}

/// The platform's policies.
pub(crate) struct Policy;

impl Policy {
    /// The policies this binary was built with, strictly validated.
    pub(crate) fn platform() -> Result<Self> {
        todo!()
    }
    /// Any doubt is a refusal.
    pub(crate) fn decide(&self, _question: &Question<'_>) -> Decision {
        todo!()
    }
}
