//! What the user sees: steps with their time, and a summary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Whether stdout is left to a result.
static ON_STDERR: AtomicBool = AtomicBool::new(false);

/// From now on everything of this module goes to stderr: stdout is for a result that a program reads.
pub(crate) fn leave_stdout() {
    ON_STDERR.store(true, Ordering::Relaxed);
}

fn line(text: &str) {
    if ON_STDERR.load(Ordering::Relaxed) {
        eprintln!("{text}");
    } else {
        println!("{text}");
    }
}

/// How a step ended, errors apart.
pub(crate) enum Outcome {
    /// It did its work.
    Done,
    /// It did not run, for this reason.
    Skipped(String),
}

/// Runs named steps one after the other and remembers how each went.
pub(crate) struct Steps {
    started: Instant,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    time: Duration,
    outcome: Result<Outcome>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), rows: Vec::new() }
    }

    /// Announces a step, runs it, says how long it took. A failure does not stop the steps after it.
    pub(crate) fn run(
        &mut self,
        name: &'static str,
        what: &str,
        step: impl FnOnce() -> Result<Outcome>,
    ) {
        line(&format!("\n==> {name}: {what}"));
        let started = Instant::now();
        let outcome = step();
        let time = started.elapsed();
        match &outcome {
            Ok(Outcome::Done) => say(format!("done in {}", seconds(time))),
            Ok(Outcome::Skipped(reason)) => say(format!("SKIPPED: {reason}")),
            Err(error) => say(format!("FAILED after {}: {error:#}", seconds(time))),
        }
        self.rows.push(Row { name, time, outcome });
    }

    /// Whether a step failed.
    pub(crate) fn failed(&self) -> bool {
        self.rows.iter().any(|row| row.outcome.is_err())
    }

    /// Prints the summary; an error if a step failed.
    pub(crate) fn finish(self) -> Result<()> {
        let all = seconds(self.started.elapsed());
        line(&format!("\n==> summary, {all} in all"));
        let mut failed = Vec::new();
        for row in &self.rows {
            let text = match &row.outcome {
                Ok(Outcome::Done) => "ok".to_owned(),
                Ok(Outcome::Skipped(reason)) => format!("skipped: {reason}"),
                Err(error) => {
                    failed.push(row.name);
                    format!("FAILED: {}", first_line(&format!("{error:#}")))
                }
            };
            say(format!("{:<9} {:>8}  {text}", row.name, seconds(row.time)));
        }
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// A line of explanation within a step.
pub(crate) fn say(text: impl AsRef<str>) {
    line(&format!("    {}", text.as_ref()));
}

/// `time` in seconds.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
