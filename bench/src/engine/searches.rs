//! Searches, timed step by step: what the host does between passes counts.

use std::error::Error;
use std::time::Instant;

use anyhow::{Context, Result};
use deft_engine::cuda::CudaModel;
use deft_engine::{TextCodec, TreeModel};
use deft_search::{
    BeamSearch, BestOfN, Choice, Ending, Event, Sampler, SearchMethod, Speculative, TreeSearch,
};

/// Steps before those that are timed: as they are, captured, replayed.
const WARMUP: usize = 8;
/// Steps that are timed.
const TIMED: usize = 64;
/// The sampler of `deft-search`, and one that draws from all tokens.
const OF_40: Sampler = Sampler { temperature: 0.8, top_k: 40, top_p: 0.95 };
const OF_ALL: Sampler = Sampler::at(0.7);

/// A search below a prompt, by its name in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    Greedy,
    Best(usize),
    Drawn(usize),
    Beam(usize),
}

pub(super) const SEARCHES: [Search; 5] =
    [Search::Greedy, Search::Best(8), Search::Drawn(8), Search::Beam(8), Search::Beam(32)];

impl Search {
    pub(super) fn name(self) -> String {
        match self {
            Self::Greedy => "search-greedy".to_owned(),
            Self::Best(width) => format!("search-best-of-{width}"),
            Self::Drawn(width) => format!("search-drawn-{width}"),
            Self::Beam(width) => format!("search-beam-{width}"),
        }
    }

    /// Branches that grow in a step.
    pub(super) fn width(self) -> usize {
        match self {
            Self::Greedy => 1,
            Self::Best(width) | Self::Drawn(width) | Self::Beam(width) => width,
        }
    }

    fn method(self) -> Box<dyn SearchMethod> {
        let ending = Ending::at(1 + WARMUP + TIMED);
        let samples = |width, sampler| {
            let (ending, choice) = (ending.clone(), Choice::LogProb);
            Box::new(BestOfN { samples: width, width, sampler, ending, seed: 1, choice })
        };
        match self {
            Self::Greedy => Box::new(Speculative::greedy(ending)),
            Self::Best(width) => samples(width, OF_40),
            Self::Drawn(width) => samples(width, OF_ALL),
            Self::Beam(width) => Box::new(BeamSearch { width, length_penalty: 1.0, ending }),
        }
    }

    /// Milliseconds of a step on the wall clock, and what attention read in one.
    pub(super) fn time(self, model: &mut CudaModel, prompt_tokens: u32) -> Result<(f64, f64)> {
        let vocabulary = model.vocabulary() as u32;
        let prompt: Vec<u32> = (0..prompt_tokens).map(|at| at * 7 % vocabulary).collect();
        let mut steps = Vec::new();
        let mut clock = |event: &Event<'_>| {
            if matches!(event, Event::Stepped { .. }) {
                steps.push(Instant::now());
            }
        };
        let search = TreeSearch::new(model, &NoText).observer(&mut clock);
        let stats = search.run(&prompt, &mut *self.method())?.stats;
        let timed = steps.get(WARMUP - 1..).context("the search ended early")?;
        let wall = timed[timed.len() - 1] - timed[0];
        let step_ms = wall.as_secs_f64() * 1e3 / (timed.len() - 1) as f64;
        Ok((step_ms, stats.traffic.read as f64 / (stats.steps + 1) as f64))
    }
}

/// Tokens of random weights have no text.
pub(crate) struct NoText;

impl TextCodec for NoText {
    fn encode(&self, _: &str) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>> {
        Err("there is no text".into())
    }

    fn decode(&self, _: &[u32]) -> String {
        String::new()
    }

    fn is_end(&self, _: u32) -> bool {
        false
    }
}
