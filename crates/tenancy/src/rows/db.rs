//! One database of either kind: what the control rows and a tenant's rows share.
//!
//! - Every commit raises the *generation*, which is anchored outside the database (see [`crate::anchor`]).
//! - One transaction at a time; it knows its generation from the start.
//! - A future may be dropped between any two statements, at any time: the next user finds nothing of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use super::postgres::{PgRows, PgTxn};
use super::sql::{ANSWER_MAX, Asked, Prepared, Sql};

use super::sqlite::{Held, SqliteDb};
use crate::anchor::AnchorSlot;
use crate::error::{Error, Result};

/// How long anybody waits for a transaction before.
pub(super) const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Why nothing more is read or written.
pub(super) const CLOSED: &str = "the rows are closed";
/// Why this node writes nothing more for the tenant.
pub(crate) const TAKEN_OVER: &str = "another node has taken this tenant over; try again";

/// An open database.
pub(crate) enum Db {
    /// An encrypted file.
    Sqlite(SqliteDb),
    /// A place on a PostgreSQL server.
    Postgres(PostgresDb),
}

impl Db {
    /// Generation of the last commit that this process knows of.
    pub(crate) fn generation(&self) -> u64 {
        match self {
            Self::Sqlite(db) => db.generation(),
            Self::Postgres(db) => db.generation.load(Ordering::Acquire),
        }
    }

    /// Whether it outlives this node, for another one to open.
    pub(crate) fn is_shared(&self) -> bool {
        self.place().is_some()
    }

    /// The place on a server.
    pub(crate) fn place(&self) -> Option<&PgRows> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(db) => Some(&db.rows),
        }
    }

    /// Where the generation is anchored.
    pub(crate) fn anchor(&self) -> &AnchorSlot {
        match self {
            Self::Sqlite(db) => db.anchor(),
            Self::Postgres(db) => &db.anchor,
        }
    }

    /// For statements that change nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if closed, not reachable, or held by others for too long.
    pub(crate) async fn read(&self) -> Result<Reading<'_>> {
        Ok(match self {
            Self::Sqlite(db) => Reading::Sqlite(db.read().await?),
            Self::Postgres(db) => {
                let (turn, transaction) = db.begin_reading().await?;
                Reading::Postgres { transaction, prepared: db.rows.prepared(), _turn: Some(turn) }
            }
        })
    }

    /// Begins a transaction that will write.
    ///
    /// # Errors
    /// As [`Db::read`]; and when another node has taken the tenant over.
    pub(crate) async fn begin(&self) -> Result<Txn<'_>> {
        Ok(match self {
            Self::Sqlite(db) => {
                let held = db.begin().await?;
                // Nobody else has the file, so nobody else can take the next generation.
                Txn { generation: db.generation() + 1, inner: Inner::Sqlite(db, held), broken: false }
            }
            Self::Postgres(db) => {
                let (one, transaction, generation) = db.begin().await?;
                Txn { generation: generation + 1, inner: Inner::Postgres(db, one, transaction), broken: false }
            }
        })
    }

    /// Lets go. Everything asked later is refused.
    pub(crate) async fn close(&self, left: Closing) -> Result<()> {
        match self {
            Self::Sqlite(db) => db.close(left).await,
            Self::Postgres(db) => db.close(left).await,
        }
    }
}

/// How it is left to whoever opens it next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// Nothing is to be done.
    Clean,
    /// Objects may lie around that no row knows: they are to be looked for, as after a crash.
    Litter,
}

/// A place on a PostgreSQL server: one tenant's tables, or the control tables.
pub(crate) struct PostgresDb {
    rows: PgRows,
    reading: PgRows,
    anchor: AnchorSlot,
    generation: AtomicU64,
    /// With several nodes: the number of the lease under which this one writes.
    fence: Option<u64>,
    one: Mutex<()>,
    /// Who reads at once: others have their rows on the same connections.
    readers: Semaphore,
    closed: AtomicBool,
    was_clean: bool,
}

type Transaction = PgTxn;

impl PostgresDb {
    /// Takes the place over, unless somebody with a newer lease has.
    ///
    /// # Errors
    /// [`Error::Integrity`] if the rows are older than their anchor, [`Error::Unavailable`] if a newer lease was here.
    pub(crate) async fn open(rows: PgRows, anchor: AnchorSlot, fence: Option<u64>) -> Result<Self> {
        let anchored = anchor.now().generation;
        let mut transaction = rows.begin().await?;
        let (generation, stored) = locked(&mut transaction, rows.prepared()).await?;
        if generation < anchored {
            return Err(Error::integrity(format!(
                "the rows have generation {generation}, {anchored} was anchored: an older copy was put back; restore the newest one"
            )));
        }
        let mut sql = Sql::Postgres(&mut transaction, rows.prepared());
        if let Some(fence) = fence {
            refuse_if_newer(fence, stored)?;
            set(&mut sql, "fence", as_i64(fence)?).await?;
        }
        let was_clean = sql.optional("SELECT value FROM state WHERE name = 'clean'", &[]).await?.map(|row| row.int(0)).transpose()?;
        set(&mut sql, "clean", 0).await?;
        transaction.commit().answered(ANSWER_MAX).await?;
        let db = Self {
            readers: Semaphore::new(rows.readers_max()),
            reading: rows.reading(),
            rows,
            anchor,
            generation: AtomicU64::new(generation),
            fence,
            one: Mutex::default(),
            closed: AtomicBool::new(false),
            was_clean: was_clean == Some(1),
        };
        db.anchored(generation)?;
        Ok(db)
    }

    /// Whether whoever had the place before left it in order.
    pub(crate) fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Leaves the place in order and lets go.
    async fn close(&self, left: Closing) -> Result<()> {
        let _last = self.one().await?;
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        if left == Closing::Litter {
            self.closed.store(true, Ordering::Release);
            self.anchor.release();
            return Ok(());
        }
        let mut transaction = self.begin_writing().await?;
        let (_, stored) = locked(&mut transaction, self.rows.prepared()).await?;
        if self.fence.is_none_or(|fence| stored.is_none_or(|stored| stored <= fence)) {
            set(&mut Sql::Postgres(&mut transaction, self.rows.prepared()), "clean", 1).await?;
            transaction.commit().answered(ANSWER_MAX).await?;
        }
        self.closed.store(true, Ordering::Release);
        self.anchor.release();
        Ok(())
    }

    /// As on a file, nobody is seen to write meanwhile.
    async fn begin_reading(&self) -> Result<(SemaphorePermit<'_>, Transaction)> {
        self.still_open()?;
        let turn = tokio::time::timeout(LOCK_WAIT_MAX, self.readers.acquire()).await;
        let turn = turn.map_err(|_| Error::Unavailable("the tenant's rows are busy"))?.map_err(Error::internal)?;
        self.still_open()?;
        Ok((turn, self.reading.begin().await?))
    }

    async fn begin_writing(&self) -> Result<Transaction> {
        self.still_open()?;
        self.rows.begin().await
    }

    fn still_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Unavailable(CLOSED)) } else { Ok(()) }
    }

    /// The lock, the transaction, and the generation before it.
    async fn begin(&self) -> Result<(MutexGuard<'_, ()>, Transaction, u64)> {
        let one = self.one().await?;
        // Fails closed: without a current anchor there is no further change.
        self.anchor.generation(self.generation.load(Ordering::Acquire))?;
        let mut transaction = self.begin_writing().await?;
        let (generation, stored) = locked(&mut transaction, self.rows.prepared()).await?;
        if let Some(fence) = self.fence {
            refuse_if_newer(fence, stored)?;
        }
        let known = self.generation.load(Ordering::Acquire);
        if generation < known {
            return Err(Error::integrity(format!(
                "the rows have generation {generation}, and had {known}: an older copy was put back; restore the newest one"
            )));
        }
        self.anchored(generation)?;
        Ok((one, transaction, generation))
    }

    async fn one(&self) -> Result<MutexGuard<'_, ()>> {
        tokio::time::timeout(LOCK_WAIT_MAX, self.one.lock()).await.map_err(|_| Error::Unavailable("the tenant's rows are busy"))
    }

    fn anchored(&self, generation: u64) -> Result<()> {
        self.generation.fetch_max(generation, Ordering::AcqRel);
        self.anchor.generation(generation)
    }
}

/// Locks the row that every writer locks first: (generation, fence). Held until the transaction ends, also on another node.
async fn locked(connection: &mut PgConnection, prepared: Prepared) -> Result<(u64, Option<u64>)> {
    let mut sql = Sql::Postgres(connection, prepared);
    let rows = sql.all("SELECT name, value FROM state WHERE name IN ('generation', 'fence') ORDER BY name DESC FOR UPDATE", &[]).await?;
    let (mut generation, mut fence) = (None, None);
    for row in &rows {
        match row.text("name")?.as_str() {
            "generation" => generation = Some(row.number("value")?),
            _ => fence = Some(row.number("value")?),
        }
    }
    Ok((generation.ok_or_else(|| Error::integrity("rows without a generation"))?, fence))
}

/// Writes the generation down that is about to be, and the entry that goes with it.
async fn count(mut sql: Sql<'_>, generation: i64, entry: Option<&[u8]>) -> Result<()> {
    let count = "UPDATE state SET value = $1 WHERE name = 'generation'";
    let insert = "INSERT INTO outbox (generation, entry) VALUES ($1, $2)";
    // The one text that only PostgreSQL understands: both on one way to the server.
    let both =
        "WITH counted AS (UPDATE state SET value = $1 WHERE name = 'generation') INSERT INTO outbox (generation, entry) VALUES ($1, $2)";
    match (&sql, entry) {
        (Sql::Postgres(..), Some(entry)) => sql.execute(both, &[generation.into(), entry.into()]).await?,
        (Sql::Sqlite(_), Some(entry)) => {
            sql.execute(insert, &[generation.into(), entry.into()]).await?;
            sql.execute(count, &[generation.into()]).await?
        }
        (_, None) => sql.execute(count, &[generation.into()]).await?,
    };
    Ok(())
}

async fn set(sql: &mut Sql<'_>, name: &'static str, value: i64) -> Result<()> {
    if sql.execute("UPDATE state SET value = $2 WHERE name = $1", &[name.into(), value.into()]).await? == 0 {
        sql.execute("INSERT INTO state (name, value) VALUES ($1, $2)", &[name.into(), value.into()]).await?;
    }
    Ok(())
}

fn refuse_if_newer(fence: u64, stored: Option<u64>) -> Result<()> {
    if stored.is_some_and(|stored| stored > fence) {
        return Err(Error::Unavailable(TAKEN_OVER));
    }
    Ok(())
}

/// A connection, for reading.
pub(crate) enum Reading<'a> {
    Sqlite(Held<'a>),
    /// Rolled back when dropped. Whoever waits for a turn gets this one then.
    Postgres {
        transaction: Transaction,
        prepared: Prepared,
        _turn: Option<SemaphorePermit<'a>>,
    },
}

impl Reading<'_> {
    /// The file's own.
    #[cfg(test)]
    pub(crate) fn connection(&mut self) -> Result<&mut sqlx::sqlite::SqliteConnection> {
        match self {
            Self::Sqlite(held) => held.connection(),
            Self::Postgres { .. } => Err(Error::internal("not a file")),
        }
    }

    /// The connection.
    pub(crate) fn sql(&mut self) -> Result<Sql<'_>> {
        Ok(match self {
            Self::Sqlite(held) => Sql::Sqlite(held.connection()?),
            Self::Postgres { transaction, prepared, .. } => Sql::Postgres(transaction, *prepared),
        })
    }
}

/// A transaction. Dropped without [`Txn::commit`], it never happened.
pub(crate) struct Txn<'a> {
    inner: Inner<'a>,
    generation: u64,
    /// A statement failed, or its future was dropped half-way: nothing of this may be committed.
    broken: bool,
}

enum Inner<'a> {
    Sqlite(&'a SqliteDb, Held<'a>),
    Postgres(&'a PostgresDb, MutexGuard<'a, ()>, Transaction),
}

impl Txn<'_> {
    /// The generation this transaction will have: nobody else can take it meanwhile.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The generation it will have is at least this one.
    pub(crate) fn raise(&mut self, to: u64) {
        self.generation = self.generation.max(to);
    }

    /// The connection, where any failure or dropped future ends the whole transaction anyway.
    pub(crate) fn sql(&mut self) -> Result<Sql<'_>> {
        Ok(match &mut self.inner {
            Inner::Sqlite(_, held) => Sql::Sqlite(held.connection()?),
            Inner::Postgres(db, _, transaction) => Sql::Postgres(transaction, db.rows.prepared()),
        })
    }

    /// The file's own.
    #[cfg(test)]
    pub(crate) fn connection(&mut self) -> Result<&mut sqlx::sqlite::SqliteConnection> {
        match &mut self.inner {
            Inner::Sqlite(_, held) => held.connection(),
            Inner::Postgres(..) => Err(Error::internal("not a file")),
        }
    }

    /// That nothing was broken off half-way.
    pub(crate) fn whole(&self) -> Result<()> {
        if self.broken { Err(Error::internal("the transaction was broken off half-way")) } else { Ok(()) }
    }

    /// Begins an operation of several statements. Without [`Txn::leave`] the transaction stays broken.
    pub(crate) fn enter(&mut self) -> Result<Sql<'_>> {
        self.whole()?;
        self.broken = true;
        self.sql()
    }

    /// Ends an operation: whole again unless the database failed. It may have rolled back by itself then.
    pub(crate) fn leave<T>(&mut self, result: Result<T>) -> Result<T> {
        self.broken = matches!(result, Err(Error::Internal(_) | Error::Integrity(_) | Error::Unavailable(_)));
        result
    }

    /// Commits. Durable and anchored on return; returns the new generation.
    pub(crate) async fn commit(self) -> Result<u64> {
        self.commit_with(None).await
    }

    /// Commits, with this in the outbox of a tenant's rows.
    pub(crate) async fn commit_with(mut self, entry: Option<Vec<u8>>) -> Result<u64> {
        let generation = self.generation;
        count(self.enter()?, as_i64(generation)?, entry.as_deref()).await?;
        match self.inner {
            Inner::Sqlite(db, held) => db.commit(held, generation).await?,
            Inner::Postgres(db, _one, transaction) => {
                transaction.commit().answered(ANSWER_MAX).await?;
                if let Err(error) = db.anchored(generation) {
                    // It is committed: saying otherwise would be wrong. The next transaction does not begin before the anchor holds.
                    tracing::error!(%error, context = error.private(), "a commit could not be anchored");
                }
            }
        }
        Ok(generation)
    }

    /// Commits what is no change of the rows, on a server: the generation stays.
    pub(crate) async fn commit_beside(self) -> Result<()> {
        match self.inner {
            Inner::Postgres(_, _one, transaction) if !self.broken => transaction.commit().answered(ANSWER_MAX).await,
            _ => Err(Error::internal("nothing lies beside these rows")),
        }
    }
}

/// `u64` as databases store it.
pub(crate) fn as_i64(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| Error::internal("a number beyond 63 bits"))
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}
