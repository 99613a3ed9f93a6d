//! From what a request presents to who it is: keys, tokens, the one-time secret, and what is remembered of them.

use super::*;
use crate::rows::db::blocking;

impl Kernel {
    /// Who presents this. Every failure is the same [`Error::Unauthenticated`].
    ///
    /// # Errors
    /// [`Error::Unauthenticated`]; with several nodes [`Error::Elsewhere`] for an operator, when another node leads.
    pub async fn authenticate(&self, presented: Presented<'_>, request: &RequestId) -> Result<Identity> {
        let identity = self.counted(self.identify(presented, request).await)?;
        if matches!(identity, Identity::Operator(_)) {
            self.lead().await?;
        }
        Ok(identity)
    }

    /// As [`Kernel::authenticate`], for what each node tells of itself: an operator may be one of a node that does not lead. Whatever
    /// he asks of it but [`Operator::observe`] is then [`Error::Unavailable`].
    ///
    /// # Errors
    /// [`Error::Unauthenticated`].
    pub async fn authenticate_here(&self, presented: Presented<'_>, request: &RequestId) -> Result<Identity> {
        self.counted(self.identify(presented, request).await)
    }

    /// Counts refusals. One by one they would let anybody fill the disk, so the service's ledger gets their number now and then.
    fn counted<T>(&self, result: Result<T>) -> Result<T> {
        if matches!(result, Err(Error::Unauthenticated)) {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    async fn identify(&self, presented: Presented<'_>, request: &RequestId) -> Result<Identity> {
        let Presented::Bearer(text) = presented;
        if let Some(key) = credential::Presented::parse(text) {
            let credential = self.credential(key.id).await?;
            let stored = credential.as_ref().map(|credential| &credential.row.secret_mac);
            let matches = key.verify(&self.0.credential_key, stored);
            let credential = credential.filter(|_| matches).ok_or(Error::Unauthenticated)?;
            let scope = Arc::clone(&credential.scope);
            return self.identity(&credential, scope, request);
        }
        let claims = self.0.tokens.verify(text, now_seconds())?;
        let id = CredentialId::parse(&claims.client_id).ok_or(Error::Unauthenticated)?;
        let credential = self.credential(id).await?.ok_or(Error::Unauthenticated)?;
        let same =
            credential.row.tenant.map(|tenant| tenant.hex()).unwrap_or_default() == claims.tenant && credential.row.principal == claims.sub;
        if !same {
            return Err(Error::Unauthenticated);
        }
        let scope = Arc::new(Scope::from_claim(&claims.scope).map_err(|_| Error::Unauthenticated)?);
        self.identity(&credential, scope, request)
    }

    fn identity(&self, credential: &Credential, scope: Arc<Scope>, request: &RequestId) -> Result<Identity> {
        let row = &credential.row;
        let expired = row.expires_at.is_some_and(|at| at <= now_micros());
        if expired || row.revoked_at.is_some() {
            return Err(Error::Unauthenticated);
        }
        self.0.control.credential_touch(&row.id, now_micros());
        match (row.kind, row.tenant) {
            (CredentialKind::Member, Some(tenant)) => {
                let (principal, via, request) = (row.principal.clone(), row.id.clone(), request.clone());
                Ok(Identity::Tenant(Caller { tenant, principal, via, scope, request }))
            }
            (CredentialKind::Operator, None) => Ok(Identity::Operator(Operator::new(self.clone(), row.id.clone(), request.clone()))),
            _ => Err(Error::integrity("a credential of no kind")),
        }
    }

    /// OAuth 2.0 client credentials (RFC 6749, 4.4): the id of an API key and the key itself buy a short-lived access token.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], or [`Error::Invalid`] when the asked scope is not inside the key's.
    pub async fn token_exchange(&self, client_id: &str, client_secret: &str, scope: Option<&str>) -> Result<AccessToken> {
        self.counted(self.exchange(client_id, client_secret, scope).await)
    }

    async fn exchange(&self, client_id: &str, client_secret: &str, scope: Option<&str>) -> Result<AccessToken> {
        let key = credential::Presented::parse(client_secret).ok_or(Error::Unauthenticated)?;
        if key.id.as_str() != client_id {
            return Err(Error::Unauthenticated);
        }
        let credential = self.credential(key.id).await?;
        let matches = key.verify(&self.0.credential_key, credential.as_ref().map(|credential| &credential.row.secret_mac));
        let credential = credential.filter(|_| matches).ok_or(Error::Unauthenticated)?;
        let identity = self.identity(&credential, Arc::clone(&credential.scope), &RequestId::fresh())?;
        let tenant = match &identity {
            Identity::Tenant(caller) => caller.tenant.hex(),
            Identity::Operator(_) => return Err(Error::Invalid("operator keys are used as they are, not exchanged".to_owned())),
        };
        let scope = match scope.filter(|text| !text.is_empty()) {
            None => (*credential.scope).clone(),
            Some(text) => {
                let asked = Scope::from_claim(text)?;
                if !credential.scope.covers(&asked) {
                    return Err(Error::Invalid("the asked scope is wider than the key's".to_owned()));
                }
                asked
            }
        };
        let now = now_seconds();
        let left = credential.row.expires_at.map_or(TOKEN_LIFE_SECONDS_MAX, |at| at / 1_000_000 - now);
        let life_seconds = left.min(TOKEN_LIFE_SECONDS_MAX);
        let grant = Grant { subject: &credential.row.principal, client_id, tenant: &tenant, scope: &scope, life_seconds };
        let (token, _) = self.0.tokens.issue(&grant, now)?;
        Ok(AccessToken { token, expires_in_seconds: u64::try_from(life_seconds).unwrap_or_default(), scope: scope.to_claim() })
    }

    /// Turns the one-time secret into the first operator key.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] when it is wrong or was used.
    pub async fn bootstrap(&self, secret: &str, request: &RequestId) -> Result<IssuedKey> {
        self.lead().await?;
        let path = self.0.config.keystore_dir.join(BOOTSTRAP_FILE);
        // The row alone opens nothing: who writes in the database could put a spent one back, but not the file in the keystore.
        let waits = path.exists();
        let stored = self.0.control.meta(BOOTSTRAP_META).await?.filter(|_| waits);
        let stored: Option<[u8; 32]> = stored.and_then(|bytes| bytes.try_into().ok());
        if !credential::verify_bootstrap(secret, &self.0.credential_key, stored.as_ref()) {
            return self.counted(Err(Error::Unauthenticated));
        }
        let expires_at = now_micros().saturating_add(FIRST_KEY_DAYS * 86_400_000_000);
        let (issued, row) = self.key_made(None, "operator", "bootstrap", "first operator key", Scope::all(), Some(expires_at))?;
        // In one transaction: of two at once, one finds it spent; and it is never spent for nothing.
        if !self.0.control.credential_insert_spending(BOOTSTRAP_META, &row).await? {
            return self.counted(Err(Error::Unauthenticated));
        }
        removed(&path);
        self.0.record("operator", "bootstrap", request, "OperatorBootstrap", "service", Outcome::Allowed, "one-time secret").await?;
        Ok(issued)
    }

    /// Makes a key and the row to store.
    pub(crate) fn key_made(
        &self,
        tenant: Option<TenantId>,
        principal: &str,
        created_by: &str,
        name: &str,
        scope: Scope,
        expires_at: Option<i64>,
    ) -> Result<(IssuedKey, CredentialRow)> {
        let issued = credential::issue(&self.0.credential_key)?;
        let row = CredentialRow {
            id: issued.id.as_str().to_owned(),
            kind: if tenant.is_some() { CredentialKind::Member } else { CredentialKind::Operator },
            tenant,
            principal: principal.to_owned(),
            secret_mac: issued.secret_mac,
            scopes: serde_json::to_string(&scope).map_err(Error::internal)?,
            expires_at,
            created_at: now_micros(),
            created_by: created_by.to_owned(),
            revoked_at: None,
            last_used_at: None,
            name: name.to_owned(),
        };
        Ok((IssuedKey::new(issued.text, &row, scope), row))
    }

    async fn credential(&self, id: CredentialId) -> Result<Option<Arc<Credential>>> {
        let known = self.0.credentials.lock().get(&id).map(Arc::clone);
        if let Some(known) = known.filter(|known| self.0.remembers(known.row.tenant)) {
            return Ok(Some(known));
        }
        let forgotten = self.0.forgotten.load(Ordering::Acquire);
        let Some(row) = self.0.control.credential_by_id(id.as_str()).await? else { return Ok(None) };
        let scope = Arc::new(serde_json::from_str(&row.scopes).map_err(Error::integrity)?);
        let credential = Arc::new(Credential { row, scope });
        let mut held = self.0.credentials.lock();
        // Else a revocation came in between, and what was read may be from before it; or it is another node that will know of one.
        if self.0.remembers(credential.row.tenant) && forgotten == self.0.forgotten.load(Ordering::Acquire) {
            held.put(id, Arc::clone(&credential));
        }
        Ok(Some(credential))
    }

    /// Forgets credentials held in memory: after a revocation, so that it takes effect on the next request.
    pub(crate) fn credentials_forget(&self, which: impl Fn(&CredentialRow) -> bool) {
        let mut held = self.0.credentials.lock();
        self.0.forgotten.fetch_add(1, Ordering::AcqRel);
        let gone: Vec<_> = held.iter().filter(|(_, credential)| which(&credential.row)).map(|(id, _)| *id).collect();
        for id in gone {
            held.pop(&id);
        }
    }

    /// Revokes a key of a tenant (`None`: of the operator's); whether it was there and not revoked yet.
    pub(crate) async fn key_revoke(&self, tenant: Option<TenantId>, id: String) -> Result<bool> {
        let kernel = self.clone();
        unbroken(async move {
            let revoked = kernel.0.control.credential_revoke(tenant, &id, now_micros()).await;
            kernel.credentials_forget(|row| row.id == id);
            revoked
        })
        .await
    }

    /// Revokes all keys of a member; how many.
    pub(crate) async fn member_keys_revoke(&self, tenant: TenantId, member: String) -> Result<u64> {
        let kernel = self.clone();
        unbroken(async move {
            let revoked = kernel.0.control.credentials_revoke_of(tenant, &member, now_micros()).await;
            kernel.credentials_forget(|row| row.tenant == Some(tenant) && row.principal == member);
            revoked
        })
        .await
    }

    /// The leader's: on the very first start it makes the one-time secret; later it removes the file of one that was spent by a node that
    /// died over it.
    pub(super) async fn bootstrap_settle(&self) -> Result<()> {
        let path = self.0.config.keystore_dir.join(BOOTSTRAP_FILE);
        // A leader from before may still be at it.
        let kernel = self.clone();
        let _alone = blocking(move || kernel.0.root.alone()).await?;
        if self.0.control.meta("bootstrap_made").await?.is_some() {
            if self.0.control.meta(BOOTSTRAP_META).await?.is_none() && path.exists() {
                removed(&path);
            }
            return Ok(());
        }
        let (text, mac) = credential::issue_bootstrap(&self.0.credential_key)?;
        write_private(&path, text.as_bytes())?;
        self.0.control.meta_set(BOOTSTRAP_META, &mac).await?;
        self.0.control.meta_set("bootstrap_made", b"1").await
    }

    /// Where the one-time secret waits, if it does.
    pub(super) async fn bootstrap_secret(&self) -> Result<Option<PathBuf>> {
        let path = self.0.config.keystore_dir.join(BOOTSTRAP_FILE);
        Ok(self.0.control.meta(BOOTSTRAP_META).await?.map(|_| path))
    }
}

fn removed(secret: &Path) {
    if let Err(error) = std::fs::remove_file(secret) {
        tracing::error!(%error, file = %secret.display(), "the file of the spent one-time secret stays: remove it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(dir: &Path) -> Kernel {
        let config = KernelConfig {
            data_dir: dir.join("data"),
            keystore_dir: dir.join("keystore"),
            issuer: "https://localhost".to_owned(),
            stores_open_max: 4,
            limits: Limits::default(),
            stores: StoresConfig::default(),
        };
        Kernel::open(config).await.unwrap().0
    }

    #[tokio::test]
    async fn a_spent_secret_stays_spent_when_its_row_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = open(dir.path()).await;
        let file = dir.path().join("keystore").join(BOOTSTRAP_FILE);
        let secret = std::fs::read_to_string(&file).unwrap().trim().to_owned();
        let row = kernel.0.control.meta(BOOTSTRAP_META).await.unwrap().unwrap();
        kernel.bootstrap(&secret, &RequestId::fresh()).await.unwrap();
        assert!(!file.exists());
        kernel.0.control.meta_set(BOOTSTRAP_META, &row).await.unwrap();
        assert!(matches!(kernel.bootstrap(&secret, &RequestId::fresh()).await, Err(Error::Unauthenticated)));
        kernel.close().await.unwrap();
    }

    #[tokio::test]
    async fn the_file_of_a_secret_that_was_spent_by_a_process_that_died_over_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = open(dir.path()).await;
        let file = dir.path().join("keystore").join(BOOTSTRAP_FILE);
        let text = std::fs::read(&file).unwrap();
        kernel.bootstrap(str::from_utf8(&text).unwrap().trim(), &RequestId::fresh()).await.unwrap();
        std::fs::write(&file, text).unwrap();
        kernel.close().await.unwrap();
        drop(kernel);
        open(dir.path()).await.close().await.unwrap();
        assert!(!file.exists());
    }
}
