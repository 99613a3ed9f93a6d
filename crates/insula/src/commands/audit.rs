//! The audit log. `ls`, `show` and `export` ask the service; `verify` and `verify-certificate` ask nobody: they take a file and the
//! key that was pinned before, and need neither network nor credential.
//!
//! A log that verifies today can still be another one than yesterday's. So `verify` remembers the size and root of each log it has
//! accepted, and refuses one that has shrunk or does not begin with what it saw.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::client::Client;
use crate::commands::table;
use crate::failure::{Class, Failure, Result};
use crate::output::{Field, Output};
use crate::settings::Environment;

const FIELDS: &[Field] = &[
    ("index", "/index"),
    ("time", "/entry/time"),
    ("actor", "/entry/actor"),
    ("act", "/entry/act"),
    ("resource", "/entry/resource"),
    ("outcome", "/entry/outcome"),
    ("reason", "/entry/reason"),
];
const DETAIL_FIELDS: &[Field] = &[("via", "/entry/via"), ("request", "/entry/request"), ("detail", "/entry/detail")];
const REPORT_FIELDS: &[Field] = &[
    ("verified", "/origin"),
    ("entries", "/size"),
    ("readable", "/opened"),
    ("shredded", "/shredded"),
    ("root", "/root"),
    ("since last time", "/grown"),
];

/// Largest certificate file in bytes.
const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;

/// Commands on the audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// List entries, newest first.
    Ls(SearchArgs),
    /// Show one entry.
    Show {
        /// Its place in the log, from 0.
        index: u64,
    },
    /// Show the key that verifies the log. Keep it: it is what `verify` trusts.
    Key {
        /// The service's own log instead of the tenant's; for operators.
        #[arg(long)]
        service: bool,
    },
    /// Write the whole log into one file that verifies offline.
    Export {
        /// File to write; `-` for standard output.
        file: PathBuf,
        /// Overwrite the file.
        #[arg(long)]
        force: bool,
        /// The service's own log instead of the tenant's; for operators.
        #[arg(long)]
        service: bool,
    },
    /// Verify an export without any service: signature, every entry, and that it continues what was verified before.
    Verify(VerifyArgs),
    /// Verify the certificate of an erasure without any service.
    VerifyCertificate(CertificateArgs),
}

/// What to look for.
#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// Who did it.
    #[arg(long)]
    actor: Option<String>,
    /// What was done, as in Predict.
    #[arg(long)]
    act: Option<String>,
    /// How it ended.
    #[arg(long)]
    outcome: Option<Outcome>,
    /// To what, as in dataset:iris or dataset:*.
    #[arg(long)]
    resource: Option<String>,
    /// Not before, as in 2027-01-31T12:00:00Z.
    #[arg(long)]
    since: Option<String>,
    /// Before, as in 2027-01-31T12:00:00Z.
    #[arg(long)]
    until: Option<String>,
    /// Somewhere in the entry.
    #[arg(long)]
    text: Option<String>,
    /// Most entries.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Oldest first.
    #[arg(long)]
    oldest: bool,
    /// The service's own log instead of the tenant's; for operators.
    #[arg(long)]
    service: bool,
}

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Outcome {
    /// Done.
    Allowed,
    /// Not done: policy, scope, quota or state.
    Refused,
    /// Allowed, and failed.
    Failed,
}

/// An export and what is trusted.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The export.
    file: PathBuf,
    /// The log's key, as `insula audit key` showed it when it was pinned.
    #[arg(long, value_name = "KEY")]
    key: String,
    /// The log's name; the name in the key when none is given.
    #[arg(long, value_name = "NAME")]
    origin: Option<String>,
}

/// A certificate and what is trusted.
#[derive(Debug, Args)]
pub(crate) struct CertificateArgs {
    /// The certificate.
    file: PathBuf,
    /// The service's key, as `insula audit key --service` showed it when it was pinned.
    #[arg(long, value_name = "KEY")]
    key: String,
}

pub(crate) async fn run(command: AuditCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        AuditCommand::Ls(args) => {
            let (base, most) = (base(args.service), args.limit as usize);
            output.list(&client.list_some(base, &args.query(), most).await?, FIELDS)
        }
        AuditCommand::Show { index } => {
            let entry = client.get(&["v1", "ledger", "entries", &index.to_string()], &[]).await?;
            output.item(&entry, &[FIELDS, DETAIL_FIELDS].concat())
        }
        AuditCommand::Key { service } => {
            let key = client.get(&[base(service), &["key"]].concat(), &[]).await?;
            output.item(&key, &[("origin", "/origin"), ("key", "/vkey")])
        }
        AuditCommand::Export { file, force, service } => {
            table::save(&[base(service), &["export"]].concat(), &file, force, None, client, output).await
        }
        AuditCommand::Verify(_) | AuditCommand::VerifyCertificate(_) => Err(Failure::usage("this command runs alone")),
    }
}

fn base(service: bool) -> &'static [&'static str] {
    if service { &["v1", "service", "ledger"] } else { &["v1", "ledger"] }
}

impl SearchArgs {
    fn query(&self) -> Vec<(&'static str, String)> {
        let outcome = self.outcome.map(|outcome| match outcome {
            Outcome::Allowed => "allowed".to_owned(),
            Outcome::Refused => "refused".to_owned(),
            Outcome::Failed => "failed".to_owned(),
        });
        let order = self.oldest.then(|| "oldest".to_owned());
        let all = [
            ("actor", self.actor.clone()),
            ("act", self.act.clone()),
            ("outcome", outcome),
            ("resource", self.resource.clone()),
            ("since", self.since.clone()),
            ("until", self.until.clone()),
            ("text", self.text.clone()),
            ("order", order),
        ];
        all.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect()
    }
}

/// Verifies an export, and remembers how far it went.
pub(crate) fn verify(args: &VerifyArgs, environment: &Environment, output: &Output) -> Result<()> {
    let origin = match &args.origin {
        Some(origin) => origin.clone(),
        None => args
            .key
            .split_once('+')
            .map(|(name, _)| name.to_owned())
            .ok_or_else(|| Failure::usage("the key is not of the form name+hash+key"))?,
    };
    let memory = Memory::of(environment)?;
    let mut seen = memory.read()?;
    let remembered = seen.get(&args.key).filter(|head| head.origin == origin).map(|head| (head.size, head.root.as_str()));
    let file = fs::File::open(&args.file).map_err(|error| Failure::file("read", &args.file, &error))?;
    let report = server::offline::verify_export(&mut BufReader::new(file), &origin, &args.key, remembered).map_err(|error| {
        let why = error.private().map_or_else(|| error.to_string(), str::to_owned);
        Failure::new(Class::Verification, format!("`{}` does not verify: {why}", args.file.display()))
            .help("do not trust this file; ask for a fresh export, and ask why this one is wrong")
    })?;
    let before = remembered.map(|(size, _)| size);
    seen.insert(args.key.clone(), Head { origin, size: report.size, root: report.root.clone() });
    memory.write(&seen)?;
    let mut shown = serde_json::to_value(&report).map_err(|error| Failure::new(Class::Failed, error.to_string()))?;
    if let (Some(map), Some(before)) = (shown.as_object_mut(), before) {
        map.insert("grown".to_owned(), json!(report.size.saturating_sub(before)));
    }
    output.item(&shown, REPORT_FIELDS)
}

/// Verifies a certificate of erasure.
pub(crate) fn verify_certificate(args: &CertificateArgs, output: &Output) -> Result<()> {
    let failed = |error: std::io::Error| Failure::file("read", &args.file, &error);
    if fs::metadata(&args.file).map_err(failed)?.len() > CERTIFICATE_BYTES_MAX {
        return Err(Failure::input(format!("`{}` is too long for a certificate", args.file.display())));
    }
    let text = fs::read_to_string(&args.file).map_err(failed)?;
    let statement = server::offline::verify_certificate(&text, &args.key).map_err(|error| {
        let why = error.private().map_or_else(|| error.to_string(), str::to_owned);
        Failure::new(Class::Verification, format!("`{}` does not verify: {why}", args.file.display()))
            .help("do not rely on this certificate")
    })?;
    let shown = serde_json::to_value(&statement).map_err(|error| Failure::new(Class::Failed, error.to_string()))?;
    let fields = [
        ("service", "/service"),
        ("tenant", "/tenant"),
        ("name digest", "/name_digest"),
        ("ordered", "/requested_at"),
        ("ordered by", "/requested_by"),
        ("keys destroyed", "/shredded_at"),
        ("certified", "/certified_at"),
        ("backups", "/backups"),
    ];
    output.item(&shown, &fields)
}

/// The last tree head that was accepted of one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    origin: String,
    size: u64,
    root: String,
}

/// Where heads are remembered, by the key of their log.
struct Memory(PathBuf);

impl Memory {
    fn of(environment: &Environment) -> Result<Self> {
        let dir = environment.state_dir.as_ref();
        let dir = dir.ok_or_else(|| Failure::usage("there is no home directory in which to remember what was verified: set HOME"))?;
        Ok(Self(dir.join("ledgers.json")))
    }

    /// A memory that cannot be read is not the same as none: it may have been damaged to be forgotten.
    fn read(&self) -> Result<BTreeMap<String, Head>> {
        let path = &self.0;
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Failure::new(Class::Failed, format!("`{}` is damaged: {error}", path.display()))
                    .help("move it away to start remembering anew")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(Failure::file("read", path, &error)),
        }
    }

    fn write(&self, heads: &BTreeMap<String, Head>) -> Result<()> {
        let path: &Path = &self.0;
        let failed = |error: std::io::Error| Failure::file("write", path, &error);
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        }
        let text = serde_json::to_vec_pretty(&heads).map_err(|error| Failure::new(Class::Failed, error.to_string()))?;
        let draft = path.with_extension(format!("{}.draft", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&draft, path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_verified_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let environment = Environment { state_dir: Some(dir.path().join("a/b")), ..Environment::default() };
        let memory = Memory::of(&environment).unwrap();
        assert!(memory.read().unwrap().is_empty());
        let head = Head { origin: "o".to_owned(), size: 7, root: "r".to_owned() };
        memory.write(&BTreeMap::from([("k".to_owned(), head.clone())])).unwrap();
        assert_eq!(memory.read().unwrap()["k"], head);
        fs::write(&memory.0, "{").unwrap();
        assert!(memory.read().unwrap_err().text().contains("is damaged"));
    }
}
