//! Where formats meet prefixes that are found again, files, and layers that share.

use deft::cache::{LayerMap, PagedOrder, PagedTable};
use deft::{CacheBuilder, DType, Device, Kv, KvFormat, NodeKey, Out, TreeCache};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Layer 1 reads the keys and values of layer 0.
const SOURCES: [u32; 3] = [0, 0, 2];
const ROW: usize = 2 * 64;
const Q_ROW: usize = 4 * 64;

fn builder(pages: u64) -> CacheBuilder {
    TreeCache::builder(&Device::cpu())
        .layer_map(LayerMap::new(&SOURCES).unwrap())
        .heads(4, 2, 64)
        .dtype(DType::F32)
        .capacity_bytes(pages * 2 * 2 * 64 * ROW as u64 * 4)
}

/// Numbers in -1.5..1.5 that depend on nothing but `seed`.
fn numbers(seed: u64, count: usize) -> impl Iterator<Item = f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..count).map(move |_| rng.random_range(-1.5..1.5))
}

/// K, then V, of the token `id` at a position, in the layer whose keys and values `layer` reads.
fn kv(layer: u32, id: u32, position: u32) -> [Vec<f32>; 2] {
    [0, 1].map(|half| {
        let seed = [SOURCES[layer as usize], id, position, half];
        let mix =
            |seed: u64, &part: &u32| seed.wrapping_mul(1_000_003).wrapping_add(u64::from(part));
        let seed = seed.iter().fold(7, mix);
        numbers(seed, ROW).collect()
    })
}

/// Writes the last `ids.len()` tokens of `node`, new ones.
fn push(cache: &mut TreeCache, node: NodeKey, ids: &[u32]) {
    let batch = cache.batch(&[(node, ids.len() as u32)]).unwrap();
    for layer in 0..3 {
        if cache.layer_map().is_some_and(|map| !map.is_own(layer)) {
            continue;
        }
        let rows = ids.iter().zip(batch.positions());
        let rows: Vec<_> = rows.map(|(&id, &at)| kv(layer, id, at)).collect();
        let [k, v] = [0, 1].map(|half| rows.iter().flat_map(|row| row[half].clone()).collect());
        let (k, v): (Vec<f32>, Vec<f32>) = (k, v);
        cache.append(layer, &batch, Kv::new(&k, &v)).unwrap();
    }
}

/// Opens a prompt, writes what is new of it and seals it; the tokens found, and the leaf below.
fn prompt(cache: &mut TreeCache, ids: &[u32]) -> (u32, NodeKey) {
    let opened = cache.open(ids, 0).unwrap();
    let new = &ids[opened.matched as usize..];
    if !new.is_empty() {
        push(cache, opened.node, new);
    }
    (opened.matched, cache.seal(opened.node, ids, 0).unwrap())
}

/// K, then V, of the path's tokens, `[tokens, row]`, of a layer, decoded.
fn export(cache: &mut TreeCache, node: NodeKey, layer: u32, tokens: u32) -> [Vec<f32>; 2] {
    let table = PagedTable { order: PagedOrder::Nhd, page_size: tokens.max(1), pages: &[0] };
    let mut rows = [(); 2].map(|()| vec![f32::NAN; tokens as usize * ROW]);
    let [k, v] = &mut rows;
    cache.export(layer, node, 0..tokens, &table, k, v).unwrap();
    rows
}

/// Attention of the last token of `node` in all layers: outputs and LSEs.
fn attend(cache: &mut TreeCache, node: NodeKey) -> Vec<f32> {
    let batch = cache.batch_held(&[(node, 1)]).unwrap();
    let mut all = Vec::new();
    for layer in 0..3 {
        let q: Vec<f32> = numbers(u64::from(layer), Q_ROW).collect();
        let (mut out, mut lse) = (vec![f32::NAN; Q_ROW], vec![f32::NAN; 4]);
        let results = Out::with_lse(&mut out, &mut lse);
        cache.attend(layer, &batch, &q, results).unwrap();
        all.extend(out);
        all.extend(lse);
    }
    all
}

fn assert_near(found: &[f32], expected: &[f32], context: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-5, "{context}: {i} is {a}, not {b}");
    }
}

/// Attention of token `id` after the first `tokens` tokens of the path to `node`, over native copies of what they
/// decode to.
fn attend_decoded(cache: &mut TreeCache, node: NodeKey, tokens: u32, id: u32) -> Vec<f32> {
    let mut plain = builder(40).build().unwrap();
    let root = plain.insert_root().unwrap();
    plain.extend(&[root], tokens).unwrap();
    let table = PagedTable { order: PagedOrder::Nhd, page_size: tokens, pages: &[0] };
    for layer in [0, 2] {
        let [k, v] = export(cache, node, layer, tokens);
        plain.import(layer, root, 0..tokens, &table, &k, &v).unwrap();
    }
    push(&mut plain, root, &[id]);
    attend(&mut plain, root)
}

/// Nothing is left once the index gives up what it holds.
fn assert_empties(cache: &mut TreeCache) {
    cache.clear_prefixes().unwrap();
    cache.forest().debug_assert_invariants();
    let pool = cache.forest().pool();
    assert_eq!((pool.live(), pool.slab_pages()), (0, 0));
    assert_eq!(cache.prefix_stats().pages, 0);
}

#[test]
fn open_cuts_a_node_in_a_format_and_copies_none_of_its_coded_tokens() {
    for name in ["kivi4", "kivi2-keep48", "fp8"] {
        let format: KvFormat = name.parse().unwrap();
        let mut cache = builder(100).build().unwrap();
        let ids: Vec<u32> = (0..300).collect();
        let (_, below) = prompt(&mut cache, &ids);
        let node = cache.forest().parent(below).unwrap().unwrap();
        assert_eq!(cache.seal_as(node, format).unwrap(), 4);
        let before = export(&mut cache, node, 2, 300);
        let mut other = ids[..150].to_vec();
        other.extend(900..920);
        // Two pages, and 22 tokens that are computed again, since moves are of native pages.
        let (matched, leaf) = prompt(&mut cache, &other);
        assert_eq!(matched, 128, "{name}");
        let forest = cache.forest();
        forest.debug_assert_invariants();
        let upper = forest.parent(node).unwrap().unwrap();
        assert_eq!(forest.format(upper).unwrap(), (format, 128));
        assert_eq!(forest.format(node).unwrap(), (format, 128));
        assert_eq!(forest.length(node).unwrap(), 300 - 128);
        assert!(export(&mut cache, node, 2, 300) == before, "{name}");
        push(&mut cache, leaf, &[5]);
        let expected = attend_decoded(&mut cache, leaf, 170, 5);
        assert_near(&attend(&mut cache, leaf), &expected, name);
        // The native tail of the node is copied as before.
        let (matched, _) = prompt(&mut cache, &[&ids[..270], &[7]].concat());
        assert_eq!(matched, 270, "{name}");
        for root in cache.forest().roots().collect::<Vec<_>>() {
            cache.prune(root).unwrap();
        }
        assert_empties(&mut cache);
    }
}

#[test]
fn a_saved_prompt_in_a_format_comes_back_as_attention_read_it() {
    let format: KvFormat = "int4-g64".parse().unwrap();
    let mut cache = builder(100).sealed_format(format).build().unwrap();
    let ids: Vec<u32> = (0..300).collect();
    prompt(&mut cache, &ids[..200]);
    let (matched, leaf) = prompt(&mut cache, &ids);
    assert_eq!(matched, 200);
    let node = cache.forest().parent(leaf).unwrap().unwrap();
    let above = cache.forest().parent(node).unwrap().unwrap();
    assert_eq!(cache.forest().format(above).unwrap(), (format, 192));
    assert_eq!(cache.forest().format(node).unwrap(), (format, 64));
    let mut file = Vec::new();
    cache.save_to(leaf, &mut file).unwrap();
    let mut second = builder(100).build().unwrap();
    let loaded = second.load_from(&mut &file[..], 0).unwrap();
    for layer in 0..3 {
        let decoded = export(&mut cache, leaf, layer, 300);
        assert!(export(&mut second, loaded, layer, 300) == decoded, "{layer}");
    }
    let native = second.bytes();
    assert_eq!((native.len(), native[0].pages), (1, 5));
    push(&mut cache, leaf, &[9]);
    push(&mut second, loaded, &[9]);
    let expected = attend(&mut cache, leaf);
    assert_near(&attend(&mut second, loaded), &expected, "loaded");
    // A cache that seals puts what it loads into its format.
    let mut third = builder(100).sealed_format(format).build().unwrap();
    let loaded = third.load_from(&mut &file[..], 0).unwrap();
    let node = third.forest().parent(loaded).unwrap().unwrap();
    assert_eq!(third.forest().format(node).unwrap(), (format, 256));
}

#[test]
fn layers_that_share_are_sealed_once_and_attend_as_copies_do() {
    let format: KvFormat = "kivi4".parse().unwrap();
    let mapped = builder(100).build().unwrap();
    let copies = builder(100).layers(3).build().unwrap();
    let ids: Vec<u32> = (0..200).collect();
    let [(one, two), (other, three)] = [mapped, copies].map(|mut cache| {
        let root = cache.insert_root().unwrap();
        push(&mut cache, root, &ids);
        assert_eq!(cache.seal_as(root, format).unwrap(), 3);
        (attend(&mut cache, root), cache)
    });
    assert!(one == other, "the same bits");
    let page = two.backend().shape().page();
    for (cache, layers) in [(two, 2), (three, 3)] {
        let coded = cache.bytes()[1];
        let bytes = 3 * layers * 2 * format.page_bytes(page) as u64;
        assert_eq!((coded.format, coded.bytes), (format, bytes));
    }
}

#[test]
fn whatever_is_opened_sealed_and_evicted_the_tokens_are_their_own() {
    // Its scales are a token's own, so it matters not which tokens were encoded together.
    let format: KvFormat = "fp8-token".parse().unwrap();
    let mut rng = SmallRng::seed_from_u64(3);
    let mut cache = builder(64).sealed_format(format).build().unwrap();
    let (mut coded, mut shared) = (0, 0);
    let mut asked: Vec<Vec<u32>> = vec![Vec::new()];
    for round in 0..120 {
        let before = &asked[rng.random_range(0..asked.len())];
        let kept = rng.random_range(0..=before.len());
        let mut ids = before[..kept].to_vec();
        let new = rng.random_range(1..200);
        ids.extend((0..new).map(|_| rng.random_range(0..4)));
        ids.truncate(500);
        let (matched, leaf) = prompt(&mut cache, &ids);
        shared += u32::from(matched > 0);
        for layer in [0, 2] {
            let halves = export(&mut cache, leaf, layer, ids.len() as u32);
            for (position, &id) in ids.iter().enumerate() {
                let row = position * ROW..(position + 1) * ROW;
                for (found, exact) in halves.iter().zip(kv(layer, id, position as u32)) {
                    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= b.abs() / 16.0 + 1e-3;
                    assert!(
                        found[row.clone()].iter().zip(&exact).all(near),
                        "round {round}, layer {layer}, token {position}"
                    );
                }
            }
        }
        let sealed = cache.forest().parent(leaf).unwrap().unwrap_or(leaf);
        coded += u32::from(cache.forest().format(sealed).unwrap().1 > 0);
        cache.prune(leaf).unwrap();
        cache.forest().debug_assert_invariants();
        asked.push(ids);
    }
    let stats = cache.prefix_stats();
    assert!(coded > 20 && shared > 20 && stats.evictions > 20, "{coded} {shared} {stats:?}");
    assert_empties(&mut cache);
}
