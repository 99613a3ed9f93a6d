//! Prediction receipts: fetched from the audit log, and verified without any service against the key that was pinned before.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::client::Client;
use crate::commands::table;
use crate::failure::{Class, Failure, Result};
use crate::output::{Field, Output};

/// Largest receipt that is read, in bytes.
const RECEIPT_BYTES_MAX: u64 = 1 << 20;

const FIELDS: &[Field] = &[
    ("log", "/statement/log"),
    ("entry", "/statement/entry"),
    ("time", "/statement/time"),
    ("request", "/statement/request"),
    ("deployment", "/statement/deployment"),
    ("model", "/statement/model"),
    ("version", "/statement/version"),
    ("policy", "/statement/policy"),
    ("input", "/statement/input"),
    ("output", "/statement/output"),
    ("isolation", "/statement/isolation"),
    ("proven in a log of", "/proven_size"),
    ("found in an export of", "/export_size"),
];

/// Commands on prediction receipts.
#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptCommand {
    /// Fetch the receipt of an entry of the audit log, with the proof that the entry is in the log.
    Get {
        /// Place of the prediction in the log, from 0.
        index: u64,
        /// File to write; `-` for standard output.
        file: PathBuf,
        /// Overwrite the file.
        #[arg(long)]
        force: bool,
    },
    /// Verify a receipt without any service.
    Verify(VerifyArgs),
}

/// A receipt and what is trusted.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The receipt: as `receipt get` or `predict --receipt` wrote it, or the text of the header `Insula-Receipt`.
    file: PathBuf,
    /// The log's key, as `insula audit key` showed it when it was pinned.
    #[arg(long, value_name = "KEY")]
    key: String,
    /// An export of the log that must say the same.
    #[arg(long, value_name = "EXPORT")]
    ledger: Option<PathBuf>,
    /// The bytes that were sent: they must be those of the receipt.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// The bytes that were answered: they must be those of the receipt.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) async fn run(command: ReceiptCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        ReceiptCommand::Get { index, file, force } => {
            table::save(&["v1", "ledger", "receipts", &index.to_string()], &file, force, None, client, output).await
        }
        ReceiptCommand::Verify(_) => Err(Failure::usage("this command runs alone")),
    }
}

/// Verifies a receipt.
pub(crate) fn verify(args: &VerifyArgs, output: &Output) -> Result<()> {
    let refused = |why: &str| {
        Failure::new(Class::Verification, format!("`{}` does not verify: {why}", args.file.display())).help("do not rely on this receipt")
    };
    let mut bytes = Vec::new();
    open(&args.file)?.take(RECEIPT_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| Failure::file("read", &args.file, &error))?;
    let mut export = args.ledger.as_deref().map(|file| open(file).map(BufReader::new)).transpose()?;
    let export = export.as_mut().map(|export| export as &mut dyn BufRead);
    let report = server::offline::verify_receipt(&bytes, args.key.trim(), export)
        .map_err(|error| refused(&error.private().map_or_else(|| error.to_string(), str::to_owned)))?;
    for (file, said, what) in [(&args.input, &report.statement.input, "input"), (&args.output, &report.statement.output, "output")] {
        let Some(file) = file else { continue };
        if table::sha256(&mut open(file)?).map_err(|error| Failure::file("read", file, &error))? != *said {
            return Err(refused(&format!("it is about another {what} than `{}`", file.display())));
        }
    }
    if report.export_size.is_some() && !report.entry_compared {
        output.note("the entry's key was destroyed: only its leaf could be compared");
    }
    let shown = serde_json::to_value(&report).map_err(|error| Failure::new(Class::Failed, error.to_string()))?;
    output.item(&shown, FIELDS)
}

fn open(path: &Path) -> Result<fs::File> {
    fs::File::open(path).map_err(|error| Failure::file("read", path, &error))
}
