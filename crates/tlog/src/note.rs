//! Keys, and text signed with them: C2SP signed-note, and the Ed25519 cosignatures of tlog-cosignature.
//!
//! A note is text, an empty line, and a line for each signature, which names its key and carries four bytes of the key's
//! hash. Whoever reads it knows beforehand which keys count: other signatures are ignored, one of a known key that is
//! wrong condemns the note, and at least one must be right. A witness signs with a time of its own (`cosignature/v1`).
//!
//! The same keys sign other bytes, such as certificates, with [`SigningKey::sign`]. Such a message begins with a zero byte
//! and the hash of its purpose; note text cannot hold a zero byte, so no signature of the one kind passes for the other.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Error;
use crate::hash::sha256;

/// The most bytes of a signed note.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;
/// The most signatures on a note.
pub const SIGNATURES_MAX: usize = 32;
/// The most bytes of a key's name.
pub const KEY_NAME_BYTES_MAX: usize = 255;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of an Ed25519 public key and of a seed.
const KEY_BYTES: usize = 32;
/// A cosignature is a time in seconds, then the signature.
const COSIGNATURE_BYTES: usize = 8 + SIGNATURE_BYTES;

/// What a key's signatures on notes are (the "signature type" of signed-note).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Plain Ed25519 over the text: logs.
    Note,
    /// Ed25519 over the text with a time: witnesses.
    Cosignature,
}

impl KeyKind {
    fn byte(self) -> u8 {
        match self {
            KeyKind::Note => 0x01,
            KeyKind::Cosignature => 0x04,
        }
    }
}

/// A public key and its name. Its text (`name+hash+base64`, a "vkey") is what auditors pin.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    kind: KeyKind,
    public: [u8; KEY_BYTES],
}

impl VerifyingKey {
    /// A key from its 32 raw bytes.
    ///
    /// # Errors
    /// A name that is empty, too long, or has spaces, control characters or `+`.
    pub fn new(name: &str, kind: KeyKind, public: [u8; KEY_BYTES]) -> Result<Self, Error> {
        check_name(name)?;
        Ok(VerifyingKey { name: name.to_owned(), kind, public })
    }

    /// The name, by convention the log's origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its signatures on notes are.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The raw public key.
    pub fn public_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.public
    }

    /// The four bytes that stand for the key on a signature line. An identifier, not a safeguard.
    pub fn id(&self) -> u32 {
        let mut message = self.name.as_bytes().to_vec();
        message.extend_from_slice(&[b'\n', self.kind.byte()]);
        message.extend_from_slice(&self.public);
        let [a, b, c, d, ..] = sha256(&message);
        u32::from_be_bytes([a, b, c, d])
    }

    /// Checks what [`SigningKey::sign`] made, for the same `purpose`.
    ///
    /// # Errors
    /// [`Error::BadSignature`].
    pub fn verify(&self, purpose: &str, bytes: &[u8], signature: &[u8]) -> Result<(), Error> {
        self.verify_raw(&message_for(purpose, bytes), signature)
    }

    fn verify_raw(&self, message: &[u8], signature: &[u8]) -> Result<(), Error> {
        let key = UnparsedPublicKey::new(&ED25519, &self.public);
        key.verify(message, signature).map_err(|_| Error::BadSignature { name: self.name.clone() })
    }

    /// Checks one signature of this key on a note; the time is that of a cosignature.
    fn verify_note(&self, text: &str, signature: &[u8]) -> Result<Option<u64>, Error> {
        match self.kind {
            KeyKind::Note => self.verify_raw(text.as_bytes(), signature).map(|()| None),
            KeyKind::Cosignature => {
                let parts = signature.split_first_chunk().filter(|_| signature.len() == COSIGNATURE_BYTES);
                let (time, signature) = parts.ok_or_else(|| Error::BadSignature { name: self.name.clone() })?;
                let time = u64::from_be_bytes(*time);
                self.verify_raw(cosigned(text, time).as_bytes(), signature).map(|()| Some(time))
            }
        }
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![self.kind.byte()];
        key.extend_from_slice(&self.public);
        write!(f, "{}+{:08x}+{}", self.name, self.id(), STANDARD.encode(key))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({self})")
    }
}

impl FromStr for VerifyingKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = |why: &str| Error::malformed("verifying key", why);
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed("not of the form `name+hash+key`"));
        };
        let key = STANDARD.decode(key).map_err(|_| malformed("key is not base64"))?;
        let (kind, public) = match key.split_first() {
            Some((0x01, public)) => (KeyKind::Note, public),
            Some((0x04, public)) => (KeyKind::Cosignature, public),
            _ => return Err(malformed("not an Ed25519 key")),
        };
        let public = public.try_into().map_err(|_| malformed("an Ed25519 key has 32 bytes"))?;
        let key = VerifyingKey::new(name, kind, public)?;
        if format!("{:08x}", key.id()) != id {
            return Err(malformed("the hash is not that of the name and key"));
        }
        Ok(key)
    }
}

/// A private Ed25519 key and its name. Kept and, when dropped, wiped by the cryptographic library; never printed.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: VerifyingKey,
}

impl SigningKey {
    /// A key from its 32 secret bytes, which the caller wipes.
    ///
    /// # Errors
    /// A bad name; see [`VerifyingKey::new`].
    pub fn from_seed(name: &str, seed: &[u8; KEY_BYTES]) -> Result<Self, Error> {
        Self::new(name, Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| bad_private_key())?)
    }

    /// A key from PKCS#8 DER, which the caller wipes.
    ///
    /// # Errors
    /// Not an Ed25519 key; a bad name.
    pub fn from_pkcs8(name: &str, der: &[u8]) -> Result<Self, Error> {
        Self::new(name, Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| bad_private_key())?)
    }

    fn new(name: &str, pair: Ed25519KeyPair) -> Result<Self, Error> {
        let public = pair.public_key().as_ref().try_into().map_err(|_| bad_private_key())?;
        Ok(SigningKey { public: VerifyingKey::new(name, KeyKind::Note, public)?, pair })
    }

    /// The public half, for notes and other bytes.
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    /// The public half, for cosignatures.
    pub fn witness_key(&self) -> VerifyingKey {
        VerifyingKey { kind: KeyKind::Cosignature, ..self.public.clone() }
    }

    /// Signs `bytes` for a `purpose`, such as `erasure certificate`. The signed message is a zero byte, SHA-256 of the
    /// purpose, then the bytes.
    pub fn sign(&self, purpose: &str, bytes: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.sign_raw(&message_for(purpose, bytes))
    }

    fn sign_raw(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut bytes = [0; SIGNATURE_BYTES];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.name)
    }
}

/// Text with signatures. Parsing does not verify: call [`Note::verify`] before believing the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

/// A signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    name: String,
    id: u32,
    bytes: Vec<u8>,
}

/// A known key whose signature on a note is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signer<'a> {
    /// The key.
    pub key: &'a VerifyingKey,
    /// When a witness says it signed, in seconds since 1970; `None` for plain signatures.
    pub time_seconds: Option<u64>,
}

impl Note {
    /// A note without signatures.
    ///
    /// # Errors
    /// Text that does not end in a newline, has control characters, or is too long.
    pub fn new(text: &str) -> Result<Self, Error> {
        check_text(text)?;
        if !text.ends_with('\n') {
            return Err(Error::malformed("note", "no newline at the end"));
        }
        Ok(Note { text: text.to_owned(), signatures: Vec::new() })
    }

    /// Reads a note with at least one signature. Nothing is verified yet.
    ///
    /// # Errors
    /// Not a signed note, or one above [`NOTE_BYTES_MAX`] or [`SIGNATURES_MAX`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(Error::TooLarge { what: "note", unit: "bytes", max: NOTE_BYTES_MAX as u64 });
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| Error::malformed("note", "not UTF-8"))?;
        let at = whole.rfind("\n\n").ok_or_else(|| Error::malformed("note", "no empty line before the signatures"))?;
        let (text, signatures) = whole.split_at(at + 1);
        let mut note = Note::new(text)?;
        let lines = signatures.strip_prefix('\n').and_then(|rest| rest.strip_suffix('\n'));
        let lines = lines.ok_or_else(|| Error::malformed("note", "no newline at the end"))?;
        for line in lines.split('\n') {
            note.push(parse_signature(line)?)?;
        }
        Ok(note)
    }

    /// The text, its last newline included. Not verified.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Adds the key's signature, in place of an earlier one by the same key.
    ///
    /// # Errors
    /// The note has [`SIGNATURES_MAX`] signatures.
    pub fn sign(&mut self, key: &SigningKey) -> Result<(), Error> {
        let bytes = key.sign_raw(self.text.as_bytes()).to_vec();
        self.put(&key.public, bytes)
    }

    /// Adds a witness's signature with its time (seconds since 1970), in place of an earlier one by the same key. What the
    /// witness says by it is that it saw this log only grow; it must have checked that first.
    ///
    /// # Errors
    /// The note has [`SIGNATURES_MAX`] signatures.
    pub fn cosign(&mut self, key: &SigningKey, time_seconds: u64) -> Result<(), Error> {
        let mut bytes = time_seconds.to_be_bytes().to_vec();
        bytes.extend_from_slice(&key.sign_raw(cosigned(&self.text, time_seconds).as_bytes()));
        self.put(&key.witness_key(), bytes)
    }

    /// Verifies every signature of a known key, and names those keys, each once. Signatures of other keys are ignored.
    ///
    /// # Errors
    /// [`Error::BadSignature`] if one of a known key is wrong, [`Error::NotSigned`] if there is none.
    pub fn verify<'k>(&self, known: impl IntoIterator<Item = &'k VerifyingKey>) -> Result<Vec<Signer<'k>>, Error> {
        let mut signers: Vec<Signer<'k>> = Vec::new();
        for key in known {
            let id = key.id();
            for signature in self.signatures.iter().filter(|signature| signature.id == id && signature.name == key.name) {
                let time_seconds = key.verify_note(&self.text, &signature.bytes)?;
                if !signers.iter().any(|signer| signer.key == key) {
                    signers.push(Signer { key, time_seconds });
                }
            }
        }
        if signers.is_empty() { Err(Error::NotSigned) } else { Ok(signers) }
    }

    fn put(&mut self, key: &VerifyingKey, bytes: Vec<u8>) -> Result<(), Error> {
        let id = key.id();
        self.signatures.retain(|signature| signature.id != id || signature.name != key.name);
        self.push(Signature { name: key.name.clone(), id, bytes })
    }

    fn push(&mut self, signature: Signature) -> Result<(), Error> {
        if self.signatures.len() == SIGNATURES_MAX {
            return Err(Error::TooLarge { what: "note", unit: "signatures", max: SIGNATURES_MAX as u64 });
        }
        self.signatures.push(signature);
        Ok(())
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for Signature { name, id, bytes } in &self.signatures {
            let mut line = id.to_be_bytes().to_vec();
            line.extend_from_slice(bytes);
            writeln!(f, "\u{2014} {name} {}", STANDARD.encode(line))?;
        }
        Ok(())
    }
}

fn parse_signature(line: &str) -> Result<Signature, Error> {
    let malformed = || Error::malformed("note", "signature line is not of the form `\u{2014} name base64`");
    let (name, data) = line.strip_prefix("\u{2014} ").and_then(|rest| rest.split_once(' ')).ok_or_else(malformed)?;
    check_name(name)?;
    let data = STANDARD.decode(data).map_err(|_| malformed())?;
    let (id, bytes) = data.split_first_chunk().filter(|(_, bytes)| !bytes.is_empty()).ok_or_else(malformed)?;
    Ok(Signature { name: name.to_owned(), id: u32::from_be_bytes(*id), bytes: bytes.to_vec() })
}

/// What a witness signs.
fn cosigned(text: &str, time_seconds: u64) -> String {
    format!("cosignature/v1\ntime {time_seconds}\n{text}")
}

/// What is signed for `purpose`; see the module's head.
fn message_for(purpose: &str, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![0];
    message.extend_from_slice(&sha256(purpose.as_bytes()));
    message.extend_from_slice(bytes);
    message
}

fn check_text(text: &str) -> Result<(), Error> {
    if text.len() > NOTE_BYTES_MAX {
        return Err(Error::TooLarge { what: "note", unit: "bytes", max: NOTE_BYTES_MAX as u64 });
    }
    let control = text.bytes().any(|byte| byte < 0x20 && byte != b'\n');
    if control { Err(Error::malformed("note", "control character")) } else { Ok(()) }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.len() > KEY_NAME_BYTES_MAX {
        return Err(Error::TooLarge { what: "key name", unit: "bytes", max: KEY_NAME_BYTES_MAX as u64 });
    }
    let bad = name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+');
    if bad { Err(Error::malformed("key name", "empty, or has spaces, control characters or `+`")) } else { Ok(()) }
}

fn bad_private_key() -> Error {
    Error::malformed("private key", "not an Ed25519 key")
}
