//! One encrypted SQLite file, opened once, with one connection behind a lock.
//!
//! - Raw key, WAL, every commit synced, deleted bytes overwritten, nothing on disk in clear, locked for this process.
//! - Every commit raises the file's *generation*, which is anchored outside the file (see [`crate::anchor`]).
//! - A future may be dropped between any two statements, at any time: the next user finds the connection clean.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest;
use futures_executor::block_on;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, query, query_scalar, raw_sql};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use super::db::{CLOSED, Closing, LOCK_WAIT_MAX, blocking};
use crate::anchor::AnchorSlot;
use crate::error::{Error, Result};
use crate::seal::Key;

/// What a connection starts with. A negative size of the page cache is in KiB. Pages are authenticated with SHA-256, which processors
/// compute by themselves, instead of SHA-512.
const SETTINGS: &str = "
    PRAGMA cipher_hmac_algorithm = HMAC_SHA256;
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA foreign_keys = ON;
    PRAGMA secure_delete = ON;
    PRAGMA temp_store = MEMORY;
    PRAGMA mmap_size = 0;
    PRAGMA trusted_schema = OFF;
    PRAGMA cell_size_check = ON;
    PRAGMA cache_size = -2048;
";
const HASH_PIECE_BYTES: usize = 1024 * 1024;
/// SQLite's code for a file that does not decrypt.
const NOT_A_DATABASE: &str = "26";

/// Steps of the schema; step `n` takes the file from `user_version` `n` to `n + 1`.
pub(crate) type Migrations = &'static [&'static str];

/// Whether the file is to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// A new file.
    Absent,
    /// One that was made before.
    Present,
}

impl Expect {
    fn settings(self) -> &'static str {
        match self {
            // A new file is worth nothing before its schema is whole: sync once, when it is.
            Self::Absent => "PRAGMA synchronous = OFF",
            Self::Present => "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL",
        }
    }
}

/// An open file.
pub(crate) struct SqliteDb {
    path: PathBuf,
    anchor: AnchorSlot,
    generation: AtomicU64,
    connection: Mutex<Guarded>,
}

/// A connection that is over when this is.
///
/// It lives in a thread of its own, which by itself closes the file some time after the drop. When the process exits, SQLCipher
/// frees its memory, keys and locks whoever still uses them: a thread that is closing or writing just then crashes, or writes with
/// a wiped key. So whoever drops this waits for the thread. Opening and closing run on the blocking pool, where they come to their
/// end when the future that asked is dropped, and which a runtime waits for when it ends.
#[derive(Default)]
struct Guarded {
    /// `None` once closed.
    connection: Option<SqliteConnection>,
    /// A transaction was begun and its end was not seen.
    unfinished: bool,
}

impl Guarded {
    async fn open(options: SqliteConnectOptions) -> Result<Self> {
        blocking(move || Ok(Self { connection: Some(block_on(options.connect())?), unfinished: false })).await
    }

    async fn close(mut self) -> Result<()> {
        blocking(move || self.end()).await
    }

    fn end(&mut self) -> Result<()> {
        self.connection.take().map_or(Ok(()), |connection| Ok(block_on(connection.close())?))
    }

    fn connection(&mut self) -> Result<&mut SqliteConnection> {
        self.connection.as_mut().ok_or(Error::Unavailable(CLOSED))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(context = error.private(), "a connection did not end well");
        }
    }
}

impl SqliteDb {
    /// Opens or makes the file at `path` and brings its schema up to date.
    ///
    /// # Errors
    /// [`Error::Integrity`] if it does not decrypt, or is older than its anchor.
    pub(crate) async fn open(path: &Path, key: &Key, anchor: AnchorSlot, migrations: Migrations, expect: Expect) -> Result<Self> {
        if path.exists() != (expect == Expect::Present) {
            return Err(Error::integrity(format!("{}: expected {expect:?}; restore it from your backup", path.display())));
        }
        let before = anchor.now();
        if let Some(hash) = before.clean {
            unchanged_since_close(path, hash).await?;
        }
        let mut guarded = connect(path, key, expect).await?;
        // A refusal waits, by the end of `guarded`, until the file is let go: it can be put right and opened again.
        let generation = checked(guarded.connection()?, path, migrations, expect, before.generation).await?;
        if generation > before.generation {
            anchor.generation(generation)?;
        }
        Ok(Self { path: path.to_owned(), anchor, generation: AtomicU64::new(generation), connection: Mutex::new(guarded) })
    }

    /// Generation of the last commit.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Where the generation is anchored.
    pub(crate) fn anchor(&self) -> &AnchorSlot {
        &self.anchor
    }

    /// The connection, for statements that change nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if closed, or held by others for too long.
    pub(crate) async fn read(&self) -> Result<Held<'_>> {
        let mut guard = tokio::time::timeout(LOCK_WAIT_MAX, self.connection.lock())
            .await
            .map_err(|_| Error::Unavailable("the tenant's rows are busy"))?;
        let Guarded { connection, unfinished } = &mut *guard;
        let connection = connection.as_mut().ok_or(Error::Unavailable(CLOSED))?;
        if *unfinished {
            // Somebody went away in the middle. If the transaction is over already, this only reports that.
            let _ = query("ROLLBACK").execute(&mut *connection).await;
            // It may have been committed just when its future was dropped.
            let generation = stored_generation(connection).await?;
            self.generation.store(generation, Ordering::Release);
            self.anchor.generation(generation)?;
            *unfinished = false;
        }
        Ok(Held(guard))
    }

    /// Begins a transaction that will write.
    pub(crate) async fn begin(&self) -> Result<Held<'_>> {
        let mut held = self.read().await?;
        // Fails closed: without a current anchor there is no further change.
        self.anchor.unclean()?;
        self.anchor.generation(self.generation())?;
        held.0.unfinished = true;
        query("BEGIN IMMEDIATE").execute(held.connection()?).await?;
        Ok(held)
    }

    /// Commits what [`SqliteDb::begin`] began. Durable and anchored on return.
    pub(crate) async fn commit(&self, mut held: Held<'_>, generation: u64) -> Result<()> {
        query("COMMIT").execute(held.connection()?).await?;
        held.0.unfinished = false;
        self.generation.store(generation, Ordering::Release);
        if let Err(error) = self.anchor.generation(generation) {
            // It is committed: saying otherwise would be wrong. The next transaction does not begin before the anchor holds.
            tracing::error!(%error, context = error.private(), "a commit could not be anchored");
        }
        Ok(())
    }

    /// Writes everything into the main file, closes it and anchors its hash. Everything asked later is refused.
    pub(crate) async fn close(&self, left: Closing) -> Result<()> {
        let mut held = match self.read().await {
            Err(Error::Unavailable(CLOSED)) => return Ok(()),
            held => held?,
        };
        let mut last = std::mem::take(&mut *held.0);
        query("PRAGMA wal_checkpoint(TRUNCATE)").execute(last.connection()?).await?;
        last.close().await?;
        if left == Closing::Clean && self.anchor.now().clean.is_none() {
            let hash = file_hash(&self.path).await?;
            self.anchor.clean(self.generation(), hash)?;
        }
        self.anchor.release();
        Ok(())
    }
}

/// The connection, held.
pub(crate) struct Held<'a>(MutexGuard<'a, Guarded>);

impl Held<'_> {
    /// The connection.
    pub(crate) fn connection(&mut self) -> Result<&mut SqliteConnection> {
        self.0.connection()
    }
}

/// SHA-256 of a file.
pub(crate) async fn file_hash(path: &Path) -> Result<[u8; 32]> {
    let path = path.to_owned();
    blocking(move || {
        let mut file = File::open(path)?;
        let mut context = digest::Context::new(&digest::SHA256);
        let mut piece = vec![0u8; HASH_PIECE_BYTES];
        loop {
            let read = file.read(&mut piece)?;
            let Some(part) = piece.get(..read).filter(|part| !part.is_empty()) else { break };
            context.update(part);
        }
        context.finish().as_ref().try_into().map_err(Error::internal)
    })
    .await
}

async fn unchanged_since_close(path: &Path, hash: [u8; 32]) -> Result<()> {
    let wal = PathBuf::from(format!("{}-wal", path.display()));
    if fs::metadata(&wal).is_ok_and(|meta| meta.len() > 0) {
        return Err(Error::integrity(format!("{}: was closed cleanly, yet a write-ahead log lies beside it", path.display())));
    }
    if file_hash(path).await? != hash {
        return Err(Error::integrity(format!("{}: changed since it was closed; restore it from your backup", path.display())));
    }
    Ok(())
}

async fn connect(path: &Path, key: &Key, expect: Expect) -> Result<Guarded> {
    silence().await?;
    let quoted = zeroize::Zeroizing::new(format!("\"x'{}'\"", key.hex().as_str()));
    // The options keep a copy of the key which cannot be wiped; they live no longer than the opening, and are never shown.
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(expect == Expect::Absent)
        .pragma("key", String::clone(&quoted))
        .thread_name(|_| "rows".to_owned())
        .disable_statement_logging();
    let mut guarded = Guarded::open(options).await?;
    // Not among the options, where one that fails, as with a wrong key, would leave a connection that nobody waits for.
    for settings in [SETTINGS, expect.settings()] {
        raw_sql(settings).execute(guarded.connection()?).await.map_err(|error| match &error {
            sqlx::Error::Database(inner) if inner.code().as_deref() == Some(NOT_A_DATABASE) => {
                Error::integrity(format!("{}: does not decrypt with its key", path.display()))
            }
            _ => error.into(),
        })?;
    }
    Ok(guarded)
}

/// Two switches for the whole process, before the first connection: SQLCipher does not write about wrong keys to standard error, and
/// its OpenSSL does not clean up at exit: the thread of a connection that is over may still be clearing away what OpenSSL keeps in it.
async fn silence() -> Result<()> {
    static SILENT: OnceCell<()> = OnceCell::const_new();
    let silent = SILENT.get_or_try_init(|| async {
        openssl_sys::init();
        let options = SqliteConnectOptions::new().in_memory(true).pragma("cipher_log_level", "NONE").disable_statement_logging();
        Guarded::open(options).await?.close().await
    });
    silent.await?;
    Ok(())
}

async fn migrate(connection: &mut SqliteConnection, migrations: Migrations, expect: Expect) -> Result<()> {
    let version: i64 = query_scalar("PRAGMA user_version").fetch_one(&mut *connection).await?;
    let done = usize::try_from(version).map_err(|_| Error::integrity("a negative schema version"))?;
    let Some(steps) = migrations.get(done..) else {
        return Err(Error::Unavailable("the data was written by a newer version of the service"));
    };
    if !steps.is_empty() {
        query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
        for step in steps.iter().copied() {
            raw_sql(step).execute(&mut *connection).await?;
        }
        query("COMMIT").execute(&mut *connection).await?;
    }
    if expect == Expect::Absent {
        // Going over to WAL syncs the file.
        raw_sql("PRAGMA synchronous = FULL; PRAGMA journal_mode = WAL").execute(&mut *connection).await?;
    }
    let mode: String = query_scalar("PRAGMA journal_mode").fetch_one(connection).await?;
    if mode == "wal" { Ok(()) } else { Err(Error::internal(format!("journal mode is `{mode}`"))) }
}

/// Brings the schema up to date and returns the generation, unless it lies behind the anchored one.
async fn checked(db: &mut SqliteConnection, path: &Path, migrations: Migrations, expect: Expect, anchored: u64) -> Result<u64> {
    migrate(db, migrations, expect).await?;
    let found = stored_generation(db).await?;
    if found < anchored {
        return Err(Error::integrity(format!(
            "{}: has generation {found}, {anchored} was anchored: an older copy was put back; restore the newest one",
            path.display()
        )));
    }
    Ok(found)
}

async fn stored_generation(connection: &mut SqliteConnection) -> Result<u64> {
    let stored: i64 = query_scalar("SELECT value FROM state WHERE name = 'generation'").fetch_one(connection).await?;
    u64::try_from(stored).map_err(|_| Error::integrity("a negative generation"))
}
