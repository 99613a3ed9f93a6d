//! Judges what clients saw of one register: could there have been a single one behind all nodes, that each operation met at one moment
//! between its beginning and its end?
//!
//! Every written value is unique, which makes the question easy (Gibbons and Korach, "Testing shared memories", 1997). A value's *zone*
//! lies between the first end and the last beginning of the operations that wrote or read it. If the first end is before the last
//! beginning, the register must have held the value all through the zone (*forward*); otherwise one moment in the zone is enough
//! (*backward*). There is such a register if and only if no two forward zones overlap, and no backward zone lies inside a forward one.

use std::collections::BTreeMap;
use std::time::Instant;

/// One operation on the register.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) value: String,
    pub(crate) is_write: bool,
    pub(crate) began: Instant,
    /// None: nobody knows whether it was done, or when.
    pub(crate) ended: Option<Instant>,
}

/// A value's zone. Moments are numbers of their order; no end is the greatest.
struct Zone<'a> {
    value: &'a str,
    first_end: usize,
    last_begin: usize,
    written_at: Option<usize>,
}

impl Zone<'_> {
    fn is_forward(&self) -> bool {
        self.first_end < self.last_begin
    }
}

/// Whether one register explains the operations; if not, why.
pub(crate) fn judge(initial: &str, operations: &[Operation]) -> Result<(), String> {
    let mut moments: Vec<Instant> = operations.iter().flat_map(|op| [Some(op.began), op.ended]).flatten().collect();
    moments.sort_unstable();
    let at = |moment: Instant| moments.partition_point(|known| *known < moment) + 1;
    // The first value was there before everything.
    let first = Zone { value: initial, first_end: 0, last_begin: 0, written_at: Some(0) };
    let mut zones = BTreeMap::from([(initial, first)]);
    for op in operations.iter().filter(|op| op.is_write || op.ended.is_some()) {
        let (began, ended) = (at(op.began), op.ended.map_or(usize::MAX, at));
        let fresh = Zone { value: &op.value, first_end: usize::MAX, last_begin: 0, written_at: None };
        let zone = zones.entry(&op.value).or_insert(fresh);
        zone.first_end = zone.first_end.min(ended);
        zone.last_begin = zone.last_begin.max(began);
        if op.is_write && zone.written_at.replace(began).is_some() {
            return Err(format!("`{}` was written twice: the test is wrong", op.value));
        }
    }
    for op in operations.iter().filter(|op| !op.is_write) {
        let (Some(ended), Some(zone)) = (op.ended, zones.get(op.value.as_str())) else { continue };
        match zone.written_at {
            None => return Err(format!("`{}` was read and never written", op.value)),
            Some(written) if at(ended) < written => return Err(format!("`{}` was read before it was written", op.value)),
            Some(_) => {}
        }
    }
    // A write that nobody knows of and nobody saw may never have been.
    let zones: Vec<_> = zones.into_values().filter(|zone| zone.first_end != usize::MAX).collect();
    let (forward, backward): (Vec<_>, Vec<_>) = zones.into_iter().partition(Zone::is_forward);
    for (index, one) in forward.iter().enumerate() {
        if let Some(other) = forward[index + 1..].iter().find(|other| one.first_end < other.last_begin && other.first_end < one.last_begin)
        {
            return Err(format!("`{}` and `{}` were both there, one came back after the other", one.value, other.value));
        }
        if let Some(lost) = backward.iter().find(|zone| one.first_end < zone.last_begin && zone.first_end < one.last_begin) {
            return Err(format!("`{}` was written while `{}` was there before and after: it was lost", lost.value, one.value));
        }
    }
    Ok(())
}

/// Histories of which the answer is known: value, write or read, beginning, end (0: unknown).
#[test]
fn known_histories_are_judged() {
    let origin = Instant::now();
    let moment = |number: u64| origin + std::time::Duration::from_millis(number);
    let judged = |list: &[(&str, bool, u64, u64)]| {
        let one = |(value, is_write, began, ended): &(&str, bool, u64, u64)| Operation {
            value: (*value).to_owned(),
            is_write: *is_write,
            began: moment(*began),
            ended: (*ended != 0).then(|| moment(*ended)),
        };
        judge("0", &list.iter().map(one).collect::<Vec<_>>())
    };
    let (write, read) = (true, false);
    let good: [&[_]; 7] = [
        &[("0", read, 1, 2), ("a", write, 3, 4), ("a", read, 5, 6)],
        &[("a", write, 1, 10), ("0", read, 2, 3), ("a", read, 4, 5)],
        &[("a", write, 1, 10), ("b", write, 2, 11), ("b", read, 12, 13)],
        &[("a", write, 1, 10), ("b", write, 2, 11), ("a", read, 12, 13)],
        &[("a", write, 1, 0), ("0", read, 2, 3), ("a", read, 9, 10)],
        &[("a", write, 1, 0), ("0", read, 2, 3), ("b", write, 4, 5), ("b", read, 6, 7)],
        // Takes effect late.
        &[("a", write, 1, 0), ("b", write, 4, 5), ("b", read, 6, 7), ("a", read, 8, 9)],
    ];
    for history in good {
        judged(history).unwrap_or_else(|told| panic!("{history:?}: {told}"));
    }
    let bad: [(&[_], &str); 7] = [
        (&[("a", write, 1, 2), ("0", read, 3, 4)], "lost"),
        (&[("a", write, 1, 2), ("b", write, 3, 4), ("a", read, 5, 6)], "lost"),
        (&[("a", write, 1, 10), ("a", read, 2, 3), ("0", read, 4, 5)], "lost"),
        (&[("a", write, 1, 0), ("a", read, 2, 3), ("0", read, 4, 5)], "lost"),
        (
            &[("a", write, 1, 20), ("b", write, 1, 20), ("a", read, 2, 3), ("b", read, 4, 5), ("a", read, 6, 7), ("b", read, 8, 9)],
            "came back",
        ),
        (&[("z", read, 1, 2)], "never written"),
        (&[("a", read, 1, 2), ("a", write, 3, 4)], "before it was written"),
    ];
    for (history, why) in bad {
        let told = judged(history).unwrap_err();
        assert!(told.contains(why), "{history:?}: {told}");
    }
}
