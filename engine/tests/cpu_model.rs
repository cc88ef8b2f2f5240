//! The CPU's model against its definition in f64, path by path.

mod common;

use common::{Definition, assert_rows, definition, tiny, tokens};
use deft::cache::LayerMap;
use deft::{Grouping, NodeKey};
use deft_engine::{CpuModel, CpuOptions, DraftToken, Traffic, TreeModel, Weights};

const GROUPINGS: [Grouping; 4] =
    [Grouping::Flatten, Grouping::Node, Grouping::NodeChunk, Grouping::PerQuery];

/// Bytes of a page of the tiny model: K and V of 64 tokens, 2 layers, 2 KV heads of 64 in f32.
const PAGE: u64 = 2 * 64 * 2 * 2 * 64 * 4;

fn model(pages: u64) -> (CpuModel, Definition) {
    model_that_keeps(0, pages)
}

/// A model of whose `pages` pages prompts of the past may hold `kept`.
fn model_that_keeps(kept: u64, pages: u64) -> (CpuModel, Definition) {
    let weights = Weights::synthetic(tiny(false), 11).unwrap();
    let options = CpuOptions {
        capacity_bytes: pages * PAGE,
        prefix_bytes: kept * PAGE,
        ..CpuOptions::default()
    };
    let model = CpuModel::load(&weights, options, |_, _| {}).unwrap();
    (model, definition(&weights))
}

fn last(reference: &Definition, path: &[u32]) -> Vec<f64> {
    reference.logits(path).pop().unwrap()
}

/// What may not change when a call is refused.
fn state(model: &CpuModel) -> (usize, u32, Vec<u32>, Traffic) {
    let forest = model.forest();
    let lengths = forest.lengths().iter().copied().filter(|&length| length > 0);
    let mut lengths: Vec<u32> = lengths.collect();
    lengths.sort_unstable();
    let (nodes, free) = (forest.node_count(), forest.pool().free());
    (nodes, free, lengths, model.traffic())
}

#[test]
fn prompts_of_any_length_give_the_last_token_s_logits() {
    let (mut model, reference) = model(64);
    let prompt = tokens(1, 300);
    let expected = reference.logits(&prompt);
    for length in [1, 2, 63, 64, 65, 127, 128, 129, 191, 193, 300] {
        let mut logits = vec![f32::NAN; 3];
        let root = model.insert_prompt(&prompt[..length], &mut logits).unwrap();
        assert_rows(&logits, [&expected[length - 1]]);
        assert_eq!(model.forest().length(root).unwrap() as usize, length);
        model.prune(root).unwrap();
    }
    assert_eq!(model.forest().pool().live(), 0);
}

#[test]
fn a_tied_head_is_the_embedding() {
    let weights = Weights::synthetic(tiny(true), 3).unwrap();
    let mut model = CpuModel::load(&weights, CpuOptions::default(), |_, _| {}).unwrap();
    let mut logits = Vec::new();
    let prompt = tokens(2, 5);
    model.insert_prompt(&prompt, &mut logits).unwrap();
    assert_rows(&logits, [&last(&definition(&weights), &prompt)]);
}

#[test]
fn leaves_of_a_growing_and_shrinking_tree_see_their_own_paths() {
    for grouping in GROUPINGS {
        let (mut model, reference) = model(64);
        model.set_grouping(grouping);
        let mut logits = Vec::new();
        let prompt = tokens(4, 62);
        let root = model.insert_prompt(&prompt, &mut logits).unwrap();
        let mut leaves: Vec<(NodeKey, Vec<u32>)> = Vec::new();
        for node in model.fork(root, 3).unwrap() {
            leaves.push((node, prompt.clone()));
        }
        for round in 0..12 {
            let next = tokens(100 + round, leaves.len());
            for ((_, path), &token) in leaves.iter_mut().zip(&next) {
                path.push(token);
            }
            let keys: Vec<NodeKey> = leaves.iter().map(|(key, _)| *key).collect();
            logits.fill(f32::NAN);
            model.step(&keys, &next, &mut logits).unwrap();
            let expected = leaves.iter().map(|(_, path)| last(&reference, path));
            assert_rows(&logits, &expected.collect::<Vec<_>>());
            match round {
                3 => {
                    // The second leaf branches; its children come before the third, which is older.
                    let (parent, path) = leaves.remove(1);
                    for child in model.fork(parent, 2).unwrap() {
                        leaves.insert(0, (child, path.clone()));
                    }
                }
                7 => {
                    let (gone, _) = leaves.remove(2);
                    model.prune(gone).unwrap();
                }
                9 => leaves.reverse(),
                _ => {}
            }
        }
    }
}

#[test]
fn timing_attention_changes_no_logits() {
    let (mut model, reference) = model(64);
    let mut logits = Vec::new();
    let prompt = tokens(8, 70);
    let root = model.insert_prompt(&prompt, &mut logits).unwrap();
    let leaves = model.fork(root, 3).unwrap();
    model.step(&leaves, &[1, 2, 3], &mut logits).unwrap();
    let before = state(&model);
    for grouping in GROUPINGS {
        let time = model.time_attention(&leaves, grouping).unwrap();
        assert!(time > std::time::Duration::ZERO);
    }
    // Of other leaves than the last pass's, too.
    model.time_attention(&leaves[1..2], Grouping::Flatten).unwrap();
    assert_eq!(state(&model), before);
    model.step(&leaves, &[4, 5, 6], &mut logits).unwrap();
    let path = |tail: [u32; 2]| last(&reference, &[&prompt[..], &tail].concat());
    assert_rows(&logits, &[path([1, 4]), path([2, 5]), path([3, 6])]);
}

/// A draft tree of eight tokens below `trunk`, and the path of each from the trunk on.
fn draft() -> (Vec<DraftToken>, Vec<Vec<u32>>) {
    let parents = [None, Some(0), Some(1), Some(0), None, Some(4), Some(2), Some(6)];
    let tokens = tokens(77, parents.len());
    let mut paths: Vec<Vec<u32>> = Vec::new();
    for (&token, &parent) in tokens.iter().zip(&parents) {
        let mut path = parent.map_or(Vec::new(), |parent: u32| paths[parent as usize].clone());
        path.push(token);
        paths.push(path);
    }
    let draft = parents.iter().zip(&tokens);
    let draft = draft.map(|(&parent, &token)| DraftToken { parent, token });
    (draft.collect(), paths)
}

#[test]
fn a_draft_is_verified_and_its_path_joins_the_trunk() {
    for (grouping, length) in GROUPINGS.into_iter().zip([60, 61, 64, 130]) {
        let (mut model, reference) = model(64);
        model.set_grouping(grouping);
        let mut path = tokens(5, length);
        let mut logits = Vec::new();
        let trunk = model.insert_prompt(&path, &mut logits).unwrap();
        let (draft, below) = draft();
        let keys = model.verify(trunk, &draft, &mut logits).unwrap();
        let whole = |below: &[u32]| [&path[..], below].concat();
        let expected: Vec<_> = below.iter().map(|below| last(&reference, &whole(below))).collect();
        assert_rows(&logits, &expected);

        model.accept(trunk, &[keys[0], keys[1], keys[2], keys[6]]).unwrap();
        path.extend(&below[6]);
        path.push(9);
        model.step(&[trunk], &[9], &mut logits).unwrap();
        assert_rows(&logits, [&last(&reference, &path)]);

        // Nothing accepted: as if there had been no draft.
        let before = model.forest().pool().free();
        model.verify(trunk, &draft, &mut logits).unwrap();
        model.accept(trunk, &[]).unwrap();
        assert_eq!(model.forest().pool().free(), before);
        path.push(10);
        model.step(&[trunk], &[10], &mut logits).unwrap();
        assert_rows(&logits, [&last(&reference, &path)]);
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let (mut model, reference) = model(5);
    let mut logits = Vec::new();
    let mut path = tokens(6, 127);
    let root = model.insert_prompt(&path, &mut logits).unwrap();
    let leaves = model.fork(root, 2).unwrap();
    let before = state(&model);

    let refused = model.insert_prompt(&tokens(1, 193), &mut logits).unwrap_err();
    assert!(refused.to_string().contains("page"), "{refused}");
    let refused = model.insert_prompt(&tokens(1, 301), &mut logits).unwrap_err();
    let message = "a path of 301 tokens is longer than the context of 300";
    assert_eq!(refused.to_string(), message);
    let refused = model.insert_prompt(&[], &mut logits).unwrap_err();
    assert_eq!(refused.to_string(), "tokens is empty: at least one token is needed");
    let refused = model.step(&leaves, &[1, 97], &mut logits).unwrap_err();
    let message = "token 97 is not below the vocabulary's size, 97";
    assert_eq!(refused.to_string(), message);
    let refused = model.step(&leaves, &[1], &mut logits).unwrap_err();
    assert!(refused.to_string().starts_with("2 leaves and 1 tokens"));
    assert!(model.step(&[], &[], &mut logits).is_err());
    let twice = [leaves[0], leaves[0]];
    assert!(model.step(&twice, &[1, 2], &mut logits).is_err());
    assert!(model.step(&[root], &[1], &mut logits).is_err(), "it was forked");
    let token = |parent, token| DraftToken { parent, token };
    for draft in [&[][..], &[token(Some(0), 1)], &[token(None, 97)]] {
        assert!(model.verify(leaves[0], draft, &mut logits).is_err());
    }
    let chain: Vec<_> = (0..174_u32).map(|at| token(at.checked_sub(1), at % 97)).collect();
    let refused = model.verify(leaves[0], &chain, &mut logits).unwrap_err();
    let message = "a path of 301 tokens is longer than the context of 300";
    assert_eq!(refused.to_string(), message);
    assert_eq!(state(&model), before);

    model.step(&leaves, &[1, 2], &mut logits).unwrap();
    path.push(2);
    assert_rows(&logits[97..], [&last(&reference, &path)]);
}

#[test]
fn a_step_without_pages_grows_no_leaf() {
    let (mut model, reference) = model(3);
    let mut logits = Vec::new();
    let mut path = tokens(6, 64);
    let root = model.insert_prompt(&path, &mut logits).unwrap();
    let leaves = model.fork(root, 3).unwrap();
    model.step(&leaves[..1], &[5], &mut logits).unwrap();
    let before = state(&model);
    let refused = model.step(&leaves, &[1, 2, 3], &mut logits).unwrap_err();
    assert!(refused.to_string().contains("page"), "{refused}");
    assert_eq!(state(&model), before);
    path.extend([5, 6]);
    model.step(&leaves[..1], &[6], &mut logits).unwrap();
    assert_rows(&logits, [&last(&reference, &path)]);
}

#[test]
fn traffic_counts_a_shared_prompt_once_and_once_a_query() {
    let (mut model, _) = model(64);
    let mut logits = Vec::new();
    let root = model.insert_prompt(&tokens(1, 100), &mut logits).unwrap();
    let prefill = model.traffic();
    assert_eq!(prefill.read, prefill.per_query);
    let leaves = model.fork(root, 4).unwrap();
    model.step(&leaves, &[1, 2, 3, 4], &mut logits).unwrap();
    let after = model.traffic();
    // 100 tokens are 13 groups of eight, a leaf's one token is one; both layers, K and V.
    let group = 8 * PAGE / 64;
    assert_eq!(after.per_query - prefill.per_query, 4 * 14 * group);
    assert_eq!(after.read - prefill.read, (13 + 4) * group);
}

#[test]
fn loading_reports_every_parameter() {
    let weights = Weights::synthetic(tiny(false), 1).unwrap();
    let mut heard = Vec::new();
    CpuModel::load(&weights, CpuOptions::default(), |done, all| heard.push((done, all))).unwrap();
    let all = weights.config().parameters();
    assert_eq!(heard.last(), Some(&(all, all)));
    assert!(heard.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

#[test]
fn a_second_prompt_runs_only_what_is_new_and_says_so() {
    let (mut model, reference) = model_that_keeps(64, 64);
    let system = tokens(21, 150);
    let question = |seed, count| [system.clone(), tokens(seed, count)].concat();
    let (first, second) = (question(22, 40), question(23, 3));
    let mut logits = Vec::new();
    let mut leaves = Vec::new();
    // The third is the first again: all but its last token is held.
    for (prompt, saved) in [(&first, 0), (&second, 150), (&first, 189)] {
        let before = model.prefix_stats().tokens_saved;
        leaves.push(model.insert_prompt(prompt, &mut logits).unwrap());
        assert_eq!(model.prefix_stats().tokens_saved - before, saved);
        assert_rows(&logits, [&last(&reference, prompt)]);
    }
    model.step(&leaves, &[3, 4, 5], &mut logits).unwrap();
    let paths = [(&first, 3), (&second, 4), (&first, 5)];
    let expected = paths.map(|(prompt, next)| last(&reference, &[&prompt[..], &[next]].concat()));
    assert_rows(&logits, expected.each_ref());
    for leaf in leaves {
        model.prune(leaf).unwrap();
    }
    let stats = model.prefix_stats();
    assert_eq!((stats.opens, stats.hits), (3, 2));
    assert_eq!(model.forest().pool().live(), stats.pages);
    assert_eq!(model.make_room(64).unwrap(), 64);
}

#[test]
fn prompts_of_the_past_make_room_for_new_ones_and_for_steps() {
    let (mut model, reference) = model_that_keeps(4, 4);
    let mut logits = Vec::new();
    for seed in 30..34 {
        let prompt = tokens(seed, 150);
        let leaf = model.insert_prompt(&prompt, &mut logits).unwrap();
        assert_rows(&logits, [&last(&reference, &prompt)]);
        model.step(&[leaf], &[1], &mut logits).unwrap();
        model.prune(leaf).unwrap();
        assert_eq!(model.forest().pool().live(), 3);
    }
    assert_eq!(model.prefix_stats().evictions, 3);
    // One too long for the pool is refused before any of it runs.
    let before = model.traffic();
    assert!(model.insert_prompt(&tokens(40, 257), &mut logits).is_err());
    assert_eq!(model.traffic(), before);
    assert_eq!(model.forest().node_count(), model.prefix_stats().nodes);
}

#[test]
fn a_saved_prompt_survives_its_model_and_is_no_other_model_s() {
    let path = std::env::temp_dir().join(format!("deft-prompt-{}.kv", std::process::id()));
    let (mut first, reference) = model_that_keeps(64, 64);
    let system = tokens(50, 130);
    let mut logits = Vec::new();
    let leaf = first.insert_prompt(&system, &mut logits).unwrap();
    first.save_prompt(leaf, &path).unwrap();
    drop(first);

    let (mut second, _) = model_that_keeps(64, 64);
    let held = second.load_prompt(&path).unwrap();
    let prompt = [system, tokens(51, 20)].concat();
    second.insert_prompt(&prompt, &mut logits).unwrap();
    assert_rows(&logits, [&last(&reference, &prompt)]);
    assert_eq!(second.prefix_stats().tokens_saved, 130);
    second.prune(held).unwrap();

    let weights = Weights::synthetic(tiny(false), 12).unwrap();
    let mut other = CpuModel::load(&weights, CpuOptions::default(), |_, _| {}).unwrap();
    let error = other.load_prompt(&path).unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    assert!(error.contains("identity of the saved prefix"), "{error}");
    assert_eq!(other.forest().node_count(), 0);
}

#[test]
fn a_demoted_prompt_comes_back_by_passes_and_loads() {
    let (mut model, reference) = model_that_keeps(64, 64);
    let system = tokens(60, 270);
    let mut logits = Vec::new();
    let leaf = model.insert_prompt(&system, &mut logits).unwrap();
    let demoted = model.demote_prompt(leaf).unwrap();
    assert_eq!(model.forest().pool().live(), 0);
    let mut file = std::io::Cursor::new(demoted.bytes().to_vec());
    for of_file in [false, true] {
        let restored = match of_file {
            true => model.restore_prompt(&mut file).unwrap(),
            false => model.restore_prompt(&demoted).unwrap(),
        };
        assert_eq!(restored.computed + restored.loaded, 270);
        let prompt = [&system[..], &tokens(61, 20)].concat();
        let leaf = model.insert_prompt(&prompt, &mut logits).unwrap();
        assert_rows(&logits, [&last(&reference, &prompt)]);
        for leaf in [leaf, restored.node] {
            model.prune(leaf).unwrap();
        }
        model.make_room(64).unwrap();
        assert_eq!(model.forest().node_count(), 0);
    }
    // What was not kept cannot be demoted.
    let (mut other, _) = model_that_keeps(0, 64);
    let leaf = other.insert_prompt(&system, &mut logits).unwrap();
    assert!(other.demote_prompt(leaf).is_err());
    assert_eq!(other.forest().length(leaf), Ok(270));
}

#[test]
fn layers_share_as_a_map_says_and_no_longer_when_it_goes() {
    let (mut model, _) = model(64);
    let prompt = tokens(70, 100);
    let mut whole = Vec::new();
    model.insert_prompt(&prompt, &mut whole).unwrap();
    let state = model.final_state().to_vec();
    let mut run = |sources: Option<&[u32]>| {
        let map = sources.map(|sources| LayerMap::new(sources).unwrap());
        model.set_layer_map(map).unwrap();
        let mut logits = Vec::new();
        let root = model.insert_prompt(&prompt, &mut logits).unwrap();
        (logits, model.final_state().to_vec(), model.mean_kv(root).unwrap())
    };
    let (own, own_state, means) = run(Some(&[0, 1]));
    assert_eq!((own, own_state), (whole.clone(), state.clone()));
    assert!(means.len() == 2 && means[0] != means[1]);
    let (shared, shared_state, means) = run(Some(&[0, 0]));
    assert!(shared != whole && shared_state != state);
    assert_eq!(means[0], means[1]);
    assert_eq!(run(None).0, whole);
    let refused = model.set_layer_map(Some(LayerMap::new(&[0]).unwrap())).unwrap_err();
    assert_eq!(refused.to_string(), "the layer map is of 1 layers; it must be of 2");
}
