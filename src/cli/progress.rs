//! A progress bar on stderr, if that is a terminal; otherwise nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Most redraws per second.
const REDRAWS: u8 = 10;

const CHUNKS: &str = "{msg:.bold} [{bar:40}] {percent}% {pos}/{len} chunks {elapsed}";
const BYTES: &str = "{msg:.bold} [{bar:40}] {percent}% {binary_bytes}/{binary_total_bytes} \
                     {binary_bytes_per_sec} {eta} left";

/// Progress in chunks or bytes.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// In chunks.
    pub fn new(what: &'static str) -> Self {
        Self::with_template(what, CHUNKS)
    }

    pub fn in_bytes(what: &'static str) -> Self {
        Self::with_template(what, BYTES)
    }

    fn with_template(what: &'static str, template: &str) -> Self {
        let bar =
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(REDRAWS));
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar }
    }

    pub fn show(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Replaces the word that was given at the start.
    pub fn set_message(&mut self, message: String) {
        self.bar.set_message(message);
    }

    pub fn end(self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // An error message must not run into the bar.
        self.bar.finish_and_clear();
    }
}
