//! Credentials: API keys, what they are narrowed to, and the operator's first secret.
//!
//! ```text
//! insula_<id: 16 of base 62>_<secret: 43 of base 64 url, 256 bits><checksum: 6 of base 62>
//! insula_bootstrap_<secret><checksum>
//! ```
//!
//! The id is public: it finds the row and stands in the ledger. The secret is shown once; stored is its MAC under a key that
//! lives with the root, so that who copies the data can neither use nor test a key. The checksum lets a scanner of leaked
//! text, and a user who lost a character, know without asking the service. Verifying takes the same work for a key that
//! does not exist.
//!
//! A [`Scope`] narrows: by act, and by resource. It never adds to what the member's roles allow.
//! What is deliberately missing: expiry and revocation (they are columns of the row, checked by who reads it) and slow
//! password hashing (256 random bits cannot be guessed).

use std::fmt;

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::act::{ResourceKind, act_by_name};
use crate::error::{Error, Result};

const PREFIX: &str = "insula_";
const BOOTSTRAP: &str = "bootstrap";
const ID_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
const SECRET_TEXT_BYTES: usize = 43;
const CHECKSUM_BYTES: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Most words of a scope, acts and resources each.
const SCOPE_WORDS_MAX: usize = 64;
/// Longest `scope` claim or parameter.
const SCOPE_BYTES_MAX: usize = 4096;

/// Public part of a key: 16 characters of base 62, about 95 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CredentialId([u8; ID_BYTES]);

impl CredentialId {
    fn random() -> Result<Self> {
        let mut id = [0u8; ID_BYTES];
        let mut filled = 0;
        while filled < ID_BYTES {
            let mut random = [0u8; 2 * ID_BYTES];
            fill(&mut random)?;
            // 248 is the largest multiple of 62 in a byte: what is above would favour the first letters.
            let letters = random.into_iter().filter(|byte| *byte < 248).filter_map(|byte| BASE62.get(usize::from(byte % 62)));
            for (place, letter) in id.iter_mut().skip(filled).zip(letters) {
                *place = *letter;
                filled += 1;
            }
        }
        Ok(Self(id))
    }

    /// As in the key's text.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("")
    }

    /// From [`CredentialId::as_str`].
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let id: [u8; ID_BYTES] = text.as_bytes().try_into().ok()?;
        id.iter().all(u8::is_ascii_alphanumeric).then_some(Self(id))
    }
}

impl fmt::Debug for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A freshly made key. The text is shown once; the MAC is stored.
pub(crate) struct IssuedKey {
    /// Finds the row.
    pub(crate) id: CredentialId,
    /// To store.
    pub(crate) secret_mac: [u8; 32],
    /// To show.
    pub(crate) text: Zeroizing<String>,
}

/// Makes a key. `server_key` comes from the root, not from the data.
pub(crate) fn issue(server_key: &[u8; 32]) -> Result<IssuedKey> {
    let id = CredentialId::random()?;
    let secret = random_secret()?;
    Ok(IssuedKey { secret_mac: secret_mac(server_key, id.as_str(), &secret), text: write(id.as_str(), &secret), id })
}

/// What a caller presented: well-formed, not yet verified.
pub(crate) struct Presented {
    /// Finds the row.
    pub(crate) id: CredentialId,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl Presented {
    /// Bounded; none if form or checksum are wrong.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, secret) = read(text, ID_BYTES)?;
        Some(Self { id: CredentialId::parse(id)?, secret })
    }

    /// Whether the secret is the one behind the stored MAC. Constant time, and the same work if there is no such key (`None`).
    pub(crate) fn verify(&self, server_key: &[u8; 32], stored: Option<&[u8; 32]>) -> bool {
        matches(server_key, self.id.as_str(), &self.secret, stored)
    }
}

/// Makes the operator's one-time secret: text to show, MAC to store.
pub(crate) fn issue_bootstrap(server_key: &[u8; 32]) -> Result<(Zeroizing<String>, [u8; 32])> {
    let secret = random_secret()?;
    Ok((write(BOOTSTRAP, &secret), secret_mac(server_key, BOOTSTRAP, &secret)))
}

/// Whether this is the one-time secret behind the stored MAC (`None`: already spent).
pub(crate) fn verify_bootstrap(text: &str, server_key: &[u8; 32], stored: Option<&[u8; 32]>) -> bool {
    let presented = read(text, BOOTSTRAP.len()).filter(|(id, _)| *id == BOOTSTRAP);
    presented.is_some_and(|(_, secret)| matches(server_key, BOOTSTRAP, &secret, stored))
}

/// What a credential is narrowed to: acts by name, resources as `dataset:*` or `model:fraud`; `*` is everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawScope")]
pub struct Scope {
    acts: Vec<String>,
    resources: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScope {
    acts: Vec<String>,
    resources: Vec<String>,
}

impl TryFrom<RawScope> for Scope {
    type Error = Error;

    fn try_from(raw: RawScope) -> Result<Self> {
        Self::new(raw.acts, raw.resources)
    }
}

impl Scope {
    /// Everything the roles allow.
    #[must_use]
    pub fn all() -> Self {
        Self { acts: vec!["*".into()], resources: vec!["*".into()] }
    }

    /// A scope whose words are all known.
    ///
    /// # Errors
    /// `Invalid` naming the word, or that there are none or too many.
    pub fn new(mut acts: Vec<String>, mut resources: Vec<String>) -> Result<Self> {
        for (what, words) in [("acts", &mut acts), ("resources", &mut resources)] {
            if words.is_empty() || words.len() > SCOPE_WORDS_MAX {
                return Err(Error::Invalid(format!("a scope has {} `{what}`: give 1 to {SCOPE_WORDS_MAX}, or `*`", words.len())));
            }
            words.sort();
            words.dedup();
        }
        if let Some(act) = acts.iter().find(|act| *act != "*" && act_by_name(act).is_none()) {
            return Err(Error::Invalid(format!("`{}` is not an act", shown(act))));
        }
        if let Some(resource) = resources.iter().find(|resource| *resource != "*" && !is_pattern(resource)) {
            let shown = shown(resource);
            return Err(Error::Invalid(format!(
                "`{shown}` is not a resource: give `*`, or a kind and a name as in `dataset:iris` or `model:*`"
            )));
        }
        Ok(Self { acts, resources })
    }

    /// Words with a blank between, as in OAuth's `scope`. Every resource is written as `*:*`.
    #[must_use]
    pub fn to_claim(&self) -> String {
        let resources = self.resources.iter().map(|resource| if resource == "*" { "*:*" } else { resource });
        self.acts.iter().map(String::as_str).chain(resources).collect::<Vec<_>>().join(" ")
    }

    /// From [`Scope::to_claim`]. Acts alone are about every resource, resources alone about every act.
    ///
    /// # Errors
    /// `Invalid` naming the word.
    pub fn from_claim(text: &str) -> Result<Self> {
        if text.len() > SCOPE_BYTES_MAX {
            return Err(Error::Invalid(format!("the scope has {} bytes: give at most {SCOPE_BYTES_MAX}", text.len())));
        }
        let (mut resources, mut acts): (Vec<String>, Vec<String>) =
            text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).partition(|word| word.contains(':'));
        if acts.is_empty() && resources.is_empty() {
            return Err(Error::Invalid("the scope is empty".into()));
        }
        resources.iter_mut().filter(|resource| *resource == "*:*").for_each(|resource| "*".clone_into(resource));
        for words in [&mut acts, &mut resources] {
            if words.is_empty() {
                words.push("*".into());
            }
        }
        Self::new(acts, resources)
    }

    /// Whether the act on this resource is inside.
    #[must_use]
    pub fn matches(&self, act: &str, kind: ResourceKind, name: &str) -> bool {
        let acts = self.acts.iter().any(|allowed| allowed == "*" || allowed == act);
        acts && self.resources.iter().any(|pattern| {
            pattern == "*" || pattern.split_once(':').is_some_and(|(word, wanted)| word == kind.word() && (wanted == "*" || wanted == name))
        })
    }

    /// Whether everything inside `other` is inside this one: a token may be narrower than its key, never wider.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let has = |words: &[String], word: &str| words.iter().any(|own| own == "*" || own == word);
        let of_kind = |pattern: &str| pattern.split_once(':').map(|(kind, _)| format!("{kind}:*"));
        other.acts.iter().all(|act| has(&self.acts, act))
            && other
                .resources
                .iter()
                .all(|pattern| has(&self.resources, pattern) || of_kind(pattern).is_some_and(|all| has(&self.resources, &all)))
    }
}

/// `kind:*` or `kind:name`; a name has no blank, colon or `*`, so that a claim reads back as it was written.
fn is_pattern(text: &str) -> bool {
    text.split_once(':').is_some_and(|(word, name)| {
        ResourceKind::ALL.iter().any(|kind| kind.word() == word) && (name == "*" || name.parse::<crate::name::Name>().is_ok())
    })
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| Error::internal("no randomness"))
}

fn random_secret() -> Result<Zeroizing<[u8; SECRET_BYTES]>> {
    let mut secret = Zeroizing::new([0u8; SECRET_BYTES]);
    fill(&mut *secret)?;
    Ok(secret)
}

fn secret_mac(server_key: &[u8; 32], id: &str, secret: &[u8; SECRET_BYTES]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, server_key));
    // The label separates this use of the key; the id has a fixed length or is the one word `bootstrap`.
    context.update(b"insula credential v1\0");
    context.update(id.as_bytes());
    context.update(&[0]);
    context.update(secret);
    let mut mac = [0u8; 32];
    mac.copy_from_slice(context.sign().as_ref());
    mac
}

fn matches(server_key: &[u8; 32], id: &str, secret: &[u8; SECRET_BYTES], stored: Option<&[u8; 32]>) -> bool {
    let computed = secret_mac(server_key, id, secret);
    let equal = computed.ct_eq(stored.unwrap_or(&[0; 32]));
    bool::from(equal) & stored.is_some()
}

fn write(id: &str, secret: &[u8; SECRET_BYTES]) -> Zeroizing<String> {
    // Full length at once: growing would leave copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + id.len() + 1 + SECRET_TEXT_BYTES + CHECKSUM_BYTES));
    text.push_str(PREFIX);
    text.push_str(id);
    text.push('_');
    URL_SAFE_NO_PAD.encode_string(secret, &mut text);
    let checksum = checksum(&text);
    checksum.iter().for_each(|letter| text.push(char::from(*letter)));
    text
}

/// Splits by length, because `_` is also a letter of the secret.
fn read(text: &str, id_bytes: usize) -> Option<(&str, Zeroizing<[u8; SECRET_BYTES]>)> {
    if text.len() != PREFIX.len() + id_bytes + 1 + SECRET_TEXT_BYTES + CHECKSUM_BYTES || !text.is_ascii() {
        return None;
    }
    let (body, sum) = text.split_at_checked(text.len() - CHECKSUM_BYTES)?;
    let (id, secret) = body.strip_prefix(PREFIX)?.split_at_checked(id_bytes)?;
    if checksum(body) != sum.as_bytes() {
        return None;
    }
    let mut bytes = Zeroizing::new([0u8; SECRET_BYTES]);
    let read = URL_SAFE_NO_PAD.decode_slice_unchecked(secret.strip_prefix('_')?, bytes.as_mut()).ok()?;
    (read == SECRET_BYTES).then_some((id, bytes))
}

/// Against typing errors, not against attackers: 32 bits of SHA-256 in base 62.
fn checksum(text: &str) -> [u8; CHECKSUM_BYTES] {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    let mut rest = hash.as_ref().iter().take(4).fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
    let mut letters = [b'0'; CHECKSUM_BYTES];
    for letter in letters.iter_mut().rev() {
        *letter = BASE62.get((rest % 62) as usize).copied().unwrap_or(b'0');
        rest /= 62;
    }
    letters
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    #[test]
    fn a_key_verifies_and_nothing_else_does() {
        let issued = issue(&KEY).unwrap();
        assert_eq!(issued.text.len(), 73);
        let presented = Presented::parse(&issued.text).unwrap();
        assert_eq!(presented.id, issued.id);
        assert!(presented.verify(&KEY, Some(&issued.secret_mac)));
        assert!(!presented.verify(&KEY, None));
        assert!(!presented.verify(&[8; 32], Some(&issued.secret_mac)), "other server key");
        assert!(!presented.verify(&KEY, Some(&issue(&KEY).unwrap().secret_mac)));
        // The MAC is bound to the id: a secret is no good under another key's name.
        let moved = write(issue(&KEY).unwrap().id.as_str(), &presented.secret);
        assert!(!Presented::parse(&moved).unwrap().verify(&KEY, Some(&issued.secret_mac)));
        // Every one-character change is refused by the form already; with the checksum made good, by the MAC.
        for at in 0..issued.text.len() {
            let mut bytes = issued.text.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            assert!(Presented::parse(std::str::from_utf8(&bytes).unwrap()).is_none(), "byte {at}");
        }
        let mut secret = *presented.secret;
        secret[31] ^= 1;
        let forged = write(issued.id.as_str(), &secret);
        assert!(!Presented::parse(&forged).unwrap().verify(&KEY, Some(&issued.secret_mac)));
    }

    #[test]
    fn all_zero_macs_do_not_open() {
        // The stand-in for "no such key" is no key: even who could find its preimage is refused.
        let presented = Presented::parse(&issue(&KEY).unwrap().text).unwrap();
        assert!(!presented.verify(&KEY, Some(&[0; 32])));
        assert!(!matches(&KEY, "x", &[0; 32], None));
    }

    #[test]
    fn a_thousand_keys_differ_and_use_the_alphabet() {
        let keys: Vec<_> = (0..1000).map(|_| issue(&KEY).unwrap()).collect();
        let ids: std::collections::BTreeSet<_> = keys.iter().map(|key| key.id).collect();
        assert_eq!(ids.len(), 1000);
        let letters: std::collections::BTreeSet<_> = ids.iter().flat_map(|id| id.0).collect();
        assert_eq!(letters.len(), 62);
    }

    #[test]
    fn bootstrap_is_its_own_kind() {
        let (text, mac) = issue_bootstrap(&KEY).unwrap();
        assert!(text.starts_with("insula_bootstrap_"));
        assert!(verify_bootstrap(&text, &KEY, Some(&mac)));
        assert!(!verify_bootstrap(&text, &KEY, None), "spent");
        assert!(!verify_bootstrap(&issue_bootstrap(&KEY).unwrap().0, &KEY, Some(&mac)));
        assert!(Presented::parse(&text).is_none());
        let key = issue(&KEY).unwrap();
        assert!(!verify_bootstrap(&key.text, &KEY, Some(&key.secret_mac)));
    }

    #[test]
    fn debug_shows_the_public_part_only() {
        let issued = issue(&KEY).unwrap();
        assert_eq!(format!("{:?}", issued.id), issued.id.as_str());
        assert!(CredentialId::parse("short").is_none() && CredentialId::parse("sixteen_with_bar").is_none());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,120}") {
            prop_assert!(Presented::parse(&text).is_none());
            prop_assert!(!verify_bootstrap(&text, &KEY, Some(&[1; 32])));
        }

        #[test]
        fn what_is_written_is_read(secret in any::<[u8; 32]>()) {
            let text = write("0123456789abcdef", &secret);
            let presented = Presented::parse(&text).unwrap();
            prop_assert_eq!(*presented.secret, secret);
        }
    }

    fn scope(acts: &[&str], resources: &[&str]) -> Scope {
        Scope::new(acts.iter().map(ToString::to_string).collect(), resources.iter().map(ToString::to_string).collect()).unwrap()
    }

    #[test]
    fn scopes_narrow() {
        use ResourceKind::{Dataset, Deployment, Model, Tenant};
        let narrow = scope(&["DatasetRead", "ModelRead"], &["dataset:*", "model:fraud"]);
        for (act, kind, name, inside) in [
            ("DatasetRead", Dataset, "iris", true),
            ("DatasetRead", Dataset, "", true),
            ("DatasetWrite", Dataset, "iris", false),
            ("ModelRead", Model, "fraud", true),
            ("ModelRead", Model, "fraud2", false),
            ("ModelRead", Model, "", false),
            ("ModelRead", Model, "*", false),
            ("TenantRead", Tenant, "", false),
            ("Predict", Deployment, "fraud", false),
        ] {
            assert_eq!(narrow.matches(act, kind, name), inside, "{act} {name}");
        }
        assert!(Scope::all().matches("TenantErase", Tenant, ""));
    }

    #[test]
    fn covering_is_matching_all_of_it() {
        let key = scope(&["DatasetRead", "Predict"], &["dataset:*", "deployment:fraud"]);
        for (other, covered) in [
            (scope(&["Predict"], &["deployment:fraud"]), true),
            (scope(&["DatasetRead"], &["dataset:iris", "dataset:*"]), true),
            (scope(&["Predict"], &["deployment:*"]), false),
            (scope(&["Predict"], &["*"]), false),
            (scope(&["*"], &["dataset:iris"]), false),
            (scope(&["LedgerRead"], &["dataset:iris"]), false),
            (Scope::all(), false),
        ] {
            assert_eq!(key.covers(&other), covered, "{other:?}");
            assert!(Scope::all().covers(&other));
        }
    }

    #[test]
    fn claims_read_back() {
        for scope in [Scope::all(), scope(&["Predict"], &["*"]), scope(&["*"], &["model:a.b-c_1", "run:*"])] {
            assert_eq!(Scope::from_claim(&scope.to_claim()).unwrap(), scope);
            assert_eq!(serde_json::from_value::<Scope>(serde_json::to_value(&scope).unwrap()).unwrap(), scope);
        }
        assert_eq!(Scope::all().to_claim(), "* *:*");
        assert_eq!(Scope::from_claim("Predict").unwrap(), scope(&["Predict"], &["*"]));
        assert_eq!(Scope::from_claim("model:x").unwrap(), scope(&["*"], &["model:x"]));
    }

    #[test]
    fn bad_scopes_are_refused_with_the_word() {
        for (claim, message) in [
            ("", "the scope is empty"),
            ("Fly", "`Fly` is not an act"),
            ("predict", "`predict` is not an act"),
            ("Predict planet:x", "`planet:x` is not a resource"),
            ("Predict model:", "`model:` is not a resource"),
            ("Predict model:../x", "`model:../x` is not a resource"),
            ("Predict model:a*", "`model:a*` is not a resource"),
            ("Predict *:x", "`*:x` is not a resource"),
        ] {
            let error = Scope::from_claim(claim).unwrap_err().to_string();
            assert!(error.starts_with(message), "{claim}: {error}");
        }
        assert!(Scope::new(vec![], vec!["*".into()]).is_err());
        assert!(Scope::new(vec!["*".into(); 65], vec!["*".into()]).is_err());
        assert!(Scope::from_claim(&"Predict ".repeat(1000)).is_err());
        assert!(serde_json::from_str::<Scope>(r#"{"acts": ["Fly"], "resources": ["*"]}"#).is_err());
        assert!(serde_json::from_str::<Scope>(r#"{"acts": ["*"], "resources": ["*"], "more": 1}"#).is_err());
    }
}
