//! How far the replay is: a bar on a terminal, a few lines elsewhere; on stderr.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Lines in all where there is no terminal.
const LINES: u64 = 4;

/// Counts steps.
pub(crate) struct Progress {
    bar: ProgressBar,
    length: u64,
}

impl Progress {
    pub(crate) fn new(length: u64) -> Self {
        let style = ProgressStyle::with_template(
            "    {bar:40} step {human_pos} of {human_len}, {msg} ({elapsed})",
        )
        .expect("the template is constant and valid");
        let bar = ProgressBar::new(length).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, length }
    }

    /// Says that `done` steps are done; `detail` says more.
    pub(crate) fn set(&self, done: u64, detail: impl Fn() -> String) {
        self.bar.set_position(done);
        if !self.bar.is_hidden() {
            self.bar.set_message(detail());
        } else if is_line(done, self.length) {
            eprintln!("    step {done} of {}, {}", self.length, detail());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Whether a quarter of the way, and no step less, is done.
fn is_line(done: u64, length: u64) -> bool {
    let quarter = |done: u64| done * LINES / length.max(1);
    done > 0 && quarter(done) > quarter(done - 1)
}

#[cfg(test)]
mod tests {
    use super::is_line;

    #[test]
    fn a_pipe_gets_a_line_a_quarter() {
        for (length, lines) in [
            (1, vec![1]),
            (3, vec![1, 2, 3]),
            (8, vec![2, 4, 6, 8]),
            (401, vec![101, 201, 301, 401]),
        ] {
            let found: Vec<u64> = (0..=length).filter(|&done| is_line(done, length)).collect();
            assert_eq!(found, lines, "{length}");
        }
    }
}
