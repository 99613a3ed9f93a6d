//! Kinds and statistics of all columns in one pass.
//!
//! A column without declared type starts as whole numbers and widens to numbers and to text as its values demand. Both views are
//! counted side by side, so that widening in the last row leaves nothing wrong: the texts as written, and the numbers they stand
//! for. `NA`, `NaN` and `null` are missing in columns of numbers and booleans, and texts in columns of text. Mean and deviation
//! follow Welford (1962); infinite values are left out of them and of the extremes.

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use wire::{ColumnKind, ColumnStatistics, ColumnSummary, Fail};

use super::{Cell, Guess, Head, Sink, guess};

/// Distinct values are counted up to here.
const DISTINCT_MAX: usize = 1_000;
/// Most frequent texts reported.
const TOP_MAX: usize = 10;
/// Longest text kept whole while counting, in bytes; a longer one is kept as its start and its hash.
const TEXT_KEPT_BYTES_MAX: usize = 64;

/// A map with fixed keys: the same in every run, and no call for randomness.
type Counts = HashMap<String, u64, BuildHasherDefault<DefaultHasher>>;
type Numbers = HashSet<u64, BuildHasherDefault<DefaultHasher>>;

/// Collects all columns.
#[derive(Default)]
pub(crate) struct Summary {
    columns: Vec<Column>,
    rows: u64,
}

impl Summary {
    /// Rows and columns in file order.
    pub(crate) fn finish(self) -> (u64, Vec<ColumnSummary>) {
        (self.rows, self.columns.into_iter().map(|column| column.finish(self.rows)).collect())
    }
}

impl Sink for Summary {
    fn columns(&mut self, heads: &[Head]) -> Result<(), Fail> {
        self.columns = heads.iter().map(Column::new).collect();
        Ok(())
    }

    fn cell(&mut self, column: usize, _row: u64, cell: Cell<'_>) -> Result<(), Fail> {
        if let Some(column) = self.columns.get_mut(column) {
            column.push(cell);
        }
        Ok(())
    }

    fn rows(&mut self, rows: u64) {
        self.rows = rows;
    }
}

struct Column {
    name: String,
    declared: Option<ColumnKind>,
    missing: u64,
    markers: u64,
    integers: bool,
    numbers: bool,
    booleans: bool,
    texts: bool,
    moments: Moments,
    /// Texts as written with their counts, up to the bound.
    text_counts: Option<Counts>,
    /// Bits of the distinct numbers, up to the bound; not kept while `text_counts` tells.
    number_set: Option<Numbers>,
}

impl Column {
    fn new(head: &Head) -> Self {
        Self {
            name: head.name.clone(),
            declared: head.kind,
            missing: 0,
            markers: 0,
            integers: false,
            numbers: false,
            booleans: false,
            texts: false,
            moments: Moments::default(),
            text_counts: Some(Counts::default()),
            number_set: Some(Numbers::default()),
        }
    }

    fn push(&mut self, cell: Cell<'_>) {
        match cell {
            Cell::Missing => self.missing += 1,
            Cell::Number(number) if number.is_nan() => self.missing += 1,
            Cell::Raw(text) => self.raw(text),
            Cell::Integer(integer) => {
                self.integers = true;
                self.number(integer as f64);
            }
            Cell::Number(number) => {
                self.numbers = true;
                self.number(number);
            }
            Cell::Boolean(boolean) => {
                self.booleans = true;
                self.count(if boolean { "true" } else { "false" });
            }
            Cell::Text(text) | Cell::Time(text) => {
                self.texts = true;
                self.count(text);
            }
        }
    }

    fn raw(&mut self, text: &str) {
        if !self.texts {
            match guess(text) {
                Guess::Marker => self.markers += 1,
                Guess::Integer(integer) => {
                    self.integers = true;
                    self.moments.push(integer as f64);
                    self.number_seen(integer as f64);
                }
                Guess::Number(number) => {
                    self.numbers = true;
                    self.moments.push(number);
                    self.number_seen(number);
                }
                Guess::Boolean(_) => self.booleans = true,
                Guess::Text => self.texts = true,
            }
            self.texts |= self.booleans && (self.integers || self.numbers);
        }
        self.count(text);
    }

    fn number(&mut self, number: f64) {
        self.moments.push(number);
        self.text_counts = None;
        self.number_seen(number);
    }

    /// Counts a distinct number; while texts are counted they tell it.
    fn number_seen(&mut self, number: f64) {
        if self.text_counts.is_some() {
            return;
        }
        if let Some(set) = &mut self.number_set {
            set.insert((number + 0.0).to_bits());
            if set.len() > DISTINCT_MAX {
                self.number_set = None;
            }
        }
    }

    fn count(&mut self, text: &str) {
        let Some(counts) = &mut self.text_counts else { return };
        let key = kept(text);
        if let Some(count) = counts.get_mut(key.as_ref()) {
            *count += 1;
            return;
        }
        if counts.len() < DISTINCT_MAX {
            counts.insert(key.into_owned(), 1);
            return;
        }
        let counts = self.text_counts.take().unwrap_or_default();
        if self.texts {
            self.number_set = None;
        } else {
            for number in counts.keys().map(String::as_str).chain([text]).filter_map(number_of) {
                self.number_seen(number);
            }
        }
    }

    fn kind(&self) -> ColumnKind {
        match self.declared {
            Some(ColumnKind::Other) => return ColumnKind::Other,
            Some(declared) if self.integers || self.numbers || self.booleans || self.texts => return declared,
            _ => {}
        }
        match (self.texts, self.numbers, self.integers, self.booleans) {
            (true, ..) => ColumnKind::Text,
            (_, true, ..) => ColumnKind::Number,
            (_, _, true, _) => ColumnKind::Integer,
            (_, _, _, true) => ColumnKind::Boolean,
            _ => ColumnKind::Empty,
        }
    }

    fn finish(self, rows: u64) -> ColumnSummary {
        let kind = self.kind();
        let mut statistics = ColumnStatistics { missing: self.missing + self.markers, ..ColumnStatistics::default() };
        match kind {
            ColumnKind::Other => statistics.missing = 0,
            ColumnKind::Empty => {
                statistics.missing = rows;
                statistics.distinct = Some(0);
            }
            ColumnKind::Integer | ColumnKind::Number => {
                statistics.distinct = match &self.text_counts {
                    Some(counts) => {
                        let numbers: Numbers = counts.keys().filter_map(|text| number_of(text)).map(f64::to_bits).collect();
                        Some(numbers.len() as u64)
                    }
                    None => self.number_set.as_ref().map(|set| set.len() as u64),
                };
                self.moments.fill(&mut statistics);
            }
            ColumnKind::Boolean => {
                let counts = self.text_counts.unwrap_or_default();
                let values: HashSet<bool, BuildHasherDefault<DefaultHasher>> = counts
                    .keys()
                    .filter_map(|text| match guess(text) {
                        Guess::Boolean(value) => Some(value),
                        _ => None,
                    })
                    .collect();
                statistics.distinct = Some(values.len() as u64);
            }
            ColumnKind::Text => {
                statistics.missing = self.missing;
                statistics.distinct = self.text_counts.as_ref().map(|counts| counts.len() as u64);
                statistics.top = self.text_counts.map(top).unwrap_or_default();
            }
            ColumnKind::Time => statistics.distinct = self.text_counts.as_ref().map(|counts| counts.len() as u64),
        }
        ColumnSummary { name: self.name, kind, statistics }
    }
}

fn number_of(text: &str) -> Option<f64> {
    match guess(text) {
        Guess::Integer(integer) => Some(integer as f64),
        Guess::Number(number) => Some(number + 0.0),
        _ => None,
    }
}

/// The text under which a text is counted.
fn kept(text: &str) -> std::borrow::Cow<'_, str> {
    if text.len() <= TEXT_KEPT_BYTES_MAX {
        return text.into();
    }
    let mut hasher = DefaultHasher::default();
    text.hash(&mut hasher);
    let start = text.get(..text.floor_char_boundary(TEXT_KEPT_BYTES_MAX)).unwrap_or_default();
    format!("{start}…{:016x}", hasher.finish()).into()
}

/// The most frequent texts; equally frequent ones in alphabetical order.
fn top(counts: Counts) -> Vec<(String, u64)> {
    let mut top: Vec<(String, u64)> = counts.into_iter().collect();
    top.sort_by(|(a, a_count), (b, b_count)| b_count.cmp(a_count).then_with(|| a.cmp(b)));
    top.truncate(TOP_MAX);
    for (text, _) in &mut top {
        if text.len() > TEXT_KEPT_BYTES_MAX {
            text.truncate(text.len() - 16);
        }
    }
    top
}

/// Running count, mean, sum of squared deviations, extremes.
#[derive(Default)]
struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Moments {
    fn push(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        if self.count == 0 {
            (self.min, self.max) = (value, value);
        }
        self.count += 1;
        let delta = value - self.mean;
        self.mean += delta / self.count as f64;
        self.squares += delta * (value - self.mean);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    fn fill(&self, statistics: &mut ColumnStatistics) {
        if self.count == 0 {
            return;
        }
        statistics.min = Some(self.min);
        statistics.max = Some(self.max);
        statistics.mean = Some(self.mean).filter(|mean| mean.is_finite());
        if self.count > 1 {
            statistics.standard_deviation = Some((self.squares / (self.count - 1) as f64).sqrt()).filter(|value| value.is_finite());
        }
    }
}

/// Texts in the order of first appearance, with codes; for the loader.
#[derive(Default)]
pub(crate) struct Dictionary {
    codes: HashMap<String, u32, BuildHasherDefault<DefaultHasher>>,
    /// The texts by code.
    pub(crate) texts: Vec<String>,
}

impl Dictionary {
    /// The code of this text; a new one when it is new.
    pub(crate) fn code(&mut self, text: &str) -> u32 {
        if let Some(&code) = self.codes.get(text) {
            return code;
        }
        let code = u32::try_from(self.texts.len()).unwrap_or(u32::MAX);
        if let Entry::Vacant(entry) = self.codes.entry(text.to_owned()) {
            entry.insert(code);
            self.texts.push(text.to_owned());
        }
        code
    }
}
