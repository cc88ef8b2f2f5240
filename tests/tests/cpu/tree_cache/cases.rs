//! What reports of other libraries have in common, through the cache, on the CPU and on the emulated kernels: tokens that
//! are not finite stay with those who see them, and keys of another cache open nothing.

use deft::cache::{PagedOrder, PagedTable};
use deft::{
    Batch, CacheError, DType, Device, DraftNode, Kv, NodeKey, Out, StepGraph, TreeCache, f16,
};
use deft_tests::emulated::Emulated;

const ROW: usize = 2 * 64;
const Q: usize = 4 * 64;

/// A cache of f16 on the CPU, and one on the kernels.
fn caches() -> [TreeCache; 2] {
    let builder = || {
        TreeCache::builder(&Device::cpu())
            .layers(1)
            .heads(4, 2, 64)
            .dtype(DType::F16)
            .capacity_bytes(16 * 64 * 2 * 2 * ROW as u64)
    };
    let kernels = builder().backend(|shape| Ok(Box::new(Emulated::new(shape, 1))));
    [builder().build().unwrap(), kernels.build().unwrap()]
}

/// Writes K of 0.5 and V of 0.25 for all rows but those in `bad`, whose K or V is `value` throughout.
fn write(cache: &mut TreeCache, batch: &Batch, bad: &[(usize, bool)], value: f32) {
    let mut kv = [0.5, 0.25].map(|value| vec![f16::from_f32(value); batch.rows() * ROW]);
    for &(row, is_value) in bad {
        kv[usize::from(is_value)][row * ROW..][..ROW].fill(f16::from_f32(value));
    }
    let [k, v] = &kv;
    cache.append(0, batch, Kv::new(k, v)).unwrap();
}

/// Which of the batch's rows are 0.25 throughout with a finite LSE; the others must be NaN or infinite throughout.
fn healthy(cache: &mut TreeCache, batch: &Batch) -> Vec<bool> {
    let q = vec![f16::ONE; batch.rows() * Q];
    let (mut out, mut lse) = (vec![f16::from_f32(7.0); q.len()], vec![7.0; batch.rows() * 4]);
    let results = Out::with_lse(&mut out, &mut lse);
    cache.attend(0, batch, &q, results).unwrap();
    let rows = out.chunks_exact(Q).zip(lse.chunks_exact(4));
    let row = |(out, lse): (&[f16], &[f32])| {
        let good = out.iter().all(|x| (x.to_f32() - 0.25).abs() < 1e-3);
        assert!(good || out.iter().all(|x| !x.is_finite()), "{:?}", &out[..8]);
        assert!(!good || lse.iter().all(|x| x.is_finite()), "{lse:?}");
        good
    };
    rows.map(row).collect()
}

fn leaves(cache: &mut TreeCache, tokens: u32, n: usize) -> Vec<NodeKey> {
    let root = cache.insert_root().unwrap();
    let prompt = cache.batch(&[(root, tokens)]).unwrap();
    write(cache, &prompt, &[], 0.0);
    cache.fork(root, n).unwrap()
}

fn ones(nodes: &[NodeKey]) -> Vec<(NodeKey, u32)> {
    nodes.iter().map(|&node| (node, 1)).collect()
}

const BAD: [f32; 2] = [f32::NAN, f32::INFINITY];

#[test]
fn a_leaf_that_is_not_finite_keeps_it_to_itself() {
    for mut cache in caches() {
        for (value, is_value) in [(BAD[0], true), (BAD[1], true), (BAD[0], false)] {
            let leaves = leaves(&mut cache, 70, 3);
            let batch = cache.batch(&ones(&leaves)).unwrap();
            write(&mut cache, &batch, &[(1, is_value)], value);
            let what = format!("{}: {value} in V: {is_value}", cache.backend().name());
            assert_eq!(healthy(&mut cache, &batch), [true, false, true], "{what}");
            let root = cache.forest().parent(leaves[0]).unwrap().unwrap();
            cache.prune(root).unwrap();
        }
    }
}

#[test]
fn pages_that_a_spoilt_tree_left_do_not_spoil_the_next() {
    for mut cache in caches() {
        for value in BAD {
            // All pages, K and V, once not finite.
            let root = cache.insert_root().unwrap();
            let tokens = 64 * cache.forest().pool().free();
            let batch = cache.batch(&[(root, tokens)]).unwrap();
            let all: Vec<_> =
                (0..batch.rows()).flat_map(|row| [(row, false), (row, true)]).collect();
            write(&mut cache, &batch, &all, value);
            cache.prune(root).unwrap();
            // A partly filled page, a chunk over an edge, and a draft of which one node only is written.
            let leaves = leaves(&mut cache, 70, 2);
            let batch = cache.batch(&[(leaves[0], 1), (leaves[1], 66)]).unwrap();
            write(&mut cache, &batch, &[], 0.0);
            assert_eq!(healthy(&mut cache, &batch), [true; 67]);
            let node = |parent| DraftNode { parent, tokens: 3 };
            let draft = [node(None), node(None), node(Some(0))];
            let keys = cache.insert_draft(leaves[0], &draft).unwrap();
            let written = cache.batch(&[(keys[1], 3)]).unwrap();
            write(&mut cache, &written, &[], 0.0);
            assert_eq!(healthy(&mut cache, &written), [true; 3]);
            let root = cache.forest().parent(leaves[0]).unwrap().unwrap();
            cache.prune(root).unwrap();
        }
    }
}

#[test]
fn moves_take_what_is_not_finite_along_and_nothing_else() {
    for mut cache in caches() {
        let leaves = leaves(&mut cache, 62, 2);
        let batch = cache.batch(&ones(&leaves)).unwrap();
        write(&mut cache, &batch, &[], 0.0);
        for (kept, healthy_after) in [(1, true), (0, false)] {
            let node = |parent| DraftNode { parent, tokens: 1 };
            let keys = cache.insert_draft(leaves[0], &[node(None), node(None)]).unwrap();
            let batch = cache.batch(&ones(&keys)).unwrap();
            write(&mut cache, &batch, &[(0, true)], f32::INFINITY);
            assert_eq!(healthy(&mut cache, &batch), [false, true]);
            cache.accept(leaves[0], &keys[kept..=kept]).unwrap();
            let trunk = cache.batch_held(&[(leaves[0], 1)]).unwrap();
            assert_eq!(healthy(&mut cache, &trunk), [healthy_after]);
        }
        // A chain below it sees the spoilt token, and its neighbour does not, before the merge and after.
        let below = cache.fork(leaves[0], 1).unwrap()[0];
        let batch = cache.batch(&[(below, 2), (leaves[1], 1)]).unwrap();
        write(&mut cache, &batch, &[], 0.0);
        assert_eq!(healthy(&mut cache, &batch), [false, false, true]);
        cache.merge_chain(leaves[0]).unwrap();
        let batch = cache.batch_held(&ones(&leaves)).unwrap();
        assert_eq!(healthy(&mut cache, &batch), [false, true]);
    }
}

#[test]
fn a_paged_cache_passes_on_what_is_not_finite_to_those_who_see_it() {
    for mut cache in caches() {
        let leaves = leaves(&mut cache, 70, 2);
        cache.extend(&leaves, 3).unwrap();
        let table = PagedTable { order: PagedOrder::Nhd, page_size: 3, pages: &[0] };
        let mut kv = [0.5, 0.25].map(|value| vec![f16::from_f32(value); 3 * ROW]);
        for (leaf, bad) in leaves.iter().zip([f16::from_f32(0.25), f16::NAN]) {
            kv[1][2 * ROW..].fill(bad);
            cache.import(0, *leaf, 70..73, &table, &kv[0], &kv[1]).unwrap();
        }
        let batch = cache.batch_held(&[(leaves[0], 3), (leaves[1], 3)]).unwrap();
        assert_eq!(healthy(&mut cache, &batch), [true, true, true, true, true, false]);
        let [mut k, mut v] = [(); 2].map(|()| vec![f16::ZERO; 3 * ROW]);
        cache.export(0, leaves[1], 70..73, &table, &mut k, &mut v).unwrap();
        let spoilt = |rows: &[f16]| rows.iter().any(|x| !x.is_finite());
        assert!(!spoilt(&k[..2 * ROW]) && !spoilt(&v[..2 * ROW]));
        assert!(spoilt(&k[2 * ROW..]) || spoilt(&v[2 * ROW..]));
    }
}

#[test]
fn keys_batches_and_graphs_of_another_cache_are_refused_by_every_call() {
    let [cpu, kernels] = caches();
    let [other_cpu, other_kernels] = caches();
    for (mut ours, mut theirs) in [(cpu, other_cpu), (kernels, other_kernels)] {
        let own = leaves(&mut ours, 3, 2);
        let key = leaves(&mut theirs, 3, 2)[0];
        let mut batch = theirs.batch(&[(key, 1)]).unwrap();
        let before = (ours.forest().growth_cursor(), ours.forest().lengths().to_vec());
        let table = PagedTable { order: PagedOrder::Nhd, page_size: 1, pages: &[0] };
        let mut kv = vec![f16::ONE; ROW];
        let (k, mut q) = (kv.clone(), vec![f16::ONE; Q]);
        let draft = [DraftNode { parent: None, tokens: 1 }];
        let refused: [(&str, Result<(), CacheError>); 13] = [
            ("fork", ours.fork(key, 1).map(drop)),
            ("extend", ours.extend(&[own[0], key], 1)),
            ("shrink", ours.shrink(&[key], 1)),
            ("insert_draft", ours.insert_draft(key, &draft).map(drop)),
            ("accept", ours.accept(key, &[])),
            ("merge_chain", ours.merge_chain(key)),
            ("prune", ours.prune(key).map(drop)),
            ("batch", ours.batch(&[(own[0], 1), (key, 1)]).map(drop)),
            ("batch_held", ours.batch_held(&[(key, 1)]).map(drop)),
            ("import", ours.import(0, key, 0..1, &table, &k, &k)),
            ("export", ours.export(0, key, 0..1, &table, &mut kv, &mut q)),
            ("advance", ours.advance(&mut batch, 1).map(drop)),
            ("refresh", ours.refresh(&mut batch)),
        ];
        for (call, outcome) in refused {
            let error = outcome.expect_err(call).to_string();
            let named = ["belongs to another forest", "made by another cache"];
            assert!(named.iter().any(|words| error.ends_with(words)), "{call}: {error}");
        }
        let after = (ours.forest().growth_cursor(), ours.forest().lengths().to_vec());
        assert_eq!(before, after, "nothing has changed");
        let mut graph = StepGraph::new();
        let ran = theirs.capture(&mut graph, &batch, |_| Ok::<(), CacheError>(()));
        ran.unwrap();
        let own = ours.batch(&ones(&own)).unwrap();
        let refused = ours.capture(&mut graph, &own, |_| -> Result<(), CacheError> {
            panic!("it is not run");
        });
        assert!(matches!(refused, Err(CacheError::ForeignGraph)));
        let refused = ours.append(0, &batch, Kv::new(&k, &k)).unwrap_err();
        assert!(matches!(refused, CacheError::ForeignBatch), "{refused}");
    }
}
