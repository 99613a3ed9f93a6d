//! The shared copy of a log, in tables on PostgreSQL: a tenant's beside its rows, the service's beside the control rows.
//!
//! ```text
//! ledger_segment(first, entries, leaves)   the leaves, back to back
//! ledger_note(note)                        one row: signed over exactly the entries that are there
//! ```
//!
//! A shipment is one transaction: the note goes from the one that this node knows to the next, and the segments are added. That
//! the note is still the one this node knows makes the copy one line of history, whoever ships to it: of two nodes that both
//! take themselves for the log's home the second one finds another note, and stops. A tenant's transactions also check its
//! fence first, as all that write its rows.
//!
//! When the end of a commit was not seen, the next shipment first finds out which of the two notes is there.

use std::sync::Arc;

use super::Ledger;
use super::catch_up::CatchUp;
use super::shipping::{Mark, SEGMENT_ENTRIES, Segment, Shipment};
use crate::error::{Error, Result};
use crate::rows::db::{Db, Reading, TAKEN_OVER, Txn, as_i64, blocking};
use crate::rows::postgres::{PgRows, PgTxn};
use crate::rows::sql::{ANSWER_MAX, Asked, Prepared, Row, Sql};

/// Everything that is read comes from one moment.
const SNAPSHOT: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";
const NOTE: &str = "SELECT note FROM ledger_note";
/// Waits for a commit that is still on its way.
const NOTE_DECIDED: &str = "SELECT note FROM ledger_note FOR UPDATE";
const NOTE_FIRST: &str = "INSERT INTO ledger_note (note) VALUES ($1) ON CONFLICT DO NOTHING";
const NOTE_NEXT: &str = "UPDATE ledger_note SET note = $1 WHERE note = $2";
const NOTE_DROP: &str = "DELETE FROM ledger_note";
const SEGMENTS_DROP: &str = "DELETE FROM ledger_segment WHERE first >= $1";
const SEGMENT_ADD: &str = "INSERT INTO ledger_segment (first, entries, leaves) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
/// The row with an entry, or else the last one.
const SEGMENT_OF: &str = "SELECT coalesce(max(first), 0) FROM ledger_segment WHERE first <= $1";
/// At most 256 rows, and rows until they have 8 MiB: what is held in memory while a log is rebuilt.
const SEGMENTS: &str = "
    SELECT first, entries, leaves
    FROM (SELECT *, sum(octet_length(leaves)) OVER (ORDER BY first) AS bytes
          FROM ledger_segment WHERE first >= $1 ORDER BY first LIMIT 256) AS page
    WHERE bytes - octet_length(leaves) < 8388608 ORDER BY first";

/// Where the shared copy of a log is.
#[derive(Clone, Copy)]
pub(crate) enum SharedCopy<'a> {
    /// In a tenant's open rows: every shipment checks their fence.
    Rows(&'a Db),
    /// In a place that is not open otherwise: the service's own, or a tenant's at its end.
    Place(&'a PgRows),
}

impl SharedCopy<'_> {
    /// Brings the log to what its copy has, and tells it that there is one. Goes on to its end when whoever waits for it is gone.
    ///
    /// # Errors
    /// [`Error::Integrity`] if the copy is not what was shipped; then nothing has changed.
    pub(crate) async fn catch_up(&self, ledger: &Arc<Ledger>) -> Result<()> {
        let one = Arc::clone(&ledger.shipping).lock_owned().await;
        let begun = Arc::clone(ledger);
        let mut catch_up = blocking(move || CatchUp::begin(begun)).await?;
        let mut reading = self.read().await?;
        let mut sql = reading.sql()?;
        sql.execute(SNAPSHOT, &[]).await?;
        let mut from = sql.one(SEGMENT_OF, &[as_i64(catch_up.wanted())?.into()]).await?.int(0)?;
        loop {
            let page = sql.all(SEGMENTS, &[from.into()]).await?.iter().map(segment).collect::<Result<Vec<_>>>()?;
            let Some(last) = page.last() else { break };
            from = as_i64(last.end())?;
            catch_up = blocking(move || page.iter().try_for_each(|segment| catch_up.take(segment)).map(|()| catch_up)).await?;
        }
        let note = sql.optional(NOTE, &[]).await?.map(|row| note(&row)).transpose()?;
        drop(reading);
        blocking(move || {
            let _one = one;
            catch_up.finish(note.as_deref())
        })
        .await
    }

    /// Ships what the copy lacks. Returns how many entries are safe in it, whatever becomes of this node.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with [`TAKEN_OVER`] if another node ships this log; otherwise when the server cannot be reached.
    pub(crate) async fn ship(&self, ledger: &Arc<Ledger>) -> Result<u64> {
        let _one = ledger.shipping.lock().await;
        if let Some(doubtful) = ledger.doubtful() {
            self.settle(ledger, &doubtful).await?;
        }
        let mark = ledger.mark().ok_or_else(|| Error::internal("a ledger without a shared copy is shipped"))?;
        let size = mark.size;
        let Some((shipment, first)) = taken(ledger, mark).await? else { return Ok(size) };
        let transaction = self.bring(ledger, &shipment, first).await?;
        ledger.doubts(Some(shipment.clone()));
        transaction.commit().await?;
        ledger.shipped(&shipment);
        Ok(shipment.to().size)
    }

    /// Brings another copy than the log's own to the log's present size, for a tenant that moves: from where it is, or, without
    /// a mark, anew, in the place of what is there.
    ///
    /// # Errors
    /// As [`SharedCopy::ship`].
    pub(crate) async fn fill(&self, ledger: &Arc<Ledger>, mark: Option<Mark>) -> Result<Mark> {
        if mark.is_none() {
            let mut transaction = self.begin().await?;
            let mut sql = transaction.sql()?;
            sql.execute(SEGMENTS_DROP, &[i64::MIN.into()]).await?;
            sql.execute(NOTE_DROP, &[]).await?;
            transaction.commit().await?;
        }
        let mark = mark.unwrap_or_default();
        let Some((shipment, first)) = taken(ledger, mark.clone()).await? else { return Ok(mark) };
        self.bring(ledger, &shipment, first).await?.commit().await?;
        Ok(shipment.to())
    }

    /// Everything of a shipment but the commit.
    pub(super) async fn bring(&self, ledger: &Arc<Ledger>, shipment: &Shipment, first: Option<Segment>) -> Result<Shipping<'_>> {
        let mut transaction = self.begin().await?;
        let mut sql = transaction.sql()?;
        let next = shipment.note().as_bytes();
        let changed = match &shipment.from().note {
            Some(note) => sql.execute(NOTE_NEXT, &[next.into(), note.as_bytes().into()]).await?,
            None => sql.execute(NOTE_FIRST, &[next.into()]).await?,
        };
        if changed != 1 {
            return Err(Error::Unavailable(TAKEN_OVER));
        }
        let mut segment = first;
        while let Some(Segment { first, entries, leaves, replaces }) = segment {
            if replaces {
                sql.execute(SEGMENTS_DROP, &[as_i64(first)?.into()]).await?;
            }
            let row = [as_i64(first)?.into(), as_i64(entries)?.into(), (&leaves).into()];
            if sql.execute(SEGMENT_ADD, &row).await? != 1 {
                return Err(Error::Unavailable(TAKEN_OVER));
            }
            let (at, ledger, shipment) = (first + entries, Arc::clone(ledger), shipment.clone());
            segment = if at < shipment.to().size { blocking(move || ledger.segment(&shipment, at)).await? } else { None };
        }
        Ok(transaction)
    }

    /// Finds out whether a shipment arrived.
    async fn settle(&self, ledger: &Arc<Ledger>, doubtful: &Shipment) -> Result<()> {
        let mut transaction = self.begin().await?;
        let there = transaction.sql()?.optional(NOTE_DECIDED, &[]).await?.map(|row| note(&row)).transpose()?;
        match there.as_deref() {
            Some(note) if note == doubtful.note() => ledger.shipped(doubtful),
            note if note == doubtful.from().note.as_deref() => ledger.doubts(None),
            _ => return Err(Error::Unavailable(TAKEN_OVER)),
        }
        Ok(())
    }

    async fn read(&self) -> Result<Reading<'_>> {
        match self {
            Self::Rows(db) => db.read().await,
            Self::Place(rows) => Ok(Reading::Postgres { transaction: rows.begin().await?, prepared: rows.prepared(), _turn: None }),
        }
    }

    async fn begin(&self) -> Result<Shipping<'_>> {
        match self {
            Self::Rows(db) => Ok(Shipping::Rows(db.begin().await?)),
            Self::Place(rows) => Ok(Shipping::Place(rows.begin().await?, rows.prepared())),
        }
    }
}

/// A transaction that ships. Dropped, it never happened.
pub(super) enum Shipping<'a> {
    Rows(Txn<'a>),
    Place(PgTxn, Prepared),
}

impl Shipping<'_> {
    fn sql(&mut self) -> Result<Sql<'_>> {
        match self {
            Self::Rows(txn) => txn.sql(),
            Self::Place(transaction, prepared) => Ok(Sql::Postgres(transaction, *prepared)),
        }
    }

    pub(super) async fn commit(self) -> Result<()> {
        match self {
            Self::Rows(txn) => txn.commit_beside().await,
            Self::Place(transaction, _) => transaction.commit().answered(ANSWER_MAX).await,
        }
    }
}

/// A shipment and its first segment, in one go: most have no other.
async fn taken(ledger: &Arc<Ledger>, mark: Mark) -> Result<Option<(Shipment, Option<Segment>)>> {
    let ledger = Arc::clone(ledger);
    blocking(move || {
        let Some(shipment) = ledger.shipment(mark)? else { return Ok(None) };
        let first = ledger.segment(&shipment, shipment.from().size)?;
        Ok(Some((shipment, first)))
    })
    .await
}

fn segment(row: &Row) -> Result<Segment> {
    let (first, entries, leaves) = (row.number("first")?, row.number("entries")?, row.bytes("leaves")?);
    if entries > SEGMENT_ENTRIES {
        return Err(Error::integrity("a row of the ledger's shared copy says that it has more entries than any has"));
    }
    Ok(Segment { first, entries, leaves, replaces: false })
}

fn note(row: &Row) -> Result<String> {
    String::from_utf8(row.bytes("note")?).map_err(|_| Error::integrity("the note of the ledger's shared copy is not text"))
}
