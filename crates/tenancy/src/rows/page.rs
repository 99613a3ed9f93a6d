//! Pages of records: bounded in number and in bytes.
//!
//! A record has up to a mebibyte, a page up to a thousand records. So that no page is a gibibyte, a statement that lists brings along only
//! values of at most the page's bytes divided by its rows. The larger ones come afterwards by their keys, as many as the page still holds.
//! Most pages have none: they stay one plain statement, without a window over sizes. (To read rows as they come and to stop would not do:
//! a server sends what it was asked for, and a file is read ahead.)

use super::sql::Row;
use crate::error::{Error, Result};

/// Records on a page.
const PAGE_ITEMS_MAX: u32 = 1000;
/// Values on a page as they are stored, in bytes. The largest record fits.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A page of records, in the order of their keys.
///
/// How many there are says nothing about whether more follow: large ones end a page early.
#[derive(Debug)]
#[must_use]
pub struct Listed<R> {
    /// At least one, if there is any.
    pub records: Vec<R>,
    /// Give it as `after` for those that follow; `None` if there are none.
    pub next: Option<String>,
    /// Their bytes as they are stored.
    pub bytes: usize,
}

/// The records of the first of some keys.
#[derive(Debug)]
#[must_use]
pub struct Got<R> {
    /// One for each of the first keys, at least of one; those that are not here have to be asked for again.
    pub records: Vec<Option<R>>,
    /// Their bytes as they are stored.
    pub bytes: usize,
}

impl<R> Listed<R> {
    /// The records, where whoever wrote them saw to it that a page holds all of them.
    ///
    /// # Errors
    /// [`Error::Internal`] if more follow.
    pub fn whole(self) -> Result<Vec<R>> {
        match self.next {
            None => Ok(self.records),
            Some(_) => Err(Error::internal("more records than fit on the page that was to hold all of them")),
        }
    }
}

/// What a page is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    items: u32,
}

impl Bounds {
    /// Of at most so many records, and at least one.
    pub(super) fn new(items: u32) -> Self {
        Self { items: items.clamp(1, PAGE_ITEMS_MAX) }
    }

    /// Rows to ask for: the one too many only says that more follow.
    pub(super) fn rows(self) -> i64 {
        i64::from(self.items) + 1
    }

    /// Bytes of a value up to which it comes along.
    pub(super) fn along_bytes(self) -> i64 {
        i64::try_from(PAGE_BYTES_MAX).unwrap_or(i64::MAX) / self.rows()
    }

    /// Leaves the rows that are on the page; whether more follow, and the bytes of their values.
    pub(super) fn cut(self, rows: &mut Vec<Row>) -> Result<(bool, usize)> {
        let (mut bytes, mut items) = (0, 0);
        for row in rows.iter().take(self.items as usize) {
            let value = value_bytes(row)?;
            if items > 0 && bytes + value > PAGE_BYTES_MAX {
                break;
            }
            bytes += value;
            items += 1;
        }
        let more = items < rows.len();
        rows.truncate(items);
        Ok((more, bytes))
    }
}

/// Size of a listed value.
pub(super) fn value_bytes(row: &Row) -> Result<usize> {
    usize::try_from(row.number("bytes")?).map_err(Error::internal)
}
