//! A progress bar for long work, on standard error and only where that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;

/// Counts `total` pieces of work under a short name; removes itself when dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar at zero, invisible where standard error is no terminal.
    #[must_use]
    pub(crate) fn new(name: &'static str, total: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        bar.set_message(name);
        Self(bar)
    }

    /// A moving sign of life for work whose pieces nobody counts; invisible like a bar.
    #[must_use]
    pub(crate) fn spinner(name: &'static str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_message(name);
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Self(bar)
    }

    /// Moves the bar to `done` pieces.
    pub(crate) fn set(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
