//! Greedy decoding that writes down what each pass drafted and kept.

use std::time::Instant;

use anyhow::{Context, Result};
use deft_engine::{DraftToken, TextCodec, TreeModel};
use deft_search::{
    Answer, Drafter, Ending, Event, PromptLookup, Sampler, SearchError, SearchMethod, SearchTree,
    Speculative, TreeSearch,
};

/// An answer, and how it came about.
pub(super) struct Decoded {
    pub(super) answer: Vec<u32>,
    /// Seconds after the prompt's run.
    pub(super) seconds: f64,
    /// Tokens that each pass verified, the one that was certain included.
    pub(super) drafted: Vec<usize>,
    /// Tokens of the answer that each pass gave.
    pub(super) kept: Vec<usize>,
}

/// Decodes at most `tokens` tokens after `prompt`, with drafts where there is a way to make them.
pub(super) fn decode(
    (model, codec): (&mut dyn TreeModel, &dyn TextCodec),
    prompt: &[u32],
    (lookup, tokens): (Option<PromptLookup>, usize),
) -> Result<Decoded> {
    let mut recorder = Recorder { lookup, seen: Vec::new() };
    let mut timed = Timed {
        method: Speculative {
            drafter: Some(&mut recorder),
            sampler: Sampler::GREEDY,
            ending: Ending::at(tokens),
            seed: 0,
        },
        seconds: 0.0,
    };
    let mut drafted = Vec::new();
    let mut observer = |event: &Event<'_>| {
        if let Event::Stepped { leaves, .. } = event {
            drafted.push(*leaves);
        }
    };
    let search = TreeSearch::new(model, codec).observer(&mut observer);
    let outcome = search.run(prompt, &mut timed)?;
    let seconds = timed.seconds;
    let answer = outcome.answers.into_iter().next().context("there is no answer")?.tokens;
    // How long the path was before each pass, and in the end.
    let mut lengths = recorder.seen;
    lengths.push(prompt.len() + answer.len());
    let kept = lengths.windows(2).map(|pair| pair[1] - pair[0]).collect();
    Ok(Decoded { answer, seconds, drafted, kept })
}

/// Drafts by looking up, or none, and remembers when.
struct Recorder {
    lookup: Option<PromptLookup>,
    /// Tokens of the path at each call.
    seen: Vec<usize>,
}

impl Drafter for Recorder {
    fn draft(&mut self, context: &[u32], limit: usize) -> Vec<DraftToken> {
        self.seen.push(context.len());
        let draft = self.lookup.as_mut().map(|lookup| lookup.draft(context, limit));
        draft.unwrap_or_default()
    }
}

/// Times a method without the prompt's run.
struct Timed<M> {
    method: M,
    seconds: f64,
}

impl<M: SearchMethod> SearchMethod for Timed<M> {
    fn search(&mut self, tree: &mut SearchTree<'_>) -> Result<Vec<Answer>, SearchError> {
        let begin = Instant::now();
        let answers = self.method.search(tree);
        self.seconds = begin.elapsed().as_secs_f64();
        answers
    }
}
