//! What became of the predictions of each deployment on this node: counts and times, for the tenant itself. Kept in memory alone, so it
//! begins anew with the node, as it does with other servers of the protocol.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tenancy::act::{DeploymentRead, Predict};
use tenancy::{Permit, Scoped};
use wire::{Inferred, Run};

use crate::deployment::{BATCH_ROWS_MAX, Deployment};
use crate::error::{Error, Result};
use crate::page::{PageRequest, Timestamp};
use crate::platform::Platform;

/// Deployments of all tenants whose counts are kept; who was not asked for longest goes.
const DEPLOYMENTS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// Different numbers of rows whose runs are counted apart.
const BATCHES_MAX: usize = BATCH_ROWS_MAX as usize + 16;
/// Deployments of one tenant that are told at once.
const TOLD_MAX: usize = 10_000;

/// So many of something, and their time together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub count: u64,
    /// Their time together in nanoseconds.
    pub nanos: u64,
}

impl Counted {
    fn add(&mut self, took: Duration) {
        self.count = self.count.saturating_add(1);
        self.nanos = self.nanos.saturating_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// What became of the predictions of one deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that were answered, from the whole request to the whole answer.
    pub succeeded: Counted,
    /// Those that failed. What was refused before the deployment was found is nobody's.
    pub failed: Counted,
    /// When the last one came, in milliseconds since 1970; 0 before the first.
    pub last_millis: u64,
    /// Rows that were answered; where requests are not answered together, each counts as one.
    pub inferences: u64,
    /// Runs of the model that answered them.
    pub executions: u64,
    /// Runs by their rows and their time in the engine, where requests may be answered together.
    pub batches: BTreeMap<u32, Counted>,
}

impl Counts {
    /// Counts the run that an answer tells of. A cell's word: what it can do with it is to spoil its own tenant's counts.
    fn ran(&mut self, run: Option<Run>) {
        self.inferences = self.inferences.saturating_add(run.map_or(1, |run| run.rows.into()));
        self.executions = self.executions.saturating_add(run.map_or(1, |run| u64::from(run.batch > 0)));
        if let Some(run) = run.filter(|run| run.batch > 0 && (self.batches.len() < BATCHES_MAX || self.batches.contains_key(&run.batch))) {
            self.batches.entry(run.batch).or_default().add(Duration::from_nanos(run.nanos));
        }
    }
}

/// Counts of all deployments of this node.
pub(crate) struct Statistics(Mutex<LruCache<Scoped<Box<str>>, Counts>>);

impl Default for Statistics {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(DEPLOYMENTS_MAX)))
    }
}

impl Statistics {
    /// One prediction is over.
    pub(crate) fn count(&self, permit: &Permit<Predict>, took: Duration, answer: Result<&Inferred, &Error>) {
        // Names that nobody deployed would push out those that somebody did.
        if matches!(answer, Err(Error::Kernel(_))) {
            return;
        }
        let mut all = self.0.lock();
        let counts = all.get_or_insert_mut(permit.scoped(Box::<str>::from(permit.resource())), Counts::default);
        match answer {
            Ok(inferred) => {
                counts.succeeded.add(took);
                counts.ran(inferred.run);
            }
            Err(_) => counts.failed.add(took),
        }
        counts.last_millis = u64::try_from(Timestamp::now().millis()).unwrap_or(0);
    }

    fn of(&self, permit: &Permit<DeploymentRead>, name: &str) -> Counts {
        self.0.lock().peek(&permit.scoped(Box::<str>::from(name))).cloned().unwrap_or_default()
    }
}

impl Platform {
    /// Counts of the deployment the permit is about, or of all when it is about none. `version`, when given, must be the one that answers.
    ///
    /// # Errors
    /// Not found.
    pub async fn deployment_statistics(&self, permit: &Permit<DeploymentRead>, version: Option<&str>) -> Result<Vec<(Deployment, Counts)>> {
        let deployments = match permit.resource() {
            "" => self.deployment_all(permit).await?,
            _ => vec![self.deployment_get(permit).await?],
        };
        let answers =
            |deployment: &Deployment| deployment.serving_version.is_some_and(|number| version == Some(number.to_string().as_str()));
        if version.is_some() && !deployments.iter().any(answers) {
            return Err(Error::not_found("deployment version"));
        }
        Ok(deployments
            .into_iter()
            .map(|deployment| {
                let counts = self.statistics().of(permit, deployment.name.as_str());
                (deployment, counts)
            })
            .collect())
    }

    /// Every deployment by name.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn deployment_all(&self, permit: &Permit<DeploymentRead>) -> Result<Vec<Deployment>> {
        let mut all: Vec<Deployment> = Vec::new();
        let mut page = PageRequest { after: None, limit: Some(crate::PAGE_ITEMS_MAX) };
        loop {
            let found = self.deployment_list(permit, &page).await?;
            all.extend(found.items);
            match found.next {
                Some(after) if all.len() < TOLD_MAX => page.after = Some(after),
                _ => return Ok(all),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted_as_triton_does() {
        let mut counts = Counts::default();
        counts.ran(None);
        // Three requests of 1, 2 and 1 rows in one run; one of 5 rows for itself.
        for (rows, batch, nanos) in [(1, 4, 700), (2, 0, 0), (1, 0, 0), (5, 5, 900)] {
            counts.ran(Some(Run { rows, batch, nanos }));
        }
        assert_eq!((counts.inferences, counts.executions), (10, 3));
        let told: Vec<(u32, u64, u64)> = counts.batches.iter().map(|(rows, of)| (*rows, of.count, of.nanos)).collect();
        assert_eq!(told, [(4, 1, 700), (5, 1, 900)]);
        for batch in 1..10_000 {
            counts.ran(Some(Run { rows: u32::MAX, batch, nanos: u64::MAX }));
        }
        assert_eq!(counts.batches.len(), BATCHES_MAX, "whatever a cell says");
    }
}
