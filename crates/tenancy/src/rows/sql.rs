//! One SQL text for SQLite and PostgreSQL: a connection of either, plain parameters in, plain columns out.
//!
//! What both understand: `$1`, `RETURNING`, `ON CONFLICT DO NOTHING`, `IS NOT DISTINCT FROM`, `row_number() OVER`. What only one
//! does is not written: an upsert is an update, and an insert if it changed nothing. Integers are 64 bits in both.

use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{ColumnIndex, Postgres, Row as _, Sqlite, query};

use crate::error::{Error, Result};

/// How long a statement on a server, or a commit, is waited for: longer than the server itself gives it.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(35);

/// What a server is asked.
pub(crate) trait Asked<T>: Future<Output = sqlx::Result<T>> + Send + Sized {
    /// The answer, if it comes in time. The server ends what takes it too long by itself; this is for one that hangs, or whose
    /// network is gone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if nothing comes: whether it was done is not known then.
    fn answered(self, wait: Duration) -> impl Future<Output = Result<T>> + Send {
        async move {
            let answer = tokio::time::timeout(wait, self).await;
            Ok(answer.map_err(|_| Error::Unavailable("the database does not answer; try again"))??)
        }
    }
}

impl<T, F: Future<Output = sqlx::Result<T>> + Send> Asked<T> for F {}

/// A parameter. The absent ones have a type too: PostgreSQL asks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Param<'a> {
    Int(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    NoInt,
    NoText,
    NoBytes,
}

impl From<i64> for Param<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<u32> for Param<'_> {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl<'a> From<&'a str> for Param<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a String> for Param<'a> {
    fn from(value: &'a String) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a [u8]> for Param<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Bytes(value)
    }
}

impl<'a> From<&'a Vec<u8>> for Param<'a> {
    fn from(value: &'a Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Param<'a> {
    fn from(value: &'a [u8; N]) -> Self {
        Self::Bytes(value)
    }
}

impl From<Option<i64>> for Param<'_> {
    fn from(value: Option<i64>) -> Self {
        value.map_or(Self::NoInt, Self::Int)
    }
}

impl<'a> From<Option<&'a str>> for Param<'a> {
    fn from(value: Option<&'a str>) -> Self {
        value.map_or(Self::NoText, Self::Text)
    }
}

impl<'a> From<Option<&'a [u8]>> for Param<'a> {
    fn from(value: Option<&'a [u8]>) -> Self {
        value.map_or(Self::NoBytes, Self::Bytes)
    }
}

/// Whether a PostgreSQL connection keeps its prepared statements: not behind a pooler that hands each transaction another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prepared {
    Kept,
    Once,
}

/// A connection, for one statement after the other.
pub(crate) enum Sql<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection, Prepared),
}

impl Sql<'_> {
    /// The same connection, for a shorter time.
    pub(crate) fn again(&mut self) -> Sql<'_> {
        match self {
            Self::Sqlite(connection) => Sql::Sqlite(connection),
            Self::Postgres(connection, prepared) => Sql::Postgres(connection, *prepared),
        }
    }

    /// Runs a statement; how many rows it changed.
    pub(crate) async fn execute(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<u64> {
        Ok(match self {
            Self::Sqlite(connection) => bind_sqlite(sql, params).execute(&mut **connection).await?.rows_affected(),
            Self::Postgres(connection, prepared) => {
                bind_postgres(sql, params, *prepared).execute(&mut **connection).answered(ANSWER_MAX).await?.rows_affected()
            }
        })
    }

    /// All rows.
    pub(crate) async fn all(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        Ok(match self {
            Self::Sqlite(connection) => bind_sqlite(sql, params).fetch_all(&mut **connection).await?.into_iter().map(Row::Sqlite).collect(),
            Self::Postgres(connection, prepared) => bind_postgres(sql, params, *prepared)
                .fetch_all(&mut **connection)
                .answered(ANSWER_MAX)
                .await?
                .into_iter()
                .map(Row::Postgres)
                .collect(),
        })
    }

    /// The row, if there is one.
    pub(crate) async fn optional(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<Option<Row>> {
        Ok(match self {
            Self::Sqlite(connection) => bind_sqlite(sql, params).fetch_optional(&mut **connection).await?.map(Row::Sqlite),
            Self::Postgres(connection, prepared) => {
                bind_postgres(sql, params, *prepared).fetch_optional(&mut **connection).answered(ANSWER_MAX).await?.map(Row::Postgres)
            }
        })
    }

    /// The row.
    ///
    /// # Errors
    /// [`Error::Integrity`] if there is none: what was stored is gone.
    pub(crate) async fn one(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<Row> {
        self.optional(sql, params).await?.ok_or_else(|| Error::integrity("a row that must be there is not"))
    }
}

type SqliteQuery<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;
type PostgresQuery<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

fn bind_sqlite<'q>(sql: &'static str, params: &[Param<'q>]) -> SqliteQuery<'q> {
    params.iter().fold(query(sql), |query, param| match *param {
        Param::Int(value) => query.bind(value),
        Param::Text(value) => query.bind(value),
        Param::Bytes(value) => query.bind(value),
        Param::NoInt => query.bind(None::<i64>),
        Param::NoText => query.bind(None::<&str>),
        Param::NoBytes => query.bind(None::<&[u8]>),
    })
}

fn bind_postgres<'q>(sql: &'static str, params: &[Param<'q>], prepared: Prepared) -> PostgresQuery<'q> {
    let bound = params.iter().fold(query(sql), |query, param| match *param {
        Param::Int(value) => query.bind(value),
        Param::Text(value) => query.bind(value),
        Param::Bytes(value) => query.bind(value),
        Param::NoInt => query.bind(None::<i64>),
        Param::NoText => query.bind(None::<&str>),
        Param::NoBytes => query.bind(None::<&[u8]>),
    });
    bound.persistent(prepared == Prepared::Kept)
}

/// A row that was read. Columns by name or by place.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// A column's name or place.
pub(crate) trait Column: ColumnIndex<SqliteRow> + ColumnIndex<PgRow> {}

impl<I: ColumnIndex<SqliteRow> + ColumnIndex<PgRow>> Column for I {}

macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        $($(#[$doc])*
        pub(crate) fn $name(&self, column: impl Column) -> Result<$type> {
            Ok(match self {
                Self::Sqlite(row) => row.try_get(column)?,
                Self::Postgres(row) => row.try_get(column)?,
            })
        })*
    };
}

impl Row {
    columns! {
        /// An integer.
        int: i64;
        /// An integer or NULL.
        opt_int: Option<i64>;
        /// A text.
        text: String;
        /// A text or NULL.
        opt_text: Option<String>;
        /// Bytes.
        bytes: Vec<u8>;
        /// Bytes or NULL.
        opt_bytes: Option<Vec<u8>>;
    }

    /// An integer that is never negative.
    pub(crate) fn number(&self, column: impl Column) -> Result<u64> {
        u64::try_from(self.int(column)?).map_err(|_| Error::integrity("a stored number is negative"))
    }
}
