//! Where a tenant lives: the tier of its rows, the place of its objects, and what the service needs to reach both.
//!
//! A placement lies in the tenant's control row. Passwords and secrets in it are sealed under the service's control key, never
//! in clear.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// How a tenant's rows are kept apart from others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// An encrypted file of its own.
    #[default]
    Embedded,
    /// PostgreSQL: shared tables under row-level security.
    Pooled,
    /// PostgreSQL: a schema and a role of its own.
    Schema,
    /// PostgreSQL: a database and a role of its own.
    Database,
}

impl Tier {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Embedded, Self::Pooled, Self::Schema, Self::Database];

    /// The word in configuration and commands.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Pooled => "pooled",
            Self::Schema => "schema",
            Self::Database => "database",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tier {
    type Err = Error;
    fn from_str(word: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|tier| tier.name() == word);
        found.ok_or_else(|| Error::Invalid(format!("`{word}` is no storage tier: take embedded, pooled, schema or database")))
    }
}

/// A secret of the configuration: never printed, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Which stores there are beside the data folder, and where new tenants go. The default is the data folder alone.
#[derive(Debug, Clone, Default)]
pub struct StoresConfig {
    /// PostgreSQL for rows.
    pub postgres: Option<PostgresConfig>,
    /// S3 for objects.
    pub s3: Option<S3Config>,
    /// This node, when several serve the same stores; needs PostgreSQL.
    pub node: Option<NodeConfig>,
    /// Tier of new tenants.
    pub tier: Tier,
}

/// PostgreSQL: one server (or cluster) and its roles.
#[derive(Debug, Clone)]
pub struct PostgresConfig {
    /// URL of the role that reads and writes pooled tenants' rows; it owns nothing and cannot bypass row-level security.
    pub rows_url: Secret,
    /// URL of the role of the service's own rows.
    pub control_url: Secret,
    /// URL of the role that owns the tables: for migrations, and to make and remove tenants' schemas and databases.
    pub owner_url: Option<Secret>,
    /// Keep prepared statements on a connection; not behind a pooler in transaction mode.
    pub prepared_statements: bool,
    /// Connections for all pooled tenants together.
    pub connections_pooled_max: u32,
    /// Connections of one tenant with a schema or database of its own.
    pub connections_tenant_max: u32,
    /// Connections of all such tenants together.
    pub connections_dedicated_max: u32,
}

/// An S3 service.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// Base URL; absent for AWS.
    pub endpoint: Option<String>,
    /// Region of the buckets.
    pub region: String,
    /// The service's own access key: makes buckets and, if it can, credentials. Never used for a tenant's objects.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: Secret,
    /// Where tenants' credentials come from.
    pub credentials: S3Credentials,
    /// Buckets are named by it and 128 random bits.
    pub bucket_prefix: String,
}

/// Where tenants' S3 credentials come from.
#[derive(Debug, Clone)]
pub enum S3Credentials {
    /// The server's IAM API makes a user for each tenant, whose policy opens one bucket. The endpoint when it is not the S3 one.
    Iam {
        /// Base URL of the IAM API.
        endpoint: Option<String>,
    },
    /// The operator made them: bucket and credential by tenant name.
    Configured(BTreeMap<String, S3Tenant>),
}

/// A bucket with its credential, made by the operator.
#[derive(Debug, Clone)]
pub struct S3Tenant {
    /// Name of the bucket.
    pub bucket: String,
    /// Access key that opens this bucket and nothing else.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: Secret,
}

/// One of several nodes that serve the same stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Unique among the nodes, kept over restarts.
    pub name: String,
    /// Where other nodes reach it.
    pub url: String,
    /// SHA-256 of its certificate (DER), hex: others speak to no other.
    pub certificate_sha256: String,
}

/// Another node, as [`Error::Elsewhere`] tells it.
pub type Peer = NodeConfig;

/// Where one tenant lives. `{}` is the data folder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Placement {
    pub(crate) rows: RowsPlace,
    pub(crate) objects: ObjectsPlace,
    /// Where it lived before it moved, until the move is finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) previous: Option<Box<Placement>>,
    /// Where it is about to live, while it is copied there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<Box<Placement>>,
    /// Of a previous place: how it was left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left: Option<Left>,
    /// What the last move was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) moved: Option<Moved>,
}

/// How a place was left: it must be found so again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Left {
    pub(crate) generation: u64,
    /// Of the file, hex; none once it was written to again.
    pub(crate) sha256: Option<String>,
}

/// Figures of a move. Times in Unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Moved {
    pub(crate) from: Tier,
    pub(crate) records: u64,
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) passes: u32,
    pub(crate) pause_micros: u64,
    pub(crate) sha256: String,
    pub(crate) started_at: i64,
    pub(crate) moved_at: i64,
}

/// Where a tenant's rows lie. Passwords are sealed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RowsPlace {
    #[default]
    Embedded,
    Pooled,
    Schema {
        sealed_password: String,
    },
    Database {
        sealed_password: String,
    },
}

impl RowsPlace {
    /// Its tier.
    pub(crate) fn tier(&self) -> Tier {
        match self {
            Self::Embedded => Tier::Embedded,
            Self::Pooled => Tier::Pooled,
            Self::Schema { .. } => Tier::Schema,
            Self::Database { .. } => Tier::Database,
        }
    }
}

/// Where a tenant's objects lie. The secret is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ObjectsPlace {
    #[default]
    Folder,
    Bucket {
        name: String,
        access_key_id: String,
        sealed_secret: String,
    },
}

impl Placement {
    /// From the control row.
    pub(crate) fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(Error::integrity)
    }

    /// This place, and where the tenant lived before or is about to live.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Self> {
        [Some(self), self.previous.as_deref(), self.next.as_deref()].into_iter().flatten()
    }

    /// Buckets of all these places.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = &str> {
        self.all().filter_map(|place| match &place.objects {
            ObjectsPlace::Bucket { name, .. } => Some(name.as_str()),
            ObjectsPlace::Folder => None,
        })
    }

    /// For the control row.
    pub(crate) fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(Error::internal)
    }
}
