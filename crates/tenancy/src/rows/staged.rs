//! What a transaction knows of its records and counters, so that each is read once and written once, however often it is touched.
//!
//! Writes that share a commit touch the same few records again and again: the run, its experiment, the tenant's counters. The database is
//! told when something has to be asked that only it can answer (a listing), and at the commit; then in as few statements as there can be.
//!
//! ```text
//! get ─► known? ─► else read it once          put ─► due ─► flush: one statement for up to 32 records
//! ```
//! A part of a transaction that is taken back takes back what it did here too: each change since the savepoint is remembered with what was
//! before. What was due at the savepoint is due again then.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::codec::{Codec, Content};
use super::records::{self, Due};
use super::sql::Sql;
use crate::error::Result;

/// Bytes that are kept here at most; beyond, the database is told, and what it has is forgotten here.
const BYTES_MAX: usize = 2 * 1024 * 1024;

/// Where a record is: its kind and its key.
type Spot = (&'static str, String);
/// What a record is found by.
type Fields = Vec<(String, String)>;

/// All of it.
#[derive(Default)]
pub(super) struct Staged {
    records: BTreeMap<Spot, Known>,
    counters: BTreeMap<String, Counter>,
    /// Roughly how much memory they take.
    bytes: usize,
    /// Records and counters of which the database is still to be told.
    due: usize,
    /// What was before each change since the savepoint, oldest first; none without a savepoint.
    before: Option<Vec<Before>>,
}

/// One record.
#[derive(Debug, Clone)]
struct Known {
    /// None when there is no such record.
    content: Option<Arc<Content>>,
    state: State,
}

impl Known {
    fn is_due(&self) -> bool {
        matches!(self.state, State::Due(_))
    }
}

#[derive(Debug, Clone)]
enum State {
    /// As the database has it.
    Stored,
    /// The database is still to be told. By what it finds the record that it has; none when nobody asked it.
    Due(Option<Fields>),
}

/// One counter.
#[derive(Debug, Clone, Copy)]
struct Counter {
    value: i64,
    due: bool,
}

enum Before {
    Record(Spot, Option<Known>),
    Counter(String, Option<Counter>),
}

impl Staged {
    /// A record, if it is known: its JSON, or that there is none.
    pub(super) fn json(&self, kind: &'static str, key: &str) -> Option<Option<&[u8]>> {
        let known = self.records.get(&(kind, key.to_owned()))?;
        Some(known.content.as_ref().map(|content| content.value.as_slice()))
    }

    /// The database said so.
    pub(super) fn learn(&mut self, kind: &'static str, key: &str, content: Option<Content>) {
        self.set((kind, key.to_owned()), Known { content: content.map(Arc::new), state: State::Stored });
    }

    /// The record is to be this.
    pub(super) fn put(&mut self, kind: &'static str, key: String, content: Content) {
        let spot = (kind, key);
        let fields = match self.records.get(&spot) {
            Some(Known { state: State::Due(fields), .. }) => fields.clone(),
            Some(Known { content, state: State::Stored }) => {
                Some(content.as_ref().map(|content| content.fields.clone()).unwrap_or_default())
            }
            None => None,
        };
        self.set(spot, Known { content: Some(Arc::new(content)), state: State::Due(fields) });
    }

    /// A counter, if it is known.
    pub(super) fn counter(&self, name: &str) -> Option<i64> {
        self.counters.get(name).map(|counter| counter.value)
    }

    /// The database said so.
    pub(super) fn learn_counter(&mut self, name: &str, value: i64) {
        self.set_counter(name, Counter { value, due: false });
    }

    /// The counter is to be this.
    pub(super) fn put_counter(&mut self, name: &str, value: i64) {
        self.set_counter(name, Counter { value, due: true });
    }

    /// Whether the database has to be told of something.
    pub(super) fn is_due(&self) -> bool {
        self.due > 0
    }

    /// Whether it is time to tell the database.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > BYTES_MAX
    }

    /// Tells the database.
    pub(super) async fn flush(&mut self, mut db: Sql<'_>, codec: &Codec) -> Result<()> {
        let mut kinds: BTreeMap<&'static str, Vec<Due>> = BTreeMap::new();
        for ((kind, key), known) in &self.records {
            if let Known { content: Some(content), state: State::Due(fields) } = known {
                kinds.entry(kind).or_default().push(Due { key: key.clone(), content: Arc::clone(content), stored_fields: fields.clone() });
            }
        }
        for (kind, due) in kinds {
            records::put_due(db.again(), codec, kind, &due).await?;
            for Due { key, content, .. } in due {
                self.set((kind, key), Known { content: Some(content), state: State::Stored });
            }
        }
        let counters: Vec<_> =
            self.counters.iter().filter(|(_, counter)| counter.due).map(|(name, counter)| (name.clone(), counter.value)).collect();
        for (name, value) in counters {
            records::usage_set(db.again(), &name, value).await?;
            self.learn_counter(&name, value);
        }
        Ok(())
    }

    /// From here on changes can be taken back.
    pub(super) fn mark(&mut self) {
        self.before = Some(Vec::new());
    }

    /// What was changed since the mark stays.
    pub(super) fn keep(&mut self) {
        self.before = None;
    }

    /// What was changed since the mark is as it was then.
    pub(super) fn take_back(&mut self) {
        for before in self.before.take().into_iter().flatten().rev() {
            match before {
                Before::Record(spot, Some(known)) => self.set(spot, known),
                Before::Record(spot, None) => self.forget(&spot),
                Before::Counter(name, Some(counter)) => self.set_counter(&name, counter),
                Before::Counter(name, None) => {
                    let old = self.counters.remove(&name);
                    self.due -= usize::from(old.is_some_and(|old| old.due));
                }
            }
        }
    }

    fn set(&mut self, spot: Spot, known: Known) {
        self.bytes += cost(&spot, &known);
        self.due += usize::from(known.is_due());
        let old = self.records.insert(spot.clone(), known);
        self.bytes = self.bytes.saturating_sub(old.as_ref().map_or(0, |old| cost(&spot, old)));
        self.due -= usize::from(old.as_ref().is_some_and(Known::is_due));
        if let Some(before) = &mut self.before {
            before.push(Before::Record(spot, old));
        }
        if self.is_full() {
            // What the database has can be read again.
            self.records.retain(|_, known| known.is_due());
            self.bytes = self.records.iter().map(|(spot, known)| cost(spot, known)).sum();
        }
    }

    fn forget(&mut self, spot: &Spot) {
        if let Some(old) = self.records.remove(spot) {
            self.bytes = self.bytes.saturating_sub(cost(spot, &old));
            self.due -= usize::from(old.is_due());
        }
    }

    fn set_counter(&mut self, name: &str, counter: Counter) {
        self.due += usize::from(counter.due);
        let old = self.counters.insert(name.to_owned(), counter);
        self.due -= usize::from(old.is_some_and(|old| old.due));
        if let Some(before) = &mut self.before {
            before.push(Before::Counter(name.to_owned(), old));
        }
    }
}

fn cost(spot: &Spot, known: &Known) -> usize {
    spot.1.len() + known.content.as_ref().map_or(0, |content| content.value.len()) + size_of::<(Spot, Known)>()
}
