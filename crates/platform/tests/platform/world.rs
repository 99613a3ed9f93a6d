//! One service for one test: kernel, platform, tenants.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use platform::tenancy::act::{Act, DatasetWrite, DeploymentRead, DeploymentWrite, ModelWrite, Predict, TrainingCreate, TrainingRead};
use platform::tenancy::{Identity, Kernel, KernelConfig, Limits, Permit, Presented, RequestId, Tenant, TenantSpec};
use platform::{
    DatasetVersion, Deployment, DeploymentRequest, Error, ModelVersion, Platform, PlatformConfig, Result, Training, TrainingRequest,
};

pub(crate) struct World {
    pub(crate) kernel: Kernel,
    pub(crate) platform: Platform,
    pub(crate) operator_key: String,
    folder: tempfile::TempDir,
}

/// Where cell and engine are; says loudly what is missing.
fn programs() -> Option<(PathBuf, PathBuf)> {
    let test = std::env::current_exe().unwrap();
    let cell = test.parent().and_then(Path::parent).unwrap().join("insula-cell");
    let engine = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    if !cell.exists() {
        println!("SKIPPED: {} is missing; run `cargo build -p insula-cell`", cell.display());
        return None;
    }
    if engine.is_none() {
        println!("SKIPPED: ORT_DYLIB_PATH is not set");
    }
    Some((cell, engine?))
}

impl World {
    pub(crate) async fn start(change: impl FnOnce(&mut PlatformConfig)) -> Option<Self> {
        let mut config = config()?;
        change(&mut config);
        let folder = tempfile::tempdir().unwrap();
        let (kernel, first) = Kernel::open(kernel_config(folder.path())).await.unwrap();
        let secret = std::fs::read_to_string(first.bootstrap_secret.unwrap()).unwrap();
        let key = kernel.bootstrap(secret.trim(), &RequestId::fresh()).await.unwrap();
        let platform = Platform::start(kernel.clone(), config).await.unwrap();
        Some(Self { kernel, platform, operator_key: key.secret().to_owned(), folder })
    }

    /// Stops, closes, and starts again on the same folders.
    pub(crate) async fn restart(self, change: impl FnOnce(&mut PlatformConfig)) -> Self {
        let Self { kernel, platform, operator_key, folder } = self;
        platform.shutdown().await;
        drop(platform);
        kernel.close().await.unwrap();
        drop(kernel);
        let mut config = config().unwrap();
        change(&mut config);
        // The old kernel's flusher may hold it, and its locks, for a moment longer.
        let (kernel, _) = until("the old kernel's end", async || match Kernel::open(kernel_config(folder.path())).await {
            Err(platform::tenancy::Error::Unavailable(_)) => None,
            opened => Some(opened.unwrap()),
        })
        .await;
        let platform = Platform::start(kernel.clone(), config).await.unwrap();
        Self { kernel, platform, operator_key, folder }
    }

    pub(crate) async fn stop(self) {
        self.platform.shutdown().await;
        self.kernel.close().await.unwrap();
    }

    pub(crate) async fn operator(&self) -> platform::tenancy::Operator {
        match self.kernel.authenticate(Presented::Bearer(&self.operator_key), &RequestId::fresh()).await.unwrap() {
            Identity::Operator(operator) => operator,
            Identity::Tenant(_) => panic!("the operator's key"),
        }
    }

    /// A new tenant; returns its administrator's key.
    pub(crate) async fn tenant(&self, name: &str, change: impl FnOnce(&mut Limits)) -> String {
        let mut limits =
            Limits { requests_per_second: 10_000, requests_burst: 10_000, cpu_percent: 100, memory_bytes: 512 << 20, ..Limits::default() };
        change(&mut limits);
        let spec = TenantSpec { name: name.parse().unwrap(), admin: "ada".parse().unwrap(), limits: Some(limits), tier: None };
        self.operator().await.tenant_create(spec).await.unwrap().admin_key.secret().to_owned()
    }

    pub(crate) async fn open(&self, key: &str) -> Tenant {
        match self.kernel.authenticate(Presented::Bearer(key), &RequestId::fresh()).await.unwrap() {
            Identity::Tenant(caller) => self.kernel.open_tenant(caller).await.unwrap(),
            Identity::Operator(_) => panic!("a tenant's key"),
        }
    }

    pub(crate) async fn allow<A: Act>(&self, key: &str, resource: &str) -> Permit<A> {
        self.open(key).await.allow::<A>(resource).unwrap()
    }

    pub(crate) async fn upload(&self, key: &str, name: &str, bytes: impl Into<Bytes>) -> Result<DatasetVersion> {
        let bytes: Bytes = bytes.into();
        // In pieces, as they come from a socket.
        let pieces: Vec<_> = bytes.chunks(10_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let permit = self.allow::<DatasetWrite>(key, name).await;
        let version = self.platform.dataset_upload(&permit, None, futures_util::stream::iter(pieces)).await;
        close(permit, version)
    }

    pub(crate) async fn train(&self, key: &str, request: serde_json::Value) -> Result<Training> {
        let request: TrainingRequest = serde_json::from_value(request).unwrap();
        let permit = self.allow::<TrainingCreate>(key, "").await;
        let training = self.platform.training_create(&permit, request).await;
        close(permit, training)
    }

    pub(crate) async fn training(&self, key: &str, id: &str) -> Training {
        let permit = self.allow::<TrainingRead>(key, id).await;
        let training = self.platform.training_get(&permit).await;
        close(permit, training).unwrap()
    }

    /// Waits until the training satisfies `wanted`.
    pub(crate) async fn training_until(&self, key: &str, id: &str, wanted: impl Fn(&Training) -> bool) -> Training {
        until("a training", async || Some(self.training(key, id).await).filter(&wanted)).await
    }

    pub(crate) async fn model(&self, key: &str, name: &str, onnx: Vec<u8>) -> Result<ModelVersion> {
        let permit = self.allow::<ModelWrite>(key, name).await;
        let version = self.platform.model_version_upload(&permit, futures_util::stream::iter([Ok(Bytes::from(onnx))])).await;
        close(permit, version.map(|made| made.version))
    }

    pub(crate) async fn deploy(&self, key: &str, name: &str, request: serde_json::Value) -> Result<Deployment> {
        let request: DeploymentRequest = serde_json::from_value(request).unwrap();
        let permit = self.allow::<DeploymentWrite>(key, name).await;
        let deployment = self.platform.deployment_put(&permit, request).await;
        close(permit, deployment)
    }

    /// A deployment as it is now.
    pub(crate) async fn deployment(&self, key: &str, name: &str) -> Deployment {
        let permit = self.allow::<DeploymentRead>(key, name).await;
        let deployment = self.platform.deployment_get(&permit).await;
        close(permit, deployment).unwrap()
    }

    /// Uploads a model and deploys it under the same name.
    pub(crate) async fn serve(&self, key: &str, name: &str, onnx: Vec<u8>) {
        let version = self.model(key, name, onnx).await.unwrap();
        self.deploy(key, name, serde_json::json!({"model": name, "version": version.version})).await.unwrap();
    }

    pub(crate) async fn predict(&self, key: &str, name: &str, body: impl Into<Bytes>) -> Result<serde_json::Value> {
        let permit = self.allow::<Predict>(key, name).await;
        let body: Bytes = body.into();
        let answer = self.platform.predict(&permit, None, body).await;
        Ok(serde_json::from_slice(&close(permit, answer)?.body).unwrap())
    }

    /// Process id of the tenant's serving cell.
    pub(crate) async fn pid(&self, key: &str, name: &str) -> Option<u32> {
        let permit = self.allow::<Predict>(key, name).await;
        let pid = self.platform.serving_pid(&permit);
        let _ = permit.finish().unwrap();
        pid
    }
}

fn config() -> Option<PlatformConfig> {
    let (cell, engine) = programs()?;
    let mut config = PlatformConfig::new(cell, engine, platform::jail::Floor::Development);
    config.pool_blank = 1;
    Some(config)
}

fn kernel_config(folder: &Path) -> KernelConfig {
    KernelConfig {
        data_dir: folder.join("data"),
        keystore_dir: folder.join("keys"),
        issuer: "https://localhost".to_owned(),
        stores_open_max: 16,
        limits: Limits::default(),
        stores: Default::default(),
    }
}

/// Spends the permit as the server would.
pub(crate) fn close<A: Act, T>(permit: Permit<A>, result: Result<T>) -> Result<T> {
    match &result {
        Ok(_) => drop(permit.finish()?),
        Err(error) => drop(permit.failed(error.code())?),
    }
    result
}

/// Asks again until there is something, for at most two minutes.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..2400 {
        if let Some(found) = ask().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not in two minutes");
}

/// The code of what must be an error.
#[track_caller]
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    result.expect_err("an error").code()
}

/// A file of the repository's `examples/`.
pub(crate) fn example(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)).unwrap()
}
