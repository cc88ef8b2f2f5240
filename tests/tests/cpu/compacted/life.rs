//! All that may happen to trees with compacted nodes, over and over.

use deft::{DraftNode, NodeKey};
use deft_tests::compacted::{Compacted, Thinning, random_compaction};
use deft_tests::forests::pick;
use deft_tests::problem::{GROUPINGS, heads};
use deft_tests::world::{Place, ask};
use rand::RngExt;

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
struct Happened {
    compacted: u32,
    freed: u32,
    merged: u32,
    refused: u32,
    accepted: u32,
    pruned: u32,
}

struct Life {
    world: Compacted<f32>,
    nodes: Vec<NodeKey>,
    happened: Happened,
}

impl Life {
    fn step(&mut self) {
        let Self { world, nodes, happened } = self;
        let node = pick(world.rng(), nodes);
        let forest = world.cache.forest();
        let thin = |node| forest.compacted_tokens(node).unwrap() > 0;
        let grows = !forest.is_sealed(node).unwrap();
        let leaf = forest.children(node).unwrap().next().is_none();
        let own = u32::from(thin(node));
        match world.rng().random_range(0..9) {
            0 if nodes.len() < 14 => {
                let children = world.rng().random_range(1..3);
                nodes.extend(world.fork(node, children));
            }
            1 | 2 if grows => {
                let tokens = world.rng().random_range(1..150);
                world.push(node, tokens);
            }
            3 if grows => {
                let draft = [None, Some(0), Some(0)].map(|parent| DraftNode { parent, tokens: 40 });
                let keys = world.draft(node, &draft);
                world.accept(node, &[keys[0], keys[2]]);
                happened.accepted += own;
            }
            4..=6 => {
                let keep = world.rng().random_range(5..95);
                let thinning = Thinning { keep, merges: keep % 2 == 0 };
                if let Some(compaction) = random_compaction(world, node, thinning) {
                    happened.freed += world.compact(node, &compaction).unwrap();
                    happened.compacted += 1;
                }
            }
            7 => {
                let refused = world.merge_chain(node).is_err();
                happened.refused += u32::from(refused);
                happened.merged += own * u32::from(!refused);
                let forest = world.cache.forest();
                nodes.retain(|&node| forest.length(node).is_ok());
            }
            _ if leaf && nodes.len() > 4 => {
                world.prune(node);
                nodes.retain(|&other| other != node);
                happened.pruned += own;
            }
            _ => {}
        }
    }
}

/// Steps of one tree after another; attention is compared after every `check`th of them.
fn live(steps: u32, check: u32, seed: u64) -> Happened {
    let world = Compacted::<f32>::on(&Place::Cpu, heads(2, 2, 64), 2, 900, seed);
    let mut life = Life { world, nodes: Vec::new(), happened: Happened::default() };
    for step in 0..steps {
        if step % 40 == 0 {
            life.nodes.clear();
            for root in life.world.cache.forest().roots().collect::<Vec<_>>() {
                life.world.prune(root);
            }
            assert_eq!(life.world.cache.forest().pool().live(), 0);
            let root = life.world.root(200);
            life.nodes.push(root);
        }
        life.step();
        life.world.check_counters();
        if step % check == 0 {
            let asked = ask(&mut life.world, &life.nodes);
            if !asked.is_empty() {
                let grouping = pick(life.world.rng(), &GROUPINGS);
                life.world.check(&asked, grouping, &format!("seed {seed}, step {step}"));
            }
        }
    }
    for root in life.world.cache.forest().roots().collect::<Vec<_>>() {
        life.world.prune(root);
    }
    life.world.check_counters();
    let forest = life.world.cache.forest();
    assert_eq!(forest.pool().live(), 0);
    let directory = forest.directory().unwrap();
    assert!(directory.cells().iter().all(|cell| cell.rows() == 0));
    assert!(directory.stride() < 200, "{}", directory.stride());
    life.happened
}

#[test]
fn ten_thousand_steps_leak_nothing_and_the_rows_that_are_left_go_along() {
    let mut sum = [0; 6];
    for seed in 0..4 {
        let Happened { compacted, freed, merged, refused, accepted, pruned } = live(2500, 10, seed);
        for (sum, of) in sum.iter_mut().zip([compacted, freed, merged, refused, accepted, pruned]) {
            *sum += of;
        }
    }
    assert!(sum.iter().all(|&count| count >= 20), "{sum:?}");
}
