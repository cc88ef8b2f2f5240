//! Random forests with odd sizes on purpose.

use deft::TreeCache;
use deft::cache::PagePool;
use deft::tree::{DraftNode, NodeKey, TokenForest, TreeView, ViewScratch};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

/// Pages of a forest's pool; no forest made here needs as many.
const PAGES: u32 = 1024;
const ROOT_TOKENS: [u32; 10] = [1, 17, 37, 63, 64, 65, 128, 200, 511, 1500];
/// Of [`mixture`]s.
const PROMPT_TOKENS: [u32; 9] = [1, 2, 17, 63, 64, 65, 128, 200, 300];
const NODE_TOKENS: [u32; 9] = [0, 1, 7, 17, 37, 63, 64, 65, 130];

/// What the queries of a random forest see: up to three trees, deep or wide, empty nodes, draft blocks, queries at
/// inner nodes, pages in random order.
///
/// # Panics
/// Never: the pool has room for the largest.
pub fn random(seed: u64) -> TreeView {
    let (forest, nodes) = grown(&mut SmallRng::seed_from_u64(seed));
    forest.view(&nodes).expect("its own nodes")
}

/// A random forest and the nodes that ask.
fn grown(rng: &mut SmallRng) -> (TokenForest, Vec<NodeKey>) {
    const ROOM: &str = "there are pages enough";
    let mut forest = shuffled_forest(PAGES, rng);
    let (mut growing, mut nodes) = (Vec::new(), Vec::new());
    for _ in 0..rng.random_range(1..=3) {
        growing.push(forest.insert_root(pick(rng, &ROOT_TOKENS)).expect(ROOM));
    }
    for _ in 0..rng.random_range(0..=12) {
        let parent = growing.swap_remove(rng.random_range(0..growing.len()));
        if rng.random_ratio(1, 4) {
            nodes.push(parent);
        }
        let children = forest.fork(parent, rng.random_range(1..=5)).expect(ROOM);
        for child in children {
            let tokens = pick(rng, &NODE_TOKENS);
            if tokens > 0 {
                forest.append(child, tokens).expect(ROOM);
            }
            growing.push(child);
        }
    }
    for leaf in growing {
        match rng.random_range(0..6) {
            0 if rng.random() => nodes.extend(beams(&mut forest, leaf, rng)),
            0 => nodes.extend(forest.insert_draft(leaf, &draft(rng)).expect(ROOM)),
            1 => {}
            _ => nodes.push(leaf),
        }
    }
    if nodes.is_empty() {
        nodes.extend(forest.roots().take(1));
    }
    (forest, nodes)
}

/// The newest of a draft that has grown below `trunk`, and some of those above.
fn beams(forest: &mut TokenForest, trunk: NodeKey, rng: &mut SmallRng) -> Vec<NodeKey> {
    const ROOM: &str = "there are pages enough";
    let width = pick(rng, &[2, 7, 33, 150]);
    let mut beams = vec![trunk];
    let mut asked = Vec::new();
    for step in 0..rng.random_range(2..9) {
        let mut parents: Vec<usize> =
            (0..width).map(|_| rng.random_range(0..beams.len())).collect();
        parents.sort_unstable();
        let lost = (0..beams.len()).filter(|beam| step > 0 && !parents.contains(beam));
        let lost: Vec<NodeKey> = lost.map(|beam| beams[beam]).collect();
        forest.prune_draft(&lost).expect("leaves of a draft");
        if step == 4 {
            forest.gather_draft(trunk).expect(ROOM);
        }
        asked.extend(beams.iter().filter(|_| step > 0 && rng.random_ratio(1, 40)));
        let parents: Vec<NodeKey> = parents.into_iter().map(|beam| beams[beam]).collect();
        beams = forest.grow_draft(trunk, &parents).expect(ROOM);
    }
    asked.retain(|&node| forest.length(node).is_ok());
    asked.extend(beams);
    asked
}

fn draft(rng: &mut SmallRng) -> Vec<DraftNode> {
    let nodes: u32 = rng.random_range(1..=90);
    (0..nodes)
        .map(|node| DraftNode {
            parent: rng.random_range(0..=node).checked_sub(1),
            tokens: rng.random_range(1..=3),
        })
        .collect()
}

/// Where trees grow: a forest by itself or a cache's.
pub trait Trees {
    /// The forest.
    fn forest(&self) -> &TokenForest;
    /// A root of `tokens`.
    fn root(&mut self, tokens: u32) -> NodeKey;
    /// `n` children of a node, none where it carries a draft.
    fn fork(&mut self, node: NodeKey, n: usize) -> Vec<NodeKey>;
    /// More tokens for a leaf.
    fn extend(&mut self, leaf: NodeKey, tokens: u32);
    /// A draft below a node, none where it was forked.
    fn draft(&mut self, trunk: NodeKey, draft: &[DraftNode]) -> Vec<NodeKey>;
}

impl Trees for TokenForest {
    fn forest(&self) -> &TokenForest {
        self
    }
    fn root(&mut self, tokens: u32) -> NodeKey {
        self.insert_root(tokens).unwrap()
    }
    fn fork(&mut self, node: NodeKey, n: usize) -> Vec<NodeKey> {
        Self::fork(self, node, n).unwrap_or_default()
    }
    fn extend(&mut self, leaf: NodeKey, tokens: u32) {
        Self::extend(self, &[leaf], tokens).unwrap();
    }
    fn draft(&mut self, trunk: NodeKey, draft: &[DraftNode]) -> Vec<NodeKey> {
        self.insert_draft(trunk, draft).unwrap_or_default()
    }
}

impl Trees for TreeCache {
    fn forest(&self) -> &TokenForest {
        Self::forest(self)
    }
    fn root(&mut self, tokens: u32) -> NodeKey {
        let root = self.insert_root().unwrap();
        Trees::extend(self, root, tokens);
        root
    }
    fn fork(&mut self, node: NodeKey, n: usize) -> Vec<NodeKey> {
        Self::fork(self, node, n).unwrap_or_default()
    }
    fn extend(&mut self, leaf: NodeKey, tokens: u32) {
        Self::extend(self, &[leaf], tokens).unwrap();
    }
    fn draft(&mut self, trunk: NodeKey, draft: &[DraftNode]) -> Vec<NodeKey> {
        self.insert_draft(trunk, draft).unwrap_or_default()
    }
}

/// Grows several trees with forks and drafts, and asks some of their nodes, in any order, for up to `most_tokens` of
/// their last tokens: prompts or parts of them, drafts and decoding leaves. All nodes, and those that are asked.
pub fn mixture(
    trees: &mut impl Trees,
    seed: u64,
    most_tokens: u32,
) -> (Vec<NodeKey>, Vec<(NodeKey, u32)>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut nodes = Vec::new();
    for _ in 0..rng.random_range(1..=3) {
        nodes.push(trees.root(pick(&mut rng, &PROMPT_TOKENS)));
    }
    for _ in 0..rng.random_range(0..4) {
        let node = pick(&mut rng, &nodes);
        for leaf in trees.fork(node, rng.random_range(1..4)) {
            trees.extend(leaf, rng.random_range(1..90));
            nodes.push(leaf);
        }
    }
    for trunk in nodes.clone() {
        let parents = [None, Some(0), Some(0), Some(2)];
        let draft = parents.map(|parent| DraftNode { parent, tokens: rng.random_range(1..40) });
        if rng.random_range(0..3) == 0 {
            nodes.extend(trees.draft(trunk, &draft));
        }
    }
    let mut batch = Vec::new();
    for &node in &nodes {
        let length = trees.forest().length(node).unwrap();
        match rng.random_range(0..3) {
            0 => {}
            1 => batch.push((node, 1)),
            _ => batch.push((node, rng.random_range(1..=length.clamp(1, most_tokens)))),
        }
    }
    batch.shuffle(&mut rng);
    if batch.is_empty() {
        batch.push((nodes[0], 1));
    }
    (nodes, batch)
}

/// What the last tokens of `batch`'s nodes see.
///
/// # Panics
/// If a node does not hold as many.
pub fn view_tokens(forest: &TokenForest, batch: &[(NodeKey, u32)]) -> TreeView {
    let mut view = TreeView::default();
    forest.view_tokens_into(batch, &mut ViewScratch::default(), &mut view).unwrap();
    view
}

/// One of `choices`.
///
/// # Panics
/// If there is none.
pub fn pick<T: Copy>(rng: &mut SmallRng, choices: &[T]) -> T {
    *choices.choose(rng).expect("there is a choice")
}

/// An empty forest that takes its `pages` pages in random order: that in which trees of a page each gave them back.
///
/// # Panics
/// If there are more pages than a pool may have.
pub fn shuffled_forest(pages: u32, rng: &mut SmallRng) -> TokenForest {
    let mut forest = TokenForest::new(PagePool::new(pages).unwrap());
    let roots = (0..pages).map(|_| forest.insert_root(1).unwrap());
    let mut roots: Vec<_> = roots.collect();
    roots.shuffle(rng);
    for root in roots {
        forest.prune(root).unwrap();
    }
    forest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forests_are_varied_and_can_be_viewed() {
        let (mut masked, mut empty, mut inner) = (0, 0, 0);
        for seed in 0..60 {
            let (forest, nodes) = grown(&mut SmallRng::seed_from_u64(seed));
            let view = forest.view(&nodes).unwrap();
            assert_eq!(view.queries as usize, nodes.len());
            masked += u32::from(view.runs.iter().any(|run| run.mask.is_some()));
            empty += u32::from(nodes.iter().any(|&node| forest.length(node).unwrap() == 0));
            inner += u32::from(nodes.iter().any(|&node| forest.is_sealed(node).unwrap()));
        }
        assert!(masked > 10 && empty > 5 && inner > 10, "{masked} {empty} {inner}");
    }

    #[test]
    fn a_shuffled_forest_has_every_page_but_not_in_order() {
        let mut forest = shuffled_forest(50, &mut SmallRng::seed_from_u64(1));
        let root = forest.insert_root(50 * 64).unwrap();
        let mut pages = forest.pages(root).unwrap().to_vec();
        assert!(!pages.is_sorted());
        pages.sort_unstable();
        assert_eq!(pages, (0..50).collect::<Vec<_>>());
    }
}
