//! Artifacts: folder by folder, file by file, each read once from the source and read back from the target.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::AsyncReadExt;

use super::api::{Answer, Api, Incoming, Refusal, Trouble, patient};
use super::forms::FileInfo;
use super::report::Kind;
use super::{Import, source::Source};
use crate::failure::{Class, Failure, Result};

/// Pieces in which files are read, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Deepest folder; what is deeper is a loop of links.
const DEPTH_MAX: usize = 64;

/// Where files lie in the source.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Path(PathBuf),
    Run(String),
    Model(String),
    /// Below the root of the server's artifact proxy.
    Proxy(String),
}

/// What holds them in the target.
#[derive(Debug, Clone)]
pub(crate) enum Holder {
    Run { experiment: String, id: String },
    Model { experiment: String, id: String },
}

const PROXY: &str = "api/2.0/mlflow-artifacts/artifacts";

impl Holder {
    fn root(&self) -> String {
        match self {
            Self::Run { experiment, id } => format!("{experiment}/{id}/artifacts"),
            Self::Model { experiment, id } => format!("{experiment}/models/{id}/artifacts"),
        }
    }

    fn of(&self) -> String {
        match self {
            Self::Run { id, .. } => format!("run {id}"),
            Self::Model { id, .. } => format!("logged model {id}"),
        }
    }

    fn from(&self) -> Origin {
        match self {
            Self::Run { id, .. } => Origin::Run(id.clone()),
            Self::Model { id, .. } => Origin::Model(id.clone()),
        }
    }
}

/// The entries of a folder: whether each is one itself.
type Entries = BTreeMap<String, bool>;

impl Import<'_> {
    /// Everything below `from`, and how many files that is. `fresh`: the target holds nothing yet; `open`: it takes files.
    pub(crate) async fn files(&self, from: &Origin, to: &Holder, fresh: bool, open: bool) -> Result<usize> {
        let (of, mut folders, mut files) = (to.of(), vec![(String::new(), 0)], 0);
        while let Some((folder, depth)) = folders.pop() {
            let listed = self.source.entries(from, &folder).await;
            let Some(entries) = self.settled(Kind::Artifact, &of, &folder, listed)? else { continue };
            let there = if fresh || self.dry { Ok(Entries::new()) } else { entries_of(self.target, &to.from(), &folder).await };
            let Some(mut there) = self.settled(Kind::Artifact, &of, &folder, there)? else { continue };
            for (name, is_folder) in entries {
                let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                let known = there.remove(&name);
                match (is_folder, known) {
                    (true, Some(false)) | (false, Some(true)) => {
                        self.differs(Kind::Artifact, &of, &path, "a folder on one side and a file on the other");
                    }
                    (true, _) if depth < DEPTH_MAX => folders.push((path, depth + 1)),
                    (true, _) => self.differs(Kind::Artifact, &of, &path, "too deep"),
                    (false, _) => {
                        files += 1;
                        self.report.borrow_mut().source(Kind::Artifact, 1);
                        if !self.dry {
                            self.file(from, to, &path, known.is_some(), open).await?;
                        }
                    }
                }
            }
            for name in there.keys() {
                self.report.borrow_mut().target(Kind::Artifact, 1);
                self.differs(
                    Kind::Artifact,
                    &of,
                    &if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") },
                    "not in the source",
                );
            }
        }
        Ok(files)
    }

    /// One file: sent if it is not there, and compared with what is there then.
    async fn file(&self, from: &Origin, to: &Holder, path: &str, there: bool, open: bool) -> Result<()> {
        let of = to.of();
        if !there && !open {
            self.differs(Kind::Artifact, &of, path, "missing here, and what holds it is deleted here");
            return Ok(());
        }
        let target = format!("{}/{path}", to.root());
        let read = match there {
            true => patient(|| async { hashed(self.source.file(from, path).await?).await }).await,
            false => patient(|| self.sent(from, path, &target)).await,
        };
        let Some(source) = self.settled(Kind::Artifact, &of, path, read)? else { return Ok(()) };
        if !there {
            self.report.borrow_mut().written(Kind::Artifact, 1);
        }
        let back = patient(|| async { hashed(self.target.open(PROXY, &target, &[]).await?).await }).await;
        if let Some(back) = self.settled(Kind::Artifact, &of, path, back)? {
            let mut report = self.report.borrow_mut();
            report.target(Kind::Artifact, 1);
            report.same(Kind::Artifact, &of, path, &format!("sha256 {source}"), &format!("sha256 {back}"));
        }
        Ok(())
    }

    /// Sends a file on as it comes; its SHA-256.
    async fn sent(&self, from: &Origin, path: &str, target: &str) -> Answer<String> {
        let Incoming { bytes, pieces } = self.source.file(from, path).await?;
        let seen = Arc::new(Mutex::new((Context::new(&SHA256), None::<String>)));
        let sees = seen.clone();
        let pieces = pieces.map(move |piece| {
            if let Ok(mut seen) = sees.lock() {
                match &piece {
                    Ok(piece) => seen.0.update(piece),
                    Err(error) => seen.1 = Some(error.to_string()),
                }
            }
            piece
        });
        let sent = self.target.put(PROXY, target, Incoming { bytes, pieces: pieces.boxed() }).await;
        let (context, broke) = match seen.lock() {
            Ok(seen) => (seen.0.clone(), seen.1.clone()),
            Err(_) => return Err(Failure::new(Class::Failed, "a file was read by a task that failed").into()),
        };
        if let Some(broke) = broke {
            return Err(Trouble::Broken(Failure::new(Class::Unavailable, format!("cannot read `{path}`: {broke}"))));
        }
        sent.map(|()| hex(context))
    }
}

impl Source {
    async fn entries(&self, from: &Origin, folder: &str) -> Answer<Entries> {
        match from {
            Origin::Path(root) => entries_in(root, folder),
            from => entries_of(&self.api, from, folder).await,
        }
    }

    async fn file(&self, from: &Origin, path: &str) -> Answer<Incoming> {
        let api = &self.api;
        if matches!(from, Origin::Run(_) | Origin::Proxy(_)) && changed_by_decoding(path)
            || !matches!(from, Origin::Path(_)) && path.contains('#')
        {
            return Err(Refusal::ours(
                "an MLflow server gives no file whose name has `#`, or `%` before two digits: import from the database or folder itself",
            ));
        }
        match from {
            Origin::Path(root) => opened(root, path).await,
            Origin::Run(id) => api.open("get-artifact", "", &[("run_id", id), ("path", path)]).await,
            Origin::Model(id) => {
                let fixed = format!("ajax-api/2.0/mlflow/logged-models/{id}/artifacts/files");
                api.open(&fixed, "", &[("artifact_file_path", path)]).await
            }
            Origin::Proxy(root) => api.open(PROXY, &format!("{root}/{path}"), &[]).await,
        }
    }
}

/// Of these names MLflow's routes make others.
fn changed_by_decoding(path: &str) -> bool {
    path.as_bytes().windows(3).any(|part| matches!(part, [b'%', a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

/// The entries of a folder by MLflow's API; none of what is not there.
async fn entries_of(api: &Api, from: &Origin, folder: &str) -> Answer<Entries> {
    let below = |field: &'static str| (!folder.is_empty()).then_some((field, folder));
    let found: Vec<FileInfo> = match from {
        Origin::Run(id) => {
            let query: Vec<_> = [("run_id", id.as_str())].into_iter().chain(below("path")).collect();
            api.all("artifacts/list", "files", &query).await?
        }
        Origin::Model(id) => {
            let query: Vec<_> = below("artifact_directory_path").into_iter().collect();
            api.all(&format!("logged-models/{id}/artifacts/directories"), "files", &query).await?
        }
        Origin::Proxy(root) => api.list(PROXY, "files", &[("path", format!("{root}/{folder}").trim_end_matches('/'))]).await?,
        Origin::Path(root) => return entries_in(root, folder),
    };
    let name = |file: &FileInfo| file.path.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(found.iter().map(|file| (name(file), file.is_dir)).collect())
}

/// Below the root, also when there are links.
fn within(root: &Path, path: &str) -> Answer<PathBuf> {
    let real = |path: &Path| path.canonicalize().map_err(|error| Refusal::ours(format!("cannot be read: {error}")));
    let (root, path) = (real(root)?, real(&root.join(path))?);
    if path.starts_with(&root) { Ok(path) } else { Err(Refusal::ours("a link that leads out of its folder")) }
}

fn entries_in(root: &Path, folder: &str) -> Answer<Entries> {
    if folder.is_empty() && !root.exists() {
        return Ok(Entries::new());
    }
    let refused = |error: std::io::Error| Refusal::ours(format!("cannot be read: {error}"));
    let mut entries = Entries::new();
    for entry in std::fs::read_dir(within(root, folder)?).map_err(refused)? {
        let entry = entry.map_err(refused)?;
        let name = entry.file_name().into_string().map_err(|name| Refusal::ours(format!("{name:?} is not UTF-8")))?;
        entries.insert(name, entry.path().is_dir());
    }
    Ok(entries)
}

async fn opened(root: &Path, path: &str) -> Answer<Incoming> {
    let refused = |error: std::io::Error| Refusal::ours(format!("cannot be read: {error}"));
    let file = tokio::fs::File::open(within(root, path)?).await.map_err(refused)?;
    let bytes = file.metadata().await.map_err(refused)?.len();
    let pieces = futures_util::stream::unfold(Some(file), |file| async {
        let mut file = file?;
        let mut piece = vec![0; PIECE_BYTES];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(Bytes::from(piece)), Some(file)))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(Incoming { bytes: Some(bytes), pieces: pieces.boxed() })
}

async fn hashed(file: Incoming) -> Answer<String> {
    let (mut context, mut pieces, mut seen) = (Context::new(&SHA256), file.pieces, 0u64);
    let broken = |why: String| Trouble::Broken(Failure::new(Class::Unavailable, format!("a file broke off: {why}")));
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| broken(error.to_string()))?;
        seen += piece.len() as u64;
        context.update(&piece);
    }
    match file.bytes {
        Some(bytes) if bytes != seen => Err(broken(format!("{seen} of {bytes} bytes"))),
        _ => Ok(hex(context)),
    }
}

/// Lower-case hex of what was seen.
pub(crate) fn hex(context: Context) -> String {
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("artifacts");
        std::fs::create_dir_all(root.join("in")).unwrap();
        std::fs::write(root.join("in/a#b %41"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        assert_eq!(entries_in(&root, "in").unwrap().into_iter().collect::<Vec<_>>(), [("a#b %41".to_owned(), false)]);
        assert!(matches!(entries_in(&root, "out"), Err(Trouble::Refused(_))));
        assert!(matches!(within(&root, "../artifacts2"), Err(Trouble::Refused(_))));
        assert!(entries_in(&dir.path().join("absent"), "").unwrap().is_empty());
    }

    #[test]
    fn names_that_mlflow_would_change_are_known() {
        for (path, changed) in [("50%.png", false), ("a%20b", true), ("%", false), ("x/%4", false), ("x/%4F", true), ("größe %c3", true)]
        {
            assert_eq!(changed_by_decoding(path), changed, "{path}");
        }
    }
}
