//! Random compactions.

use deft::retain::{Compaction, HeadCompaction, Source};
use deft::{KvElement, NodeKey};
use kernels_gpu::abi::PAGE_TOKENS;
use rand::RngExt;

use super::Compacted;

/// What a random compaction does to rows.
#[derive(Clone, Copy, Debug)]
pub struct Thinning {
    /// Of a hundred rows, how many are kept in the middle; heads differ.
    pub keep: u32,
    /// Some rows are merged, with biases.
    pub merges: bool,
}

/// A random compaction of a node's full pages, or some of them; `None` if it has none. Heads keep different numbers of
/// rows, now and then none.
pub fn random_compaction<T: KvElement>(
    world: &mut Compacted<T>,
    node: NodeKey,
    thinning: Thinning,
) -> Option<Compaction> {
    let forest = world.cache.forest();
    let least = forest.compacted_tokens(node).ok()? / PAGE_TOKENS;
    let most = forest.length(node).ok()? / PAGE_TOKENS;
    if most == 0 {
        return None;
    }
    let tokens = world.rng().random_range(least.max(1)..=most) * PAGE_TOKENS;
    let counts = world.counts(node, tokens);
    let heads = counts.iter().enumerate().map(|(head, &rows)| {
        let biases: Vec<f32> =
            world.rows(node, head)[..rows as usize].iter().map(|row| row.bias as f32).collect();
        of_head(world, &biases, thinning)
    });
    let heads = heads.collect();
    Some(Compaction { tokens, heads })
}

fn of_head<T: KvElement>(
    world: &mut Compacted<T>,
    biases: &[f32],
    thinning: Thinning,
) -> HeadCompaction {
    let rng = world.rng();
    let keep = match rng.random_range(0..6) {
        0 => 0,
        1 => 100,
        2 => thinning.keep / 3,
        _ => thinning.keep,
    };
    let mut head = HeadCompaction::default();
    let mut left = Vec::new();
    for (row, &bias) in (0..).zip(biases) {
        if rng.random_range(0..100) < keep {
            head.push_kept(row, bias);
        } else {
            left.push(row);
        }
    }
    if thinning.merges && keep > 0 {
        for rows in left.chunks(7).take(9) {
            let source = |&row: &u32| Source {
                row,
                k: rng.random_range(0.0..0.6),
                v: rng.random_range(0.0..0.6),
            };
            let sources: Vec<_> = rows.iter().map(source).collect();
            head.push(&sources, (rows.len() as f32).ln());
        }
    }
    head
}
