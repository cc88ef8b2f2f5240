//! Random forests.

use deft::{DraftNode, KvElement, NodeKey, PlanUpdate};
use rand::RngExt;

use super::{Expected, World};
use crate::forests::pick;
use crate::problem::GROUPINGS;

/// A random forest of which `change` changes some nodes, growing ones as well; all its nodes.
///
/// # Panics
/// If the cache refuses.
pub fn grow<T: KvElement, S: Expected>(
    world: &mut World<T, S>,
    mut change: impl FnMut(&mut World<T, S>, NodeKey),
) -> Vec<NodeKey> {
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
        change(world, parent);
    }
    for leaf in growing {
        change(world, leaf);
        let tokens = world.rng().random_range(0..70);
        world.push(leaf, tokens);
        if world.rng().random_range(0..4) == 0 {
            let draft = [None, Some(0), Some(0)].map(|parent| DraftNode { parent, tokens: 2 });
            all.extend(world.draft(leaf, &draft));
        }
    }
    all
}

/// Three leaves behind 128 tokens that `change` changes decode 70 tokens, which takes no new plan; under every grouping.
///
/// # Panics
/// If it does, or attention is wrong.
pub fn decode_behind<T: KvElement, S: Expected>(
    world: &mut World<T, S>,
    context: &str,
    mut change: impl FnMut(&mut World<T, S>, NodeKey),
) {
    let root = world.root(130);
    let leaves = world.fork(root, 3);
    for &leaf in &leaves {
        world.push(leaf, 128);
        change(world, leaf);
    }
    for grouping in GROUPINGS {
        world.cache.set_grouping(grouping);
        let asked: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
        let mut batch = world.cache.batch(&asked).unwrap();
        world.write(&batch);
        let mut updates = Vec::new();
        for step in 1..=70 {
            updates.push(world.cache.advance(&mut batch, 1).unwrap());
            world.write(&batch);
            if step % 20 == 1 || step == 70 {
                world.check_batch(&batch, context);
            }
        }
        assert!(!updates.contains(&PlanUpdate::Replanned), "{context}: {updates:?}");
        assert!(updates.contains(&PlanUpdate::Patched), "{context}: {updates:?}");
    }
}

/// Nodes to ask, each for one or several of its last tokens: those that have some that are not compacted.
///
/// # Panics
/// If the cache has none of the nodes.
pub fn ask<T: KvElement, S: Expected>(
    world: &mut World<T, S>,
    nodes: &[NodeKey],
) -> Vec<(NodeKey, u32)> {
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
