//! Long random lives of caches that policies tend.

use deft::retain::{Budget, Policy, Retention};
use deft::{DraftNode, NodeKey};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::retention::world::World;

/// Leaves that can grow.
fn growing(world: &World) -> Vec<NodeKey> {
    let forest = world.cache.forest();
    let leaves = forest.roots().flat_map(|root| forest.leaves(root).unwrap());
    leaves.filter(|&leaf| !forest.is_sealed(leaf).unwrap()).collect()
}

fn life(policy: &mut Policy, seed: u64, steps: u32) -> u32 {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut world = World::new(200);
    let observe = policy.observe();
    let mut compacted = 0;
    for step in 0..steps {
        let leaves = growing(&world);
        let free = world.cache.forest().pool().free();
        let Some(&leaf) = leaves.choose(&mut rng).filter(|_| free > 60) else {
            let roots: Vec<NodeKey> = world.cache.forest().roots().collect();
            if let Some(&root) = roots.choose(&mut rng).filter(|_| free <= 60) {
                world.cache.prune(root).unwrap();
            }
            let root = world.cache.insert_root().unwrap();
            world.run(&[(root, rng.random_range(1..300))], observe, 10.0);
            continue;
        };
        match rng.random_range(0..10) {
            0..4 => {
                let some = rng.random_range(1..=leaves.len().min(6));
                let nodes: Vec<_> = leaves[..some].iter().map(|&leaf| (leaf, 1)).collect();
                world.run(&nodes, observe, 10.0);
            }
            4 => drop(world.run(&[(leaf, rng.random_range(1..150))], observe, 10.0)),
            5 => drop(world.cache.fork(leaf, rng.random_range(1..4)).unwrap()),
            6 => drop(world.cache.prune(leaf).unwrap()),
            7 if world.cache.forest().length(leaf).unwrap() > 0 => {
                let chain = |parent| DraftNode { parent, tokens: 1 };
                let draft: Vec<_> = (0..5u32).map(|i| chain(i.checked_sub(1))).collect();
                let nodes = world.cache.insert_draft(leaf, &draft).unwrap();
                let rows: Vec<_> = nodes.iter().map(|&node| (node, 1)).collect();
                world.run(&rows, observe, 10.0);
                world.cache.accept(leaf, &nodes[..rng.random_range(0..=5)]).unwrap();
            }
            _ => {
                let budget = Budget::Tokens(rng.random_range(0..2000));
                compacted += world.cache.maintain(policy, budget).unwrap().nodes;
            }
        }
        if step % 16 == 0 {
            world.cache.forest().debug_assert_invariants();
        }
    }
    for root in world.cache.forest().roots().collect::<Vec<_>>() {
        world.cache.prune(root).unwrap();
    }
    let pool = world.cache.forest().pool();
    assert_eq!((pool.live(), pool.free()), (0, pool.capacity()));
    world.cache.forest().debug_assert_invariants();
    compacted
}

#[test]
fn ten_thousand_random_steps_of_upkeep_and_growth_leak_nothing() {
    let policies = ["corm:16,16", "h2o:16", "snapkv:16,5", "sinks:4,64", "merge:0.001,16,0.05"];
    for (seed, policy) in (0..).zip(policies) {
        let compacted = life(&mut policy.parse().unwrap(), seed, 2000);
        assert!(compacted > 20, "{policy}: {compacted}");
    }
}
