//! Artifacts: the files of a run, a logged model or a trace, in folders, as MLflow's artifact proxy shows them.
//!
//! ```text
//! 7/0f3c…/artifacts/plots/größe 50%.png        run 0f3c… of experiment 7
//! 7/models/m-81…/artifacts/model.onnx          logged model m-81… of experiment 7
//! └──────── root ─────────┘└── path ──┘
//! ```
//! A file is a record under the hash of its whole path, and a sealed object; a folder is a record of its own, made by the first file in
//! it. Nothing is a path of the file system anywhere, so none can lead out: `..` is refused because clients take names for paths, not
//! because it would work. A file that is replaced takes the old object with it.
//!
//! Who may do what is decided by the experiment, the first part of every path.

use std::io;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use tenancy::act::{ArtifactDelete, ArtifactRead, ArtifactWrite, ResourceKind, RunRead};
use tenancy::{BlobId, Permit, Record, Rows, Tx};

use super::run::TrackedRun;
use crate::cells::blob_stream;
use crate::dataset::hex;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// Longest path of an artifact below its root, in bytes.
pub const ARTIFACT_PATH_BYTES_MAX: usize = 1024;
/// Deepest folder.
const DEPTH_MAX: usize = 24;
/// Most entries of one folder that are listed.
const ARTIFACTS_LISTED_MAX: usize = 20_000;
/// And their records together, as they are stored.
const LISTED_BYTES_MAX: usize = 16 << 20;
/// Records looked up or deleted in one step.
const BATCH: u32 = 500;

/// What holds artifacts: a run, a logged model or a trace of an experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder<'a> {
    Run(&'a str),
    Model(&'a str),
    Trace(&'a str),
}

/// A place in the artifacts of a tenant: what holds it, and the path below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) root: String,
    /// Empty for all of it.
    pub(crate) path: String,
}

/// One file or folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    root: String,
    /// Below its root, with `/`.
    pub path: String,
    /// What a file holds; absent for a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<ArtifactFile>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactFile {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
    pub(crate) blob: BlobId,
}

impl Artifact {
    /// The last part of the path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is a folder.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file.is_none()
    }
}

impl Record for Artifact {
    const KIND: &'static str = "artifact";
    fn key(&self) -> String {
        key(&self.root, &self.path)
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        let experiment = self.root.split('/').next().unwrap_or_default().to_owned();
        vec![("dir", key(&self.root, parent(&self.path))), ("root", key(&self.root, "")), ("experiment", experiment)]
    }
}

fn key(root: &str, path: &str) -> String {
    hex(digest(&SHA256, format!("{root}/{path}").as_bytes()).as_ref())
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Where a run keeps its artifacts.
pub(crate) fn run_root(experiment: &str, run: &str) -> String {
    format!("{experiment}/{run}/artifacts")
}

/// Where a trace keeps its artifacts.
pub(crate) fn trace_root(experiment: &str, trace: &str) -> String {
    format!("{experiment}/traces/{trace}/artifacts")
}

/// Where a logged model keeps its artifacts.
pub(crate) fn model_root(experiment: &str, model: &str) -> String {
    format!("{experiment}/models/{model}/artifacts")
}

impl Place {
    /// Below a root.
    pub(crate) fn below(root: String, path: &str) -> Result<Self> {
        Ok(Self { root, path: path_checked(path)? })
    }

    /// From a path as the proxy gets it, the experiment first.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.trim_matches('/').split('/').collect();
        let length = match parts.as_slice() {
            [_, "models" | "traces", _, "artifacts", ..] => 4,
            [_, _, "artifacts", ..] => 3,
            _ => {
                return Err(Error::invalid(
                    "Invalid path: an artifact lies in `<experiment>/<run>/artifacts` or `<experiment>/models/<model>/artifacts`",
                ));
            }
        };
        let (root, path) = parts.split_at(length);
        path_checked(&root.join("/"))?;
        Self::below(root.join("/"), &path.join("/"))
    }

    /// The experiment.
    pub(crate) fn experiment(&self) -> &str {
        self.root.split('/').next().unwrap_or_default()
    }

    /// Whose artifacts these are.
    pub(crate) fn holder(&self) -> Holder<'_> {
        let mut parts = self.root.split('/').skip(1);
        match (parts.next().unwrap_or_default(), parts.next().unwrap_or_default()) {
            ("models", model) => Holder::Model(model),
            ("traces", trace) => Holder::Trace(trace),
            (run, _) => Holder::Run(run),
        }
    }
}

/// A path below a root, without slashes at its ends. Every part is a name that means the same to everybody.
fn path_checked(path: &str) -> Result<String> {
    let path = path.trim_matches('/');
    let refuse = |why: &str| Err(Error::invalid(format!("Invalid path: {why}")));
    if path.len() > ARTIFACT_PATH_BYTES_MAX {
        return refuse("it is longer than 1024 bytes");
    }
    if path.is_empty() {
        return Ok(String::new());
    }
    if path.split('/').count() > DEPTH_MAX {
        return refuse("it is deeper than 24 folders");
    }
    for part in path.split('/') {
        if part.is_empty() || part == "." || part == ".." {
            return refuse("its parts are names, not empty, `.` or `..`");
        }
        let plain = decoded(part);
        if plain == "." || plain == ".." || plain.contains(['/', '\\']) || plain.chars().any(char::is_control) {
            return refuse("a name has a slash, a backslash or a control character, or is `.` or `..`, as it is or percent-encoded");
        }
    }
    Ok(path.to_owned())
}

/// What is left when nothing can be percent-decoded any more: clients decode names once too often.
fn decoded(text: &str) -> String {
    let mut text = text.to_owned();
    loop {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let hex = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
            match (first, hex(0), hex(1)) {
                (b'%', Some(high), Some(low)) => {
                    bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
                    rest = after.get(2..).unwrap_or_default();
                }
                _ => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        let next = String::from_utf8_lossy(&bytes).into_owned();
        if next.len() >= text.len() {
            return next;
        }
        text = next;
    }
}

impl Platform {
    /// Stores a file, in place of the one that is there.
    ///
    /// # Errors
    /// A path that leads nowhere, is a folder or has a file for a folder; a run or model that is not there; too large, quota.
    pub async fn artifact_put(
        &self,
        permit: &Permit<ArtifactWrite>,
        path: &str,
        stream: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<()> {
        let place = Place::parse(path)?;
        same_experiment(permit.resource(), &place)?;
        if place.path.is_empty() {
            return Err(Error::invalid("Invalid path: it names no file"));
        }
        holder_checked(&permit.rows(), &place).await?;
        let sealed = self.receive(permit, stream, "artifact", self.config().upload_bytes_max).await?;
        let file = ArtifactFile { bytes: sealed.bytes(), sha256: hex(&sealed.sha256()), blob: sealed.id() };
        permit.detail("artifact", &place.path);
        permit.detail("sha256", &file.sha256);
        let mut tx = permit.tx().await?;
        // It may have gone while the file came.
        holder_required(&mut tx, &place).await?;
        folders_put(&mut tx, &place).await?;
        let artifact = Artifact { root: place.root, path: place.path, file: Some(file) };
        match tx.get::<Artifact>(&artifact.key()).await? {
            Some(Artifact { file: Some(before), .. }) => tx.detach(before.blob).await?,
            Some(_) => return Err(Error::invalid(format!("Invalid path: `{}` is a folder", artifact.path))),
            None => {}
        }
        tx.put(&artifact).await?;
        tx.attach(sealed).await?;
        tx.commit().await?;
        Ok(())
    }

    /// A file and its bytes.
    ///
    /// # Errors
    /// Not found, or stored bytes that fail their integrity check; the latter also as the last item of the stream.
    pub async fn artifact_get(
        &self,
        permit: &Permit<ArtifactRead>,
        path: &str,
    ) -> Result<(Artifact, impl Stream<Item = io::Result<Bytes>> + Send + use<>)> {
        let place = Place::parse(path)?;
        same_experiment(permit.resource(), &place)?;
        let artifact = permit.rows().get::<Artifact>(&key(&place.root, &place.path)).await?.ok_or(Error::not_found("artifact"))?;
        let file = artifact.file.as_ref().ok_or(Error::not_found("artifact"))?;
        permit.detail("artifact", &place.path);
        permit.detail("sha256", &file.sha256);
        let reader = permit.blobs().open(file.blob).await?;
        Ok((artifact, blob_stream(reader)))
    }

    /// What is in a folder, by name; nothing for a file or for what is not there.
    ///
    /// # Errors
    /// A path that leads nowhere, or a folder with too many entries.
    pub async fn artifact_list(&self, permit: &Permit<ArtifactRead>, path: &str) -> Result<Vec<Artifact>> {
        let place = Place::parse(path)?;
        same_experiment(permit.resource(), &place)?;
        list(&permit.rows(), &place).await
    }

    /// What is in a folder of a run's artifacts, by name, and where the run keeps them.
    ///
    /// # Errors
    /// Not found; a path that leads out.
    pub async fn run_artifacts(&self, permit: &Permit<RunRead>, path: &str) -> Result<(String, Vec<Artifact>)> {
        let rows = permit.rows();
        let run = rows.get::<TrackedRun>(permit.resource()).await?.ok_or(Error::not_found("run"))?;
        permit.within(ResourceKind::Experiment, &run.experiment_id)?;
        let found = list(&rows, &Place::below(run_root(&run.experiment_id, &run.id), path)?).await?;
        Ok((run.artifact_uri, found))
    }

    /// Removes a file, or a folder with all that is in it.
    ///
    /// # Errors
    /// Not found.
    pub async fn artifact_delete(&self, permit: &Permit<ArtifactDelete>, path: &str) -> Result<()> {
        let place = Place::parse(path)?;
        same_experiment(permit.resource(), &place)?;
        permit.detail("artifact", &place.path);
        let mut tx = permit.tx().await?;
        if place.path.is_empty() {
            remove_all(&mut tx, &place.root).await?;
        } else {
            let artifact = tx.get::<Artifact>(&key(&place.root, &place.path)).await?.ok_or(Error::not_found("artifact"))?;
            remove(&mut tx, artifact).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// The permit was given for an experiment; the path must not lead into another one.
fn same_experiment(allowed: &str, place: &Place) -> Result<()> {
    if place.experiment() == allowed { Ok(()) } else { Err(Error::not_found("experiment")) }
}

/// What is in a folder, by name.
pub(crate) async fn list(rows: &Rows<'_>, place: &Place) -> Result<Vec<Artifact>> {
    let dir = key(&place.root, &place.path);
    let (mut found, mut after, mut bytes) = (Vec::<Artifact>::new(), None::<String>, 0);
    loop {
        let page = rows.find::<Artifact>("dir", &dir, after.as_deref(), BATCH).await?;
        found.extend(page.records);
        bytes += page.bytes;
        if found.len() > ARTIFACTS_LISTED_MAX || bytes > LISTED_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the folder has more than the {ARTIFACTS_LISTED_MAX} entries, or the {LISTED_BYTES_MAX} bytes of them, that can be listed"
            )));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// A file at a place.
pub(crate) async fn file(rows: &Rows<'_>, place: &Place) -> Result<Option<ArtifactFile>> {
    Ok(rows.get::<Artifact>(&key(&place.root, &place.path)).await?.and_then(|artifact| artifact.file))
}

/// The ONNX file of a logged model's folder: `model.onnx`, or the only file in it or below that is called `*.onnx`.
///
/// # Errors
/// A folder that is too large to look through.
pub(crate) async fn onnx_in(rows: &Rows<'_>, place: &Place) -> Result<Option<ArtifactFile>> {
    let below = |path: &str, name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    let usual = Place { root: place.root.clone(), path: below(&place.path, "model.onnx") };
    if let Some(file) = file(rows, &usual).await? {
        return Ok(Some(file));
    }
    let (mut folders, mut found, mut seen) = (vec![place.path.clone()], None, 0usize);
    while let Some(path) = folders.pop() {
        for artifact in list(rows, &Place { root: place.root.clone(), path }).await? {
            seen += 1;
            if seen > ARTIFACTS_LISTED_MAX {
                return Ok(None);
            }
            match artifact.file {
                None => folders.push(artifact.path),
                Some(file) if artifact.path.to_ascii_lowercase().ends_with(".onnx") => {
                    if found.replace(file).is_some() {
                        return Ok(None);
                    }
                }
                Some(_) => {}
            }
        }
    }
    Ok(found)
}

/// Whether anything lies below a root.
pub(crate) async fn any(tx: &mut Tx<'_>, root: &str) -> Result<bool> {
    Ok(!tx.find::<Artifact>("root", &key(root, ""), None, 1).await?.records.is_empty())
}

/// Removes what lies below a root, at most `most` files and folders; how many there were: less than `most` when none are left.
pub(crate) async fn remove_some(tx: &mut Tx<'_>, root: &str, most: u32) -> Result<u32> {
    remove_by(tx, "root", &key(root, ""), most).await
}

/// The same with all that lies in an experiment that is gone.
pub(crate) async fn remove_some_in(tx: &mut Tx<'_>, experiment: &str, most: u32) -> Result<u32> {
    remove_by(tx, "experiment", experiment, most).await
}

async fn remove_by(tx: &mut Tx<'_>, field: &'static str, value: &str, most: u32) -> Result<u32> {
    let mut removed = 0;
    while removed < most {
        let found = tx.find::<Artifact>(field, value, None, most - removed).await?;
        for artifact in &found.records {
            remove_one(tx, artifact).await?;
            removed += 1;
        }
        if found.next.is_none() {
            break;
        }
    }
    Ok(removed)
}

/// Removes everything below a root.
pub(crate) async fn remove_all(tx: &mut Tx<'_>, root: &str) -> Result<()> {
    while remove_some(tx, root, BATCH).await? == BATCH {}
    Ok(())
}

async fn remove_one(tx: &mut Tx<'_>, artifact: &Artifact) -> Result<()> {
    if let Some(file) = &artifact.file {
        tx.detach(file.blob).await?;
    }
    tx.delete::<Artifact>(&artifact.key()).await?;
    Ok(())
}

/// Removes a file, or a folder from its leaves on.
async fn remove(tx: &mut Tx<'_>, artifact: Artifact) -> Result<()> {
    let mut waiting = vec![artifact];
    while let Some(artifact) = waiting.pop() {
        if artifact.is_dir() {
            loop {
                let page = tx.find::<Artifact>("dir", &artifact.key(), None, BATCH).await?;
                for inner in page.records {
                    // Its record goes now, so that the next page is of others; what is in it is found by its key.
                    remove_one(tx, &inner).await?;
                    if inner.is_dir() {
                        waiting.push(inner);
                    }
                }
                if page.next.is_none() {
                    break;
                }
            }
        }
        tx.delete::<Artifact>(&artifact.key()).await?;
        if let Some(file) = &artifact.file {
            tx.detach(file.blob).await?;
        }
    }
    Ok(())
}

/// Sees to it that all folders above a file are there, and that none of them is a file.
async fn folders_put(tx: &mut Tx<'_>, place: &Place) -> Result<()> {
    let mut path = parent(&place.path);
    while !path.is_empty() {
        match tx.get::<Artifact>(&key(&place.root, path)).await? {
            Some(folder) if folder.is_dir() => return Ok(()),
            Some(_) => return Err(Error::invalid(format!("Invalid path: `{path}` is a file"))),
            None => tx.put(&Artifact { root: place.root.clone(), path: path.to_owned(), file: None }).await?,
        }
        path = parent(path);
    }
    Ok(())
}

/// That what shall hold the file is there: a file of nobody would never be deleted.
async fn holder_checked(rows: &Rows<'_>, place: &Place) -> Result<()> {
    match place.holder() {
        Holder::Model(id) => super::logged_model::stored_in(rows, place.experiment(), id).await.map(drop),
        Holder::Run(id) => match super::run_experiment(rows, id).await? {
            Some(experiment) if experiment == place.experiment() => Ok(()),
            _ => Err(Error::not_found("run")),
        },
        Holder::Trace(_) => Ok(()),
    }
}

/// The same as part of the transaction.
async fn holder_required(tx: &mut Tx<'_>, place: &Place) -> Result<()> {
    let there = match place.holder() {
        Holder::Model(id) => super::logged_model::stored(tx, id).await?.experiment_id == place.experiment(),
        Holder::Run(id) => tx.get::<TrackedRun>(id).await?.is_some_and(|run| run.experiment_id == place.experiment()),
        Holder::Trace(_) => super::experiment::require(tx, place.experiment()).await.map(|_| true)?,
    };
    if there { Ok(()) } else { Err(Error::not_found("run")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_nothing_leads_out() {
        let good = [
            ("7/ab/artifacts/plots/größe 50%.png", "7/ab/artifacts", "plots/größe 50%.png"),
            ("7/ab/artifacts", "7/ab/artifacts", ""),
            ("/7/ab/artifacts/", "7/ab/artifacts", ""),
            ("7/ab/artifacts/#1", "7/ab/artifacts", "#1"),
            ("7/ab/artifacts/50%", "7/ab/artifacts", "50%"),
            ("7/ab/artifacts/a%20b", "7/ab/artifacts", "a%20b"),
            ("7/models/m-1/artifacts/model.onnx", "7/models/m-1/artifacts", "model.onnx"),
            ("7/traces/tr-1/artifacts/traces.json", "7/traces/tr-1/artifacts", "traces.json"),
        ];
        for (text, root, path) in good {
            assert_eq!(Place::parse(text).unwrap(), Place { root: root.to_owned(), path: path.to_owned() }, "{text}");
        }
        for bad in [
            "",
            "7",
            "7/ab",
            "7/ab/other/x",
            "7/models/m-1/x",
            "7/../artifacts/x",
            "7/ab/artifacts/../x",
            "7/ab/artifacts/a//b",
            "7/ab/artifacts/a/./b",
            "7/ab/artifacts/a\\b",
            "7/ab/artifacts/a\nb",
            "7/ab/artifacts/a\0",
            "7/ab/artifacts/%2e%2e",
            "7/ab/artifacts/%252E%252e",
            "7/ab/artifacts/a%2f..",
            "7/ab/artifacts/a%5Cb",
            "7/ab/artifacts/a%00",
        ] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
        assert!(Place::parse(&format!("7/ab/artifacts/{}", "a".repeat(ARTIFACT_PATH_BYTES_MAX + 1))).is_err());
        assert!(Place::parse(&format!("7/ab/artifacts{}", "/a".repeat(DEPTH_MAX + 1))).is_err());
    }

    #[test]
    fn a_place_knows_its_holder() {
        let holder = |text: &str| format!("{:?}", Place::parse(text).unwrap().holder());
        assert_eq!(holder("7/ab/artifacts/x"), "Run(\"ab\")");
        assert_eq!(holder("7/models/m-1/artifacts/x"), "Model(\"m-1\")");
        assert_eq!(holder("7/traces/tr-1/artifacts/x"), "Trace(\"tr-1\")");
        assert_eq!(Place::parse("7/ab/artifacts/x").unwrap().experiment(), "7");
    }

    #[test]
    fn keys_tell_roots_and_paths_apart() {
        let artifact = |root: &str, path: &str| Artifact { root: root.to_owned(), path: path.to_owned(), file: None };
        let (a, b) = (artifact("7/ab/artifacts", "x/y"), artifact("7/abx/artifacts", "y"));
        assert_ne!(a.key(), b.key());
        assert_eq!(a.fields()[0].1, artifact("7/ab/artifacts", "x").key(), "a folder finds what is in it by its own key");
        assert_eq!(artifact("7/ab/artifacts", "x").fields()[0].1, key("7/ab/artifacts", ""));
    }
}
