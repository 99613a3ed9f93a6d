//! Keys and sealing: the only place of the kernel that calls the cipher.
//!
//! One cipher (AES-256-GCM), one derivation (HKDF-SHA256), one MAC (HMAC-SHA256). Every ciphertext is bound to its place by
//! associated data, so that a sealed value copied to another tenant, purpose or version does not open. GCM does not commit to
//! its key; where a wrong key could be tried on purpose (blobs), the caller compares a derived commitment first.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, hmac, rand};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{Error, Result};
use crate::name::{hex, unhex};

/// Length of every key in bytes.
pub(crate) const KEY_BYTES: usize = 32;
/// Length of an authentication tag in bytes.
pub(crate) const TAG_BYTES: usize = 16;

/// Separates our derivations from anybody else's.
const DERIVATION_SALT: &[u8] = b"insula/v1";

/// 256 secret bits, wiped when dropped. Has no `Debug` and no `Display` on purpose.
#[derive(Clone, ZeroizeOnDrop)]
pub(crate) struct Key([u8; KEY_BYTES]);

impl Key {
    /// A fresh key.
    pub(crate) fn random() -> Result<Self> {
        let mut key = Self([0; KEY_BYTES]);
        rand::fill(&mut key.0).map_err(|_| Error::internal("no randomness"))?;
        Ok(key)
    }

    /// A key from elsewhere.
    pub(crate) fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// From [`Key::hex`].
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }

    /// The raw bytes.
    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// 64 hex digits, wiped when dropped.
    pub(crate) fn hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(&self.0))
    }

    /// The key for one use: HKDF-SHA256 over `label` and `context`.
    #[expect(clippy::expect_used, reason = "HKDF-SHA256 refuses only outputs above 8160 bytes; this one has 32")]
    pub(crate) fn derive(&self, label: &str, context: &[u8]) -> Self {
        let mut out = Self([0; KEY_BYTES]);
        let length = u64::try_from(label.len()).unwrap_or(u64::MAX).to_be_bytes();
        hkdf::Salt::new(hkdf::HKDF_SHA256, DERIVATION_SALT)
            .extract(&self.0)
            .expand(&[&length, label.as_bytes(), context], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut out.0))
            .expect("a 32 byte output");
        out
    }

    /// The cipher under this key.
    pub(crate) fn cipher(&self) -> Result<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.0).map(LessSafeKey::new).map_err(|_| Error::internal("cipher refused the key"))
    }
}

/// `key` sealed under `kek`; `context` names the place (tenant, purpose, number, version).
pub(crate) fn wrap(kek: &Key, context: &[u8], key: &Key) -> Result<Vec<u8>> {
    seal(kek, context, &key.0)
}

/// The key in `wrapped`, if it was wrapped under `kek` for this `context`.
pub(crate) fn unwrap(kek: &Key, context: &[u8], wrapped: &[u8]) -> Result<Key> {
    let plain = open(kek, context, wrapped)?;
    let bytes: &[u8; KEY_BYTES] = plain.as_slice().try_into().map_err(|_| Error::integrity("a wrapped key of wrong length"))?;
    Ok(Key(*bytes))
}

/// `nonce | ciphertext | tag` with a random nonce.
pub(crate) fn seal(key: &Key, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
    let nonce: [u8; NONCE_LEN] = random()?;
    let mut out = Vec::with_capacity(NONCE_LEN + plain.len() + TAG_BYTES);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(plain);
    let (_, body) = out.split_at_mut(NONCE_LEN);
    let tag = key
        .cipher()?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), body)
        .map_err(|_| Error::internal("sealing failed"))?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// What [`seal`] sealed. Anything else is [`Error::Integrity`].
pub(crate) fn open(key: &Key, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let refused = || Error::integrity("a sealed value does not open");
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or_else(refused)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| refused())?;
    let mut body = Zeroizing::new(body.to_vec());
    let plain = key.cipher()?.open_in_place(nonce, Aad::from(aad), &mut body).map_err(|_| refused())?.len();
    body.truncate(plain);
    Ok(body)
}

/// HMAC-SHA256 over the parts, each prefixed by its length, so that bytes cannot move from one part to the next.
pub(crate) fn mac(key: &Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key.0));
    for part in parts {
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part);
    }
    let mut out = [0u8; 32];
    for (to, from) in out.iter_mut().zip(context.sign().as_ref()) {
        *to = *from;
    }
    out
}

/// Equality in constant time; slices of other length are unequal.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    rand::fill(&mut bytes).map_err(|_| {
        bytes.zeroize();
        Error::internal("no randomness")
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_values_open_only_in_their_place() {
        let key = Key::random().unwrap();
        let sealed = seal(&key, b"tenant a", b"hello").unwrap();
        assert_eq!(open(&key, b"tenant a", &sealed).unwrap().as_slice(), b"hello");
        let refused = |key: &Key, aad: &[u8], bytes: &[u8]| matches!(open(key, aad, bytes), Err(Error::Integrity(_)));
        assert!(refused(&key, b"tenant b", &sealed), "other place");
        assert!(refused(&Key::random().unwrap(), b"tenant a", &sealed), "other key");
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(refused(&key, b"tenant a", &flipped), "bit at {at}");
            assert!(refused(&key, b"tenant a", &sealed[..at]), "cut at {at}");
        }
        assert_ne!(sealed, seal(&key, b"tenant a", b"hello").unwrap(), "fresh nonce");
    }

    #[test]
    fn wrapped_keys_unwrap_only_in_their_context() {
        let (kek, key) = (Key::random().unwrap(), Key::random().unwrap());
        let wrapped = wrap(&kek, b"rows 1", &key).unwrap();
        assert_eq!(unwrap(&kek, b"rows 1", &wrapped).unwrap().bytes(), key.bytes());
        assert!(unwrap(&kek, b"rows 2", &wrapped).is_err());
        assert!(unwrap(&kek, b"x", &seal(&kek, b"x", b"short").unwrap()).is_err());
    }

    #[test]
    fn derivation_is_hkdf_and_separates_uses() {
        let key = Key([7; 32]);
        assert_ne!(key.derive("a", b"bc").bytes(), key.derive("ab", b"c").bytes());
        // RFC 5869 by hand: extract, then one block of expand.
        let hmac = |key: &[u8], data: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data);
        let prk = hmac(DERIVATION_SALT, key.bytes());
        let okm = hmac(prk.as_ref(), b"\0\0\0\0\0\0\0\x01abc\x01");
        assert_eq!(key.derive("a", b"bc").bytes(), okm.as_ref());
    }

    #[test]
    fn mac_parts_cannot_move() {
        let key = Key([1; 32]);
        assert_ne!(mac(&key, &[b"ab", b"c"]), mac(&key, &[b"a", b"bc"]));
        assert!(same(&mac(&key, &[b"a"]), &mac(&key, &[b"a"])));
        assert!(!same(&mac(&key, &[b"a"]), &mac(&key, &[b"a"])[..31]));
    }
}
