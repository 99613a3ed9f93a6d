//! Names of registered models: what MLflow allows, as far as an address can carry it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tenancy::{Error, Name, Result};

/// Longest name of a registered model in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 256;

/// The name of a registered model: 1 to 256 bytes without `/`, `:`, `\`, control characters and outer spaces; not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

impl ModelName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
            Err(Error::Invalid(format!("Invalid model name '{shown}'. {why}")))
        };
        if text.trim().is_empty() {
            return Err(Error::Invalid("Missing value for required parameter 'name'.".to_owned()));
        }
        if text.contains(['/', ':']) {
            return refuse("Names cannot contain '/' or ':'.");
        }
        if text.len() > MODEL_NAME_BYTES_MAX {
            return refuse("Names have at most 256 bytes.");
        }
        if text != text.trim() || matches!(text, "." | "..") || text.contains('\\') || text.chars().any(hidden) {
            return refuse("Names have no spaces at their ends, no backslash, no invisible characters, and are not '.' or '..'.");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Controls, and what changes how a text looks without being seen: two names that look the same are for confusion only.
fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{10ffff}')
}

impl TryFrom<String> for ModelName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for ModelName {
    fn from(name: Name) -> Self {
        Self(name.into())
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["iris", "my model (v2)", "größe", "a#b%c", "a.b", "7"] {
            assert!(good.parse::<ModelName>().is_ok(), "{good}");
        }
        for bad in ["", " ", "a/b", "a:b", ".", "..", "a\\b", "a\nb", " a", "a\u{200b}b", "a\u{202e}b", &"x".repeat(257)] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
    }
}
