//! What a search found, while it is put in order.
//!
//! It holds of everything what orders it, and the records themselves only as far as [`HELD_BYTES_MAX`] goes: records have texts of up to half
//! a mebibyte, and a tenant searches many times at once. What is on the page that is asked for and is not held is read again; a page ends
//! early when its records are large, and the token says where.

use std::cmp::Ordering;

use tenancy::act::Act;
use tenancy::{Got, Listed, PAGE_BYTES_MAX, Permit, Record, Rows};
use tokio::sync::OwnedSemaphorePermit;

use super::index::{SEARCH_TIME_MAX, Tracking};
use crate::error::{Error, Result};

/// Searches of one tenant that put in order what they found at once.
pub(super) const SEARCHES_MAX: usize = 2;

/// Records that one search holds, as they are stored, in bytes.
const HELD_BYTES_MAX: usize = PAGE_BYTES_MAX / 2;
/// Bytes of those that were read again for one answer up to which it goes on; the last step may add a page of them.
const READ_BYTES_MAX: usize = PAGE_BYTES_MAX / 2;
/// Records read again at once.
const READ_ITEMS: usize = 32;

impl Tracking {
    /// The turn of a search that holds what it found until it is in order.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when those before it take too long.
    pub(crate) async fn search_turn<A: Act>(&self, permit: &Permit<A>) -> Result<OwnedSemaphorePermit> {
        let turn = tokio::time::timeout(SEARCH_TIME_MAX, self.searches(permit.island()).acquire_owned()).await;
        turn.map_err(|_| Error::Overloaded("searches of this tenant"))?.map_err(|error| tenancy::Error::internal(error).into())
    }
}

/// Records by what orders them.
pub(crate) struct Hits<K, R> {
    all: Vec<(K, Option<R>)>,
    bytes: usize,
}

impl<K, R: Record> Hits<K, R> {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self { all: Vec::new(), bytes: 0 }
    }

    /// Adds those of a page that have a key here. Where the next page begins.
    pub(crate) fn add(&mut self, page: Listed<R>, key: impl Fn(&R) -> Option<K>) -> Option<String> {
        self.bytes += page.bytes;
        let held = self.bytes <= HELD_BYTES_MAX;
        self.all.extend(page.records.into_iter().filter_map(|record| Some((key(&record)?, held.then_some(record)))));
        page.next
    }

    /// Adds one that lies nowhere.
    pub(crate) fn push(&mut self, key: K, record: R) {
        self.all.push((key, Some(record)));
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// What orders them.
    pub(crate) fn keys(&mut self) -> impl Iterator<Item = &mut K> {
        self.all.iter_mut().map(|(key, _)| key)
    }

    /// Leaves out what does not pass.
    pub(crate) fn retain(&mut self, passes: impl Fn(&K) -> bool) {
        self.all.retain(|(key, _)| passes(key));
    }

    /// Puts them in order.
    pub(crate) fn sort(&mut self, compare: impl Fn(&K, &K) -> Ordering) {
        self.all.sort_by(|(a, _), (b, _)| compare(a, b));
    }

    /// At most `limit` of them after the first `skip`, as many as an answer holds, and how many to skip for those after them: what is gone
    /// by then is not among those that the next search finds, and not skipped.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) async fn page(
        self,
        rows: &Rows<'_>,
        skip: usize,
        limit: usize,
        stored: impl Fn(&K) -> String,
    ) -> Result<(Vec<(K, R)>, Option<usize>)> {
        self.page_of(|keys| async move { rows.get_page::<R>(&keys).await.map_err(Error::from) }, skip, limit, stored).await
    }

    async fn page_of<F: Future<Output = Result<Got<R>>>>(
        self,
        read: impl Fn(Vec<String>) -> F,
        skip: usize,
        limit: usize,
        stored: impl Fn(&K) -> String,
    ) -> Result<(Vec<(K, R)>, Option<usize>)> {
        let (all, mut end, mut gone, mut bytes, mut page) = (self.all.len(), skip, 0, 0, Vec::new());
        let mut rest = self.all.into_iter().skip(skip).take(limit).peekable();
        while let Some((key, record)) = rest.next() {
            if let Some(record) = record {
                end += 1;
                page.push((key, record));
                continue;
            }
            let mut again = vec![key];
            while again.len() < READ_ITEMS
                && let Some((key, _)) = rest.next_if(|(_, record)| record.is_none())
            {
                again.push(key);
            }
            let got = read(again.iter().map(&stored).collect()).await?;
            (end, bytes) = (end + got.records.len(), bytes + got.bytes);
            gone += got.records.iter().filter(|record| record.is_none()).count();
            let whole = got.records.len() == again.len() && bytes <= READ_BYTES_MAX;
            page.extend(again.into_iter().zip(got.records).filter_map(|(key, record)| Some((key, record?))));
            if !whole {
                break;
            }
        }
        Ok((page, (end < all).then_some(end - gone)))
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note(u32);

    impl Record for Note {
        const KIND: &'static str = "note";
        fn key(&self) -> String {
            self.0.to_string()
        }
    }

    /// Pages of two of the notes that are there, none of which is held, until the last. `gone` goes while it is on the first page.
    async fn paged(notes: u32, gone: Option<u32>) -> Vec<u32> {
        let (mut seen, mut skip, mut vanished) = (Vec::new(), Some(0), None);
        while let Some(from) = skip {
            let mut hits = Hits::<u32, Note>::new();
            hits.all = (0..notes).filter(|note| Some(*note) != vanished).map(|note| (note, None)).collect();
            vanished = gone;
            let read = |keys: Vec<String>| async move {
                let notes = keys.iter().map(|key| Some(Note(key.parse().unwrap())).filter(|note| Some(note.0) != gone));
                Ok::<_, Error>(Got { records: notes.collect(), bytes: 0 })
            };
            let (page, next) = hits.page_of(read, from, 2, ToString::to_string).await.unwrap();
            seen.extend(page.into_iter().map(|(_, Note(note))| note));
            skip = next;
        }
        seen
    }

    #[tokio::test]
    async fn who_pages_meets_each_that_stays_once_though_another_goes() {
        assert_eq!(paged(7, None).await, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(paged(7, Some(0)).await, [1, 2, 3, 4, 5, 6]);
        assert_eq!(paged(7, Some(1)).await, [0, 2, 3, 4, 5, 6]);
        assert_eq!(paged(7, Some(6)).await, [0, 1, 2, 3, 4, 5]);
    }
}
