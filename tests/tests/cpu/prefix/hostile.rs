//! What an index refuses, with the argument, the value and the limit, and without changing anything.

use deft::cache::PagePool;
use deft::prefix::{PrefixError, PrefixIndex};
use deft::tree::TokenForest;
use deft::{CacheError, DType, Device, TreeCache};

const PAGE_BYTES: u64 = 64 * 64 * 2 * 4;

fn cache(prefix_bytes: u64) -> Result<TreeCache, CacheError> {
    TreeCache::builder(&Device::cpu())
        .layers(1)
        .heads(1, 1, 64)
        .dtype(DType::F32)
        .capacity_bytes(16 * PAGE_BYTES)
        .prefix_bytes(prefix_bytes)
        .build()
}

fn refuse<T: std::fmt::Debug>(result: Result<T, CacheError>) -> String {
    result.unwrap_err().to_string()
}

/// A cache with the sealed sequence `0..100`, its node, and the leaf below.
fn sealed() -> (TreeCache, deft::NodeKey, deft::NodeKey) {
    let mut cache = cache(1 << 30).unwrap();
    let tokens: Vec<u32> = (0..100).collect();
    let node = cache.open(&tokens, 7).unwrap().node;
    cache.extend(&[node], 100).unwrap();
    let leaf = cache.seal(node, &tokens, 7).unwrap();
    (cache, node, leaf)
}

#[test]
fn an_empty_sequence_is_refused() {
    let (mut cache, ..) = sealed();
    assert!(refuse(cache.open(&[], 7)).starts_with("tokens is empty"));
    assert_eq!(cache.prefix_stats().opens, 1);
}

#[test]
fn ids_that_are_not_the_path_s_are_refused() {
    let (mut cache, _, leaf) = sealed();
    cache.extend(&[leaf], 2).unwrap();
    let mut tokens: Vec<u32> = (0..102).collect();
    let before = cache.prefix_stats();
    let error = refuse(cache.seal(leaf, &tokens[..101], 7));
    assert!(error.contains("101 ids") && error.contains("102 tokens"), "{error}");
    let error = refuse(cache.seal(leaf, &tokens, 8));
    assert!(error.contains("salt is 8") && error.contains("under 7"), "{error}");
    tokens[40] = 9;
    let error = refuse(cache.seal(leaf, &tokens, 7));
    assert!(error.contains("tokens[40] is 9") && error.contains("with 40 there"), "{error}");
    assert_eq!(cache.prefix_stats(), before);
    tokens[40] = 40;
    cache.seal(leaf, &tokens, 7).unwrap();
    assert_eq!(cache.open(&tokens, 7).unwrap().matched, 102);
}

#[test]
fn another_salt_finds_nothing() {
    let (mut cache, ..) = sealed();
    let tokens: Vec<u32> = (0..100).collect();
    assert_eq!(cache.open(&tokens, 8).unwrap().matched, 0);
    assert_eq!(cache.open(&tokens, 7).unwrap().matched, 100);
}

#[test]
fn nodes_of_another_forest_and_nodes_that_are_gone_are_refused() {
    let (mut cache, node, leaf) = sealed();
    let (mut other, foreign, foreign_leaf) = sealed();
    for key in [foreign, foreign_leaf, leaf] {
        let error = refuse(cache.pin(key));
        assert!(error.contains("is not in the prefix index"), "{error}");
        assert!(cache.unpin(key).is_err());
    }
    assert!(refuse(cache.seal(foreign_leaf, &[1], 7)).contains("not a node of this forest"));
    assert!(refuse(cache.prune(foreign)).contains("not a node of this forest"));
    assert!(refuse(cache.seal(node, &[1; 100], 7)).contains("has been forked"));
    other.prune(foreign).unwrap();
    assert!(refuse(other.pin(foreign)).contains("is not in the prefix index"));
    assert_eq!(other.prefix_stats().nodes, 0);
}

#[test]
fn a_pinned_node_is_neither_pruned_nor_evicted_and_loses_no_pin_it_has_not() {
    let (mut cache, node, leaf) = sealed();
    cache.prune(leaf).unwrap();
    cache.pin(node).unwrap();
    assert!(refuse(cache.prune(node)).contains("is pinned"));
    assert_eq!(cache.make_room(16).unwrap(), 14);
    cache.unpin(node).unwrap();
    assert!(refuse(cache.unpin(node)).contains("no pin"));
    assert_eq!(cache.make_room(16).unwrap(), 16);
    assert!(refuse(cache.unpin(node)).contains("is not in the prefix index"));
}

#[test]
fn a_sealed_prefix_does_not_merge_with_what_is_below_it() {
    let (mut cache, node, leaf) = sealed();
    cache.extend(&[leaf], 1).unwrap();
    assert!(refuse(cache.merge_chain(node)).contains("is in the prefix index"));
    cache.merge_chain(leaf).unwrap();
}

#[test]
fn a_node_below_one_that_was_never_sealed_is_refused() {
    let mut forest = TokenForest::new(PagePool::new(4).unwrap());
    let mut index = PrefixIndex::new(4);
    let root = forest.insert_root(3).unwrap();
    let leaf = forest.fork(root, 1).unwrap()[0];
    forest.append(leaf, 1).unwrap();
    let refused = index.seal(&mut forest, leaf, &[1, 2, 3, 4], 0);
    assert_eq!(refused, Err(PrefixError::NotIndexed { node: root }));
}

#[test]
fn a_budget_below_a_page_is_refused_and_none_at_all_keeps_nothing() {
    let error = refuse(cache(PAGE_BYTES - 1));
    assert_eq!(error, "prefix_bytes is 32767, but a page takes 32768 bytes; 0 keeps nothing");
    for (bytes, kept) in [(0, 0), (PAGE_BYTES, 64)] {
        let mut cache = cache(bytes).unwrap();
        for tokens in [(0..65).collect::<Vec<u32>>(), (0..64).collect()] {
            let node = cache.open(&tokens, 0).unwrap().node;
            cache.extend(&[node], tokens.len() as u32).unwrap();
            let leaf = cache.seal(node, &tokens, 0).unwrap();
            // 65 tokens take two pages: too many for either budget.
            assert_eq!(leaf == node, tokens.len() == 65 || bytes == 0);
            cache.prune(leaf).unwrap();
        }
        let all: Vec<u32> = (0..65).collect();
        assert_eq!(cache.open(&all, 0).unwrap().matched, kept);
    }
}

#[test]
fn a_batch_for_which_pages_are_short_takes_those_of_the_prompts_used_longest_ago() {
    let mut cache = cache(1 << 30).unwrap();
    let prompt = |i: u32| -> Vec<u32> { (0..64 * 5).map(|token| token + 1000 * i).collect() };
    for i in 0..3 {
        let node = cache.open(&prompt(i), 0).unwrap().node;
        cache.batch(&[(node, 320)]).unwrap();
        let leaf = cache.seal(node, &prompt(i), 0).unwrap();
        cache.prune(leaf).unwrap();
    }
    assert_eq!(cache.forest().pool().free(), 1);
    let leaf = cache.open(&prompt(0), 0).unwrap().node;
    cache.prune(leaf).unwrap();
    let root = cache.insert_root().unwrap();
    cache.batch(&[(root, 6 * 64)]).unwrap();
    let mut matched = |i| cache.open(&prompt(i), 0).unwrap().matched;
    assert_eq!([matched(0), matched(1), matched(2)], [320, 0, 320]);
    assert_eq!(cache.prefix_stats().evictions, 1);
    // Now all are in use, or will be.
    assert!(refuse(cache.batch(&[(root, 640)])).contains("out of pages"));
}
