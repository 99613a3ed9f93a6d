//! Configuration: a strict raw file, then a validated value. Nothing else in the service reads a file or the environment
//! for settings, and a key that is not known is an error that names it.
//!
//! ```toml
//! data_dir = "/var/lib/insula"
//! keystore_dir = "/etc/insula/keys"        # never inside the data directory
//! listen = "0.0.0.0:8443"
//! public_url = "https://ml.example.org"
//! [tls]
//! certificate = "/etc/insula/tls/chain.pem"
//! key = "/etc/insula/tls/key.pem"
//! ```

mod egress;
mod stores;
mod traces;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use platform::tenancy::{Limits, StoresConfig};
use serde::Deserialize;

use self::egress::RawEgress;
use self::stores::{RawNode, RawStores};
use self::traces::RawTraces;
use crate::egress::EgressConfig;
use crate::traces::TracesConfig;

/// Largest configuration file in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a configuration is not one. The message is for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

/// What the command line and the environment give; each wins over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--data`.
    pub data_dir: Option<PathBuf>,
    /// `--keystore`.
    pub keystore_dir: Option<PathBuf>,
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `XDG_DATA_HOME`, or `$HOME/.local/share`.
    pub data_home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`, or `$HOME/.config`.
    pub config_home: Option<PathBuf>,
    /// Directory of the running program: `insula-cell` is looked for beside it.
    pub program_dir: Option<PathBuf>,
    /// Engine library when the file names none, as from `ORT_DYLIB_PATH`.
    pub engine_library: Option<PathBuf>,
}

/// A validated configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything the service stores.
    pub data_dir: PathBuf,
    /// Root key, bootstrap secret, development CA. Outside the data.
    pub keystore_dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How clients reach the service: issuer of tokens. None: made from `listen`.
    pub public_url: Option<String>,
    /// The operator's certificate; without it a development CA is made.
    pub tls: Option<TlsFiles>,
    /// Log format and level.
    pub log: Log,
    /// Deadlines and caps of connections.
    pub connections: ConnectionLimits,
    /// Deadlines and caps of requests.
    pub requests: RequestLimits,
    /// The sandboxes.
    pub cells: Cells,
    /// Limits of new tenants.
    pub tenant_limits: Limits,
    /// Open tenants kept in memory.
    pub tenants_open_max: usize,
    /// What may be reached when tenants name an address.
    pub egress: EgressConfig,
    /// Whether and where the service's own work is traced; off when none.
    pub traces: Option<TracesConfig>,
    /// PostgreSQL and S3 beside the data folder, and which of several nodes this is.
    pub stores: StoresConfig,
}

/// The operator's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// PEM chain, leaf first.
    pub certificate: PathBuf,
    /// PEM private key, readable by the service alone.
    pub key: PathBuf,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A level, or directives as in `info,server=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Deadlines and caps of connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Connections in all.
    pub connections_max: usize,
    /// Connections of one address (IPv6: of one /64).
    pub connections_per_address_max: usize,
    /// TLS handshake.
    pub handshake_timeout: Duration,
    /// First byte of the first request.
    pub first_byte_timeout: Duration,
    /// A header, from its first byte.
    pub header_timeout: Duration,
    /// Keep-alive without a request.
    pub idle_timeout: Duration,
    /// A write that the client does not take.
    pub write_timeout: Duration,
    /// A graceful stop.
    pub drain_timeout: Duration,
    /// Header of a request.
    pub header_bytes_max: usize,
    /// Header lines of an HTTP/1 request.
    pub headers_max: usize,
    /// HTTP/2 streams of a connection.
    pub http2_streams_max: u32,
    /// HTTP/2 streams reset before they were accepted (rapid reset).
    pub http2_resets_pending_max: usize,
    /// HTTP/2 streams reset by us for errors of the client.
    pub http2_resets_local_max: usize,
    /// HTTP/2 receive window of a stream.
    pub http2_stream_window_bytes: u32,
    /// HTTP/2 receive window of a connection.
    pub http2_connection_window_bytes: u32,
    /// HTTP/2 bytes buffered for sending on a stream.
    pub http2_send_buffer_bytes_max: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            connections_per_address_max: 1024,
            handshake_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            header_bytes_max: 32 << 10,
            headers_max: 64,
            http2_streams_max: 128,
            http2_resets_pending_max: 20,
            http2_resets_local_max: 64,
            http2_stream_window_bytes: 1 << 20,
            http2_connection_window_bytes: 4 << 20,
            http2_send_buffer_bytes_max: 256 << 10,
        }
    }
}

impl ConnectionLimits {
    /// How often a connection is looked at: a quarter of the shortest deadline, 20 ms to 1 s.
    #[must_use]
    pub fn watch_every(&self) -> Duration {
        let deadlines = [self.first_byte_timeout, self.header_timeout, self.idle_timeout, self.write_timeout];
        let shortest = deadlines.into_iter().min().unwrap_or_default();
        (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }
}

/// Deadlines and caps of requests.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// Everything but uploads and downloads, from the header to the answer.
    pub request_timeout: Duration,
    /// Silence inside a body.
    pub body_idle_timeout: Duration,
    /// Least pace of a body, in bytes a second, once `body_pace_grace` is over.
    pub body_pace_bytes: u64,
    /// Time before the pace counts.
    pub body_pace_grace: Duration,
    /// A JSON or form body in bytes.
    pub json_bytes_max: u64,
    /// A prediction's body in bytes.
    pub predict_bytes_max: u64,
    /// What is read of all large bodies together while several tenants are at work, in bytes a second; 16 MiB for each core when absent.
    pub large_bytes_per_second: Option<u64>,
    /// Refusals that are said at once, a second and tenant, or address without a credential.
    pub refusals_per_second: u32,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            body_idle_timeout: Duration::from_secs(20),
            body_pace_bytes: 1 << 10,
            body_pace_grace: Duration::from_secs(20),
            json_bytes_max: 1 << 20,
            predict_bytes_max: 32 << 20,
            large_bytes_per_second: None,
            refusals_per_second: 50,
        }
    }
}

/// The sandboxes.
#[derive(Debug, Clone)]
pub struct Cells {
    /// The `insula-cell` program.
    pub program: PathBuf,
    /// `libonnxruntime.so`.
    pub engine_library: PathBuf,
    /// gVisor's `runsc`, for tenants of that class; looked for when absent.
    pub runsc: Option<PathBuf>,
    /// What the sandbox must enforce.
    pub floor: FloorWord,
    /// Most live cells.
    pub cells_max: Option<usize>,
    /// Tenants whose cells work at once; the cores of the machine when absent.
    pub cores: Option<usize>,
    /// Blank cells kept ready.
    pub pool_blank: Option<usize>,
    /// Memory of all cells together.
    pub memory_bytes_max: Option<u64>,
    /// A serving cell without requests for this long goes.
    pub idle_timeout: Option<Duration>,
    /// One prediction.
    pub infer_timeout: Option<Duration>,
    /// One upload of a data set.
    pub upload_bytes_max: Option<u64>,
    /// One model.
    pub model_bytes_max: Option<u64>,
    /// Jobs (training, inspection, admission) at once.
    pub jobs_running_max: Option<usize>,
}

/// The sandbox's floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloorWord {
    /// Everything must be enforced.
    Strict,
    /// Memory and CPU limits may fall back where there is no writable cgroup.
    Development,
}

impl Config {
    /// Reads the file, if one is given, and lays the overrides over it.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = match file {
            None => String::new(),
            Some(path) => read_file(path)?,
        };
        let shown = file.map_or_else(|| "the configuration".to_owned(), |path| format!("`{}`", path.display()));
        let within = |error: ConfigError| ConfigError(format!("{shown}: {error}"));
        let raw = Raw::parse(&text).map_err(within)?;
        if let Some(path) = file.filter(|_| raw.stores.holds_secrets()) {
            private(path)?;
        }
        raw.validate(overrides).map_err(within)
    }

    /// The same from text.
    ///
    /// # Errors
    /// [`ConfigError`] naming line and key.
    pub fn parse(text: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        Raw::parse(text)?.validate(overrides)
    }

    /// Base URL of the service when it listens on `port`: the configured one, or one made from the address.
    #[must_use]
    pub fn base_url(&self, port: u16) -> String {
        match &self.public_url {
            Some(url) => url.clone(),
            None if self.listen.ip().is_loopback() || self.listen.ip().is_unspecified() => format!("https://localhost:{port}"),
            None => format!("https://{}", SocketAddr::new(self.listen.ip(), port)),
        }
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let failed = |error: std::io::Error| ConfigError(format!("cannot read `{}`: {error}", path.display()));
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(ConfigError(format!("`{}` is larger than {FILE_BYTES_MAX} bytes", path.display())));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// A file with secrets in it is for its owner alone.
fn private(path: &Path) -> Result<(), ConfigError> {
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
    let shown = path.display();
    match mode & 0o077 {
        0 => Ok(()),
        _ => Err(ConfigError(format!(
            "`{shown}` holds secrets and can be read or changed by others (mode {:o}): run `chmod 600 {shown}`, or put the secrets into files of their own, as in `rows_url_file`",
            mode & 0o777
        ))),
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    data_dir: Option<PathBuf>,
    keystore_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    public_url: Option<String>,
    tls: Option<TlsFiles>,
    log: Log,
    limits: RawLimits,
    cells: RawCells,
    tenant_limits: Limits,
    stores: RawStores,
    egress: RawEgress,
    traces: RawTraces,
    node: Option<RawNode>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    connections_max: Option<usize>,
    connections_per_address_max: Option<usize>,
    handshake_timeout_seconds: Option<f64>,
    first_byte_timeout_seconds: Option<f64>,
    header_timeout_seconds: Option<f64>,
    idle_timeout_seconds: Option<f64>,
    write_timeout_seconds: Option<f64>,
    drain_timeout_seconds: Option<f64>,
    request_timeout_seconds: Option<f64>,
    body_idle_timeout_seconds: Option<f64>,
    http2_streams_max: Option<u32>,
    json_bytes_max: Option<u64>,
    predict_bytes_max: Option<u64>,
    large_bytes_per_second: Option<u64>,
    refusals_per_second: Option<u32>,
    tenants_open_max: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawCells {
    program: Option<PathBuf>,
    engine_library: Option<PathBuf>,
    runsc: Option<PathBuf>,
    floor: Option<FloorWord>,
    cells_max: Option<usize>,
    cores: Option<usize>,
    pool_blank: Option<usize>,
    memory_bytes_max: Option<u64>,
    idle_timeout_seconds: Option<f64>,
    infer_timeout_seconds: Option<f64>,
    upload_bytes_max: Option<u64>,
    model_bytes_max: Option<u64>,
    jobs_running_max: Option<usize>,
}

/// Default of [`Config::tenants_open_max`].
const TENANTS_OPEN_MAX: usize = 256;
/// Longest timeout that can be set, in seconds: a day.
const TIMEOUT_SECONDS_MAX: f64 = 86_400.0;

impl Raw {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let shown = error.to_string();
            // The message comes with the line it is about, and the line may hold a secret.
            if !["://", "secret", "_url"].iter().any(|word| shown.contains(word)) {
                return ConfigError(shown.trim_end().to_owned());
            }
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let what = error.message().split('"').next().unwrap_or_default();
            ConfigError(format!("line {}: {}", before.matches('\n').count() + 1, what.trim()))
        })
    }

    fn validate(self, overrides: &Overrides) -> Result<Config, ConfigError> {
        let refuse = |what: String| Err(ConfigError(what));
        let home = |given: Option<PathBuf>, file: Option<PathBuf>, base: &Option<PathBuf>, key: &str| {
            given
                .or(file)
                .or_else(|| base.as_ref().map(|base| base.join("insula")))
                .ok_or_else(|| ConfigError(format!("`{key}` is not set and there is no home directory to put it in: set it")))
        };
        let data_dir = home(overrides.data_dir.clone(), self.data_dir, &overrides.data_home, "data_dir")?;
        let keystore_dir = home(overrides.keystore_dir.clone(), self.keystore_dir, &overrides.config_home, "keystore_dir")?;
        if let Some(url) = &self.public_url
            && (!url.starts_with("https://") || url.len() < 9 || url.ends_with('/') || url.contains(['?', '#', ' ']))
        {
            return refuse(format!("`public_url` is `{url}`: give an https URL without a slash at its end"));
        }
        let stores = self.stores.validate(self.node, self.public_url.as_deref())?;
        self.tenant_limits.validate().map_err(|error| ConfigError(format!("`tenant_limits`: {error}")))?;
        let tenants_open_max = at_least_one("limits.tenants_open_max", self.limits.tenants_open_max, TENANTS_OPEN_MAX)?;
        Ok(Config {
            data_dir,
            keystore_dir,
            listen: overrides.listen.or(self.listen).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8443))),
            public_url: self.public_url,
            tls: self.tls,
            log: self.log,
            connections: self.limits.connections()?,
            requests: self.limits.requests()?,
            cells: self.cells.validate(overrides)?,
            tenant_limits: self.tenant_limits,
            tenants_open_max,
            egress: self.egress.validate()?,
            traces: self.traces.validate()?,
            stores,
        })
    }
}

impl RawLimits {
    fn connections(&self) -> Result<ConnectionLimits, ConfigError> {
        let usual = ConnectionLimits::default();
        Ok(ConnectionLimits {
            connections_max: at_least_one("limits.connections_max", self.connections_max, usual.connections_max)?,
            connections_per_address_max: at_least_one(
                "limits.connections_per_address_max",
                self.connections_per_address_max,
                usual.connections_per_address_max,
            )?,
            handshake_timeout: seconds("limits.handshake_timeout_seconds", self.handshake_timeout_seconds, usual.handshake_timeout)?,
            first_byte_timeout: seconds("limits.first_byte_timeout_seconds", self.first_byte_timeout_seconds, usual.first_byte_timeout)?,
            header_timeout: seconds("limits.header_timeout_seconds", self.header_timeout_seconds, usual.header_timeout)?,
            idle_timeout: seconds("limits.idle_timeout_seconds", self.idle_timeout_seconds, usual.idle_timeout)?,
            write_timeout: seconds("limits.write_timeout_seconds", self.write_timeout_seconds, usual.write_timeout)?,
            drain_timeout: seconds("limits.drain_timeout_seconds", self.drain_timeout_seconds, usual.drain_timeout)?,
            http2_streams_max: at_least_one("limits.http2_streams_max", self.http2_streams_max, usual.http2_streams_max)?,
            ..usual
        })
    }

    fn requests(&self) -> Result<RequestLimits, ConfigError> {
        let usual = RequestLimits::default();
        Ok(RequestLimits {
            request_timeout: seconds("limits.request_timeout_seconds", self.request_timeout_seconds, usual.request_timeout)?,
            body_idle_timeout: seconds("limits.body_idle_timeout_seconds", self.body_idle_timeout_seconds, usual.body_idle_timeout)?,
            json_bytes_max: at_least_one("limits.json_bytes_max", self.json_bytes_max, usual.json_bytes_max)?,
            predict_bytes_max: at_least_one("limits.predict_bytes_max", self.predict_bytes_max, usual.predict_bytes_max)?,
            large_bytes_per_second: self
                .large_bytes_per_second
                .map(|bytes| at_least_one("limits.large_bytes_per_second", Some(bytes), 1))
                .transpose()?,
            refusals_per_second: at_least_one("limits.refusals_per_second", self.refusals_per_second, usual.refusals_per_second)?,
            ..usual
        })
    }
}

impl RawCells {
    fn validate(self, overrides: &Overrides) -> Result<Cells, ConfigError> {
        let optional = |key, value: Option<f64>| value.map(|_| seconds(key, value, Duration::ZERO)).transpose();
        Ok(Cells {
            program: self
                .program
                .or_else(|| overrides.program_dir.as_ref().map(|dir| dir.join("insula-cell")))
                .unwrap_or_else(|| PathBuf::from("insula-cell")),
            engine_library: self
                .engine_library
                .or_else(|| overrides.engine_library.clone())
                .or_else(|| overrides.program_dir.as_ref().map(|dir| dir.join("libonnxruntime.so")))
                .unwrap_or_else(|| PathBuf::from("libonnxruntime.so")),
            runsc: self.runsc,
            floor: self.floor.unwrap_or(FloorWord::Strict),
            cells_max: self.cells_max,
            cores: self.cores.map(|cores| at_least_one("cells.cores", Some(cores), 1)).transpose()?,
            pool_blank: self.pool_blank,
            memory_bytes_max: self.memory_bytes_max,
            idle_timeout: optional("cells.idle_timeout_seconds", self.idle_timeout_seconds)?,
            infer_timeout: optional("cells.infer_timeout_seconds", self.infer_timeout_seconds)?,
            upload_bytes_max: self.upload_bytes_max,
            model_bytes_max: self.model_bytes_max,
            jobs_running_max: self.jobs_running_max,
        })
    }
}

fn seconds(key: &str, value: Option<f64>, usual: Duration) -> Result<Duration, ConfigError> {
    match value {
        None => Ok(usual),
        Some(seconds) if seconds > 0.0 && seconds <= TIMEOUT_SECONDS_MAX => Ok(Duration::from_secs_f64(seconds)),
        Some(seconds) => Err(ConfigError(format!("`{key}` is {seconds}: give more than 0 and at most {TIMEOUT_SECONDS_MAX}"))),
    }
}

fn at_least_one<N: PartialOrd + From<u8> + Copy>(key: &str, value: Option<N>, usual: N) -> Result<N, ConfigError> {
    match value {
        Some(n) if n < N::from(1) => Err(ConfigError(format!("`{key}` is 0: give at least 1"))),
        Some(n) => Ok(n),
        None => Ok(usual),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn homes() -> Overrides {
        Overrides { data_home: Some("/d".into()), config_home: Some("/c".into()), program_dir: Some("/p".into()), ..Overrides::default() }
    }

    #[test]
    fn nothing_configured_is_a_whole_configuration() {
        let config = Config::parse("", &homes()).unwrap();
        assert_eq!(config.data_dir, Path::new("/d/insula"));
        assert_eq!(config.keystore_dir, Path::new("/c/insula"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:8443");
        assert_eq!(config.cells.program, Path::new("/p/insula-cell"));
        assert_eq!(config.base_url(8443), "https://localhost:8443");
        assert!(config.tls.is_none());
    }

    #[test]
    fn overrides_win_over_the_file() {
        let overrides = Overrides { data_dir: Some("/x".into()), listen: Some("127.0.0.1:0".parse().unwrap()), ..homes() };
        let config = Config::parse("data_dir = '/y'\nlisten = '0.0.0.0:1'", &overrides).unwrap();
        assert_eq!((config.data_dir.as_path(), config.listen.port()), (Path::new("/x"), 0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("data_dri = '/y'", "data_dri"),
            ("[tls]\ncertificate = 'a'\nkye = 'b'", "kye"),
            ("[limits]\nconnection_max = 5", "connection_max"),
            ("[limits]\nconnections_max = 0", "`limits.connections_max` is 0"),
            ("[limits]\nrefusals_per_second = 0", "`limits.refusals_per_second` is 0"),
            ("[limits]\nidle_timeout_seconds = -1.0", "`limits.idle_timeout_seconds` is -1"),
            ("[cells]\nfloor = 'lax'", "lax"),
            ("[tenant_limits]\nrequest_per_second = 5", "request_per_second"),
            ("[tenant_limits]\nrequests_per_second = 0", "requests_per_second"),
            ("public_url = 'http://a'", "`public_url` is `http://a`"),
            ("listen = 'localhost'", "listen"),
            ("data_dir = ", "line 1"),
            ("[egress]\nnetworks = ['10.0.0.0/99']", "10.0.0.0/99"),
            ("[egress]\nhttps = true", "https"),
            ("[traces]\nsample = 0.5", "`traces.endpoint` is not set"),
            ("[traces]\nendpoint = 'http://collector.example/v1/traces'", "https URL"),
            ("[traces]\nendpoint = 'https://c.example/v1/traces'\nsample = 1.5", "`traces.sample` is 1.5"),
            ("[traces]\nendpoint = 'http://127.0.0.1:4318/v1/traces'\ntenants.clinic = -1.0", "`traces.tenants.clinic`"),
            ("[cells]\ncores = 0", "`cells.cores` is 0"),
        ];
        for (text, word) in table {
            let error = Config::parse(text, &homes()).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let error = Config::parse("", &Overrides::default()).unwrap_err().to_string();
        assert!(error.contains("`data_dir` is not set"), "{error}");
        let error = Config::load(Some(Path::new("/nonexistent/insula.toml")), &homes()).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/insula.toml"), "{error}");
    }
}
