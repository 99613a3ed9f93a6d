//! Bars on standard error, when somebody looks at it.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{Output, visible};

/// Bytes on their way; `total` when it is known.
pub(crate) fn transfer(output: &Output, what: &str, total: Option<u64>) -> ProgressBar {
    let template = "{msg} [{bar:32}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    bar(output, what, total, template, "{msg} {spinner} {bytes} {binary_bytes_per_sec}")
}

/// Steps of a job; `total` when it is known.
pub(crate) fn steps(output: &Output, what: &str) -> ProgressBar {
    bar(output, what, Some(0), "{msg} [{bar:32}] {pos}/{len} {elapsed}", "")
}

fn bar(output: &Output, what: &str, total: Option<u64>, sized: &str, unsized_: &str) -> ProgressBar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), sized),
        None => (ProgressBar::new_spinner(), unsized_),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(visible(what));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
