//! `deft-bench draw`: trees that nothing was fitted on.

use anyhow::Result;
use serde::Serialize;

use crate::random::Random;
use crate::say;

/// The seed of workloads/held-out.json.
pub(crate) const HELD_OUT: u64 = 240_400_242;
/// Query heads a KV head; drawn without replacement, so that each occurs.
const GROUPS: [u32; 5] = [1, 4, 7, 8, 16];
/// Trees of the kinds in workloads/trees.json.
pub(crate) const KNOWN_KINDS: usize = 18;
/// Head dimensions, drawn likewise: 128 is most models'.
const HEAD_DIMS: [u32; 4] = [128, 64, 128, 256];

/// Prints random workloads in the format of workloads/trees.json, for `trees --workloads`.
///
/// A seed names a set. That of workloads/held-out.json is the default: 18 trees of the kinds in workloads/trees.json.
/// With more than 18 the others are of kinds that were found to be slow: a large tree among small ones, three
/// children a node, drafts in a batch, one leaf.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which set.
    #[arg(long, default_value_t = HELD_OUT)]
    seed: u64,
    /// How many.
    #[arg(long, default_value_t = KNOWN_KINDS)]
    trees: usize,
}

/// Runs the command; nothing of it can be wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    say(&text(args.seed, args.trees)?);
    Ok(0)
}

/// A workload as its file has it.
#[derive(Debug, Serialize)]
struct Drawn {
    name: String,
    num_q_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    dtype: &'static str,
    trees: Vec<Tree>,
}

#[derive(Debug, Default, Serialize)]
struct Tree {
    parents: Vec<i64>,
    lens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queries: Option<Vec<u32>>,
}

/// The first `trees` of a set, a workload a line.
pub(crate) fn text(seed: u64, trees: usize) -> Result<String> {
    let mut random = Random::new(seed);
    let mut shapes = shapes(&mut random);
    while shapes.len() < trees {
        shapes.extend(slow_shapes(&mut random));
    }
    shapes.truncate(trees);
    let mut groups = deck(&GROUPS, shapes.len(), &mut random);
    let mut head_dims = deck(&HEAD_DIMS, shapes.len(), &mut random);
    let mut lines = Vec::new();
    for (kind, trees) in shapes.drain(..) {
        let group = groups.pop().unwrap_or(1);
        let num_kv_heads = match group {
            1 => random.pick(&[16, 32]),
            _ => random.pick(&[2, 4, 8]),
        };
        let head_dim = head_dims.pop().unwrap_or(128);
        let drawn = Drawn {
            name: format!("{kind}_g{group}_d{head_dim}"),
            num_q_heads: group * num_kv_heads,
            num_kv_heads,
            head_dim,
            dtype: if random.between(0, 3) == 0 { "f16" } else { "bf16" },
            trees,
        };
        lines.push(serde_json::to_string(&drawn)?);
    }
    Ok(format!("[{}]", lines.join(",\n")))
}

/// Named trees: how many of which kind, within which sizes.
fn shapes(random: &mut Random) -> Vec<(String, Vec<Tree>)> {
    let mut shapes = Vec::new();
    for _ in 0..5 {
        let (prompt, width) = (octaves(512, 24_000, random), octaves(4, 96, random));
        let shot = octaves(16, 400, random);
        let name = format!("fewshot_{prompt}_w{width}");
        shapes.push((name, vec![few_shot(prompt, width, shot)]));
    }
    for _ in 0..4 {
        let (prompt, levels) = (octaves(512, 4095, random), random.between(2, 4));
        let tree = ragged(prompt, levels, random);
        let name = format!("tot_{prompt}_n{}", tree.lens.len());
        shapes.push((name, vec![tree]));
    }
    for _ in 0..4 {
        let (context, nodes) = (octaves(512, 48_000, random), octaves(12, 256, random));
        let name = format!("spec{nodes}_ctx{context}");
        shapes.push((name, vec![draft(context, nodes, random)]));
    }
    for _ in 0..3 {
        let (batch, width) = (octaves(3, 23, random), octaves(2, 12, random));
        let trees = (0..batch).map(|_| {
            let (prompt, shot) = (octaves(256, 4095, random), octaves(16, 255, random));
            few_shot(prompt, width, shot)
        });
        let name = format!("batch{batch}_w{width}");
        shapes.push((name, trees.collect()));
    }
    for _ in 0..2 {
        let batch = octaves(1, 48, random);
        let trees = (0..batch).map(|_| few_shot(octaves(256, 8191, random), 0, 0));
        shapes.push((format!("no_sharing_b{batch}"), trees.collect()));
    }
    shapes
}

/// More of them, of kinds that others than the public ones showed to be slow.
fn slow_shapes(random: &mut Random) -> Vec<(String, Vec<Tree>)> {
    let mut shapes = Vec::new();
    for _ in 0..3 {
        let (prompt, width) = (octaves(4096, 24_000, random), octaves(16, 96, random));
        let small = octaves(3, 23, random);
        let mut trees = vec![few_shot(prompt, width, octaves(16, 255, random))];
        trees.extend((0..small).map(|_| {
            let (prompt, width) = (octaves(128, 1023, random), octaves(1, 4, random));
            few_shot(prompt, width, octaves(16, 127, random))
        }));
        shapes.push((format!("unequal{small}_{prompt}_w{width}"), trees));
    }
    for _ in 0..3 {
        let (prompt, levels) = (octaves(512, 8191, random), random.between(3, 4));
        let (children, tokens) = (random.between(2, 4), octaves(8, 127, random));
        let tree = regular(prompt, levels, children, tokens);
        shapes.push((format!("levels{levels}_c{children}_t{tokens}_{prompt}"), vec![tree]));
    }
    for _ in 0..3 {
        let (batch, nodes) = (octaves(2, 16, random), octaves(8, 63, random));
        let trees = (0..batch).map(|_| draft(octaves(512, 8191, random), nodes, random));
        shapes.push((format!("drafts{batch}_n{nodes}"), trees.collect()));
    }
    for _ in 0..2 {
        let prompt = octaves(512, 24_000, random);
        shapes.push((format!("one_{prompt}"), vec![Tree::of(prompt)]));
    }
    shapes
}

/// A number of `first..=last`: an octave from `first` on, then a number of it.
fn octaves(first: u32, last: u32, random: &mut Random) -> u32 {
    let begin = first << random.between(0, (last / first).ilog2());
    random.between(begin, (2 * begin - 1).min(last))
}

/// `count` cards of as many shuffled decks as that takes.
fn deck(cards: &[u32], count: usize, random: &mut Random) -> Vec<u32> {
    let mut all = Vec::new();
    while all.len() < count {
        let begin = all.len();
        all.extend_from_slice(cards);
        random.shuffle(&mut all[begin..]);
    }
    all.truncate(count);
    all
}

impl Tree {
    fn of(prompt: u32) -> Self {
        Self { parents: vec![-1], lens: vec![prompt], queries: None }
    }

    /// Adds a node; its number.
    fn push(&mut self, parent: u32, tokens: u32) -> u32 {
        self.parents.push(i64::from(parent));
        self.lens.push(tokens);
        self.lens.len() as u32 - 1
    }
}

/// A prompt and `width` continuations, as long as each other.
fn few_shot(prompt: u32, width: u32, tokens: u32) -> Tree {
    let mut tree = Tree::of(prompt);
    for _ in 0..width {
        tree.push(0, tokens);
    }
    tree
}

/// A tree of thoughts: of each level some nodes go on, each node has a length of its own.
fn ragged(prompt: u32, levels: u32, random: &mut Random) -> Tree {
    let mut tree = Tree::of(prompt);
    let mut level = vec![0];
    for _ in 0..levels {
        let mut below = Vec::new();
        for &parent in &level {
            // The first always goes on: a tree has all its levels.
            if below.is_empty() || random.between(0, 2) > 0 {
                let children = random.between(2, 8);
                below.extend((0..children).map(|_| tree.push(parent, octaves(20, 400, random))));
            }
        }
        random.shuffle(&mut below);
        below.truncate(24);
        level = below;
    }
    tree
}

/// A prompt and a tree below it whose nodes all have `children` children, as long as each other.
fn regular(prompt: u32, levels: u32, children: u32, tokens: u32) -> Tree {
    let mut tree = Tree::of(prompt);
    let mut level = vec![0];
    for _ in 0..levels {
        let below = level.iter().flat_map(|&parent| vec![parent; children as usize]);
        level = below.map(|parent| tree.push(parent, tokens)).collect();
    }
    tree
}

/// A context and a draft below it, of one token a node; every node of the draft asks.
fn draft(context: u32, nodes: u32, random: &mut Random) -> Tree {
    let mut tree = Tree::of(context);
    for node in 0..nodes {
        let parent = random.between(0, node);
        tree.push(parent, 1);
    }
    tree.queries = Some((1..=nodes).collect());
    tree
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use deft_workloads::StepWorkload;

    use super::*;

    const FILE: &str = include_str!("../../workloads/held-out.json");

    #[test]
    fn the_held_out_file_is_what_its_seed_draws() {
        assert_eq!(FILE.trim_end(), text(HELD_OUT, KNOWN_KINDS).unwrap());
    }

    #[test]
    fn held_out_trees_are_none_that_were_fitted_on_and_cover_every_ratio_and_dimension() {
        let held_out = StepWorkload::parse(FILE).unwrap();
        let fitted = StepWorkload::parse(crate::trees::WORKLOADS).unwrap();
        let names: HashSet<&str> = held_out.iter().map(|drawn| drawn.name.as_str()).collect();
        assert_eq!(names.len(), held_out.len());
        assert!(held_out.len() >= 14);
        for drawn in &held_out {
            assert!(fitted.iter().all(|known| known.trees() != drawn.trees()));
        }
        for group in GROUPS {
            assert!(held_out.iter().any(|drawn| drawn.heads.group_size() == group));
        }
        for head_dim in HEAD_DIMS {
            assert!(held_out.iter().any(|drawn| drawn.heads.head_dim == head_dim));
        }
    }

    #[test]
    fn a_larger_set_begins_with_the_smaller_and_names_each_tree_once() {
        let drawn = |trees| StepWorkload::parse(&text(5, trees).unwrap()).unwrap();
        let (most, fewer) = (drawn(40), drawn(18));
        assert_eq!((most.len(), fewer.len()), (40, 18));
        let names: HashSet<&str> = most.iter().map(|drawn| drawn.name.as_str()).collect();
        assert_eq!(names.len(), 40);
        for (a, b) in most.iter().zip(&fewer) {
            assert_eq!(a.trees(), b.trees());
        }
        for kind in ["unequal", "levels", "drafts", "one_"] {
            assert!(names.iter().any(|name| name.starts_with(kind)), "{kind}");
        }
    }

    #[test]
    fn octaves_stay_within_their_bounds_and_reach_them() {
        let mut random = Random::new(1);
        let drawn: Vec<u32> = (0..4000).map(|_| octaves(3, 20, &mut random)).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&3), Some(&20)));
    }
}
