//! Who runs next. The kernel hands out tickets fairly (tenants below their number of running jobs, fewest first); this node runs as many as it has
//! places for, each in a task of its own, and remembers progress and logs of those that run.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tenancy::act::Act;
use tenancy::{Kernel, Lease, Permit, Scoped};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::job::{JobStep, Verdict};
use super::{LOG_LINES_MAX, LogLine, Progress, Training, TrainingState};
use crate::config::JobStop;
use crate::page::Timestamp;
use crate::platform::Platform;
use crate::prediction;

/// A look at the queue without being woken, should a wake-up get lost.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pause after the queue could not be read.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// The trainings of this node, and other jobs that run as they do.
pub(crate) struct Scheduler {
    kernel: Kernel,
    node: String,
    places: Arc<Semaphore>,
    places_max: usize,
    live: Mutex<HashMap<Scoped<String>, Arc<Live>>>,
    waiting: AtomicU64,
    closed: AtomicBool,
    close: Notify,
    stop: Option<JobStop>,
}

/// What is remembered of a job while it runs.
pub(crate) struct Live {
    progress: Mutex<Option<Progress>>,
    lines: Mutex<VecDeque<LogLine>>,
    count: AtomicU64,
    cancelled: AtomicBool,
    cancel: Notify,
}

impl Live {
    fn new() -> Self {
        Self {
            progress: Mutex::default(),
            lines: Mutex::default(),
            count: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            cancel: Notify::new(),
        }
    }

    /// The next log line; the oldest goes when there are too many.
    pub(crate) fn log(&self, text: String) {
        let number = self.count.fetch_add(1, Ordering::AcqRel) + 1;
        let mut lines = self.lines.lock();
        if lines.len() as u64 >= LOG_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(LogLine { number, at: Timestamp::now(), text });
    }

    pub(crate) fn progress(&self, progress: wire::Progress) {
        *self.progress.lock() = Some(Progress { stage: progress.stage, done: progress.done, total: progress.total });
    }

    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.lines.lock().iter().cloned().collect()
    }

    /// Waits until somebody cancels the job.
    pub(crate) async fn cancelled(&self) {
        flagged(&self.cancelled, &self.cancel).await;
    }
}

/// Waits until the flag is set; whoever sets it notifies the waiters afterwards.
async fn flagged(flag: &AtomicBool, notify: &Notify) {
    loop {
        let notified = notify.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if flag.load(Ordering::Acquire) {
            return;
        }
        notified.await;
    }
}

impl Scheduler {
    pub(crate) fn new(kernel: Kernel, config: &crate::PlatformConfig) -> Self {
        Self {
            kernel,
            node: config.node.clone(),
            places: Arc::new(Semaphore::new(config.jobs_running_max)),
            places_max: config.jobs_running_max,
            live: Mutex::default(),
            waiting: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            close: Notify::new(),
            stop: config.job_stop.clone(),
        }
    }

    /// A job's row is committed.
    pub(crate) fn wake(&self) {
        self.kernel.tickets_wake();
    }

    /// Claims and runs until the platform stops; then waits for the tasks, whose cells are being stopped.
    pub(crate) async fn run_forever(self: Arc<Self>, platform: Platform) {
        let mut tasks = JoinSet::new();
        let wake = self.kernel.tickets_notify();
        while !self.is_closed() {
            // Claimed before there is a place: the kernel then counts it as its tenant's, and looks at the others first for the next.
            match self.kernel.claim(&self.node).await {
                Ok(Some(lease)) => {
                    self.waiting.store(1, Ordering::Relaxed);
                    let place = tokio::select! {
                        place = Arc::clone(&self.places).acquire_owned() => place.ok(),
                        () = self.closing() => None,
                    };
                    self.waiting.store(0, Ordering::Relaxed);
                    let Some(place) = place else {
                        self.settle(self.kernel.postpone(lease).await);
                        break;
                    };
                    let (scheduler, platform) = (Arc::clone(&self), platform.clone());
                    tasks.spawn(async move { scheduler.run(platform, lease, place).await });
                }
                Ok(None) => tokio::select! {
                    () = wake.notified() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = self.closing() => {}
                },
                Err(error) => {
                    self.settle(Err(error));
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    }

    /// One claimed ticket, to its end. A panic stays in here.
    async fn run(&self, platform: Platform, lease: Lease, place: tokio::sync::OwnedSemaphorePermit) {
        let running = async {
            match lease.kind() {
                prediction::TICKET_KIND => prediction::run(&platform, self, &lease).await,
                _ => super::job::run(&platform, self, &lease).await,
            }
        };
        let verdict = AssertUnwindSafe(running).catch_unwind().await;
        // The place is free for others while a ticket that cannot be run now waits.
        drop(place);
        let done = match verdict {
            Ok(Verdict::Release) => self.kernel.release(lease).await,
            Ok(Verdict::Postpone(pause)) => self.pause(lease, pause).await,
            Err(_) => self.pause(lease, ERROR_PAUSE).await,
            Ok(Verdict::Requeue) => self.kernel.postpone(lease).await,
            Ok(Verdict::Vanish) => Ok(()),
        };
        self.settle(done);
    }

    /// The queue's own errors are for the operator.
    fn settle(&self, result: tenancy::Result<()>) {
        if let Err(error) = result {
            tracing::error!(private = error.private(), "the queue of trainings: {error}");
        }
    }

    async fn pause(&self, lease: Lease, pause: Duration) -> tenancy::Result<()> {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.closing() => {}
        }
        self.kernel.postpone(lease).await?;
        self.wake();
        Ok(())
    }

    /// Nothing is claimed any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.close.notify_waiters();
    }

    /// Waits until the platform stops.
    async fn closing(&self) {
        flagged(&self.closed, &self.close).await;
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether the configuration wants the job to stop here.
    pub(crate) fn stops_at(&self, step: JobStep) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop(step))
    }

    /// Remembers a job while the returned guard lives.
    pub(crate) fn begin<'a, A: Act>(&'a self, permit: &Permit<A>, id: &str) -> LiveGuard<'a> {
        let (key, live) = (permit.scoped(id.to_owned()), Arc::new(Live::new()));
        self.live.lock().insert(key.clone(), Arc::clone(&live));
        LiveGuard { scheduler: self, key, live }
    }

    fn find<A: Act>(&self, permit: &Permit<A>, id: &str) -> Option<Arc<Live>> {
        self.live.lock().get(&permit.scoped(id.to_owned())).cloned()
    }

    /// The training with its present progress.
    pub(super) fn live<A: Act>(&self, permit: &Permit<A>, mut training: Training) -> Training {
        if training.state == TrainingState::Running {
            training.progress = self.progress(permit, &training.id);
        }
        training
    }

    /// How far a job is that runs here.
    pub(crate) fn progress<A: Act>(&self, permit: &Permit<A>, id: &str) -> Option<Progress> {
        self.find(permit, id).and_then(|live| live.progress.lock().clone())
    }

    /// Log lines of a training that runs here.
    pub(super) fn live_lines<A: Act>(&self, permit: &Permit<A>, id: &str) -> Option<Vec<LogLine>> {
        self.find(permit, id).map(|live| live.lines())
    }

    /// Stops a training that runs here.
    pub(crate) fn cancel<A: Act>(&self, permit: &Permit<A>, id: &str) {
        if let Some(live) = self.find(permit, id) {
            live.cancelled.store(true, Ordering::Release);
            live.cancel.notify_waiters();
        }
    }

    /// Claimed trainings that wait for a place here.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Trainings that run here now.
    pub(crate) fn running(&self) -> u64 {
        (self.places_max.saturating_sub(self.places.available_permits())) as u64
    }
}

/// Forgets the job when it ends.
pub(crate) struct LiveGuard<'a> {
    scheduler: &'a Scheduler,
    key: Scoped<String>,
    live: Arc<Live>,
}

impl std::ops::Deref for LiveGuard<'_> {
    type Target = Live;
    fn deref(&self) -> &Live {
        &self.live
    }
}

impl Drop for LiveGuard<'_> {
    fn drop(&mut self) {
        self.scheduler.live.lock().remove(&self.key);
    }
}
