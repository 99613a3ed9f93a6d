//! Shipping: how a log reaches the copy that outlives its node.
//!
//! The copy is a row of segments and one signed note over all of them. A [`Shipment`] brings the copy from a [`Mark`] to the
//! log's present size; its segments are read one at a time, so that a log of any length is shipped in constant memory. What is
//! shipped carries its note from the first moment: nothing can be changed, dropped, swapped or cut in the copy unseen.
//!
//! Segments end at multiples of [`SEGMENT_ENTRIES`]. One that reaches such an end replaces the short ones that came before it:
//! a copy that grew by a few entries at a time ends up in long rows all the same, and each entry is written twice at most.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Inner, Ledger, Moment, WIDTH};
use crate::error::{Error, Result};

/// Entries of a full segment: a multiple of a bundle's; some 350 KiB, at most 4.3 MiB.
pub(crate) const SEGMENT_ENTRIES: u64 = 4 * WIDTH;
/// When so much waits for being shipped, no further entry is taken.
const UNSHIPPED_BYTES_MAX: u64 = 64 << 20;
/// When something has waited so long for being shipped, no further entry is taken.
const UNSHIPPED_TIME_MAX: Duration = Duration::from_secs(60);

/// Leaves on their way to, or from, the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Index of the first entry.
    pub(crate) first: u64,
    /// How many.
    pub(crate) entries: u64,
    /// As in the log: length in 16 bits, leaf data, and so on.
    pub(crate) leaves: Vec<u8>,
    /// It begins before what was shipped, and stands for all rows from its first entry on.
    pub(crate) replaces: bool,
}

impl Segment {
    /// Index behind the last entry.
    pub(crate) fn end(&self) -> u64 {
        self.first.saturating_add(self.entries)
    }
}

/// How far a copy has come. The default is one that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) size: u64,
    /// In bytes of the log's file.
    pub(super) end: u64,
    /// The note in the copy.
    pub(crate) note: Option<String>,
}

/// A moment of the log and the note over it.
pub(super) struct Shipped {
    pub(super) moment: Moment,
    pub(super) note: String,
}

/// What brings a copy from one size to the next.
#[derive(Clone)]
pub(crate) struct Shipment {
    from: Mark,
    to: Arc<Shipped>,
    taken: Instant,
}

impl Shipment {
    /// How far the copy came before.
    pub(crate) fn from(&self) -> &Mark {
        &self.from
    }

    /// How far the copy will have come.
    pub(crate) fn to(&self) -> Mark {
        Mark { size: self.to.moment.size, end: self.to.moment.end, note: Some(self.to.note.clone()) }
    }

    /// The note that the copy will have.
    pub(crate) fn note(&self) -> &str {
        &self.to.note
    }
}

/// What a log knows of its copy.
pub(super) struct Shipping {
    mark: Mark,
    /// What the mark was taken of, unless nothing was shipped since the log was opened.
    last: Option<Arc<Shipped>>,
    /// Since when the oldest entry waits that is not shipped.
    waiting_since: Option<Instant>,
    /// A shipment whose commit was begun, and whose end was not seen.
    doubtful: Option<Shipment>,
}

impl Shipping {
    pub(super) fn new(mark: Mark, last: Option<Arc<Shipped>>, waits: bool) -> Self {
        Self { mark, last, waiting_since: waits.then(Instant::now), doubtful: None }
    }

    pub(super) fn last(&self) -> Option<Arc<Shipped>> {
        self.last.clone()
    }

    /// Something was appended.
    pub(super) fn waits(&mut self) {
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    fn overdue(&self, end: u64) -> bool {
        end.saturating_sub(self.mark.end) >= UNSHIPPED_BYTES_MAX
            || self.waiting_since.is_some_and(|since| since.elapsed() >= UNSHIPPED_TIME_MAX)
    }
}

impl Inner {
    /// Whether too much waits for being shipped.
    pub(super) fn overdue(&self) -> bool {
        self.shipping.as_ref().is_some_and(|shipping| shipping.overdue(self.end))
    }
}

impl Ledger {
    /// How far the log's own copy has come; none of a log without one.
    pub(crate) fn mark(&self) -> Option<Mark> {
        self.inner.lock().shipping.as_ref().map(|shipping| shipping.mark.clone())
    }

    /// What a copy that has come as far as `from` lacks; none if nothing.
    pub(crate) fn shipment(&self, from: Mark) -> Result<Option<Shipment>> {
        let (moment, taken) = {
            let inner = self.inner.lock();
            if inner.frontier.size() == from.size {
                return Ok(None);
            }
            (inner.moment(), Instant::now())
        };
        if moment.size < from.size {
            return Err(Error::integrity("the ledger is shorter than its copy"));
        }
        Ok(Some(Shipment { from, to: Arc::new(self.sign(moment)?), taken }))
    }

    /// The segment of a shipment that brings entry `at`: first the one that [`Mark::size`] names, then where the last one ended.
    /// None at the end.
    pub(crate) fn segment(&self, shipment: &Shipment, at: u64) -> Result<Option<Segment>> {
        let (from, to) = (&shipment.from, &shipment.to.moment);
        if at >= to.size {
            return Ok(None);
        }
        let start = at / SEGMENT_ENTRIES * SEGMENT_ENTRIES;
        let full = start + SEGMENT_ENTRIES;
        let (first, end) = if full <= to.size { (start, full) } else { (at, to.size) };
        let offset = |index: u64| match index {
            index if index == from.size => Ok(from.end),
            index if index == to.size => Ok(to.end),
            index => self.inner.lock().offset(index / WIDTH),
        };
        let leaves = self.files.read_log(offset(first)?, offset(end)?)?;
        Ok(Some(Segment { first, entries: end - first, leaves, replaces: first < from.size }))
    }

    /// The shipment has arrived, for good.
    pub(crate) fn shipped(&self, shipment: &Shipment) {
        let mut inner = self.inner.lock();
        let more = inner.frontier.size() > shipment.to.moment.size;
        if let Some(shipping) = &mut inner.shipping {
            shipping.mark = shipment.to();
            shipping.last = Some(Arc::clone(&shipment.to));
            shipping.waiting_since = more.then_some(shipment.taken);
            shipping.doubtful = None;
        }
    }

    /// The shipment may arrive, or may not, from here on.
    pub(super) fn doubts(&self, shipment: Option<Shipment>) {
        if let Some(shipping) = &mut self.inner.lock().shipping {
            shipping.doubtful = shipment;
        }
    }

    /// The shipment of which nobody knows whether it arrived.
    pub(super) fn doubtful(&self) -> Option<Shipment> {
        self.inner.lock().shipping.as_ref()?.doubtful.clone()
    }

    /// From now on the log has a copy, which has come so far; nothing beyond that is signed before it is shipped there.
    pub(crate) fn share(&self, mark: Mark) {
        let mut inner = self.inner.lock();
        let more = inner.frontier.size() > mark.size;
        inner.shipping = Some(Shipping::new(mark, None, more));
    }

    /// From now on the log lives here alone.
    pub(crate) fn unshared(&self) {
        self.inner.lock().shipping = None;
    }

    /// As if everything that waits had waited for so much longer.
    #[cfg(test)]
    pub(crate) fn waited(&self, longer: Duration) {
        if let Some(shipping) = &mut self.inner.lock().shipping {
            shipping.waiting_since = shipping.waiting_since.and_then(|since| since.checked_sub(longer));
        }
    }
}
