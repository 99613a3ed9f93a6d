//! Whether a configuration is safe to run. The service refuses to start when it is not, and `insula check` says why, each
//! finding with what to do about it.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use platform::jail::zygote::Launcher;
use platform::tenancy::IsolationClass;
use platform::tenancy::check_stores;

use crate::config::Config;
use crate::tls;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it may stay as it is.
    pub ok: bool,
    /// What was found.
    pub what: String,
    /// What to do when it is not, or what would make it better.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self { ok: true, what: what.into(), remedy: None }
    }

    fn bad(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { ok: false, what: what.into(), remedy: Some(remedy.into()) }
    }
}

/// Everything that can be looked at without starting the service, the sandbox included: it is started once and stopped.
/// Blocking; makes its own runtime.
#[must_use]
pub fn check(config: &Config) -> Vec<Finding> {
    let mut findings = check_files(config);
    findings.extend(stores(config));
    if findings.iter().all(|finding| finding.ok) {
        findings.push(sandbox(config));
        findings.push(gvisor(config));
    }
    findings
}

/// The shared stores, as far as they are configured.
fn stores(config: &Config) -> Vec<Finding> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Finding::bad(format!("the shared stores cannot be looked at: {error}"), "try again")],
    };
    let found = runtime.block_on(check_stores(&config.stores));
    found.into_iter().map(|found| Finding { ok: found.ok, what: found.what, remedy: found.remedy }).collect()
}

/// The part that only looks at files and addresses; done at every start.
pub(crate) fn check_files(config: &Config) -> Vec<Finding> {
    let mut findings = vec![bind(config), nested(config)];
    findings.extend(certificate(config));
    findings.extend(private_folder(&config.keystore_dir, "keystore"));
    findings.extend(private_folder(&config.data_dir, "data directory"));
    for name in ["root.key", "ca.key", "bootstrap.secret", "anchors"] {
        findings.extend(private_file(&config.keystore_dir.join(name)));
    }
    findings.extend(shared_keystore(config));
    findings.push(program(&config.cells.program));
    findings.push(library(&config.cells.engine_library));
    findings
}

fn bind(config: &Config) -> Finding {
    let address = config.listen;
    if is_public(address.ip()) && config.tls.is_none() {
        return Finding::bad(
            format!("listens on {address}, which others can reach, with a certificate of the development CA"),
            "set `tls.certificate` and `tls.key` to a certificate that your clients trust, or listen on 127.0.0.1",
        );
    }
    if is_public(address.ip()) && config.public_url.is_none() {
        return Finding::bad(
            format!("listens on {address}, and `public_url` is not set: tokens would name an issuer nobody can check"),
            "set `public_url` to the https URL that clients use",
        );
    }
    Finding::ok(format!("listens on {address}"))
}

fn is_public(address: IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

/// The root key must not be in a backup of the data, nor the data in one of the keys.
fn nested(config: &Config) -> Finding {
    let (data, keys) = (resolved(&config.data_dir), resolved(&config.keystore_dir));
    if data.starts_with(&keys) || keys.starts_with(&data) {
        return Finding::bad(
            format!("the data directory `{}` and the keystore `{}` lie inside one another", data.display(), keys.display()),
            "set `data_dir` and `keystore_dir` to folders apart, so that a copy of one never holds the other",
        );
    }
    Finding::ok(format!("the keystore `{}` is outside the data directory `{}`", keys.display(), data.display()))
}

/// Nodes that do not find the same root key cannot read the same tenants.
fn shared_keystore(config: &Config) -> Option<Finding> {
    let node = config.stores.node.as_ref()?;
    let keystore = config.keystore_dir.display();
    Some(match config.keystore_dir.is_dir() {
        true => Finding::ok(format!("node `{}` shares the keystore `{keystore}`", node.name)),
        false => Finding::bad(
            format!("node `{}` is one of several, and the keystore `{keystore}` that they share is not there", node.name),
            "mount it; for the first node of all, make the empty folder with `mkdir -m 700`",
        ),
    })
}

/// The path without links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest = Vec::new();
    let mut known = absolute.as_path();
    loop {
        if let Ok(real) = fs::canonicalize(known) {
            return rest.iter().rev().fold(real, |path, name| path.join(name));
        }
        match (known.parent(), known.file_name()) {
            (Some(parent), Some(name)) => {
                rest.push(name.to_owned());
                known = parent;
            }
            _ => return absolute,
        }
    }
}

fn certificate(config: &Config) -> Vec<Finding> {
    let Some(files) = &config.tls else { return vec![Finding::ok("uses a certificate of its own development CA")] };
    let mut findings = Vec::new();
    match tls::read_files(files) {
        Err(error) => findings.push(Finding::bad(error.to_string(), "give a PEM chain, leaf first, and its PEM private key")),
        Ok(_) => findings.push(Finding::ok(format!("uses the certificate `{}`", files.certificate.display()))),
    }
    findings.extend(private_file(&files.key));
    findings
}

/// A file that only its owner may read; nothing when it is not there yet.
fn private_file(path: &Path) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    Some(match mode & 0o077 {
        0 => Finding::ok(format!("`{}` can be read by its owner alone", path.display())),
        _ => Finding::bad(
            format!("`{}` can be read or changed by others (mode {:o})", path.display(), mode & 0o777),
            format!("run `chmod 600 {}`", path.display()),
        ),
    })
}

/// A folder of ours that only we may enter; nothing when it is not there yet.
fn private_folder(path: &Path, what: &str) -> Option<Finding> {
    let meta = fs::metadata(path).ok()?;
    let shown = path.display();
    if !meta.is_dir() {
        return Some(Finding::bad(format!("the {what} `{shown}` is not a folder"), "give a folder, or a path that does not exist yet"));
    }
    let ours = fs::metadata("/proc/self").map_or(meta.uid(), |own| own.uid());
    if meta.uid() != ours {
        return Some(Finding::bad(
            format!("the {what} `{shown}` belongs to user {} and the service runs as {ours}", meta.uid()),
            format!("run `chown -R {ours} {shown}`, or run the service as its owner"),
        ));
    }
    Some(match meta.permissions().mode() & 0o077 {
        0 => Finding::ok(format!("the {what} `{shown}` can be entered by its owner alone")),
        _ => Finding::bad(format!("the {what} `{shown}` can be entered by others"), format!("run `chmod 700 {shown}`")),
    })
}

fn program(path: &Path) -> Finding {
    let runs = fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if runs {
        return Finding::ok(format!("the sandbox program is `{}`", path.display()));
    }
    Finding::bad(
        format!("there is no program at `{}`: without `insula-cell` nothing of a tenant can run", path.display()),
        "put `insula-cell` beside `insula`, or set `cells.program`",
    )
}

fn library(path: &Path) -> Finding {
    if fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
        return Finding::ok(format!("the inference engine is `{}`", path.display()));
    }
    Finding::bad(
        format!("there is no inference engine at `{}`", path.display()),
        "run `cargo xtask demo` once in a checkout (it puts the library beside the program), or take libonnxruntime.so out of the `onnxruntime` Python package (1.31.1), and set `cells.engine_library` (or ORT_DYLIB_PATH) to its libonnxruntime.so",
    )
}

fn sandbox(config: &Config) -> Finding {
    let platform = config.platform();
    let environment = [
        ("ORT_DYLIB_PATH".to_owned(), platform.engine_library.display().to_string()),
        ("ORT_DISABLE_TELEMETRY".to_owned(), "1".to_owned()),
    ];
    match Launcher::start(&platform.cell_program, &["zygote"], &environment, platform.floor) {
        Ok(launcher) => {
            let report = launcher.report();
            let what = format!("the sandbox enforces what it must; a cell starts in {:.1} ms", report.cell_start.as_secs_f64() * 1e3);
            Finding { remedy: report.start_remedy().map(str::to_owned), ..Finding::ok(what) }
        }
        Err(error) => Finding::bad(
            format!("the sandbox does not start: {error}"),
            "do what is named above, or set `cells.floor = \"development\"` on a machine where all tenants trust each other",
        ),
    }
}

/// The other isolation class: missing is nothing bad, unless new tenants are to have it.
fn gvisor(config: &Config) -> Finding {
    match platform::start_gvisor(&config.platform()) {
        Ok(launcher) => {
            let report = launcher.report();
            let version = report.gvisor.as_deref().unwrap_or_default();
            let start = report.cell_start.as_secs_f64() * 1e3;
            Finding::ok(format!("tenants may have `isolation` `gvisor` ({version}); such a cell starts in {start:.0} ms"))
        }
        Err(reason) if config.tenant_limits.isolation == IsolationClass::Gvisor => Finding::bad(
            format!("new tenants are to run under gVisor (`tenant_limits.isolation`), and cannot: {reason}"),
            "do what is named above",
        ),
        Err(reason) => Finding { remedy: Some(reason), ..Finding::ok("no tenant can have `isolation` `gvisor` on this node") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, TlsFiles};

    struct Place {
        dir: tempfile::TempDir,
        config: Config,
    }

    /// A configuration that is fine.
    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            path
        };
        let program = dir.path().join("insula-cell");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let library = dir.path().join("libonnxruntime.so");
        fs::write(&library, "").unwrap();
        let overrides = Overrides {
            data_dir: Some(folder("data")),
            keystore_dir: Some(folder("keys")),
            program_dir: Some(dir.path().to_owned()),
            ..Overrides::default()
        };
        let config = Config::parse("", &overrides).unwrap();
        Place { dir, config }
    }

    fn unsafe_ones(config: &Config) -> Vec<Finding> {
        check_files(config).into_iter().filter(|finding| !finding.ok).collect()
    }

    /// Exactly one thing is wrong, it is named, and there is a remedy.
    fn refused(config: &Config, what: &str, remedy: &str) {
        let found = unsafe_ones(config);
        let [only] = found.as_slice() else { panic!("{what}: {found:?}") };
        assert!(only.what.contains(what), "{only:?}");
        assert!(only.remedy.as_deref().is_some_and(|text| text.contains(remedy)), "{only:?}");
    }

    fn operators_files(dir: &Path) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let files = TlsFiles { certificate: dir.join("c.pem"), key: dir.join("k.pem") };
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        files
    }

    #[test]
    fn a_good_configuration_has_no_findings() {
        assert_eq!(unsafe_ones(&place().config), []);
    }

    #[test]
    fn a_public_bind_needs_a_certificate_and_a_name() {
        let Place { dir, mut config } = place();
        config.listen = "0.0.0.0:8443".parse().unwrap();
        refused(&config, "development CA", "tls.certificate");
        config.tls = Some(operators_files(dir.path()));
        refused(&config, "public_url", "set `public_url`");
        config.public_url = Some("https://ml.example.org".to_owned());
        assert_eq!(unsafe_ones(&config), []);
        config.listen = "[::ffff:127.0.0.1]:1".parse().unwrap();
        assert_eq!(unsafe_ones(&config), []);
    }

    #[test]
    fn keys_and_data_are_apart_also_through_links() {
        let Place { dir, mut config } = place();
        let keys = config.keystore_dir.clone();
        config.keystore_dir = config.data_dir.join("keys");
        refused(&config, "inside one another", "folders apart");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&config.data_dir, &link).unwrap();
        config.keystore_dir = link.join("keys");
        refused(&config, "inside one another", "folders apart");
        config.data_dir = keys.join("data");
        config.keystore_dir = keys;
        refused(&config, "inside one another", "folders apart");
    }

    #[test]
    fn loose_permissions_are_refused() {
        let Place { dir, mut config } = place();
        for name in ["root.key", "ca.key", "bootstrap.secret", "anchors"] {
            let path = config.keystore_dir.join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            refused(&config, name, "chmod 600");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        for folder in [config.keystore_dir.clone(), config.data_dir.clone()] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
            refused(&config, "entered by others", "chmod 700");
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
        let files = operators_files(dir.path());
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
        config.tls = Some(files);
        refused(&config, "k.pem", "chmod 600");
    }

    #[test]
    fn programs_and_certificates_must_be_there() {
        let Place { dir, mut config } = place();
        fs::remove_file(dir.path().join("libonnxruntime.so")).unwrap();
        refused(&config, "no inference engine", "ORT_DYLIB_PATH");
        fs::write(dir.path().join("libonnxruntime.so"), "").unwrap();
        fs::set_permissions(dir.path().join("insula-cell"), fs::Permissions::from_mode(0o644)).unwrap();
        refused(&config, "insula-cell", "cells.program");
        fs::set_permissions(dir.path().join("insula-cell"), fs::Permissions::from_mode(0o755)).unwrap();
        config.tls = Some(TlsFiles { certificate: dir.path().join("none.pem"), key: dir.path().join("none.key") });
        refused(&config, "none.pem", "PEM");
    }
}
