//! What the search tests share.

#[allow(dead_code, reason = "each file of tests uses a part")]
pub(crate) mod mock;

use deft_engine::TreeModel;
use deft_search::{
    Ending, Outcome, Sampler, Scorer, SearchError, SearchMethod, SearchTree, TreeOfThoughts,
    TreeSearch,
};

use mock::{AsciiCodec, HashModel, HashModelConfig};

pub(crate) fn model(seed: u64) -> HashModel {
    with(HashModelConfig {
        seed,
        ..HashModelConfig::default()
    })
}

pub(crate) fn with(config: HashModelConfig) -> HashModel {
    HashModel::new(config).unwrap()
}

pub(crate) fn prompt() -> Vec<u32> {
    AsciiCodec.encode("Once upon a time there was a forest of tokens.")
}

/// Runs a search without limits, and checks that it frees everything.
pub(crate) fn run(
    model: &mut HashModel,
    method: &mut dyn SearchMethod,
) -> Result<Outcome, SearchError> {
    let outcome = TreeSearch::new(model, &AsciiCodec).run(&prompt(), method);
    assert_empty(model);
    outcome
}

pub(crate) fn assert_empty(model: &HashModel) {
    let forest = model.forest();
    forest.debug_assert_invariants();
    assert_eq!(forest.node_count(), 0);
    assert_eq!(forest.pool().free(), forest.pool().capacity());
}

/// A search method that is a closure.
pub(crate) struct Custom<F>(pub(crate) F);

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
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - sum.ln()).collect()
}

/// Five levels of words.
pub(crate) fn thoughts(scorer: &dyn Scorer) -> TreeOfThoughts<'_> {
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
