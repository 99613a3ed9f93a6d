//! The platform as one value: everything that runs behind the operations, started and stopped together.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tenancy::act::Act;
use tenancy::{Compute, IslandToken, IsolationClass, Kernel, Permit};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::cells::{Cells, Owner};
use crate::config::PlatformConfig;
use crate::page::Timestamp;
use crate::statistics::Statistics;
use crate::stats::{Counters, PlatformStats};
use crate::tracking::index::Tracking;
use crate::training::Scheduler;

/// A look for orders to erase without being woken.
const ERASURE_LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two looks for what can no longer be restored.
const RETENTION_LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a graceful stop waits for its tasks.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(20);

/// Why the platform does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The jail is below its floor, or its program does not run.
    #[error(transparent)]
    Jail(#[from] jail::JailError),
    /// The kernel's queue cannot be read.
    #[error(transparent)]
    Kernel(#[from] tenancy::Error),
    /// The start was interrupted.
    #[error("the start was interrupted: {0}")]
    Interrupted(String),
}

/// What the service does, given permits. Cheap to clone.
#[derive(Clone)]
pub struct Platform(Arc<Inner>);

struct Inner {
    kernel: Kernel,
    cells: Cells,
    scheduler: Arc<Scheduler>,
    tracking: Arc<Tracking>,
    statistics: Statistics,
    erasure: Notify,
    /// Wakes who clears away at the end.
    retention: Notify,
    closed: AtomicBool,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Platform {
    /// Starts the zygote, frees tickets that a dead predecessor had claimed, and begins to work.
    ///
    /// # Errors
    /// [`StartError`], with a remedy where there is one.
    pub async fn start(kernel: Kernel, config: PlatformConfig) -> Result<Self, StartError> {
        let scheduler = Arc::new(Scheduler::new(kernel.clone(), &config));
        let cells = tokio::task::spawn_blocking(move || Cells::start(config, Arc::new(Counters::default())));
        let cells = cells.await.map_err(|error| StartError::Interrupted(error.to_string()))??;
        kernel.tickets_reset().await?;
        let inner = Inner {
            kernel,
            cells,
            scheduler,
            tracking: Arc::default(),
            statistics: Statistics::default(),
            erasure: Notify::new(),
            retention: Notify::new(),
            closed: AtomicBool::new(false),
            tasks: Mutex::default(),
        };
        let platform = Self(Arc::new(inner));
        if let Some(remedy) = platform.jail_report().start_remedy() {
            tracing::warn!(start_ms = platform.jail_report().cell_start.as_millis(), "cells start slowly on this machine; help: {remedy}");
        }
        platform.kernel().compute_attach(Arc::new(Attached(Arc::downgrade(&platform.0))));
        *platform.0.tasks.lock() = vec![
            tokio::spawn(platform.cells().clone().refill_forever()),
            tokio::spawn(platform.cells().clone().sweep_forever()),
            tokio::spawn(Arc::clone(&platform.0.scheduler).run_forever(platform.clone())),
            tokio::spawn(platform.clone().erase_forever()),
            tokio::spawn(platform.clone().retain_forever()),
        ];
        Ok(platform)
    }

    /// Stops claiming, stops every cell, and waits for what is being recorded. A training that was cut is queued again.
    /// Close the kernel afterwards.
    pub async fn shutdown(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.scheduler.close();
        self.0.erasure.notify_one();
        self.0.retention.notify_one();
        self.cells().close().await;
        let tasks = std::mem::take(&mut *self.0.tasks.lock());
        let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
        if tokio::time::timeout(SHUTDOWN_WAIT, futures_util::future::join_all(tasks)).await.is_err() {
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }

    /// Figures for the operator.
    #[must_use]
    pub fn stats(&self) -> PlatformStats {
        let scheduler = &self.0.scheduler;
        PlatformStats { trainings_running: scheduler.running(), trainings_waiting: scheduler.waiting(), ..self.cells().stats() }
    }

    /// What the jail really enforces.
    #[must_use]
    pub fn jail_report(&self) -> &jail::Report {
        self.cells().report()
    }

    /// The same for cells under gVisor, if any have been needed.
    #[must_use]
    pub fn gvisor_report(&self) -> Option<jail::Report> {
        self.cells().gvisor_report()
    }

    /// An erasure was ordered: do not wait for the next look.
    pub fn erasure_wake(&self) {
        self.0.erasure.notify_one();
    }

    /// Process id of the cell that serves the permit's tenant, if one lives. For tests that kill it.
    #[doc(hidden)]
    pub fn serving_pid<A: Act>(&self, permit: &Permit<A>) -> Option<u32> {
        self.cells().serving_pid(permit.island())
    }

    /// Process ids of the cells that work on jobs of the permit's tenant. For tests that kill them.
    #[doc(hidden)]
    pub fn working_pids<A: Act>(&self, permit: &Permit<A>) -> Vec<u32> {
        self.cells().working_pids(permit.island())
    }

    /// What the cells that answer the permit's tenant may have together, in bytes. For tests that hold it to its limit.
    #[doc(hidden)]
    pub fn memory_given<A: Act>(&self, permit: &Permit<A>) -> u64 {
        self.cells().memory_given(permit.island())
    }

    pub(crate) fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    pub(crate) fn config(&self) -> &PlatformConfig {
        self.0.cells.config()
    }

    pub(crate) fn cells(&self) -> &Cells {
        &self.0.cells
    }

    pub(crate) fn counters(&self) -> &Counters {
        self.0.cells.counters()
    }

    pub(crate) fn scheduler(&self) -> &Scheduler {
        &self.0.scheduler
    }

    pub(crate) fn tracking(&self) -> &Arc<Tracking> {
        &self.0.tracking
    }

    pub(crate) fn statistics(&self) -> &Statistics {
        &self.0.statistics
    }

    /// Cores that tenants share on this node, and cells that it holds at most.
    #[must_use]
    pub fn capacity(&self) -> (usize, usize) {
        (self.config().cores, self.config().cells_max)
    }

    /// For whom cells work under this permit.
    pub(crate) fn owner<A: Act>(&self, permit: &Permit<A>) -> Owner {
        Owner {
            island: permit.island(),
            limits: permit.limits(),
            meter: permit.meter(),
            cells: 1,
            memory_bytes: permit.limits().memory_bytes,
        }
    }

    /// Carries out orders to erase, step by step, until the platform stops.
    async fn erase_forever(self) {
        while !self.is_closed() {
            match self.0.kernel.erasure_step(&self).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => tracing::error!(private = error.private(), "a step of an erasure failed and is tried again: {error}"),
            }
            tokio::select! {
                () = self.0.erasure.notified() => {}
                () = tokio::time::sleep(ERASURE_LOOK_EVERY) => {}
            }
        }
    }
}

impl Platform {
    /// Clears away what can no longer be restored, round by round, until the platform stops.
    async fn retain_forever(self) {
        while !self.is_closed() {
            if let Err(error) = self.retention_round(Timestamp::now().micros()).await {
                tracing::error!(private = error.private(), "the queue of sweeps: {error}");
            }
            tokio::select! {
                () = self.0.retention.notified() => {}
                () = tokio::time::sleep(RETENTION_LOOK_EVERY) => {}
            }
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }
}

impl Compute for Platform {
    fn stop(&self, island: IslandToken) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.0.tracking.forget(island);
        Box::pin(async move {
            self.cells().stop_island(island).await;
            // A search that was on its way may have begun another one.
            self.0.tracking.forget(island);
        })
    }

    fn enter(&self, island: IslandToken) {
        self.0.tracking.forget(island);
        self.cells().enter_island(island);
    }

    fn isolates(&self, isolation: IsolationClass) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(self.cells().isolates(isolation))
    }
}

/// The platform as the kernel holds it: which does not keep it alive.
struct Attached(Weak<Inner>);

impl Compute for Attached {
    fn stop(&self, island: IslandToken) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if let Some(inner) = self.0.upgrade() {
                Platform(inner).stop(island).await;
            }
        })
    }

    fn enter(&self, island: IslandToken) {
        if let Some(inner) = self.0.upgrade() {
            Platform(inner).enter(island);
        }
    }

    fn isolates(&self, isolation: IsolationClass) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            match self.0.upgrade() {
                Some(inner) => Platform(inner).isolates(isolation).await,
                None => Err("the node is stopping".to_owned()),
            }
        })
    }
}
