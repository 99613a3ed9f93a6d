//! Page tokens: where an answer ended, sealed so that they tell nothing, and bound to the query that they belong to.

use serde::{Deserialize, Serialize};
use tenancy::Permit;
use tenancy::act::Act;

use super::check::name_hash;
use crate::error::{Error, Result};

/// What a token holds.
#[derive(Serialize, Deserialize)]
pub(crate) struct PageToken {
    kind: String,
    shape: String,
    skip: usize,
}

impl PageToken {
    /// A digest of what the query asks.
    pub(crate) fn shape<T: Serialize>(query: &T) -> String {
        name_hash(&serde_json::to_string(query).unwrap_or_default())
    }

    /// The token for what follows the first `skip` items.
    pub(crate) fn seal<A: Act>(permit: &Permit<A>, kind: &str, shape: &str, skip: usize) -> Result<String> {
        let token = Self { kind: kind.to_owned(), shape: shape.to_owned(), skip };
        Ok(permit.token_seal(&serde_json::to_vec(&token).map_err(tenancy::Error::internal)?)?)
    }

    /// How many items were given already.
    ///
    /// # Errors
    /// A token that is not one, or belongs to another query.
    pub(crate) fn open<A: Act>(permit: &Permit<A>, token: Option<&str>, kind: &str, shape: &str) -> Result<usize> {
        let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(0) };
        let opened = permit.token_open(token)?;
        let token: Self = serde_json::from_slice(&opened).map_err(|_| Error::invalid("Invalid page token"))?;
        if token.kind != kind || token.shape != shape {
            return Err(Error::invalid("Invalid page token: it belongs to another query"));
        }
        Ok(token.skip)
    }
}
