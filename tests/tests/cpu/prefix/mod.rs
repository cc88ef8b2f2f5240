//! Prompts that begin alike: the index against a list of all that was sealed, and attention over what it shares.

mod attention;
mod hostile;
mod world;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use world::World;

/// Sequences of a few documents' beginnings and something of their own: many begin alike, and many end near a page's
/// edge.
struct Sequences {
    documents: Vec<Vec<u32>>,
    rng: SmallRng,
}

impl Sequences {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let document = |rng: &mut SmallRng| (0..420).map(|_| rng.random_range(0..3)).collect();
        let documents = (0..5).map(|_| document(&mut rng)).collect();
        Self { documents, rng }
    }

    fn length(&mut self) -> usize {
        match self.rng.random_range(0..6) {
            0 => self.rng.random_range(0..5),
            1 => 64 * self.rng.random_range(1..5),
            2 => 64 * self.rng.random_range(1..5) + self.rng.random_range(0..3) - 1,
            _ => self.rng.random_range(0..400),
        }
    }

    fn next(&mut self) -> Vec<u32> {
        let shared = self.length();
        let document = self.documents.choose(&mut self.rng).unwrap();
        let mut tokens = document[..shared].to_vec();
        let own = match self.rng.random_bool(0.3) {
            true => 0,
            false => self.length().min(150),
        };
        tokens.extend((0..own).map(|_| self.rng.random_range(0..3)));
        tokens.push(self.rng.random_range(0..3));
        tokens
    }
}

fn run(pages: u32, budget: u32, operations: u32, seed: u64) {
    let mut sequences = Sequences::new(seed);
    let mut rng = SmallRng::seed_from_u64(seed + 1);
    let mut world = World::new(pages, budget);
    for operation in 0..operations {
        let pick = rng.random_range(0..usize::MAX);
        match rng.random_range(0..100) {
            0..40 => world.open(&sequences.next(), rng.random_range(0..2)),
            40..65 => world.seal(pick),
            65..75 => world.decode(pick, rng.random_range(1..90)),
            75..92 => world.prune_leaf(pick),
            92..95 => world.pin(pick),
            95..98 => world.unpin(pick),
            98 => world.make_room(rng.random_range(1..20)),
            _ => world.prune_indexed(pick),
        }
        if operation % 61 == 0 {
            world.check();
        }
    }
    let stats = world.tear_down();
    assert!(stats.hits > u64::from(operations) / 10, "{stats:?}");
    assert!(stats.tokens_copied > 0 && stats.evictions > 0, "{stats:?}");
}

#[test]
fn a_hundred_thousand_operations_find_what_a_list_of_all_sealed_sequences_finds() {
    run(160, 160, 50_000, 1);
    run(120, 60, 40_000, 2);
}

#[test]
fn in_a_pool_that_is_always_short_nothing_leaks_and_nothing_wrong_is_found() {
    run(24, 24, 10_000, 3);
    run(40, 7, 10_000, 4);
}
