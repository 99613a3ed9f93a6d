//! One cell as the service holds it: its process, its place among all cells, and the account its CPU time goes to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jail::zygote::{Cell, Exit};
use parking_lot::Mutex;
use tenancy::{IslandToken, IsolationClass, Limits, MeterHandle};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::fair::Portion;
use super::socket::{Attach, End, stream};
use crate::error::CellFailure;
use crate::stats::{Counters, bump};

/// How long a death may take to be explained.
const EXIT_WAIT: Duration = Duration::from_secs(2);
/// Descriptors of a cell: its socket, and memory files on their way into mappings.
const DESCRIPTORS_MAX: u32 = 16;
/// Memory of a blank cell before it has a tenant, in bytes.
const BLANK_MEMORY_BYTES: u64 = 256 << 20;

/// For whom a cell works: what it may use and who pays. Holds no authority.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) island: IslandToken,
    pub(crate) limits: Limits,
    pub(crate) meter: MeterHandle,
    /// Cells that share what the tenant may use, this one among them.
    pub(crate) cells: u32,
    /// What all of them may have, in bytes.
    pub(crate) memory_bytes: u64,
}

impl Owner {
    /// As it is for each of `cells` that share what the tenant may use.
    pub(crate) fn share(&self, cells: u32) -> Self {
        let cells = cells.max(1);
        let limits = Limits {
            memory_bytes: self.limits.memory_bytes / u64::from(cells),
            cpu_percent: (self.limits.cpu_percent / cells).max(1),
            ..self.limits
        };
        Self { limits, cells, ..self.clone() }
    }

    /// The same with so much memory for its cell, in bytes.
    pub(crate) fn with_memory(&self, bytes: u64) -> Self {
        Self { limits: Limits { memory_bytes: bytes, ..self.limits }, ..self.clone() }
    }

    /// Its cell's part of what is contended.
    pub(crate) fn portion(&self) -> Portion {
        Portion { weight: self.limits.weight.max(1), cells: self.cells.max(1) }
    }

    /// As it is for work that nobody waits for: half of the CPU.
    pub(crate) fn shadow(&self) -> Self {
        Self { limits: Limits { cpu_percent: (self.limits.cpu_percent / 2).max(1), ..self.limits }, ..self.clone() }
    }

    /// The jail's limits for a cell of this tenant.
    pub(crate) fn limits(&self) -> jail::Limits {
        jail::Limits {
            memory_bytes: self.limits.memory_bytes.max(jail::Limits::MEMORY_BYTES_MIN),
            cpu_percent: self.limits.cpu_percent.max(1),
            cpu_weight: self.limits.weight,
            cpu_seconds_max: None,
            descriptors_max: DESCRIPTORS_MAX,
        }
    }
}

/// Limits of a cell that has no tenant yet.
pub(crate) fn blank_limits() -> jail::Limits {
    jail::Limits {
        memory_bytes: BLANK_MEMORY_BYTES,
        cpu_percent: 100,
        cpu_weight: 1,
        cpu_seconds_max: None,
        descriptors_max: DESCRIPTORS_MAX,
    }
}

/// A live cell without a tenant.
pub(crate) struct Blank {
    cell: Cell,
    isolation: IsolationClass,
    place: OwnedSemaphorePermit,
}

impl Blank {
    pub(crate) fn new(cell: Cell, isolation: IsolationClass, place: OwnedSemaphorePermit) -> Self {
        Self { cell, isolation, place }
    }

    /// Gives the cell to a tenant, for good.
    pub(crate) fn adopt(mut self, owner: &Owner, counters: Arc<Counters>) -> Result<(Process, UnixStream), CellFailure> {
        let not_started = |error: &dyn std::fmt::Display| CellFailure::NotStarted(error.to_string());
        self.cell.set_limits(&owner.limits()).map_err(|error| not_started(&error))?;
        let socket = self.cell.take_socket().ok_or_else(|| CellFailure::NotStarted("the cell has no socket".to_owned()))?;
        let stream = stream(socket).map_err(|error| not_started(&error))?;
        let (sender, exit) = watch::channel(None);
        self.cell.on_exit(move |exit| {
            let _ = sender.send(Some(exit));
        });
        let process = Process {
            cell: self.cell,
            isolation: self.isolation,
            exit,
            meter: owner.meter.clone(),
            billed_micros: AtomicU64::new(0),
            billed_at: Mutex::new(Instant::now()),
            limits: Mutex::new(owner.limits()),
            counters,
            short: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            _place: self.place,
        };
        Ok((process, stream))
    }
}

/// A tenant's cell. Dropping it kills it.
pub(crate) struct Process {
    cell: Cell,
    isolation: IsolationClass,
    exit: watch::Receiver<Option<Exit>>,
    meter: MeterHandle,
    billed_micros: AtomicU64,
    billed_at: Mutex<Instant>,
    limits: Mutex<jail::Limits>,
    counters: Arc<Counters>,
    /// Its turns on a core are short.
    short: AtomicBool,
    stopped: AtomicBool,
    failed: AtomicBool,
    _place: OwnedSemaphorePermit,
}

impl Process {
    /// Charges CPU time used, and memory and place held, since the last time to its tenant; returns the memory it has now, in bytes.
    pub(crate) fn bill(&self) -> u64 {
        let usage = self.cell.usage();
        let before = self.billed_micros.fetch_max(usage.cpu_micros, Ordering::AcqRel);
        self.meter.count_cpu(usage.cpu_micros.saturating_sub(before));
        let held = std::mem::replace(&mut *self.billed_at.lock(), Instant::now()).elapsed();
        self.meter.count_held(usage.memory_bytes, held);
        usage.memory_bytes
    }

    /// The class that it was started in.
    pub(crate) fn isolation(&self) -> IsolationClass {
        self.isolation
    }

    /// How a model gets into it.
    pub(crate) fn attach(&self) -> Attach {
        match self.isolation {
            IsolationClass::Jail => Attach::File,
            IsolationClass::Gvisor => Attach::Pieces,
        }
    }

    /// Memory it may have, in bytes.
    pub(crate) fn memory_bytes_max(&self) -> u64 {
        self.limits.lock().memory_bytes
    }

    /// Follows its tenant's limits when the operator has changed them.
    pub(crate) fn adjust(&self, owner: &Owner) {
        let wanted = owner.limits();
        let mut limits = self.limits.lock();
        if *limits != wanted {
            // Tried once: memory that is taken already cannot be taken back, and the tenant's next cell starts with the new limits anyway.
            if let Err(error) = self.cell.set_limits(&wanted) {
                tracing::warn!(pid = self.pid(), "a cell keeps its old limits: {error}");
            }
            *limits = wanted;
        }
    }

    /// Has short turns on a core as long as its requests are short.
    pub(crate) fn take_turns(&self, short: bool) {
        if self.isolation == IsolationClass::Jail && self.short.swap(short, Ordering::AcqRel) != short {
            let turns = if short { jail::Turns::Short } else { jail::Turns::Usual };
            if let Err(error) = self.cell.set_turns(turns) {
                tracing::debug!(pid = self.pid(), "a cell's turns on a core stay as they were: {error}");
            }
        }
    }

    /// Counts that it is stopped to make room, or because it idled.
    pub(crate) fn evicted(&self) {
        self.meter.count_cell_evicted();
    }

    /// Process id, for tests and logs.
    pub(crate) fn pid(&self) -> u32 {
        self.cell.pid()
    }

    /// Kills it at once and waits until it is gone.
    pub(crate) async fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.bill();
        self.cell.kill();
        self.gone().await;
    }

    async fn gone(&self) -> Option<Exit> {
        let mut exit = self.exit.clone();
        let exit = tokio::time::timeout(EXIT_WAIT, exit.wait_for(Option::is_some)).await;
        exit.ok().and_then(Result::ok).and_then(|exit| *exit)
    }

    /// Why a conversation that ended so failed, in words for the tenant. Kills the cell if it still lives; counts and logs once.
    pub(crate) async fn failure(&self, end: &End) -> CellFailure {
        if self.stopped.load(Ordering::Acquire) || *end == End::Stopped {
            // However its end was seen: it was ours.
            return CellFailure::Stopped;
        }
        let failure = match end {
            End::Protocol(what) => CellFailure::Protocol(what.clone()),
            End::Deadline => CellFailure::Died("it was stopped at its deadline".to_owned()),
            End::Stopped | End::Closed => match self.gone().await {
                Some(Exit::Signal { out_of_memory: true, .. }) => CellFailure::OutOfMemory { memory_bytes_max: self.memory_bytes_max() },
                Some(Exit::Signal { signal, .. }) => CellFailure::Died(format!("signal {signal}")),
                Some(Exit::Code(code)) => CellFailure::Died(format!("exit status {code}")),
                None => CellFailure::Died("it closed its socket".to_owned()),
            },
        };
        self.cell.kill();
        if !self.failed.swap(true, Ordering::AcqRel) {
            self.meter.count_cell_failed();
            bump(match &failure {
                CellFailure::Protocol(_) => &self.counters.hostile,
                CellFailure::OutOfMemory { .. } => &self.counters.out_of_memory,
                _ => &self.counters.failed,
            });
            tracing::warn!(pid = self.pid(), "a cell failed: {failure}");
        }
        failure
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.bill();
    }
}
