//! Random forests with sealed nodes.

use deft::{DraftNode, KvElement, KvFormat, NodeKey};
use rand::RngExt;

use super::Coded;
use crate::forests::pick;

/// A random forest of which some nodes are sealed in one of `formats`, growing ones as well; the nodes that ask.
///
/// # Panics
/// If the cache refuses.
pub fn grow<T: KvElement>(world: &mut Coded<T>, formats: &[KvFormat]) -> Vec<NodeKey> {
    let lengths = [1, 63, 64, 65, 128, 150, 200, 320];
    let mut growing: Vec<NodeKey> = (0..2)
        .map(|_| {
            let tokens = pick(world.rng(), &lengths);
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
        if world.rng().random_range(0..4) > 0 {
            let format = pick(world.rng(), formats);
            world.seal(parent, format);
        }
    }
    for leaf in growing {
        if world.rng().random_range(0..3) == 0 {
            let format = pick(world.rng(), formats);
            world.seal(leaf, format);
            let tokens = world.rng().random_range(0..70);
            world.push(leaf, tokens);
        }
        if world.rng().random_range(0..4) == 0 {
            let draft = [None, Some(0), Some(0)].map(|parent| DraftNode { parent, tokens: 2 });
            all.extend(world.draft(leaf, &draft));
        }
    }
    all
}

/// Nodes to ask, each for one or several of its last tokens.
///
/// # Panics
/// If the cache has none of the nodes.
pub fn ask<T: KvElement>(world: &mut Coded<T>, nodes: &[NodeKey]) -> Vec<(NodeKey, u32)> {
    let mut asked = Vec::new();
    for &node in nodes {
        let length = world.cache.forest().length(node).unwrap();
        if length > 0 {
            let most = [1, 1, length.min(9)][world.rng().random_range(0..3)];
            asked.push((node, most));
        }
    }
    asked
}
