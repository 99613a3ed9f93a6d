//! SQL that is no constant. Only names are ever put into a statement, and a name can be nothing but what [`Ident`] lets through.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::{hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::num::NonZeroU32;

use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::place::Tier;
use crate::seal::random;

/// Longest name that PostgreSQL does not cut, in bytes.
const IDENT_BYTES_MAX: usize = 63;
/// PostgreSQL's own number of rounds (`scram_iterations`).
const SCRAM_ROUNDS: NonZeroU32 = NonZeroU32::new(4096).unwrap();
const SCRAM_SALT_BYTES: usize = 16;
const SCRAM_KEY_BYTES: usize = 32;

/// A name of a schema, role or database: small letters, digits and `_`. Shown in double quotes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Ident(String);

impl Ident {
    /// From the configuration; `what` says where it stands there.
    pub(super) fn parse(name: &str, what: &str) -> Result<Self> {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let rest = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if first && rest && name.len() <= IDENT_BYTES_MAX && !name.starts_with("pg_") {
            return Ok(Self(name.to_owned()));
        }
        Err(Error::Invalid(format!("{what}: `{name}` cannot be used: take a name of small letters, digits and `_`")))
    }

    /// Of a tenant: `t_` and its id where it has a schema of its own, `d_` and its id where it has a database of its own.
    fn of(tenant: TenantId, prefix: &str) -> Self {
        Self(format!("{prefix}_{}", tenant.hex()))
    }

    /// The name.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// What a tenant with more than a place in the shared tables has on the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Own {
    /// The schema its tables lie in.
    pub(super) schema: Ident,
    /// The role that uses them, and nobody else.
    pub(super) role: Ident,
    /// Its database, if not the common one.
    pub(super) database: Option<Ident>,
}

impl Own {
    /// The two tiers have names of their own each: a tenant that moves from one to the other has both for a while.
    pub(super) fn of(tenant: TenantId, tier: Tier) -> Option<Self> {
        match tier {
            Tier::Embedded | Tier::Pooled => None,
            Tier::Schema => Some(Self { schema: Ident::of(tenant, "t"), role: Ident::of(tenant, "t"), database: None }),
            Tier::Database => {
                let name = Ident::of(tenant, "d");
                Some(Self { schema: Ident(super::POOLED_SCHEMA.to_owned()), role: name.clone(), database: Some(name) })
            }
        }
    }
}

/// A statement made of constants, [`Ident`]s, tenants' ids and [`scram`] verifiers. The one way to run SQL that is no constant.
#[expect(clippy::disallowed_types, reason = "DDL and SET take no parameters; what goes in here has no character that could end a name")]
pub(super) fn built<S>(sql: S) -> sqlx::AssertSqlSafe<S> {
    sqlx::AssertSqlSafe(sql)
}

/// What PostgreSQL stores of a password (RFC 5803): the password itself never reaches the server, and so no log of it.
///
/// # Errors
/// [`Error::Invalid`] for a password that is empty or not of printable ASCII: what others mean different things by.
pub(super) fn scram(password: &str, what: &str) -> Result<String> {
    if password.is_empty() || !password.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::Invalid(format!(
            "{what}: the role is to be made, but has no password of printable ASCII characters without spaces"
        )));
    }
    let salt: [u8; SCRAM_SALT_BYTES] = random()?;
    let mut salted = zeroize::Zeroizing::new([0u8; SCRAM_KEY_BYTES]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, SCRAM_ROUNDS, &salt, password.as_bytes(), &mut *salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &*salted);
    let stored = digest(&SHA256, hmac::sign(&key, b"Client Key").as_ref());
    let server = hmac::sign(&key, b"Server Key");
    Ok(format!("SCRAM-SHA-256${SCRAM_ROUNDS}:{}${}:{}", STANDARD.encode(salt), STANDARD.encode(stored), STANDARD.encode(server)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_nothing_that_could_end_it() {
        for good in ["insula", "insula_rows", "_x", "r2"] {
            assert_eq!(Ident::parse(good, "url").unwrap().to_string(), format!("\"{good}\""));
        }
        let long = "a".repeat(64);
        for bad in ["", "a\"b", "a b", "A", "2a", "pg_x", "a;b", "a'b", "ä", "a\0", long.as_str()] {
            assert!(Ident::parse(bad, "url").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_verifier_is_fresh_and_has_no_quote() {
        let one = scram("secret", "x").unwrap();
        assert!(one.starts_with("SCRAM-SHA-256$4096:") && !one.contains('\''));
        assert_ne!(one, scram("secret", "x").unwrap(), "fresh salt");
        for bad in ["", "two words", "ä", "a\n"] {
            assert!(scram(bad, "x").is_err());
        }
    }
}
