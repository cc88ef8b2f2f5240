//! What a search found and what it took: a table for people, an object for programs.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deft_search::{Answer, Finish, Outcome, Stats, Stop};
use serde::Serialize;

use crate::measure::AttentionTime;

/// All of it. `docs/search.md` describes the fields.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) model: String,
    pub(crate) device: String,
    pub(crate) search: String,
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    /// What greedy decoding answers, where that was asked for a comparison.
    greedy: Option<Entry>,
    stop: &'static str,
    answers: Vec<Entry>,
    prompt_tokens: u64,
    prompt_tokens_saved: u64,
    steps: u64,
    tokens: u64,
    moved_tokens: u64,
    peak_nodes: usize,
    peak_pages: u32,
    prompt_seconds: f64,
    search_seconds: f64,
    tokens_per_second: f64,
    attention: Attention,
}

#[derive(Clone, Debug, Serialize)]
struct Entry {
    text: String,
    tokens: Vec<u32>,
    log_prob: f64,
    /// Null for what cannot be right.
    score: Option<f64>,
    right: Option<bool>,
    finish: &'static str,
}

#[derive(Clone, Debug, Serialize)]
struct Attention {
    read_bytes: u64,
    per_query_bytes: u64,
    /// Passes that were measured.
    timed_passes: u64,
    shared_seconds: f64,
    per_query_seconds: f64,
}

/// The one object that `--json` prints, whatever happens: a report, `{"error": ...}`, or `{"stop": "cancelled"}` where
/// Ctrl-C came before there was anything to report.
#[derive(Clone)]
pub(crate) struct LastWord {
    wanted: bool,
    said: Arc<AtomicBool>,
}

impl LastWord {
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, said: Arc::default() }
    }

    /// Prints `what` to stdout, if an object is wanted and none was printed.
    pub(crate) fn say(&self, what: &impl Serialize) {
        if self.wanted && !self.said.swap(true, Ordering::SeqCst) {
            let mut out = io::stdout().lock();
            // There is nobody left to tell where stdout is closed.
            let _ = write_json(what, &mut out);
        }
    }
}

pub(crate) fn write_json(what: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, what)?;
    writeln!(out)
}

/// What a search was, and how long it took.
pub(crate) struct Run<'a> {
    pub(crate) model: &'a str,
    pub(crate) device: &'a str,
    pub(crate) search: &'a str,
    pub(crate) prompt: &'a str,
    pub(crate) seed: u64,
    pub(crate) prompt_time: Duration,
    pub(crate) search_time: Duration,
    pub(crate) attention: AttentionTime,
    pub(crate) greedy: Option<&'a Answer>,
}

impl Report {
    pub(crate) fn new(
        run: &Run<'_>,
        outcome: &Outcome,
        is_right: &dyn Fn(&Answer) -> Option<bool>,
    ) -> Self {
        let Outcome { answers, stop, stats } = outcome;
        let Stats { traffic, .. } = *stats;
        let seconds = run.search_time.as_secs_f64();
        let entries = answers.iter().map(|answer| entry(answer, is_right(answer)));
        Self {
            model: run.model.to_owned(),
            device: run.device.to_owned(),
            search: run.search.to_owned(),
            prompt: run.prompt.to_owned(),
            seed: run.seed,
            greedy: run.greedy.map(|answer| entry(answer, is_right(answer))),
            stop: match stop {
                Stop::Budget => "budget",
                Stop::Cancelled => "cancelled",
                _ => "finished",
            },
            answers: entries.collect(),
            prompt_tokens: stats.prompt_tokens,
            prompt_tokens_saved: stats.prompt_tokens_saved,
            steps: stats.steps,
            tokens: stats.tokens,
            moved_tokens: stats.moved,
            peak_nodes: stats.peak_nodes,
            peak_pages: stats.peak_pages,
            prompt_seconds: run.prompt_time.as_secs_f64(),
            search_seconds: seconds,
            tokens_per_second: stats.tokens as f64 / seconds.max(1e-9),
            attention: Attention {
                read_bytes: traffic.read,
                per_query_bytes: traffic.per_query,
                timed_passes: run.attention.passes,
                shared_seconds: run.attention.shared.as_secs_f64(),
                per_query_seconds: run.attention.per_query.as_secs_f64(),
            },
        }
    }

    /// The table.
    ///
    /// # Errors
    /// If `out` cannot be written to.
    pub(crate) fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out)?;
        match self.answers.first() {
            Some(best) => best.row("best answer", out)?,
            None => writeln!(out, "best answer  none: the token budget ended first")?,
        }
        if let Some(greedy) = &self.greedy {
            greedy.row("greedy", out)?;
        }
        let held = match self.prompt_tokens_saved {
            0 => String::new(),
            saved => format!(", {saved} of them held from before,"),
        };
        writeln!(
            out,
            "tokens       {} in {} steps, {:.1} tokens/s; the prompt's {}{held} took {:.2} s",
            self.tokens,
            self.steps,
            self.tokens_per_second,
            self.prompt_tokens,
            self.prompt_seconds
        )?;
        let Attention { read_bytes, per_query_bytes, timed_passes, .. } = self.attention;
        writeln!(
            out,
            "KV read      {} with shared prefixes, {} a query at a time: {:.1} times as much",
            bytes(read_bytes),
            bytes(per_query_bytes),
            per_query_bytes as f64 / read_bytes.max(1) as f64
        )?;
        if timed_passes > 0 {
            let milliseconds = |seconds: f64| 1e3 * seconds / timed_passes as f64;
            writeln!(
                out,
                "attention    {:.2} ms a step with shared prefixes, {:.2} ms a query at a time\n             \
                 (all layers, measured alone on every second step)",
                milliseconds(self.attention.shared_seconds),
                milliseconds(self.attention.per_query_seconds)
            )?;
        }
        Ok(())
    }
}

impl Entry {
    fn row(&self, name: &str, out: &mut dyn Write) -> io::Result<()> {
        let verdict = match self.right {
            Some(true) => "  (right)",
            Some(false) => "  (wrong)",
            None => "",
        };
        // The lines after the first below it.
        let text = self.text.trim().replace('\n', "\n             ");
        writeln!(out, "{name:<12} {text}{verdict}")
    }
}

fn entry(answer: &Answer, right: Option<bool>) -> Entry {
    Entry {
        text: answer.text.clone(),
        tokens: answer.tokens.clone(),
        log_prob: answer.log_prob,
        score: Some(answer.score).filter(|score| score.is_finite()),
        right,
        finish: match answer.finish {
            Finish::EndToken => "end-token",
            Finish::StopText => "stop-text",
            Finish::Length => "length",
            _ => "interrupted",
        },
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000_000 => format!("{:.2} MB", count as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}
