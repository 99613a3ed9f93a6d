//! The wiring, in one readable function, and the stop in reverse order: no new connections, accepted work finished, then
//! the platform, then the kernel.

use std::fmt;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use platform::jail::{Floor, Turns};
use platform::tenancy::{FirstStart, Kernel, KernelConfig};
use platform::{Platform, PlatformConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::bulk::{Bulk, pace_of};
use crate::check::check_files;
use crate::config::{Config, FloorWord, Log, LogFormat};
use crate::doorman::Doorman;
use crate::egress::{Egress, EgressConfig};
use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::mlflow::webhooks::Trainings;
use crate::refusal::Refusals;
use crate::service::Service;
use crate::tls::{Certificates, NodeCertificate, server_config};
use crate::traces::{Tracer, TracesConfig};
use crate::{connection, openapi, route};

/// Why the service did not start, or did not end well.
#[derive(Debug)]
pub struct StartError {
    what: String,
    remedy: Option<String>,
}

impl StartError {
    fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), remedy: None }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for StartError {}

/// Where the service is, and what its first start made.
#[derive(Debug, Clone)]
pub struct Started {
    /// Base URL for clients.
    pub url: String,
    /// The address it listens on.
    pub address: SocketAddr,
    /// Certificate of the development CA, for clients to trust; none with an operator's certificate.
    pub ca_path: Option<PathBuf>,
    /// Keystore in which the root key was made, on the first start.
    pub root_key_created: Option<PathBuf>,
    /// File of the operator's one-time secret, as long as it waits to be used.
    pub bootstrap_secret: Option<PathBuf>,
}

/// Runs the service until SIGTERM or SIGINT, then until accepted work is done. Blocking; makes its own runtime.
///
/// # Errors
/// [`StartError`] with a remedy when the configuration is unsafe or something cannot be opened.
pub fn serve(config: Config, started: impl FnOnce(&Started)) -> Result<(), StartError> {
    log_to_stderr(&config.log)?;
    platform::jail::harden_self().map_err(StartError::new)?;
    // Requests of one tenant do not wait for the work of another one's cell.
    if let Err(error) = platform::jail::take_turns(Turns::Short) {
        tracing::warn!("cells may keep requests waiting for a core: {error}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(StartError::new)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(StartError::new)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::new)?;
        let server = Server::start(config).await?;
        started(server.started());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: accepted work is finished first");
        server.stop().await
    })
}

/// Brings the shared stores up to date; what was done, a line each. Blocking; makes its own runtime.
///
/// # Errors
/// [`StartError`] when the owner's role may not, or a server cannot be reached.
pub fn migrate(config: &Config) -> Result<Vec<String>, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::new)?;
    runtime.block_on(platform::tenancy::migrate(&config.stores)).map_err(kernel_failed)
}

/// A running service. Dropping it aborts; [`Server::stop`] ends it well.
pub struct Server {
    started: Started,
    service: Arc<Service>,
    stop: watch::Sender<bool>,
    doorman: thread::JoinHandle<()>,
    serving: JoinHandle<()>,
    certificates: JoinHandle<()>,
}

impl Server {
    /// Opens everything and listens.
    ///
    /// # Errors
    /// [`StartError`] with a remedy when the configuration is unsafe or something cannot be opened.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        refuse_unsafe(&config)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|error| StartError::new(format!("cannot listen on {}: {error}", config.listen)))?;
        let address = listener.local_addr().map_err(StartError::new)?;
        let url = config.base_url(address.port());

        let node = config.stores.node.as_ref().map(|_| NodeCertificate::new()).transpose().map_err(StartError::new)?;
        let (kernel, first) = Kernel::open(config.kernel(&url, node.as_ref())).await.map_err(kernel_failed)?;
        let certificates = match config.tls.clone() {
            Some(files) => Certificates::from_files(files),
            None => Certificates::development(&config.keystore_dir, config.listen.ip()),
        }
        .map_err(StartError::new)?;
        if let Some(node) = node {
            certificates.for_nodes(node);
        }
        let egress = Arc::new(Egress::new(config.egress.clone()).map_err(StartError::new)?);
        let mut platform = config.platform();
        platform.registrations = Some(Arc::new(Trainings(Arc::clone(&egress))));
        let (upload_bytes_max, model_bytes_max, cores) = (platform.upload_bytes_max, platform.model_bytes_max, platform.cores);
        let platform = Platform::start(kernel.clone(), platform).await.map_err(StartError::new)?;

        let api = route::all();
        let document = openapi::document(api.routes());
        let service = Arc::new(Service {
            metrics: Arc::new(Metrics::new(api.routes().iter().map(|route| route.info.operation).collect())),
            openapi: serde_json::to_vec_pretty(&document).map_err(StartError::new)?.into(),
            kernel,
            platform,
            api,
            forwarder: config.stores.node.as_ref().map(Forwarder::new).transpose().map_err(StartError::new)?,
            egress,
            tracer: config.traces.clone().map(|traces| tracer(traces, &config)).transpose().map_err(StartError::new)?,
            limits: Arc::new(config.requests.clone()),
            bulk: Bulk::new(config.requests.large_bytes_per_second.unwrap_or_else(|| pace_of(cores))),
            refusals: Refusals::new(config.requests.refusals_per_second),
            upload_bytes_max,
            model_bytes_max,
            ready: AtomicBool::new(true),
        });
        let tls = TlsAcceptor::from(Arc::new(server_config(certificates.clone()).map_err(StartError::new)?));
        let (limits, metrics) = (Arc::new(config.connections), service.metrics.clone());
        let (stop, stopped) = watch::channel(false);
        let doorman = Doorman { tls, limits: limits.clone(), metrics, stop: stopped.clone() };
        let (doorman, guests) = doorman.open(listener).map_err(StartError::new)?;
        let started = told(url, address, &certificates, first);
        tracing::info!(%address, "listening");
        Ok(Self {
            doorman,
            serving: tokio::spawn(connection::serve(guests, service.clone(), limits, stopped)),
            certificates: tokio::spawn(certificates.keep_fresh()),
            started,
            service,
            stop,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Takes no more connections, finishes accepted requests up to the drain deadline, then closes platform and kernel.
    ///
    /// # Errors
    /// [`StartError`] when something could not be written.
    pub async fn stop(self) -> Result<(), StartError> {
        self.service.ready.store(false, Ordering::Release);
        let _ = self.stop.send(true);
        self.serving.await.map_err(StartError::new)?;
        let doorman = tokio::task::spawn_blocking(|| self.doorman.join());
        doorman.await.map_err(StartError::new)?.map_err(|_| StartError::new("the door did not close well"))?;
        self.certificates.abort();
        if let Some(tracer) = &self.service.tracer {
            tracer.stop().await;
        }
        self.service.platform.shutdown().await;
        self.service.kernel.close().await.map_err(kernel_failed)
    }
}

/// The collector is the operator's own, so it may be anywhere; what else holds for the way out holds here.
fn tracer(traces: TracesConfig, config: &Config) -> Result<Tracer, String> {
    let networks = ["0.0.0.0/0", "::/0"].into_iter().map(str::parse).collect::<Result<_, _>>()?;
    let egress = Egress::new(EgressConfig { http: true, networks, authority: config.egress.authority.clone() })?;
    let node = config.stores.node.as_ref().map_or("local", |node| node.name.as_str());
    Ok(Tracer::start(traces, egress, node))
}

fn told(url: String, address: SocketAddr, certificates: &Certificates, first: FirstStart) -> Started {
    Started {
        url,
        address,
        ca_path: certificates.ca_path().map(PathBuf::from),
        root_key_created: first.root_key_created,
        bootstrap_secret: first.bootstrap_secret,
    }
}

fn refuse_unsafe(config: &Config) -> Result<(), StartError> {
    match check_files(config).into_iter().find(|finding| !finding.ok) {
        None => Ok(()),
        Some(finding) => Err(StartError { what: finding.what, remedy: finding.remedy }),
    }
}

fn kernel_failed(error: platform::tenancy::Error) -> StartError {
    match error.private() {
        Some(context) => StartError::new(format!("{error}: {context}")),
        None => StartError::new(error),
    }
}

impl Config {
    fn kernel(&self, url: &str, certificate: Option<&NodeCertificate>) -> KernelConfig {
        let mut stores = self.stores.clone();
        if let (Some(node), Some(certificate)) = (&mut stores.node, certificate) {
            node.certificate_sha256 = certificate.sha256().to_owned();
        }
        KernelConfig {
            data_dir: self.data_dir.clone(),
            keystore_dir: self.keystore_dir.clone(),
            issuer: url.to_owned(),
            stores_open_max: self.tenants_open_max,
            limits: self.tenant_limits,
            stores,
        }
    }

    pub(crate) fn platform(&self) -> PlatformConfig {
        let floor = match self.cells.floor {
            FloorWord::Strict => Floor::Strict,
            FloorWord::Development => Floor::Development,
        };
        let node = self.stores.node.as_ref().map(|node| node.name.clone());
        let usual = PlatformConfig::new(self.cells.program.clone(), self.cells.engine_library.clone(), floor);
        PlatformConfig {
            runsc: self.cells.runsc.clone(),
            node: node.unwrap_or_else(|| usual.node.clone()),
            cells_max: self.cells.cells_max.unwrap_or(usual.cells_max),
            cores: self.cells.cores.unwrap_or(usual.cores),
            pool_blank: self.cells.pool_blank.unwrap_or(usual.pool_blank),
            cells_memory_bytes_max: self.cells.memory_bytes_max.unwrap_or(usual.cells_memory_bytes_max),
            idle_timeout: self.cells.idle_timeout.unwrap_or(usual.idle_timeout),
            infer_timeout: self.cells.infer_timeout.unwrap_or(usual.infer_timeout),
            upload_bytes_max: self.cells.upload_bytes_max.unwrap_or(usual.upload_bytes_max),
            model_bytes_max: self.cells.model_bytes_max.unwrap_or(usual.model_bytes_max),
            jobs_running_max: self.cells.jobs_running_max.unwrap_or(usual.jobs_running_max),
            ..usual
        }
    }
}

/// Libraries that would write headers, and with them credentials, when asked for more than this.
const QUIET: [(&str, LevelFilter); 5] = [
    ("h2", LevelFilter::INFO),
    ("hyper", LevelFilter::INFO),
    ("hyper_util", LevelFilter::INFO),
    ("rustls", LevelFilter::INFO),
    ("sqlx", LevelFilter::WARN),
];

/// Structured lines on standard error; standard output is the command line's.
fn log_to_stderr(log: &Log) -> Result<(), StartError> {
    let wrong = |error| StartError::new(format!("`log.level` is `{}`: {error}", log.level));
    let filter = log.level.parse::<Targets>().map_err(wrong)?.with_targets(QUIET);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let filtered = tracing_subscriber::registry().with(filter);
    let installed = match log.format {
        LogFormat::Text => filtered.with(lines).try_init(),
        LogFormat::Json => filtered.with(lines.json()).try_init(),
    };
    installed.map_err(StartError::new)
}
