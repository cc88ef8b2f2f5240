//! What compacted nodes, and compactions, are refused; nothing is changed then.

use deft::cache::{PagedOrder, PagedTable, PoolError};
use deft::prefix::PrefixError;
use deft::retain::{Compaction, CompactionError, HeadCompaction};
use deft::tree::ForestError;
use deft::{CacheError, DType, Device, Kv, KvFormat, NodeKey, TreeCache};

/// A cache of some pages, one layer, one KV head.
fn cache(pages: u64) -> TreeCache {
    let builder = TreeCache::builder(&Device::cpu()).layers(1).heads(2, 1, 64).dtype(DType::F32);
    builder.capacity_bytes(pages << 15).prefix_bytes(16 << 15).build().unwrap()
}

fn fill(cache: &mut TreeCache, node: NodeKey, tokens: u32) {
    let batch = cache.batch(&[(node, tokens)]).unwrap();
    let rows: Vec<f32> = (0..tokens * 64).map(|i| (i % 97) as f32 / 50.0).collect();
    cache.append(0, &batch, Kv::new(&rows, &rows)).unwrap();
}

fn every(step: usize, tokens: u32) -> Compaction {
    Compaction { tokens, heads: vec![HeadCompaction::keep((0..tokens).step_by(step))] }
}

/// A root of 200 tokens whose first 192 have 48 rows left.
fn compacted() -> (TreeCache, NodeKey) {
    let mut cache = cache(64);
    let root = cache.insert_root().unwrap();
    fill(&mut cache, root, 200);
    assert_eq!(cache.compact_node(root, &every(4, 192)).unwrap(), 2);
    (cache, root)
}

fn forest_error<T: std::fmt::Debug>(result: Result<T, CacheError>) -> ForestError {
    match result {
        Err(CacheError::Forest(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_needs_every_token_is_refused_by_name() {
    let (mut cache, root) = compacted();
    let refused = ForestError::Compacted { node: root, tokens: 192 };
    let format = "fp8".parse().unwrap();
    assert_eq!(forest_error(cache.seal_as(root, format)), refused);
    assert_eq!(forest_error(cache.seal_as(root, KvFormat::Native)), refused);
    let sealed = cache.seal_as(root, KvFormat::Compacted).unwrap_err();
    assert!(matches!(sealed, CacheError::SealedAsCompacted), "{sealed}");
    let table = PagedTable { order: PagedOrder::Nhd, page_size: 256, pages: &[0] };
    let [mut k, mut v] = [(); 2].map(|()| vec![0.0_f32; 256 * 64]);
    let exported = cache.export(0, root, 191..200, &table, &mut k, &mut v);
    assert_eq!(forest_error(exported), refused);
    cache.export(0, root, 192..200, &table, &mut k, &mut v).unwrap();
    assert_eq!(forest_error(cache.import(0, root, 0..3, &table, &k, &v)), refused);
    assert_eq!(forest_error(cache.batch_held(&[(root, 9)])), refused);
    cache.batch_held(&[(root, 8)]).unwrap();
    assert_eq!(forest_error(cache.shrink(&[root], 9)), refused);
    let tokens: Vec<u32> = (0..200).collect();
    assert!(matches!(
        cache.seal(root, &tokens, 0),
        Err(CacheError::Prefix(PrefixError::Forest(error))) if error == refused
    ));
    let leaf = cache.fork(root, 1).unwrap()[0];
    fill(&mut cache, leaf, 64);
    cache.compact_node(leaf, &every(2, 64)).unwrap();
    let of_leaf = ForestError::Compacted { node: leaf, tokens: 64 };
    assert_eq!(forest_error(cache.merge_chain(root)), of_leaf);
    let text = refused.to_string();
    assert!(
        text.ends_with("are compacted: their keys and values are not there one by one"),
        "{text}"
    );
    cache.forest().debug_assert_invariants();
}

#[test]
fn a_compaction_of_other_rows_than_the_nodes_is_refused_and_changes_nothing() {
    let (mut cache, root) = compacted();
    let epoch = cache.forest().shape_epoch();
    let fewer = every(1, 128);
    let range = ForestError::TokenRange { node: root, begin: 192, end: 128, length: 200 };
    assert_eq!(forest_error(cache.compact_node(root, &fewer)), range);
    let range = ForestError::TokenRange { node: root, begin: 192, end: 256, length: 200 };
    assert_eq!(forest_error(cache.compact_node(root, &every(1, 256))), range);
    // 48 rows are left.
    let error = cache.compact_node(root, &every(48, 192)).unwrap_err();
    let no_row = CompactionError::NoRow { head: 0, list: "sources", index: 1, row: 48, rows: 48 };
    assert!(matches!(error, CacheError::Compaction(found) if found == no_row), "{error}");
    let none = Compaction { tokens: 192, heads: vec![] };
    let error = cache.compact_node(root, &none).unwrap_err();
    assert!(matches!(error, CacheError::Compaction(CompactionError::Heads { .. })), "{error}");
    let leaf = cache.fork(root, 1).unwrap()[0];
    fill(&mut cache, leaf, 64);
    cache.seal_as(leaf, "fp8".parse().unwrap()).unwrap();
    let other = ForestError::OtherFormat { node: leaf, format: "fp8".parse().unwrap() };
    assert_eq!(forest_error(cache.compact_node(leaf, &every(2, 64))), other);
    assert_eq!(cache.forest().shape_epoch() - epoch, 2, "the fork and the sealing");
}

#[test]
fn without_a_free_page_nothing_is_compacted() {
    let mut cache = cache(16);
    let root = cache.insert_root().unwrap();
    fill(&mut cache, root, 16 * 64);
    let error = forest_error(cache.compact_node(root, &every(8, 1024)));
    let short = PoolError::OutOfPages { wanted: 2, free: 0, capacity: 16 };
    assert_eq!(error, ForestError::Pool(short));
    assert_eq!(cache.forest().compacted_tokens(root), Ok(0));
}

#[test]
fn a_compacted_prefix_is_not_found_any_more_and_a_pinned_one_stays() {
    let mut cache = cache(64);
    let prompt: Vec<u32> = (0..200).collect();
    let root = cache.insert_root().unwrap();
    fill(&mut cache, root, 200);
    let leaf = cache.seal(root, &prompt, 0).unwrap();
    let sealed = cache.forest().parent(leaf).unwrap().unwrap();
    // One more prefix below it, which nobody uses, and one that somebody does.
    for (first, used) in [(500, false), (600, true)] {
        let below: Vec<u32> = prompt.iter().copied().chain(first..first + 70).collect();
        let opened = cache.open(&below, 0).unwrap();
        fill(&mut cache, opened.node, below.len() as u32 - opened.matched);
        let end = cache.seal(opened.node, &below, 0).unwrap();
        if !used {
            cache.prune(end).unwrap();
        }
    }
    let nodes = cache.prefix_stats().nodes;
    cache.pin(sealed).unwrap();
    let error = cache.compact_node(sealed, &every(4, 192)).unwrap_err();
    assert!(matches!(error, CacheError::Prefix(PrefixError::Pinned { .. })), "{error}");
    assert_eq!(cache.prefix_stats().nodes, nodes);
    cache.unpin(sealed).unwrap();
    let count = cache.forest().node_count();
    cache.compact_node(sealed, &every(4, 192)).unwrap();
    assert_eq!(cache.prefix_stats().nodes, 0);
    assert_eq!(cache.forest().node_count(), count - 1, "what nobody uses is gone");
    let opened = cache.open(&prompt, 0).unwrap();
    assert_eq!(opened.matched, 0);
    cache.prune(opened.node).unwrap();
    cache.prune(sealed).unwrap();
    assert_eq!(cache.forest().pool().live(), 0);
    cache.forest().debug_assert_invariants();
}
