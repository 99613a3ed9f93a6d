//! Whether a tenant is kept apart from the others, really tried: with its own role, its own access key and its own files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;

use crate::anchor::Anchor;
use crate::blobs::{IsolationProbe, ProbeOutcome};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::keyring::Keyring;
use crate::name::{Name, TenantId, hex};
use crate::operator::{Operator, resource};
use crate::place::{ObjectsPlace, Placement, RowsPlace};
use crate::rows::postgres::probe::Probe;
use crate::rows::{Place, file_opens};
use crate::seal::{self, Key};

/// Other tenants that are tried.
const OTHERS_MAX: usize = 200;

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

/// What all attempts brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Isolation {
    /// One of each attempt.
    pub findings: Vec<Finding>,
    /// Other tenants that were tried.
    pub others_tried: usize,
    /// Of so many that have rows or objects on a server; at most 200 of them are tried.
    pub others: usize,
}

impl Isolation {
    /// Everything is as it must be.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.findings.iter().all(Finding::holds)
    }
}

impl From<IsolationProbe> for Finding {
    fn from(probe: IsolationProbe) -> Self {
        let IsolationProbe { bucket, act, own, outcome, answer } = probe;
        let target = if bucket == "*" { "the S3 server".to_owned() } else { format!("bucket {bucket}") };
        let detail = match outcome {
            ProbeOutcome::NotProven => format!("neither done nor refused: {answer}"),
            ProbeOutcome::Holds | ProbeOutcome::Broken => answer,
        };
        // What is not proven counts as broken, in either direction.
        let refused = if outcome == ProbeOutcome::Holds { !own } else { own };
        Self { probe: act.to_owned(), target, refused, expected: !own, detail }
    }
}

impl Operator {
    /// Tries with the tenant's own role, access key and files to reach what is not its own. Nothing is changed.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unavailable`] when a store does not answer.
    pub async fn verify_isolation(&self, name: &Name) -> Result<Isolation> {
        let row = self.named("IsolationVerify", name).await?;
        self.failing("IsolationVerify", &resource(row.id), verify(self.kernel(), row.id, &Placement::parse(&row.placement)?)).await
    }
}

async fn verify(kernel: &Kernel, id: TenantId, placement: &Placement) -> Result<Isolation> {
    let mut findings = files(kernel, id)?;
    if placement.rows == RowsPlace::Embedded {
        findings.extend(file(kernel, id).await?);
        if placement.objects == ObjectsPlace::Folder {
            // It has no credential anywhere.
            return Ok(Isolation { findings, others_tried: 0, others: 0 });
        }
    }
    let neighbours = kernel.neighbours(id).await?;
    let on_server = |place: &Placement| place.rows != RowsPlace::Embedded || place.objects != ObjectsPlace::Folder;
    let others: Vec<_> = neighbours.iter().filter(|(_, place)| place.all().any(on_server)).collect();
    let tried = others.get(..OTHERS_MAX).unwrap_or(&others);
    if let Place::Postgres(rows, _) = kernel.rows_place(id, placement, None).await? {
        let tiers: Vec<_> = tried.iter().flat_map(|(other, places)| places.all().map(|place| (*other, place.rows.tier()))).collect();
        for probe in Probe::all(placement.rows.tier(), &tiers) {
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
    if let ObjectsPlace::Bucket { name: own, .. } = &placement.objects {
        let mut buckets: Vec<_> = tried.iter().flat_map(|(_, places)| places.buckets()).map(str::to_owned).collect();
        // Whether somebody has the same one is asked of all, not only of those that are tried.
        if !buckets.contains(own) && others.iter().flat_map(|(_, places)| places.buckets()).any(|bucket| bucket == own) {
            buckets.push(own.clone());
        }
        let probes = kernel.0.stores.s3()?.verify_isolation(id, &placement.objects, &buckets).await?;
        findings.extend(probes.into_iter().map(Finding::from));
    }
    Ok(Isolation { findings, others_tried: tried.len(), others: others.len() })
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
    if let Some(other) = kernel.0.control.tenants_page(None, 2).await?.into_iter().map(|row| row.id).find(|other| *other != id) {
        let keyring = Keyring::load(&kernel.0.root, other, &kernel.0.control.keys_of(other).await?)?;
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
    use crate::blobs::tests::home::{config, server};
    use crate::place::{S3Credentials, Tier};
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
        let findings = operator.verify_isolation(&name).await.unwrap().findings;
        assert!(findings.len() == 4 && findings.iter().all(Finding::holds), "{findings:#?}");
        assert!(findings.iter().any(|finding| !finding.expected), "a control");
        // The defence off: the probe sees it.
        let id = kernel.0.control.tenant_by_name(&name).await.unwrap().unwrap().id;
        fs::set_permissions(kernel.tenant_dir(id), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!operator.verify_isolation(&name).await.unwrap().holds());
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
            let Isolation { findings, others_tried, others } = operator.verify_isolation(&name).await.unwrap();
            assert_eq!((others_tried, others), (5, 5));
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

    #[tokio::test]
    async fn an_access_key_that_opens_more_than_its_bucket_is_found_out() {
        let Some(database) = scratch().await else { return };
        let Some(server) = server() else { return };
        drop(database.open().await);
        let dir = tempfile::tempdir().unwrap();
        let s3 = config(server, S3Credentials::Iam { endpoint: None });
        let stores = StoresConfig { postgres: Some(database.config.clone()), s3: Some(s3.clone()), ..StoresConfig::default() };
        let kernel = kernel(dir.path(), stores).await;
        let operator = operator(&kernel, dir.path()).await;
        two_of(&operator, Tier::Pooled).await;
        two_of(&operator, Tier::Embedded).await;
        let name: Name = "pooled1".parse().unwrap();
        let tried = async || operator.verify_isolation(&name).await.unwrap();
        let placed = async |name: &str| {
            let row = kernel.0.control.tenant_by_name(&name.parse().unwrap()).await.unwrap().unwrap();
            (row.id, Placement::parse(&row.placement).unwrap())
        };
        let replace = async |id, placement: &Placement| {
            let replaced = |found: &mut Placement| {
                found.clone_from(placement);
                Ok(())
            };
            kernel.0.control.tenant_place(id, None, replaced).await.unwrap();
        };
        let (mine, neighbour) = (placed("pooled1").await, placed("pooled2").await);
        let bucket = |placement: &Placement| format!("bucket {}", placement.buckets().next().unwrap());
        let found = tried().await;
        assert!(found.holds(), "{found:#?}");
        assert_eq!((found.others_tried, found.others), (1, 1), "who lives in the data folder has nothing to be reached there");
        let on = |found: &Isolation, target: &str| found.findings.iter().filter(|finding| finding.target == target).count();
        assert_eq!((on(&found, &bucket(&mine.1)), on(&found, &bucket(&neighbour.1)), on(&found, "the S3 server")), (6, 7, 2));
        assert!(found.findings.iter().any(|finding| finding.target == bucket(&mine.1) && !finding.expected), "a control");

        // The service's own key opens every bucket: a tenant that has it must be found out.
        let mut open = mine.1.clone();
        let ObjectsPlace::Bucket { name: own, access_key_id, sealed_secret } = &mut open.objects else { panic!("no bucket") };
        access_key_id.clone_from(&s3.access_key_id);
        *sealed_secret = kernel.0.stores.s3().unwrap().sealed(mine.0, own, &s3.secret_access_key);
        replace(mine.0, &open).await;
        let found = tried().await;
        let broken = |found: &Isolation, target: &str| found.findings.iter().any(|finding| finding.target == target && !finding.holds());
        assert!(!found.holds() && broken(&found, &bucket(&neighbour.1)) && broken(&found, "the S3 server"), "{found:#?}");
        assert!(!broken(&found, &bucket(&mine.1)));

        // Two in one bucket, even where the other one only used to live.
        replace(mine.0, &mine.1).await;
        let elsewhere = Placement { previous: Some(Box::new(mine.1.clone())), ..neighbour.1.clone() };
        replace(neighbour.0, &elsewhere).await;
        let found = tried().await;
        assert!(found.findings.iter().any(|finding| finding.probe == "share" && !finding.holds()), "{found:#?}");
        for (id, placement) in [mine, neighbour] {
            kernel.objects_place_destroy(id, &placement.objects).await.unwrap();
        }
        drop((operator, kernel));
        database.drop().await;
    }

    #[test]
    fn what_is_not_proven_does_not_hold() {
        for (own, outcome, holds) in [
            (true, ProbeOutcome::Holds, true),
            (true, ProbeOutcome::Broken, false),
            (true, ProbeOutcome::NotProven, false),
            (false, ProbeOutcome::Holds, true),
            (false, ProbeOutcome::Broken, false),
            (false, ProbeOutcome::NotProven, false),
        ] {
            let probe = IsolationProbe { bucket: "b".to_owned(), act: "get", own, outcome, answer: "501".to_owned() };
            let finding = Finding::from(probe);
            assert_eq!((finding.holds(), finding.expected), (holds, !own), "{own} {outcome:?}");
        }
    }
}
