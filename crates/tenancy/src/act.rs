//! The closed list of acts: everything that can be asked of a tenant. One line each, and nothing else in the service decides
//! what an act needs: the router, the policy schema, the audit class and the tests all read this list.

/// Kinds of things that acts are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// The tenant itself.
    Tenant,
    /// A person or service account of the tenant.
    Member,
    /// An API key.
    Key,
    /// A data set with its versions.
    Dataset,
    /// A training job.
    Training,
    /// A job that asks a deployment about every row of a data set.
    Prediction,
    /// A recorded run: parameters, metrics, logs.
    Run,
    /// A group of runs, with their artifacts.
    Experiment,
    /// A model that a run logged, before it is registered.
    LoggedModel,
    /// A recorded trace of a request through an application.
    Trace,
    /// Where events are reported to.
    Webhook,
    /// A registered model with its versions and aliases.
    Model,
    /// A model version that answers predictions under a name.
    Deployment,
    /// The tenant's audit log.
    Ledger,
}

impl ResourceKind {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::Tenant,
        Self::Member,
        Self::Key,
        Self::Dataset,
        Self::Training,
        Self::Prediction,
        Self::Run,
        Self::Experiment,
        Self::LoggedModel,
        Self::Trace,
        Self::Webhook,
        Self::Model,
        Self::Deployment,
        Self::Ledger,
    ];

    /// Name in policies, as in `Insula::Dataset`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tenant => "Tenant",
            Self::Member => "Member",
            Self::Key => "Key",
            Self::Dataset => "Dataset",
            Self::Training => "Training",
            Self::Prediction => "Prediction",
            Self::Run => "Run",
            Self::Experiment => "Experiment",
            Self::LoggedModel => "LoggedModel",
            Self::Trace => "Trace",
            Self::Webhook => "Webhook",
            Self::Model => "Model",
            Self::Deployment => "Deployment",
            Self::Ledger => "Ledger",
        }
    }

    /// Word in messages and scopes, as in `dataset:iris`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Member => "member",
            Self::Key => "key",
            Self::Dataset => "dataset",
            Self::Training => "training",
            Self::Prediction => "prediction",
            Self::Run => "run",
            Self::Experiment => "experiment",
            Self::LoggedModel => "logged_model",
            Self::Trace => "trace",
            Self::Webhook => "webhook",
            Self::Model => "model",
            Self::Deployment => "deployment",
            Self::Ledger => "ledger",
        }
    }
}

/// When an act's entry is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditClass {
    /// In the same transaction as the change, before the answer leaves.
    Durable,
    /// Handed to the operating system before the answer leaves, synced within 100 ms.
    Synced,
}

/// Which admission an act takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaClass {
    /// Small requests: rate and concurrency of the tenant.
    Request,
    /// Predictions: rate and concurrency of the tenant, counted apart in usage.
    Prediction,
}

/// Marker: the act only reads.
#[derive(Debug, Clone, Copy)]
pub enum Reads {}
/// Marker: the act may change rows and blobs.
#[derive(Debug, Clone, Copy)]
pub enum Writes {}

/// [`Reads`] or [`Writes`].
pub trait Mode: sealed::Sealed + Send + Sync + 'static {
    /// Whether a transaction may be had.
    const WRITES: bool;
}
impl Mode for Reads {
    const WRITES: bool = false;
}
impl Mode for Writes {
    const WRITES: bool = true;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Reads {}
    impl Sealed for super::Writes {}
}

/// One thing that can be asked. Sealed: the list below is all there is.
pub trait Act: sealed::Sealed + Send + Sync + 'static {
    /// Stable name in policies, scopes and the ledger.
    const NAME: &'static str;
    /// What it is about.
    const RESOURCE: ResourceKind;
    /// Reads or writes.
    type Mode: Mode;
    /// Admission class.
    const QUOTA: QuotaClass;
    /// What a caller must be allowed in order to know that the resource exists; refusal of that looks like absence.
    const SEEN_BY: &'static str;
}

/// The same facts as values, for tests and documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActInfo {
    /// [`Act::NAME`].
    pub name: &'static str,
    /// [`Act::RESOURCE`].
    pub resource: ResourceKind,
    /// Whether it may change anything.
    pub writes: bool,
    /// [`Act::SEEN_BY`].
    pub seen_by: &'static str,
    /// One line for people.
    pub about: &'static str,
}

impl ActInfo {
    /// Writing acts are durable with their change; others are synced.
    #[must_use]
    pub fn audit(&self) -> AuditClass {
        if self.writes { AuditClass::Durable } else { AuditClass::Synced }
    }
}

macro_rules! acts {
    ($($name:ident: $resource:ident, $mode:ident, $quota:ident, seen by $seen:ident, $about:literal;)+) => {
        $(
            #[doc = $about]
            #[derive(Debug, Clone, Copy)]
            pub enum $name {}
            impl sealed::Sealed for $name {}
            impl Act for $name {
                const NAME: &'static str = stringify!($name);
                const RESOURCE: ResourceKind = ResourceKind::$resource;
                type Mode = $mode;
                const QUOTA: QuotaClass = QuotaClass::$quota;
                const SEEN_BY: &'static str = stringify!($seen);
            }
        )+
        /// Every act.
        pub const ACTS: &[ActInfo] = &[$(ActInfo {
            name: stringify!($name),
            resource: ResourceKind::$resource,
            writes: <$mode as Mode>::WRITES,
            seen_by: stringify!($seen),
            about: $about,
        }),+];
    };
}

acts! {
    TenantRead: Tenant, Reads, Request, seen by TenantRead, "see the tenant, its state and who one is in it";
    QuotaRead: Tenant, Reads, Request, seen by QuotaRead, "see limits and what is used of them";
    MetricsRead: Tenant, Reads, Request, seen by MetricsRead, "scrape the tenant's own metrics";
    KeyringRead: Tenant, Reads, Request, seen by KeyringRead, "see the versions of the tenant's encryption keys";
    KeyringRotate: Tenant, Writes, Request, seen by KeyringRead, "rotate the tenant's encryption keys";
    TenantErase: Tenant, Writes, Request, seen by TenantRead, "erase the tenant for good";
    RetentionSweep: Tenant, Writes, Request, seen by TenantRead, "clear away what was deleted and can no longer be restored (asked by the service)";
    MemberRead: Member, Reads, Request, seen by MemberRead, "see members and their roles";
    MemberWrite: Member, Writes, Request, seen by MemberRead, "add, change and remove members";
    KeyRead: Key, Reads, Request, seen by KeyRead, "see API keys, their scopes and last use";
    KeyWrite: Key, Writes, Request, seen by KeyRead, "issue and revoke API keys";
    DatasetRead: Dataset, Reads, Request, seen by DatasetRead, "list, describe, preview and read data sets";
    DatasetWrite: Dataset, Writes, Request, seen by DatasetRead, "upload versions of a data set";
    DatasetDelete: Dataset, Writes, Request, seen by DatasetRead, "delete a data set with all versions";
    TrainingRead: Training, Reads, Request, seen by TrainingRead, "see training jobs, their progress and logs";
    TrainingCreate: Training, Writes, Request, seen by TrainingRead, "queue a training job";
    TrainingRun: Training, Writes, Request, seen by TrainingRead, "run a queued training job (asked again by the scheduler)";
    TrainingCancel: Training, Writes, Request, seen by TrainingRead, "cancel a training job";
    PredictionRead: Prediction, Reads, Request, seen by PredictionRead, "see jobs that ask about every row of a data set";
    PredictionCreate: Prediction, Writes, Request, seen by PredictionRead, "queue a job that asks about every row of a data set";
    PredictionRun: Prediction, Writes, Request, seen by PredictionRead, "run such a job (asked again by the scheduler)";
    PredictionCancel: Prediction, Writes, Request, seen by PredictionRead, "cancel such a job";
    RunRead: Run, Reads, Request, seen by RunRead, "see runs with parameters and metrics";
    RunWrite: Run, Writes, Request, seen by RunRead, "record runs: parameters, metrics, tags, inputs";
    RunDelete: Run, Writes, Request, seen by RunRead, "delete and restore runs";
    ExperimentRead: Experiment, Reads, Request, seen by ExperimentRead, "see experiments";
    ExperimentWrite: Experiment, Writes, Request, seen by ExperimentRead, "create, rename and tag experiments";
    ExperimentDelete: Experiment, Writes, Request, seen by ExperimentRead, "delete and restore experiments";
    ArtifactRead: Experiment, Reads, Request, seen by ExperimentRead, "list and download artifacts";
    ArtifactWrite: Experiment, Writes, Request, seen by ExperimentRead, "upload artifacts";
    ArtifactDelete: Experiment, Writes, Request, seen by ExperimentRead, "delete artifacts";
    LoggedModelRead: LoggedModel, Reads, Request, seen by LoggedModelRead, "see logged models";
    LoggedModelWrite: LoggedModel, Writes, Request, seen by LoggedModelRead, "log models, finalize and tag them";
    LoggedModelDelete: LoggedModel, Writes, Request, seen by LoggedModelRead, "delete logged models";
    TraceRead: Trace, Reads, Request, seen by TraceRead, "see traces and their assessments";
    TraceWrite: Trace, Writes, Request, seen by TraceRead, "record traces, tags and assessments";
    TraceDelete: Trace, Writes, Request, seen by TraceRead, "delete traces";
    WebhookRead: Webhook, Reads, Request, seen by WebhookRead, "see webhooks, never their secrets";
    WebhookWrite: Webhook, Writes, Request, seen by WebhookRead, "add, change, test and remove webhooks";
    PermissionRead: Member, Reads, Request, seen by MemberRead, "see who was granted what on single experiments and models";
    PermissionWrite: Member, Writes, Request, seen by MemberRead, "grant and withdraw permissions on single experiments and models";
    ModelRead: Model, Reads, Request, seen by ModelRead, "see and download registered models, versions and aliases";
    ModelWrite: Model, Writes, Request, seen by ModelRead, "register models and versions, set aliases and tags";
    ModelGate: Model, Writes, Request, seen by ModelRead, "set what a model's version must pass before an alias or stage is its";
    ModelDelete: Model, Writes, Request, seen by ModelRead, "delete a registered model with all versions";
    DeploymentRead: Deployment, Reads, Request, seen by DeploymentRead, "see deployments, their metadata and readiness";
    DeploymentWrite: Deployment, Writes, Request, seen by DeploymentRead, "deploy a version, change or remove a deployment";
    DeploymentRollback: Deployment, Writes, Request, seen by DeploymentRead, "put a deployment back to what it was before";
    Predict: Deployment, Reads, Prediction, seen by DeploymentRead, "ask a deployment for a prediction";
    LedgerRead: Ledger, Reads, Request, seen by LedgerRead, "read, search and export the audit log and its proofs";
}

/// Facts of an act by name.
#[must_use]
pub fn act_by_name(name: &str) -> Option<&'static ActInfo> {
    ACTS.iter().find(|act| act.name == name)
}
