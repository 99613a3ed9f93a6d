//! When a canary has to go: what is counted of its answers, and the rules that it is held to.
//!
//! ```text
//! weight by request id ─► canary answers ─► window of counts ─► rule broken ─► out at once, in memory
//!                                                                           └► taken out of the deployment, with an entry
//! ```
//! All of it is memory of the tenant's home node, through which every prediction of the tenant goes. What a restart forgets is counted anew.
//! Only what the model is to blame for counts: a request that is wrong says nothing about who answers it, and neither does a service that is
//! full.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wire::FailCode;

use crate::error::{CellFailure, Error, Result};
use crate::page::Timestamp;

/// Answers before anything is judged, when nothing is said.
const REQUESTS_MIN_DEFAULT: u32 = 20;
/// Window when nothing is said, in seconds.
const WINDOW_SECONDS_DEFAULT: u32 = 60;
/// Longest window in seconds.
const WINDOW_SECONDS_MAX: u32 = 3600;
/// Most answers that may be waited for.
const REQUESTS_MIN_MAX: u32 = 1_000_000;
/// Longest bound of a latency in milliseconds.
const P99_MS_MAX: u64 = 600_000;
/// Pieces of which a window is made: it forgets one at a time.
const SLOTS: usize = 12;

/// When a canary is taken out without anybody's doing. At least one of the two bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRules {
    /// Largest share of answers in the window that may fail through the model, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<f64>,
    /// Longest 99th percentile of the window in milliseconds, the loading of the model not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<u64>,
    /// Answers in the window before anything is judged; 20 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_min: Option<u32>,
    /// Length of the window in seconds, at most 3,600; 60 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<u32>,
}

impl RollbackRules {
    /// Refuses rules that make no sense.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::invalid(why));
        if self.error_rate.is_none() && self.p99_ms.is_none() {
            return refuse("`rollback_on` has neither `error_rate` nor `p99_ms`".to_owned());
        }
        if self.error_rate.is_some_and(|rate| !(0.0..=1.0).contains(&rate)) {
            return refuse("`rollback_on.error_rate` is a share: give 0 to 1".to_owned());
        }
        if self.p99_ms.is_some_and(|ms| !(1..=P99_MS_MAX).contains(&ms)) {
            return refuse(format!("`rollback_on.p99_ms` is 1 to {P99_MS_MAX}"));
        }
        if !(1..=REQUESTS_MIN_MAX).contains(&self.requests_min()) {
            return refuse(format!("`rollback_on.requests_min` is 1 to {REQUESTS_MIN_MAX}"));
        }
        if !(1..=WINDOW_SECONDS_MAX).contains(&self.window_seconds()) {
            return refuse(format!("`rollback_on.window_seconds` is 1 to {WINDOW_SECONDS_MAX}"));
        }
        Ok(())
    }

    fn requests_min(&self) -> u32 {
        self.requests_min.unwrap_or(REQUESTS_MIN_DEFAULT)
    }

    fn window_seconds(&self) -> u32 {
        self.window_seconds.unwrap_or(WINDOW_SECONDS_DEFAULT)
    }
}

/// Whether this request goes to a canary of this weight. The same request, asked again, goes the same way.
pub(crate) fn chosen(request: &str, weight_percent: u32) -> bool {
    // FNV-1a, then a mix of its upper half into the lower one, because ids often differ in their last letters alone.
    let hash = request.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed >> 32) % 100 < u64::from(weight_percent)
}

/// Whether the model is to blame; `None` when the outcome says nothing about it.
pub(crate) fn blame<T>(outcome: &Result<T>) -> Option<bool> {
    match outcome {
        Ok(_) => Some(false),
        Err(Error::Input(fail)) => {
            let model = matches!(fail.code, FailCode::ModelFailed | FailCode::ModelRefused | FailCode::NoModel | FailCode::Internal);
            model.then_some(true)
        }
        Err(Error::CellFailed(CellFailure::Stopped | CellFailure::NotStarted(_) | CellFailure::NoIsolation { .. })) => None,
        Err(Error::CellFailed(_) | Error::DeadlineExceeded { .. } | Error::ModelUnstable { .. }) => Some(true),
        Err(_) => None,
    }
}

/// Counts of the recent past.
struct Window {
    rules: RollbackRules,
    slots: [Slot; SLOTS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    number: u128,
    answers: u64,
    failures: u64,
    slow: u64,
}

impl Window {
    fn new(rules: RollbackRules) -> Self {
        Self { rules, slots: [Slot::default(); SLOTS] }
    }

    /// Counts an answer at `at` since the beginning; what is broken by it, in words.
    fn add(&mut self, at: Duration, failed: bool, took: Duration) -> Option<String> {
        let window = Duration::from_secs(self.rules.window_seconds().into());
        // Counted from `SLOTS` on, so that a slot that was never used is of the past.
        let number = at.as_nanos() / (window.as_nanos() / SLOTS as u128).max(1) + SLOTS as u128;
        let slot = self.slots.get_mut(usize::try_from(number % SLOTS as u128).unwrap_or(0))?;
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot.answers += 1;
        slot.failures += u64::from(failed);
        slot.slow += u64::from(self.rules.p99_ms.is_some_and(|ms| took > Duration::from_millis(ms)));
        self.judge(number)
    }

    fn judge(&self, now: u128) -> Option<String> {
        let recent = || self.slots.iter().filter(|slot| slot.number + SLOTS as u128 > now);
        let sum = |pick: fn(&Slot) -> u64| recent().map(pick).sum::<u64>();
        let (answers, failures, slow) = (sum(|slot| slot.answers), sum(|slot| slot.failures), sum(|slot| slot.slow));
        if answers < u64::from(self.rules.requests_min()) {
            return None;
        }
        let within = format!("of {answers} answers in {} s", self.rules.window_seconds());
        if let Some(rate) = self.rules.error_rate.filter(|rate| failures as f64 > rate * answers as f64) {
            return Some(format!("{failures} {within} failed, more than the share of {rate} that `error_rate` allows"));
        }
        // By nearest rank: the percentile is above the bound exactly if more than one in a hundred is.
        let ms = self.rules.p99_ms.filter(|_| slow > answers / 100)?;
        Some(format!("the 99th percentile {within} is above the {ms} ms that `p99_ms` allows"))
    }
}

/// A canary under its rules. Lives as long as the deployment asks for the same canary.
pub(crate) struct Watch {
    since: Timestamp,
    version: u64,
    author: String,
    begun: Instant,
    out: AtomicBool,
    state: Mutex<State>,
}

struct State {
    window: Window,
    untold: Option<String>,
}

/// A canary that broke its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    /// State of the deployment that it was part of.
    pub(crate) since: Timestamp,
    /// The canary; 0 when its alias points nowhere.
    pub(crate) version: u64,
    /// Who ordered the rules.
    pub(crate) author: String,
    /// What it broke.
    pub(crate) reason: String,
}

impl Watch {
    /// Over version `version`, since the deployment became what it is at `since` by `author`.
    pub(crate) fn new(rules: RollbackRules, since: Timestamp, version: u64, author: &str) -> Self {
        let state = State { window: Window::new(rules), untold: None };
        let (author, begun) = (author.to_owned(), Instant::now());
        Self { since, version, author, begun, out: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// Whether it watches this canary.
    pub(crate) fn is_of(&self, since: Timestamp, version: u64) -> bool {
        (self.since, self.version) == (since, version)
    }

    /// Whether the canary gets no requests any more.
    pub(crate) fn is_out(&self) -> bool {
        self.out.load(Ordering::Acquire)
    }

    /// Counts an answer of the canary.
    pub(crate) fn add(&self, failed: bool, took: Duration) {
        if self.is_out() {
            return;
        }
        let broken = self.state.lock().window.add(self.begun.elapsed(), failed, took);
        if let Some(reason) = broken {
            self.fail(reason);
        }
    }

    /// The canary cannot go on.
    pub(crate) fn fail(&self, reason: String) {
        let mut state = self.state.lock();
        if !self.out.swap(true, Ordering::AcqRel) {
            state.untold = Some(reason);
        }
    }

    /// What is to be done about it, once.
    pub(crate) fn untold(&self) -> Option<Broken> {
        if !self.is_out() {
            return None;
        }
        let reason = self.state.lock().untold.take()?;
        Some(Broken { since: self.since, version: self.version, author: self.author.clone(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: serde_json::Value) -> RollbackRules {
        serde_json::from_value(json).unwrap()
    }

    /// Answers in order, one a second; the place of the one that broke the rules, and what was said.
    fn first_broken(rules: RollbackRules, answers: impl IntoIterator<Item = (bool, u64)>) -> Option<(usize, String)> {
        let mut window = Window::new(rules);
        answers.into_iter().enumerate().find_map(|(second, (failed, ms))| {
            let broken = window.add(Duration::from_secs(second as u64), failed, Duration::from_millis(ms));
            broken.map(|reason| (second, reason))
        })
    }

    #[test]
    fn a_share_of_failures_breaks_the_rule_and_not_before_enough_were_seen() {
        let rule = || rules(serde_json::json!({"error_rate": 0.5, "requests_min": 4, "window_seconds": 3600}));
        assert_eq!(first_broken(rule(), [(true, 0); 3]), None, "three are not four");
        let (at, reason) = first_broken(rule(), [(true, 0); 4]).unwrap();
        assert_eq!(at, 3);
        assert_eq!(reason, "4 of 4 answers in 3600 s failed, more than the share of 0.5 that `error_rate` allows");
        assert_eq!(first_broken(rule(), [(false, 0), (true, 0)].repeat(50)), None, "half is not more than half");
        assert_eq!(first_broken(rule(), [(false, 0), (true, 0), (true, 0), (true, 0)]).unwrap().0, 3);
        let none = rules(serde_json::json!({"error_rate": 0.0, "requests_min": 1}));
        assert_eq!(first_broken(none, [(false, 0), (true, 0)]).unwrap().0, 1, "none at all are allowed");
    }

    #[test]
    fn what_is_past_is_forgotten() {
        let rule = rules(serde_json::json!({"error_rate": 0.5, "requests_min": 10, "window_seconds": 12}));
        let answers = (0..9).map(|_| (true, 0)).chain((0..200).map(|_| (false, 0)));
        assert_eq!(first_broken(rule.clone(), answers).map(|(at, _)| at), Some(9), "nine of ten failed");
        // The same failures, too rare: the window never holds ten answers.
        let mut window = Window::new(rule);
        for minute in 0..100 {
            assert_eq!(window.add(Duration::from_secs(minute * 60), true, Duration::ZERO), None);
        }
    }

    #[test]
    fn the_99th_percentile_is_by_nearest_rank() {
        let rule = || rules(serde_json::json!({"p99_ms": 50, "requests_min": 10, "window_seconds": 3600}));
        let answers = |slow: usize, of: usize| (0..of).map(move |at| (false, if at < of - slow { 50 } else { 51 }));
        assert_eq!(first_broken(rule(), answers(0, 300)), None);
        assert_eq!(first_broken(rule(), answers(1, 10)).unwrap().0, 9, "of ten the 99th percentile is the longest");
        assert_eq!(first_broken(rule(), answers(1, 100)), None);
        assert_eq!(first_broken(rule(), answers(2, 100)).unwrap().0, 98, "of ninety-nine it is the longest still");
        assert!(first_broken(rule(), answers(10, 10)).unwrap().1.starts_with("the 99th percentile of 10 answers"));
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        for json in [
            serde_json::json!({}),
            serde_json::json!({"error_rate": 1.1}),
            serde_json::json!({"error_rate": -0.1}),
            serde_json::json!({"p99_ms": 0}),
            serde_json::json!({"p99_ms": 10, "requests_min": 0}),
            serde_json::json!({"p99_ms": 10, "window_seconds": 3601}),
        ] {
            assert!(rules(json.clone()).check().is_err(), "{json}");
        }
        assert!(rules(serde_json::json!({"error_rate": 0.05, "p99_ms": 200})).check().is_ok());
    }

    #[test]
    fn a_request_goes_one_way_and_many_go_by_weight() {
        for weight in [0, 1, 10, 50, 100] {
            let count = (0..20_000).filter(|n| chosen(&format!("request-{n}"), weight)).count();
            let wanted = 200 * weight as usize;
            assert!(count.abs_diff(wanted) <= 300 && (weight % 100 != 0 || count == wanted), "{weight} %: {count} of 20000");
        }
        assert_eq!(chosen("a", 50), chosen("a", 50));
        assert!((0..1000).all(|n| !chosen(&n.to_string(), 10) || chosen(&n.to_string(), 60)), "a greater weight keeps who is there");
    }

    #[test]
    fn only_the_models_own_failures_count() {
        let fail = |code| Err::<(), _>(Error::Input(wire::Fail::new(code, "x")));
        assert_eq!(blame(&Ok(())), Some(false));
        assert_eq!(blame(&fail(FailCode::ModelFailed)), Some(true));
        assert_eq!(blame(&fail(FailCode::Invalid)), None);
        assert_eq!(blame(&Err::<(), _>(Error::CellFailed(CellFailure::Stopped))), None);
        assert_eq!(blame(&Err::<(), _>(Error::CellFailed(CellFailure::Died("x".into())))), Some(true));
        assert_eq!(blame(&Err::<(), _>(Error::Overloaded("x"))), None);
        assert_eq!(blame(&Err::<(), _>(Error::DeadlineExceeded { seconds: 1 })), Some(true));
    }

    #[test]
    fn a_broken_canary_is_told_once_and_stays_out() {
        let watch = Watch::new(rules(serde_json::json!({"error_rate": 0.1, "requests_min": 1})), Timestamp::now(), 3, "ada");
        watch.add(false, Duration::ZERO);
        assert_eq!((watch.is_out(), watch.untold()), (false, None));
        watch.add(true, Duration::ZERO);
        watch.fail("another".to_owned());
        let broken = watch.untold().unwrap();
        assert_eq!((broken.version, broken.author.as_str()), (3, "ada"));
        assert!(broken.reason.starts_with("1 of 2 answers"), "{}", broken.reason);
        assert_eq!((watch.is_out(), watch.untold()), (true, None));
    }
}
