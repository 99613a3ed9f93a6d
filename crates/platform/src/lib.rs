//! What the service does, given permits: data sets, training, registry, deployments, predictions, and the cells in which all of it runs.
//!
//! Every operation is a method of [`Platform`] that takes a [`tenancy::Permit`] first. The permit says which tenant, which act and which
//! resource: no operation has a second parameter for any of these, so none can be mixed up. This crate never parses a tenant's bytes:
//! they go to that tenant's cell and come back bounded and checked.
//!
//! ```text
//! server ──► Platform::predict(&permit, …) ──► cells: island → serving cell → slot ──► wire ──► insula-cell
//!                     ::training_create    ──► row + ticket ──► scheduler ──► job cell ──► run, model version
//! ```
//!
//! What is deliberately missing: HTTP, SQL, keys, and any way to name a tenant.

mod cells;
mod config;
mod dataset;
mod deployment;
mod error;
mod model;
mod page;
mod platform;
mod predict;
mod prediction;
mod rollout;
mod statistics;
mod stats;
mod tracking;
mod training;

pub use cells::{Leg, Legs, Manner, Priority, start_gvisor};
pub use config::{JobStop, PlatformConfig};
pub use dataset::{Column, Dataset, DatasetPreview, DatasetVersion, PREVIEW_ROWS_MAX, PreviewRequest, ValueCount};
pub use deployment::{
    Batching, Canary, Deployment, DeploymentRequest, OIP_PLATFORM, OipMetadata, Rollout, RolloutState, Shadow, VersionAnswers,
};
pub use error::{CellFailure, Error, Result};
pub use model::{
    ALIASES_MAX, AliasChange, AliasRequest, Approval, Gate, GateRequest, HistoryEntry, Lineage, Logged, MODEL_NAME_BYTES_MAX, MadeVersion,
    Model, ModelName, ModelRequest, ModelSearch, ModelVersion, ModelVersionSource, Onnx, Stage, StageChange, StageRequest,
    TAG_KEY_BYTES_MAX, TAG_VALUE_BYTES_MAX, TAGS_MAX, TEXT_BYTES_MAX, TagRequest, Tensor, Threshold, TrainingLineage,
};
pub use page::{PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX, Page, PageRequest, Timestamp};
pub use platform::{Platform, StartError};
pub use predict::{Protocol, Question};
pub use prediction::{Prediction, PredictionLineage, PredictionRequest};
pub use rollout::RollbackRules;
pub use statistics::{Counted, Counts};
pub use stats::{BATCH_BOUNDS_ROWS, Batches, ByClass, COLD_START_BOUNDS_MS, PlatformStats, Times};
pub use tracking::trace::{
    Assessment, AssessmentUpdate, SPAN_BYTES_MAX, SPANS_BYTES_MAX, SPANS_MAX, Span, TRACES_PER_REQUEST_MAX, Trace, TraceDeletion,
    TraceSearch, TraceState, Verdict,
};
pub use tracking::webhook::{
    Registered, Registrations, WEBHOOK_EVENTS, Webhook, WebhookEvent, WebhookRequest, WebhookSecret, WebhookTarget,
};
pub use tracking::{
    Batch, DatasetInfo, DatasetInput, DatasetSummary, EXPERIMENTS_PAGE_DEFAULT, EXPERIMENTS_PAGE_MAX, Experiment, ExperimentRequest,
    ExperimentSearch, HISTORY_POINTS_MAX, HISTORY_RUNS_MAX, History, INPUTS_PER_BATCH_MAX, Lifecycle, METRICS_PER_BATCH_MAX, MetricPoint,
    ModelInput, ModelLink, ModelOutput, Point, RETENTION_DAYS_DEFAULT, RETENTION_DAYS_MAX, RUNS_PAGE_DEFAULT, RUNS_PAGE_MAX, Real,
    RunRequest, RunSearch, RunStatus, RunUpdate, RunView, TEXTS_PER_BATCH_MAX, Text, TrackedRun, ViewType,
};
pub use training::{
    Failure, JobStep, LOG_LINES_MAX, LOG_PAGE_LINES_MAX, LogLine, Progress, Recipe, Run, SplitRequest, Training, TrainingLogs,
    TrainingRequest, TrainingState,
};

/// Artifacts and logged models.
pub use tracking::artifact::{ARTIFACT_PATH_BYTES_MAX, Artifact, ArtifactFile};
pub use tracking::logged_model::{
    DatasetWanted, LOGGED_MODELS_PAGE_MAX, LoggedMetric, LoggedModel, LoggedModelOrder, LoggedModelRequest, LoggedModelSearch,
    LoggedModelStatus,
};

/// The crates below, for the server, which has no edge to them of its own.
pub use {jail, tenancy, wire};
