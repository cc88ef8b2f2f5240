//! What the user sees: steps with their time, a spinner for the long ones, a summary.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

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
        Self {
            started: Instant::now(),
            rows: Vec::new(),
        }
    }

    /// Announces a step, runs it, says how long it took. A failure does not stop the steps after it.
    pub(crate) fn run(
        &mut self,
        name: &'static str,
        what: &str,
        step: impl FnOnce() -> Result<Outcome>,
    ) {
        println!("\n==> {name}: {what}");
        let started = Instant::now();
        let outcome = step();
        let time = started.elapsed();
        match &outcome {
            Ok(Outcome::Done) => println!("    done in {}", seconds(time)),
            Ok(Outcome::Skipped(reason)) => println!("    SKIPPED: {reason}"),
            Err(error) => println!("    FAILED after {}: {error:#}", seconds(time)),
        }
        self.rows.push(Row {
            name,
            time,
            outcome,
        });
    }

    /// Prints the summary; an error if a step failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\n==> summary, {} in all", seconds(self.started.elapsed()));
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
            println!("    {:<9} {:>8}  {text}", row.name, seconds(row.time));
        }
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// A spinner that shows itself once the work has taken two seconds, on terminals only.
pub(crate) struct Spinner {
    bar: ProgressBar,
    message: String,
    started: Instant,
}

impl Spinner {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        let style = ProgressStyle::with_template("    {spinner} {msg} ({elapsed})")
            .expect("the template is constant and valid");
        Self {
            bar: ProgressBar::new_spinner().with_style(style),
            message: message.into(),
            started: Instant::now(),
        }
    }

    /// Keeps the spinner alive; `detail` is shown beside the message.
    pub(crate) fn tick(&self, detail: &str) {
        if self.started.elapsed() >= Duration::from_secs(2) {
            self.bar
                .set_message(format!("{} · {}", self.message, detail.trim()));
            self.bar.tick();
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A line of explanation within a step.
pub(crate) fn say(text: impl AsRef<str>) {
    println!("    {}", text.as_ref());
}

/// `time` in seconds.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
