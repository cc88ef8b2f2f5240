//! Restoring from both ends: how long it takes by simulation, that nothing is claimed twice, and that the cache holds
//! the right bits afterwards.

mod cache;
mod simulation;

use deft::restore::{Claim, RestoreError, RestoreNode, RestorePlan};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

pub(crate) fn node(parent: Option<usize>, tokens: u32) -> RestoreNode {
    RestoreNode { parent, tokens }
}

/// Which tokens of each node are claimed or there, kept by hand.
struct Book {
    nodes: Vec<RestoreNode>,
    there: Vec<Vec<bool>>,
    claimed: Vec<Vec<bool>>,
}

impl Book {
    fn new(nodes: &[RestoreNode]) -> Self {
        let none = || nodes.iter().map(|node| vec![false; node.tokens as usize]).collect();
        let (there, claimed) = (none(), none());
        let nodes = nodes.to_vec();
        Self { nodes, there, claimed }
    }

    fn claim(&mut self, claim: &Claim) {
        let tokens = claim.tokens.start as usize..claim.tokens.end as usize;
        assert!(!tokens.is_empty() && claim.tokens.start.is_multiple_of(64), "{claim:?}");
        for claimed in &mut self.claimed[claim.node][tokens] {
            assert!(!std::mem::replace(claimed, true), "{claim:?} was claimed before");
        }
    }

    /// Everything before a part that is computed is there.
    fn check_path(&self, claim: &Claim) {
        let before = &self.there[claim.node][..claim.tokens.start as usize];
        assert!(before.iter().all(|&there| there), "{claim:?}");
        let mut above = self.nodes[claim.node].parent;
        while let Some(node) = above {
            assert!(self.there[node].iter().all(|&there| there), "{claim:?} below {node}");
            above = self.nodes[node].parent;
        }
    }

    fn complete(&mut self, claim: &Claim) {
        self.there[claim.node][claim.tokens.start as usize..claim.tokens.end as usize].fill(true);
    }

    fn give_back(&mut self, claim: &Claim) {
        self.claimed[claim.node][claim.tokens.start as usize..claim.tokens.end as usize]
            .fill(false);
    }
}

fn random_tree(rng: &mut SmallRng) -> Vec<RestoreNode> {
    let count = rng.random_range(1..12);
    let lengths = [1, 63, 64, 65, 200, 700];
    let node = |index: usize, rng: &mut SmallRng| {
        let parent = (index > 0 && rng.random_bool(0.9)).then(|| rng.random_range(0..index));
        node(parent, *lengths.choose(rng).unwrap())
    };
    (0..count).map(|index| node(index, rng)).collect()
}

#[test]
fn in_any_order_of_claims_completions_and_failures_every_token_comes_back_once() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let nodes = random_tree(&mut rng);
        let plan = RestorePlan::new(&nodes, 128, 192).unwrap();
        let mut book = Book::new(&nodes);
        let mut running: Vec<Claim> = Vec::new();
        while !plan.is_done() {
            let claim = match rng.random_range(0..5) {
                0 | 1 => plan.claim_compute().inspect(|claim| book.check_path(claim)),
                2 => plan.claim_load(),
                _ if running.is_empty() => None,
                what => {
                    let claim = running.swap_remove(rng.random_range(0..running.len()));
                    if what == 3 || rng.random_bool(0.7) {
                        book.complete(&claim);
                        plan.complete(claim);
                    } else {
                        book.give_back(&claim);
                        plan.give_back(claim);
                    }
                    None
                }
            };
            if let Some(claim) = claim {
                book.claim(&claim);
                running.push(claim);
            }
        }
        assert!(book.there.iter().flatten().all(|&there| there));
        assert!(plan.claim_compute().is_none() && plan.claim_load().is_none());
    }
}

#[test]
fn threads_that_claim_at_once_get_different_parts() {
    let nodes = [node(None, 64 * 300), node(Some(0), 64 * 50 + 7), node(Some(0), 64 * 80)];
    let plan = RestorePlan::new(&nodes, 64, 64).unwrap();
    let claims: Vec<Vec<Claim>> = std::thread::scope(|scope| {
        let work = |computes: bool| {
            let plan = &plan;
            scope.spawn(move || {
                let mut claims = Vec::new();
                while !plan.is_claimed() {
                    let claim = match computes {
                        true => plan.claim_compute(),
                        false => plan.claim_load(),
                    };
                    if let Some(claim) = claim {
                        claims.push(claim.clone());
                        plan.complete(claim);
                    }
                }
                claims
            })
        };
        let threads: Vec<_> = [true, false, false, true].map(work).into();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut book = Book::new(&nodes);
    claims.iter().flatten().for_each(|claim| book.claim(claim));
    assert!(book.claimed.iter().flatten().all(|&claimed| claimed) && plan.is_done());
}

#[test]
fn what_computes_begins_at_the_root_and_what_loads_at_the_deepest_shared_end() {
    let nodes = [
        node(None, 2048),
        node(Some(0), 256),
        node(Some(1), 512),
        node(Some(1), 512),
        node(Some(0), 768),
    ];
    let plan = RestorePlan::new(&nodes, 512, 128).unwrap();
    let claim = plan.claim_compute().unwrap();
    assert_eq!((claim.node, claim.tokens), (0, 0..512));
    // Nodes 2, 3 and 4 all end at 2816.
    for _ in 0..3 {
        let claim = plan.claim_load().unwrap();
        assert!(claim.node >= 2 && claim.tokens.len() == 128, "{claim:?}");
    }
}

#[test]
fn a_plan_that_cannot_be_is_refused() {
    let refuse =
        |nodes: &[RestoreNode], compute, load| RestorePlan::new(nodes, compute, load).unwrap_err();
    let one = [node(None, 5)];
    let error = refuse(&one, 100, 64).to_string();
    assert_eq!(error, "compute is 100 tokens; it must be a positive multiple of 64");
    assert!(refuse(&one, 64, 0).to_string().starts_with("load is 0"));
    let (index, parent) = (1, 1);
    let own = refuse(&[node(None, 5), node(Some(1), 5)], 64, 64);
    assert_eq!(own, RestoreError::Order { index, parent });
    assert_eq!(refuse(&[node(None, 0)], 64, 64), RestoreError::Empty { index: 0 });
    assert!(RestorePlan::new(&[], 64, 64).unwrap().is_done());
}
