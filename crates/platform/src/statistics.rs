//! What became of the predictions of each deployment on this node: counts and times, for the tenant itself. Kept in memory alone, so it
//! begins anew with the node, as it does with other servers of the protocol.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tenancy::act::{DeploymentRead, Predict};
use tenancy::{Permit, Scoped};

use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::page::{PageRequest, Timestamp};
use crate::platform::Platform;

/// Deployments of all tenants whose counts are kept; who was not asked for longest goes.
const DEPLOYMENTS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that were answered, from the whole request to the whole answer.
    pub succeeded: Counted,
    /// Those that failed. What was refused before the deployment was found is nobody's.
    pub failed: Counted,
    /// When the last one came, in milliseconds since 1970; 0 before the first.
    pub last_millis: u64,
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
    pub(crate) fn count(&self, permit: &Permit<Predict>, took: Duration, failed: Option<&Error>) {
        // Names that nobody deployed would push out those that somebody did.
        if matches!(failed, Some(Error::Kernel(_))) {
            return;
        }
        let mut all = self.0.lock();
        let counts = all.get_or_insert_mut(permit.scoped(Box::<str>::from(permit.resource())), Counts::default);
        match failed {
            None => counts.succeeded.add(took),
            Some(_) => counts.failed.add(took),
        }
        counts.last_millis = u64::try_from(Timestamp::now().millis()).unwrap_or(0);
    }

    fn of(&self, permit: &Permit<DeploymentRead>, name: &str) -> Counts {
        self.0.lock().peek(&permit.scoped(Box::<str>::from(name))).copied().unwrap_or_default()
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
