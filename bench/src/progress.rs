//! How far a suite is: a bar on terminals, and the rows as they come everywhere.

use indicatif::{ProgressBar, ProgressStyle};

use crate::say;

/// Work of a known number of steps. The bar is on stderr, where that is a terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        let style = "{elapsed_precise} [{bar:30}] {pos}/{len}, {eta} left: {msg}";
        let style =
            ProgressStyle::with_template(style).expect("the template is constant and valid");
        Self(ProgressBar::new(steps as u64).with_style(style))
    }

    /// What is going on.
    pub(crate) fn doing(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// One step is done.
    pub(crate) fn step(&self) {
        self.0.inc(1);
    }

    /// Prints a line that stays.
    pub(crate) fn say(&self, line: &str) {
        self.0.suspend(|| say(line));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
