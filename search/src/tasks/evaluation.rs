//! How often a method is right.

use std::fmt;
use std::ops::Range;

use super::{Checker, Problem, Task, is_right};
use crate::{
    Answer, BeamSearch, BestOfN, Cancel, Choice, Finish, Limits, Outcome, Sampler, SearchError,
    SearchMethod, Speculative, TextCodec, TreeOfThoughts, TreeSearch,
};
use deft_engine::TreeModel;

/// A search method and its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The most likely token, one answer.
    Greedy,
    /// Samples, `width` at a time, while there are tokens; the answer most often given.
    Majority {
        /// Samples at a time.
        width: usize,
    },
    /// Samples, `width` at a time, until one passes the checker or tokens run out.
    Checked {
        /// Samples at a time.
        width: usize,
    },
    /// Beam search; the likeliest answer by mean log-probability.
    Beam {
        /// Beams.
        width: usize,
    },
    /// Trees of thoughts with the checker as scorer, one after the other until one is right or tokens run
    /// out.
    Thoughts {
        /// Thoughts after a state.
        thoughts: usize,
        /// States kept.
        keep: usize,
    },
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Greedy => write!(f, "greedy"),
            Self::Majority { width } => write!(f, "majority, {width} at a time"),
            Self::Checked { width } => write!(f, "best of n by checker, {width} at a time"),
            Self::Beam { width } => write!(f, "beam search, width {width}"),
            Self::Thoughts { thoughts, keep } => {
                write!(f, "tree of thoughts, {thoughts} a state, keep {keep}")
            }
        }
    }
}

/// What an evaluation runs.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Seeds of the problems.
    pub problems: Range<u64>,
    /// Tokens to run for each problem after its prompt, the same for all methods. Greedy decoding and beam
    /// search end when they have their answers, the checker ends others when one is right.
    pub tokens: u64,
    /// How tokens are drawn where they are.
    pub sampler: Sampler,
    /// The seed of the draws.
    pub seed: u64,
    /// Ends the evaluation before its next step.
    pub cancel: Cancel,
}

/// What an evaluation found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evaluation {
    /// Problems tried.
    pub problems: u64,
    /// Problems of which the first answer is complete and right.
    pub right: u64,
    /// Problems of which any answer is complete and right.
    pub covered: u64,
    /// Tokens run after prompts.
    pub tokens: u64,
    /// Passes through the model after prompts.
    pub steps: u64,
    /// Bytes that attention read.
    pub read: u64,
    /// Bytes that it would have read one query at a time.
    pub per_query: u64,
}

impl Evaluation {
    /// Share of problems of which the first answer is right; 0 if none was tried.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.problems.max(1) as f64
    }

    fn add(&mut self, problem: &dyn Problem, codec: &dyn TextCodec, outcome: &Outcome) {
        let ending = problem.ending();
        // What the model would have gone on with is no answer, whatever it says so far.
        let complete = |answer: &Answer| {
            let ended = answer.solved || answer.finish == Finish::EndToken;
            ended || ending.finish(codec, &answer.tokens).is_some()
        };
        let right =
            |answer: &Answer| complete(answer) && is_right(problem, ending.trim(&answer.text));
        let mut answers = outcome.answers.iter().map(right);
        let first = answers.next().unwrap_or(false);
        self.problems += 1;
        self.right += u64::from(first);
        self.covered += u64::from(first || answers.any(|right| right));
        self.tokens += outcome.stats.tokens;
        self.steps += outcome.stats.steps;
        self.read += outcome.stats.traffic.read;
        self.per_query += outcome.stats.traffic.per_query;
    }
}

/// Runs `method` on problems of `task`; `progress` is called after each with what there is so far.
///
/// Checking an answer costs no tokens, so methods that use the checker are told more than the others: their
/// accuracy is that of a model with a verifier.
///
/// # Errors
/// [`SearchError`] of the first search that fails.
pub fn evaluate(
    model: &mut dyn TreeModel,
    codec: &dyn TextCodec,
    task: &dyn Task,
    (method, setting): (Method, &Setting),
    progress: &mut dyn FnMut(&Evaluation),
) -> Result<Evaluation, SearchError> {
    let mut evaluation = Evaluation::default();
    for seed in setting.problems.clone() {
        let problem = task.problem(seed);
        let outcome = search(&mut *model, codec, &*problem, (method, setting))?;
        if setting.cancel.is_cancelled() {
            break;
        }
        evaluation.add(&*problem, codec, &outcome);
        progress(&evaluation);
    }
    Ok(evaluation)
}

fn search(
    model: &mut dyn TreeModel,
    codec: &dyn TextCodec,
    problem: &dyn Problem,
    (method, setting): (Method, &Setting),
) -> Result<Outcome, SearchError> {
    let limits = Limits { tokens: setting.tokens, ..Limits::default() };
    let prompt = codec.encode(&problem.prompt()).map_err(SearchError::Encode)?;
    let search = TreeSearch::new(model, codec).limits(limits).cancel(setting.cancel.clone());
    let checker = Checker(problem);
    let extract = |text: &str| problem.extract(text);
    let samples = |width, choice| BestOfN {
        // Every sample runs a token at least, or costs nothing.
        samples: usize::try_from(setting.tokens).unwrap_or(usize::MAX).max(1),
        width,
        sampler: setting.sampler,
        ending: problem.ending(),
        seed: setting.seed,
        choice,
    };
    let run = |method: &mut dyn SearchMethod| search.run(&prompt, method);
    match method {
        Method::Greedy => run(&mut Speculative::greedy(problem.ending())),
        Method::Majority { width } => run(&mut samples(width, Choice::Majority(&extract))),
        Method::Checked { width } => run(&mut samples(width, Choice::Scorer(&checker))),
        Method::Beam { width } => {
            run(&mut BeamSearch { width, length_penalty: 1.0, ending: problem.ending() })
        }
        Method::Thoughts { thoughts, keep } => run(&mut TreeOfThoughts {
            thoughts,
            keep,
            depth: problem.thoughts(),
            rounds: usize::try_from(setting.tokens).unwrap_or(usize::MAX).max(1),
            sampler: setting.sampler,
            thought: problem.thought(),
            seed: setting.seed,
            scorer: &checker,
        }),
    }
}
