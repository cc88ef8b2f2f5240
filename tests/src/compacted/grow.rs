//! Random forests of which some nodes are compacted.

use deft::{DraftNode, KvElement, NodeKey};
use rand::RngExt;

use super::{Compacted, Thinning, random_compaction};
use crate::forests::pick;

/// A random forest of which some nodes are compacted, growing ones as well; the nodes that ask.
pub fn grow<T: KvElement>(world: &mut Compacted<T>, thinning: Thinning) -> Vec<(NodeKey, u32)> {
    let mut growing: Vec<NodeKey> = (0..2)
        .map(|_| {
            let tokens = pick(world.rng(), &[1, 63, 64, 65, 128, 200, 320]);
            world.root(tokens)
        })
        .collect();
    let mut all = growing.clone();
    for _ in 0..4 {
        let at = world.rng().random_range(0..growing.len());
        let parent = growing.swap_remove(at);
        let children = world.rng().random_range(1..4);
        for child in world.fork(parent, children) {
            let tokens = pick(world.rng(), &[0, 7, 64, 70, 130]);
            world.push(child, tokens);
            growing.push(child);
            all.push(child);
        }
        thin(world, parent, thinning);
    }
    for leaf in growing {
        thin(world, leaf, thinning);
        let tokens = world.rng().random_range(0..70);
        world.push(leaf, tokens);
        if world.rng().random_range(0..4) == 0 {
            let draft = [None, Some(0), Some(0)].map(|parent| DraftNode { parent, tokens: 2 });
            all.extend(world.draft(leaf, &draft));
        }
    }
    asked(world, &all)
}

/// Compacts a node at random, twice now and then.
fn thin<T: KvElement>(world: &mut Compacted<T>, node: NodeKey, thinning: Thinning) {
    for _ in 0..world.rng().random_range(0..3) {
        if let Some(compaction) = random_compaction(world, node, thinning) {
            world.compact(node, &compaction).unwrap();
        }
    }
}

/// Nodes to ask for some of their last tokens, of those that have them.
pub fn asked<T: KvElement>(world: &mut Compacted<T>, nodes: &[NodeKey]) -> Vec<(NodeKey, u32)> {
    let mut asked = Vec::new();
    for &node in nodes {
        let forest = world.cache.forest();
        let tail = forest.length(node).unwrap() - forest.compacted_tokens(node).unwrap();
        if tail > 0 {
            let most = [1, 1, tail.min(9)][world.rng().random_range(0..3)];
            asked.push((node, most));
        }
    }
    asked
}
