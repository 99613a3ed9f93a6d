//! What the platform is told at start. Every limit has a name here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::tracking::webhook::Registrations;
use crate::training::JobStep;

/// Settings of [`crate::Platform::start`].
#[derive(Clone)]
pub struct PlatformConfig {
    /// The `insula-cell` program.
    pub cell_program: PathBuf,
    /// `libonnxruntime.so`.
    pub engine_library: PathBuf,
    /// gVisor's `runsc`; looked for in the usual places when absent.
    pub runsc: Option<PathBuf>,
    /// What the jail must enforce; below it the platform does not start.
    pub floor: jail::Floor,
    /// Name of this node in queue claims.
    pub node: String,
    /// Most live cells in all: blank, serving and working.
    pub cells_max: usize,
    /// Blank cells kept ready.
    pub pool_blank: usize,
    /// Most memory of all cells together, in bytes; above it idle cells go, least recently used first.
    pub cells_memory_bytes_max: u64,
    /// A serving cell without requests for this long goes.
    pub idle_timeout: Duration,
    /// One prediction, from being sent to the cell to its answer.
    pub infer_timeout: Duration,
    /// Loading one model.
    pub load_timeout: Duration,
    /// Tenants whose cells work at once; the cores of the machine. When more have work, they take turns by their weights.
    pub cores: usize,
    /// Predictions sent to one cell and not yet answered.
    pub infer_in_flight_max: usize,
    /// Predictions of one tenant that wait for their turn.
    pub infer_queue_max: usize,
    /// Largest answer of a prediction in bytes.
    pub answer_bytes_max: usize,
    /// Models loaded in one cell.
    pub models_per_cell_max: usize,
    /// Largest upload of a data set in bytes.
    pub upload_bytes_max: u64,
    /// Largest model in bytes.
    pub model_bytes_max: u64,
    /// Most nodes of a model's graph.
    pub model_nodes_max: u32,
    /// Most rows of a data set.
    pub rows_max: u64,
    /// Most columns of a data set.
    pub columns_max: u32,
    /// Inspection, preview and admission.
    pub inspect_timeout: Duration,
    /// One training.
    pub training_timeout: Duration,
    /// Cells that work on jobs (training, inspection, preview, admission) at once.
    pub jobs_running_max: usize,
    /// Attempts of one training before it is given up.
    pub training_attempts_max: u32,
    /// Called between the steps of a training; `true` stops the job right there, as a crash would. For tests.
    pub job_stop: Option<JobStop>,
    /// Is told what trainings register.
    pub registrations: Option<Arc<dyn Registrations>>,
}

/// See [`PlatformConfig::job_stop`].
pub type JobStop = Arc<dyn Fn(JobStep) -> bool + Send + Sync>;

impl PlatformConfig {
    /// Defaults for one small machine.
    #[must_use]
    pub fn new(cell_program: PathBuf, engine_library: PathBuf, floor: jail::Floor) -> Self {
        Self {
            cell_program,
            engine_library,
            runsc: None,
            floor,
            node: "local".to_owned(),
            cells_max: 512,
            pool_blank: 4,
            cells_memory_bytes_max: 8 << 30,
            idle_timeout: Duration::from_secs(300),
            infer_timeout: Duration::from_secs(30),
            load_timeout: Duration::from_secs(60),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            infer_in_flight_max: 32,
            infer_queue_max: 512,
            answer_bytes_max: 32 << 20,
            models_per_cell_max: 32,
            upload_bytes_max: 16 << 30,
            model_bytes_max: 512 << 20,
            model_nodes_max: 100_000,
            rows_max: 50_000_000,
            columns_max: 4096,
            inspect_timeout: Duration::from_secs(600),
            training_timeout: Duration::from_secs(3600),
            jobs_running_max: 8,
            training_attempts_max: 3,
            job_stop: None,
            registrations: None,
        }
    }
}

impl std::fmt::Debug for PlatformConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlatformConfig")
            .field("cell_program", &self.cell_program)
            .field("cells_max", &self.cells_max)
            .finish_non_exhaustive()
    }
}
