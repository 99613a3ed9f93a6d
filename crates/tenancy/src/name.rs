//! Names and ids: newtypes that can only hold what is allowed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::error::{Error, Result};

/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Names nobody may take, because a path or a word of ours would be mistaken for them.
const RESERVED: [&str; 8] = ["insula", "operator", "service", "system", "root", "self", "null", "undefined"];

/// A name a person gave: letters, digits, `.`, `_`, `-`; first and last a letter or digit; at most 64 bytes, ASCII.
///
/// ```
/// use tenancy::Name;
/// assert!("breast-cancer_2024.v1".parse::<Name>().is_ok());
/// for bad in ["", "..", "a/b", "a b", "-a", "ünder", "a\0", "ｆｕｌｌ", "system"] {
///     assert!(bad.parse::<Name>().is_err(), "{bad}");
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut shown: String = text.chars().take(NAME_BYTES_MAX).filter(|c| !c.is_control()).collect();
        if text.chars().nth(NAME_BYTES_MAX).is_some() {
            shown.push('…');
        }
        let refuse = |why: &str| Err(Error::Invalid(format!("`{shown}` is not a name: {why}")));
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            return refuse("give 1 to 64 characters");
        }
        if !text.chars().eq(text.nfc()) || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return refuse("use letters a to z, digits, `.`, `_` and `-`");
        }
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        if !edge(text.bytes().next()) || !edge(text.bytes().last()) || text.contains("..") {
            return refuse("begin and end with a letter or digit, no two dots in a row");
        }
        if RESERVED.iter().any(|word| text.eq_ignore_ascii_case(word)) {
            return refuse("this word is reserved");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 128 random bits that name a tenant inside the kernel. Never derived from the tenant's name, never re-used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TenantId(pub(crate) [u8; 16]);

impl TenantId {
    /// A fresh id.
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0u8; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::internal("no randomness"))?;
        Ok(Self(bytes))
    }

    /// 32 hex digits, as in paths.
    pub(crate) fn hex(&self) -> String {
        hex(&self.0)
    }

    /// From [`TenantId::hex`].
    pub(crate) fn parse(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut text = String::with_capacity(bytes.len() * 2);
    text.extend(bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|nibble| DIGITS.get(usize::from(nibble))));
    text
}

/// Exactly `N` bytes from lower-case hex.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    let mut out = [0u8; N];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(out)
}
