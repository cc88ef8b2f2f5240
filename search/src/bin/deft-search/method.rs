//! From arguments to a way of searching.

use deft_search::{
    BeamSearch, BestOfN, Choice, DiverseBatch, PromptLookup, Sampler, Scorer, SearchMethod,
    Speculative, TreeOfThoughts,
};

use crate::args::{Args, SearchArg};
use crate::question::Question;

/// How tokens are drawn where they are.
const SAMPLER: Sampler = Sampler { temperature: 0.8, top_k: 40, top_p: 0.95 };
/// The most daring sampler of a batch.
const HOTTEST: f32 = 1.2;

/// The method in words.
pub(crate) fn describe(question: &Question, args: &Args) -> String {
    let width = args.width();
    match args.search {
        SearchArg::Tot => format!(
            "tree of thoughts: {width} thoughts after a state, {width} states go on, {} levels",
            question.levels(args)
        ),
        SearchArg::Beam => format!("beam search of width {width}"),
        SearchArg::BestOfN => format!("best of {width} samples"),
        SearchArg::FewShot => {
            format!("{width} continuations, from greedy to temperature {HOTTEST}")
        }
        SearchArg::Speculative => {
            "greedy decoding with drafts out of the text so far, verified as trees".to_owned()
        }
    }
}

/// Calls `search` with the method that `args` ask for.
pub(crate) fn with_method<T>(
    question: &Question,
    args: &Args,
    search: impl FnOnce(&mut dyn SearchMethod) -> T,
) -> T {
    let (ending, seed, width) = (question.ending(args), args.seed, args.width());
    let scorer = question.scorer();
    let scorer: &dyn Scorer = &*scorer;
    let puzzle = matches!(question, Question::Puzzle(_));
    match args.search {
        SearchArg::Tot => search(&mut TreeOfThoughts {
            thoughts: width,
            keep: width,
            depth: question.levels(args),
            sampler: SAMPLER,
            thought: question.thought(args),
            // Without a checker no round is better than another.
            rounds: if puzzle { usize::MAX } else { 1 },
            seed,
            scorer,
        }),
        SearchArg::Beam => search(&mut BeamSearch { width, length_penalty: 1.0, ending }),
        SearchArg::BestOfN => search(&mut BestOfN {
            samples: width,
            width,
            sampler: SAMPLER,
            ending,
            seed,
            choice: if puzzle { Choice::Scorer(scorer) } else { Choice::LogProb },
        }),
        SearchArg::FewShot => search(&mut DiverseBatch { samplers: samplers(width), ending, seed }),
        SearchArg::Speculative => search(&mut Speculative {
            drafter: Some(&mut PromptLookup::default()),
            sampler: Sampler::GREEDY,
            ending,
            seed,
        }),
    }
}

/// From greedy to daring.
fn samplers(count: usize) -> Vec<Sampler> {
    let step = HOTTEST / count.saturating_sub(1).max(1) as f32;
    let sampler = |index| Sampler { temperature: step * index as f32, ..SAMPLER };
    (0..count).map(sampler).collect()
}
