//! The program from its arguments to its report.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use console::Term;
use deft_search::{
    Answer, Cancel, Event, Limits, Outcome, Speculative, Stop, TextCodec, TreeSearch,
};

use crate::args::{Args, SearchArg};
use crate::measure::{AttentionTime, Measured, Timed};
use crate::method::{describe, with_method};
use crate::model::{Loaded, load};
use crate::question::Question;
use crate::report::{LastWord, Report, Run, write_json};
use crate::screen::Screen;
use crate::show::Show;

/// How a run that did not fail ended.
pub(crate) enum Ended {
    /// By itself.
    Itself,
    /// By Ctrl-C, with what it had.
    Cancelled,
}

/// Loads the model at `path` and runs the searches that `args` ask for, one after the other.
///
/// # Errors
/// What went wrong, for people.
pub(crate) fn run(path: &Path, args: &Args, last: &LastWord) -> Result<Ended> {
    let questions = Question::all(args);
    let (cancel, searches) = (Cancel::new(), Arc::new(AtomicBool::new(false)));
    on_interrupt(cancel.clone(), searches.clone(), last.clone())?;
    let Some(mut loaded) = load(path, args)? else {
        // Another process has searched, and this one has run its share.
        return Ok(Ended::Itself);
    };
    for (number, question) in questions.iter().enumerate() {
        let (report, stop) = ask(&mut loaded, question, args, (&cancel, &searches, last))?;
        let cancelled = matches!(stop, Stop::Cancelled);
        if cancelled || number + 1 == questions.len() {
            last.say(&report);
        } else if args.json {
            write_json(&report, &mut io::stdout().lock())?;
        }
        if cancelled {
            return Ok(Ended::Cancelled);
        }
    }
    Ok(Ended::Itself)
}

/// Runs a search and prints its table; the report, and why it ended.
fn ask(
    loaded: &mut Loaded,
    question: &Question,
    args: &Args,
    (cancel, searches, last): (&Cancel, &AtomicBool, &LastWord),
) -> Result<(Report, Stop)> {
    let prompt = question.tokens(&loaded.tokenizer, loaded.template.as_deref())?;
    let (mut out, term): (Box<dyn Write>, Term) = match args.json {
        true => (Box::new(io::stderr()), Term::stderr()),
        false => (Box::new(io::stdout()), Term::stdout()),
    };
    head(loaded, question, args, &mut *out)?;
    searches.store(true, Ordering::SeqCst);
    let found = Search {
        model: &mut *loaded.model,
        codec: &loaded.tokenizer,
        prompt: &prompt,
        question,
        args,
        cancel: cancel.clone(),
    }
    .run(&mut *out, Screen::new(term))?;
    let run = Run {
        model: &loaded.name,
        device: &loaded.device,
        search: &describe(question, args),
        prompt: &question.text(),
        seed: args.seed,
        prompt_time: found.prompt_time,
        search_time: found.search_time,
        attention: found.attention,
        greedy: found.greedy.as_ref(),
    };
    let is_right = |answer: &Answer| question.is_right(&answer.text);
    let report = Report::new(&run, &found.outcome, &is_right);
    let table = report.table(&mut out);
    if table.is_err() {
        // Whoever wants the object gets it even if nobody reads the table.
        last.say(&report);
    }
    table?;
    Ok((report, found.outcome.stop))
}

/// Cancels on Ctrl-C; ends the program on a second one, or where nothing searches yet.
fn on_interrupt(cancel: Cancel, searches: Arc<AtomicBool>, last: LastWord) -> Result<()> {
    let handler = move || {
        if cancel.is_cancelled() || !searches.load(Ordering::SeqCst) {
            last.say(&serde_json::json!({ "stop": "cancelled" }));
            std::process::exit(130);
        }
        cancel.cancel();
    };
    Ok(ctrlc::set_handler(handler)?)
}

/// What runs where, and the prompt.
fn head(loaded: &Loaded, question: &Question, args: &Args, out: &mut dyn Write) -> io::Result<()> {
    let config = &loaded.config;
    writeln!(
        out,
        "model        {}: {} layers, {} query heads over {}, {:.0} million parameters",
        loaded.name,
        config.layers,
        config.q_heads,
        config.kv_heads,
        config.parameters() as f64 / 1e6
    )?;
    writeln!(out, "device       {}", loaded.device)?;
    if let Some(why) = &loaded.fallback {
        writeln!(out, "             no GPU: {why}")?;
    }
    for warning in loaded.tokenizer.warnings() {
        writeln!(out, "tokenizer    {warning}")?;
    }
    let search = describe(question, args);
    writeln!(out, "search       {search}; seed {}\n", args.seed)?;
    for line in question.text().lines() {
        writeln!(out, "  | {line}")?;
    }
    writeln!(out)
}

/// A search that is to be run and shown.
pub(crate) struct Search<'a> {
    pub(crate) model: &'a mut dyn Timed,
    pub(crate) codec: &'a dyn TextCodec,
    pub(crate) prompt: &'a [u32],
    pub(crate) question: &'a Question,
    pub(crate) args: &'a Args,
    pub(crate) cancel: Cancel,
}

/// What a search found, and its times.
pub(crate) struct Found {
    pub(crate) outcome: Outcome,
    pub(crate) prompt_time: Duration,
    pub(crate) search_time: Duration,
    pub(crate) attention: AttentionTime,
    /// What greedy decoding answers to a puzzle.
    pub(crate) greedy: Option<Answer>,
}

impl Search<'_> {
    /// Runs it, and shows it on `screen`, or in lines to `out`. Ends at once where `out` cannot be written to.
    ///
    /// # Errors
    /// The search's, or `out`'s.
    pub(crate) fn run(mut self, out: &mut dyn Write, screen: Option<Screen>) -> Result<Found> {
        let question = self.question;
        let is_right = |answer: &Answer| question.is_right(&answer.text);
        let mut show = Show::new(self.codec, &is_right, Box::new(out), screen, self.cancel.clone());
        let began = Instant::now();
        let mut model = Measured::new(&mut *self.model);
        let mut observer = |event: &Event<'_>| show.event(event);
        let limits = limits(self.args);
        let outcome = with_method(question, self.args, |method| {
            TreeSearch::new(&mut model, self.codec)
                .limits(limits)
                .cancel(self.cancel.clone())
                .observer(&mut observer)
                .run(self.prompt, method)
        })?;
        let (attention, overhead) = (model.attention, model.overhead);
        let searched = show.started.map_or(Duration::ZERO, |started| started.elapsed());
        let prompt_time = began.elapsed().saturating_sub(searched);
        show.finish(&outcome.answers)?;
        Ok(Found {
            greedy: self.greedy()?,
            attention,
            outcome,
            prompt_time,
            search_time: searched.saturating_sub(overhead),
        })
    }

    /// Greedy decoding of a puzzle, to compare with; not where it is what was asked for.
    fn greedy(&mut self) -> Result<Option<Answer>> {
        let is_asked = self.args.prompt.is_none() && self.args.search != SearchArg::Speculative;
        if !is_asked || self.cancel.is_cancelled() {
            return Ok(None);
        }
        let mut method = Speculative::greedy(self.question.ending(self.args));
        let search = TreeSearch::new(&mut *self.model, self.codec).cancel(self.cancel.clone());
        let outcome = search.run(self.prompt, &mut method)?;
        Ok(outcome.answers.into_iter().next())
    }
}

fn limits(args: &Args) -> Limits {
    Limits { tokens: args.budget, ..Limits::default() }
}
