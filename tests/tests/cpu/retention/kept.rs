//! Which tokens policies keep, against sets made from the record of all queries.

use deft::NodeKey;
use deft::attention::Reduce;
use deft::retain::{Budget, Corm, H2o, HeadCompaction, Observe, Retention, Sinks, SnapKv};
use deft_tests::reference::scores::TokenScore;

use crate::retention::world::World;

/// How steep queries are: each finds a few tokens in a hundred important.
const STEEP: f32 = 10.0;

/// A prompt, and two branches that have decoded a different number of tokens.
fn tree(policy: &dyn Retention) -> (World, NodeKey, [NodeKey; 2]) {
    let mut world = World::new(64);
    let observe = policy.observe();
    let prompt = world.cache.insert_root().unwrap();
    world.run(&[(prompt, 200)], observe, STEEP);
    let leaves = world.cache.fork(prompt, 2).unwrap();
    let leaves = [leaves[0], leaves[1]];
    for step in 0..20 {
        let both = [(leaves[0], 1), (leaves[1], 1)];
        world.run(&both[..if step < 7 { 2 } else { 1 }], observe, STEEP);
    }
    (world, prompt, leaves)
}

fn rows(head: &HeadCompaction) -> Vec<u32> {
    assert!(head.is_selection());
    head.sources.iter().map(|source| source.row).collect()
}

/// Tokens of the prompt's full pages.
const TOKENS: u32 = 192;
/// How many tokens the branch sees that has come least far.
const NOW: u32 = 207;

#[test]
fn corm_keeps_what_one_of_the_last_queries_of_any_branch_found_important() {
    let mut policy = Corm { window: 12, recent: 30 };
    let (mut world, prompt, _) = tree(&policy);
    // Those that are older than the window do not count by their age.
    let right = world.scores(prompt, u32::MAX);
    let chosen = world.cache.select(&mut policy, prompt, 1.0).unwrap().unwrap();
    assert_eq!(chosen.tokens, TOKENS);
    let mut dropped = 0;
    for (head, right) in chosen.heads.iter().zip(&right) {
        let kept = rows(head);
        for token in 0..TOKENS {
            let keep = |last: u32| last + policy.window > NOW || NOW - token <= policy.recent;
            let [surely, perhaps] = right[token as usize].last_range.map(keep);
            let found = kept.contains(&token);
            assert!(found || !surely, "token {token} is gone, {:?}", right[token as usize]);
            assert!(!found || perhaps, "token {token} is there, {:?}", right[token as usize]);
            dropped += u32::from(!found);
        }
    }
    assert!((100..700).contains(&dropped), "{dropped} of {}", 4 * TOKENS);
}

/// Whether `kept` are the tokens of the largest numbers, those that are as large as the last to within rounding in any number.
fn assert_largest(kept: &[u32], numbers: &[f64], recent: u32, count: usize) {
    let is_recent = |token: u32| NOW - token <= recent;
    let others: Vec<u32> = (0..TOKENS).filter(|&token| !is_recent(token)).collect();
    assert_eq!(kept.len(), count);
    assert!((0..TOKENS).filter(|&token| is_recent(token)).all(|token| kept.contains(&token)));
    let number = |token: &u32| numbers[*token as usize];
    let (inside, outside): (Vec<u32>, Vec<u32>) =
        others.iter().partition(|token| kept.contains(token));
    let least = inside.iter().map(number).fold(f64::INFINITY, f64::min);
    let most = outside.iter().map(number).fold(0.0, f64::max);
    assert!(most <= least * (1.0 + 1e-4), "{most} is gone, {least} is there");
}

#[test]
fn h2o_keeps_the_largest_sums_over_all_queries_of_all_branches() {
    let mut policy = H2o { recent: 30, window: u32::MAX };
    let (mut world, prompt, _) = tree(&policy);
    let right = world.scores(prompt, u32::MAX);
    let chosen = world.cache.select(&mut policy, prompt, 0.5).unwrap().unwrap();
    for (head, right) in chosen.heads.iter().zip(&right) {
        let sums: Vec<f64> = right.iter().map(|score: &TokenScore| score.sum).collect();
        assert_largest(&rows(head), &sums, 30, TOKENS as usize / 2);
    }
}

#[test]
fn snapkv_keeps_neighbours_of_what_the_prompts_last_queries_looked_at() {
    let mut policy = SnapKv { window: 32, pool: 5 };
    let mut world = World::new(64);
    let prompt = world.cache.insert_root().unwrap();
    world.run(&[(prompt, 207)], policy.observe(), 2.0);
    let right = world.scores(prompt, 32);
    let chosen = world.cache.select(&mut policy, prompt, 0.4).unwrap().unwrap();
    for (head, right) in chosen.heads.iter().zip(&right) {
        let pooled = |token: usize| {
            let beside = token.saturating_sub(2)..(token + 3).min(TOKENS as usize);
            beside.map(|token| right[token].sum).fold(0.0, f64::max)
        };
        let pooled: Vec<f64> = (0..TOKENS as usize).map(pooled).collect();
        assert_largest(&rows(head), &pooled, 32, (f64::from(TOKENS) * 0.4) as usize);
    }
}

#[test]
fn sinks_keeps_the_first_and_the_newest_whatever_queries_say() {
    let mut policy = Sinks { sinks: 4, recent: 40 };
    let (mut world, prompt, leaves) = tree(&policy);
    let chosen = world.cache.select(&mut policy, prompt, 1.0).unwrap().unwrap();
    let right: Vec<u32> = (0..4).chain(NOW - 40..TOKENS).collect();
    assert!(chosen.heads.iter().all(|head| rows(head) == right));
    // The branch that has come farther is all that is left.
    world.cache.prune(leaves[1]).unwrap();
    let chosen = world.cache.select(&mut policy, prompt, 1.0).unwrap().unwrap();
    let right: Vec<u32> = (0..4).chain(220 - 40..TOKENS).collect();
    assert!(chosen.heads.iter().all(|head| rows(head) == right));
}

#[test]
fn a_shared_token_stays_while_one_branch_needs_it_that_others_do_not() {
    let mut policy = Corm { window: 8, recent: 16 };
    let (mut world, prompt, leaves) = tree(&policy);
    let chosen = world.cache.select(&mut policy, prompt, 1.0).unwrap().unwrap();
    // The last queries of each branch by itself.
    let needed = leaves.map(|leaf| world.scores_by(prompt, policy.window, |node| node == leaf));
    let ends = leaves.map(|leaf| world.cache.forest().context_length(leaf).unwrap() as u32);
    let (mut of_one, mut dropped) = (0, 0);
    for (head, chosen) in chosen.heads.iter().enumerate() {
        let kept = rows(chosen);
        for token in 0..TOKENS {
            let needs = [0, 1].map(|branch| {
                let [surely, _] = needed[branch][head][token as usize].last_range;
                surely + policy.window > ends[branch]
            });
            of_one += u32::from(needs[0] != needs[1]);
            dropped += u32::from(!kept.contains(&token));
            assert!(kept.contains(&token) || needs == [false; 2], "token {token}: {needs:?}");
        }
    }
    assert!(of_one > 50 && dropped > 50, "{of_one} of one branch, {dropped} dropped");
}

#[test]
fn a_branch_that_idles_keeps_what_its_last_queries_found_important() {
    let mut policy = Corm { window: 4, recent: 4 };
    let (mut world, prompt, leaves) = tree(&policy);
    let before = world.cache.select(&mut policy, prompt, 1.0).unwrap().unwrap();
    for _ in 0..30 {
        world.run(&[(leaves[0], 1)], policy.observe(), STEEP);
    }
    let after = world.cache.select(&mut policy, prompt, 1.0).unwrap().unwrap();
    for (before, after) in before.heads.iter().zip(&after.heads) {
        let after = rows(after);
        assert!(rows(before).iter().all(|token| after.contains(token)));
    }
    world.cache.prune(leaves[1]).unwrap();
    let alone = world.cache.select(&mut policy, prompt, 1.0).unwrap().unwrap();
    let kept = |chosen: &deft::retain::Compaction| -> usize {
        chosen.heads.iter().map(|head| head.rows.len()).sum()
    };
    assert!(kept(&alone) < kept(&after), "{} of {}", kept(&alone), kept(&after));
}

#[test]
fn a_branch_that_was_never_scored_holds_everything_above_it() {
    let mut policy = Corm { window: 4, recent: 4 };
    let mut world = World::new(64);
    let prompt = world.cache.insert_root().unwrap();
    world.run(&[(prompt, 200)], None, 2.0);
    let leaves = world.cache.fork(prompt, 2).unwrap();
    world.run(&[(leaves[0], 1)], policy.observe(), 2.0);
    assert_eq!(world.cache.select(&mut policy, prompt, 1.0).unwrap(), None);
    assert_eq!(world.cache.maintain(&mut policy, Budget::Tokens(0)).unwrap().nodes, 0);
    world.run(&[(leaves[1], 1)], policy.observe(), 2.0);
    assert_eq!(world.cache.maintain(&mut policy, Budget::Tokens(0)).unwrap().nodes, 1);
}

#[test]
fn a_budget_that_is_kept_changes_nothing_and_one_that_is_not_is_met_but_for_tails() {
    let mut policy = H2o { recent: 8, window: u32::MAX };
    let (mut world, _, _) = tree(&policy);
    let held = 200 + 20 + 7;
    let kept = world.cache.maintain(&mut policy, Budget::Tokens(held)).unwrap();
    assert_eq!(kept.nodes, 0);
    let done = world.cache.maintain(&mut policy, Budget::Tokens(held / 2)).unwrap();
    assert_eq!(
        (done.nodes, done.rows_before, done.rows_after),
        (1, 4 * 192, 4 * (192 * 113 / 227))
    );
    assert_eq!(done.pages, 1);
}

#[test]
fn scores_of_one_kind_are_not_taken_for_another() {
    let mut world = World::new(16);
    let prompt = world.cache.insert_root().unwrap();
    let observe = |reduce| Observe { reduce, window: 9 };
    world.run(&[(prompt, 70)], Some(observe(Reduce::Sum)), 1.0);
    let error = world.cache.maintain(&mut Corm { window: 9, recent: 9 }, Budget::Tokens(0));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("Sum") && error.contains("Last"), "{error}");
    assert!(world.cache.scores(prompt, 1, 1).unwrap().unwrap().iter().any(|&score| score != 0));
    world.cache.forget_scores().unwrap();
    assert_eq!(world.cache.scores(prompt, 1, 1).unwrap(), None);
    world.ask(&[(prompt, 3)], Some(observe(Reduce::Last)));
    let scores = world.cache.scores(prompt, 0, 0).unwrap().unwrap();
    assert_eq!(scores.len(), 64);
    assert!(scores.iter().all(|&last| last == 0 || (68..=70).contains(&last)), "{scores:?}");
}
