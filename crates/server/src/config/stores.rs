//! `[stores]` and `[node]`: the stores beside the data folder, and which of several nodes this is.
//!
//! Every secret can stand in a file of its own (`rows_url_file = …`), which only its owner may read. Nothing in here prints one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use http::Uri;
use platform::tenancy::{NodeConfig, PostgresConfig, S3Config, S3Credentials, S3Tenant, Secret, StoresConfig, Tier};
use serde::Deserialize;

use super::{ConfigError, at_least_one};
use crate::guard::percent_decoded;

/// Largest file of a secret in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// Longest name of a node, and prefix of buckets, in bytes.
const NODE_BYTES_MAX: usize = 63;
const BUCKET_PREFIX_BYTES_MAX: usize = 24;
/// Defaults of the connection limits.
const CONNECTIONS_POOLED: u32 = 16;
const CONNECTIONS_TENANT: u32 = 2;
const CONNECTIONS_DEDICATED: u32 = 64;

/// `[stores]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStores {
    tier: Tier,
    postgres: Option<RawPostgres>,
    s3: Option<RawS3>,
}

/// `[stores.postgres]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawPostgres {
    rows_url: Option<String>,
    rows_url_file: Option<PathBuf>,
    control_url: Option<String>,
    control_url_file: Option<PathBuf>,
    owner_url: Option<String>,
    owner_url_file: Option<PathBuf>,
    allow_plaintext: bool,
    prepared_statements: Option<bool>,
    connections_pooled_max: Option<u32>,
    connections_tenant_max: Option<u32>,
    connections_dedicated_max: Option<u32>,
}

/// `[stores.s3]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawS3 {
    endpoint: Option<String>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    secret_access_key_file: Option<PathBuf>,
    bucket_prefix: Option<String>,
    credentials: Option<toml::Value>,
    iam_endpoint: Option<String>,
    allow_http: bool,
}

/// `[stores.s3.credentials.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawS3Tenant {
    bucket: String,
    access_key_id: String,
    secret_access_key: Option<String>,
    secret_access_key_file: Option<PathBuf>,
}

/// `[node]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNode {
    name: String,
    url: String,
}

fn refuse<T>(what: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(what.into()))
}

impl RawStores {
    /// Whether the file itself holds a secret.
    pub(super) fn holds_secrets(&self) -> bool {
        let postgres =
            self.postgres.as_ref().is_some_and(|raw| [&raw.rows_url, &raw.control_url, &raw.owner_url].iter().any(|url| url.is_some()));
        let tenants = |raw: &RawS3| {
            let tables = raw.credentials.as_ref().and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values);
            tables.filter_map(toml::Value::as_table).any(|table| table.contains_key("secret_access_key"))
        };
        postgres || self.s3.as_ref().is_some_and(|raw| raw.secret_access_key.is_some() || tenants(raw))
    }

    pub(super) fn validate(self, node: Option<RawNode>, public_url: Option<&str>) -> Result<StoresConfig, ConfigError> {
        let Self { tier, postgres, s3 } = self;
        let postgres = postgres.map(RawPostgres::validate).transpose()?;
        let s3 = s3.map(RawS3::validate).transpose()?;
        let node = node.map(RawNode::validate).transpose()?;
        let owner = postgres.as_ref().is_some_and(|postgres| postgres.owner_url.is_some());
        match tier {
            Tier::Embedded => {}
            _ if postgres.is_none() => {
                return refuse(format!("`stores.tier` is `{tier}`, which lies in PostgreSQL: add `[stores.postgres]`, or take `embedded`"));
            }
            Tier::Schema | Tier::Database if !owner => {
                return refuse(format!(
                    "`stores.tier` is `{tier}`, for which roles and schemas are made: set `stores.postgres.owner_url` (or `owner_url_file`), or take `pooled`"
                ));
            }
            _ => {}
        }
        if node.is_some() {
            several(tier, postgres.is_some(), s3.is_some(), public_url)?;
        }
        Ok(StoresConfig { postgres, s3, node, tier })
    }
}

/// What several nodes need to share.
fn several(tier: Tier, postgres: bool, s3: bool, public_url: Option<&str>) -> Result<(), ConfigError> {
    let needs = |what: &str| refuse(format!("`[node]` says that this is one of several nodes: {what}"));
    match () {
        () if !postgres => needs("they share their rows in PostgreSQL, so add `[stores.postgres]`, or leave `[node]` out"),
        () if !s3 => needs("they share their objects in S3, so add `[stores.s3]`, or leave `[node]` out"),
        () if tier == Tier::Embedded => needs(
            "a new tenant in the data folder of one of them would be out of reach of the others, so set `stores.tier` to pooled, schema or database",
        ),
        () if public_url.is_none() => needs("their tokens name one issuer, so set the same `public_url` on all of them"),
        () => Ok(()),
    }
}

impl RawPostgres {
    fn validate(self) -> Result<PostgresConfig, ConfigError> {
        let secret = |name: &str, inline, file| secret(&format!("stores.postgres.{name}"), inline, file);
        let needed = |name: &str, url: Option<Secret>| match url {
            Some(url) => Ok(url),
            None => refuse(format!("`stores.postgres.{name}` is not set: give the URL of that role here, or its file as `{name}_file`")),
        };
        let rows = needed("rows_url", secret("rows_url", self.rows_url, self.rows_url_file)?)?;
        let control = needed("control_url", secret("control_url", self.control_url, self.control_url_file)?)?;
        let owner = secret("owner_url", self.owner_url, self.owner_url_file)?;
        let given = [("rows_url", Some(&rows)), ("control_url", Some(&control)), ("owner_url", owner.as_ref())];
        let mut users = BTreeMap::new();
        for (name, url) in given.into_iter().filter_map(|(name, url)| Some((name, url?))) {
            let user = role(&format!("stores.postgres.{name}"), url, self.allow_plaintext)?;
            if let Some(other) = users.insert(user, name) {
                return refuse(format!(
                    "`stores.postgres.{other}` and `stores.postgres.{name}` are the same role: give each a role of its own, so that who serves rows owns nothing"
                ));
            }
        }
        let count = |name: &str, value, usual| at_least_one(&format!("stores.postgres.{name}"), value, usual);
        let dedicated = count("connections_dedicated_max", self.connections_dedicated_max, CONNECTIONS_DEDICATED)?;
        let tenant = count("connections_tenant_max", self.connections_tenant_max, CONNECTIONS_TENANT.min(dedicated))?;
        if tenant > dedicated {
            return refuse(format!(
                "`stores.postgres.connections_tenant_max` is {tenant}, more than `connections_dedicated_max`, {dedicated}"
            ));
        }
        Ok(PostgresConfig {
            rows_url: rows,
            control_url: control,
            owner_url: owner,
            prepared_statements: self.prepared_statements.unwrap_or(true),
            connections_pooled_max: count("connections_pooled_max", self.connections_pooled_max, CONNECTIONS_POOLED)?,
            connections_tenant_max: tenant,
            connections_dedicated_max: dedicated,
        })
    }
}

impl RawS3 {
    fn validate(self) -> Result<S3Config, ConfigError> {
        let needed = |name: &str| ConfigError(format!("`stores.s3.{name}` is not set: give the service's own access key"));
        for (name, url) in [("endpoint", &self.endpoint), ("iam_endpoint", &self.iam_endpoint)] {
            if let Some(url) = url {
                s3_url(&format!("stores.s3.{name}"), url, self.allow_http)?;
            }
        }
        let access_key_id = self.access_key_id.filter(|id| !id.is_empty()).ok_or_else(|| needed("access_key_id"))?;
        let secret_access_key = secret("stores.s3.secret_access_key", self.secret_access_key, self.secret_access_key_file)?
            .ok_or_else(|| needed("secret_access_key` or `stores.s3.secret_access_key_file"))?;
        let credentials = credentials(self.credentials, self.iam_endpoint, &access_key_id)?;
        let region = self.region.unwrap_or_else(|| "us-east-1".to_owned());
        if region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return refuse(format!("`stores.s3.region` is `{region}`: give letters, digits and hyphens, as in eu-central-1"));
        }
        let bucket_prefix = self.bucket_prefix.unwrap_or_else(|| "insula".to_owned());
        if !is_label(&bucket_prefix, BUCKET_PREFIX_BYTES_MAX) {
            return refuse(format!(
                "`stores.s3.bucket_prefix` is `{bucket_prefix}`: give 1 to {BUCKET_PREFIX_BYTES_MAX} small letters, digits and inner hyphens"
            ));
        }
        Ok(S3Config { endpoint: self.endpoint, region, access_key_id, secret_access_key, credentials, bucket_prefix })
    }
}

impl RawNode {
    fn validate(self) -> Result<NodeConfig, ConfigError> {
        let Self { name, url } = self;
        if !is_label(&name, NODE_BYTES_MAX) {
            return refuse(format!("`node.name` is `{name}`: give 1 to {NODE_BYTES_MAX} small letters, digits and inner hyphens"));
        }
        let parsed: Option<Uri> = url.parse().ok();
        let plain = parsed.as_ref().is_some_and(|uri| {
            uri.scheme_str() == Some("https")
                && uri.host().is_some()
                && uri.authority().is_some_and(|to| !to.as_str().contains('@'))
                && uri.path() == "/"
                && uri.query().is_none()
        });
        if !plain || url.ends_with('/') {
            return refuse(format!(
                "`node.url` is `{url}`: give the https URL under which the other nodes reach this one, as in https://10.0.0.7:8443"
            ));
        }
        // The hash of its certificate is known when the service starts.
        Ok(NodeConfig { name, url, certificate_sha256: String::new() })
    }
}

/// Small letters, digits and inner hyphens.
fn is_label(text: &str, bytes_max: usize) -> bool {
    let allowed = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (1..=bytes_max).contains(&text.len()) && allowed && !text.starts_with('-') && !text.ends_with('-')
}

/// A secret, out of the configuration or out of a file that only its owner may read.
fn secret(key: &str, inline: Option<String>, file: Option<PathBuf>) -> Result<Option<Secret>, ConfigError> {
    match (inline, file) {
        (Some(_), Some(_)) => refuse(format!("`{key}` and `{key}_file` are both set: give one")),
        (Some(text), None) if text.trim().is_empty() => refuse(format!("`{key}` is empty")),
        (Some(text), None) => Ok(Some(Secret::new(text))),
        (None, Some(path)) => secret_file(key, &path).map(Some),
        (None, None) => Ok(None),
    }
}

fn secret_file(key: &str, path: &Path) -> Result<Secret, ConfigError> {
    let shown = path.display();
    let failed = |error: std::io::Error| ConfigError(format!("`{key}_file`: cannot read `{shown}`: {error}"));
    let meta = fs::metadata(path).map_err(failed)?;
    let mode = meta.permissions().mode();
    if mode & 0o077 != 0 {
        return refuse(format!(
            "`{key}_file`: `{shown}` can be read or changed by others (mode {:o}): run `chmod 600 {shown}`",
            mode & 0o777
        ));
    }
    if meta.len() > SECRET_BYTES_MAX {
        return refuse(format!("`{key}_file`: `{shown}` is larger than {SECRET_BYTES_MAX} bytes"));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    match text.trim() {
        "" => refuse(format!("`{key}_file`: `{shown}` is empty")),
        trimmed => Ok(Secret::new(trimmed.to_owned())),
    }
}

/// The role of a PostgreSQL URL. Refuses what would carry rows and passwords in clear over a network. Never repeats the URL.
fn role(key: &str, url: &Secret, allow_plaintext: bool) -> Result<String, ConfigError> {
    let bad =
        |what: &str| ConfigError(format!("`{key}` {what}: give a URL as in postgres://role:password@host:5432/insula?sslmode=verify-full"));
    let url = url.expose();
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")).ok_or_else(|| bad("is no PostgreSQL URL"))?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, _database) = place.split_once('/').unwrap_or((place, ""));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let decoded = |text: &str| percent_decoded(text.as_bytes(), false).and_then(|bytes| String::from_utf8(bytes).ok());
    let parameter = |names: &[&str]| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.rfind(|(name, _)| names.contains(name)).and_then(|(_, value)| decoded(value))
    };
    let user = decoded(user.split(':').next().unwrap_or_default()).ok_or_else(|| bad("has a broken percent-encoding"))?;
    let user = parameter(&["user"]).unwrap_or(user);
    if user.is_empty() {
        return Err(bad("names no role"));
    }
    let host = parameter(&["host", "hostaddr"]).or_else(|| decoded(host_of(host))).ok_or_else(|| bad("has a broken percent-encoding"))?;
    let sslmode = parameter(&["sslmode", "ssl-mode"]);
    let encrypted = matches!(sslmode.as_deref(), Some("require" | "verify-ca" | "verify-full"));
    if !encrypted && !allow_plaintext && !is_near(&host) {
        return refuse(format!(
            "`{key}` goes to `{host}` without certain encryption: add `?sslmode=verify-full` (with `sslrootcert=FILE`), or set `stores.postgres.allow_plaintext = true` where the network itself is trusted"
        ));
    }
    Ok(user)
}

/// The host of `host:port` or `[address]:port`.
fn host_of(text: &str) -> &str {
    match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => text.rsplit_once(':').map_or(text, |(host, _)| host),
    }
}

/// Whether what is sent there stays on this machine: a socket, or a loopback address.
fn is_near(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.is_empty() || host.starts_with('/') || host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

fn s3_url(key: &str, url: &str, allow_http: bool) -> Result<(), ConfigError> {
    let bad = || refuse(format!("`{key}` is not an URL as in https://s3.example.org"));
    let Ok(uri) = url.parse::<Uri>() else { return bad() };
    let Some(host) = uri.host() else { return bad() };
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return refuse(format!("`{key}` has a password in it: the key belongs into `access_key_id` and `secret_access_key`"));
    }
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if allow_http || is_near(host) => Ok(()),
        Some("http") => refuse(format!(
            "`{key}` is `{url}`, without TLS: give an https URL, or set `stores.s3.allow_http = true` where the network itself is trusted"
        )),
        _ => bad(),
    }
}

fn credentials(raw: Option<toml::Value>, iam_endpoint: Option<String>, own: &str) -> Result<S3Credentials, ConfigError> {
    let table = match raw {
        None => return Ok(S3Credentials::Iam { endpoint: iam_endpoint }),
        Some(toml::Value::String(word)) if word == "iam" => return Ok(S3Credentials::Iam { endpoint: iam_endpoint }),
        Some(toml::Value::Table(table)) => table,
        Some(_) => return refuse("`stores.s3.credentials` is \"iam\", or a table `[stores.s3.credentials.NAME]` for each tenant"),
    };
    if iam_endpoint.is_some() {
        return refuse("`stores.s3.iam_endpoint` is set, and the credentials are configured by tenant: give one of the two");
    }
    let mut tenants = BTreeMap::new();
    let (mut buckets, mut keys) = (BTreeSet::new(), BTreeSet::from([own.to_owned()]));
    for (name, value) in table {
        let key = format!("stores.s3.credentials.{name}");
        let raw: RawS3Tenant = value.try_into().map_err(|error: toml::de::Error| ConfigError(format!("`{key}`: {}", error.message())))?;
        let secret = secret(&format!("{key}.secret_access_key"), raw.secret_access_key, raw.secret_access_key_file)?;
        let Some(secret_access_key) = secret else {
            return refuse(format!("`{key}.secret_access_key` is not set: give it, or its file as `secret_access_key_file`"));
        };
        if !buckets.insert(raw.bucket.clone()) {
            return refuse(format!(
                "`{key}.bucket` is `{}`, which another tenant has already: give each tenant a bucket of its own",
                raw.bucket
            ));
        }
        if !keys.insert(raw.access_key_id.clone()) {
            return refuse(format!(
                "`{key}.access_key_id` is used twice: give each tenant a key that opens its own bucket and nothing else"
            ));
        }
        tenants.insert(name, S3Tenant { bucket: raw.bucket, access_key_id: raw.access_key_id, secret_access_key });
    }
    Ok(S3Credentials::Configured(tenants))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Overrides};
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let homes = Overrides { data_home: Some("/d".into()), config_home: Some("/c".into()), ..Overrides::default() };
        Config::parse(text, &homes)
    }

    const POSTGRES: &str = "[stores.postgres]\nrows_url = 'postgres://rows:p1@127.0.0.1/insula'\ncontrol_url = 'postgres://control:p2@localhost:6432/insula'\n";
    const OWNER: &str = "owner_url = 'postgres:///insula?host=/run/postgresql&user=owner'\n";
    const S3: &str = "[stores.s3]\nendpoint = 'http://127.0.0.1:9000'\naccess_key_id = 'service'\nsecret_access_key = 'sesame'\n";

    #[test]
    fn a_whole_configuration_is_understood() {
        let text = format!(
            "public_url = 'https://ml.example.org'\n[stores]\ntier = 'schema'\n{POSTGRES}{OWNER}prepared_statements = false\nconnections_tenant_max = 3\n{S3}bucket_prefix = 'isle'\n\
             [stores.s3.credentials.clinic]\nbucket = 'b1'\naccess_key_id = 'k1'\nsecret_access_key = 's1'\n[node]\nname = 'a'\nurl = 'https://10.0.0.1:8443'\n"
        );
        let stores = parse(&text).unwrap().stores;
        let postgres = stores.postgres.as_ref().unwrap();
        assert_eq!((stores.tier, postgres.prepared_statements), (Tier::Schema, false));
        assert_eq!((postgres.connections_pooled_max, postgres.connections_tenant_max, postgres.connections_dedicated_max), (16, 3, 64));
        let s3 = stores.s3.as_ref().unwrap();
        assert_eq!((s3.bucket_prefix.as_str(), s3.region.as_str()), ("isle", "us-east-1"));
        let S3Credentials::Configured(tenants) = &s3.credentials else { panic!("{s3:?}") };
        assert_eq!((tenants["clinic"].bucket.as_str(), tenants["clinic"].secret_access_key.expose()), ("b1", "s1"));
        assert_eq!(stores.node.as_ref().unwrap().name, "a");
        let shown = format!("{stores:?}");
        for secret in ["p1", "p2", "sesame", "s1\""] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn nothing_configured_is_the_data_folder_alone() {
        let stores = parse("").unwrap().stores;
        assert!(stores.tier == Tier::Embedded && stores.postgres.is_none() && stores.s3.is_none() && stores.node.is_none());
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_remedy() {
        let node = "[node]\nname = 'a'\nurl = 'https://10.0.0.1:8443'\n";
        let url = "public_url = 'https://ml.example.org'\n";
        let pooled = "[stores]\ntier = 'pooled'\n";
        let far = POSTGRES.replace("127.0.0.1", "db.example.org");
        let table = [
            (pooled.to_owned(), "add `[stores.postgres]`"),
            (format!("[stores]\ntier = 'schema'\n{POSTGRES}"), "owner_url"),
            ("[stores]\ntier = 'pool'".to_owned(), "pool"),
            (format!("{url}{node}"), "add `[stores.postgres]`"),
            (format!("{url}{pooled}{POSTGRES}{node}"), "add `[stores.s3]`"),
            (format!("{url}{POSTGRES}{S3}{node}"), "stores.tier"),
            (format!("{pooled}{POSTGRES}{S3}{node}"), "public_url"),
            (format!("{url}{pooled}{POSTGRES}{S3}{}", node.replace("https", "http")), "node.url"),
            (format!("{url}{pooled}{POSTGRES}{S3}{}", node.replace("8443", "8443/x")), "node.url"),
            (format!("{url}{pooled}{POSTGRES}{S3}{}", node.replace("'a'", "'A b'")), "node.name"),
            ("[stores.postgres]\ncontrol_url = 'postgres://c@/x'".to_owned(), "rows_url"),
            ("[stores.postgres]\nrows_url = 'postgres://c@/x'".to_owned(), "control_url"),
            (POSTGRES.replace("postgres://rows", "mysql://rows"), "no PostgreSQL URL"),
            (POSTGRES.replace("rows:p1@", ""), "names no role"),
            (POSTGRES.replace("control:p2", "rows:p1"), "the same role"),
            (format!("{POSTGRES}connections_pooled_max = 0"), "connections_pooled_max` is 0"),
            (format!("{POSTGRES}connections_tenant_max = 9\nconnections_dedicated_max = 8"), "connections_tenant_max"),
            (format!("{POSTGRES}conections = 9"), "conections"),
            (far.clone(), "sslmode=verify-full"),
            (far.replace("db.example.org/insula", "db.example.org/insula?sslmode=prefer"), "sslmode=verify-full"),
            (S3.replace("127.0.0.1:9000", "s3.example.org"), "allow_http"),
            (format!("{S3}iam_endpoint = 'http://iam.example.org'"), "iam_endpoint"),
            (S3.replace("http://127", "ftp://127"), "stores.s3.endpoint"),
            (S3.replace("http://127", "http://a:b@127"), "has a password in it"),
            (format!("{S3}bucket_prefix = 'A_b'"), "bucket_prefix"),
            (format!("{S3}credentials = 'sts'"), "stores.s3.credentials"),
            (S3.replace("secret_access_key = 'sesame'", ""), "secret_access_key_file"),
            (format!("{S3}[stores.s3.credentials.a]\nbucket = 'b'\naccess_key_id = 'k'"), "credentials.a.secret_access_key"),
            (format!("{S3}[stores.s3.credentials.a]\nbukket = 'b'"), "bukket"),
            (format!("{S3}[stores.s3.credentials.a]\nbucket = 'b'\naccess_key_id = 'service'\nsecret_access_key = 's'"), "used twice"),
        ];
        for (text, word) in table {
            let error = parse(&text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
            assert!(!error.contains("p1") && !error.contains("p2") && !error.contains("sesame"), "a secret is repeated: {error}");
        }
        let both = "access_key_id = 'K'\nsecret_access_key = 's'\n";
        let error = parse(&format!("{S3}[stores.s3.credentials.a]\nbucket = 'b'\n{both}[stores.s3.credentials.b]\nbucket = 'b'\n{both}"));
        assert!(error.unwrap_err().to_string().contains("another tenant"));
        for fine in [
            far.replace("db.example.org/insula", "db.example.org/insula?sslmode=verify-full"),
            format!("{far}allow_plaintext = true"),
            format!("{}allow_http = true", S3.replace("127.0.0.1:9000", "s3.example.org")),
            format!("{S3}credentials = 'iam'\niam_endpoint = 'https://iam.example.org'"),
            POSTGRES.replace("127.0.0.1", "[::1]:5432").replace("localhost:6432", "%2Frun%2Fpostgresql"),
        ] {
            parse(&fine).unwrap();
        }
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        for text in [
            "[stores]\npostgres = 'postgres://rows:hunter2@h/x'",
            "[stores.postgres]\nprepared_statements = 'postgres://rows:hunter2@h/x'",
            "[stores.s3]\nsecret_access_key = 'hunter2' oops",
            "[stores.s3]\nsecret_acces_key = 'hunter2'",
        ] {
            let error = parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn the_example_is_a_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().display().to_string();
        let url = |role: &str| format!("postgres://{role}:p@db.example.org/insula?sslmode=verify-full");
        let secrets = [
            ("rows.url", url("r")),
            ("control.url", url("c")),
            ("owner.url", url("o")),
            ("s3.key", "s".into()),
            ("s3-clinic.key", "t".into()),
        ];
        for (name, secret) in secrets {
            fs::write(dir.path().join(name), secret).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let example = include_str!("../../../../examples/postgres-s3.toml").replace("/etc/insula/secrets", &place);
        let stores = parse(&example).unwrap().stores;
        assert!(stores.postgres.unwrap().owner_url.is_some() && stores.node.is_some());
        assert!(matches!(stores.s3.unwrap().credentials, S3Credentials::Iam { endpoint: None }));
        // What is commented out works when it is let in.
        let is_key = |text: &str| text.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        let comment = |line: &str| line.strip_prefix("# ").filter(|rest| rest.starts_with('[') || is_key(rest)).map(str::to_owned);
        let other: Vec<String> = example
            .lines()
            .filter(|line| !line.starts_with("credentials = "))
            .map(|line| comment(line).unwrap_or_else(|| line.to_owned()))
            .collect();
        let other = other.join("\n").replace("iam_endpoint = ", "# ");
        let S3Credentials::Configured(tenants) = parse(&other).unwrap().stores.s3.unwrap().credentials else { panic!("{other}") };
        assert_eq!(tenants["clinic"].secret_access_key.expose(), "t");
    }

    #[test]
    fn secrets_come_out_of_private_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rows.url");
        fs::write(&file, "postgres://rows:p1@127.0.0.1/insula\n").unwrap();
        let text = format!("[stores.postgres]\nrows_url_file = '{}'\ncontrol_url = 'postgres://c@/x'\n", file.display());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let error = parse(&text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("mode 640") && error.contains("chmod 600"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(parse(&text).unwrap().stores.postgres.unwrap().rows_url.expose(), "postgres://rows:p1@127.0.0.1/insula");
        let error = parse(&format!("{text}rows_url = 'postgres://rows@/x'")).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("both set"), "{error}");
        fs::write(&file, "\n").unwrap();
        assert!(parse(&text).map(|_| ()).unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn a_configuration_with_secrets_is_private_itself() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("insula.toml");
        let homes = Overrides { data_home: Some("/d".into()), config_home: Some("/c".into()), ..Overrides::default() };
        fs::write(&file, POSTGRES).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Config::load(Some(&file), &homes).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("holds secrets") && error.contains("chmod 600"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        Config::load(Some(&file), &homes).unwrap();
        fs::write(&file, "listen = '127.0.0.1:1'").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        Config::load(Some(&file), &homes).unwrap();
    }
}
