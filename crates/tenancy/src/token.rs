//! Access tokens: being filled in.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::credential::Scope;
use crate::error::Result;

/// Longest life of a token.
pub const TOKEN_LIFE_SECONDS_MAX: i64 = 900;

/// Claims of an access token (RFC 9068).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) aud: String,
    /// The principal.
    pub(crate) sub: String,
    /// Unix seconds.
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) jti: String,
    /// Id of the credential the token was bought with: the caller checks that it is still alive.
    pub(crate) client_id: String,
    /// Opaque tenant id, 32 hex digits.
    pub(crate) tenant: String,
    pub(crate) scope: String,
}

/// What a token is issued for.
pub(crate) struct Grant<'a> {
    pub(crate) subject: &'a str,
    pub(crate) client_id: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) scope: &'a Scope,
    pub(crate) life_seconds: i64,
}

/// Issues and verifies the service's access tokens.
pub(crate) struct Tokens;

impl Tokens {
    /// `current` signs; `previous` still verifies during rotation.
    pub(crate) fn new(_issuer: &str, _audience: &str, _current: &[u8; 32], _previous: Option<&[u8; 32]>) -> Result<Self> {
        todo!()
    }
    /// `now` in Unix seconds.
    pub(crate) fn issue(&self, _grant: &Grant<'_>, _now: i64) -> Result<(String, Claims)> {
        todo!()
    }
    /// Strict; every failure is `Unauthenticated`.
    pub(crate) fn verify(&self, _token: &str, _now: i64) -> Result<Arc<Claims>> {
        todo!()
    }
    /// JWK set (RFC 7517) with the public keys.
    pub(crate) fn jwks(&self) -> serde_json::Value {
        todo!()
    }
}
