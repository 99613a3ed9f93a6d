//! What a deployment means at one epoch of its tenant: who answers, who gets a share, who only listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenancy::Permit;
use tenancy::act::Predict;
use wire::{Batching, Run};

use super::{Island, SlotKey};
use crate::deployment::{Deployment, Serving, VersionAnswers, serving_for};
use crate::error::{Error, Result};
use crate::model::Loadable;
use crate::rollout::{Broken, Watch, chosen};

/// A version as it answers under a deployment's name.
pub(super) struct Resolved {
    pub(super) key: SlotKey,
    pub(super) version: String,
    pub(super) sha256: String,
    pub(super) bytes: u64,
    pub(super) resident_bytes: u64,
    pub(super) counted: Arc<Counted>,
}

impl Resolved {
    /// What it will take when it is loaded, in bytes.
    pub(super) fn expected_bytes(&self) -> u64 {
        if self.resident_bytes > 0 { self.resident_bytes } else { self.bytes.saturating_mul(super::RESIDENT_PER_BYTE) }
    }
}

/// What one version of a deployment did.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) answered: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) shadow_answered: AtomicU64,
    pub(super) shadow_failed: AtomicU64,
    pub(super) shadow_dropped: AtomicU64,
    runs: AtomicU64,
    rows: AtomicU64,
}

impl Counted {
    /// What a cell says of the run behind an answer.
    pub(super) fn ran(&self, run: Run) {
        self.runs.fetch_add(u64::from(run.batch > 0), Ordering::Relaxed);
        self.rows.fetch_add(run.rows.into(), Ordering::Relaxed);
    }
}

/// Where predictions of a deployment go.
pub(super) struct Routes {
    epoch: u64,
    stable: Arc<Resolved>,
    canary: Option<Trying>,
    pub(super) shadow: Option<Arc<Resolved>>,
}

/// A canary and the eye on it.
struct Trying {
    /// None when it cannot answer.
    resolved: Option<Arc<Resolved>>,
    weight_percent: u32,
    watch: Option<Arc<Watch>>,
}

impl Trying {
    /// The canary, unless it is out.
    fn open(&self) -> Option<(&Arc<Resolved>, Option<&Watch>)> {
        let watch = self.watch.as_deref();
        self.resolved.as_ref().filter(|_| !watch.is_some_and(Watch::is_out)).map(|resolved| (resolved, watch))
    }
}

impl Routes {
    /// Who answers this request, and who watches that. `version`, when given, must be one that answers.
    pub(super) fn pick(&self, version: Option<&str>, request: &str) -> Result<(&Arc<Resolved>, Option<&Watch>)> {
        let canary = self.canary.as_ref().and_then(|canary| Some((canary.weight_percent, canary.open()?)));
        match (version, canary) {
            (None, Some((weight_percent, canary))) if chosen(request, weight_percent) => Ok(canary),
            (None, _) => Ok((&self.stable, None)),
            (Some(version), _) if version == self.stable.version => Ok((&self.stable, None)),
            (Some(version), Some((_, canary))) if version == canary.0.version => Ok(canary),
            (Some(_), _) => Err(Error::not_found("deployment version")),
        }
    }

    /// A canary that broke its rules, told once.
    pub(super) fn untold(&self) -> Option<Broken> {
        self.canary.as_ref()?.watch.as_ref()?.untold()
    }

    fn keys(&self) -> impl Iterator<Item = &SlotKey> {
        let canary = self.canary.as_ref().and_then(|canary| canary.resolved.as_ref());
        [Some(&self.stable), canary].into_iter().flatten().map(|resolved| &resolved.key)
    }
}

impl Island {
    /// Where predictions of the permit's deployment go now: from the cache while the tenant's epoch is the same, else from the rows.
    pub(super) async fn resolve(&self, permit: &Permit<Predict>) -> Result<Arc<Routes>> {
        let epoch = permit.epoch();
        let known = self.resolved.lock().get(permit.resource()).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.epoch == epoch) {
            return Ok(Arc::clone(known));
        }
        match serving_for(permit).await {
            Ok(serving) => {
                let routes = Arc::new(self.routes(epoch, permit.resource(), serving, known.as_deref()));
                self.resolved.lock().put(permit.resource().into(), Arc::clone(&routes));
                self.forget(known, Some(&routes));
                Ok(routes)
            }
            Err(error) => {
                self.resolved.lock().pop(permit.resource());
                self.forget(known, None);
                Err(error)
            }
        }
    }

    fn routes(&self, epoch: u64, name: &str, serving: Serving, known: Option<&Routes>) -> Routes {
        let name: Arc<str> = known.map_or_else(|| name.into(), |known| Arc::clone(&known.stable.key.deployment));
        let Serving { deployment, stable, canary, shadow } = serving;
        let batching = deployment.batching.map(Into::into);
        let resolved = |loadable: Loadable| Arc::new(self.resolved(&name, loadable, batching));
        let canary = canary.map(|canary| {
            let watch = watch(&deployment, canary.as_ref().map_or(0, |canary| canary.number), known);
            let weight_percent = deployment.canary.as_ref().map_or(0, |canary| canary.weight_percent);
            match canary {
                Ok(found) => Trying { resolved: Some(resolved(found)), weight_percent, watch },
                Err(reason) => {
                    watch.as_ref().inspect(|watch| watch.fail(reason));
                    Trying { resolved: None, weight_percent, watch }
                }
            }
        });
        Routes { epoch, stable: resolved(stable), canary, shadow: shadow.map(|loadable| Arc::new(self.resolved(&name, loadable, None))) }
    }

    fn resolved(&self, name: &Arc<str>, loadable: Loadable, batching: Option<Batching>) -> Resolved {
        let Loadable { number, onnx, blob, resident_bytes } = loadable;
        let counted = Arc::clone(self.counted.lock().get_or_insert((Arc::clone(name), number), Arc::default));
        let key = SlotKey { deployment: Arc::clone(name), version: number, blob, batching };
        Resolved { key, version: number.to_string(), sha256: onnx.sha256, bytes: onnx.bytes, resident_bytes, counted }
    }

    /// Models that no longer answer leave the cell, behind what was sent to them before.
    fn forget(&self, known: Option<Arc<Routes>>, now: Option<&Routes>) {
        let cell = self.serving.lock().clone();
        let (Some(known), Some(cell)) = (known, cell) else { return };
        let stays = |key: &SlotKey| now.is_some_and(|now| now.keys().any(|stays| stays == key));
        known.keys().filter(|key| !stays(key)).for_each(|key| cell.unload(key));
    }

    /// What is counted, by deployment and version.
    pub(in crate::cells) fn answers(&self) -> Vec<VersionAnswers> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counted = self.counted.lock();
        let answers = counted.iter().map(|((deployment, version), counted)| VersionAnswers {
            deployment: deployment.to_string(),
            version: *version,
            answered: get(&counted.answered),
            failed: get(&counted.failed),
            shadow_answered: get(&counted.shadow_answered),
            shadow_failed: get(&counted.shadow_failed),
            shadow_dropped: get(&counted.shadow_dropped),
            runs: get(&counted.runs),
            rows: get(&counted.rows),
        });
        let mut answers: Vec<VersionAnswers> = answers.collect();
        answers.sort_by(|a, b| (&a.deployment, a.version).cmp(&(&b.deployment, b.version)));
        answers
    }
}

/// The eye on a canary: the same one as before while the deployment asks for the same.
fn watch(deployment: &Deployment, version: u64, known: Option<&Routes>) -> Option<Arc<Watch>> {
    let rules = deployment.rollback_on.clone()?;
    let same = known.and_then(|known| known.canary.as_ref()?.watch.clone());
    let since = deployment.updated_at;
    let new = || Arc::new(Watch::new(rules, since, version, &deployment.updated_by));
    Some(same.filter(|watch| watch.is_of(since, version)).unwrap_or_else(new))
}
