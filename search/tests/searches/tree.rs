//! Trees that searches grow: growth, pages, limits, and ending in any way.

use super::mock::AsciiCodec;
use super::{Custom, assert_empty, log_softmax, model, prompt, run, samples, with};
use deft_engine::{Select, Selected, TreeModel};
use deft_search::{
    BranchId, Event, Growth, PruneReason, SearchError, SearchMethod, SearchTree, TreeSearch,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

fn pick(rng: &mut SmallRng, tree: &SearchTree<'_>) -> BranchId {
    let count = tree.branches().count();
    let nth = rng.random_range(0..count);
    tree.branches().nth(nth).unwrap().0
}

fn growth_of(branch: BranchId, token: u32, score: f64) -> Growth {
    Growth { branch, token, score }
}

/// Grows some branches by one or several tokens, now and then releases one.
fn random_step(rng: &mut SmallRng, tree: &mut SearchTree<'_>) -> Result<(), SearchError> {
    while tree.branches().count() > 12 || (tree.branches().count() > 1 && rng.random_bool(0.2)) {
        let branch = pick(rng, tree);
        if branch != tree.root() {
            tree.release(branch, PruneReason::Lost)?;
        }
    }
    let mut growth = Vec::new();
    for _ in 0..rng.random_range(1..5) {
        let branch = pick(rng, tree);
        for _ in 0..if rng.random_bool(0.1) { 3 } else { 1 } {
            let token = rng.random_range(1..97);
            let score = rng.random();
            growth.push(growth_of(branch, token, score));
        }
    }
    tree.advance(&growth)?;
    Ok(())
}

#[test]
fn ten_thousand_steps_of_branching_and_pruning_leak_no_page_and_mix_no_paths() {
    let mut model = with(|config| (config.pages, config.context) = (20, 1 << 20));
    let mut rng = SmallRng::seed_from_u64(1);
    let mut method = Custom(|tree: &mut SearchTree<'_>| {
        tree.hold(tree.root())?;
        for step in 0..10_000 {
            random_step(&mut rng, tree)?;
            tree.model().forest().debug_assert_invariants();
            // Long branches go, so that reading paths back does not take forever.
            let long = tree.branches().filter(|(_, branch)| branch.tokens().len() > 150);
            for id in long.map(|(id, _)| id).collect::<Vec<_>>() {
                tree.release(id, PruneReason::Lost)?;
            }
            if step % 50 == 0 {
                assert_paths_are_whole(tree);
            }
        }
        assert!(tree.stats().moved > 0, "no chain was merged");
        assert!(tree.stats().pruned_for_pages > 0, "there were always pages");
        assert!(tree.stats().steps >= 10_000);
        Ok(())
    });
    run(&mut model, &mut method).unwrap();
}

/// Nodes on the way to each branch hold as many tokens as the branch says, and its row is the row that those
/// tokens have in another model without any tree.
fn assert_paths_are_whole(tree: &SearchTree<'_>) {
    let oracle = model(0);
    for (id, branch) in tree.branches() {
        let forest = tree.model().forest();
        let path: Vec<u32> = tree.prompt().iter().chain(branch.tokens()).copied().collect();
        assert_eq!(forest.context_length(branch.node()).unwrap(), path.len() as u64, "{id}");
        assert_eq!(branch.row().logits(), oracle.logits_after(&path), "{id}");
    }
}

#[test]
fn merging_a_chain_leaves_what_the_model_says_as_it_was() {
    let mut model = model(0);
    let mut merged = 0;
    let mut observer = |event: &Event<'_>| {
        if let Event::Compacted { nodes, tokens, .. } = event {
            assert!(nodes > &8 && tokens >= nodes);
            merged += 1;
        }
    };
    let mut method = Custom(|tree: &mut SearchTree<'_>| {
        let mut branch = tree.root();
        for step in 0..100 {
            // Fork at every token and drop the sibling: the worst case for pages.
            let grow = |token| growth_of(branch, token, 0.0);
            let grown = tree.advance(&[grow(1 + step % 90), grow(2 + step % 90)])?;
            tree.release(grown[1].unwrap(), PruneReason::Lost)?;
            branch = grown[0].unwrap();
            assert_paths_are_whole(tree);
        }
        Ok(())
    });
    let outcome = TreeSearch::new(&mut model, &AsciiCodec)
        .observer(&mut observer)
        .run(&prompt(), &mut method)
        .unwrap();
    assert_empty(&model);
    assert!(merged >= 8, "{merged} merges");
    let (pages, moved) = (outcome.stats.peak_pages, outcome.stats.moved);
    assert!(pages < 24, "{pages} pages held for a path of 100 tokens");
    assert!(moved <= 100, "{moved} tokens moved for 100");
    assert_eq!(outcome.stats.steps, 100, "a merge is no pass")
}

/// Forks at every token of `forked` and drops the sibling, and else grows as it is.
fn zigzag(steps: usize, forked: impl Fn(usize) -> bool) -> impl SearchMethod {
    Custom(move |tree: &mut SearchTree<'_>| {
        let mut branch = tree.root();
        for step in 0..steps {
            let grow = |token| growth_of(branch, token, f64::from(token));
            let tokens = if forked(step) { 2 } else { 1 };
            let growth: Vec<Growth> = (0..tokens).map(|at| grow(60 - at)).collect();
            let grown = tree.advance(&growth)?;
            for &sibling in grown.iter().skip(1).flatten() {
                tree.release(sibling, PruneReason::Lost)?;
            }
            branch = grown[0].expect("the best has room");
        }
        assert_eq!(tree.branch(branch)?.tokens().len(), steps);
        Ok(())
    })
}

#[test]
fn a_chain_longer_than_a_pass_of_the_model_is_merged() {
    let mut model = with(|config| (config.pages, config.max_rows) = (1000, 256));
    let forked = |step| !(8..308).contains(&step);
    let outcome = run(&mut model, &mut zigzag(400, forked)).unwrap();
    assert_eq!(outcome.stats.steps, 400);
    assert!(outcome.stats.moved > 0);
}

#[test]
fn a_search_short_of_pages_merges_or_prunes_and_goes_on() {
    let mut model = with(|config| (config.pages, config.max_rows) = (10, 256));
    let outcome = run(&mut model, &mut zigzag(480, |step| step % 40 < 8)).unwrap();
    assert!(outcome.stats.moved > 0);
    // The path fills nine of ten pages: a sibling has the tenth.
    assert_eq!(outcome.stats.steps, 480);
}

#[test]
fn a_chain_longer_than_a_draft_may_be_is_merged() {
    let mut model = with(|config| (config.pages, config.context, config.memory) = (70, 1 << 20, 8));
    let outcome = run(&mut model, &mut zigzag(4200, |step| step % 700 < 3)).unwrap();
    assert_eq!(outcome.stats.steps, 4200);
}

#[test]
fn branches_that_are_gone_are_named() {
    let mut method = Custom(|tree: &mut SearchTree<'_>| {
        let branch = tree.root();
        let grow = |token| growth_of(branch, token, 0.0);
        tree.advance(&[grow(1), grow(2)])?;
        let error = tree.advance(&[grow(3)]).unwrap_err();
        assert_eq!(error.to_string(), "branch 0 is not a branch of this search any more");
        assert_eq!(tree.branches().count(), 2);
        Ok(())
    });
    run(&mut model(0), &mut method).unwrap();
}

#[test]
fn searches_leave_the_trees_of_others_alone() {
    let mut model = model(8);
    let mut logits = Vec::new();
    let other = model.insert_prompt(&[5; 100], &mut logits).unwrap();
    let (before, free) = (model.path(other).unwrap(), model.forest().pool().free());
    TreeSearch::new(&mut model, &AsciiCodec).run(&prompt(), &mut samples(4, 50)).unwrap();
    assert_eq!(model.path(other).unwrap(), before);
    assert_eq!(model.forest().pool().free(), free);
}

#[test]
fn when_pages_run_out_the_lowest_scored_leaf_goes_and_the_rest_is_unharmed() {
    // One page for the prompt, 3 for leaves.
    let mut model = with(|config| config.pages = 4);
    let mut method = Custom(|tree: &mut SearchTree<'_>| {
        let branch = tree.root();
        let scores = [0.3, 0.1, 0.5, 0.2, 0.4];
        let growth = scores.iter().zip(1..).map(|(&score, token)| growth_of(branch, token, score));
        let grown = tree.advance(&growth.collect::<Vec<_>>())?;
        let alive: Vec<bool> = grown.iter().map(Option::is_some).collect();
        assert_eq!(alive, [true, false, true, false, true]);
        assert_eq!(tree.stats().pruned_for_pages, 2);
        assert_paths_are_whole(tree);
        Ok(())
    });
    run(&mut model, &mut method).unwrap();
}

#[test]
fn a_branch_says_what_was_asked_for_and_grows_by_nothing_else() {
    let mut model = model(3);
    let mut method = Custom(|tree: &mut SearchTree<'_>| {
        let growth = [1, 2, 3].map(|token| growth_of(tree.root(), token, 0.0));
        let draw = Select::Draw { temperature: 0.7, at: vec![0.2, 0.9] };
        let select = [Select::Top { k: 2 }, draw, Select::Of(vec![5])];
        let error = tree.advance_select(&growth, &select[..2]).unwrap_err().to_string();
        assert_eq!(error, "select is 2 requests for 3 tokens; it must be a request for each");
        let grown = tree.advance_select(&growth, &select)?;
        for (place, (id, select)) in grown.into_iter().flatten().zip(&select).enumerate() {
            let branch = tree.branch(id)?;
            let path: Vec<u32> = tree.prompt().iter().chain(branch.tokens()).copied().collect();
            let logits = self::model(3).logits_after(&path);
            let Selected::Tokens { ids, log_probs } = select.answer(&logits) else {
                unreachable!("tokens were asked for");
            };
            assert!(branch.row().logits().is_empty());
            for (&token, log_prob) in ids.iter().zip(log_probs) {
                assert_eq!(branch.row().log_prob(token), log_prob, "{place}");
                assert!((log_softmax(&logits)[token as usize] - log_prob).abs() < 1e-12);
            }
            let other = (0..97).find(|token| !ids.contains(token)).unwrap();
            let error = tree.advance(&[growth_of(id, other, 0.0)]).unwrap_err().to_string();
            assert_eq!(error, format!("token is {other}; it must be one that was asked for"));
            tree.advance(&[growth_of(id, ids[0], 0.0)])?;
        }
        Ok(())
    });
    run(&mut model, &mut method).unwrap();
}
