//! Whether a tenant is kept apart from the others, really tried: with its own role, its own access key and its own files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;

use crate::anchor::Anchor;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::keyring::Keyring;
use crate::name::{Name, TenantId, hex};
use crate::operator::{Operator, resource};
use crate::place::{Placement, Tier};
use crate::rows::postgres::probe::Probe;
use crate::rows::{Place, file_opens};
use crate::seal::{self, Key};

/// Other tenants that are tried.
const OTHERS_MAX: u32 = 200;

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was tried.
    pub probe: String,
    /// On what.
    pub target: String,
    /// Whether it was refused.
    pub refused: bool,
    /// Whether it must be. What must not is a control: a probe that can do nothing proves nothing.
    pub expected: bool,
    /// What came back.
    pub detail: String,
}

impl Finding {
    /// It is as it must be.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.refused == self.expected
    }
}

impl Operator {
    /// Tries with the tenant's own role and files to reach what is not its own. Nothing is changed.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unavailable`] when a store does not answer.
    pub async fn verify_isolation(&self, name: &Name) -> Result<Vec<Finding>> {
        let row = self.named("IsolationVerify", name).await?;
        self.failing("IsolationVerify", &resource(row.id), async {
            let (kernel, placement) = (self.kernel(), Placement::parse(&row.placement)?);
            let mut findings = files(kernel, row.id)?;
            match kernel.rows_place(row.id, &placement, None).await? {
                Place::File => findings.extend(file(kernel, row.id).await?),
                Place::Postgres(rows, _) => {
                    for probe in Probe::all(placement.rows.tier(), &others(kernel, row.id).await?) {
                        let attempt = probe.attempt(&rows).await?;
                        findings.push(Finding {
                            probe: probe.act.to_owned(),
                            target: probe.target.clone(),
                            refused: attempt.refused,
                            expected: probe.expected,
                            detail: attempt.detail,
                        });
                    }
                }
            }
            Ok(findings)
        })
        .await
    }
}

async fn others(kernel: &Kernel, id: TenantId) -> Result<Vec<(TenantId, Tier)>> {
    let rows = kernel.0.control.tenants_page(None, OTHERS_MAX).await?;
    let others = rows.iter().filter(|row| row.id != id);
    others.map(|row| Ok((row.id, Placement::parse(&row.placement)?.rows.tier()))).collect()
}

/// Nobody but the service's own user can enter the tenant's folder, or read a file in it.
fn files(kernel: &Kernel, id: TenantId) -> Result<Vec<Finding>> {
    let dir = kernel.tenant_dir(id);
    let mut open = Vec::new();
    let mode = |path: &Path| Ok::<_, Error>(fs::metadata(path)?.permissions().mode() & 0o777);
    let own = mode(&dir)?;
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        if path.is_file() && mode(&path)? & 0o077 != 0 {
            open.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    let closed = own & 0o077 == 0;
    Ok(vec![Finding {
        probe: "enter as another user of the machine".to_owned(),
        target: "the tenant's folder".to_owned(),
        refused: closed,
        expected: true,
        detail: format!("mode {own:o}, {} files that others could read if they came in", open.len()),
    }])
}

/// A copy of the tenant's file opens with its key, and with no other's.
async fn file(kernel: &Kernel, id: TenantId) -> Result<Vec<Finding>> {
    let from = kernel.tenant_dir(id).join("rows.db");
    let copy = kernel.0.config.data_dir.join(format!("probe-{}", hex(&seal::random::<16>()?)));
    let keyring = Keyring::load(&kernel.0.root, id, &kernel.0.control.keys_of(id).await?)?;
    let mut keys = vec![("its own key".to_owned(), false, keyring.rows_key().clone()), ("a random key".to_owned(), true, Key::random()?)];
    if let Some((other, _)) = others(kernel, id).await?.first() {
        let keyring = Keyring::load(&kernel.0.root, *other, &kernel.0.control.keys_of(*other).await?)?;
        keys.push(("another tenant's key".to_owned(), true, keyring.rows_key().clone()));
    }
    let mut findings = Vec::new();
    for (target, expected, key) in keys {
        fs::copy(&from, &copy)?;
        let opened = file_opens(&copy, &key, kernel.0.anchors.detached(id, Anchor::default())).await;
        for name in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{name}", copy.display()));
        }
        let detail = match &opened {
            Ok(()) => "opens".to_owned(),
            Err(error) => error.to_string(),
        };
        let refused = matches!(opened, Err(Error::Integrity(_)));
        findings.push(Finding { probe: "open the tenant's rows".to_owned(), target, refused, expected, detail });
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::postgres::tests::scratch;
    use crate::{Identity, KernelConfig, Limits, Presented, RequestId, StoresConfig, TenantSpec};

    async fn operator(kernel: &Kernel, dir: &Path) -> Operator {
        let secret = fs::read_to_string(dir.join("keystore/bootstrap.secret")).unwrap();
        let key = kernel.bootstrap(secret.trim(), &RequestId::fresh()).await.unwrap();
        match kernel.authenticate(Presented::Bearer(key.secret()), &RequestId::fresh()).await.unwrap() {
            Identity::Operator(operator) => operator,
            Identity::Tenant(_) => panic!("an operator's key"),
        }
    }

    async fn kernel(dir: &Path, stores: StoresConfig) -> Kernel {
        let config = KernelConfig {
            data_dir: dir.join("data"),
            keystore_dir: dir.join("keystore"),
            issuer: "https://localhost".to_owned(),
            stores_open_max: 16,
            limits: Limits::default(),
            stores,
        };
        Kernel::open(config).await.unwrap().0
    }

    async fn two_of(operator: &Operator, tier: Tier) {
        for number in 1..=2 {
            let spec = TenantSpec {
                name: format!("{tier}{number}").parse().unwrap(),
                admin: "ada".parse().unwrap(),
                limits: None,
                tier: Some(tier),
            };
            operator.tenant_create(spec).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_embedded_tenant_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path(), StoresConfig::default()).await;
        let operator = operator(&kernel, dir.path()).await;
        two_of(&operator, Tier::Embedded).await;
        let name: Name = "embedded1".parse().unwrap();
        let findings = operator.verify_isolation(&name).await.unwrap();
        assert!(findings.len() == 4 && findings.iter().all(Finding::holds), "{findings:#?}");
        assert!(findings.iter().any(|finding| !finding.expected), "a control");
        // The defence off: the probe sees it.
        let id = kernel.0.control.tenant_by_name(&name).await.unwrap().unwrap().id;
        fs::set_permissions(kernel.tenant_dir(id), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!operator.verify_isolation(&name).await.unwrap().iter().all(Finding::holds));
    }

    #[tokio::test]
    async fn tenants_on_a_server_are_closed_to_each_other() {
        let Some(database) = scratch().await else { return };
        drop(database.open().await);
        let dir = tempfile::tempdir().unwrap();
        let stores = StoresConfig { postgres: Some(database.config.clone()), ..StoresConfig::default() };
        let kernel = kernel(dir.path(), stores).await;
        let operator = operator(&kernel, dir.path()).await;
        let tiers = [Tier::Pooled, Tier::Schema, Tier::Database];
        for tier in tiers {
            two_of(&operator, tier).await;
        }
        for tier in tiers {
            let name: Name = format!("{tier}1").parse().unwrap();
            let findings = operator.verify_isolation(&name).await.unwrap();
            let broken: Vec<_> = findings.iter().filter(|finding| !finding.holds()).collect();
            assert!(broken.is_empty() && findings.len() > 8, "{tier}: {broken:#?}");
            assert!(findings.iter().any(|finding| !finding.expected), "a control");
        }
        for tier in [Tier::Schema, Tier::Database] {
            for number in 1..=2 {
                let id = kernel.0.control.tenant_by_name(&format!("{tier}{number}").parse().unwrap()).await.unwrap().unwrap().id;
                kernel.0.stores.postgres().unwrap().destroy(id, tier).await.unwrap();
            }
        }
        drop((operator, kernel));
        database.drop().await;
    }
}
