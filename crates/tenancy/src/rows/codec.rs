//! How records lie in the database.
//!
//! A tenant's own file is encrypted as a whole, so records lie in it as they are. On a shared server every value is sealed under
//! the tenant's rows key, bound to its place: copied to another tenant, kind or key it does not open, and erasing the key erases it
//! in every backup too. Look-ups need equality only, so their values become keyed hashes. The keys of records stay readable: they
//! are listed in order.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::keyring::Keyring;
use crate::name::{TenantId, hex};
use crate::seal::{self, Key, mac};

/// Names a value's place in the associated data.
const RECORD: &[u8] = b"record";
const ENTRY: &[u8] = b"outbox";

/// A record as the kernel moves it: its JSON and what it is found by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub(crate) value: Vec<u8>,
    pub(crate) fields: Vec<(String, String)>,
}

/// How values are written in one tenant's place.
pub(crate) enum Codec {
    /// As they are: the file is encrypted.
    Plain,
    /// Sealed, each by itself.
    Sealed(Box<Seal>),
}

/// Keys of one tenant's sealed rows.
pub(crate) struct Seal {
    tenant: TenantId,
    values: Key,
    lookups: Key,
}

impl Codec {
    /// Seals under the tenant's rows key.
    pub(crate) fn sealed(keys: &Keyring) -> Self {
        let key = |label| keys.rows_key().derive(label, &keys.tenant().0);
        Self::Sealed(Box::new(Seal { tenant: keys.tenant(), values: key("sealed rows"), lookups: key("sealed look-ups") }))
    }

    /// The bytes of a record's `value` column. On a shared server the fields travel with it: their column cannot be read back.
    pub(super) fn value(&self, kind: &str, key: &str, content: Content) -> Result<Vec<u8>> {
        let Self::Sealed(own) = self else { return Ok(content.value) };
        let fields = serde_json::to_vec(&content.fields).map_err(Error::internal)?;
        let length = u32::try_from(fields.len()).map_err(Error::internal)?;
        let plain = zeroize::Zeroizing::new([&length.to_be_bytes(), fields.as_slice(), &content.value].concat());
        seal::seal(&own.values, &own.place(RECORD, kind, key), &plain)
    }

    /// The record's JSON.
    pub(super) fn json(&self, kind: &str, key: &str, stored: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(stored),
            Self::Sealed(own) => Ok(own.content(kind, key, &stored)?.value),
        }
    }

    /// The record with its fields, if they lie in it.
    pub(super) fn content(&self, kind: &str, key: &str, stored: Vec<u8>) -> Result<Content> {
        match self {
            Self::Plain => Ok(Content { value: stored, fields: Vec::new() }),
            Self::Sealed(own) => own.content(kind, key, &stored),
        }
    }

    /// Whether the fields of a record lie in its value.
    pub(super) fn holds_fields(&self) -> bool {
        matches!(self, Self::Sealed(_))
    }

    /// What stands in a look-up's `value` column.
    pub(super) fn lookup(&self, kind: &str, field: &str, value: &str) -> String {
        match self {
            Self::Plain => value.to_owned(),
            Self::Sealed(own) => hex(&mac(&own.lookups, &[kind.as_bytes(), field.as_bytes(), value.as_bytes()])),
        }
    }

    /// A ledger entry on its way, as it lies in the outbox.
    pub(super) fn entry(&self, generation: u64, entry: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(entry.to_vec()),
            Self::Sealed(own) => seal::seal(&own.values, &own.place(ENTRY, &generation.to_string(), ""), entry),
        }
    }

    /// What [`Codec::entry`] wrote.
    pub(super) fn entry_opened(&self, generation: u64, stored: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(stored),
            Self::Sealed(own) => Ok(seal::open(&own.values, &own.place(ENTRY, &generation.to_string(), ""), &stored)?.to_vec()),
        }
    }
}

impl Seal {
    fn content(&self, kind: &str, key: &str, stored: &[u8]) -> Result<Content> {
        let plain = seal::open(&self.values, &self.place(RECORD, kind, key), stored)?;
        let damaged = || Error::integrity("a sealed record is malformed");
        let (length, rest) = plain.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(Error::internal)?;
        let (fields, value) = rest.split_at_checked(length).ok_or_else(damaged)?;
        Ok(Content { value: value.to_vec(), fields: serde_json::from_slice(fields).map_err(|_| damaged())? })
    }

    /// Tenant, table, kind and key, each behind its length.
    fn place(&self, table: &[u8], kind: &str, key: &str) -> Vec<u8> {
        let mut place = Vec::with_capacity(64 + kind.len() + key.len());
        for part in [&self.tenant.0[..], table, kind.as_bytes(), key.as_bytes()] {
            place.extend_from_slice(&(part.len() as u64).to_be_bytes());
            place.extend_from_slice(part);
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal_of(tenant: u8, key: u8) -> Codec {
        let key = Key::from_hex(&hex(&[key; 32])).unwrap();
        Codec::Sealed(Box::new(Seal { tenant: TenantId([tenant; 16]), values: key.derive("v", &[]), lookups: key.derive("l", &[]) }))
    }

    #[test]
    fn a_sealed_value_opens_in_its_place_only() {
        let content = Content { value: b"{\"a\":1}".to_vec(), fields: vec![("state".into(), "queued".into())] };
        let codec = seal_of(1, 1);
        let stored = codec.value("job", "7", content.clone()).unwrap();
        assert!(!stored.windows(6).any(|bytes| bytes == b"queued"), "nothing of it in clear");
        assert_eq!(codec.content("job", "7", stored.clone()).unwrap(), content);
        assert_eq!(codec.json("job", "7", stored.clone()).unwrap(), content.value);
        let refused = |codec: &Codec, kind: &str, key: &str| matches!(codec.json(kind, key, stored.clone()), Err(Error::Integrity(_)));
        assert!(refused(&codec, "job", "8") && refused(&codec, "model", "7") && refused(&codec, "jo", "b7"), "moved");
        assert!(refused(&seal_of(2, 1), "job", "7"), "another tenant, even under the same key");
        assert!(refused(&seal_of(1, 2), "job", "7"), "another key");
    }

    #[test]
    fn look_ups_are_equal_only_within_a_tenants_field() {
        let codec = seal_of(1, 1);
        assert_eq!(codec.lookup("job", "state", "queued"), codec.lookup("job", "state", "queued"));
        assert_ne!(codec.lookup("job", "state", "queued"), codec.lookup("job", "stat", "equeued"));
        assert_ne!(codec.lookup("job", "state", "queued"), seal_of(1, 2).lookup("job", "state", "queued"));
        assert_eq!(Codec::Plain.lookup("job", "state", "queued"), "queued");
    }

    #[test]
    fn an_outbox_entry_stays_in_its_generation() {
        let codec = seal_of(1, 1);
        let stored = codec.entry(7, b"{}").unwrap();
        assert_eq!(codec.entry_opened(7, stored.clone()).unwrap(), b"{}");
        assert!(codec.entry_opened(8, stored).is_err());
    }
}
