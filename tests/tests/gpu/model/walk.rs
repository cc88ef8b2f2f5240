//! The same trees on any model: prompts, growth, branches, drafts, pruning.

use deft::NodeKey;
use deft_engine::{DraftToken, GrownToken, TreeModel};

use kernels_gpu::random::word;

/// `count` tokens below `vocabulary`, from a seed.
pub(crate) fn tokens(seed: u64, count: usize, vocabulary: u32) -> Vec<u32> {
    let words = (0..count as u64).map(|at| word(seed, at));
    words.map(|word| (word % u64::from(vocabulary)) as u32).collect()
}

/// Index of the largest entry, the first of equals.
pub(crate) fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (at, &value) in row.iter().enumerate() {
        if value > row[best] {
            best = at;
        }
    }
    best as u32
}

/// A model, and what it answered.
struct Walk<'m> {
    model: &'m mut dyn TreeModel,
    seed: u64,
    answers: Vec<(String, Vec<f32>)>,
    logits: Vec<f32>,
}

/// Runs the walk; every pass by name, with its logits. `about_to` hears the name first.
pub(crate) fn walk(
    model: &mut dyn TreeModel,
    mut about_to: impl FnMut(&str),
) -> Vec<(String, Vec<f32>)> {
    let mut walk = Walk { model, seed: 100, answers: Vec::new(), logits: Vec::new() };
    for length in [1, 64, 150] {
        about_to("a prompt");
        let root = walk.prompt(length);
        walk.model.prune(root).unwrap();
    }
    let root = walk.prompt(150);
    let mut leaves = walk.model.fork(root, 5).unwrap();
    leaves.reverse();
    about_to("steps of five leaves");
    for _ in 0..70 {
        walk.step("a step of five leaves", &leaves);
    }
    let parent = leaves.remove(1);
    leaves.extend(walk.model.fork(parent, 4).unwrap());
    about_to("steps of leaves of two depths");
    for _ in 0..5 {
        walk.step("a step of leaves of two depths", &leaves);
    }
    let gone = leaves.remove(0);
    walk.model.prune(gone).unwrap();
    walk.step("a step after a prune", &leaves);
    walk.step("a step of some leaves", &leaves[2..4]);
    about_to("drafts");
    for round in 0..4 {
        walk.draft(leaves[0], round);
        walk.step("a step after a draft", &leaves);
    }
    let other = walk.prompt(20);
    leaves.extend(walk.model.fork(other, 12).unwrap());
    about_to("steps over two trees");
    for _ in 0..3 {
        walk.step("a step over two trees", &leaves);
    }
    about_to("beams");
    let prompt = walk.prompt(100);
    walk.beams(prompt);
    for root in [root, other, prompt] {
        walk.model.prune(root).unwrap();
    }
    let live = walk.model.forest().pool().live();
    assert_eq!(live, 0, "pages are in use without a tree");
    walk.answers
}

impl Walk<'_> {
    fn tokens(&mut self, count: usize) -> Vec<u32> {
        self.seed += 1;
        tokens(self.seed, count, self.model.vocabulary() as u32)
    }

    fn answered(&mut self, what: &str) {
        let number = self.answers.len();
        self.answers.push((format!("{what} (pass {number})"), self.logits.clone()));
    }

    fn prompt(&mut self, length: usize) -> NodeKey {
        let tokens = self.tokens(length);
        let root = self.model.insert_prompt(&tokens, &mut self.logits).unwrap();
        self.answered(&format!("a prompt of {length} tokens"));
        root
    }

    fn step(&mut self, what: &str, leaves: &[NodeKey]) {
        let tokens = self.tokens(leaves.len());
        self.model.step(leaves, &tokens, &mut self.logits).unwrap();
        self.answered(what);
    }

    /// Steps of beams in a draft that grows. What follows them is told by all log-probabilities, around each row's mean.
    fn beams(&mut self, trunk: NodeKey) {
        const WIDTH: usize = 12;
        let vocabulary = self.model.vocabulary();
        let mut beams = vec![trunk];
        for step in 0..8 {
            let mut parents: Vec<usize> =
                (0..WIDTH).map(|beam| beam * beam % (step + 3) % beams.len()).collect();
            parents.sort_unstable();
            let lost = (0..beams.len()).filter(|beam| step > 0 && !parents.contains(beam));
            let lost: Vec<NodeKey> = lost.map(|beam| beams[beam]).collect();
            self.model.prune_draft(&lost).unwrap();
            if step == 5 {
                self.model.gather_draft(trunk).unwrap();
            }
            let tokens = self.tokens(WIDTH);
            let grown = parents.iter().zip(&tokens).zip(0..);
            let grown = grown.map(|((&parent, &token), beam)| GrownToken {
                parent: beams[parent],
                token,
                score: -0.1 * f64::from(beam),
            });
            let grown: Vec<GrownToken> = grown.collect();
            let found = self.model.grow_draft(trunk, &grown, WIDTH * vocabulary).unwrap();
            let total = |at: usize| {
                let one = found.best[at];
                grown[one.row as usize].score + one.log_prob
            };
            assert!((1..found.best.len()).all(|at| total(at - 1) >= total(at)));
            self.logits.clear();
            self.logits.resize(WIDTH * vocabulary, f32::NAN);
            for one in &found.best {
                let at = one.row as usize * vocabulary + one.token as usize;
                self.logits[at] = one.log_prob as f32;
            }
            for row in self.logits.chunks_exact_mut(vocabulary) {
                let mean = row.iter().sum::<f32>() / vocabulary as f32;
                row.iter_mut().for_each(|value| *value -= mean);
            }
            self.answered("a step of beams");
            beams = found.nodes;
        }
    }

    /// Nine tokens of which a path of `kept` stays.
    fn draft(&mut self, trunk: NodeKey, kept: usize) {
        let parents = [None, Some(0), Some(0), None, Some(1), Some(2), Some(4), Some(4), Some(3)];
        let tokens = self.tokens(parents.len());
        let draft = parents.into_iter().zip(tokens);
        let draft = draft.map(|(parent, token)| DraftToken { parent, token });
        let draft: Vec<DraftToken> = draft.collect();
        let keys = self.model.verify(trunk, &draft, &mut self.logits).unwrap();
        self.answered("a draft");
        let path = [0, 1, 4, 7].map(|at| keys[at]);
        self.model.accept(trunk, &path[..kept]).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deft::Grouping;
    use deft_engine::{CpuModel, CpuOptions, LlamaConfig, Weights};
    use deft_tests::oracle::relative_l2;

    #[test]
    fn the_walk_gives_the_same_whatever_the_grouping() {
        let config = LlamaConfig {
            layers: 1,
            hidden: 64,
            ffn: 64,
            q_heads: 2,
            kv_heads: 1,
            vocabulary: 50,
            context: 400,
            ..LlamaConfig::smollm2_135m()
        };
        let weights = Weights::synthetic(config, 2).unwrap();
        let run = |grouping| {
            let options =
                CpuOptions { grouping, capacity_bytes: 16 << 20, ..CpuOptions::default() };
            let mut model = CpuModel::load(&weights, options, |_, _| {}).unwrap();
            walk(&mut model, |_| {})
        };
        let (flat, per_query) = (run(Grouping::Flatten), run(Grouping::PerQuery));
        assert_eq!(flat.len(), per_query.len());
        for ((what, a), (_, b)) in flat.iter().zip(&per_query) {
            let b: Vec<f64> = b.iter().map(|&x| f64::from(x)).collect();
            assert!(relative_l2(a, &b) < 1e-4, "{what}");
        }
    }

    #[test]
    fn the_largest_entry_is_the_first_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
    }
}
