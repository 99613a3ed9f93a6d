//! Access tokens: short-lived, signed, bought with a credential (RFC 9068 JWTs under EdDSA, RFC 8037).
//!
//! A token says who (`sub`), in which tenant (an opaque id), by which credential (`client_id`) and narrowed to what
//! (`scope`). It says nothing about roles: those are looked up at each request, so that a member who was demoted is demoted
//! at once; and the credential is looked up too, so that revoking a key ends its tokens.
//!
//! Verification is strict because JWT is not: one algorithm, fixed here and never read from the header; `typ` must be
//! `at+jwt`; `kid` only selects among our own keys; a header that brings its own key (`jku`, `x5u`, `jwk`, `x5c`) or any
//! other field is refused, as is an unknown, missing or doubled claim. Verified tokens are remembered by their SHA-256 until they expire,
//! because a signature costs more than a hash.
//!
//! What is deliberately missing: refresh tokens (buy another) and tokens of other issuers.

use std::num::NonZeroUsize;
use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::credential::Scope;
use crate::error::{Error, Result};
use crate::name::hex;

/// Longest life of a token.
pub(crate) const TOKEN_LIFE_SECONDS_MAX: i64 = 900;
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 8192;
/// Verified tokens that are remembered.
const CACHE_TOKENS_MAX: usize = 4096;
/// How far `iat` may be ahead: the service checks its own tokens with its own clock.
const CLOCK_SKEW_SECONDS_MAX: i64 = 5;
const TYPE: &str = "at+jwt";

/// Claims of an access token. Times in Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    /// The service.
    pub(crate) iss: String,
    /// The service too: it issues for itself.
    pub(crate) aud: String,
    /// The principal.
    pub(crate) sub: String,
    /// Not valid from here on.
    pub(crate) exp: i64,
    /// When it was issued.
    pub(crate) iat: i64,
    /// Random name of the token.
    pub(crate) jti: String,
    /// Id of the credential it was bought with: the caller checks that it is still alive.
    pub(crate) client_id: String,
    /// Opaque tenant id, 32 hex digits.
    pub(crate) tenant: String,
    /// As [`Scope::to_claim`] writes it.
    pub(crate) scope: String,
}

/// What a token is issued for.
pub(crate) struct Grant<'a> {
    /// The principal.
    pub(crate) subject: &'a str,
    /// Id of the credential.
    pub(crate) client_id: &'a str,
    /// Opaque tenant id.
    pub(crate) tenant: &'a str,
    /// Already checked to be within the credential's.
    pub(crate) scope: &'a Scope,
    /// 1 to [`TOKEN_LIFE_SECONDS_MAX`].
    pub(crate) life_seconds: i64,
}

/// Issues and verifies the service's access tokens.
pub(crate) struct Tokens {
    issuer: String,
    audience: String,
    /// The first one signs, all verify.
    keys: Vec<TokenKey>,
    validation: Validation,
    verified: Mutex<LruCache<[u8; 32], Arc<Claims>>>,
}

struct TokenKey {
    kid: String,
    public: [u8; 32],
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl Tokens {
    /// `current` signs; `previous` still verifies, as long as its last token lives after a rotation. Seeds of Ed25519.
    ///
    /// # Errors
    /// A key that the cryptography refuses.
    pub(crate) fn new(issuer: &str, audience: &str, current: &[u8; 32], previous: Option<&[u8; 32]>) -> Result<Self> {
        let keys = std::iter::once(current).chain(previous).map(TokenKey::from_seed).collect::<Result<_>>()?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["iss", "aud", "sub"]);
        // Checked below against the caller's clock.
        validation.validate_exp = false;
        let capacity = NonZeroUsize::new(CACHE_TOKENS_MAX).unwrap_or(NonZeroUsize::MIN);
        Ok(Self { issuer: issuer.into(), audience: audience.into(), keys, validation, verified: Mutex::new(LruCache::new(capacity)) })
    }

    /// Signs a token. `now` in Unix seconds.
    ///
    /// # Errors
    /// `Invalid` for a life out of range.
    pub(crate) fn issue(&self, grant: &Grant<'_>, now: i64) -> Result<(String, Claims)> {
        if !(1..=TOKEN_LIFE_SECONDS_MAX).contains(&grant.life_seconds) {
            return Err(Error::Invalid(format!(
                "a token cannot live `{}` seconds: give 1 to {TOKEN_LIFE_SECONDS_MAX}",
                grant.life_seconds
            )));
        }
        let mut jti = [0u8; 16];
        aws_lc_rs::rand::fill(&mut jti).map_err(|_| Error::internal("no randomness"))?;
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: grant.subject.into(),
            exp: now.saturating_add(grant.life_seconds),
            iat: now,
            jti: hex(&jti),
            client_id: grant.client_id.into(),
            tenant: grant.tenant.into(),
            scope: grant.scope.to_claim(),
        };
        let key = self.keys.first().ok_or_else(|| Error::internal("no token key"))?;
        let header = Header { typ: Some(TYPE.into()), kid: Some(key.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        let token = jsonwebtoken::encode(&header, &claims, &key.signing).map_err(|error| Error::internal(format!("token: {error}")))?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Error::Invalid(format!("the scope makes a token of {} bytes: give at most {TOKEN_BYTES_MAX}", token.len())));
        }
        Ok((token, claims))
    }

    /// The claims of a token that holds at `now` (Unix seconds). Whether credential and tenant are still alive is the caller's question.
    ///
    /// # Errors
    /// `Unauthenticated`, whatever is wrong.
    pub(crate) fn verify(&self, token: &str, now: i64) -> Result<Arc<Claims>> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Error::Unauthenticated);
        }
        let mut name = [0u8; 32];
        name.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        let known = self.verified.lock().get(&name).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => Arc::new(self.check(token).ok_or(Error::Unauthenticated)?),
        };
        let life = claims.exp.saturating_sub(claims.iat);
        let alive = now < claims.exp && claims.iat <= now.saturating_add(CLOCK_SKEW_SECONDS_MAX);
        if !alive || !(1..=TOKEN_LIFE_SECONDS_MAX).contains(&life) {
            self.verified.lock().pop(&name);
            return Err(Error::Unauthenticated);
        }
        self.verified.lock().put(name, Arc::clone(&claims));
        Ok(claims)
    }

    /// The public keys as a JWK set (RFC 7517).
    pub(crate) fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self.keys.iter().map(TokenKey::jwk).collect();
        serde_json::json!({ "keys": keys })
    }

    /// Everything but time.
    fn check(&self, token: &str) -> Option<Claims> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        let kid = header.kid.as_deref()?;
        let ours = Header { typ: Some(TYPE.into()), kid: Some(kid.into()), ..Header::new(Algorithm::EdDSA) };
        // Nothing but alg, typ and kid: no key or place of a key, no `crit`, no unknown field.
        if header != ours {
            return None;
        }
        let key = self.keys.iter().find(|key| key.kid == kid)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.verifying, &self.validation).ok()?.claims;
        let filled = [&claims.sub, &claims.jti, &claims.client_id, &claims.tenant, &claims.scope].iter().all(|claim| !claim.is_empty());
        filled.then_some(claims)
    }
}

impl TokenKey {
    fn from_seed(seed: &[u8; 32]) -> Result<Self> {
        let refused = |_| Error::internal("the token key is not a key");
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| Error::internal("the token key is not a key"))?;
        let mut public = [0u8; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        let document = pair.to_pkcs8v1().map_err(refused)?;
        let mut key = Self {
            kid: String::new(),
            public,
            signing: EncodingKey::from_ed_der(document.as_ref()),
            verifying: DecodingKey::from_ed_der(&public),
        };
        key.kid = key.thumbprint();
        Ok(key)
    }

    fn jwk(&self) -> serde_json::Value {
        let x = URL_SAFE_NO_PAD.encode(self.public);
        serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": self.kid, "use": "sig", "alg": "EdDSA" })
    }

    /// RFC 7638: the same key has the same name everywhere.
    fn thumbprint(&self) -> String {
        let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, URL_SAFE_NO_PAD.encode(self.public));
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, members.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const ISSUER: &str = "https://insula.example";
    const AUDIENCE: &str = "https://insula.example/api";

    fn tokens() -> Tokens {
        Tokens::new(ISSUER, AUDIENCE, &[1; 32], Some(&[2; 32])).unwrap()
    }

    fn issued(tokens: &Tokens, now: i64) -> (String, Claims) {
        let scope = Scope::from_claim("Predict deployment:fraud").unwrap();
        let grant = Grant { subject: "ada", client_id: "0123456789abcdef", tenant: "aa", scope: &scope, life_seconds: 600 };
        tokens.issue(&grant, now).unwrap()
    }

    /// A token with this header and these claims, well signed with the service's own key whatever the header says.
    fn forged(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap().sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn good() -> (Value, Value) {
        let tokens = tokens();
        let header = json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": tokens.keys[0].kid });
        (header, serde_json::to_value(issued(&tokens, NOW).1).unwrap())
    }

    #[test]
    fn a_token_verifies_until_it_expires() {
        let tokens = tokens();
        let (token, claims) = issued(&tokens, NOW);
        assert_eq!(*tokens.verify(&token, NOW).unwrap(), claims);
        assert_eq!(claims.exp, NOW + 600);
        assert!(tokens.verify(&token, NOW + 599).is_ok());
        assert!(tokens.verify(&token, NOW + 600).is_err(), "also from the cache");
        assert!(tokens.verify(&token, NOW - 60).is_err(), "from the future");
        assert!(self::tokens().verify(&token, NOW + 600).is_err());
        assert_eq!(Scope::from_claim(&claims.scope).unwrap().to_claim(), "Predict deployment:fraud");
        assert_ne!(issued(&tokens, NOW).1.jti, claims.jti);
    }

    #[test]
    fn every_flipped_character_is_refused() {
        let tokens = tokens();
        let (token, _) = issued(&tokens, NOW);
        tokens.verify(&token, NOW).unwrap();
        for at in 0..token.len() {
            let mut bytes = token.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(tokens.verify(std::str::from_utf8(&bytes).unwrap(), NOW).is_err(), "byte {at}");
        }
        for at in 0..token.len() {
            assert!(tokens.verify(&token[..at], NOW).is_err());
        }
        assert!(tokens.verify(&format!("{token}A"), NOW).is_err());
        assert!(tokens.verify(&"a.b.".repeat(10_000), NOW).is_err());
    }

    #[test]
    fn odd_headers_are_refused() {
        let (header, claims) = good();
        let accepted = |header: &Value| tokens().verify(&forged(header, &claims), NOW).is_ok();
        assert!(accepted(&header), "the control: what follows is refused for its header only");
        for (field, value) in [
            ("alg", json!("none")),
            ("alg", json!("HS256")),
            ("alg", json!("ES256")),
            ("typ", json!("JWT")),
            ("typ", Value::Null),
            ("kid", json!("other")),
            ("kid", Value::Null),
            ("kid", json!("../../etc/passwd")),
            ("jku", json!("https://evil.example/jwks")),
            ("x5u", json!("https://evil.example/cert")),
            ("x5c", json!(["AAAA"])),
            ("jwk", tokens().keys[0].jwk()),
            ("crit", json!(["exp"])),
            ("b64", json!(false)),
        ] {
            let mut odd = header.clone();
            odd[field] = value.clone();
            assert!(!accepted(&odd), "{field}: {value}");
        }
    }

    #[test]
    fn odd_claims_are_refused() {
        let (header, claims) = good();
        let accepted = |claims: &Value| tokens().verify(&forged(&header, claims), NOW).is_ok();
        assert!(accepted(&claims));
        for field in ["iss", "aud", "sub", "exp", "iat", "jti", "client_id", "tenant", "scope"] {
            let mut without = claims.clone();
            without.as_object_mut().unwrap().remove(field);
            assert!(!accepted(&without), "without {field}");
            for odd in [json!(""), Value::Null, json!(["x"]), json!({})] {
                let mut with = claims.clone();
                with[field] = odd.clone();
                assert!(!accepted(&with), "{field}: {odd}");
            }
        }
        for (field, value) in [
            ("iss", json!("https://evil.example")),
            ("aud", json!("https://other.example")),
            ("exp", json!(NOW)),
            ("exp", json!(NOW + TOKEN_LIFE_SECONDS_MAX + 1)),
            ("exp", json!(u64::MAX)),
            ("exp", json!(NOW as f64 + 600.5)),
            ("exp", json!((NOW + 600).to_string())),
            ("iat", json!(NOW + 60)),
            ("admin", json!(true)),
        ] {
            let mut odd = claims.clone();
            odd[field] = value.clone();
            assert!(!accepted(&odd), "{field}: {value}");
        }
        let doubled = format!(r#"{{"sub":"eve",{}"#, &claims.to_string()[1..]);
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(doubled));
        let signature = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap().sign(message.as_bytes());
        assert!(tokens().verify(&format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)), NOW).is_err());
    }

    #[test]
    fn rotation_keeps_the_previous_key_only() {
        let (token, _) = issued(&Tokens::new(ISSUER, AUDIENCE, &[2; 32], None).unwrap(), NOW);
        assert!(tokens().verify(&token, NOW).is_ok(), "signed by the previous key");
        let next = Tokens::new(ISSUER, AUDIENCE, &[3; 32], Some(&[1; 32])).unwrap();
        assert!(next.verify(&token, NOW).is_err(), "two rotations ago");
        assert!(Tokens::new(ISSUER, "https://other.example", &[2; 32], None).unwrap().verify(&token, NOW).is_err());
    }

    #[test]
    fn life_is_bounded() {
        let scope = Scope::all();
        for life_seconds in [0, -1, TOKEN_LIFE_SECONDS_MAX + 1, i64::MAX] {
            let grant = Grant { subject: "a", client_id: "b", tenant: "c", scope: &scope, life_seconds };
            assert!(matches!(tokens().issue(&grant, NOW), Err(Error::Invalid(_))), "{life_seconds}");
        }
    }

    #[test]
    fn the_cache_is_bounded() {
        let tokens = tokens();
        for _ in 0..CACHE_TOKENS_MAX + 50 {
            let (token, _) = issued(&tokens, NOW);
            tokens.verify(&token, NOW).unwrap();
        }
        assert_eq!(tokens.verified.lock().len(), CACHE_TOKENS_MAX);
    }

    #[test]
    fn jwks_hold_public_keys_only() {
        let jwks = tokens().jwks();
        let keys = jwks["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 2);
        for key in keys {
            let members: std::collections::BTreeSet<_> = key.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x"].into());
        }
        // Another implementation's reading of the set verifies our token.
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(jwks).unwrap();
        let (token, claims) = issued(&tokens(), NOW);
        let header = jsonwebtoken::decode_header(&token).unwrap();
        let key = DecodingKey::from_jwk(set.find(header.kid.as_deref().unwrap()).unwrap()).unwrap();
        assert_eq!(jsonwebtoken::decode::<Claims>(&token, &key, &tokens().validation).unwrap().claims, claims);
        // RFC 8037, appendix A.3: the thumbprint of its example key.
        let mut public = [0u8; 32];
        URL_SAFE_NO_PAD.decode_slice_unchecked("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", &mut public).unwrap();
        let example = TokenKey { public, ..TokenKey::from_seed(&[1; 32]).unwrap() };
        assert_eq!(example.thumbprint(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
