//! Searches on a model without weights, and what these tests share.

mod limits;
mod methods;
mod mock;
mod prefixes;
mod sampler;
mod speculative;
mod tasks;
mod thoughts;
mod tree;

use deft_engine::TreeModel;
use deft_search::{
    BeamSearch, BestOfN, Choice, Ending, Limits, Outcome, Sampler, Scorer, SearchError,
    SearchMethod, SearchTree, TreeOfThoughts, TreeSearch,
};

use mock::{AsciiCodec, HashModel, HashModelConfig};

fn model(seed: u64) -> HashModel {
    with(|config| config.seed = seed)
}

/// The model that differs from the usual one as `change` says.
fn with(change: impl FnOnce(&mut HashModelConfig)) -> HashModel {
    let mut config = HashModelConfig::default();
    change(&mut config);
    HashModel::new(config).unwrap()
}

fn prompt() -> Vec<u32> {
    AsciiCodec.encode("Once upon a time there was a forest of tokens.")
}

/// Runs a search without limits, and checks that it frees everything.
fn run(model: &mut HashModel, method: &mut dyn SearchMethod) -> Result<Outcome, SearchError> {
    run_within(Limits::default(), model, method)
}

/// The same with limits.
fn run_within(
    limits: Limits,
    model: &mut HashModel,
    method: &mut dyn SearchMethod,
) -> Result<Outcome, SearchError> {
    let search = TreeSearch::new(model, &AsciiCodec).limits(limits);
    let outcome = search.run(&prompt(), method);
    assert_empty(model);
    outcome
}

/// No more than `tokens` tokens run.
fn at_most(tokens: u64) -> Limits {
    Limits { tokens, ..Limits::default() }
}

fn assert_empty(model: &HashModel) {
    let forest = model.forest();
    forest.debug_assert_invariants();
    assert_eq!(forest.node_count(), 0);
    assert_eq!(forest.pool().free(), forest.pool().capacity());
}

/// Answers of at most `tokens` tokens, `width` at a time.
fn beam(width: usize, tokens: usize) -> BeamSearch {
    BeamSearch { width, length_penalty: 1.0, ending: Ending::at(tokens) }
}

/// As many samples at a time.
fn samples(n: usize, tokens: usize) -> BestOfN<'static> {
    BestOfN {
        samples: n,
        width: n,
        sampler: Sampler::at(1.0),
        ending: Ending::at(tokens),
        seed: 7,
        choice: Choice::LogProb,
    }
}

/// A search method that is a closure.
struct Custom<F>(F);

impl<F: FnMut(&mut SearchTree<'_>) -> Result<(), SearchError>> SearchMethod for Custom<F> {
    fn search(
        &mut self,
        tree: &mut SearchTree<'_>,
    ) -> Result<Vec<deft_search::Answer>, SearchError> {
        (self.0)(tree)?;
        Ok(Vec::new())
    }
}

/// Log-softmax of a row, by its definition in f64.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - sum.ln()).collect()
}

/// Five levels of words.
fn thoughts(scorer: &dyn Scorer) -> TreeOfThoughts<'_> {
    TreeOfThoughts {
        thoughts: 4,
        keep: 3,
        depth: 5,
        rounds: 1,
        sampler: Sampler::at(1.0),
        thought: Ending::at(6).or_text(" "),
        seed: 2,
        scorer,
    }
}
